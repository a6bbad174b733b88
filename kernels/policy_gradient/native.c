/* Gradients of policy-gradient losses, and their curvature, for the CPU, by the products of lanes.h.
 *
 * A task has thousands of rows, and each is by itself: a group of LANES tasks is cut into PARTS, each a thread's, and these
 * into blocks of rows that stay in the cache from the way there to the way back. Sums over parts are in a fixed order.
 */
#include "lanes.h"

#define BLOCK 20 /* rows */
#define PARTS 4
#define HALF_LOG_2PI ((REAL)0.918938533204672741780329736406)

typedef enum { DISTRIBUTIONS } Distribution;
typedef enum { KINDS } Kind;

typedef struct {
    int64_t tasks, rows, distribution, kind, threads;
    Network net;
    const REAL *phi, *direction; /* [tasks, P]; without a direction the gradient is wanted, with one the curvature's */
    const REAL *observations, *weights, *old_log_probs;
    const void *actions; /* [tasks, rows, out], or int64 [tasks, rows] */
    REAL *result;        /* [tasks, P] */
} Problem;

int64_t size_of_problem(void) { return sizeof(Problem); }

/* The data of a block of rows, and what its way back needs. */
typedef struct {
    V *actions, *weights, *old, *slopes; /* slopes: of the loss by the log-probability */
} Rows;

static long all_parameters(const Problem *p) {
    return parameters_of(&p->net) + (p->distribution == GAUSSIAN ? p->net.widths[p->net.layers] : 0);
}

static void load_rows(const Problem *p, long first, long count, long begin, long rows, const Rows *to) {
    const long out = p->net.widths[p->net.layers];
    for (long l = 0; l < LANES; l++) {
        const long at = (first + (l < count ? l : count - 1)) * p->rows + begin;
        for (long r = 0; r < rows; r++) {
            to->weights[r][l] = p->weights[at + r];
            to->old[r][l] = p->old_log_probs[at + r];
            for (long o = 0; o < out; o++)
                to->actions[r * out + o][l] = p->distribution == GAUSSIAN
                                                  ? ((const REAL *)p->actions)[(at + r) * out + o]
                                                  : (REAL)(((const int64_t *)p->actions)[at + r] == o);
        }
    }
}

/* Fills the deltas, which are the gradients at the logits or means, and subtracts the gradient at log_std; shares become the
 * probabilities, or how many deviations the actions are off the means. */
static void deltas_of(const Problem *p, long rows, const V *logits, const V *log_std, const V *inverse, const Rows *of,
                      Pass *pass, V *of_log_std) {
    const long out = p->net.widths[p->net.layers];
    V *shares = pass->shares, *deltas = pass->deltas[p->net.layers - 1];
    for (long r = 0; r < rows; r++, logits += out, shares += out, deltas += out) {
        const V *actions = of->actions + r * out;
        V log_prob = {0}, slope = -of->weights[r];
        switch ((Distribution)p->distribution) {
            case GAUSSIAN:
                for (long o = 0; o < out; o++) {
                    shares[o] = (actions[o] - logits[o]) * inverse[o];
                    log_prob -= shares[o] * shares[o] * (REAL)0.5 + log_std[o] + HALF_LOG_2PI;
                }
                break;
            case CATEGORICAL:
                for (long l = 0; l < LANES; l++) log_prob[l] = softmax(out, l, logits, actions, shares);
        }
        switch ((Kind)p->kind) {
            case LOG_PROBABILITY: break;
            case RATIO: {
                V ratio = log_prob - of->old[r];
                for (long l = 0; l < LANES; l++) ratio[l] = EXP(ratio[l] > 80 ? 80 : ratio[l]);
                slope *= ratio;
            }
        }
        of->slopes[r] = slope;
        switch ((Distribution)p->distribution) {
            case GAUSSIAN:
                for (long o = 0; o < out; o++) {
                    deltas[o] = slope * shares[o] * inverse[o];
                    of_log_std[o] -= slope * (shares[o] * shares[o] - 1);
                }
                break;
            case CATEGORICAL:
                for (long o = 0; o < out; o++) deltas[o] = slope * (actions[o] - shares[o]);
        }
    }
}

/* Fills c with the tangents of the deltas, from those of the logits and of log_std, and subtracts that of log_std. */
static void delta_tangents_of(const Problem *p, long rows, const V *tangents, const V *of_std, const V *inverse,
                              const Rows *of, const Pass *pass, V *c, V *of_log_std) {
    const long out = p->net.widths[p->net.layers];
    const V *shares = pass->shares;
    for (long r = 0; r < rows; r++, tangents += out, shares += out, c += out) {
        const V slope = of->slopes[r], *actions = of->actions + r * out;
        V log_prob = {0}, mean = {0}, along = {0}; /* along: the tangent of the slope */
        switch ((Distribution)p->distribution) {
            case GAUSSIAN:
                for (long o = 0; o < out; o++)
                    log_prob += shares[o] * inverse[o] * tangents[o] + (shares[o] * shares[o] - 1) * of_std[o];
                break;
            case CATEGORICAL:
                for (long o = 0; o < out; o++) {
                    log_prob += actions[o] * tangents[o];
                    mean += shares[o] * tangents[o];
                }
        }
        switch ((Kind)p->kind) {
            case LOG_PROBABILITY: break;
            case RATIO: along = slope * (log_prob - mean);
        }
        switch ((Distribution)p->distribution) {
            case GAUSSIAN:
                for (long o = 0; o < out; o++) {
                    V off = -inverse[o] * tangents[o] - shares[o] * of_std[o];
                    c[o] = (along * shares[o] + slope * (off - shares[o] * of_std[o])) * inverse[o];
                    of_log_std[o] -= along * (shares[o] * shares[o] - 1) + 2 * slope * shares[o] * off;
                }
                break;
            case CATEGORICAL:
                for (long o = 0; o < out; o++)
                    c[o] = along * (actions[o] - shares[o]) - slope * shares[o] * (tangents[o] - mean);
        }
    }
}

static long vectors_needed(const Problem *p) {
    Pass pass;
    const long widest = widest_of(&p->net), out = p->net.widths[p->net.layers];
    return 2 * lay_out(&p->net, BLOCK, &pass, 0) + BLOCK * (widest + 1) + BLOCK * (2 * out + 3) + out;
}

/* Sets sums [P] to minus the gradient, or minus the curvature's product, of a group's rows from begin to end. */
static void part(const Problem *p, long first, long begin, long end, const V *phi, const V *direction, V *memory,
                 V *sums) {
    const Network *net = &p->net;
    const long left = p->tasks - first, count = left < LANES ? left : LANES, out = net->widths[net->layers];
    const long P = parameters_of(net), widest = widest_of(net);
    Pass pass, tangent;
    V *at = memory;
    at += lay_out(net, BLOCK, &pass, at);
    at += lay_out(net, BLOCK, &tangent, at);
    V *scratch = at, *logits = at + BLOCK * (widest + 1), *inverse = logits + BLOCK * out;
    const Rows of = {inverse + out, inverse + out + BLOCK * out, inverse + out + BLOCK * (out + 1),
                     inverse + out + BLOCK * (out + 2)};
    V ignored[p->distribution == GAUSSIAN ? out : 1];
    memset(ignored, 0, sizeof ignored);
    if (p->distribution == GAUSSIAN)
        for (long o = 0; o < out; o++)
            for (long l = 0; l < LANES; l++) inverse[o][l] = EXP(-phi[P + o][l]);
    memset(sums, 0, all_parameters(p) * sizeof(V));
    for (; begin < end; begin += BLOCK) {
        const long rows = end - begin < BLOCK ? end - begin : BLOCK;
        load_inputs(p->observations + begin * net->widths[0], first, count, rows, p->rows, net->widths[0], pass.values[0]);
        load_rows(p, first, count, begin, rows, &of);
        forward(net, rows, phi, &pass, scratch, logits);
        deltas_of(p, rows, logits, phi + P, inverse, &of, &pass, direction ? ignored : sums + P);
        back(net, rows, phi, &pass, scratch);
        if (direction) {
            forward_tangents(net, rows, phi, direction, &pass, &tangent, logits);
            V *deltas = tangent.deltas[net->layers - 1];
            delta_tangents_of(p, rows, logits, direction + P, inverse, &of, &pass, deltas, sums + P);
            back_tangents(net, rows, phi, direction, &pass, &tangent, scratch, sums);
        } else
            FOR_LAYERS(net)
                subtract_gradient(rows, in + 1, out, sums + begin, pass.values[l], pass.deltas[l], 0, 0);
    }
}

/* Copies a group's parameters, out of [tasks, P], to [P]. */
static void load_parameters(const Problem *p, const REAL *from, const int32_t *places, long first, V *to) {
    const long P = all_parameters(p), left = p->tasks - first, count = left < LANES ? left : LANES;
    for (long l = 0; l < LANES; l++) {
        const REAL *task = from + (first + (l < count ? l : count - 1)) * P;
        for (long i = 0; i < P; i++) ((REAL *)(to + i))[l] = task[places[i]];
    }
}

/* How many tasks run at once. */
int lanes(void) { return LANES; }

/* Returns one of RETURNS; what may be out of range is an action. */
int adapt(const Problem *p) {
    if (!is_known(&p->net) || !IS_ONE_OF(p->distribution, DISTRIBUTIONS) || !IS_ONE_OF(p->kind, KINDS)) return UNKNOWN;
    const long P = all_parameters(p), groups = (p->tasks + LANES - 1) / LANES, out = p->net.widths[p->net.layers];
    const long bytes = vectors_needed(p) * (long)sizeof(V);
    const long sides = p->direction ? 2 : 1, each = (p->rows + PARTS - 1) / PARTS;
    if (p->distribution == CATEGORICAL && !all_below(p->actions, p->tasks * p->rows, out)) return OUT_OF_RANGE;
    const long shared = groups * P * (sides + PARTS) * (long)sizeof(V);
    V *parameters = aligned_alloc(sizeof(V), shared), *sums = parameters + groups * P * sides;
    int32_t *places = malloc(P * sizeof *places);
    int failed = !parameters || !places;
    if (!failed) {
        find_places(&p->net, places);
        for (long i = parameters_of(&p->net); i < P; i++) places[i] = i;
#ifdef POISON
        memset(parameters, 0xff, shared); /* as memory_of */
#endif
    }
#pragma omp parallel num_threads(p->threads)
    {
        V *memory = memory_of(bytes);
        if (!memory) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp barrier
#pragma omp for schedule(static, 1)
        for (long i = 0; i < groups * sides; i++)
            if (!failed)
                load_parameters(p, i < groups ? p->phi : p->direction, places, i % groups * LANES, parameters + i * P);
#pragma omp for schedule(dynamic, 1)
        for (long i = 0; i < groups * PARTS; i++)
            if (!failed) {
                const long begin = i % PARTS * each, end = begin + each < p->rows ? begin + each : p->rows;
                const V *phi = parameters + i / PARTS * P, *direction = p->direction ? phi + groups * P : 0;
                part(p, i / PARTS * LANES, begin, end, phi, direction, memory, sums + i * P);
            }
#pragma omp for schedule(static, 1)
        for (long g = 0; g < groups; g++)
            for (long i = 0; i < P && !failed; i++) {
                V total = {0};
                for (long k = 0; k < PARTS; k++) total -= sums[(g * PARTS + k) * P + i];
                for (long l = 0; l < LANES && g * LANES + l < p->tasks; l++)
                    p->result[(g * LANES + l) * P + places[i]] = total[l];
            }
        leave_memory();
    }
    free(parameters);
    free(places);
    return failed ? NO_MEMORY : DONE;
}
