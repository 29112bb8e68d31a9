/*
The parts of an encoder's step that plain torch computes in many passes over memory, forward and backward, in float and
double, on the CPU: attention within each text of a packed row of tokens, and layer normalisation of what dropout leaves of
a layer's output, added to its input.

Attention. Of each text and head, with queries Q [M, D], keys K and values V [L, D], and R a mask of ones and zeros over the
rate of ones:

    S = Q K' / sqrt(D),  P = softmax(S),  O = (P * R) V                      (Vaswani et al. 2017, equation 1)
    G = (dO V') * R,  dS = P * (G - rowsum(P * G))
    dV = (P * R)' dO,  dQ = dS K / sqrt(D),  dK = dS' Q / sqrt(D)

P is not kept: the backward pass takes it from the logarithm of each row's sum of exponentials (Dao et al. 2022).

Queries, keys and values are read where the linear layers left them, and gradients are written there. A pair of a text and
a head is computed by one thread, always in the same order: the result does not depend on threads.

Normalisation. Of each row X = A + B * R of n elements, with weight w and bias b              (Ba et al. 2016, equation 4)

    N = (X - mean(X)) / sqrt(var(X) + epsilon),  Y = N * w + b
    G = dY * w,  dX = (G - mean(G) - N * mean(G * N)) / sqrt(var(X) + epsilon)
    dA = dX,  dB = dX * R,  dw = sum of dY * N over rows,  db = sum of dY over rows

Sums over rows are given back for each block of rows, whatever the number of threads, and added up by the caller.

Plain C with the vector extensions of GCC and clang. `_kernels.h` is included once for every type and instruction set; the
instruction set is chosen when the kernels are loaded. No OpenMP is linked: the caller hands in the function that starts torch's own
threads, since a second pool beside them would wait for cores that theirs spin on.
*/

#include <math.h>
#include <stdint.h>
#include <string.h>

#define INTERFACE 1 /* Raised with every change that the Python side must know of. */
#define ROWS 6      /* Of a tile: with two vectors a row, accumulators and operands fit into 16 registers. */
#define ALIGNED 64
#define ROWS_OF_BLOCK 32
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
    int64_t instructions; /* At most what `kernel_instructions` gives. */
    int64_t threads;
    Start start; /* GOMP_parallel; NULL: this thread computes alone. */
    int64_t next_task, next_thread;
} Attention;

/* One call. All rows are contiguous; their width is a multiple of 16. */
typedef struct {
    const void *residual, *values, *weight, *bias;
    void *sum, *out, *moments; /* [rows, width]; the same; mean and reciprocal deviation, [rows, 2]. */
    const void *d_out;         /* NULL: forward. */
    void *d_sum, *d_values;    /* [rows, width]; d_values is not written without dropout. */
    void *d_parameters;        /* Of weight and bias, [blocks, 2, width]. */
    const int16_t *bits;
    int64_t threshold;
    double kept_scale, epsilon;
    int64_t rows, width;
    int64_t double_precision, instructions, threads;
    Start start;
    int64_t next_task;
} Norm;

typedef void NormTask(const Norm *, int64_t block);
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
#include "_kernels.h"
#undef REAL
#define REAL double
#include "_kernels.h"
#undef REAL
#undef SET
#undef TARGET
#undef BYTES

#if defined(__x86_64__)
#define SET avx2
#define TARGET __attribute__((target("avx2,fma")))
#define BYTES 32
#define REAL float
#include "_kernels.h"
#undef REAL
#define REAL double
#include "_kernels.h"
#undef REAL
#undef SET
#undef TARGET
#undef BYTES

#define SET avx512
#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma")))
#define BYTES 64
#define REAL float
#include "_kernels.h"
#undef REAL
#define REAL double
#include "_kernels.h"
#undef REAL
#undef SET
#undef TARGET
#undef BYTES
#endif

/* The best that this processor has. 0: base, 1: avx2, 2: avx512. */
int kernel_instructions(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        return 2;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
    return 0;
}

int kernel_interface(void) { return INTERFACE; }

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

static void norm_work(void *data) {
    Norm *call = data;
    static NormTask *const tasks[][2] = {
        {norm_float_base, norm_double_base},
#if defined(__x86_64__)
        {norm_float_avx2, norm_double_avx2},
        {norm_float_avx512, norm_double_avx512},
#endif
    };
    NormTask *task = tasks[call->instructions][call->double_precision];
    for (;;) {
        int64_t block = __atomic_fetch_add(&call->next_task, 1, __ATOMIC_RELAXED);
        if (block * ROWS_OF_BLOCK >= call->rows) return;
        task(call, block);
    }
}

int64_t norm_blocks(int64_t rows) { return UP(rows, ROWS_OF_BLOCK) / ROWS_OF_BLOCK; }

void norm_run(Norm *call) {
    call->next_task = 0;
    if (call->start && call->threads > 1)
        call->start(norm_work, call, (unsigned)call->threads, 0);
    else
        norm_work(call);
}

void attention_run(Attention *call) {
    call->next_task = call->next_thread = 0;
    if (call->start && call->threads > 1)
        call->start(work, call, (unsigned)call->threads, 0);
    else
        work(call);
}
