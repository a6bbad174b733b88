/* Whole inner loops of convolutional networks on the CPU, by the recursion of README.md, one task after another in each
 * thread.
 *
 * Channels come last and in blocks: a row is one place of one image, its channels padded to a multiple of BLOCK. A
 * convolution is a sum over taps of products rows x weights; which rows meet at which tap is in tables that all tasks
 * and all steps share, sorted so that places with the same taps stand together: nothing is copied into patches, and
 * what the border or the stride leaves out is not multiplied. A layer goes through its images in groups that the cache
 * holds. Sums over tasks are in the order of the tasks.
 */
#include "tiles.h"

#define BLOCK (2 * LANES) /* channels of a block: two vectors */
#define WIDE (BYTES == 64 ? BYTES : 2 * BYTES)
#define LINE (WIDE / (long)sizeof(REAL))
#define CHUNK 48       /* rows that a weight gradient takes at once: with their weights' block they stay in the cache */
#define GROUP_ROWS 512 /* about as many as a layer's group of images has: with two gradients they stay in the second cache */
#define PART 64        /* rows that are summed before their sum is added to the others': closer to the exact sum */
#define TAPS 9
#define TASKS 16 /* whose gradients are kept apart before they are summed */

/* A cache line, where vectors are of 32 bytes or more: what goes through memory row by row takes whole ones. */
typedef REAL W __attribute__((vector_size(WIDE), aligned(sizeof(REAL)), may_alias));
typedef INTEGER Bits __attribute__((vector_size(WIDE))); /* what comparing gives */

typedef enum { LOSSES } Loss;

typedef struct {
    int64_t tasks, rows, queries, layers, steps, loss, order, rates_grad, rate_columns, threads;
    int64_t channels, height, width, hidden, stride, pool, norm, flat, ways;
    double eps;
    const REAL *theta, *rates, *support_inputs, *query_inputs; /* images [T, N, C, H, W] */
    const void *support_targets, *query_targets;
    REAL *task_losses, *predictions, *support_losses, *of_theta, *of_rates, *trajectory;
} Problem;

int64_t size_of_problem(void) { return sizeof(Problem); }

/* ---- what is where ---- */

typedef struct {
    long taps, in, in_stride, out;           /* of the product: taps x in numbers a row -> out channels */
    long height, width, to_height, to_width; /* of the input, and of the convolution's output */
    long pooled_height, pooled_width;        /* of what the next layer sees */
    long image, rows, pooled;                /* of an image: numbers that come in, places of the output, and pooled */
    long weight, gamma, beta;                /* where they begin */
} Layer;

typedef struct { /* of a product and the ways back from it, see below */
    int32_t *forward, *back, *pairs;
    long begin[TAPS + 1]; /* each tap's pairs */
} Tables;

typedef struct {
    long images, group[LAYERS];
    Tables full[LAYERS], rest[LAYERS]; /* of a group of images, and of those that remain */
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
        y->rows = y->to_height * y->to_width, y->pooled = height * width, y->out = hidden;
        y->taps = TAPS, y->in = p->hidden, y->in_stride = hidden, y->image = y->height * y->width * hidden;
        if (!l) { /* too few channels for a loop over each tap's: three taps are one in images with a border of zeros */
            y->taps = 3, y->in = 3 * p->channels, y->in_stride = p->channels;
            y->image = (y->height + 2) * (y->width + 2) * p->channels;
        }
        y->weight = at, y->gamma = at + y->taps * y->in * hidden;
        y->beta = y->gamma + hidden, at = y->beta + hidden;
    }
    return at;
}

static long features(const Problem *p, const Layer *layers) {
    return padded(p->hidden) * (p->flat ? layers[p->layers - 1].pooled : 1);
}

/* A table of a product: tiles of up to ROWS rows that meet the same taps, each [rows, taps, the rows of the output, then
 * for each tap its number and the rows of the input]; behind the last tile a 0. `meets` says which input row the output
 * row sees at a tap, or -1. */
typedef struct {
    enum { BORDERED, FORTH, BACK } way;
    long stride, height, width, to_height, to_width;
} Shape;

static Shape shape_of(const Problem *p, const Layer *y, int way) {
    return (Shape){way, p->stride, y->height, y->width, y->to_height, y->to_width};
}

static long meets(const Shape *s, long row, long tap) {
    long i = tap / 3 - 1, j = tap % 3 - 1, size = s->to_height * s->to_width, image = row / size, y, x;
    if (s->way == BORDERED) { /* row of the output -> row of the input, where each tap's three begin */
        y = row % size / s->to_width * s->stride + tap, x = row % s->to_width * s->stride;
        return tap < 3 ? (image * (s->height + 2) + y) * (s->width + 2) + x : -1;
    }
    if (s->way == FORTH) {
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

/* Which rows meet at each tap, [rows][TAPS]. */
static int32_t *all_that_meet(const Shape *s, long rows) {
    int32_t *met = malloc(rows * TAPS * sizeof(int32_t));
    for (long i = 0; met && i < rows * TAPS; i++) met[i] = (int32_t)meets(s, i / TAPS, i % TAPS);
    return met;
}

static int32_t *table(const int32_t *met, long rows) {
    int32_t *found = malloc((rows * (2 + 1 + TAPS * 2) + 1) * sizeof(int32_t)), *at = found;
    int16_t *masks = malloc(rows * sizeof(int16_t));
    if (!found || !masks) {
        free(found), free(masks);
        return 0;
    }
    for (long row = 0; row < rows; row++) {
        masks[row] = 0;
        for (long tap = 0; tap < TAPS; tap++) masks[row] |= (met[row * TAPS + tap] >= 0) << tap;
    }
    for (long first = 0; first < rows; first++) {
        const int16_t mask = masks[first];
        if (mask < 0) continue; /* done */
        long same = 0;
        for (long row = first; row < rows; row++) same += masks[row] == mask;
        for (long row = first, tiles = (same + ROWS - 1) / ROWS; tiles; tiles--) { /* all about as large */
            long some[ROWS], count = 0, taps = 0;
            for (const long most = (same + tiles - 1) / tiles; count < most; row++)
                if (masks[row] == mask) some[count++] = row, masks[row] = -1;
            same -= count;
            int32_t *head = at;
            at += 2;
            for (long i = 0; i < count; i++) *at++ = (int32_t)some[i];
            for (long tap = 0; tap < TAPS; tap++)
                if (mask >> tap & 1) {
                    *at++ = (int32_t)tap, taps++;
                    for (long i = 0; i < count; i++) *at++ = met[some[i] * TAPS + tap];
                }
            head[0] = (int32_t)count, head[1] = (int32_t)taps;
        }
    }
    *at = 0;
    free(masks);
    return found;
}

static int make_tables(const Problem *p, const Layer *y, int first, long images, Tables *to) {
    const Shape forth = shape_of(p, y, first ? BORDERED : FORTH), back = shape_of(p, y, BACK);
    const long rows = images * y->rows, inputs = images * y->height * y->width;
    int32_t *met = all_that_meet(&forth, rows), *met_back = first ? 0 : all_that_meet(&back, inputs);
    /* pairs of rows that meet at a tap, for the gradient of its weights: input, output, input, output, ... */
    int32_t *pairs = to->pairs = malloc((2 * y->taps * rows + 1) * sizeof(int32_t));
    if (met) to->forward = table(met, rows);
    if (met_back) to->back = table(met_back, inputs);
    for (long tap = 0, count = 0; met && pairs && tap < y->taps; to->begin[++tap] = count)
        for (long row = 0; row < rows; row++) {
            const int32_t other = met[row * TAPS + tap];
            if (other >= 0) pairs[2 * count] = other, pairs[2 * count++ + 1] = (int32_t)row;
        }
    free(met), free(met_back);
    return to->forward && pairs && (first || to->back);
}

static int make_plan(const Problem *p, const Layer *layers, long images, Plan *plan) {
    plan->images = images;
    for (long l = 0; l < p->layers; l++) {
        const long groups = (images * layers[l].rows + GROUP_ROWS - 1) / GROUP_ROWS;
        const long group = plan->group[l] = groups < images ? (images + groups - 1) / groups : 1;
        if (!make_tables(p, layers + l, !l, group, plan->full + l)) return 0;
        if (images % group && !make_tables(p, layers + l, !l, images % group, plan->rest + l)) return 0;
    }
    return 1;
}

static void free_plan(Plan *plan) {
    for (long l = 0; l < LAYERS; l++)
        for (int rest = 0; rest < 2; rest++) {
            Tables *of = (rest ? plan->rest : plan->full) + l;
            free(of->forward), free(of->back), free(of->pairs);
        }
}

#define FOR_GROUPS(plan, l)                                                                           \
    for (long first = 0, count; first < (plan)->images; first += count)                               \
        if ((count = (plan)->images - first < (plan)->group[l] ? (plan)->images - first : (plan)->group[l]))

/* ---- products ---- */

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
static void add_weight_gradient(const Tables *tables, const Layer *y, const REAL *x, const REAL *d, REAL *w) {
    const long tiles = (y->in + ROWS - 1) / ROWS, rows = (y->in + tiles - 1) / tiles;
    for (long tap = 0; tap < y->taps; tap++)
        for (long j = tables->begin[tap]; j < tables->begin[tap + 1]; j += CHUNK) {
            const int32_t *pairs = tables->pairs + 2 * j;
            const long left = tables->begin[tap + 1] - j, count = left < CHUNK ? left : CHUNK;
            for (long block = 0; block < y->out; block += BLOCK)
                for (long i = 0; i < y->in; i += rows) {
                    REAL *out = w + ((block / BLOCK * y->taps + tap) * y->in + i) * BLOCK;
#define TILE(N) weight_tile(N, pairs, count, x + i, y->in_stride, d + block, y->out, out)
                    TILES(y->in - i < rows ? y->in - i : rows)
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
    REAL *z[LAYERS];                                  /* [rows][out]: the convolution's output */
    REAL *chosen[LAYERS], *active[LAYERS];            /* [pooled][out]: each window's z, and after norm and ReLU */
    REAL *of[LAYERS];                                 /* [pooled][out]: the gradient in front of the ReLU */
    REAL *mean[LAYERS], *inverse[LAYERS], *along[LAYERS]; /* of z; 1 / its deviation; of a tangent times the normal z */
    REAL *mean_b[LAYERS], *mean_g[LAYERS];            /* the two means of batch-norm's gradient */
    REAL *transposed[LAYERS];
    REAL *features, *of_features;  /* the head's input and its gradient */
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
        const long rows = images * y->rows * y->out, pooled = images * y->pooled * y->out;
        a->z[l] = take(&at, rows), a->chosen[l] = p->pool ? take(&at, pooled) : a->z[l];
        a->active[l] = take(&at, pooled), a->of[l] = take(&at, pooled);
        a->mean[l] = take(&at, y->out), a->inverse[l] = take(&at, y->out), a->along[l] = take(&at, y->out);
        a->mean_b[l] = take(&at, y->out), a->mean_g[l] = take(&at, y->out);
        a->transposed[l] = l ? take(&at, TAPS * p->hidden * y->out) : 0;
    }
    a->features = take(&at, images * features(p, layers)), a->of_features = take(&at, images * features(p, layers));
    a->logits = take(&at, images * p->ways), a->shares = take(&at, images * p->ways);
    a->delta = take(&at, images * p->ways);
    return at - memory;
}

#define FOR_LINES(y) for (long c = 0; c < (y)->out; c += LINE)
#define AT(pointer, row) (*(W *)((pointer) + (row) * out + c))
#define PER(pointer) (*(W *)((pointer) + c))

/* All rows, PART at a time, and of them LINE channels. */
#define FOR_PARTS(y, rows)                                   \
    for (long begin = 0; begin < (rows); begin += PART)      \
        for (long c = 0, end = (rows) - begin < PART ? (rows) : begin + PART; c < (y)->out; c += LINE)

INLINE W root(W x) {
    for (long i = 0; i < LINE; i++) x[i] = 1 / (REAL)sqrt(x[i]);
    return x;
}

INLINE W either(Bits where, W yes, W no) { return (W)(((Bits)yes & where) | ((Bits)no & ~where)); }

INLINE W rectified(W x) { return (W)((Bits)x & ~(Bits)(x < (W){0})); } /* NaN stays */

INLINE W positive(W active, W value) { return (W)((Bits)value & (Bits)(active > (W){0})); }

/* The head's input from the last layer's output: the mean over places, or all of them. And the way back. */
static void gather(const Problem *p, const Layer *y, long images, const REAL *x, REAL *to) {
    const long out = y->out;
    if (p->flat) {
        memcpy(to, x, images * y->pooled * out * sizeof(REAL));
        return;
    }
    for (long image = 0; image < images; image++)
        FOR_LINES(y) {
            W sum = {0};
            for (long row = image * y->pooled; row < (image + 1) * y->pooled; row++) sum += AT(x, row);
            AT(to, image) = sum / (REAL)y->pooled;
        }
}

static void spread(const Problem *p, const Layer *y, long images, const REAL *of, REAL *to) {
    const long out = y->out;
    if (p->flat) {
        memcpy(to, of, images * y->pooled * out * sizeof(REAL));
        return;
    }
    for (long row = 0; row < images * y->pooled; row++)
        FOR_LINES(y) AT(to, row) = AT(of, row / y->pooled) / (REAL)y->pooled;
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
 * products: each with the other operand's tangent, and both added up. Without a norm all are as with one whose mean is 0
 * and whose deviation is 1, whatever the images. */

/* The mean of z and the sum of squares about it, which `a` has in `inverse`, from those of the rows before and of these
 * (Chan, Golub, LeVeque 1983). */
static void add_moments(const Layer *y, const REAL *z, long rows, long before, REAL *means, REAL *squares) {
    const long out = y->out;
    FOR_PARTS(y, rows) {
        const long here = end - begin, all = before + end;
        W mean = {0}, square = {0};
        for (long row = begin; row < end; row++) mean += AT(z, row);
        mean /= (REAL)here;
        for (long row = begin; row < end; row++) square += (AT(z, row) - mean) * (AT(z, row) - mean);
        if (before + begin) {
            const W off = mean - PER(means);
            mean = PER(means) + off * ((REAL)here / (REAL)all);
            square += PER(squares) + off * off * ((REAL)here / (REAL)all * (REAL)(before + begin));
        }
        PER(means) = mean, PER(squares) = square;
    }
}

/* The sums of the tangents of z, and of them times the normal z. */
static void add_tangents(const Layer *y, const REAL *z, const REAL *tangents, long rows, const REAL *mean,
                         const REAL *inverse, REAL *sums, REAL *alongs) {
    const long out = y->out;
    FOR_PARTS(y, rows) {
        W sum = {0}, along = {0};
        for (long row = begin; row < end; row++) {
            sum += AT(tangents, row);
            along += AT(tangents, row) * (AT(z, row) - PER(mean));
        }
        PER(sums) += sum, PER(alongs) += along * PER(inverse);
    }
}

/* The rows that a window begins with, side x side of them, in steps of 1 and of the width. */
INLINE long corner(const int side, const Layer *y, long image, long i, long j) {
    return (image * y->to_height + side * i) * y->to_width + side * j;
}

/* Each window's largest, after the norm, and that after the ReLU; of tangents that of the first of the largest. */
INLINE void activate(const int side, const int tangents, const Layer *y, long l, long images, const REAL *phi, const REAL *u,
                     const Pass *a, const Pass *t) {
    const long out = y->out;
    const REAL *z = a->z[l];
    REAL *chosen = a->chosen[l], *active = a->active[l];
    for (long image = 0, to = 0; image < images; image++)
        for (long i = 0; i < y->pooled_height; i++)
            for (long j = 0; j < y->pooled_width; j++, to++) {
                const long row = corner(side, y, image, i, j);
                const long from[4] = {row, row + 1, row + y->to_width, row + y->to_width + 1};
                FOR_LINES(y) {
                    const W mean = PER(a->mean[l]), inverse = PER(a->inverse[l]);
                    const W gamma = PER(phi + y->gamma), beta = PER(u + y->beta);
                    if (!tangents) {
                        W of = AT(z, row), best = gamma * ((of - mean) * inverse) + beta;
                        UNROLL for (int k = 1; k < side * side; k++) {
                            const W z_other = AT(z, from[k]), other = gamma * ((z_other - mean) * inverse) + beta;
                            const Bits larger = (Bits)(other > best) | (Bits)(other != other);
                            best = either(larger, other, best), of = either(larger, z_other, of);
                        }
                        if (side > 1) AT(chosen, to) = of;
                        AT(active, to) = rectified(best);
                        continue;
                    }
                    W of = AT(t->z[l], from[side * side - 1]);
                    UNROLL for (int k = side * side - 2; k >= 0; k--)
                        of = either((Bits)(AT(z, from[k]) == AT(chosen, to)), AT(t->z[l], from[k]), of);
                    if (side > 1) AT(t->chosen[l], to) = of;
                    const W normal = (AT(chosen, to) - mean) * inverse;
                    const W tangent = inverse * (of - PER(t->mean[l]) - normal * PER(t->along[l]));
                    AT(t->active[l], to) =
                        positive(AT(active, to), PER(u + y->gamma) * normal + gamma * tangent + beta);
                }
            }
}

static void forward(const Problem *p, const Layer *layers, const Plan *plan, const REAL *images, const REAL *phi,
                    const REAL *u, Pass *a, Pass *t) {
    const Pass *to = t ? t : a;
    for (long l = 0; l < p->layers; l++) {
        const Layer *y = layers + l;
        const long out = y->out, rows = plan->images * y->rows;
        REAL *z = to->z[l], *mean = to->mean[l], *inverse = to->inverse[l], *along = to->along[l];
        FOR_LINES(y) PER(mean) = PER(along) = (W){0}, PER(inverse) = (W){0} + (REAL)(!t && !p->norm);
        FOR_GROUPS(plan, l) {
            const Tables *tables = (count == plan->group[l] ? plan->full : plan->rest) + l;
            const long in = first * y->image, at = first * y->rows * out;
            product(tables->forward, (l ? a->active[l - 1] : images) + in, l && t ? t->active[l - 1] + in : 0,
                    y->in_stride, y->taps, y->in, out, u + y->weight, phi + y->weight, z + at);
            if (p->norm && t)
                add_tangents(y, a->z[l] + at, z + at, count * y->rows, a->mean[l], a->inverse[l], mean, along);
            else if (p->norm)
                add_moments(y, z + at, count * y->rows, first * y->rows, mean, inverse);
        }
        if (p->norm) FOR_LINES(y) {
            if (!t) {
                PER(inverse) = root(PER(inverse) / (REAL)rows + (REAL)p->eps);
                continue;
            }
            PER(mean) /= (REAL)rows, PER(along) /= (REAL)rows;
            PER(inverse) = -PER(a->inverse[l]) * PER(a->inverse[l]) * PER(along);
        }
        switch (2 * !!p->pool + !!t) {
            case 0: activate(1, 0, y, l, plan->images, phi, u, a, t); break;
            case 1: activate(1, 1, y, l, plan->images, phi, u, a, t); break;
            case 2: activate(2, 0, y, l, plan->images, phi, u, a, t); break;
            default: activate(2, 1, y, l, plan->images, phi, u, a, t);
        }
    }
    const Layer *last = layers + p->layers - 1;
    const long in = features(p, layers), head_at = last->beta + last->out;
    gather(p, last, plan->images, to->active[p->layers - 1], to->features);
    head(p, plan->images, in, to->features, phi + head_at, t ? a->features : 0, u + head_at, u + head_at + p->ways * in,
         to->logits);
}

/* The gradient in front of the ReLU, and what the norm's gradient needs of it: its mean, and that of it times the normal
 * z, or of the tangents of both. Adds the gradients of gamma and beta to the result. */
static void rectify_back(const Problem *p, const Layer *y, long l, long images, const Pass *a, const Pass *t,
                         REAL *result) {
    const Pass *to = t ? t : a;
    const long out = y->out, rows = images * y->rows, pooled = images * y->pooled;
    REAL *of = to->of[l];
    const REAL *active = a->active[l], *chosen = a->chosen[l];
    FOR_LINES(y) PER(to->mean_b[l]) = PER(to->mean_g[l]) = (W){0};
    FOR_PARTS(y, pooled) {
        const W mean = PER(a->mean[l]), inverse = PER(a->inverse[l]);
        W b = {0}, g = {0};
        for (long row = begin; row < end; row++) {
            const W value = positive(AT(active, row), AT(of, row)), normal = (AT(chosen, row) - mean) * inverse;
            AT(of, row) = value;
            b += value, g += value * normal;
            if (t)
                g += AT(a->of[l], row) * inverse *
                     (AT(t->chosen[l], row) - PER(t->mean[l]) - normal * PER(t->along[l]));
        }
        PER(to->mean_b[l]) += b, PER(to->mean_g[l]) += g;
    }
    FOR_LINES(y) {
        PER(result + y->beta) += PER(to->mean_b[l]);
        if (p->norm) PER(result + y->gamma) += PER(to->mean_g[l]);
        PER(to->mean_b[l]) *= (REAL)!!p->norm / (REAL)rows, PER(to->mean_g[l]) *= (REAL)!!p->norm / (REAL)rows;
    }
}

/* The gradient of a convolution's output, for `count` images from `first` on, into `d`; of its tangent into `d2`, too. */
INLINE void norm_back(const int side, const int tangents, const Layer *y, long l, long first, long count,
                      const REAL *phi, const REAL *u, const Pass *a, const Pass *t, REAL *d, REAL *d2) {
    const long out = y->out;
    const REAL *z = a->z[l] + first * y->rows * out, *chosen = a->chosen[l], *of = a->of[l];
    const REAL *z2 = tangents ? t->z[l] + first * y->rows * out : 0, *of2 = tangents ? t->of[l] : 0;
    for (long image = 0; image < count; image++)
        for (long i = 0; i * side < y->to_height; i++)
            for (long j = 0; j * side < y->to_width; j++) {
                const int pooled = i < y->pooled_height && j < y->pooled_width; /* or it is a rim that pools leave out */
                const long from = ((first + image) * y->pooled_height + i) * y->pooled_width + j;
                const long row = corner(side, y, image, i, j);
                const long high = y->to_height - side * i, wide = y->to_width - side * j;
                FOR_LINES(y) {
                    const W mean = PER(a->mean[l]), inverse = PER(a->inverse[l]), gamma = PER(phi + y->gamma);
                    const W b = PER(a->mean_b[l]), g = PER(a->mean_g[l]), scale = gamma * inverse;
                    const W best = pooled ? AT(chosen, from) : (W){0};
                    W left = pooled ? AT(of, from) : (W){0}, left2 = tangents && pooled ? AT(of2, from) : (W){0};
                    UNROLL for (int k = 0; k < side * side; k++) {
                        if (side > 1 && (k / side >= high || k % side >= wide)) continue;
                        const long at = row + k / side * y->to_width + k % side;
                        const W value = AT(z, at), normal = (value - mean) * inverse;
                        const Bits here = side > 1 ? (Bits)(value == best) : (Bits){0} - 1;
                        const W e = (W)((Bits)left & here) - b - normal * g;
                        AT(d, at) = scale * e;
                        if (tangents) {
                            const W tangent = inverse * (AT(z2, at) - PER(t->mean[l]) - normal * PER(t->along[l]));
                            const W scale2 = PER(u + y->gamma) * inverse + gamma * PER(t->inverse[l]);
                            AT(d2, at) = scale2 * e + scale * ((W)((Bits)left2 & here) - PER(t->mean_b[l]) -
                                                               tangent * g - normal * PER(t->mean_g[l]));
                            left2 = (W)((Bits)left2 & ~here);
                        }
                        left = (W)((Bits)left & ~here);
                    }
                }
            }
}

/* result += the loss's gradient, from the delta of `a`; or the Hessian times u, from that of `t` and what the way back
 * left in `a`. `d` and `d2` hold a group's gradients of a layer. */
static void back(const Problem *p, const Layer *layers, const Plan *plan, const REAL *images, const REAL *phi,
                 const REAL *u, Pass *a, Pass *t, REAL *d, REAL *d2, REAL *result) {
    const Pass *to = t ? t : a;
    const Layer *last = layers + p->layers - 1;
    const long in = features(p, layers), head_at = last->beta + last->out;
    head_back(p, plan->images, in, to->delta, phi + head_at, a->features, t ? a->delta : 0, u + head_at, to->features,
              to->of_features, result + head_at, result + head_at + p->ways * in);
    spread(p, last, plan->images, to->of_features, to->of[p->layers - 1]);
    for (long l = p->layers - 1; l >= 0; l--) {
        const Layer *y = layers + l;
        const long out = y->out;
        rectify_back(p, y, l, plan->images, a, t, result);
        if (l) transposed(p->hidden, u + y->weight, to->transposed[l]);
        FOR_GROUPS(plan, l) {
            const Tables *tables = (count == plan->group[l] ? plan->full : plan->rest) + l;
            const long in = first * y->image;
            switch (2 * !!p->pool + !!t) {
                case 0: norm_back(1, 0, y, l, first, count, phi, u, a, t, d, d2); break;
                case 1: norm_back(1, 1, y, l, first, count, phi, u, a, t, d, d2); break;
                case 2: norm_back(2, 0, y, l, first, count, phi, u, a, t, d, d2); break;
                default: norm_back(2, 1, y, l, first, count, phi, u, a, t, d, d2);
            }
            const REAL *new = t ? d2 : d;
            add_weight_gradient(tables, y, (l ? a->active[l - 1] : images) + in, new, result + y->weight);
            if (!l) continue;
            if (t) add_weight_gradient(tables, y, t->active[l - 1] + in, d, result + y->weight);
            product(tables->back, new, t ? d : 0, out, TAPS, p->hidden, out, a->transposed[l], to->transposed[l],
                    to->of[l - 1] + in);
        }
    }
}

/* ---- a task ---- */

typedef struct {
    const Layer *layers;
    const Plan *support, *query;
    long P, pass, passes, query_pass, group;
    REAL *memory; /* a thread's own; here its parts begin: */
    REAL *path, *kept, *tangents, *asked, *d, *d2, *images, *query_images, *g, *v, *u, *gradients;
} Task;

/* How many numbers a task needs; laid out into it where there is memory. */
static long lay_task(const Problem *p, Task *t) {
    REAL *at = t->memory;
    t->path = take(&at, (p->steps + 1) * aligned(t->P));
    t->kept = take(&at, t->passes * t->pass), t->tangents = take(&at, t->pass), t->asked = take(&at, t->query_pass);
    t->d = take(&at, t->group), t->d2 = take(&at, p->order == 2 ? t->group : 0);
    t->images = take(&at, p->rows * t->layers->image), t->query_images = take(&at, p->queries * t->layers->image);
    t->g = take(&at, t->P), t->v = take(&at, t->P), t->u = take(&at, t->P);
    t->gradients = take(&at, p->rates_grad ? p->steps * aligned(t->P) : 0); /* of each step, for the rates */
    return at - t->memory;
}

/* [N, C, H, W] -> [N, H + 2, W + 2, C] with a border of zeros */
static void border(const Problem *p, long images, const REAL *from, REAL *to) {
    const long channels = p->channels, row = (p->width + 2) * channels, image = (p->height + 2) * row;
    memset(to, 0, images * image * sizeof(REAL));
    for (long n = 0; n < images; n++)
        for (long c = 0; c < channels; c++)
            for (long y = 0; y < p->height; y++, from += p->width)
                for (long x = 0; x < p->width; x++) to[n * image + (y + 1) * row + (x + 1) * channels + c] = from[x];
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
    border(p, p->rows, p->support_inputs + task * p->rows * pixels, s->images);
    memcpy(phi, p->theta, P * sizeof(REAL));
    for (long k = 0; k <= steps; k++, phi += aligned(P)) {
        lay_pass(p, layers, p->rows, k == steps ? s->tangents : s->kept + (s->passes > 1 ? k : 0) * s->pass, &a);
        forward(p, layers, s->support, s->images, phi, phi, &a, 0);
        p->support_losses[task * (steps + 1) + k] = loss_of(p, p->rows, targets, &a);
        if (k == steps) break;
        REAL *into = p->rates_grad ? s->gradients + k * aligned(P) : s->g, *next = phi + aligned(P);
        memset(into, 0, P * sizeof(REAL));
        back(p, layers, s->support, s->images, phi, phi, &a, 0, s->d, s->d2, into);
        descend(p, P, k, phi, into, next);
        if (!p->queries) memcpy(p->trajectory + (task * steps + k) * P, next, P * sizeof(REAL));
    }
    if (!p->queries) return;

    targets = (const char *)p->query_targets + task * p->queries * label;
    border(p, p->queries, p->query_inputs + task * p->queries * pixels, s->query_images);
    lay_pass(p, layers, p->queries, s->asked, &a);
    forward(p, layers, s->query, s->query_images, phi, phi, &a, 0);
    p->task_losses[task] = loss_of(p, p->queries, targets, &a);
    memcpy(p->predictions + task * p->queries * p->ways, a.logits, p->queries * p->ways * sizeof(REAL));
    memset(v, 0, P * sizeof(REAL));
    back(p, layers, s->query, s->query_images, phi, phi, &a, 0, s->d, s->d2, v);
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
        forward(p, layers, s->support, s->images, phi, s->u, &a, &t);
        delta_tangent_of(p, p->rows, a.shares, t.logits, t.delta);
        back(p, layers, s->support, s->images, phi, s->u, &a, &t, s->d, s->d2, v);
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
    Plan support = {0}, query_plan = {0};
    Task s = {.layers = layers, .support = &support, .query = &query_plan, .P = parameters(p)};
    Pass pass;
    int failed = !make_plan(p, layers, p->rows, &support) || (p->queries && !make_plan(p, layers, p->queries, &query_plan));
    s.pass = lay_pass(p, layers, p->rows, 0, &pass);
    s.passes = p->queries && p->order == 2 ? p->steps : 1;
    s.query_pass = p->queries ? lay_pass(p, layers, p->queries, 0, &pass) : 0;
    for (long l = 0; l < p->layers; l++)
        for (int query = 0; query < 2; query++) {
            const long numbers = (query ? &query_plan : &support)->group[l] * layers[l].rows * layers[l].out;
            s.group = numbers > s.group ? numbers : s.group;
        }
    const long bytes = lay_task(p, &s) * (long)sizeof(REAL);
    const long R = p->rates_grad ? p->steps * p->rate_columns : 0, each = aligned(s.P) + aligned(R);
    const long group = p->tasks < TASKS ? p->tasks : TASKS, threads = p->threads < group ? p->threads : group;
    REAL *apart = calloc(group * each, sizeof(REAL));
    failed |= !apart;
    if (!failed && p->queries) {
        memset(p->of_theta, 0, s.P * sizeof(REAL));
        if (R) memset(p->of_rates, 0, R * sizeof(REAL));
    }
#pragma omp parallel num_threads(threads)
    {
        Task own = s;
        own.memory = failed ? 0 : memory_of(bytes);
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
        leave_memory();
    }
    free(apart);
    free_plan(&support), free_plan(&query_plan);
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
    const long images = aligned(p->queries * layers[0].image);
    const long bytes = (images + lay_pass(p, layers, p->queries, 0, &pass)) * (long)sizeof(REAL);
#pragma omp parallel num_threads(p->threads < p->tasks ? p->threads : p->tasks)
    {
        REAL *memory = failed ? 0 : memory_of(bytes);
        if (!memory) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp barrier
#pragma omp for schedule(dynamic, 1)
        for (long task = 0; task < (failed ? 0 : p->tasks); task++) {
#ifdef POISON
            memset(memory, 0xff, bytes);
#endif
            const REAL *phi = p->theta + task * P;
            Pass a;
            lay_pass(p, layers, p->queries, memory + images, &a);
            border(p, p->queries, p->query_inputs + task * p->queries * pixels, memory);
            forward(p, layers, &plan, memory, phi, phi, &a, 0);
            memcpy(p->predictions + task * each, a.logits, each * sizeof(REAL));
        }
        leave_memory();
    }
    free_plan(&plan);
    return failed ? NO_MEMORY : DONE;
}
