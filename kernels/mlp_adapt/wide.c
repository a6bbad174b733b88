/* The recursion of README.md for the CPU, one task after another in each thread: for layers that fill vectors by themselves.
 *
 * A row holds the numbers of one example, so that a product is rows x weights. Weights are in panels of as many columns
 * as a vector has lanes, [panels][in + 1][LANES], the bias behind the last row; a tile of the product, ROWS rows of two
 * panels, stays in registers. A set goes through all layers in parts, whose rows stay in the second cache. Sums over
 * parts are in their order, and those over tasks in the order of the tasks.
 */
#include "functions.h"
#include "mlp_problem.h"
#include "tiles.h"

#ifndef PART
#define PART 96 /* rows of a part, at most */
#endif
#ifndef MOST_TAPE
#define MOST_TAPE (1L << 30) /* bytes of what steps leave behind in a thread; where they are more they are found again */
#endif
#define LINE (64 / (long)sizeof(REAL)) /* numbers of a cache line */
#define TASKS 16 /* whose gradients are kept apart before they are summed */

/* ---- what is where ---- */

typedef struct {
    long in, out, panels, back_panels; /* panels of the outputs, and of the inputs */
    long x, d;                         /* how far apart rows are: of the inputs, and of the outputs */
    long weight, back;                 /* where its matrix begins, and the one that leads back */
} Layer;

static long panels_of(long width) { return (width + LANES - 1) / LANES; }

/* Room for a row and a one behind it; an odd number of cache lines, so that rows do not fight for a place in the cache. */
static long apart(long width) { return ((width + LINE) / LINE | 1) * LINE; }

typedef struct {
    long layers, numbers, P, back; /* parameters, and numbers of all panels and of those that lead back */
    Layer of[LAYERS];
} Plan;

static Plan plan_of(const Network *net) {
    Plan plan = {.layers = net->layers};
    for (long l = 0; l < net->layers; l++) {
        const long in = net->widths[l], out = net->widths[l + 1];
        plan.of[l] = (Layer){in, out, panels_of(out), panels_of(in), apart(in), apart(out), plan.P, plan.back};
        plan.numbers += (in + 1) * out;
        plan.P += panels_of(out) * (in + 1) * LANES;
        plan.back += l ? panels_of(in) * out * LANES : 0;
    }
    return plan;
}

/* Where each number of the panels lies in a row of weights [out, in] and biases [out], or -1. */
static void find_places(const Plan *plan, int32_t *places) {
    for (long l = 0, begin = 0; l < plan->layers; begin += (plan->of[l].in + 1) * plan->of[l].out, l++)
        for (long panel = 0; panel < plan->of[l].panels; panel++)
            for (long i = 0; i <= plan->of[l].in; i++)
                for (long o = panel * LANES; o < (panel + 1) * LANES; o++) {
                    const long in = plan->of[l].in, out = plan->of[l].out;
                    *places++ = (int32_t)(o >= out ? -1 : begin + (i < in ? o * in + i : out * in + o));
                }
}

static void into_panels(long P, const int32_t *places, const REAL *from, REAL *to) {
    for (long i = 0; i < P; i++) to[i] = places[i] < 0 ? 0 : from[places[i]];
}

static void out_of_panels(long P, const int32_t *places, const REAL *from, REAL *to) {
    for (long i = 0; i < P; i++)
        if (places[i] >= 0) to[places[i]] = from[i];
}

/* ---- products ---- */

/* `count` rows in tiles about as large as each other, at most ROWS: `tiles` of them, first `longer` of least + 1 */
#define FOR_TILES(count)                                                                                       \
    for (long tiles = ((count) + ROWS - 1) / ROWS, number = 0, row = 0, n;                                     \
         number < tiles && (n = (count) / tiles + (number < (count) % tiles), 1); row += n, number++)

/* c [n rows][wide panels] = x w, and x2 w2 where there is a second pair; w [panels][K][LANES] */
INLINE void tile(const int n, const int wide, long K, const REAL *x, const REAL *x2, long xs, const REAL *w,
                 const REAL *w2, REAL *c, long cs) {
    V sum[ROWS][2];
    UNROLL for (int i = 0; i < n; i++) sum[i][0] = sum[i][1] = (V){0};
    for (;;) {
        const REAL *left = x, *right = w;
        for (long k = 0; k < K; k++, left++, right += LANES) {
            const V a = *(const V *)right, b = wide > 1 ? *(const V *)(right + K * LANES) : a;
            UNROLL for (int i = 0; i < n; i++) {
                sum[i][0] += left[i * xs] * a;
                if (wide > 1) sum[i][1] += left[i * xs] * b;
            }
        }
        if (!x2) break;
        x = x2, w = w2, x2 = 0;
    }
    UNROLL for (int i = 0; i < n; i++) {
        *(V *)(c + i * cs) = sum[i][0];
        if (wide > 1) *(V *)(c + i * cs + LANES) = sum[i][1];
    }
}

static void product(long rows, long K, long panels, const REAL *x, const REAL *x2, long xs, const REAL *w,
                    const REAL *w2, REAL *c, long cs) {
    for (long panel = 0; panel < panels; panel += 2) {
        const REAL *right = w + panel * K * LANES, *right2 = x2 ? w2 + panel * K * LANES : 0;
        FOR_TILES(rows) {
            const REAL *left = x + row * xs, *left2 = x2 ? x2 + row * xs : 0;
            REAL *to = c + row * cs + panel * LANES;
            if (panel + 1 < panels) {
#define TILE(N) tile(N, 2, K, left, left2, xs, right, right2, to, cs)
                TILES(n)
#undef TILE
            } else {
#define TILE(N) tile(N, 1, K, left, left2, xs, right, right2, to, cs)
                TILES(n)
#undef TILE
            }
        }
    }
}

/* g [wide panels][n of K rows][LANES] += sign times x^T d, and x2^T d2 where there is a second pair */
INLINE void gradient_tile(const int n, const int wide, const REAL sign, long rows, long K, const REAL *x, const REAL *x2,
                          long xs, const REAL *d, const REAL *d2, long ds, REAL *g) {
    V sum[ROWS][2];
    UNROLL for (int i = 0; i < n; i++) sum[i][0] = sum[i][1] = (V){0};
    for (;;) {
        const REAL *left = x, *right = d;
        for (long r = 0; r < rows; r++, left += xs, right += ds) {
            const V a = *(const V *)right, b = wide > 1 ? *(const V *)(right + LANES) : a;
            UNROLL for (int i = 0; i < n; i++) {
                sum[i][0] += left[i] * a;
                if (wide > 1) sum[i][1] += left[i] * b;
            }
        }
        if (!x2) break;
        x = x2, d = d2, x2 = 0;
    }
    UNROLL for (int i = 0; i < n; i++) {
        *(V *)(g + i * LANES) += sign * sum[i][0];
        if (wide > 1) *(V *)(g + (K + i) * LANES) += sign * sum[i][1];
    }
}

/* g += sign * ([x 1]^T d + [x2 0]^T d2), panels [in + 1] */
static void add_gradient(const Layer *y, REAL sign, long rows, const REAL *x, const REAL *x2, const REAL *d,
                         const REAL *d2, REAL *g) {
    const long K = y->in + 1;
    for (long panel = 0; panel < y->panels; panel += 2) {
        const REAL *right = d + panel * LANES, *right2 = x2 ? d2 + panel * LANES : 0;
        FOR_TILES(K) {
            const REAL *left = x + row, *left2 = x2 ? x2 + row : 0;
            REAL *to = g + (panel * K + row) * LANES;
            if (panel + 1 < y->panels) {
#define TILE(N) gradient_tile(N, 2, sign, rows, K, left, left2, y->x, right, right2, y->d, to)
                TILES(n)
#undef TILE
            } else {
#define TILE(N) gradient_tile(N, 1, sign, rows, K, left, left2, y->x, right, right2, y->d, to)
                TILES(n)
#undef TILE
            }
        }
    }
}

/* The matrices that lead back, [panels of the inputs][out][LANES], of all layers but the first. */
static void turn(const Plan *plan, const REAL *phi, REAL *turned) {
    for (long l = 1; l < plan->layers; l++) {
        const Layer *y = plan->of + l;
        for (long panel = 0; panel < y->back_panels; panel++) {
            REAL *to = turned + y->back + panel * y->out * LANES;
            const long first = panel * LANES, count = y->in - first < LANES ? y->in - first : LANES;
            for (long o = 0; o < y->out; o++, to += LANES) {
                const REAL *from = phi + y->weight + (o / LANES * (y->in + 1) + first) * LANES + o % LANES;
                if (count == LANES)
                    for (long i = 0; i < LANES; i++) to[i] = from[i * LANES];
                else
                    for (long i = 0; i < LANES; i++) to[i] = i < count ? from[i * LANES] : 0;
            }
        }
    }
}

/* ---- one pass of a part: what it leaves behind for the way back ---- */

typedef struct { /* of each layer's inputs, but for the last: of its outputs */
    REAL *values[LAYERS], *slopes[LAYERS], *bends[LAYERS], *deltas[LAYERS], *shares;
} Pass;

static REAL *take(REAL **memory, long numbers) {
    REAL *taken = *memory;
    *memory += (numbers + LINE - 1) / LINE * LINE;
    return taken;
}

/* How many numbers a pass of so many rows needs; laid out into it where there is memory. */
static long lay_out(const Plan *plan, int64_t activation, long rows, Pass *pass, REAL *memory) {
    REAL *at = memory;
    const int curved = is_curved(activation);
    for (long l = 0; l < plan->layers; l++) {
        const long numbers = l ? rows * plan->of[l].x : 0;
        pass->values[l] = take(&at, numbers);
        pass->slopes[l] = take(&at, curved ? numbers : 0), pass->bends[l] = take(&at, curved ? numbers : 0);
        pass->deltas[l] = take(&at, rows * plan->of[l].d);
    }
    pass->shares = take(&at, rows * plan->of[plan->layers - 1].d);
    return at - memory;
}

/* values[0] is filled; fills the rest of the pass up to the logits */
static void forward(const Plan *plan, const Network *net, long rows, const REAL *phi, Pass *a, REAL *sums) {
    for (long l = 0; l < plan->layers; l++) {
        const Layer *y = plan->of + l;
        const long last = l + 1 == plan->layers, n = y->panels * LANES;
        product(rows, y->in + 1, y->panels, a->values[l], 0, y->x, phi + y->weight, 0, sums, y->d);
        if (last) break;
        for (long r = 0; r < rows; r++) {
            const long at = r * y->d;
            REAL *values = a->values[l + 1] + at, *slopes = a->slopes[l + 1] + at, *bends = a->bends[l + 1] + at;
            activate_numbers(net->activation, (REAL)net->frequencies[l], n, sums + at, values, slopes, bends);
            values[y->out] = 1;
        }
    }
}

/* c [n] *= the slopes; the rectifier's are known from its values */
INLINE void times_slope(int64_t activation, long n, const REAL *values, const REAL *slopes, REAL *c) {
    if (is_curved(activation))
        for (long i = 0; i < n; i++) c[i] *= slopes[i];
    else if (activation == RELU)
        for (long i = 0; i < n; i++) c[i] = values[i] > 0 ? c[i] : 0;
}

/* deltas of the last layer are filled; fills the others, and multiplies the second derivatives by what comes back */
static void back(const Plan *plan, const Network *net, long rows, const REAL *turned, Pass *a) {
    for (long l = plan->layers - 1; l > 0; l--) {
        const Layer *y = plan->of + l;
        const long n = y->back_panels * LANES;
        product(rows, y->out, y->back_panels, a->deltas[l], 0, y->d, turned + y->back, 0, a->deltas[l - 1], y->x);
        for (long r = 0, at = 0; r < rows; r++, at += y->x) {
            if (is_curved(net->activation))
                for (long i = at; i < at + n; i++) a->bends[l][i] *= a->deltas[l - 1][i];
            times_slope(net->activation, n, a->values[l] + at, a->slopes[l] + at, a->deltas[l - 1] + at);
        }
    }
}

/* The tangents of a pass in the direction u of its parameters: of the activations, with a zero behind them, and of the
 * sums, those of the logits into `logits`. */
static void forward_tangents(const Plan *plan, const Network *net, long rows, const REAL *phi, const REAL *u,
                             const Pass *a, Pass *t, REAL *logits) {
    for (long l = 0; l < plan->layers; l++) {
        const Layer *y = plan->of + l;
        const long last = l + 1 == plan->layers, n = y->panels * LANES;
        REAL *into = last ? logits : t->slopes[l + 1];
        product(rows, y->in + 1, y->panels, a->values[l], l ? t->values[l] : 0, y->x, u + y->weight, phi + y->weight,
                into, y->d);
        for (long r = 0, at = 0; r < (last ? 0 : rows); r++, at += y->d) {
            REAL *values = t->values[l + 1] + at;
            memcpy(values, into + at, n * sizeof(REAL));
            times_slope(net->activation, n, a->values[l + 1] + at, a->slopes[l + 1] + at, values);
            values[y->out] = 0;
        }
    }
}

/* deltas of the tangents' last layer are filled; subtracts the tangent of the gradient from v */
static void back_tangents(const Plan *plan, const Network *net, long rows, const REAL *turned, const REAL *turned_u,
                          const Pass *a, Pass *t, REAL *v) {
    for (long l = plan->layers - 1; l >= 0; l--) {
        const Layer *y = plan->of + l;
        const long n = y->back_panels * LANES;
        add_gradient(y, -1, rows, a->values[l], l ? t->values[l] : 0, t->deltas[l], a->deltas[l], v + y->weight);
        if (!l) break;
        REAL *into = t->deltas[l - 1];
        product(rows, y->out, y->back_panels, t->deltas[l], a->deltas[l], y->d, turned + y->back, turned_u + y->back, into,
                y->x);
        for (long r = 0, at = 0; r < rows; r++, at += y->x) {
            times_slope(net->activation, n, a->values[l] + at, a->slopes[l] + at, into + at);
            if (is_curved(net->activation))
                for (long i = at; i < at + n; i++) into[i] += a->bends[l][i] * t->slopes[l][i];
        }
    }
}

/* ---- losses ---- */

/* The loss of some rows, a sum; the gradient at the logits, of half the squares or of the likelihood, with zeros behind
 * it; the probabilities. */
static double delta_of(Loss loss, const Layer *last, long rows, const REAL *logits, const void *targets, REAL *delta,
                       REAL *shares) {
    const long out = last->out;
    const int64_t *labels = targets;
    const REAL *numbers = targets;
    double total = 0;
    for (long r = 0; r < rows; r++, logits += last->d, delta += last->d, shares += last->d, numbers += out) {
        REAL of_row = 0, most = logits[0], sum = 0;
        switch (loss) {
            case MSE:
                for (long o = 0; o < out; o++) delta[o] = logits[o] - numbers[o], of_row += delta[o] * delta[o];
                break;
            case CROSS_ENTROPY:
                for (long o = 1; o < out; o++) most = logits[o] > most ? logits[o] : most;
                for (long o = 0; o < out; o++) sum += shares[o] = EXP(logits[o] - most);
                for (long o = 0; o < out; o++) delta[o] = shares[o] /= sum;
                delta[labels[r]] -= 1;
                of_row = LOG(sum) + most - logits[labels[r]];
                break;
            case BCE:
                for (long o = 0; o < out; o++) {
                    const REAL z = logits[o], e = EXP(-(z < 0 ? -z : z));
                    shares[o] = (z < 0 ? e : 1) / (1 + e);
                    delta[o] = shares[o] - numbers[o];
                    of_row += (z < 0 ? 0 : z) - z * numbers[o] + LOG1P(e);
                }
        }
        for (long o = out; o < last->panels * LANES; o++) delta[o] = 0;
        total += of_row;
    }
    return total;
}

/* The tangents of the gradient at the logits, from those of the logits. */
static void delta_tangent_of(Loss loss, const Layer *last, long rows, const REAL *shares, const REAL *tangents, REAL *c) {
    const long out = last->out;
    for (long r = 0; r < rows; r++, shares += last->d, tangents += last->d, c += last->d) {
        REAL dot = 0;
        switch (loss) {
            case MSE: memcpy(c, tangents, out * sizeof(REAL)); break;
            case CROSS_ENTROPY:
                for (long o = 0; o < out; o++) dot += shares[o] * tangents[o];
                for (long o = 0; o < out; o++) c[o] = shares[o] * (tangents[o] - dot);
                break;
            case BCE:
                for (long o = 0; o < out; o++) c[o] = (shares[o] - shares[o] * shares[o]) * tangents[o];
        }
        for (long o = out; o < last->panels * LANES; o++) c[o] = 0;
    }
}

/* ---- a task ---- */

typedef struct {
    const Problem *p;
    Plan plan;
    const int32_t *places;
    const REAL *theta, *rates; /* in panels, the rates of all steps where each element has its own */
    int kept;                  /* whether each step's passes are */
    long part, pass;           /* rows of a part, numbers of its pass */
    REAL *memory;              /* a thread's own; here its parts begin: */
    REAL *path, *gradients, *v, *u, *turned, *turned_u, *inputs, *sums, *passes, *tangents;
} Task;

static long parts_of(long rows) { return (rows + PART - 1) / PART; }
static long rows_of_part(long rows) { return rows ? (rows + parts_of(rows) - 1) / parts_of(rows) : 0; }

/* How many numbers a task needs; laid out into it where there is memory. */
static long lay_task(Task *s) {
    const Problem *p = s->p;
    const long P = s->plan.P, first = s->plan.of[0].x;
    long widest = 0;
    for (long l = 0; l < s->plan.layers; l++) widest = s->plan.of[l].d > widest ? s->plan.of[l].d : widest;
    REAL *at = s->memory;
    s->path = take(&at, (p->steps + 1) * P), s->gradients = take(&at, (p->rates_grad ? p->steps : 1) * P);
    s->v = take(&at, P), s->u = take(&at, P), s->turned = take(&at, s->plan.back), s->turned_u = take(&at, s->plan.back);
    s->inputs = take(&at, (p->rows + s->part) * first), s->sums = take(&at, s->part * widest);
    s->tangents = take(&at, s->pass), s->passes = take(&at, (s->kept ? p->steps * parts_of(p->rows) : 1) * s->pass);
    return at - s->memory;
}

/* Each part of a set: its first row, and how many there are. */
#define FOR_PARTS(all)                                                                                           \
    for (long parts = parts_of(all), part = 0, first = 0, rows;                                                  \
         part < parts && (rows = (all) / parts + (part < (all) % parts), 1); first += rows, part++)

static void load(const Layer *y, long rows, const REAL *from, REAL *to) {
    for (long r = 0; r < rows; r++, from += y->in, to += y->x) {
        memcpy(to, from, y->in * sizeof(REAL));
        to[y->in] = 1;
    }
}

static const void *targets_of(const Task *s, const void *from, long row) {
    const Network *net = &s->p->net;
    return (const char *)from +
           row * (s->p->loss == CROSS_ENTROPY ? sizeof(int64_t) : sizeof(REAL) * net->widths[net->layers]);
}

/* The pass of a part of the support set, in a step, up to the gradients at the logits; returns the loss, a sum. */
static double there(const Task *s, const void *targets, long step, long part, long first, long rows, const REAL *phi,
                    Pass *a) {
    const Problem *p = s->p;
    const Layer *last = s->plan.of + s->plan.layers - 1;
    const long number = s->kept && step < p->steps ? step * parts_of(p->rows) + part : 0;
    lay_out(&s->plan, p->net.activation, s->part, a, step < p->steps ? s->passes + number * s->pass : s->tangents);
    a->values[0] = s->inputs + first * s->plan.of[0].x;
    forward(&s->plan, &p->net, rows, phi, a, s->sums);
    return delta_of(p->loss, last, rows, s->sums, targets_of(s, targets, first), a->deltas[s->plan.layers - 1], a->shares);
}

/* to = from - scale * the rates of a step * x, where there is no `from` of 0 */
static void descend(const Task *s, long step, REAL scale, const REAL *from, const REAL *x, REAL *to) {
    const REAL *rates = s->rates + step * (s->p->rate_columns > 1 ? s->plan.P : 1);
    const long P = s->plan.P;
    if (s->p->rate_columns > 1)
        for (long i = 0; i < P; i++) to[i] = (from ? from[i] : 0) - scale * rates[i] * x[i];
    else
        for (long i = 0; i < P; i++) to[i] = (from ? from[i] : 0) - scale * rates[0] * x[i];
}

static void gradient_of_rates(const Task *s, REAL scale, const REAL *gradient, REAL *of_rates) {
    double sum = 0;
    if (s->p->rate_columns > 1)
        for (long i = 0; i < s->plan.P; i++) of_rates[i] = -scale * s->v[i] * gradient[i];
    else {
        for (long i = 0; i < s->plan.P; i++) sum += (double)s->v[i] * gradient[i];
        of_rates[0] = (REAL)(-scale * sum);
    }
}

static void one_task(const Task *s, long task, REAL *of_theta, REAL *of_rates) {
    const Problem *p = s->p;
    const Plan *plan = &s->plan;
    const Network *net = &p->net;
    const long P = plan->P, steps = p->steps, in = net->widths[0], out = net->widths[net->layers];
    const Layer *last = plan->of + plan->layers - 1;
    /* the factor of the mean goes into the rates: deltas are gradients of sums, of half the squares */
    const REAL factor = p->loss == MSE ? 2 : 1;
    const double terms = (double)p->rows * (p->loss == CROSS_ENTROPY ? 1 : out);
    const double query_terms = (double)p->queries * (p->loss == CROSS_ENTROPY ? 1 : out);
    const REAL scale = (REAL)(factor / terms), share = (REAL)(factor / query_terms / (double)p->tasks);
    const void *targets = targets_of(s, p->support_targets, task * p->rows);
    Pass a, t;
    load(plan->of, p->rows, p->support_inputs + task * p->rows * in, s->inputs);
    memcpy(s->path, s->theta, P * sizeof(REAL));

    for (long k = 0; k <= steps; k++) {
        REAL *phi = s->path + k * P, *gradient = s->gradients + (p->rates_grad ? k : 0) * P;
        double total = 0;
        if (k < steps) {
            turn(plan, phi, s->turned);
            memset(gradient, 0, P * sizeof(REAL));
        }
        FOR_PARTS(p->rows) {
            total += there(s, targets, k, part, first, rows, phi, &a);
            if (k == steps) continue;
            back(plan, net, rows, s->turned, &a);
            for (long l = 0; l < plan->layers; l++)
                add_gradient(plan->of + l, 1, rows, a.values[l], 0, a.deltas[l], 0, gradient + plan->of[l].weight);
        }
        p->support_losses[task * (steps + 1) + k] = (REAL)(total / terms);
        if (k < steps) descend(s, k, scale, phi, gradient, phi + P);
    }
    if (!p->queries) {
        for (long k = 0; k < steps; k++)
            out_of_panels(P, s->places, s->path + (k + 1) * P, p->trajectory + (task * steps + k) * plan->numbers);
        return;
    }

    const REAL *phi = s->path + steps * P;
    double total = 0;
    turn(plan, phi, s->turned);
    memset(s->v, 0, P * sizeof(REAL));
    FOR_PARTS(p->queries) {
        lay_out(plan, net->activation, s->part, &a, s->tangents);
        a.values[0] = s->inputs + p->rows * plan->of[0].x;
        const long at = task * p->queries + first;
        load(plan->of, rows, p->query_inputs + at * in, a.values[0]);
        forward(plan, net, rows, phi, &a, s->sums);
        for (long r = 0; r < rows; r++)
            memcpy(p->predictions + (at + r) * out, s->sums + r * last->d, out * sizeof(REAL));
        REAL *delta = a.deltas[plan->layers - 1];
        total += delta_of(p->loss, last, rows, s->sums, targets_of(s, p->query_targets, at), delta, a.shares);
        for (long r = 0; r < rows; r++)
            for (long o = 0; o < out; o++) delta[r * last->d + o] *= share;
        back(plan, net, rows, s->turned, &a);
        for (long l = 0; l < plan->layers; l++)
            add_gradient(plan->of + l, 1, rows, a.values[l], 0, a.deltas[l], 0, s->v + plan->of[l].weight);
    }
    p->task_losses[task] = (REAL)(total / query_terms);

    for (long k = steps - 1; k >= 0; k--) {
        phi = s->path + k * P;
        if (p->rates_grad) gradient_of_rates(s, scale, s->gradients + k * P, of_rates + k * (p->rate_columns > 1 ? P : 1));
        if (p->order == 1) continue;
        descend(s, k, -scale, 0, s->v, s->u);
        turn(plan, phi, s->turned);
        turn(plan, s->u, s->turned_u);
        FOR_PARTS(p->rows) {
            lay_out(plan, net->activation, s->part, &t, s->tangents);
            if (s->kept) {
                lay_out(plan, net->activation, s->part, &a, s->passes + (k * parts + part) * s->pass);
                a.values[0] = s->inputs + first * plan->of[0].x;
            } else {
                there(s, targets, k, part, first, rows, phi, &a);
                back(plan, net, rows, s->turned, &a);
            }
            forward_tangents(plan, net, rows, phi, s->u, &a, &t, s->sums);
            delta_tangent_of(p->loss, last, rows, a.shares, s->sums, t.deltas[plan->layers - 1]);
            back_tangents(plan, net, rows, s->turned, s->turned_u, &a, &t, s->v);
        }
    }
    memcpy(of_theta, s->v, P * sizeof(REAL));
}

/* one of RETURNS; out of range is a label */
int adapt(const Problem *p) {
    const Network *net = &p->net;
    if (!is_known(net) || !IS_ONE_OF(p->loss, LOSSES) || (p->order != 1 && p->order != 2)) return UNKNOWN;
    const long classes = net->widths[net->layers], elements = p->rate_columns > 1;
    if (p->loss == CROSS_ENTROPY && (!all_below(p->support_targets, p->tasks * p->rows, classes) ||
                                     !all_below(p->query_targets, p->tasks * p->queries, classes)))
        return OUT_OF_RANGE;
    Task s = {.p = p, .plan = plan_of(net)};
    Pass pass;
    const long P = s.plan.P;
    s.part = rows_of_part(p->rows) > rows_of_part(p->queries) ? rows_of_part(p->rows) : rows_of_part(p->queries);
    s.pass = lay_out(&s.plan, net->activation, s.part, &pass, 0);
    const long tape = p->steps * parts_of(p->rows) * s.pass * (long)sizeof(REAL);
    s.kept = p->order == 2 && p->queries && p->steps && tape <= MOST_TAPE;
    const long bytes = lay_task(&s) * (long)sizeof(REAL), R = p->rates_grad ? p->steps * (elements ? P : 1) : 0;
    const long group = p->tasks < TASKS ? p->tasks : TASKS, each = P + R;
    REAL *given = malloc((P + (elements ? p->steps * P : 0)) * sizeof(REAL));
    REAL *sums = calloc(each, sizeof(REAL)), *single = calloc(group * each, sizeof(REAL));
    int32_t *places = malloc(P * sizeof *places);
    int failed = !given || !sums || !single || !places;
    if (!failed) {
        find_places(&s.plan, places);
        into_panels(P, places, p->theta, given);
        for (long k = 0; k < (elements ? p->steps : 0); k++)
            into_panels(P, places, p->rates + k * p->rate_columns, given + (k + 1) * P);
    }
    s.places = places, s.theta = given, s.rates = elements ? given + P : p->rates;
#pragma omp parallel num_threads(p->threads < group ? p->threads : group)
    {
        Task own = s;
        own.memory = failed ? 0 : memory_of(bytes);
        lay_task(&own);
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
                one_task(&own, first + t, single + t * each, single + t * each + P);
            }
#pragma omp for
            for (long i = 0; i < (p->queries ? each : 0); i++)
                for (long t = 0; t < count; t++) sums[i] += single[t * each + i];
        }
        leave_memory();
    }
    if (!failed && p->queries) {
        out_of_panels(P, places, sums, p->of_theta);
        for (long k = 0; k < (elements && R ? p->steps : 0); k++)
            out_of_panels(P, places, sums + (k + 1) * P, p->of_rates + k * p->rate_columns);
        if (R && !elements) memcpy(p->of_rates, sums + P, R * sizeof(REAL));
    }
    free(given), free(sums), free(single), free(places);
    return failed ? NO_MEMORY : DONE;
}
