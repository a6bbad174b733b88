/* Whole inner loops of convolutional networks on the CPU, by the recursion of README.md, one task after another in each
 * thread.
 *
 * Channels come last and in blocks: a row is one place of one image, its channels padded to a multiple of BLOCK. A
 * convolution is a sum over taps of products rows x weights; which rows meet at which tap is in tables that all tasks
 * and all steps share, sorted so that places with the same taps stand together: nothing is copied into patches, and
 * what the border or the stride leaves out is not multiplied. Sums over tasks are in the order of the tasks.
 */
#include "vectors.h"

#define BLOCK (2 * LANES) /* channels of a block: two vectors */
#define ROWS 6            /* of a tile of the product: 12 sums, 2 weights and 1 broadcast in 16 registers */
#define CHUNK 48          /* rows that a weight gradient takes at once: with their weights' block they stay in the cache */
#define TAPS 9
#define GROUP 16 /* tasks whose gradients are kept apart before they are summed */

typedef REAL V __attribute__((vector_size(BYTES), aligned(sizeof(REAL)), may_alias));
/* A block, a cache line where vectors are of 32 bytes: what goes through memory row by row takes whole ones. */
typedef REAL W __attribute__((vector_size(2 * BYTES), aligned(sizeof(REAL)), may_alias));
typedef INTEGER Bits __attribute__((vector_size(2 * BYTES))); /* what comparing gives */

typedef enum { LOSSES } Loss;

typedef struct {
    int64_t tasks, rows, queries, layers, steps, loss, order, rates_grad, rate_columns, threads;
    int64_t channels, height, width, hidden, stride, pool, norm, flat, ways;
    double eps;
    const REAL *theta, *rates, *support_inputs, *query_inputs; /* images [T, N, H, W, C] */
    const void *support_targets, *query_targets;
    REAL *task_losses, *predictions, *support_losses, *of_theta, *of_rates, *trajectory;
} Problem;

int64_t size_of_problem(void) { return sizeof(Problem); }

/* ---- what is where ---- */

typedef struct {
    long taps, in, in_stride, out;           /* of the product: taps x in numbers a row -> out channels */
    long height, width, to_height, to_width; /* of the input, and of the convolution's output */
    long pooled_height, pooled_width;        /* of what the next layer sees */
    long weight, gamma, beta;                /* where they begin */
} Layer;

typedef struct {
    long images;
    int32_t *forward[LAYERS], *back[LAYERS], *pairs[LAYERS]; /* tables, see below */
    long pair_begin[LAYERS][TAPS + 1];
} Plan;

static long padded(long channels) { return (channels + BLOCK - 1) / BLOCK * BLOCK; }
static long aligned(long numbers) { return (numbers + 15) / 16 * 16; }

static long lay_out(const Problem *p, Layer *layers) {
    long height = p->height, width = p->width, at = 0, hidden = padded(p->hidden);
    for (long l = 0; l < p->layers; l++) {
        Layer *y = layers + l;
        y->height = height, y->width = width;
        y->to_height = (height - 1) / p->stride + 1, y->to_width = (width - 1) / p->stride + 1;
        y->pooled_height = height = p->pool ? y->to_height / 2 : y->to_height;
        y->pooled_width = width = p->pool ? y->to_width / 2 : y->to_width;
        /* the first layer has too few channels for a loop over each tap's: it multiplies patches, made once */
        y->taps = l ? TAPS : 1, y->in = l ? p->hidden : TAPS * p->channels, y->in_stride = l ? hidden : y->in;
        y->out = hidden;
        y->weight = at, y->gamma = at + TAPS * (l ? p->hidden : p->channels) * hidden;
        y->beta = y->gamma + hidden, at = y->beta + hidden;
    }
    return at;
}

static long features(const Problem *p, const Layer *layers) {
    const Layer *last = layers + p->layers - 1;
    return padded(p->hidden) * (p->flat ? last->pooled_height * last->pooled_width : 1);
}

/* A table of a product: tiles of up to ROWS rows that meet the same taps, each [rows, taps, the rows of the output, then
 * for each tap its number and the rows of the input]; behind the last tile a 0. `meets` says which input row the output
 * row sees at a tap, or -1. */
typedef struct {
    enum { PATCHES, FORTH, BACK } way; /* in a product of patches all rows meet their own at the one tap */
    long stride, height, width, to_height, to_width;
} Shape;

static Shape shape_of(const Problem *p, const Layer *y, int way) {
    return (Shape){way, p->stride, y->height, y->width, y->to_height, y->to_width};
}

static long meets(const Shape *s, long row, long tap) {
    long i = tap / 3 - 1, j = tap % 3 - 1, size, y, x, image;
    if (s->way == PATCHES) return tap ? -1 : row;
    if (s->way == FORTH) { /* row of the output -> row of the input */
        size = s->to_height * s->to_width, image = row / size;
        y = row % size / s->to_width * s->stride + i, x = row % s->to_width * s->stride + j;
        if (y < 0 || x < 0 || y >= s->height || x >= s->width) return -1;
        return (image * s->height + y) * s->width + x;
    }
    size = s->height * s->width, image = row / size;
    y = row % size / s->width - i, x = row % s->width - j;
    if (y < 0 || x < 0 || y % s->stride || x % s->stride) return -1;
    y /= s->stride, x /= s->stride;
    return y >= s->to_height || x >= s->to_width ? -1 : (image * s->to_height + y) * s->to_width + x;
}

static int32_t *table(const Shape *s, long rows) {
    int32_t *found = malloc((rows * (2 + ROWS + TAPS * (ROWS + 1)) + 1) * sizeof(int32_t)), *at = found;
    int16_t *masks = malloc(rows * sizeof(int16_t));
    if (!found || !masks) {
        free(found), free(masks);
        return 0;
    }
    for (long row = 0; row < rows; row++) {
        masks[row] = 0;
        for (long tap = 0; tap < TAPS; tap++) masks[row] |= (meets(s, row, tap) >= 0) << tap;
    }
    for (long first = 0; first < rows; first++) {
        const int16_t mask = masks[first];
        if (mask < 0) continue; /* done */
        for (long row = first; row < rows;) {
            long some[ROWS], count = 0, taps = 0;
            for (; row < rows && count < ROWS; row++)
                if (masks[row] == mask) some[count++] = row, masks[row] = -1;
            if (!count) break;
            int32_t *head = at;
            at += 2;
            for (long i = 0; i < count; i++) *at++ = (int32_t)some[i];
            for (long tap = 0; tap < TAPS; tap++)
                if (mask >> tap & 1) {
                    *at++ = (int32_t)tap, taps++;
                    for (long i = 0; i < count; i++) *at++ = (int32_t)meets(s, some[i], tap);
                }
            head[0] = (int32_t)count, head[1] = (int32_t)taps;
        }
    }
    *at = 0;
    free(masks);
    return found;
}

static int make_plan(const Problem *p, const Layer *layers, long images, Plan *plan) {
    plan->images = images;
    for (long l = 0; l < p->layers; l++) {
        const Layer *y = layers + l;
        const Shape forth = shape_of(p, y, l ? FORTH : PATCHES), back = shape_of(p, y, BACK);
        long rows = images * y->to_height * y->to_width, inputs = images * y->height * y->width, count = 0;
        plan->forward[l] = table(&forth, rows);
        /* pairs of rows that meet at a tap, for the gradient of its weights: input, output, input, output, ... */
        int32_t *pairs = plan->pairs[l] = malloc((2 * y->taps * rows + 1) * sizeof(int32_t));
        if (!plan->forward[l] || !pairs || (l && !(plan->back[l] = table(&back, inputs)))) return 0;
        for (long tap = 0; tap < y->taps; tap++) {
            plan->pair_begin[l][tap] = count;
            for (long row = 0; row < rows; row++) {
                const long other = meets(&forth, row, tap);
                if (other >= 0) pairs[2 * count] = (int32_t)other, pairs[2 * count++ + 1] = (int32_t)row;
            }
        }
        plan->pair_begin[l][y->taps] = count;
    }
    return 1;
}

static void free_plan(Plan *plan) {
    for (long l = 0; l < LAYERS; l++) free(plan->forward[l]), free(plan->back[l]), free(plan->pairs[l]);
}

/* ---- products ---- */

#define UNROLL _Pragma("GCC unroll 8")

/* TILE for as many rows as a tile has: a constant, so that its sums stay in registers. */
#define TILES(rows)             \
    switch (rows) {             \
        case 6: TILE(6); break; \
        case 5: TILE(5); break; \
        case 4: TILE(4); break; \
        case 3: TILE(3); break; \
        case 2: TILE(2); break; \
        default: TILE(1);       \
    }

/* out[rows of the tile][BLOCK] = the sum over taps and `terms` pairs of operands of rows x weights */
INLINE const int32_t *tile(const int n, const int32_t *at, long taps, const int terms, const REAL *x, const REAL *x2,
                           long x_stride, long in, const REAL *w, const REAL *w2, REAL *out, long out_stride) {
    V sum[ROWS][2];
    const int32_t *rows = at;
    at += n;
    UNROLL for (int i = 0; i < n; i++) sum[i][0] = sum[i][1] = (V){0};
    for (long t = 0; t < taps; t++, at += n + 1)
        for (int term = 0; term < terms; term++) {
            const REAL *from = term ? x2 : x, *right = (term ? w2 : w) + at[0] * in * BLOCK;
            const REAL *left[ROWS];
            UNROLL for (int i = 0; i < n; i++) left[i] = from + at[1 + i] * x_stride;
            for (long k = 0; k < in; k++, right += BLOCK) {
                const V a = *(const V *)right, b = *(const V *)(right + LANES);
                UNROLL for (int i = 0; i < n; i++) {
                    sum[i][0] += left[i][k] * a;
                    sum[i][1] += left[i][k] * b;
                }
            }
        }
    UNROLL for (int i = 0; i < n; i++) {
        REAL *to = out + rows[i] * out_stride;
        *(V *)to = sum[i][0];
        *(V *)(to + LANES) = sum[i][1];
    }
    return at;
}

INLINE void product_of(const int terms, const int32_t *table, const REAL *x, const REAL *x2, long x_stride, long taps,
                       long in, long out, const REAL *w, const REAL *w2, REAL *y) {
    for (long block = 0; block < out; block += BLOCK, w += taps * in * BLOCK, w2 += taps * in * BLOCK)
        for (const int32_t *at = table; *at;) {
            const long n = at[0], met = at[1];
            at += 2;
#define TILE(N) at = tile(N, at, met, terms, x, x2, x_stride, in, w, w2, y + block, out)
            TILES(n)
#undef TILE
        }
}

/* y [rows][out] = x convolved with w, and x2 with w2 where there is one; weights [out / BLOCK][taps][in][BLOCK] */
static void product(const int32_t *table, const REAL *x, const REAL *x2, long x_stride, long taps, long in, long out,
                    const REAL *w, const REAL *w2, REAL *y) {
    if (x2)
        product_of(2, table, x, x2, x_stride, taps, in, out, w, w2, y);
    else
        product_of(1, table, x, x, x_stride, taps, in, out, w, w, y);
}

INLINE void weight_tile(const int n, const int32_t *pairs, long count, const REAL *x, long x_stride, const REAL *d,
                        long d_stride, REAL *out) {
    V sum[ROWS][2];
    UNROLL for (int i = 0; i < n; i++) sum[i][0] = *(V *)(out + i * BLOCK), sum[i][1] = *(V *)(out + i * BLOCK + LANES);
    for (long j = 0; j < count; j++) {
        const REAL *left = x + pairs[2 * j] * x_stride, *right = d + pairs[2 * j + 1] * d_stride;
        const V a = *(const V *)right, b = *(const V *)(right + LANES);
        UNROLL for (int i = 0; i < n; i++) {
            sum[i][0] += left[i] * a;
            sum[i][1] += left[i] * b;
        }
    }
    UNROLL for (int i = 0; i < n; i++) *(V *)(out + i * BLOCK) = sum[i][0], *(V *)(out + i * BLOCK + LANES) = sum[i][1];
}

/* w [out / BLOCK][taps][in][BLOCK] += the sum over pairs of rows of x^T d */
static void add_weight_gradient(const Plan *plan, long l, const Layer *y, const REAL *x, const REAL *d, REAL *w) {
    for (long tap = 0; tap < y->taps; tap++)
        for (long j = plan->pair_begin[l][tap]; j < plan->pair_begin[l][tap + 1]; j += CHUNK) {
            const int32_t *pairs = plan->pairs[l] + 2 * j;
            long left = plan->pair_begin[l][tap + 1] - j, count = left < CHUNK ? left : CHUNK;
            for (long block = 0; block < y->out; block += BLOCK)
                for (long i = 0; i < y->in; i += ROWS) {
                    REAL *out = w + ((block / BLOCK * y->taps + tap) * y->in + i) * BLOCK;
#define TILE(N) weight_tile(N, pairs, count, x + i, y->in_stride, d + block, y->out, out)
                    TILES(y->in - i < ROWS ? y->in - i : ROWS)
#undef TILE
                }
        }
}

/* [out / BLOCK][taps][in][BLOCK] -> [in / BLOCK][taps][out][BLOCK]; both have `channels` of either, before padding */
static void transposed(long channels, const REAL *w, REAL *t) {
    for (long block = 0; block < padded(channels); block += BLOCK)
        for (long tap = 0; tap < TAPS; tap++) {
            REAL *to = t + (block / BLOCK * TAPS + tap) * channels * BLOCK;
            for (long out = 0; out < channels; out++) {
                const REAL *from = w + ((out / BLOCK * TAPS + tap) * channels + block) * BLOCK + out % BLOCK;
                const long count = channels - block < BLOCK ? channels - block : BLOCK;
                if (count == BLOCK)
                    for (long i = 0; i < BLOCK; i++) to[out * BLOCK + i] = from[i * BLOCK];
                else
                    for (long i = 0; i < BLOCK; i++) to[out * BLOCK + i] = i < count ? from[i * BLOCK] : 0;
            }
        }
}

/* ---- one pass over a set of images: what it leaves behind for the way back ---- */

typedef struct {
    REAL *normal[LAYERS], *active[LAYERS], *pooled[LAYERS]; /* [rows][out]: normalised, after the ReLU, after pooling */
    REAL *of_linear[LAYERS], *of_conv[LAYERS]; /* gradients: of gamma * normal + beta, and of the convolution */
    REAL *inverse[LAYERS], *mean_b[LAYERS], *mean_g[LAYERS]; /* deviations; the two means of batch-norm's gradient */
    REAL *transposed[LAYERS];
    REAL *mean, *of_mean;          /* the head's input and its gradient */
    REAL *logits, *shares, *delta; /* its output, softmax, the loss's gradient at the logits */
} Pass;

static REAL *take(REAL **memory, long numbers) {
    REAL *taken = *memory;
    *memory += aligned(numbers);
    return taken;
}

/* How many numbers a pass over so many images needs; laid out into it where there is memory. */
static long lay_pass(const Problem *p, const Layer *layers, long images, REAL *memory, Pass *a) {
    REAL *at = memory;
    for (long l = 0; l < p->layers; l++) {
        const Layer *y = layers + l;
        long rows = images * y->to_height * y->to_width, pooled = images * y->pooled_height * y->pooled_width;
        a->normal[l] = take(&at, rows * y->out), a->active[l] = take(&at, rows * y->out);
        a->of_linear[l] = take(&at, rows * y->out), a->of_conv[l] = take(&at, rows * y->out);
        a->inverse[l] = take(&at, y->out), a->mean_b[l] = take(&at, y->out), a->mean_g[l] = take(&at, y->out);
        a->transposed[l] = l ? take(&at, TAPS * p->hidden * y->out) : 0;
        a->pooled[l] = p->pool ? take(&at, pooled * y->out) : a->active[l];
    }
    a->mean = take(&at, images * features(p, layers)), a->of_mean = take(&at, images * features(p, layers));
    a->logits = take(&at, images * p->ways), a->shares = take(&at, images * p->ways);
    a->delta = take(&at, images * p->ways);
    return at - memory;
}

#define FOR_BLOCKS(y) for (long c = 0; c < (y)->out; c += BLOCK)
#define AT(pointer, row) (*(W *)((pointer) + (row) * out + c))
#define PER(pointer) (*(W *)((pointer) + c))
#define PART 64 /* rows that are summed before their sum is added to the others': closer to the exact sum */

/* The sum over rows of an expression in `row`. */
#define SUM(result, expression)                                                    \
    do {                                                                           \
        W whole_ = {0};                                                            \
        for (long begin_ = 0; begin_ < rows; begin_ += PART) {                     \
            W part_ = {0};                                                         \
            for (long row = begin_; row < rows && row < begin_ + PART; row++) part_ += expression; \
            whole_ += part_;                                                       \
        }                                                                          \
        result = whole_;                                                           \
    } while (0)

INLINE W root(W x) {
    for (long i = 0; i < BLOCK; i++) x[i] = 1 / (REAL)sqrt(x[i]);
    return x;
}

INLINE W chosen(Bits where, W yes, W no) { return (W)(((Bits)yes & where) | ((Bits)no & ~where)); }

INLINE W rectified(W x) { return (W)((Bits)x & ~(Bits)(x < (W){0})); } /* NaN stays */

INLINE W positive(W active, W value) { return (W)((Bits)value & (Bits)(active > (W){0})); }

/* The four rows that a pooled one comes from. */
#define FOUR(y, row)                                                                                              \
    const long size_ = (y)->pooled_height * (y)->pooled_width, place_ = (row) % size_;                            \
    const long first_ = ((row) / size_ * (y)->to_height + place_ / (y)->pooled_width * 2) * (y)->to_width +       \
                        place_ % (y)->pooled_width * 2;                                                           \
    const long from[4] = {first_, first_ + 1, first_ + (y)->to_width, first_ + (y)->to_width + 1}

static void pool(const Layer *y, long images, const REAL *x, REAL *to) {
    const long out = y->out;
    for (long row = 0; row < images * y->pooled_height * y->pooled_width; row++) {
        FOUR(y, row);
        FOR_BLOCKS(y) {
            W best = AT(x, from[0]);
            for (long i = 1; i < 4; i++) {
                const W other = AT(x, from[i]);
                best = chosen((Bits)(other > best) | (Bits)(other != other), other, best);
            }
            AT(to, row) = best;
        }
    }
}

/* What the first of the largest has in `t`. */
static void pool_tangent(const Layer *y, long images, const REAL *x, const REAL *pooled, const REAL *t, REAL *to) {
    const long out = y->out;
    for (long row = 0; row < images * y->pooled_height * y->pooled_width; row++) {
        FOUR(y, row);
        FOR_BLOCKS(y) {
            W best = AT(t, from[3]);
            for (long i = 2; i >= 0; i--) best = chosen((Bits)(AT(x, from[i]) == AT(pooled, row)), AT(t, from[i]), best);
            AT(to, row) = best;
        }
    }
}

/* To the first of the largest. */
static void pool_back(const Layer *y, long images, const REAL *x, const REAL *pooled, const REAL *of, REAL *to) {
    const long out = y->out;
    if (y->to_height % 2 || y->to_width % 2) /* what no pooled one comes from */
        memset(to, 0, images * y->to_height * y->to_width * out * sizeof(REAL));
    for (long row = 0; row < images * y->pooled_height * y->pooled_width; row++) {
        FOUR(y, row);
        FOR_BLOCKS(y) {
            W left = AT(of, row);
            for (long i = 0; i < 4; i++) {
                const Bits here = (Bits)(AT(x, from[i]) == AT(pooled, row));
                AT(to, from[i]) = (W)((Bits)left & here);
                left = (W)((Bits)left & ~here);
            }
        }
    }
}

/* The head's input from the last layer's output: the mean over places, or all of them. And the way back. */
static void gather(const Problem *p, const Layer *y, long images, const REAL *x, REAL *to) {
    const long places = y->pooled_height * y->pooled_width, out = y->out;
    if (p->flat) {
        memcpy(to, x, images * places * out * sizeof(REAL));
        return;
    }
    for (long image = 0; image < images; image++)
        FOR_BLOCKS(y) {
            W sum = {0};
            for (long row = image * places; row < (image + 1) * places; row++) sum += AT(x, row);
            AT(to, image) = sum / (REAL)places;
        }
}

static void spread(const Problem *p, const Layer *y, long images, const REAL *of, REAL *to) {
    const long places = y->pooled_height * y->pooled_width, out = y->out;
    if (p->flat) {
        memcpy(to, of, images * places * out * sizeof(REAL));
        return;
    }
    for (long row = 0; row < images * places; row++) FOR_BLOCKS(y) AT(to, row) = AT(of, row / places) / (REAL)places;
}

/* logits [images][ways] = x w^T + x2 w2^T + b */
INLINE void head(const Problem *p, long images, long in, const REAL *x, const REAL *w, const REAL *x2, const REAL *w2,
                 const REAL *bias, REAL *logits) {
    for (long n = 0; n < images; n++)
        for (long o = 0; o < p->ways; o++) {
            V sum = {0};
            for (long c = 0; c < in; c += LANES) sum += *(V *)(x + n * in + c) * *(V *)(w + o * in + c);
            if (x2)
                for (long c = 0; c < in; c += LANES) sum += *(V *)(x2 + n * in + c) * *(V *)(w2 + o * in + c);
            REAL total = 0;
            for (long i = 0; i < LANES; i++) total += sum[i];
            logits[n * p->ways + o] = total + bias[o];
        }
}

/* of_x = d w + d2 w2, of_w += sign d^T x + d2^T x2, of_bias += sum of d; of_x may be 0 */
INLINE void head_back(const Problem *p, long images, long in, const REAL *d, const REAL *w, const REAL *x, const REAL *d2,
                      const REAL *w2, const REAL *x2, REAL *of_x, REAL *of_w, REAL *of_bias) {
    for (long n = 0; n < images; n++) {
        for (long c = 0; c < in; c += LANES) {
            V sum = {0};
            for (long o = 0; o < p->ways; o++) {
                const long at = n * p->ways + o;
                sum += d[at] * *(V *)(w + o * in + c);
                V *to = (V *)(of_w + o * in + c);
                V add = d[at] * *(V *)(x + n * in + c);
                if (d2) {
                    sum += d2[at] * *(V *)(w2 + o * in + c);
                    add += d2[at] * *(V *)(x2 + n * in + c);
                }
                *to += add;
            }
            *(V *)(of_x + n * in + c) = sum;
        }
        for (long o = 0; o < p->ways; o++) of_bias[o] += d[n * p->ways + o];
    }
}

/* The loss, a mean; fills the probabilities, or what the logits are off, and the gradient at the logits. */
static REAL loss_of(const Problem *p, long images, const void *targets, Pass *a) {
    REAL total = 0;
    for (long n = 0; n < images; n++) {
        const long at = n * p->ways;
        const REAL *row = a->logits + at;
        REAL *share = a->shares + at, *delta = a->delta + at, most = row[0], sum = 0;
        switch ((Loss)p->loss) {
            case MSE:
                for (long o = 0; o < p->ways; o++) {
                    share[o] = row[o] - ((const REAL *)targets)[at + o];
                    delta[o] = 2 * share[o] / (images * p->ways);
                    total += share[o] * share[o] / p->ways;
                }
                break;
            case CROSS_ENTROPY:
                for (long o = 1; o < p->ways; o++) most = row[o] > most ? row[o] : most;
                for (long o = 0; o < p->ways; o++) sum += share[o] = (REAL)exp(row[o] - most);
                for (long o = 0; o < p->ways; o++) share[o] /= sum, delta[o] = share[o] / images;
                const long label = ((const int64_t *)targets)[n];
                delta[label] -= (REAL)1 / images;
                total += (REAL)log(sum) + most - row[label];
        }
    }
    return total / images;
}

/* The tangents of the gradient at the logits, from those of the logits. */
static void delta_tangent_of(const Problem *p, long images, const REAL *shares, const REAL *logits, REAL *delta) {
    for (long n = 0; n < images; n++, shares += p->ways, logits += p->ways, delta += p->ways) {
        REAL mean = 0;
        switch ((Loss)p->loss) {
            case MSE:
                for (long o = 0; o < p->ways; o++) delta[o] = 2 * logits[o] / (images * p->ways);
                break;
            case CROSS_ENTROPY:
                for (long o = 0; o < p->ways; o++) mean += shares[o] * logits[o];
                for (long o = 0; o < p->ways; o++) delta[o] = shares[o] * (logits[o] - mean) / images;
        }
    }
}

/* ---- a pass there and back ----
 *
 * Without `t` the pass `a` at phi, which is u then too. With `t` the tangents of that pass in the direction u, by the same
 * products: each with the other operand's tangent, and both added up. */

static void forward(const Problem *p, const Layer *layers, const Plan *plan, const REAL *images, const REAL *phi,
                    const REAL *u, Pass *a, Pass *t) {
    const Pass *to = t ? t : a;
    for (long l = 0; l < p->layers; l++) {
        const Layer *y = layers + l;
        const long rows = plan->images * y->to_height * y->to_width, out = y->out;
        REAL *z = to->normal[l], *active = to->active[l];
        const REAL *normal = a->normal[l], *on = a->active[l];
        product(plan->forward[l], l ? a->pooled[l - 1] : images, l && t ? t->pooled[l - 1] : 0, y->in_stride, y->taps,
                y->in, out, u + y->weight, phi + y->weight, z);
        FOR_BLOCKS(y) {
            const W gamma = PER(phi + y->gamma), beta = PER(u + y->beta);
            if (!p->norm) {
                if (t)
                    for (long row = 0; row < rows; row++) AT(active, row) = positive(AT(on, row), AT(z, row) + beta);
                else
                    for (long row = 0; row < rows; row++) AT(active, row) = rectified(AT(z, row) + beta);
                continue;
            }
            W mean, square, along;
            SUM(mean, AT(z, row));
            mean /= (REAL)rows;
            if (!t) {
                SUM(square, (AT(z, row) - mean) * (AT(z, row) - mean));
                const W inverse = root(square / (REAL)rows + (REAL)p->eps);
                PER(a->inverse[l]) = inverse;
                for (long row = 0; row < rows; row++) {
                    const W value = (AT(z, row) - mean) * inverse;
                    AT(z, row) = value;
                    AT(active, row) = rectified(gamma * value + beta);
                }
                continue;
            }
            const W of_gamma = PER(u + y->gamma), inverse = PER(a->inverse[l]);
            SUM(along, AT(z, row) * AT(normal, row));
            along /= (REAL)rows;
            PER(t->inverse[l]) = -inverse * inverse * along;
            for (long row = 0; row < rows; row++) {
                const W tangent = inverse * (AT(z, row) - mean - AT(normal, row) * along);
                AT(z, row) = tangent;
                AT(active, row) = positive(AT(on, row), of_gamma * AT(normal, row) + gamma * tangent + beta);
            }
        }
        if (p->pool && t)
            pool_tangent(y, plan->images, on, a->pooled[l], active, t->pooled[l]);
        else if (p->pool)
            pool(y, plan->images, active, a->pooled[l]);
    }
    const Layer *last = layers + p->layers - 1;
    const long in = features(p, layers), head_at = last->beta + last->out;
    gather(p, last, plan->images, to->pooled[p->layers - 1], to->mean);
    head(p, plan->images, in, to->mean, phi + head_at, t ? a->mean : 0, u + head_at, u + head_at + p->ways * in,
         to->logits);
}

/* result += the loss's gradient, from the delta of `a`; or the Hessian times u, from that of `t` and what the way back
 * left in `a`. `of` holds a layer's output. */
static void back(const Problem *p, const Layer *layers, const Plan *plan, const REAL *images, const REAL *phi,
                 const REAL *u, Pass *a, Pass *t, REAL *of, REAL *result) {
    const Pass *to = t ? t : a;
    const Layer *last = layers + p->layers - 1;
    const long in = features(p, layers), head_at = last->beta + last->out;
    head_back(p, plan->images, in, to->delta, phi + head_at, a->mean, t ? a->delta : 0, u + head_at, to->mean,
              to->of_mean, result + head_at, result + head_at + p->ways * in);
    spread(p, last, plan->images, to->of_mean, of);
    for (long l = p->layers - 1; l >= 0; l--) {
        const Layer *y = layers + l;
        const long rows = plan->images * y->to_height * y->to_width, out = y->out;
        REAL *of_linear = to->of_linear[l], *of_conv = to->of_conv[l];
        const REAL *normal = a->normal[l], *on = a->active[l], *plain = a->of_linear[l], *tangent = to->normal[l];
        if (p->pool) pool_back(y, plan->images, on, a->pooled[l], of, of_linear);
        const REAL *upstream = p->pool ? of_linear : of;
        FOR_BLOCKS(y) {
            W b, g;
            for (long row = 0; row < rows; row++) AT(of_linear, row) = positive(AT(on, row), AT(upstream, row));
            SUM(b, AT(of_linear, row));
            PER(result + y->beta) += b;
            if (!p->norm) {
                for (long row = 0; row < rows; row++) AT(of_conv, row) = AT(of_linear, row);
                continue;
            }
            if (t)
                SUM(g, AT(of_linear, row) * AT(normal, row) + AT(plain, row) * AT(tangent, row));
            else
                SUM(g, AT(of_linear, row) * AT(normal, row));
            PER(result + y->gamma) += g;
            b /= (REAL)rows, g /= (REAL)rows;
            const W gamma = PER(phi + y->gamma), inverse = PER(a->inverse[l]), scale = gamma * inverse;
            if (!t) {
                PER(a->mean_b[l]) = b, PER(a->mean_g[l]) = g;
                for (long row = 0; row < rows; row++)
                    AT(of_conv, row) = scale * (AT(of_linear, row) - b - AT(normal, row) * g);
                continue;
            }
            const W scale_tangent = PER(u + y->gamma) * inverse + gamma * PER(t->inverse[l]);
            const W old_b = PER(a->mean_b[l]), old_g = PER(a->mean_g[l]);
            for (long row = 0; row < rows; row++) {
                const W e = AT(plain, row) - old_b - AT(normal, row) * old_g;
                AT(of_conv, row) = scale_tangent * e + scale * (AT(of_linear, row) - b - AT(tangent, row) * old_g -
                                                                AT(normal, row) * g);
            }
        }
        add_weight_gradient(plan, l, y, l ? a->pooled[l - 1] : images, of_conv, result + y->weight);
        if (!l) break;
        if (t) add_weight_gradient(plan, l, y, t->pooled[l - 1], a->of_conv[l], result + y->weight);
        transposed(p->hidden, u + y->weight, to->transposed[l]);
        product(plan->back[l], of_conv, t ? a->of_conv[l] : 0, out, TAPS, p->hidden, out, a->transposed[l],
                to->transposed[l], of);
    }
}

/* ---- a task ---- */

typedef struct {
    const Layer *layers;
    const Plan *support, *query;
    long P, pass, passes, query_pass, scratch, images, query_images;
    REAL *memory; /* a thread's own; here its parts begin: */
    REAL *path, *kept, *tangents, *asked, *of, *patches, *query_patches, *g, *v, *u, *gradients;
} Task;

/* How many numbers a task needs; laid out into it where there is memory. */
static long lay_task(const Problem *p, Task *t) {
    REAL *at = t->memory;
    t->path = take(&at, (p->steps + 1) * aligned(t->P));
    t->kept = take(&at, t->passes * t->pass), t->tangents = take(&at, t->pass), t->asked = take(&at, t->query_pass);
    t->of = take(&at, t->scratch), t->patches = take(&at, t->images), t->query_patches = take(&at, t->query_images);
    t->g = take(&at, t->P), t->v = take(&at, t->P), t->u = take(&at, t->P);
    t->gradients = take(&at, p->rates_grad ? p->steps * aligned(t->P) : 0); /* of each step, for the rates */
    return at - t->memory;
}

/* [N, H, W, C] -> patches [N * H' * W', 9 * C] */
static void patches_of(const Problem *p, const Layer *y, long images, const REAL *from, REAL *to) {
    const Shape s = shape_of(p, y, FORTH);
    for (long row = 0; row < images * y->to_height * y->to_width; row++)
        for (long tap = 0; tap < TAPS; tap++) {
            const long other = meets(&s, row, tap);
            for (long c = 0; c < p->channels; c++) *to++ = other < 0 ? 0 : from[other * p->channels + c];
        }
}

/* to = from - the rates of a step times x, where there is no `from` of 0 */
INLINE void descend(const Problem *p, long P, long step, const REAL *from, const REAL *x, REAL *to) {
    const REAL *rate = p->rates + step * p->rate_columns;
    if (p->rate_columns == 1)
        for (long i = 0; i < P; i++) to[i] = (from ? from[i] : 0) - rate[0] * x[i];
    else
        for (long i = 0; i < P; i++) to[i] = (from ? from[i] : 0) - rate[i] * x[i];
}

static void one_task(const Problem *p, const Task *s, long task, REAL *of_theta, REAL *of_rates) {
    const Layer *layers = s->layers;
    const long P = s->P, pixels = p->height * p->width * p->channels, steps = p->steps;
    REAL *v = s->v, *phi = s->path;
    const size_t label = p->loss == MSE ? sizeof(REAL) * p->ways : sizeof(int64_t);
    const void *targets = (const char *)p->support_targets + task * p->rows * label;
    Pass a, t;
    patches_of(p, layers, p->rows, p->support_inputs + task * p->rows * pixels, s->patches);
    memcpy(phi, p->theta, P * sizeof(REAL));
    for (long k = 0; k <= steps; k++, phi += aligned(P)) {
        lay_pass(p, layers, p->rows, k == steps ? s->tangents : s->kept + (s->passes > 1 ? k : 0) * s->pass, &a);
        forward(p, layers, s->support, s->patches, phi, phi, &a, 0);
        p->support_losses[task * (steps + 1) + k] = loss_of(p, p->rows, targets, &a);
        if (k == steps) break;
        REAL *into = p->rates_grad ? s->gradients + k * aligned(P) : s->g, *next = phi + aligned(P);
        memset(into, 0, P * sizeof(REAL));
        back(p, layers, s->support, s->patches, phi, phi, &a, 0, s->of, into);
        descend(p, P, k, phi, into, next);
        if (!p->queries) memcpy(p->trajectory + (task * steps + k) * P, next, P * sizeof(REAL));
    }
    if (!p->queries) return;

    targets = (const char *)p->query_targets + task * p->queries * label;
    patches_of(p, layers, p->queries, p->query_inputs + task * p->queries * pixels, s->query_patches);
    lay_pass(p, layers, p->queries, s->asked, &a);
    forward(p, layers, s->query, s->query_patches, phi, phi, &a, 0);
    p->task_losses[task] = loss_of(p, p->queries, targets, &a);
    memcpy(p->predictions + task * p->queries * p->ways, a.logits, p->queries * p->ways * sizeof(REAL));
    memset(v, 0, P * sizeof(REAL));
    back(p, layers, s->query, s->query_patches, phi, phi, &a, 0, s->of, v);
    for (long k = steps - 1; k >= 0; k--) {
        if (p->rates_grad) {
            const REAL *gradient = s->gradients + k * aligned(P);
            double sum = 0;
            if (p->rate_columns == 1) {
                for (long i = 0; i < P; i++) sum += (double)v[i] * gradient[i];
                of_rates[k] = (REAL)-sum;
            } else
                for (long i = 0; i < P; i++) of_rates[k * P + i] = -v[i] * gradient[i];
        }
        if (p->order == 1) continue;
        phi -= aligned(P);
        descend(p, P, k, 0, v, s->u);
        lay_pass(p, layers, p->rows, s->kept + k * s->pass, &a);
        lay_pass(p, layers, p->rows, s->tangents, &t);
        forward(p, layers, s->support, s->patches, phi, s->u, &a, &t);
        delta_tangent_of(p, p->rows, a.shares, t.logits, t.delta);
        back(p, layers, s->support, s->patches, phi, s->u, &a, &t, s->of, v);
    }
    memcpy(of_theta, v, P * sizeof(REAL));
}

/* How many numbers the parameters are in this layout; 0 where the images are too small. */
int64_t parameters(const Problem *p) {
    Layer layers[LAYERS];
    const long body = lay_out(p, layers), in = features(p, layers);
    return in > 0 ? body + p->ways * in + p->ways : 0;
}

int64_t block(void) { return BLOCK; }

/* one of RETURNS; out of range is a label */
int adapt(const Problem *p) {
    if (p->layers < 1 || p->layers > LAYERS || !IS_ONE_OF(p->loss, LOSSES) || (p->order != 1 && p->order != 2))
        return UNKNOWN;
    Layer layers[LAYERS];
    lay_out(p, layers);
    if (p->loss == CROSS_ENTROPY && (!all_below(p->support_targets, p->tasks * p->rows, p->ways) ||
                                     !all_below(p->query_targets, p->tasks * p->queries, p->ways)))
        return OUT_OF_RANGE;
    Plan support = {0}, query = {0};
    Task s = {.layers = layers, .support = &support, .query = &query, .P = parameters(p)};
    Pass pass;
    int failed = !make_plan(p, layers, p->rows, &support) || (p->queries && !make_plan(p, layers, p->queries, &query));
    const long most = p->rows > p->queries ? p->rows : p->queries;
    s.pass = lay_pass(p, layers, p->rows, 0, &pass);
    s.passes = p->queries && p->order == 2 ? p->steps : 1;
    s.query_pass = p->queries ? lay_pass(p, layers, p->queries, 0, &pass) : 0;
    for (long l = 0; l < p->layers; l++) {
        const long numbers = most * layers[l].to_height * layers[l].to_width * layers[l].out;
        s.scratch = numbers > s.scratch ? numbers : s.scratch;
    }
    const long patch = layers[0].to_height * layers[0].to_width * TAPS * p->channels;
    s.images = p->rows * patch, s.query_images = p->queries * patch;
    const long bytes = in_pages(lay_task(p, &s) * (long)sizeof(REAL));
    const long R = p->rates_grad ? p->steps * p->rate_columns : 0, each = aligned(s.P) + aligned(R);
    const long group = p->tasks < GROUP ? p->tasks : GROUP, threads = p->threads < group ? p->threads : group;
    REAL *apart = calloc(group * each, sizeof(REAL));
    failed |= !apart;
    if (!failed && p->queries) {
        memset(p->of_theta, 0, s.P * sizeof(REAL));
        if (R) memset(p->of_rates, 0, R * sizeof(REAL));
    }
#pragma omp parallel num_threads(threads)
    {
        Task own = s;
        own.memory = failed ? 0 : aligned_alloc(4096, bytes);
        lay_task(p, &own);
        if (!own.memory) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp barrier
        for (long first = 0; first < p->tasks && !failed; first += group) {
            const long count = p->tasks - first < group ? p->tasks - first : group;
#pragma omp for schedule(dynamic, 1)
            for (long t = 0; t < count; t++) {
#ifdef POISON
                memset(own.memory, 0xff, bytes); /* NaN: for a test that nothing is read that was not written */
#endif
                one_task(p, &own, first + t, apart + t * each, apart + t * each + aligned(s.P));
            }
            if (p->queries) {
#pragma omp for
                for (long i = 0; i < s.P; i++)
                    for (long t = 0; t < count; t++) p->of_theta[i] += apart[t * each + i] / p->tasks;
#pragma omp for
                for (long i = 0; i < R; i++)
                    for (long t = 0; t < count; t++) p->of_rates[i] += apart[t * each + aligned(s.P) + i] / p->tasks;
            }
        }
        free(own.memory);
    }
    free(apart);
    free_plan(&support), free_plan(&query);
    return failed ? NO_MEMORY : DONE;
}

/* predictions [T, Nq, ways] of the query inputs, each task by its own row of theta [T, P]; one of RETURNS */
int predict(const Problem *p) {
    if (p->layers < 1 || p->layers > LAYERS) return UNKNOWN;
    Layer layers[LAYERS];
    lay_out(p, layers);
    Plan plan = {0};
    Pass pass;
    int failed = !make_plan(p, layers, p->queries, &plan);
    const long P = parameters(p), pixels = p->height * p->width * p->channels, each = p->queries * p->ways;
    const long patches = aligned(p->queries * layers[0].to_height * layers[0].to_width * TAPS * p->channels);
    const long bytes = in_pages((patches + lay_pass(p, layers, p->queries, 0, &pass)) * (long)sizeof(REAL));
    const long threads = p->threads < p->tasks ? p->threads : p->tasks;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (long task = 0; task < p->tasks; task++) {
        REAL *memory = failed ? 0 : aligned_alloc(4096, bytes);
        if (!memory) {
#pragma omp atomic write
            failed = 1;
            continue;
        }
#ifdef POISON
        memset(memory, 0xff, bytes);
#endif
        const REAL *phi = p->theta + task * P;
        Pass a;
        lay_pass(p, layers, p->queries, memory + patches, &a);
        patches_of(p, layers, p->queries, p->query_inputs + task * p->queries * pixels, memory);
        forward(p, layers, &plan, memory, phi, phi, &a, 0);
        memcpy(p->predictions + task * each, a.logits, each * sizeof(REAL));
        free(memory);
    }
    free_plan(&plan);
    return failed ? NO_MEMORY : DONE;
}
