/*
Attention within each text of a packed row of tokens, forward and backward, in float and double.

Of each text and head, with queries Q [M, D], keys K and values V [L, D], and R a mask of ones and zeros over the rate of ones:

    S = Q K' / sqrt(D),  P = softmax(S),  O = (P * R) V                      (Vaswani et al. 2017, equation 1)
    G = (dO V') * R,  dS = P * (G - rowsum(P * G))
    dV = (P * R)' dO,  dQ = dS K / sqrt(D),  dK = dS' Q / sqrt(D)

P is not kept: the backward pass takes it from the logarithm of each row's sum of exponentials (Dao et al. 2022).

Queries, keys and values are read where the linear layers left them, and gradients are written there. A pair of a text and
a head is computed by one thread, always in the same order: the result does not depend on threads.

Plain C with the vector extensions of GCC and clang. The file includes itself once for every type and instruction set; the
instruction set is chosen when it is loaded. No OpenMP is linked: the caller hands in the function that starts torch's own
threads, since a second pool beside them would wait for cores that theirs spin on.
*/

#ifndef REAL

#include <math.h>
#include <stdint.h>
#include <string.h>

#define INTERFACE 1 /* Raised with every change that the Python side must know of. */
#define ROWS 6      /* Of a tile: with two vectors a row, accumulators and operands fit into 16 registers. */
#define ALIGNED 64
#define PADDED (-1e30) /* A score behind the end of a text: its exponential is 0. */
#define INLINE static inline __attribute__((always_inline))
#define UP(count, step) (((count) + (step)-1) / (step) * (step))
#define JOIN(name, type, set) name##_##type##_##set
#define NAMED(name, type, set) JOIN(name, type, set)
#define NAME(name) NAMED(name, REAL, SET)

typedef void (*Start)(void (*work)(void *), void *data, unsigned threads, unsigned flags);

/* One call. Strides are in elements; gradients have the strides of what they are gradients of. */
typedef struct {
    const void *query, *key, *value; /* Rows of all heads. */
    void *out;                       /* Forward: [queries, heads x dim]. */
    void *log_sum;                   /* [queries, heads]: forward writes it, backward reads it. */
    const void *d_out;               /* NULL: forward. */
    void *d_query, *d_key, *d_value;
    void *scratch;       /* `attention_scratch` bytes for each thread. */
    const int16_t *bits; /* Random; NULL: no dropout. Up to 64 behind the last cell are read and not used. */
    int64_t threshold;   /* Cells whose bits are below it are dropped. */
    double kept_scale;   /* What kept cells are multiplied by. */
    int64_t texts, heads, dim, longest;
    int64_t query_stride, key_stride;
    const int64_t *starts, *lengths;         /* Of each text, in tokens. */
    const int64_t *cells, *head_step, *step; /* Of each text: its first cell; from head to head, from query to query. */
    int64_t first_only;                      /* One query a text, in a row of its own. */
    int64_t double_precision;
    int64_t instructions; /* At most what `attention_instructions` gives. */
    int64_t threads;
    Start start; /* GOMP_parallel; NULL: this thread computes alone. */
    int64_t next_task, next_thread;
} Attention;

typedef void Task(const Attention *, int64_t text, int64_t head, char *scratch);

#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (Order){__VA_ARGS__})
#endif

/* Instruction sets, best last. */
#define SET base
#define TARGET
#define BYTES 16
#define REAL float
#include "_attention.c"
#undef REAL
#define REAL double
#include "_attention.c"
#undef REAL
#undef SET
#undef TARGET
#undef BYTES

#if defined(__x86_64__)
#define SET avx2
#define TARGET __attribute__((target("avx2,fma")))
#define BYTES 32
#define REAL float
#include "_attention.c"
#undef REAL
#define REAL double
#include "_attention.c"
#undef REAL
#undef SET
#undef TARGET
#undef BYTES

#define SET avx512
#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma")))
#define BYTES 64
#define REAL float
#include "_attention.c"
#undef REAL
#define REAL double
#include "_attention.c"
#undef REAL
#undef SET
#undef TARGET
#undef BYTES
#endif

/* The best that this processor has. 0: base, 1: avx2, 2: avx512. */
int attention_instructions(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        return 2;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
    return 0;
}

int attention_interface(void) { return INTERFACE; }

/* Bytes of one thread: room for two squares and for eight matrices of a head's rows, each padded. */
int64_t attention_scratch(int64_t longest, int64_t dim, int64_t double_precision) {
    const int64_t rows = UP(longest, 16), columns = UP(dim, 16);
    return (rows * (2 * rows + 8 * columns + 1)) * (double_precision ? 8 : 4) + 16 * ALIGNED;
}

static void work(void *data) {
    Attention *call = data;
    static Task *const tasks[][2] = {
        {task_float_base, task_double_base},
#if defined(__x86_64__)
        {task_float_avx2, task_double_avx2},
        {task_float_avx512, task_double_avx512},
#endif
    };
    Task *task = tasks[call->instructions][call->double_precision];
    int64_t thread = __atomic_fetch_add(&call->next_thread, 1, __ATOMIC_RELAXED);
    char *scratch = (char *)call->scratch + thread * attention_scratch(call->longest, call->dim, call->double_precision);
    scratch += -(uintptr_t)scratch % ALIGNED;
    for (;;) {
        int64_t number = __atomic_fetch_add(&call->next_task, 1, __ATOMIC_RELAXED);
        if (number >= call->texts * call->heads) return;
        /* The longest texts come last and are begun first: no thread is left alone with one. */
        task(call, call->texts - 1 - number / call->heads, number % call->heads, scratch);
    }
}

void attention_run(Attention *call) {
    call->next_task = call->next_thread = 0;
    if (call->start && call->threads > 1)
        call->start(work, call, (unsigned)call->threads, 0);
    else
        work(call);
}

#else /* Once for every type and instruction set. */

#define LANES ((int)(BYTES / sizeof(REAL)))
#define Vector NAME(Vector)
#define Mask NAME(Mask)
#define Four NAME(Four)
#define Index NAME(Index)
#define Order NAME(Order)
#define Bits NAME(Bits)
/* Aligned as their elements: rows begin anywhere. */
typedef REAL Vector __attribute__((vector_size(BYTES), aligned(sizeof(REAL)), may_alias));
typedef __typeof__((Vector){0} < (Vector){0}) Mask;
typedef REAL Four __attribute__((vector_size(4 * sizeof(REAL)), aligned(sizeof(REAL)), may_alias));
typedef __typeof__(__builtin_choose_expr(sizeof(REAL) == 8, (int64_t)0, (int32_t)0)) Index;
typedef Index Order __attribute__((vector_size(4 * sizeof(REAL))));
typedef int16_t Bits __attribute__((vector_size(BYTES / sizeof(REAL) * 2), aligned(2), may_alias));

/* C [rows, columns x LANES] = A B; element (r, k) of A is a[r * a_row + k * a_step]. */
INLINE TARGET void NAME(tile)(const int rows, const int columns, REAL *c, int64_t c_row, const REAL *a, int64_t a_row,
                              int64_t a_step, const REAL *b, int64_t b_row, int64_t depth) {
    Vector sums[ROWS][2];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) sums[r][0] = sums[r][1] = (Vector){0};
    for (int64_t k = 0; k < depth; k++) {
        const Vector left = *(const Vector *)(b + k * b_row);
        const Vector right = columns > 1 ? *(const Vector *)(b + k * b_row + LANES) : left;
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            const REAL x = a[r * a_row + k * a_step];
            sums[r][0] += x * left;
            if (columns > 1) sums[r][1] += x * right;
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) {
        *(Vector *)(c + r * c_row) = sums[r][0];
        if (columns > 1) *(Vector *)(c + r * c_row + LANES) = sums[r][1];
    }
}

/* C [rows, columns] = A B, `columns` a multiple of LANES. */
static TARGET void NAME(product)(REAL *c, int64_t c_row, const REAL *a, int64_t a_row, int64_t a_step, const REAL *b,
                                 int64_t b_row, int64_t rows, int64_t columns, int64_t depth) {
    for (int64_t j = 0; j < columns; j += 2 * LANES)
        for (int64_t i = 0; i < rows; i += ROWS) {
#define TILE(count)                                                                                          \
    case count:                                                                                              \
        if (columns - j > LANES)                                                                             \
            NAME(tile)(count, 2, c + i * c_row + j, c_row, a + i * a_row, a_row, a_step, b + j, b_row, depth); \
        else                                                                                                 \
            NAME(tile)(count, 1, c + i * c_row + j, c_row, a + i * a_row, a_row, a_step, b + j, b_row, depth); \
        break;
            switch (rows - i < ROWS ? rows - i : ROWS) {
                TILE(1)
                TILE(2)
                TILE(3)
                TILE(4)
                TILE(5)
                TILE(6)
            }
#undef TILE
        }
}

/* To rows of one head, or from them, times a factor; behind the last of `dim` elements `to` is filled with zeros. */
INLINE TARGET void NAME(copy)(REAL *to, int64_t to_row, const REAL *from, int64_t from_row, int64_t rows, int64_t dim,
                              int64_t filled, REAL factor) {
    for (int64_t i = 0; i < rows; i++, to += to_row, from += from_row) {
        int64_t d = 0;
        for (; d + LANES <= dim; d += LANES) *(Vector *)(to + d) = factor * *(const Vector *)(from + d);
        for (; d < dim; d++) to[d] = factor * from[d];
        for (; d < filled; d++) to[d] = 0;
    }
}

/* `from` [rows, columns], both multiples of 4, as columns: element by element it would take longer than a product. */
static TARGET void NAME(transpose)(REAL *to, const REAL *from, int64_t rows, int64_t columns) {
    for (int64_t i = 0; i < rows; i += 4)
        for (int64_t j = 0; j < columns; j += 4) {
            const REAL *at = from + i * columns + j;
            const Four a = *(const Four *)at, b = *(const Four *)(at + columns);
            const Four c = *(const Four *)(at + 2 * columns), d = *(const Four *)(at + 3 * columns);
            const Four ab = SHUFFLE(a, b, 0, 4, 1, 5), cd = SHUFFLE(c, d, 0, 4, 1, 5);
            const Four ab_later = SHUFFLE(a, b, 2, 6, 3, 7), cd_later = SHUFFLE(c, d, 2, 6, 3, 7);
            REAL *out = to + j * rows + i;
            *(Four *)out = SHUFFLE(ab, cd, 0, 1, 4, 5);
            *(Four *)(out + rows) = SHUFFLE(ab, cd, 2, 3, 6, 7);
            *(Four *)(out + 2 * rows) = SHUFFLE(ab_later, cd_later, 0, 1, 4, 5);
            *(Four *)(out + 3 * rows) = SHUFFLE(ab_later, cd_later, 2, 3, 6, 7);
        }
}

INLINE TARGET REAL NAME(total)(Vector of) {
    REAL sum = 0;
    for (int lane = 0; lane < LANES; lane++) sum += of[lane];
    return sum;
}

/* exp(x) for x up to about 0; NaN stays NaN. Single precision: the polynomial of Cephes' expf, within 2 units in the last place. */
INLINE TARGET Vector NAME(exponential)(Vector x) {
    if (sizeof(REAL) == sizeof(double)) {
        for (int lane = 0; lane < LANES; lane++) x[lane] = (REAL)exp(x[lane]);
        return x;
    }
    const REAL lowest = -87, shift = 12582912; /* 1.5 x 2^23: adding it rounds to an integer in the last bits. */
    const Mask below = x < lowest;
    const Vector shifted = (x * (REAL)1.44269504088896341) + shift, whole = shifted - shift;
    const Vector rest = (x - whole * (REAL)0.693359375) - whole * (REAL)-2.12194440e-4;
    Vector series = rest * (REAL)1.9875691500e-4 + (REAL)1.3981999507e-3;
    series = series * rest + (REAL)8.3334519073e-3;
    series = series * rest + (REAL)4.1665795894e-2;
    series = series * rest + (REAL)1.6666665459e-1;
    series = series * rest + (REAL)5.0000001201e-1;
    series = series * (rest * rest) + rest + (REAL)1;
    /* 2^whole, by way of the exponent's bits. */
    const Mask power = ((Mask)shifted - (Mask)((Vector){0} + shift) + 127) << 23;
    return (Vector)((Mask)(series * (Vector)power) & ~below);
}

/* `x` where the bits keep a cell, 0 where not. */
INLINE TARGET Vector NAME(kept)(Vector x, const int16_t *bits, int16_t threshold) {
    const Mask keep = __builtin_convertvector(*(const Bits *)bits >= threshold, Mask);
    return (Vector)((Mask)x & keep);
}

static TARGET void NAME(task)(const Attention *call, int64_t text, int64_t head, char *scratch) {
    const int64_t dim = call->dim, length = call->lengths[text], start = call->starts[text];
    const int64_t queries = call->first_only ? 1 : length, first = call->first_only ? text : start;
    const int64_t step = LANES > 4 ? LANES : 4, wide = UP(dim, step), square = UP(length, step), width = call->heads * dim;
    const int64_t query_row = call->query_stride, key_row = call->key_stride;
    const int64_t query_at = first * query_row + head * dim, key_at = start * key_row + head * dim;
    const int64_t out_at = first * width + head * dim;
    const REAL *query = (const REAL *)call->query + query_at;
    const REAL *key = (const REAL *)call->key + key_at, *value = (const REAL *)call->value + key_at;
    REAL *log_sum = (REAL *)call->log_sum + first * call->heads + head;
    const REAL factor = (REAL)(1 / sqrt((double)dim)), kept_scale = (REAL)call->kept_scale;
    const int16_t threshold = (int16_t)call->threshold;
    const int16_t *bits = call->bits ? call->bits + call->cells[text] + head * call->head_step[text] : NULL;

    REAL *room = (REAL *)scratch;
#define MATRIX(name, rows, columns) REAL *name = room; room += UP((rows) * (columns), ALIGNED / (int64_t)sizeof(REAL))
    MATRIX(q, queries, wide);
    MATRIX(k, square, wide);
    MATRIX(v, square, wide);
    MATRIX(key_columns, wide, square);
    MATRIX(p, queries, square);
    MATRIX(result, length, wide);
    NAME(copy)(q, wide, query, query_row, queries, dim, wide, factor);
    NAME(copy)(k, wide, key, key_row, length, dim, wide, 1);
    NAME(copy)(v, wide, value, key_row, length, dim, wide, 1);
    for (int64_t at = length * wide; at < square * wide; at++) k[at] = v[at] = 0;
    NAME(transpose)(key_columns, k, square, wide);
    NAME(product)(p, square, q, wide, 1, key_columns, square, queries, square, dim);
    for (int64_t i = 0; i < queries; i++)
        for (int64_t j = length; j < square; j++) p[i * square + j] = (REAL)PADDED;

    if (!call->d_out) {
        MATRIX(factors, queries, 1);
        for (int64_t i = 0; i < queries; i++) {
            REAL *row = p + i * square;
            Vector most = *(Vector *)row, sum = {0};
            for (int64_t j = LANES; j < square; j += LANES) {
                const Vector x = *(Vector *)(row + j);
                const Mask more = x > most;
                most = (Vector)(((Mask)x & more) | ((Mask)most & ~more));
            }
            REAL largest = most[0];
            for (int lane = 1; lane < LANES; lane++) largest = most[lane] > largest ? most[lane] : largest;
            for (int64_t j = 0; j < square; j += LANES) {
                const Vector x = NAME(exponential)(*(Vector *)(row + j) - largest);
                sum += x;
                *(Vector *)(row + j) = bits ? NAME(kept)(x, bits + i * call->step[text] + j, threshold) : x;
            }
            const REAL all = NAME(total)(sum);
            log_sum[i * call->heads] = largest + (REAL)log((double)all);
            factors[i] = (bits ? kept_scale : 1) / all;
        }
        NAME(product)(result, wide, p, square, 1, v, wide, queries, wide, length);
        REAL *out = (REAL *)call->out + out_at;
        for (int64_t i = 0; i < queries; i++)
            NAME(copy)(out + i * width, 0, result + i * wide, 0, 1, dim, dim, factors[i]);
        return;
    }

    MATRIX(value_columns, wide, square);
    MATRIX(coming, queries, wide);
    MATRIX(d, queries, square);
    NAME(transpose)(value_columns, v, square, wide);
    NAME(copy)(coming, wide, (const REAL *)call->d_out + out_at, width, queries, dim, wide, bits ? kept_scale : 1);
    NAME(product)(d, square, coming, wide, 1, value_columns, square, queries, square, dim);
    for (int64_t i = 0; i < queries; i++) {
        REAL *row = p + i * square, *gradient = d + i * square;
        const int16_t *of_row = bits ? bits + i * call->step[text] : NULL;
        const REAL logarithm = log_sum[i * call->heads];
        Vector sum = {0};
        for (int64_t j = 0; j < square; j += LANES) {
            const Vector x = NAME(exponential)(*(Vector *)(row + j) - logarithm);
            Vector g = *(Vector *)(gradient + j);
            if (bits) *(Vector *)(gradient + j) = g = NAME(kept)(g, of_row + j, threshold);
            sum += x * g;
            *(Vector *)(row + j) = x;
        }
        const REAL inner = NAME(total)(sum);
        for (int64_t j = 0; j < square; j += LANES) {
            const Vector x = *(Vector *)(row + j);
            *(Vector *)(gradient + j) = x * (*(Vector *)(gradient + j) - inner);
            if (bits) *(Vector *)(row + j) = NAME(kept)(x, of_row + j, threshold);
        }
    }
    NAME(product)(result, wide, p, 1, square, coming, wide, length, wide, queries);
    NAME(copy)((REAL *)call->d_value + key_at, key_row, result, wide, length, dim, dim, 1);
    NAME(product)(result, wide, d, 1, square, q, wide, length, wide, queries);
    NAME(copy)((REAL *)call->d_key + key_at, key_row, result, wide, length, dim, dim, 1);
    NAME(product)(result, wide, d, square, 1, k, wide, queries, wide, length);
    NAME(copy)((REAL *)call->d_query + query_at, query_row, result, wide, queries, dim, dim, factor);
#undef MATRIX
}

#undef Vector
#undef Mask
#undef Four
#undef Index
#undef Order
#undef Bits
#undef LANES

#endif
