/* The recursion of README.md for the CPU, by the products of lanes.h.
 *
 * A group of LANES tasks runs all its inner steps and the way back in one thread, out of that thread's cache; sums over
 * groups are in a fixed order.
 */
#include "lanes.h"
#include "mlp_problem.h"

int lanes(void) { return LANES; }

/* The loss of each task, a mean, into losses [LANES]; the gradient at the logits [rows, out], of half the squares or of
 * the likelihood; the probabilities, or the logits where there are none. */
static void delta_of(Loss loss, long rows, long out, const V *logits, const V *targets, V *delta, V *shares,
                     V *losses) {
    V total = {0};
    switch (loss) {
        case MSE:
            for (long r = 0; r < rows; r++) {
                V of_row = {0};
                for (long i = r * out; i < (r + 1) * out; i++) {
                    delta[i] = logits[i] - targets[i];
                    of_row += delta[i] * delta[i];
                }
                total += of_row;
            }
            break;
        case CROSS_ENTROPY:
            for (long r = 0; r < rows; r++)
                for (long l = 0; l < LANES; l++) {
                    const V *z = logits + r * out, *t = targets + r * out;
                    V *p = shares + r * out, *d = delta + r * out;
                    total[l] -= softmax(out, l, z, t, p);
                    for (long o = 0; o < out; o++) d[o][l] = p[o][l] - t[o][l];
                }
            break;
        case BCE:
            for (long i = 0; i < rows * out; i++)
                for (long l = 0; l < LANES; l++) {
                    REAL z = logits[i][l], t = targets[i][l], e = EXP(-(z < 0 ? -z : z));
                    shares[i][l] = (z < 0 ? e : 1) / (1 + e);
                    delta[i][l] = shares[i][l] - t;
                    total[l] += (z < 0 ? 0 : z) - z * t + LOG1P(e);
                }
    }
    *losses = total / (REAL)(loss == CROSS_ENTROPY ? rows : rows * out);
}

static void delta_tangent_of(Loss loss, long rows, long out, const V *shares, const V *tangents, V *c) {
    switch (loss) {
        case MSE: memcpy(c, tangents, rows * out * sizeof(V)); break;
        case CROSS_ENTROPY:
            for (long r = 0; r < rows * out; r += out) {
                V dot = {0};
                for (long o = r; o < r + out; o++) dot += shares[o] * tangents[o];
                for (long o = r; o < r + out; o++) c[o] = shares[o] * (tangents[o] - dot);
            }
            break;
        case BCE:
            for (long i = 0; i < rows * out; i++) c[i] = (shares[i] - shares[i] * shares[i]) * tangents[i];
    }
}

static long vectors_needed(const Problem *p) {
    Pass pass;
    const Network *net = &p->net;
    long most = p->rows > p->queries ? p->rows : p->queries, widest = widest_of(net), P = parameters_of(net);
    long targets = (p->rows + p->queries) * net->widths[net->layers];
    return (p->steps + 4) * P + targets + p->steps * lay_out(net, p->rows, &pass, 0) + lay_out(net, most, &pass, 0) +
           2 * lay_out(net, p->rows, &pass, 0) + most * (widest + 1) * 2;
}

static void load_targets(const Problem *p, const void *from, long first, long count, long rows, V *to) {
    long out = p->net.widths[p->net.layers];
    for (long l = 0; l < LANES; l++) {
        long task = first + (l < count ? l : count - 1);
        for (long r = 0; r < rows; r++)
            for (long o = 0; o < out; o++)
                ((REAL *)(to + r * out + o))[l] = p->loss == CROSS_ENTROPY
                                                      ? ((const int64_t *)from)[task * rows + r] == o
                                                      : ((const REAL *)from)[(task * rows + r) * out + o];
    }
}

static void group(const Problem *p, const int32_t *places, long first, V *memory, REAL *of_theta, REAL *of_rates) {
    const Network *net = &p->net;
    const long P = parameters_of(net), rows = p->rows, steps = p->steps, layers = net->layers, queries = p->queries;
    const long left = p->tasks - first, count = left < LANES ? left : LANES, out = net->widths[layers];
    const long most = rows > queries ? rows : queries, order = p->order, rate_step = p->rate_columns > 1;
    /* the factor of the mean goes into the rates: deltas are gradients of sums, of half the squares */
    const REAL factor = p->loss == MSE ? 2 : 1, scale = factor / (p->loss == CROSS_ENTROPY ? rows : rows * out);
    const long widest = widest_of(net);

    V *at = memory, *path = at;
    at += (steps + 1) * P;
    V *v = at, *u = at + P, *scratch = at + 2 * P;
    at += 3 * P;
    V *targets = at, *query_targets = at + rows * out;
    at += (rows + queries) * out;
    V *sums = at, *logits = at + most * (widest + 1);
    at += most * (widest + 1) * 2;
    Pass tangent, pass, last;
    at += lay_out(net, most, &last, at);
    at += lay_out(net, rows, &tangent, at);
    V *passes = at;
    const long length = lay_out(net, rows, &pass, at);
    REAL *rates = (REAL *)scratch; /* [P] or [1], of one step */
    V loss;

    const REAL *theta = p->theta;
    for (long i = 0; i < P; i++) path[i] = (V){0} + theta[places[i]];
    load_targets(p, p->support_targets, first, count, rows, targets);
    load_inputs(p->support_inputs, first, count, rows, rows, net->widths[0], last.values[0]);

    for (long k = 0; k <= steps; k++) {
        const V *phi = path + k * P;
        Pass *now = &last;
        if (k < steps) {
            lay_out(net, rows, now = &pass, passes + k * length);
            memcpy(pass.values[0], last.values[0], rows * (net->widths[0] + 1) * sizeof(V));
        }
        forward(net, rows, phi, now, sums, logits);
        delta_of(p->loss, rows, out, logits, targets, now->deltas[layers - 1], now->shares, &loss);
        for (long l = 0; l < count; l++) p->support_losses[(first + l) * (steps + 1) + k] = loss[l];
        if (k == steps) break;
        back(net, rows, phi, now, sums);
        const REAL *given = p->rates + k * p->rate_columns;
        for (long i = 0; i < (rate_step ? P : 1); i++) rates[i] = scale * given[rate_step ? places[i] : 0];
        V *next = path + (k + 1) * P;
        FOR_LAYERS(net)
            descend(rows, in + 1, out, next + begin, now->values[l], now->deltas[l], phi + begin,
                    rates + begin * rate_step, rate_step);
    }
    if (!queries) {
        for (long l = 0; l < count; l++)
            for (long k = 0; k < steps; k++)
                for (long i = 0; i < P; i++)
                    p->trajectory[((first + l) * steps + k) * P + places[i]] = ((REAL *)(path + (k + 1) * P + i))[l];
        return;
    }

    const V *phi = path + steps * P;
    load_inputs(p->query_inputs, first, count, queries, queries, net->widths[0], last.values[0]);
    load_targets(p, p->query_targets, first, count, queries, query_targets);
    forward(net, queries, phi, &last, sums, logits);
    delta_of(p->loss, queries, out, logits, query_targets, last.deltas[layers - 1], last.shares, &loss);
    for (long l = 0; l < count; l++) {
        p->task_losses[first + l] = loss[l];
        for (long i = 0; i < queries * out; i++)
            p->predictions[(first + l) * queries * out + i] = ((REAL *)(logits + i))[l];
    }
    const REAL share = factor / ((REAL)p->tasks * (p->loss == CROSS_ENTROPY ? queries : queries * out));
    for (long i = 0; i < queries * out; i++) last.deltas[layers - 1][i] *= share;
    back(net, queries, phi, &last, sums);
    FOR_LAYERS(net) gradient_product(queries, in + 1, out, v + begin, last.values[l], last.deltas[l]);

    for (long k = steps - 1; k >= 0; k--) {
        lay_out(net, rows, &pass, passes + k * length);
        phi = path + k * P;
        double shared_rates = 0;
        if (p->rates_grad)
            FOR_LAYERS(net) {
                gradient_product(rows, in + 1, out, u + begin, pass.values[l], pass.deltas[l]);
                for (long a = begin; a < begin + (in + 1) * out; a += out) {
                    V row = {0};
                    double sum = 0;
                    for (long i = a; i < a + out; i++) row += u[i] *= v[i];
                    for (long t = 0; t < count; t++) {
                        sum += row[t];
                        if (rate_step)
                            for (long i = a; i < a + out; i++) of_rates[k * P + places[i]] -= scale * ((REAL *)(u + i))[t];
                    }
                    if (!rate_step) shared_rates -= scale * sum;
                }
            }
        if (p->rates_grad && !rate_step) of_rates[k] = (REAL)shared_rates;
        if (order == 1) continue;
        const REAL *rate = p->rates + k * p->rate_columns;
        if (rate_step)
            for (long i = 0; i < P; i++) u[i] = v[i] * (scale * rate[places[i]]);
        else
            scaled(P, u, v, scale * rate[0]);
        forward_tangents(net, rows, phi, u, &pass, &tangent, logits);
        delta_tangent_of(p->loss, rows, out, pass.shares, logits, tangent.deltas[layers - 1]);
        back_tangents(net, rows, phi, u, &pass, &tangent, sums, v);
    }
    for (long i = 0; i < P; i++) { /* the lanes behind the last task hold its copies */
        REAL sum = 0;
        for (long l = 0; l < count; l++) sum += ((REAL *)(v + i))[l];
        of_theta[places[i]] = sum;
    }
}

/* Of a group's tasks, at parameters [tasks, P] of their own: the losses over the support rows, the predictions, the
 * gradients and the Hessians times directions; what is 0 is left out. */
static void curvature_of_group(const Problem *p, const int32_t *places, long first, V *memory, const REAL *parameters,
                               const REAL *directions, REAL *gradients, REAL *products) {
    const Network *net = &p->net;
    const long P = parameters_of(net), rows = p->rows, layers = net->layers, out = net->widths[layers];
    const long left = p->tasks - first, count = left < LANES ? left : LANES;
    const REAL scale = (p->loss == MSE ? 2 : 1) / (REAL)(p->loss == CROSS_ENTROPY ? rows : rows * out);
    V *phi = memory, *u = phi + P, *v = u + P, *targets = v + P, *sums = targets + rows * out;
    V *logits = sums + rows * (widest_of(net) + 1), *at = logits + rows * (widest_of(net) + 1), loss;
    Pass pass, tangent;
    at += lay_out(net, rows, &pass, at);
    lay_out(net, rows, &tangent, at);

    for (long i = 0; i < P; i++)
        for (long l = 0; l < LANES; l++) {
            const long from = (first + (l < count ? l : count - 1)) * P + places[i];
            phi[i][l] = parameters[from];
            u[i][l] = directions ? -scale * directions[from] : 0;
            v[i][l] = 0;
        }
    load_targets(p, p->support_targets, first, count, rows, targets);
    load_inputs(p->support_inputs, first, count, rows, rows, net->widths[0], pass.values[0]);
    forward(net, rows, phi, &pass, sums, logits);
    delta_of(p->loss, rows, out, logits, targets, pass.deltas[layers - 1], pass.shares, &loss);
    for (long l = 0; l < count; l++) {
        p->support_losses[first + l] = loss[l];
        for (long i = 0; i < rows * out && p->predictions; i++)
            p->predictions[(first + l) * rows * out + i] = logits[i][l];
    }
    if (!gradients && !products) return;
    back(net, rows, phi, &pass, sums);
    if (products) {
        forward_tangents(net, rows, phi, u, &pass, &tangent, logits);
        delta_tangent_of(p->loss, rows, out, pass.shares, logits, tangent.deltas[layers - 1]);
        back_tangents(net, rows, phi, u, &pass, &tangent, sums, v);
    }
    if (gradients) FOR_LAYERS(net) gradient_product(rows, in + 1, out, u + begin, pass.values[l], pass.deltas[l]);
    for (long l = 0; l < count; l++)
        for (long i = 0; i < P; i++) {
            const long to = (first + l) * P + places[i];
            if (gradients) gradients[to] = scale * u[i][l];
            if (products) products[to] = v[i][l];
        }
}

/* For rules that the recursion does not know: of each task, at `parameters` [tasks, P] of its own, the support's mean
 * loss, into support_losses [tasks], predictions [tasks, rows, out], gradients [tasks, P], and products [tasks, P] of the
 * Hessian and `directions` [tasks, P]; of the problem it reads no rate, step or query, and the last three, or the
 * directions with the products, may be 0. Runs in one thread. Returns as `adapt`. */
int curvature(const Problem *p, const REAL *parameters, const REAL *directions, REAL *gradients, REAL *products) {
    if (!is_known(&p->net) || !IS_ONE_OF(p->loss, LOSSES) || (products && !directions)) return UNKNOWN;
    const long P = parameters_of(&p->net), out = p->net.widths[p->net.layers];
    if (p->loss == CROSS_ENTROPY && !all_below(p->support_targets, p->tasks * p->rows, out)) return OUT_OF_RANGE;
    Pass none;
    const long vectors = 3 * P + p->rows * (out + 2 * (widest_of(&p->net) + 1)) + 2 * lay_out(&p->net, p->rows, &none, 0);
    V *memory = memory_of(vectors * (long)sizeof(V));
    int32_t *places = malloc(P * sizeof *places);
    if (memory && places) {
        find_places(&p->net, places);
        for (long first = 0; first < p->tasks; first += LANES)
            curvature_of_group(p, places, first, memory, parameters, directions, gradients, products);
    }
    free(places);
    leave_memory();
    return memory && places ? DONE : NO_MEMORY;
}

/* one of RETURNS; out of range is a label */
int adapt(const Problem *p) {
    if (!is_known(&p->net) || !IS_ONE_OF(p->loss, LOSSES) || (p->order != 1 && p->order != 2)) return UNKNOWN;
    const long P = parameters_of(&p->net), groups = (p->tasks + LANES - 1) / LANES, R = p->steps * p->rate_columns;
    const long bytes = vectors_needed(p) * (long)sizeof(V);
    const long classes = p->net.widths[p->net.layers];
    if (p->loss == CROSS_ENTROPY && (!all_below(p->support_targets, p->tasks * p->rows, classes) ||
                                     !all_below(p->query_targets, p->tasks * p->queries, classes)))
        return OUT_OF_RANGE;
    const long each = P + (p->rates_grad ? R : 0);
    REAL *sums = calloc(groups * each, sizeof(REAL));
    int32_t *places = malloc(P * sizeof *places);
    int failed = !sums || !places;
    if (places) find_places(&p->net, places);
#pragma omp parallel num_threads(p->threads < groups ? p->threads : groups)
    {
#pragma omp for schedule(dynamic, 1)
        for (long g = 0; g < groups; g++) {
            V *memory = memory_of(bytes);
            if (!memory || !sums || !places) {
#pragma omp atomic write
                failed = 1;
            } else
                group(p, places, g * LANES, memory, sums + g * each, sums + g * each + P);
        }
        leave_memory();
    }
    for (long i = 0; i < each && !failed && p->queries; i++) {
        REAL sum = 0;
        for (long g = 0; g < groups; g++) sum += sums[g * each + i];
        *(i < P ? p->of_theta + i : p->of_rates + i - P) = sum;
    }
    free(sums);
    free(places);
    return failed ? NO_MEMORY : DONE;
}
