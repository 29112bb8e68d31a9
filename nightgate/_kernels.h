/* What `_kernels.c` computes, for one type (REAL) and one instruction set (SET, TARGET, vectors of BYTES). */

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

/* exp(x) for x up to about 0; NaN stays NaN. Single precision: the polynomial of Cephes' expf. */
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

#define AT(pointer, place) (*(Vector *)((REAL *)(pointer) + (place)))

static TARGET void NAME(norm)(const Norm *call, int64_t block) {
    const int64_t width = call->width, first = block * ROWS_OF_BLOCK;
    const int64_t last = first + ROWS_OF_BLOCK < call->rows ? first + ROWS_OF_BLOCK : call->rows;
    const int16_t threshold = (int16_t)call->threshold, *bits = call->bits;
    const REAL kept_scale = (REAL)call->kept_scale;

    for (int64_t row = first; !call->d_out && row < last; row++) {
        const int64_t at = row * width;
        Vector total = {0}, squares = {0};
        for (int64_t j = 0; j < width; j += LANES) {
            Vector x = AT(call->values, at + j);
            if (bits) x = NAME(kept)(x, bits + at + j, threshold) * kept_scale;
            AT(call->sum, at + j) = x = x + AT(call->residual, at + j);
            total += x;
        }
        const REAL mean = NAME(total)(total) / (REAL)width;
        for (int64_t j = 0; j < width; j += LANES) {
            const Vector x = AT(call->sum, at + j) - mean;
            squares += x * x;
        }
        const REAL scale = (REAL)(1 / sqrt((double)(NAME(total)(squares) / (REAL)width) + call->epsilon));
        for (int64_t j = 0; j < width; j += LANES)
            AT(call->out, at + j) = (AT(call->sum, at + j) - mean) * scale * AT(call->weight, j) + AT(call->bias, j);
        ((REAL *)call->moments)[2 * row] = mean;
        ((REAL *)call->moments)[2 * row + 1] = scale;
    }
    if (!call->d_out) return;

    REAL *d_weight = (REAL *)call->d_parameters + 2 * block * width, *d_bias = d_weight + width;
    memset(d_weight, 0, sizeof(REAL) * 2 * (size_t)width);
    for (int64_t row = first; row < last; row++) {
        const int64_t at = row * width;
        const REAL mean = ((REAL *)call->moments)[2 * row], scale = ((REAL *)call->moments)[2 * row + 1];
        Vector total = {0}, along = {0};
        for (int64_t j = 0; j < width; j += LANES) {
            const Vector d = AT(call->d_out, at + j), normal = (AT(call->sum, at + j) - mean) * scale;
            const Vector g = d * AT(call->weight, j);
            total += g;
            along += g * normal;
            AT(d_weight, j) += d * normal;
            AT(d_bias, j) += d;
        }
        const REAL mean_g = NAME(total)(total) / (REAL)width, mean_along = NAME(total)(along) / (REAL)width;
        for (int64_t j = 0; j < width; j += LANES) {
            const Vector normal = (AT(call->sum, at + j) - mean) * scale;
            const Vector x = (AT(call->d_out, at + j) * AT(call->weight, j) - mean_g - normal * mean_along) * scale;
            AT(call->d_sum, at + j) = x;
            if (bits) AT(call->d_values, at + j) = NAME(kept)(x, bits + at + j, threshold) * kept_scale;
        }
    }
}

#undef AT

#undef Vector
#undef Mask
#undef Four
#undef Index
#undef Order
#undef Bits
#undef LANES
