// One program adapts a task at a time: there, the query set, and the way back, in one launch. README.md has the formulas.
//
// Weights, tape, and the direction lie in shared memory, so far as it goes (plan.py). Sizes are the compiler's (-D): widths,
// rows of a tile, where things lie. A product is computed by all threads, each a block of TM x TN numbers in registers. Weights
// are matrices [in + 1, out] with the bias as the last row, their rows of odd length: no two lanes meet in a bank,
// whether they read a row or a column. Activations have a one behind them, tangents a zero.
//
// Node 0 are the inputs, node l what layer l gives, node LAYERS the logits.
enum { ACTIVATIONS };
enum { LOSSES };
#define INLINE __device__ __forceinline__
#define CONSTANT constexpr
constexpr bool FROM_SUM = ACTIVATION == GELU || ACTIVATION == SILU || ACTIVATION == SINE, CURVED = FROM_SUM || ACTIVATION == TANH;
constexpr bool BACK = QUERY && (ORDER == 2 || RATES_GRAD), LABELS = LOSS == CROSS_ENTROPY;
constexpr int TILES = (ROWS + TILE - 1) / TILE, QUERY_TILES = (QUERIES + TILE - 1) / TILE;

CONSTANT int width(int node) {
    constexpr int all[] = {WIDTHS};
    return all[node];
}
CONSTANT float frequency(int node) { // of the sine that gives a node
    constexpr float all[] = {0.f, FREQUENCIES};
    return all[node];
}
CONSTANT int matrix_row(int layer) { return width(layer + 1) | 1; }
CONSTANT int matrix(int layer) { // where it begins
    int sum = 0;
    for (int i = 0; i < layer; i++) sum += (width(i) + 1) * matrix_row(i);
    return sum;
}
CONSTANT int flat(int layer) { // as torch has them
    int sum = 0;
    for (int i = 0; i < layer; i++) sum += (width(i) + 1) * width(i + 1);
    return sum;
}
CONSTANT int row(int node) { return 4 * ((width(node) + 4) / 4 | 1); } // a one behind it; an odd number of 16 bytes
CONSTANT int node_at(int node) {
    int sum = 0;
    for (int i = 1; i < node; i++) sum += TILE * row(i);
    return sum;
}
constexpr int INPUTS = width(0), OUTPUTS = width(LAYERS), P = flat(LAYERS), WEIGHTS = (matrix(LAYERS) + 3) / 4 * 4;
constexpr int HIDDEN = node_at(LAYERS), PLAIN = HIDDEN + node_at(LAYERS + 1), TAPE = PLAIN + (FROM_SUM ? 2 * HIDDEN : 0);
constexpr int TARGETS = LABELS ? TILE : TILE * OUTPUTS;
constexpr int KEPT = WEIGHTS + TILES * TAPE; // of a step
// as constants, which no optimiser has to find
template <int NODE> constexpr int WIDTH = width(NODE);
template <int NODE> constexpr int ROW = row(NODE);
template <int NODE> constexpr int NODE_AT = node_at(NODE);
template <int NODE> constexpr float FREQUENCY = frequency(NODE);
template <int LAYER> constexpr int MATRIX = matrix(LAYER);
template <int LAYER> constexpr int MATRIX_ROW = matrix_row(LAYER);
template <int LAYER> constexpr int FLAT = flat(LAYER);
struct Tape {
    float *at;
    template <int NODE> INLINE float *hidden() const { return at + NODE_AT<NODE>; }
    template <int NODE> INLINE float *delta() const { return at + HIDDEN + NODE_AT<NODE>; }
    template <int NODE> INLINE float *slope() const { return at + PLAIN + NODE_AT<NODE>; }
    template <int NODE> INLINE float *bend() const { return at + PLAIN + HIDDEN + NODE_AT<NODE>; } // times what comes back
};

template <int I> struct Index {
    static constexpr int value = I;
};
template <int FIRST, int END, class F> INLINE void upwards(F f) {
    if constexpr (FIRST < END) f(Index<FIRST>()), upwards<FIRST + 1, END>(f);
}
template <int FIRST, int END, class F> INLINE void downwards(F f) {
    if constexpr (FIRST < END) f(Index<END - 1>()), downwards<FIRST, END - 1>(f);
}

// A matrix in memory: the steps from a row to the next, and from a column to the next.
template <int DOWN, int RIGHT> struct View {
    const float *at;
    static constexpr int down = DOWN, right = RIGHT;
};

struct Block {
    int tm, tn, m, n; // numbers of a thread; blocks of the whole
};
CONSTANT Block block_of(int M, int N) { // the fewest instructions of a thread
    Block best = {1, 1, M, N};
    int least = 1 << 30;
    for (int tm = 1; tm <= 16 && tm <= M; tm++)
        for (int tn = 1; tn <= 16 && tn <= N && tm * tn <= MOST_SUMS; tn++) {
            int m = (M + tm - 1) / tm, n = (N + tn - 1) / tn, rounds = (m * n + THREADS - 1) / THREADS;
            int cost = rounds * (tm * tn + tm + tn + 1);
            if (cost < least) least = cost, best = {tm, tn, m, n};
        }
    return best;
}
// Where TIMES rows or columns begin: what surely is one at a constant distance from the first, so that one address does
template <int COUNT, int TIMES, int APART, int STEP> struct Lines {
    const float *first, *edge[TIMES];
    INLINE Lines(const float *at, const int (&of)[TIMES]) : first(at + of[0] * STEP) {
#pragma unroll
        for (int i = 0; i < TIMES; i++) edge[i] = at + of[i] * STEP;
    }
    INLINE const float *operator[](int i) const { return (i + 1) * APART <= COUNT ? first + i * APART * STEP : edge[i]; }
    INLINE void operator+=(int numbers) {
        first += numbers;
#pragma unroll
        for (int i = 0; i < TIMES; i++) edge[i] += numbers;
    }
};
template <int M, int N, int K, int TM, int TN, class A, class B>
INLINE void add(float (&sum)[TM][TN], const A a, const B b, const int (&m)[TM], const int (&n)[TN]) {
    constexpr int WAYS = TM * TN < 4 ? 4 : 1; // a single chain of sums would wait for itself
    constexpr int four = 4 * (TM * TN + TM + TN), unroll = UNROLLED > four ? UNROLLED / four : 1;
    float parts[WAYS][TM][TN] = {};
    Lines<M, TM, (M + TM - 1) / TM, A::down> row(a.at, m);
    Lines<N, TN, (N + TN - 1) / TN, B::right> column(b.at, n);
    auto one = [&](float (&to)[TM][TN], int k) {
        float x[TM], y[TN];
#pragma unroll
        for (int i = 0; i < TM; i++) x[i] = row[i][k * A::right];
#pragma unroll
        for (int j = 0; j < TN; j++) y[j] = column[j][k * B::down];
#pragma unroll
        for (int i = 0; i < TM; i++)
#pragma unroll
            for (int j = 0; j < TN; j++) to[i][j] = fmaf(x[i], y[j], to[i][j]);
    };
#pragma unroll unroll
    for (int k = 0; k < K / 4; k++) {
#pragma unroll
        for (int way = 0; way < 4; way++) one(WAYS == 1 ? sum : parts[way % WAYS], way);
        row += 4 * A::right, column += 4 * B::down;
    }
#pragma unroll
    for (int k = 0; k < K % 4; k++) one(sum, k);
#pragma unroll
    for (int i = 0; i < TM; i++)
#pragma unroll
        for (int j = 0; j < TN; j++)
            if (WAYS > 1) sum[i][j] += parts[0][i][j] + parts[1 % WAYS][i][j] + (parts[2 % WAYS][i][j] + parts[3 % WAYS][i][j]);
}
// done(m, n, start(n) + sum over k of a(m, k) b(k, n), and of a2, b2; before(m, n)), for all m and n
template <int M, int N, int K, int K2, class Start, class A, class B, class A2, class B2, class Before, class Done>
INLINE void product(Start start, A a, B b, A2 a2, B2 b2, Before before, Done done) {
    constexpr Block block = block_of(M, N);
    constexpr int TM = block.tm, TN = block.tn;
#pragma unroll 1
    for (int item = threadIdx.x; item < block.m * block.n; item += THREADS) {
        const int first_m = item / block.n, first_n = item % block.n;
        int m[TM], n[TN]; // what is out of bounds reads what is the thread's own
        float sum[TM][TN], old[TM][TN];
#pragma unroll
        for (int i = 0; i < TM; i++) m[i] = (i + 1) * block.m <= M || first_m + i * block.m < M ? first_m + i * block.m : first_m;
#pragma unroll
        for (int j = 0; j < TN; j++) n[j] = (j + 1) * block.n <= N || first_n + j * block.n < N ? first_n + j * block.n : first_n;
#pragma unroll
        for (int j = 0; j < TN; j++) {
            const float of_column = start(n[j]);
#pragma unroll
            for (int i = 0; i < TM; i++) sum[i][j] = of_column;
        }
        add<M, N, K>(sum, a, b, m, n);
        if constexpr (K2 > 0) add<M, N, K2>(sum, a2, b2, m, n);
#pragma unroll
        for (int i = 0; i < TM; i++)
#pragma unroll
            for (int j = 0; j < TN; j++) old[i][j] = before(m[i], n[j]); // all at once: a store would keep loads waiting
#pragma unroll
        for (int i = 0; i < TM; i++)
#pragma unroll
            for (int j = 0; j < TN; j++)
                if (first_m + i * block.m < M && first_n + j * block.n < N) done(m[i], n[j], sum[i][j], old[i][j]);
    }
}
struct Zero {
    INLINE float operator()(int, int = 0) const { return 0.f; }
};

// As functions.h has it, up to 6e6, without a branch or libdevice's array in local memory. Beyond that the next number is half
// a radian away, and what is given are the sine and the cosine of some angle.
INLINE float sine_of(float x, float &cosine) {
    const float shifted = fmaf(x, 0.636619772f, 12582912.f), n = shifted - 12582912.f; // whole: 1.5 * 2^23 has no finer bits
    float r = fmaf(n, -7.54978995489e-8f, fmaf(n, -4.837512969970703125e-4f, fmaf(n, -1.5703125f, x)));
    r = fabsf(r) > 1.f ? 0.f : r; // NaN stays
    const float z = r * r;
    float s = -1.9515295891e-4f, c = 2.443315711809948e-5f;
    s = fmaf(s, z, 8.3321608736e-3f), s = fmaf(s, z, -1.6666654611e-1f), s = fmaf(s * z, r, r);
    c = fmaf(c, z, -1.388731625493765e-3f), c = fmaf(c, z, 4.166664568298827e-2f), c = fmaf(c * z, z, fmaf(z, -0.5f, 1.f));
    const int quarter = __float_as_int(shifted);
    const float sine = quarter & 1 ? c : s, other = quarter & 1 ? s : c;
    cosine = (quarter + 1) & 2 ? -other : other;
    return quarter & 2 ? -sine : sine;
}
// of a value that goes into a node, the activation, its first and its second derivative
template <int NODE> INLINE void activate(float s, float &h, float &slope, float &bend) {
    h = s, slope = 1.f, bend = 0.f;
    if constexpr (ACTIVATION == RELU) h = s < 0.f ? 0.f : s; // NaN stays
    if constexpr (ACTIVATION == TANH) h = tanhf(s);
    if constexpr (ACTIVATION == GELU) {
        const float density = 0.3989422804014327f * expf(-0.5f * s * s), share = 0.5f + 0.5f * erff(s * 0.7071067811865476f);
        h = s * share, slope = share + s * density, bend = density * (2.f - s * s);
    }
    if constexpr (ACTIVATION == SILU) {
        const float share = 1.f / (1.f + expf(-s));
        h = s * share, slope = share + h * (1.f - share), bend = share * (1.f - share) * (2.f + s * (1.f - 2.f * share));
    }
    if constexpr (ACTIVATION == SINE) {
        constexpr float w = FREQUENCY<NODE>;
        h = sine_of(w * s, slope), slope *= w, bend = -w * w * h;
    }
}
// What a slope is known from: itself, or the activation
template <int NODE> INLINE float before_slope(Tape t, int o) { return FROM_SUM ? t.slope<NODE>()[o] : t.hidden<NODE>()[o]; }
INLINE float slope_of(float h) {
    return ACTIVATION == RELU ? (h > 0.f ? 1.f : 0.f) : ACTIVATION == TANH ? 1.f - h * h : FROM_SUM ? h : 1.f;
}
template <int NODE> INLINE float bend_at(Tape t, int o, float h) { // times what comes back to the activation
    return FROM_SUM ? t.bend<NODE>()[o] : -2.f * h * t.delta<NODE>()[o];
}

// The parameters as torch has them: f(where in the matrices, where in torch's row)
template <class F> INLINE void each_parameter(F f) {
    upwards<0, LAYERS>([&](auto layer) {
        constexpr int L = layer.value, K = WIDTH<L>, C = WIDTH<L + 1>;
        for (int e = threadIdx.x; e < K * C; e += THREADS) f(MATRIX<L> + e % K * MATRIX_ROW<L> + e / K, FLAT<L> + e);
        for (int c = threadIdx.x; c < C; c += THREADS) f(MATRIX<L> + K * MATRIX_ROW<L> + c, FLAT<L> + K * C + c);
    });
}
template <int L> INLINE int in_torchs_row(int i, int c) {
    return FLAT<L> + (i < WIDTH<L> ? c * WIDTH<L> + i : WIDTH<L> * WIDTH<L + 1> + c);
}
template <int NUMBERS> INLINE void copy(float *into, const float *from) { // 16 bytes at a time, several on their way
    constexpr int COUNT = NUMBERS / 4, AT_ONCE = 8;
    const float4 *source = reinterpret_cast<const float4 *>(from);
    float4 *target = reinterpret_cast<float4 *>(into), held[AT_ONCE];
#pragma unroll 1
    for (int first = threadIdx.x; first < COUNT; first += AT_ONCE * THREADS) {
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) held[i] = source[min(first + i * THREADS, COUNT - 1)];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++)
            if (first + i * THREADS < COUNT) target[first + i * THREADS] = held[i];
    }
}

// The sum of what all threads have in parts, by the last warp: behind a barrier
INLINE void total(const float *parts, float factor, float *into) {
    if (threadIdx.x < THREADS - 32) return;
    float sum = 0.f;
    for (int i = threadIdx.x % 32; i < THREADS; i += 32) sum += parts[i];
    for (int lane = 16; lane; lane /= 2) sum += __shfl_xor_sync(~0u, sum, lane);
    if (threadIdx.x % 32 == 0) *into = sum * factor;
}

// The rows from ``first`` on into a tile, zeros behind the last
INLINE void load_rows(float *x, float *y, const float *inputs, const void *targets, int first, int rows) {
#pragma unroll 8
    for (int e = threadIdx.x; e < TILE * (INPUTS + 1); e += THREADS) {
        const int r = e / (INPUTS + 1), i = e % (INPUTS + 1), from = first + r;
        x[r * ROW<0> + i] = from < rows ? (i < INPUTS ? inputs[from * INPUTS + i] : 1.f) : 0.f;
    }
    for (int e = threadIdx.x; e < TARGETS; e += THREADS) {
        const int from = first * (TARGETS / TILE) + e;
        const bool there = from < rows * (TARGETS / TILE);
        if constexpr (LABELS)
            y[e] = __int_as_float(there ? (int)static_cast<const long long *>(targets)[from] : 0);
        else
            y[e] = there ? static_cast<const float *>(targets)[from] : 0.f;
    }
}

// Lanes that have a row of logits in common, and f(row, their first column) for all rows
constexpr int LANES = OUTPUTS > 16 ? 32 : OUTPUTS > 8 ? 16 : OUTPUTS > 4 ? 8 : OUTPUTS > 2 ? 4 : 2;
template <class F> INLINE void each_row(F f) {
    for (int first = 0; first < TILE; first += THREADS / LANES) {
        const int r = first + threadIdx.x / LANES;
        f(r, threadIdx.x % LANES, r < TILE); // all lanes take part in sums
    }
}
INLINE float sum_of_lanes(float value) {
    for (int lane = LANES / 2; lane; lane /= 2) value += __shfl_xor_sync(~0u, value, lane);
    return value;
}

// Activations; the task's loss, of which each thread adds its part; gradients at the logits
template <class Predicted>
INLINE float forward(const float *x, const float *y, const float *w, Tape t, int rows_here, int rows, Predicted predicted) {
    float part = 0.f;
    const float scale = 1.f / (LABELS ? rows : rows * OUTPUTS);
    upwards<0, LAYERS>([&](auto layer) {
        constexpr int L = layer.value, K = WIDTH<L>, C = WIDTH<L + 1>, W = MATRIX_ROW<L>, R = ROW<L + 1>;
        const float *from = L ? t.hidden<L>() : x, *weights = w + MATRIX<L>;
        float *delta = t.delta<L + 1>();
        View<ROW<L>, 1> a{from};
        View<W, 1> b{weights};
        product<TILE, C, K, 0>([&](int n) { return weights[K * W + n]; }, a, b, a, b, Zero(), [&](int r, int c, float s, float) {
            const int o = r * R + c;
            if constexpr (L + 1 < LAYERS) {
                float h, slope, bend;
                activate<L + 1>(s, h, slope, bend);
                t.hidden<L + 1>()[o] = h;
                if constexpr (FROM_SUM) t.slope<L + 1>()[o] = slope, t.bend<L + 1>()[o] = bend;
                if (c == C - 1) t.hidden<L + 1>()[o + 1] = 1.f;
                return;
            }
            predicted(r, c, s);
            const bool there = r < rows_here;
            if constexpr (LABELS) {
                delta[o] = s;
            } else if constexpr (LOSS == MSE) {
                const float off = there ? s - y[r * OUTPUTS + c] : 0.f;
                part = fmaf(off, off, part);
                delta[o] = 2.f * scale * off;
            } else {
                const float e = expf(-fabsf(s)), target = y[r * OUTPUTS + c];
                if (there) part += fmaxf(s, 0.f) - s * target + log1pf(e);
                delta[o] = there ? scale * ((s < 0.f ? e : 1.f) / (1.f + e) - target) : 0.f;
            }
        });
        if (L + 1 < LAYERS || LABELS) __syncthreads();
    });
    if constexpr (LABELS) {
        float *logits = t.delta<LAYERS>();
        each_row([&](int r, int first, bool mine) {
            float most = __int_as_float(0xff800000), sum = 0.f, *z = logits + r * ROW<LAYERS>;
            for (int c = first; c < OUTPUTS && mine; c += LANES) most = fmaxf(most, z[c]);
            for (int lane = LANES / 2; lane; lane /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, lane));
            for (int c = first; c < OUTPUTS && mine; c += LANES) sum += expf(z[c] - most);
            sum = sum_of_lanes(sum);
            const int label = mine ? __float_as_int(y[r]) : 0;
            const float valid = label < 0 || label >= OUTPUTS ? __int_as_float(0x7fc00000) : 1.f;
            for (int c = first; c < OUTPUTS && mine; c += LANES) {
                const float off = z[c] - most, p = valid * expf(off) / sum;
                if (c == label && r < rows_here) part += logf(sum) - off;
                z[c] = r < rows_here ? scale * (p - (c == label)) : 0.f;
            }
            if (first == 0 && mine && r < rows_here) part *= valid;
        });
    }
    return part;
}

// Gradients at the sums, from those at the logits
INLINE void back(const float *w, Tape t) {
    downwards<1, LAYERS>([&](auto layer) {
        constexpr int L = layer.value, K = WIDTH<L>, C = WIDTH<L + 1>, W = MATRIX_ROW<L>, R = ROW<L>;
        View<ROW<L + 1>, 1> a{t.delta<L + 1>()};
        View<1, W> b{w + MATRIX<L>};
        const auto before = [&](int r, int i) { return before_slope<L>(t, r * R + i); };
        product<TILE, K, C, 0>(Zero(), a, b, a, b, before, [&](int r, int i, float s, float h) {
            const int o = r * R + i;
            t.delta<L>()[o] = s * slope_of(h);
            if constexpr (FROM_SUM) t.bend<L>()[o] *= s;
        });
        __syncthreads();
    });
}

// done(layer, row, column, where in the matrices, the sum) of [h 1]^T d
template <class Done> INLINE void gradients(const float *x, Tape t, const float *old, Done done) {
    upwards<0, LAYERS>([&](auto layer) {
        constexpr int L = layer.value, K = WIDTH<L>, C = WIDTH<L + 1>;
        View<1, ROW<L>> a{L ? t.hidden<L>() : x};
        View<ROW<L + 1>, 1> b{t.delta<L + 1>()};
        const auto at = [&](int i, int c) { return MATRIX<L> + i * MATRIX_ROW<L> + c; };
        const auto before = [&](int i, int c) { return old[at(i, c)]; };
        product<K + 1, C, TILE, 0>(Zero(), a, b, a, b, before, [&](int i, int c, float s, float w) {
            done(layer, i, c, at(i, c), s, w);
        });
    });
}

// Tangents along u: of activations, and of gradients at the sums, which for a while hold f'' e Rs
INLINE void tangents(const float *x, const float *y, const float *w, const float *u, Tape t, Tape of, int rows_here) {
    constexpr float scale = 1.f / (LABELS ? ROWS : ROWS * OUTPUTS), terms = LABELS ? ROWS : ROWS * OUTPUTS;
    upwards<0, LAYERS>([&](auto layer) {
        constexpr int L = layer.value, K = WIDTH<L>, C = WIDTH<L + 1>, W = MATRIX_ROW<L>, R = ROW<L + 1>;
        const float *direction = u + MATRIX<L>;
        View<ROW<L>, 1> a{L ? t.hidden<L>() : x}, a2{L ? of.hidden<L>() : x};
        View<W, 1> b{direction}, b2{w + MATRIX<L>};
        const auto before = [&](int r, int c) {
            if constexpr (L + 1 < LAYERS) return before_slope<L + 1>(t, r * R + c);
            return LABELS ? 0.f : t.delta<L + 1>()[r * R + c];
        };
        const auto start = [&](int c) { return direction[K * W + c]; };
        product<TILE, C, K, L ? K : 0>(start, a, b, a2, b2, before, [&](int r, int c, float s, float h) {
            const int o = r * R + c;
            if constexpr (L + 1 < LAYERS) {
                of.hidden<L + 1>()[o] = s * slope_of(h);
                if (c == C - 1) of.hidden<L + 1>()[o + 1] = 0.f;
                if constexpr (CURVED) of.delta<L + 1>()[o] = s * bend_at<L + 1>(t, o, h);
            } else if constexpr (LABELS) {
                of.delta<L + 1>()[o] = s;
            } else if constexpr (LOSS == MSE) {
                of.delta<L + 1>()[o] = r < rows_here ? 2.f * scale * s : 0.f;
            } else {
                const float p = h * terms + y[r * OUTPUTS + c];
                of.delta<L + 1>()[o] = r < rows_here ? scale * p * (1.f - p) * s : 0.f;
            }
        });
        __syncthreads();
    });
    if constexpr (LABELS) {
        each_row([&](int r, int first, bool mine) {
            float sum = 0.f, *tangent = of.delta<LAYERS>() + r * ROW<LAYERS>;
            const float *delta = t.delta<LAYERS>() + r * ROW<LAYERS>;
            const int label = mine ? __float_as_int(y[r]) : 0;
            for (int c = first; c < OUTPUTS && mine; c += LANES) sum += (delta[c] * terms + (c == label)) * tangent[c];
            sum = sum_of_lanes(sum);
            for (int c = first; c < OUTPUTS && mine; c += LANES) {
                const float p = delta[c] * terms + (c == label);
                tangent[c] = r < rows_here ? scale * p * (tangent[c] - sum) : 0.f;
            }
        });
        __syncthreads();
    }
    downwards<1, LAYERS>([&](auto layer) {
        constexpr int L = layer.value, K = WIDTH<L>, C = WIDTH<L + 1>, W = MATRIX_ROW<L>, R = ROW<L>;
        View<ROW<L + 1>, 1> a{of.delta<L + 1>()}, a2{t.delta<L + 1>()};
        View<1, W> b{w + MATRIX<L>}, b2{u + MATRIX<L>};
        const auto before = [&](int r, int i) { return before_slope<L>(t, r * R + i); };
        product<TILE, K, C, C>(Zero(), a, b, a2, b2, before, [&](int r, int i, float s, float h) {
            const int o = r * R + i;
            of.delta<L>()[o] = (CURVED ? of.delta<L>()[o] : 0.f) + s * slope_of(h);
        });
        __syncthreads();
    });
}

// done(...) of [h 1]^T Rd + [Rh 0]^T d, which is the Hessian's product with the direction
template <class Done> INLINE void hessian(const float *x, Tape t, Tape of, const float *old, Done done) {
    upwards<0, LAYERS>([&](auto layer) {
        constexpr int L = layer.value, K = WIDTH<L>, C = WIDTH<L + 1>;
        View<1, ROW<L>> a{L ? t.hidden<L>() : x}, a2{L ? of.hidden<L>() : x};
        View<ROW<L + 1>, 1> b{of.delta<L + 1>()}, b2{t.delta<L + 1>()};
        const auto at = [&](int i, int c) { return MATRIX<L> + i * MATRIX_ROW<L> + c; };
        const auto before = [&](int i, int c) { return old[at(i, c)]; };
        product<K + 1, C, TILE, L ? TILE : 0>(Zero(), a, b, a2, b2, before, [&](int i, int c, float s, float v) {
            done(at(i, c), s, v);
        });
    });
}

// What a sum over tiles is by now: of all of them once it has seen the last
INLINE float over_tiles(float *sums, int o, float s, int tile, int tiles) {
    if (tile) s += sums[o];
    if (tile + 1 < tiles) sums[o] = s;
    return s;
}

extern __shared__ float4 global_smem[];
extern "C" __global__ void __launch_bounds__(THREADS) mlp_adapt(
    const float *__restrict__ theta,          // [P]
    const float *__restrict__ rates,          // [m, 1] or [m, P]
    const float *__restrict__ support_inputs, // [T, N, in]
    const void *__restrict__ support_targets, // [T, N, out], labels [T, N]
    const float *__restrict__ query_inputs,   // [T, Nq, in]
    const void *__restrict__ query_targets,
    float *task_losses,    // [T]
    float *predictions,    // [T, Nq, out]
    float *support_losses, // [T, m + 1]
    float *of_theta,       // [T, P]
    float *of_rates,       // [T, m] or [T, m, P]
    float *trajectory,     // [T, m, P]
    float *scratch,        // [programs, numbers]
    int tasks, int steps, int numbers) {
    // in the order in which they have their place in shared memory; what has none there lies in scratch
    float *place = reinterpret_cast<float *>(global_smem), *far = scratch + (long long)blockIdx.x * numbers;
    auto take = [&](int length) { return (place += length) - length; };
    auto take_far = [&](int length) { return (far += length) - length; };
    constexpr bool NEAR = ARCHIVE == 1, FAR = ARCHIVE == 2; // where the last steps are kept
    float *parts = take(THREADS), *x = take(TILE * ROW<0>), *y = take((TARGETS + 3) / 4 * 4);
    float *phis = take((NEAR ? SEGMENT + 1 : 1) * WEIGHTS), *tapes = take((NEAR ? SEGMENT * TILES : FAR) * TAPE), *spare = take(TAPE);
    float *v = !QUERY ? phis : V_SHARED ? take(WEIGHTS) : take_far(WEIGHTS);
    float *sums = TILES == 1 ? phis : SUMS_SHARED ? take(WEIGHTS) : take_far(WEIGHTS);
    float *u = !(BACK && OWN_RATES && ORDER == 2) ? v : U_SHARED ? take(WEIGHTS) : take_far(WEIGHTS);
    float *archive = take_far(FAR ? SEGMENT * KEPT : 0), *checkpoints = far;
    const int segments = BACK ? max(1, (steps + SEGMENT - 1) / SEGMENT) : 1;
    auto weights_at = [&](int step) { return NEAR ? phis + step % (SEGMENT + 1) * WEIGHTS : phis; };
    auto tape_at = [&](int step, int tile) { return Tape{NEAR ? tapes + (step % SEGMENT * TILES + tile) * TAPE : tapes}; };
    auto kept_at = [&](int step) { return archive + step % SEGMENT * KEPT; };

    // nothing depends on padding, but loads of several numbers at once may touch it
    auto clear = [&](float *from, int length) {
        for (int i = 4 * threadIdx.x; i < length; i += 4 * THREADS) *reinterpret_cast<float4 *>(from + i) = float4{};
    };
    clear(parts, place - parts);
    if (QUERY && !V_SHARED) clear(v, WEIGHTS);
    if (u != v && !U_SHARED) clear(u, WEIGHTS);
#pragma unroll 1
    for (int task = blockIdx.x; task < tasks; task += gridDim.x) {
        const float *inputs = support_inputs + (long long)task * ROWS * INPUTS;
        const float *asked = query_inputs + (long long)task * QUERIES * INPUTS;
        const void *targets, *wanted;
        if constexpr (LABELS) {
            targets = static_cast<const long long *>(support_targets) + (long long)task * ROWS;
            wanted = static_cast<const long long *>(query_targets) + (long long)task * QUERIES;
        } else {
            targets = static_cast<const float *>(support_targets) + (long long)task * ROWS * OUTPUTS;
            wanted = static_cast<const float *>(query_targets) + (long long)task * QUERIES * OUTPUTS;
        }
        int loaded = -1; // the tile in x and y, those of the query set behind the support set's
        auto load = [&](int tile, bool query) {
            if (loaded == tile + query * TILES) return;
            loaded = tile + query * TILES;
            load_rows(x, y, query ? asked : inputs, query ? wanted : targets, tile * TILE, query ? QUERIES : ROWS);
            __syncthreads();
        };
        // all steps and the query set; then segments of steps from the last to the first, all but the last computed again
#pragma unroll 1
        for (int segment = segments - 1; segment >= 0; segment--) {
            const bool again = segment < segments - 1;
            const int begin = again ? segment * SEGMENT : 0;
            const int end = segment == segments - 1 ? steps : begin + SEGMENT;
            __syncthreads();
            if (begin == 0)
                each_parameter([&](int o, int e) { weights_at(0)[o] = theta[e]; });
            else
                copy<WEIGHTS>(weights_at(begin), checkpoints + (segment - 1) * WEIGHTS);
            __syncthreads();
#pragma unroll 1
            for (int pass = begin; pass < (again ? end : steps + 1 + QUERY); pass++) {
                const bool asks = pass > steps, adapts = pass < steps && !(again && pass + 1 == end);
                const int tiles = asks ? QUERY_TILES : TILES, rows = asks ? QUERIES : ROWS, step = min(pass, steps);
                float *w = weights_at(step), *next = weights_at(step + 1), part = 0.f;
                const float shared_rate = !OWN_RATES && pass < steps ? rates[step] : 0.f;
                const bool keeps = BACK && pass < steps && pass / SEGMENT == segment;
                if (BACK && !again && pass && pass % SEGMENT == 0 && pass / SEGMENT < segments - 1)
                    copy<WEIGHTS>(checkpoints + (pass / SEGMENT - 1) * WEIGHTS, w);
                if (FAR && keeps) copy<WEIGHTS>(kept_at(step), w);
#pragma unroll 1
                for (int tile = 0; tile < tiles; tile++) {
                    const Tape t = NEAR && pass < steps ? tape_at(step, tile) : Tape{spare};
                    const int here = min(TILE, rows - tile * TILE);
                    load(tile, asks);
                    part += forward(x, y, w, t, here, rows, [&](int r, int c, float z) {
                        if (asks && r < here) predictions[((long long)task * QUERIES + tile * TILE + r) * OUTPUTS + c] = z;
                    });
                    if (tile + 1 == tiles) parts[threadIdx.x] = part;
                    __syncthreads();
                    if (tile + 1 == tiles && !again)
                        total(parts, 1.f / (LABELS ? rows : rows * OUTPUTS), asks ? task_losses + task : support_losses + task * (steps + 1) + step);
                    if (pass == steps) continue;
                    back(w, t);
                    if (FAR && keeps) copy<TAPE>(kept_at(step) + WEIGHTS + tile * TAPE, t.at);
                    if (adapts || asks)
                        gradients(x, t, w, [&](auto layer, int i, int c, int o, float s, float old) {
                            if (asks) {
                                v[o] = tile ? v[o] + s : s;
                                return;
                            }
                            const float sum = over_tiles(sums, o, s, tile, TILES);
                            const float rate = OWN_RATES ? rates[step * P + in_torchs_row<layer.value>(i, c)] : shared_rate;
                            if (tile + 1 == TILES) next[o] = old - rate * sum;
                        });
                    __syncthreads();
                }
                if (!QUERY && pass < steps)
                    each_parameter([&](int o, int e) { trajectory[((long long)task * steps + step) * P + e] = next[o]; });
            }
            if constexpr (BACK) {
#pragma unroll 1
                for (int step = end - 1; step >= segment * SEGMENT; step--) {
                    float *w = weights_at(step), of_rate = 0.f;
                    const float shared_rate = OWN_RATES ? 1.f : rates[step];
                    if (FAR) copy<WEIGHTS>(w, kept_at(step));
                    if (u != v) each_parameter([&](int o, int e) { u[o] = rates[step * P + e] * v[o]; });
                    if (!FAR && (u != v || ORDER == 1)) __syncthreads();
#pragma unroll 1
                    for (int tile = 0; tile < TILES; tile++) {
                        const Tape t = tape_at(step, tile), of{spare};
                        const int here = min(TILE, ROWS - tile * TILE);
                        if (FAR) {
                            copy<TAPE>(t.at, kept_at(step) + WEIGHTS + tile * TAPE);
                            __syncthreads();
                        }
                        load(tile, false);
                        if constexpr (ORDER == 2) tangents(x, y, w, u, t, of, here);
                        if constexpr (RATES_GRAD)
                            gradients(x, t, v, [&](auto layer, int i, int c, int o, float s, float of) {
                                if constexpr (OWN_RATES) {
                                    float *into = of_rates + ((long long)task * steps + step) * P + in_torchs_row<layer.value>(i, c);
                                    *into = tile ? *into - s * of : -s * of;
                                } else {
                                    of_rate -= s * of;
                                }
                            });
                        if constexpr (ORDER == 2)
                            hessian(x, t, of, v, [&](int o, float s, float old) {
                                const float sum = over_tiles(sums, o, s, tile, TILES);
                                if (tile + 1 == TILES) v[o] = old - shared_rate * sum;
                            });
                        if (RATES_GRAD && !OWN_RATES && tile + 1 == TILES) parts[threadIdx.x] = of_rate;
                        __syncthreads();
                    }
                    if (RATES_GRAD && !OWN_RATES) total(parts, 1.f, of_rates + task * steps + step);
                }
            }
        }
        if (QUERY) each_parameter([&](int o, int e) { of_theta[(long long)task * P + e] = v[o]; });
    }
}
