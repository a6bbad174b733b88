/* Activations, number by number, in loops that compilers turn into vector instructions. */
#include "vectors.h"

typedef enum { ACTIVATIONS } Activation;

/* The layers of a perceptron. */
typedef struct {
    int64_t layers, activation, widths[LAYERS + 1];
    double frequencies[LAYERS]; /* of the sine behind each hidden layer */
} Network;

static int is_known(const Network *net) {
    return net->layers >= 1 && net->layers <= LAYERS && IS_ONE_OF(net->activation, ACTIVATIONS);
}

/* Whether its slopes vary: then a pass keeps them, and the second derivatives. */
static int is_curved(int64_t activation) { return activation != IDENTITY && activation != RELU; }

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
/* Three parts of pi / 2, whose products with whole numbers are exact: up to FAR the rest is. */
#define FAR 8192
INLINE float sine_single(float x, float *cosine) {
    float n = rintf(x * 0.636619772f), r = x - n * 1.5703125f - n * 4.837512969970703125e-4f - n * 7.54978995489e-8f;
    float z = r * r, s = -1.9515295891e-4f, c = 2.443315711809948e-5f;
    s = s * z + 8.3321608736e-3f;
    s = s * z - 1.6666654611e-1f;
    s = s * z * r + r;
    c = c * z - 1.388731625493765e-3f;
    c = c * z + 4.166664568298827e-2f;
    c = c * z * z - z * 0.5f + 1;
    int32_t quarter = (int32_t)n;
    float sine = quarter & 1 ? c : s, other = quarter & 1 ? s : c;
    *cosine = (quarter + 1) & 2 ? -other : other;
    return quarter & 2 ? -sine : sine;
}

/* Whether all are at most `most` away from 0; a NaN is near, whose sine is NaN in any case. */
static int all_near(long n, const REAL *x, REAL most) {
    INTEGER far = 0;
    for (long i = 0; i < n; i++) far |= (x[i] < 0 ? -x[i] : x[i]) > most;
    return !far;
}

/* a [n] = sin(frequency * s), and its derivatives by s */
static void sines(REAL frequency, long n, const REAL *s, REAL *a, REAL *d, REAL *dd) {
    const REAL square = frequency * frequency;
    if (IS_SINGLE && all_near(n, s, FAR / (frequency < 0 ? -frequency : frequency)))
        for (long i = 0; i < n; i++) {
            float cosine, sine = sine_single((float)(frequency * s[i]), &cosine);
            a[i] = sine, d[i] = frequency * cosine, dd[i] = -square * sine;
        }
    else
        for (long i = 0; i < n; i++) {
            a[i] = (REAL)sin(frequency * s[i]);
            d[i] = frequency * (REAL)cos(frequency * s[i]);
            dd[i] = -square * a[i];
        }
}

/* a [n] = the activations of sums s; where they are curved, their slopes d and second derivatives dd */
INLINE void activate_numbers(Activation kind, REAL frequency, long n, const REAL *s, REAL *a, REAL *d, REAL *dd) {
    switch (kind) {
        case IDENTITY: memcpy(a, s, n * sizeof(REAL)); break;
        case RELU:
            for (long i = 0; i < n; i++) a[i] = s[i] < 0 ? 0 : s[i]; /* as torch, NaN stays NaN */
            break;
        case TANH:
            for (long i = 0; i < n; i++) {
                a[i] = TANH(s[i]);
                d[i] = 1 - a[i] * a[i];
                dd[i] = -2 * a[i] * d[i];
            }
            break;
        case GELU:
            for (long i = 0; i < n; i++) {
                REAL density = EXP(s[i] * s[i] * (REAL)-0.5) * (REAL)0.3989422804014326779;
                REAL below = ERFC(s[i] * (REAL)-0.7071067811865475244) * (REAL)0.5;
                a[i] = s[i] * below;
                d[i] = below + s[i] * density;
                dd[i] = density * (2 - s[i] * s[i]);
            }
            break;
        case SILU:
            for (long i = 0; i < n; i++) {
                REAL small = EXP(s[i] < 0 ? s[i] : -s[i]), share = (s[i] < 0 ? small : 1) / (1 + small);
                a[i] = s[i] * share;
                d[i] = share * (1 + s[i] * (1 - share));
                dd[i] = share * (1 - share) * (2 + s[i] * (1 - 2 * share));
            }
            break;
        case SINE: sines(frequency, n, s, a, d, dd);
    }
}
