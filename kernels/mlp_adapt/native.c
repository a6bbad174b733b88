/* The recursion of README.md for the CPU: one task in each lane of a vector register.
 *
 * The networks of a meta-batch differ in their weights, so products of single tasks are too small to fill a core. With
 * the tasks in the lanes every product is the same few instructions for any width, needs no padding and no transposed
 * copy, and each task's numbers stay apart: one that overflows harms no other. A group of LANES tasks runs all its inner
 * steps and the way back in one thread, out of that thread's cache; sums over groups are in a fixed order.
 *
 * Compiled by native.py with -DREAL=float -DINTEGER=int32_t, or -DREAL=double -DINTEGER=int64_t.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif
#define LANES (BYTES / (long)sizeof(REAL))
#define LAYERS 4 /* at most */
#define MOST_KEPT (64L << 20) /* bytes that a thread keeps for its next call */
#define INLINE static inline __attribute__((always_inline))

typedef REAL V __attribute__((vector_size(BYTES)));
typedef INTEGER Bits __attribute__((vector_size(BYTES))); /* what comparing gives */

/* Loaded once, where compilers would rather load it for each product that it is in. */
#if defined(__x86_64__)
#define KEEP(v) __asm__("" : "+x"(v))
#else
#define KEEP(v) (void)0
#endif

enum { IDENTITY, RELU, TANH, GELU };
enum { MSE, CROSS_ENTROPY, BCE };
enum { SET, SUBTRACT, DESCEND };

typedef struct {
    int64_t tasks, rows, queries, layers, steps, activation, loss, order, rates_grad, rate_columns, threads;
    int64_t widths[LAYERS + 1];
    const REAL *theta, *rates, *support_inputs, *query_inputs;
    const void *support_targets, *query_targets; /* int64 labels for the cross-entropy */
    REAL *task_losses, *predictions, *support_losses, *of_theta, *of_rates, *trajectory;
} Problem;

/* ---- products: c[a][b] from the sum over k of x[a][k] y[k][b], each element a vector of tasks, and of the same of a
 * second pair of operands where there is one ---- */

INLINE void tile(const int A, const int B, const int mode, long K, V *c, long cs, const V *x, const V *x2, long xa,
                 long xk, const V *y, const V *y2, long yk, long yb, const V *base, const REAL *rate, long rate_step) {
    V sum[5][2];
#pragma GCC unroll 8
    for (int a = 0; a < A; a++)
#pragma GCC unroll 8
        for (int b = 0; b < B; b++) sum[a][b] = (V){0};
    for (;;) {
        for (long k = 0; k < K; k++) {
            V right[2];
#pragma GCC unroll 8
            for (int b = 0; b < B; b++) {
                right[b] = y[k * yk + b * yb];
                KEEP(right[b]);
            }
#pragma GCC unroll 8
            for (int a = 0; a < A; a++) {
                V left = x[a * xa + k * xk];
                KEEP(left);
#pragma GCC unroll 8
                for (int b = 0; b < B; b++) sum[a][b] += left * right[b];
            }
        }
        if (!x2) break;
        x = x2, y = y2, x2 = 0;
    }
#pragma GCC unroll 8
    for (int a = 0; a < A; a++)
#pragma GCC unroll 8
        for (int b = 0; b < B; b++) {
            long at = a * cs + b;
            if (mode == SET) c[at] = sum[a][b];
            if (mode == SUBTRACT) c[at] -= sum[a][b];
            if (mode == DESCEND) c[at] = base[at] - rate[at * rate_step] * sum[a][b];
        }
}

INLINE void product(const int mode, long An, long Bn, long K, V *c, long cs, const V *x, const V *x2, long xa, long xk,
                    const V *y, const V *y2, long yk, long yb, const V *base, const REAL *rate, long rate_step) {
    long blocks = (An + 4) / 5, least = An / blocks, longer = An % blocks;
    for (long b = 0; b < Bn; b += 2) {
        const V *right = y + b * yb, *right2 = x2 ? y2 + b * yb : 0;
        for (long block = 0, a = 0; block < blocks; block++) {
            long count = least + (block < longer), at = a * cs + b;
            const V *left = x + a * xa, *left2 = x2 ? x2 + a * xa : 0;
#define TILE(A, B)                                                                                                 \
    tile(A, B, mode, K, c + at, cs, left, left2, xa, xk, right, right2, yk, yb, mode == DESCEND ? base + at : 0,   \
         mode == DESCEND ? rate + at * rate_step : 0, rate_step)
            switch (count * 2 + (b + 1 == Bn)) {
                case 10: TILE(5, 2); break;
                case 11: TILE(5, 1); break;
                case 8: TILE(4, 2); break;
                case 9: TILE(4, 1); break;
                case 6: TILE(3, 2); break;
                case 7: TILE(3, 1); break;
                case 4: TILE(2, 2); break;
                case 5: TILE(2, 1); break;
                case 2: TILE(1, 2); break;
                default: TILE(1, 1);
            }
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

/* ---- activations and losses, number by number ---- */

/* In single precision these are Cephes' polynomials, to 2 units in the last place, which compilers turn into vector
 * instructions; libm's are ten times slower. The argument of the exponential is never above 88. */
INLINE float exp_single(float x) {
    x = x < -87 ? -87 : x;
    float n = rintf(x * 1.44269504f), r = x - n * 0.693359375f + n * 2.12194440e-4f, p = 1.9875691500e-4f, power;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    int32_t bits = ((int32_t)n + 127) * (1 << 23);
    memcpy(&power, &bits, sizeof power);
    return (p * r * r + r + 1) * power;
}
INLINE float tanh_single(float x) {
    float far = x < 0 ? -x : x, z = x * x, p = -5.70498872745e-3f;
    p = p * z + 2.06390887954e-2f;
    p = p * z - 5.37397155531e-2f;
    p = p * z + 1.33314422036e-1f;
    p = p * z - 3.33332819422e-1f;
    float large = 1 - 2 / (exp_single(2 * (far > 10 ? 10 : far)) + 1);
    return far < 0.625f ? p * z * x + x : x < 0 ? -large : large;
}
#define IS_SINGLE (sizeof(REAL) == 4)
#define EXP(x) (IS_SINGLE ? (REAL)exp_single((float)(x)) : (REAL)exp(x))
#define TANH(x) (IS_SINGLE ? (REAL)tanh_single((float)(x)) : (REAL)tanh(x))
#define LOG(x) (IS_SINGLE ? (REAL)logf((float)(x)) : (REAL)log(x))
#define LOG1P(x) (IS_SINGLE ? (REAL)log1pf((float)(x)) : (REAL)log1p(x))
#define ERFC(x) (IS_SINGLE ? (REAL)erfcf((float)(x)) : (REAL)erfc(x))

/* sums [rows, width] -> activations [rows, width + 1], a one behind each row; where they are curved, their slopes and
 * second derivatives */
static void activate(int kind, long rows, long width, const V *sums, V *values, V *slopes, V *bends) {
    long n = width * LANES;
    for (long r = 0; r < rows; r++) {
        const REAL *s = (const REAL *)(sums + r * width);
        REAL *a = (REAL *)(values + r * (width + 1));
        REAL *d = (REAL *)(slopes + r * width), *dd = (REAL *)(bends + r * width);
        if (kind == RELU)
            for (long i = 0; i < n; i++) a[i] = s[i] < 0 ? 0 : s[i]; /* as torch, NaN stays NaN */
        else if (kind == TANH)
            for (long i = 0; i < n; i++) {
                a[i] = TANH(s[i]);
                d[i] = 1 - a[i] * a[i];
                dd[i] = -2 * a[i] * d[i];
            }
        else if (kind == GELU)
            for (long i = 0; i < n; i++) {
                REAL density = EXP(s[i] * s[i] * (REAL)-0.5) * (REAL)0.3989422804014326779;
                REAL below = ERFC(s[i] * (REAL)-0.7071067811865475244) * (REAL)0.5;
                a[i] = s[i] * below;
                d[i] = below + s[i] * density;
                dd[i] = density * (2 - s[i] * s[i]);
            }
        else
            memcpy(a, s, n * sizeof(REAL));
        for (long i = n; i < n + LANES; i++) a[i] = 1;
    }
}

static void times(long n, V *c, const V *x, const V *y) {
    for (long i = 0; i < n; i++) c[i] = x[i] * y[i];
}

static __attribute__((noinline)) void scaled(long n, V *c, const V *x, REAL by) {
    for (long i = 0; i < n; i++) c[i] = x[i] * by;
}

/* The loss of each task, a mean, into losses [LANES]; the gradient at the logits [rows, out], of half the squares or of
 * the likelihood; the probabilities, or the logits where there are none. */
static void delta_of(int loss, long rows, long out, const V *logits, const V *targets, V *delta, V *shares, V *losses) {
    V total = {0};
    if (loss == MSE) {
        for (long i = 0; i < rows * out; i++) {
            delta[i] = logits[i] - targets[i];
            total += delta[i] * delta[i];
        }
    } else if (loss == BCE) {
        for (long i = 0; i < rows * out; i++)
            for (long l = 0; l < LANES; l++) {
                REAL z = logits[i][l], t = targets[i][l], e = EXP(-(z < 0 ? -z : z));
                shares[i][l] = (z < 0 ? e : 1) / (1 + e);
                delta[i][l] = shares[i][l] - t;
                total[l] += (z < 0 ? 0 : z) - z * t + LOG1P(e);
            }
    } else {
        for (long r = 0; r < rows; r++)
            for (long l = 0; l < LANES; l++) {
                const V *z = logits + r * out, *t = targets + r * out;
                V *p = shares + r * out, *d = delta + r * out;
                REAL most = z[0][l], sum = 0, hit = 0;
                for (long o = 1; o < out; o++) most = z[o][l] > most ? z[o][l] : most;
                for (long o = 0; o < out; o++) sum += p[o][l] = EXP(z[o][l] - most);
                for (long o = 0; o < out; o++) {
                    p[o][l] /= sum;
                    d[o][l] = p[o][l] - t[o][l];
                    hit += t[o][l] * (z[o][l] - most);
                }
                total[l] += LOG(sum) - hit;
            }
    }
    *losses = total / (REAL)(loss == CROSS_ENTROPY ? rows : rows * out);
}

static void delta_tangent_of(int loss, long rows, long out, const V *shares, const V *tangents, V *c) {
    if (loss == MSE)
        memcpy(c, tangents, rows * out * sizeof(V));
    else if (loss == BCE)
        for (long i = 0; i < rows * out; i++) c[i] = (shares[i] - shares[i] * shares[i]) * tangents[i];
    else
        for (long r = 0; r < rows * out; r += out) {
            V dot = {0};
            for (long o = r; o < r + out; o++) dot += shares[o] * tangents[o];
            for (long o = r; o < r + out; o++) c[o] = shares[o] * (tangents[o] - dot);
        }
}

/* ---- one group of tasks ---- */

typedef struct { /* what a pass leaves behind */
    V *values[LAYERS], *slopes[LAYERS], *bends[LAYERS], *deltas[LAYERS], *shares;
} Pass;

/* c = x times the slopes of a layer of a pass, [rows, width], with room for that many behind each row of c, set to 0; the
 * rectifier's slopes are known from its values */
static void slope(int kind, long rows, long width, V *c, long behind, const V *x, const Pass *pass, long layer) {
    for (long r = 0; r < rows; r++, c += width + behind, x += width) {
        const V *values = pass->values[layer] + r * (width + 1), *slopes = pass->slopes[layer] + r * width;
        if (kind == RELU)
            for (long i = 0; i < width; i++) c[i] = (V)((Bits)x[i] & (values[i] > 0));
        else if (kind == IDENTITY)
            memcpy(c, x, width * sizeof(V));
        else
            for (long i = 0; i < width; i++) c[i] = x[i] * slopes[i];
        for (long i = 0; i < behind; i++) c[width + i] = (V){0};
    }
}

static long parameters_of(const Problem *p) {
    long n = 0;
    for (long l = 0; l < p->layers; l++) n += (p->widths[l] + 1) * p->widths[l + 1];
    return n;
}

/* Where each number of the matrices [in + 1, out] lies in a row of weights [out, in] and biases [out]. */
static void find_places(const Problem *p, int32_t *places) {
    int32_t begin = 0;
    for (long l = 0; l < p->layers; l++) {
        int32_t in = p->widths[l], out = p->widths[l + 1];
        for (int32_t i = 0; i <= in; i++)
            for (int32_t o = 0; o < out; o++) *places++ = begin + (i < in ? o * in + i : out * in + o);
        begin += (in + 1) * out;
    }
}

/* The vectors of one pass over so many rows; laid out into it where there is memory. */
static long lay_out(const Problem *p, long rows, Pass *pass, V *memory) {
    V *at = memory;
    for (long l = 0; l < p->layers; l++) {
        long in = p->widths[l], out = p->widths[l + 1];
        pass->values[l] = at, at += rows * (in + 1);
        pass->slopes[l] = at, at += rows * in;
        pass->bends[l] = at, at += rows * in;
        pass->deltas[l] = at, at += rows * out;
    }
    pass->shares = at, at += rows * p->widths[p->layers];
    return at - memory;
}

static long vectors_needed(const Problem *p) {
    Pass pass;
    long most = p->rows > p->queries ? p->rows : p->queries, widest = 0, P = parameters_of(p);
    for (long l = 0; l <= p->layers; l++) widest = p->widths[l] > widest ? p->widths[l] : widest;
    long targets = (p->rows + p->queries) * p->widths[p->layers];
    return (p->steps + 4) * P + targets + p->steps * lay_out(p, p->rows, &pass, 0) + lay_out(p, most, &pass, 0) +
           2 * lay_out(p, p->rows, &pass, 0) + most * (widest + 1) * 2;
}

/* inputs [tasks, rows, in] of the group's tasks -> [rows, in + 1], a one behind each row. A group that is not full repeats
 * its last task. */
static void load_inputs(const REAL *from, long first, long count, long rows, long in, V *to) {
    for (long l = 0; l < LANES; l++) {
        const REAL *task = from + (first + (l < count ? l : count - 1)) * rows * in;
        for (long r = 0; r < rows; r++) {
            for (long i = 0; i < in; i++) ((REAL *)(to + r * (in + 1) + i))[l] = task[r * in + i];
            ((REAL *)(to + r * (in + 1) + in))[l] = 1;
        }
    }
}

static void load_targets(const Problem *p, const void *from, long first, long count, long rows, V *to) {
    long out = p->widths[p->layers];
    for (long l = 0; l < LANES; l++) {
        long task = first + (l < count ? l : count - 1);
        for (long r = 0; r < rows; r++)
            for (long o = 0; o < out; o++)
                ((REAL *)(to + r * out + o))[l] = p->loss == CROSS_ENTROPY
                                                      ? ((const int64_t *)from)[task * rows + r] == o
                                                      : ((const REAL *)from)[(task * rows + r) * out + o];
    }
}

/* values[0] is filled; fills the rest of the pass up to the logits */
static void forward(const Problem *p, long rows, const V *phi, Pass *pass, V *sums, V *logits) {
    for (long l = 0; l < p->layers; l++) {
        long in = p->widths[l], out = p->widths[l + 1], last = l + 1 == p->layers;
        forward_product(rows, in + 1, out, last ? logits : sums, pass->values[l], phi, 0, 0);
        if (!last)
            activate(p->activation, rows, out, sums, pass->values[l + 1], pass->slopes[l + 1], pass->bends[l + 1]);
        phi += (in + 1) * out;
    }
}

/* deltas of the last layer are filled; fills the others, and multiplies the second derivatives by what comes back */
static void back(const Problem *p, long rows, const V *phi, Pass *pass, V *sums) {
    phi += parameters_of(p);
    for (long l = p->layers - 1; l > 0; l--) {
        long in = p->widths[l], out = p->widths[l + 1];
        phi -= (in + 1) * out;
        back_product(rows, in, out, sums, pass->deltas[l], phi, 0, 0);
        slope(p->activation, rows, in, pass->deltas[l - 1], 0, sums, pass, l);
        if (p->activation >= TANH) times(rows * in, pass->bends[l], pass->bends[l], sums);
    }
}

static void group(const Problem *p, const int32_t *places, long first, V *memory, REAL *of_theta, REAL *of_rates) {
    const long P = parameters_of(p), rows = p->rows, steps = p->steps, layers = p->layers, queries = p->queries;
    const long left = p->tasks - first, count = left < LANES ? left : LANES, out = p->widths[layers];
    const long most = rows > queries ? rows : queries, order = p->order, rate_step = p->rate_columns > 1;
    /* the factor of the mean goes into the rates: deltas are gradients of sums, of half the squares */
    const REAL factor = p->loss == MSE ? 2 : 1, scale = factor / (p->loss == CROSS_ENTROPY ? rows : rows * out);
    long widest = 0;
    for (long l = 0; l <= layers; l++) widest = p->widths[l] > widest ? p->widths[l] : widest;

    V *at = memory, *path = at;
    at += (steps + 1) * P;
    V *v = at, *u = at + P, *scratch = at + 2 * P;
    at += 3 * P;
    V *targets = at, *query_targets = at + rows * out;
    at += (rows + queries) * out;
    V *sums = at, *logits = at + most * (widest + 1);
    at += most * (widest + 1) * 2;
    Pass tangent, pass, last;
    at += lay_out(p, most, &last, at);
    at += lay_out(p, rows, &tangent, at);
    V *passes = at;
    const long length = lay_out(p, rows, &pass, at);
    REAL *rates = (REAL *)scratch; /* [P] or [1], of one step */
    V loss;

    const REAL *theta = p->theta;
    for (long i = 0; i < P; i++) path[i] = (V){0} + theta[places[i]];
    load_targets(p, p->support_targets, first, count, rows, targets);
    load_inputs(p->support_inputs, first, count, rows, p->widths[0], last.values[0]);

    for (long k = 0; k <= steps; k++) {
        const V *phi = path + k * P;
        Pass *now = &last;
        if (k < steps) {
            lay_out(p, rows, now = &pass, passes + k * length);
            memcpy(pass.values[0], last.values[0], rows * (p->widths[0] + 1) * sizeof(V));
        }
        forward(p, rows, phi, now, sums, logits);
        delta_of(p->loss, rows, out, logits, targets, now->deltas[layers - 1], now->shares, &loss);
        for (long l = 0; l < count; l++) p->support_losses[(first + l) * (steps + 1) + k] = loss[l];
        if (k == steps) break;
        back(p, rows, phi, now, sums);
        const REAL *given = p->rates + k * p->rate_columns;
        for (long i = 0; i < (rate_step ? P : 1); i++) rates[i] = scale * given[rate_step ? places[i] : 0];
        V *next = path + (k + 1) * P;
        for (long l = 0, begin = 0; l < layers; l++) {
            long in = p->widths[l], to = p->widths[l + 1];
            descend(rows, in + 1, to, next + begin, now->values[l], now->deltas[l], phi + begin,
                    rates + begin * rate_step, rate_step);
            begin += (in + 1) * to;
        }
    }
    if (!queries) {
        for (long l = 0; l < count; l++)
            for (long k = 0; k < steps; k++)
                for (long i = 0; i < P; i++)
                    p->trajectory[((first + l) * steps + k) * P + places[i]] = ((REAL *)(path + (k + 1) * P + i))[l];
        return;
    }

    const V *phi = path + steps * P;
    load_inputs(p->query_inputs, first, count, queries, p->widths[0], last.values[0]);
    load_targets(p, p->query_targets, first, count, queries, query_targets);
    forward(p, queries, phi, &last, sums, logits);
    delta_of(p->loss, queries, out, logits, query_targets, last.deltas[layers - 1], last.shares, &loss);
    for (long l = 0; l < count; l++) {
        p->task_losses[first + l] = loss[l];
        for (long i = 0; i < queries * out; i++)
            p->predictions[(first + l) * queries * out + i] = ((REAL *)(logits + i))[l];
    }
    const REAL share = factor / ((REAL)p->tasks * (p->loss == CROSS_ENTROPY ? queries : queries * out));
    for (long i = 0; i < queries * out; i++) last.deltas[layers - 1][i] *= share;
    back(p, queries, phi, &last, sums);
    for (long l = 0, begin = 0; l < layers; l++) {
        long in = p->widths[l], to = p->widths[l + 1];
        gradient_product(queries, in + 1, to, v + begin, last.values[l], last.deltas[l]);
        begin += (in + 1) * to;
    }

    for (long k = steps - 1; k >= 0; k--) {
        lay_out(p, rows, &pass, passes + k * length);
        phi = path + k * P;
        double shared_rates = 0;
        if (p->rates_grad)
            for (long l = 0, begin = 0; l < layers; l++) {
                long in = p->widths[l], to = p->widths[l + 1];
                gradient_product(rows, in + 1, to, u + begin, pass.values[l], pass.deltas[l]);
                for (long a = begin; a < begin + (in + 1) * to; a += to) {
                    V row = {0};
                    double sum = 0;
                    for (long i = a; i < a + to; i++) row += u[i] *= v[i];
                    for (long t = 0; t < count; t++) {
                        sum += row[t];
                        if (rate_step)
                            for (long i = a; i < a + to; i++) of_rates[k * P + places[i]] -= scale * ((REAL *)(u + i))[t];
                    }
                    if (!rate_step) shared_rates -= scale * sum;
                }
                begin += (in + 1) * to;
            }
        if (p->rates_grad && !rate_step) of_rates[k] = (REAL)shared_rates;
        if (order == 1) continue;
        const REAL *rate = p->rates + k * p->rate_columns;
        if (rate_step)
            for (long i = 0; i < P; i++) u[i] = v[i] * (scale * rate[places[i]]);
        else
            scaled(P, u, v, scale * rate[0]);
        /* the tangents in the direction u: of the activations, with a zero behind them, then of the deltas */
        for (long l = 0, begin = 0; l < layers; l++) {
            long in = p->widths[l], to = p->widths[l + 1], is_last = l + 1 == layers;
            V *into = is_last ? logits : tangent.slopes[l + 1];
            forward_product(rows, in + 1, to, into, pass.values[l], u + begin, l ? tangent.values[l] : 0, phi + begin);
            if (!is_last) slope(p->activation, rows, to, tangent.values[l + 1], 1, into, &pass, l + 1);
            begin += (in + 1) * to;
        }
        delta_tangent_of(p->loss, rows, out, pass.shares, logits, tangent.deltas[layers - 1]);
        for (long l = layers - 1, begin = P; l >= 0; l--) {
            long in = p->widths[l], to = p->widths[l + 1];
            begin -= (in + 1) * to;
            subtract_gradient(rows, in + 1, to, v + begin, pass.values[l], tangent.deltas[l],
                              l ? tangent.values[l] : 0, pass.deltas[l]);
            if (!l) break;
            back_product(rows, in, to, sums, tangent.deltas[l], phi + begin, pass.deltas[l], u + begin);
            slope(p->activation, rows, in, tangent.deltas[l - 1], 0, sums, &pass, l);
            if (p->activation >= TANH)
                for (long i = 0; i < rows * in; i++)
                    tangent.deltas[l - 1][i] += pass.bends[l][i] * tangent.slopes[l][i];
        }
    }
    for (long i = 0; i < P; i++) { /* the lanes behind the last task hold its copies */
        REAL sum = 0;
        for (long l = 0; l < count; l++) sum += ((REAL *)(v + i))[l];
        of_theta[places[i]] = sum;
    }
}

/* 0, or 1 where a label is out of range, or 2 where there is no memory */
int adapt(const Problem *p) {
    const long P = parameters_of(p), groups = (p->tasks + LANES - 1) / LANES, R = p->steps * p->rate_columns;
    const long bytes = ((vectors_needed(p) * (long)sizeof(V) + 4095) / 4096) * 4096;
    if (p->loss == CROSS_ENTROPY)
        for (int set = 0; set < (p->queries ? 2 : 1); set++) {
            const int64_t *labels = set ? p->query_targets : p->support_targets;
            for (long i = 0; i < p->tasks * (set ? p->queries : p->rows); i++)
                if (labels[i] < 0 || labels[i] >= p->widths[p->layers]) return 1;
        }
    const long each = P + (p->rates_grad ? R : 0);
    REAL *sums = calloc(groups * each, sizeof(REAL));
    int32_t *places = malloc(P * sizeof *places);
    int failed = !sums || !places;
    if (places) find_places(p, places);
#pragma omp parallel num_threads(p->threads < groups ? p->threads : groups)
    {
        static _Thread_local V *memory; /* kept: the next call needs as much */
        static _Thread_local long held;
        if (held < bytes) {
            free(memory);
            held = (memory = aligned_alloc(4096, bytes)) ? bytes : 0;
        }
#pragma omp for schedule(dynamic, 1)
        for (long g = 0; g < groups; g++) {
            if (held < bytes || !sums || !places) {
#pragma omp atomic write
                failed = 1;
            } else {
#ifdef POISON
                memset(memory, 0xff, bytes); /* NaN: for a test that nothing is read that was not written */
#endif
                group(p, places, g * LANES, memory, sums + g * each, sums + g * each + P);
            }
        }
        if (held > MOST_KEPT) {
            free(memory);
            memory = 0, held = 0;
        }
    }
    for (long i = 0; i < each && !failed && p->queries; i++) {
        REAL sum = 0;
        for (long g = 0; g < groups; g++) sum += sums[g * each + i];
        *(i < P ? p->of_theta + i : p->of_rates + i - P) = sum;
    }
    free(sums);
    free(places);
    return failed ? 2 : 0;
}
