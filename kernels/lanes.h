/* Perceptrons of many tasks on the CPU: one task in each lane of a vector register.
 *
 * The networks of a meta-batch differ in their weights, so products of single tasks are too small to fill a core. With
 * the tasks in the lanes every product is the same few instructions for any width, needs no padding and no transposed
 * copy, and each task's numbers stay apart: one that overflows harms no other.
 */
#include "functions.h"

typedef REAL V __attribute__((vector_size(BYTES)));
typedef INTEGER Bits __attribute__((vector_size(BYTES))); /* what comparing gives */

/* Loaded once, where compilers would rather load it for each product that it is in. */
#if defined(__x86_64__)
#define KEEP(v) __asm__("" : "+x"(v))
#else
#define KEEP(v) (void)0
#endif

enum { SET, SUBTRACT, DESCEND };

#define UNROLL _Pragma("GCC unroll 8")

/* A tile is 5 rows of as many columns as there are registers for: 32 of the widest, 16 of the others. */
#define COLUMNS (BYTES == 64 ? 4 : 2)

/* Each layer l of a network: how many numbers come in and go out, and where its matrix begins. */
#define FOR_LAYERS(net)                                                                                                \
    for (long l = 0, begin = 0, in, out; l < (net)->layers && (in = (net)->widths[l], out = (net)->widths[l + 1], 1); \
         begin += (in + 1) * out, l++)

/* ---- products: c[a][b] from the sum over k of x[a][k] y[k][b], each element a vector of tasks, and of the same of a
 * second pair of operands where there is one ---- */

INLINE void tile(const int A, const int B, const int mode, long K, V *c, long cs, const V *x, const V *x2, long xa,
                 long xk, const V *y, const V *y2, long yk, long yb, const V *base, const REAL *rate, long rate_step) {
    V sum[5][COLUMNS];
    UNROLL for (int a = 0; a < A; a++)
        UNROLL for (int b = 0; b < B; b++) sum[a][b] = (V){0};
    for (;;) {
        for (long k = 0; k < K; k++) {
            V right[COLUMNS];
            UNROLL for (int b = 0; b < B; b++) {
                right[b] = y[k * yk + b * yb];
                KEEP(right[b]);
            }
            UNROLL for (int a = 0; a < A; a++) {
                V left = x[a * xa + k * xk];
                KEEP(left);
                UNROLL for (int b = 0; b < B; b++) sum[a][b] += left * right[b];
            }
        }
        if (!x2) break;
        x = x2, y = y2, x2 = 0;
    }
    UNROLL for (int a = 0; a < A; a++)
        UNROLL for (int b = 0; b < B; b++) {
            long at = a * cs + b;
            if (mode == SET) c[at] = sum[a][b];
            if (mode == SUBTRACT) c[at] -= sum[a][b];
            if (mode == DESCEND) c[at] = base[at] - rate[at * rate_step] * sum[a][b];
        }
}

INLINE void product(const int mode, long An, long Bn, long K, V *c, long cs, const V *x, const V *x2, long xa, long xk,
                    const V *y, const V *y2, long yk, long yb, const V *base, const REAL *rate, long rate_step) {
    long blocks = (An + 4) / 5, least = An / blocks, longer = An % blocks;
    for (long b = 0, wide; b < Bn; b += wide) {
        const V *right = y + b * yb, *right2 = x2 ? y2 + b * yb : 0;
        wide = Bn - b < COLUMNS ? Bn - b : COLUMNS;
        for (long block = 0, a = 0; block < blocks; block++) {
            long count = least + (block < longer), at = a * cs + b;
            const V *left = x + a * xa, *left2 = x2 ? x2 + a * xa : 0;
#define TILE(A, B)                                                                                                 \
    case 8 * A + B:                                                                                                \
        tile(A, B, mode, K, c + at, cs, left, left2, xa, xk, right, right2, yk, yb, mode == DESCEND ? base + at : 0, \
             mode == DESCEND ? rate + at * rate_step : 0, rate_step);                                              \
        break;
#if BYTES == 64
#define TILES(A) TILE(A, 1) TILE(A, 2) TILE(A, 3) TILE(A, 4)
#else
#define TILES(A) TILE(A, 1) TILE(A, 2)
#endif
            switch (8 * count + wide) { TILES(1) TILES(2) TILES(3) TILES(4) TILES(5) }
#undef TILES
#undef TILE
            a += count;
        }
    }
}

/* c [rows, out] = x [rows, in] @ y [in, out] + x2 @ y2 */
static void forward_product(long rows, long in, long out, V *c, const V *x, const V *y, const V *x2, const V *y2) {
    product(SET, rows, out, in, c, out, x, x2, in, 1, y, y2, out, 1, 0, 0, 0);
}
/* c [rows, in] = x [rows, out] @ y [in, out].T + x2 @ y2.T */
static void back_product(long rows, long in, long out, V *c, const V *x, const V *y, const V *x2, const V *y2) {
    product(SET, rows, in, out, c, in, x, x2, out, 1, y, y2, 1, out, 0, 0, 0);
}
/* c [in, out] = x [rows, in].T @ y [rows, out] */
static void gradient_product(long rows, long in, long out, V *c, const V *x, const V *y) {
    product(SET, in, out, rows, c, out, x, 0, 1, in, y, 0, out, 1, 0, 0, 0);
}
/* c [in, out] -= x [rows, in].T @ y [rows, out] + x2.T @ y2 */
static void subtract_gradient(long rows, long in, long out, V *c, const V *x, const V *y, const V *x2, const V *y2) {
    product(SUBTRACT, in, out, rows, c, out, x, x2, 1, in, y, y2, out, 1, 0, 0, 0);
}
/* c [in, out] = base - rate * (x [rows, in].T @ y [rows, out]) */
static void descend(long rows, long in, long out, V *c, const V *x, const V *y, const V *base, const REAL *rate,
                    long rate_step) {
    product(DESCEND, in, out, rows, c, out, x, 0, 1, in, y, 0, out, 1, base, rate, rate_step);
}

/* ---- activations and losses ---- */

/* sums [rows, width] -> activations [rows, width + 1], a one behind each row; where they are curved, their slopes and
 * second derivatives */
static void activate(Activation kind, REAL frequency, long rows, long width, const V *sums, V *values, V *slopes,
                     V *bends) {
    const long n = width * LANES;
    for (long r = 0; r < rows; r++) {
        REAL *a = (REAL *)(values + r * (width + 1)), *d = (REAL *)(slopes + r * width), *dd = (REAL *)(bends + r * width);
        activate_numbers(kind, frequency, n, (const REAL *)(sums + r * width), a, d, dd);
        for (long i = n; i < n + LANES; i++) a[i] = 1;
    }
}

/* The probabilities of a row of logits, of the task in lane l, into shares; returns the log-probability of the one that
 * targets are 1 for. */
INLINE REAL softmax(long out, long l, const V *logits, const V *targets, V *shares) {
    REAL most = logits[0][l], sum = 0, hit = 0;
    for (long o = 1; o < out; o++) most = logits[o][l] > most ? logits[o][l] : most;
    for (long o = 0; o < out; o++) sum += shares[o][l] = EXP(logits[o][l] - most);
    for (long o = 0; o < out; o++) {
        shares[o][l] /= sum;
        hit += targets[o][l] * (logits[o][l] - most);
    }
    return hit - LOG(sum);
}

static __attribute__((noinline)) void scaled(long n, V *c, const V *x, REAL by) {
    for (long i = 0; i < n; i++) c[i] = x[i] * by;
}

typedef struct { /* what a pass leaves behind */
    V *values[LAYERS], *slopes[LAYERS], *bends[LAYERS], *deltas[LAYERS], *shares;
} Pass;

/* c = x times the slopes of a layer of a pass, [rows, width], with room for that many behind each row of c, set to 0; the
 * rectifier's slopes are known from its values */
static void slope(Activation kind, long rows, long width, V *c, long behind, const V *x, const Pass *pass, long layer) {
    for (long r = 0; r < rows; r++, c += width + behind, x += width) {
        const V *values = pass->values[layer] + r * (width + 1), *slopes = pass->slopes[layer] + r * width;
        if (is_curved(kind))
            for (long i = 0; i < width; i++) c[i] = x[i] * slopes[i];
        else if (kind == RELU)
            for (long i = 0; i < width; i++) c[i] = (V)((Bits)x[i] & (values[i] > 0));
        else
            memcpy(c, x, width * sizeof(V));
        for (long i = 0; i < behind; i++) c[width + i] = (V){0};
    }
}

static long parameters_of(const Network *net) {
    long n = 0;
    FOR_LAYERS(net) n += (in + 1) * out;
    return n;
}

static long widest_of(const Network *net) {
    long widest = 0;
    for (long l = 0; l <= net->layers; l++) widest = net->widths[l] > widest ? net->widths[l] : widest;
    return widest;
}

/* Where each number of the matrices [in + 1, out] lies in a row of weights [out, in] and biases [out]. */
static void find_places(const Network *net, int32_t *places) {
    FOR_LAYERS(net)
        for (long i = 0; i <= in; i++)
            for (long o = 0; o < out; o++) *places++ = (int32_t)(begin + (i < in ? o * in + i : out * in + o));
}

/* The vectors of one pass over so many rows; laid out into it where there is memory. */
static long lay_out(const Network *net, long rows, Pass *pass, V *memory) {
    V *at = memory;
    FOR_LAYERS(net) {
        pass->values[l] = at, at += rows * (in + 1);
        pass->slopes[l] = at, at += rows * in;
        pass->bends[l] = at, at += rows * in;
        pass->deltas[l] = at, at += rows * out;
    }
    pass->shares = at, at += rows * net->widths[net->layers];
    return at - memory;
}

/* The first rows of inputs [tasks, all, in] of the group's tasks -> [rows, in + 1], a one behind each row. A group that is
 * not full repeats its last task. */
static void load_inputs(const REAL *from, long first, long count, long rows, long all, long in, V *to) {
    for (long l = 0; l < LANES; l++) {
        const REAL *task = from + (first + (l < count ? l : count - 1)) * all * in;
        for (long r = 0; r < rows; r++) {
            for (long i = 0; i < in; i++) ((REAL *)(to + r * (in + 1) + i))[l] = task[r * in + i];
            ((REAL *)(to + r * (in + 1) + in))[l] = 1;
        }
    }
}

/* values[0] is filled; fills the rest of the pass up to the logits */
static void forward(const Network *net, long rows, const V *phi, Pass *pass, V *sums, V *logits) {
    FOR_LAYERS(net) {
        const long last = l + 1 == net->layers;
        forward_product(rows, in + 1, out, last ? logits : sums, pass->values[l], phi + begin, 0, 0);
        if (!last)
            activate(net->activation, (REAL)net->frequencies[l], rows, out, sums, pass->values[l + 1], pass->slopes[l + 1],
                     pass->bends[l + 1]);
    }
}

/* deltas of the last layer are filled; fills the others, and multiplies the second derivatives by what comes back */
static void back(const Network *net, long rows, const V *phi, Pass *pass, V *sums) {
    phi += parameters_of(net);
    for (long l = net->layers - 1; l > 0; l--) {
        long in = net->widths[l], out = net->widths[l + 1];
        phi -= (in + 1) * out;
        back_product(rows, in, out, sums, pass->deltas[l], phi, 0, 0);
        slope(net->activation, rows, in, pass->deltas[l - 1], 0, sums, pass, l);
        if (is_curved(net->activation))
            for (long i = 0; i < rows * in; i++) pass->bends[l][i] *= sums[i];
    }
}

/* The tangents of a pass in the direction u of its parameters: of the activations, with a zero behind them, and of the
 * logits. */
static void forward_tangents(const Network *net, long rows, const V *phi, const V *u, const Pass *pass, Pass *tangent,
                             V *logits) {
    FOR_LAYERS(net) {
        const long last = l + 1 == net->layers;
        V *into = last ? logits : tangent->slopes[l + 1];
        forward_product(rows, in + 1, out, into, pass->values[l], u + begin, l ? tangent->values[l] : 0, phi + begin);
        if (!last) slope(net->activation, rows, out, tangent->values[l + 1], 1, into, pass, l + 1);
    }
}

/* deltas of the tangents' last layer are filled; subtracts the tangent of the gradient from v */
static void back_tangents(const Network *net, long rows, const V *phi, const V *u, const Pass *pass, Pass *tangent,
                          V *sums, V *v) {
    for (long l = net->layers - 1, begin = parameters_of(net); l >= 0; l--) {
        long in = net->widths[l], to = net->widths[l + 1];
        begin -= (in + 1) * to;
        subtract_gradient(rows, in + 1, to, v + begin, pass->values[l], tangent->deltas[l],
                          l ? tangent->values[l] : 0, pass->deltas[l]);
        if (!l) break;
        back_product(rows, in, to, sums, tangent->deltas[l], phi + begin, pass->deltas[l], u + begin);
        slope(net->activation, rows, in, tangent->deltas[l - 1], 0, sums, pass, l);
        if (is_curved(net->activation))
            for (long i = 0; i < rows * in; i++) tangent->deltas[l - 1][i] += pass->bends[l][i] * tangent->slopes[l][i];
    }
}
