/* What both sources of mlp_adapt are given, as native.py fills it; Network is of functions.h. */
typedef enum { LOSSES } Loss;

typedef struct {
    int64_t tasks, rows, queries, steps, loss, order, rates_grad, rate_columns, threads;
    Network net;
    const REAL *theta, *rates, *support_inputs, *query_inputs;
    const void *support_targets, *query_targets; /* int64 labels for the cross-entropy */
    REAL *task_losses, *predictions, *support_losses, *of_theta, *of_rates, *trajectory;
} Problem;

int64_t size_of_problem(void) { return sizeof(Problem); }
