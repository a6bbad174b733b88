/* Executes decoded PTX (ptx.py): one program (CTA) at a time, warps of 32 lanes with a reconvergence stack.
   Watches every access to memory: races between barriers, memory never written, bounds, alignment. Counts, and keeps a
   clock. The marks for definitions and cases are filled in by engine.py. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* what of operations.py and engine.py is a number here */
/*@DEFINES@*/

typedef struct {
    int32_t op, guard, neg, nd, ns, d[4], s[12], width, vec, wide, rwide, target, reconv, cls, trans, ud[4], us[13],
        nus, imm;
} Ins;

typedef struct { /* what is known about four bytes of global or two bytes of shared memory */
    uint32_t wepoch, repoch;
    uint8_t wwarp, rmask, wlane, init;
    uint32_t wsync, wtick;
    int32_t wpc, rpc, wcta, rcta;
} Shadow;

typedef struct {
    int32_t kind, pc, pc2, warp, warp2, lane, cta;
    int64_t address, count;
} Finding;

typedef struct {
    const Ins *code;
    int32_t n, warps, nr, nq, np_, nu;
    const uint32_t *init_r;
    const uint64_t *init_q;
    const uint32_t *init_p; /* constants, poison elsewhere */
    int32_t tid_x, laneid;  /* registers of %tid.x and %laneid, or -1 */
    uint8_t *global;
    uint64_t gbase;
    int64_t gsize;
    const uint8_t *region;
    Shadow *gshadow; /* region of four bytes: 0 none, 1 readable, 3 writable too */
    uint8_t *shared;
    uint32_t sbase;
    int32_t ssize;
    Shadow *sshadow;
    int64_t *count, *lanes, *sectors, *wavefronts, *missed; /* of each instruction */
    uint32_t *l1;                                           /* of each sector: in which program it was last loaded */
    int64_t *stall;                                 /* cycles that warps waited for what each instruction makes */
    const int32_t *latency, *cost;                  /* of each class */
    int32_t far_latency, bar_latency, rz, operands; /* of tf32: 0 cut off, 1 rounded, 2 as they are */
    uint32_t epoch, l1_stamp;
    Finding *findings;
    int32_t nfindings;
    int64_t barriers, cycles, slots, instructions, most;
} Emulator;

typedef struct {
    int32_t pc, rpc;
    uint32_t mask;
} Level;

typedef struct {
    int32_t group, bytes, pc, lane;
    uint64_t to;
    int64_t there;
    uint8_t data[16];
} Copy; /* cp.async on its way */

typedef struct {
    Copy *copies;
    int32_t ncopies, most_copies, group;
    uint32_t *r;
    uint64_t *q;
    uint32_t *p;
    int64_t *ready;
    int32_t *maker; /* when a register is there, and which instruction makes it */
    Level stack[64];
    int32_t depth, id, state, barrier_pc; /* state 0 runs, 1 waits, 2 has ended */
    uint32_t sync;
    int64_t clock, slots;
} Warp;

static inline float F(uint32_t a) {
    float f;
    memcpy(&f, &a, 4);
    return f;
}
static inline uint32_t B(float f) {
    uint32_t a;
    memcpy(&a, &f, 4);
    return a;
}
static inline uint32_t flush(uint32_t a) { return (a & 0x7f800000u) ? a : (a & 0x80000000u); }
static inline float Z(uint32_t a) { return F(flush(a)); }
static inline uint32_t Bz(float f) { return flush(B(f)); }
static inline float LO(uint64_t a) { return F((uint32_t)a); }
static inline float HI(uint64_t a) { return F((uint32_t)(a >> 32)); }
static inline uint64_t two(float a, float b) { return B(a) | (uint64_t)B(b) << 32; }
static inline uint32_t f2i(float f) {
    return f != f ? 0 : f >= 2147483648.0f ? 0x7fffffffu : f <= -2147483648.0f ? 0x80000000u : (uint32_t)(int32_t)f;
}
static inline uint32_t bf16(uint32_t a) {
    if ((a & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return (a + 0x7fffu + ((a >> 16) & 1)) >> 16;
}
static inline uint32_t rna_tf32(uint32_t a) {
    return (a & 0x7f800000u) == 0x7f800000u ? a : (a + 0x1000u) & 0xffffe000u;
}
static inline uint32_t bfe_u(uint32_t a, uint32_t b, uint32_t c) {
    b &= 255;
    c &= 255;
    if (c == 0 || b > 31) return 0;
    a >>= b;
    return c > 31 ? a : a & ((1u << c) - 1);
}
static inline uint32_t bfe_s(uint32_t a, uint32_t b, uint32_t c) {
    b &= 255;
    c &= 255;
    if (c == 0) return 0;
    int64_t v = (int64_t)(int32_t)a;
    v >>= b > 63 ? 63 : b;
    if (c > 63) return (uint32_t)v;
    return (uint32_t)((int64_t)((uint64_t)v << (64 - c)) >> (64 - c));
}
static inline uint32_t prmt(uint32_t a, uint32_t b, uint32_t c) {
    uint64_t both = ((uint64_t)b << 32) | a;
    uint32_t out = 0;
    for (int i = 0; i < 4; i++) {
        uint32_t sel = (c >> (4 * i)) & 15, byte = (both >> (8 * (sel & 7))) & 255;
        if (sel & 8) byte = byte & 128 ? 255 : 0;
        out |= byte << (8 * i);
    }
    return out;
}

static void report(Emulator *e, int kind, int pc, int pc2, int warp, int warp2, int lane, int cta, int64_t address) {
    for (int i = 0; i < e->nfindings; i++)
        if (e->findings[i].kind == kind && e->findings[i].pc == pc && e->findings[i].pc2 == pc2) {
            e->findings[i].count++;
            return;
        }
    if (e->nfindings < 256) e->findings[e->nfindings++] = (Finding){kind, pc, pc2, warp, warp2, lane, cta, address, 1};
}

/* Where ``bytes`` at ``address`` lie, or NULL. */
static uint8_t *place(Emulator *e, int shared, uint64_t address, int bytes, int write, int pc, int warp, int lane,
                      int cta) {
    if (address % bytes) {
        report(e, MISALIGNED, pc, -1, warp, -1, lane, cta, (int64_t)address);
        return NULL;
    }
    if (shared) {
        int64_t o = (int64_t)(uint32_t)address - e->sbase;
        if (o < 0 || o + bytes > e->ssize) {
            report(e, OUTSIDE, pc, -1, warp, -1, lane, cta, (int64_t)address);
            return NULL;
        }
        return e->shared + o;
    }
    int64_t o = (int64_t)(address - e->gbase);
    if (address < e->gbase || o + bytes > e->gsize) {
        report(e, OUTSIDE, pc, -1, warp, -1, lane, cta, (int64_t)address);
        return NULL;
    }
    for (int64_t g = o >> 2; g <= (o + bytes - 1) >> 2; g++) {
        if (!e->region[g]) {
            report(e, OUTSIDE, pc, -1, warp, -1, lane, cta, (int64_t)address);
            return NULL;
        }
        if (write && e->region[g] != 3) {
            report(e, READONLY, pc, -1, warp, -1, lane, cta, (int64_t)address);
            return NULL;
        }
    }
    return e->global + o;
}

static void watch(Emulator *e, Warp *w, int shared, const uint8_t *at, int bytes, int write, const uint8_t *value,
                  int pc, int lane, int cta) {
    int shift = shared ? 1 : 2;
    int64_t o = at - (shared ? e->shared : e->global);
    Shadow *shadow = shared ? e->sshadow : e->gshadow;
    for (int64_t g = o >> shift; g <= (o + bytes - 1) >> shift; g++) {
        Shadow *s = shadow + g;
        int64_t address = (g << shift) + (shared ? (int64_t)e->sbase : (int64_t)e->gbase);
        if (write) {
            if (s->wepoch == e->epoch) {
                if (s->wwarp != w->id) {
                    int64_t from = (g << shift) < o ? o : g << shift, size = 1 << shift;
                    if (from + size > o + bytes) size = o + bytes - from;
                    int same = !memcmp((shared ? e->shared : e->global) + from, value + (from - o), size);
                    report(e, same ? SAME_WW : RACE_WW, pc, s->wpc, w->id, s->wwarp, lane, cta, address);
                } else if (s->wtick == (uint32_t)e->instructions &&
                           s->wlane != lane) { /* two lanes in one instruction */
                    int64_t from = (g << shift) < o ? o : g << shift, size = 1 << shift;
                    if (from + size > o + bytes) size = o + bytes - from;
                    if (memcmp((shared ? e->shared : e->global) + from, value + (from - o), size))
                        report(e, CONFLICT, pc, s->wpc, w->id, w->id, lane, cta, address);
                }
            }
            if (s->repoch == e->epoch && (s->rmask & ~(1u << w->id)))
                report(e, RACE_WR, pc, s->rpc, w->id, __builtin_ctz(s->rmask & ~(1u << w->id)), lane, cta, address);
            if (!shared) {
                if ((s->rcta != -1 && s->rcta != cta) || (s->wcta != -1 && s->wcta != cta))
                    report(e, PROGRAMS, pc, s->wpc, w->id, -1, lane, cta, address);
                s->wcta = cta;
            }
            s->wepoch = e->epoch;
            s->wwarp = w->id;
            s->wpc = pc;
            s->wlane = lane;
            s->wsync = w->sync;
            s->wtick = (uint32_t)e->instructions;
            s->init = 1;
        } else {
            if (!s->init) report(e, UNINIT, pc, -1, w->id, -1, lane, cta, address);
            if (s->wepoch == e->epoch) {
                if (s->wwarp != w->id)
                    report(e, RACE_RW, pc, s->wpc, w->id, s->wwarp, lane, cta, address);
                else if (s->wlane != lane && s->wsync == w->sync)
                    report(e, INTRA, pc, s->wpc, w->id, w->id, lane, cta, address);
            }
            if (!shared) {
                if (s->wcta != -1 && s->wcta != cta) report(e, PROGRAMS, pc, s->wpc, w->id, -1, lane, cta, address);
                s->rcta = s->rcta == -1 || s->rcta == cta ? cta : -2;
            }
            if (s->repoch != e->epoch) {
                s->repoch = e->epoch;
                s->rmask = 0;
            }
            s->rmask |= 1u << w->id;
            s->rpc = pc;
        }
    }
}

/* Sectors of 32 bytes that a warp's access touches, and those a cache of the program's own, without limit, does not
 * hold. */
static int traffic(Emulator *e, const uint64_t *address, uint32_t m, int bytes, int pc, int write) {
    uint64_t seen[64];
    int n = 0, missed = 0;
    for (int l = 0; l < 32; l++)
        if (m >> l & 1) {
            uint64_t first = address[l] >> 5, last = (address[l] + bytes - 1) >> 5;
            for (uint64_t s = first; s <= last; s++) {
                int known = 0;
                for (int i = n - 1; i >= 0; i--)
                    if (seen[i] == s) {
                        known = 1;
                        break;
                    }
                if (known || n == 64) continue;
                seen[n++] = s;
                int64_t index = (int64_t)(s - (e->gbase >> 5));
                if (index < 0 || index >= e->gsize >> 5) continue;
                if (write) {
                    e->l1[index] = 0;
                } else if (e->l1[index] != e->l1_stamp) {
                    missed++;
                    e->l1[index] = e->l1_stamp;
                }
            }
        }
    e->sectors[pc] += n;
    e->missed[pc] += missed;
    return missed;
}

/* How often shared memory is passed through: the most different words that one bank has to give. */
static int passes(const uint64_t *address, uint32_t m, int bytes) {
    int groups = bytes <= 4 ? 1 : bytes == 8 ? 2 : 4, each = 32 / groups, total = 0;
    for (int g = 0; g < groups; g++) {
        uint32_t words[32][32];
        int n[32] = {0}, most = 0;
        for (int l = g * each; l < (g + 1) * each; l++)
            if (m >> l & 1)
                for (int b = 0; b < (bytes < 4 ? 4 : bytes); b += 4) {
                    uint32_t word = (uint32_t)((address[l] + b) >> 2), bank = word & 31;
                    int known = 0;
                    for (int i = 0; i < n[bank]; i++)
                        if (words[bank][i] == word) known = 1;
                    if (!known && n[bank] < 32) words[bank][n[bank]++] = word;
                    if (n[bank] > most) most = n[bank];
                }
        total += most;
    }
    return total;
}

static inline float add_rz(double sum) { /* towards zero, as tensor cores do */
    float f = (float)sum;
    if (fabs((double)f) > fabs(sum)) f = nextafterf(f, 0);
    return f;
}

static void mma(Emulator *e, Warp *w, const Ins *x) {
    static float a[16][16], b[16][8], c[16][8];
    int wide = x->op == OP_MMA_BF16, K = wide ? 16 : 8;
    for (int l = 0; l < 32; l++) {
        int g = l >> 2, t = l & 3;
#define RS(i) w->r[32 * (size_t)x->s[i] + l]
        if (wide) {
            for (int i = 0; i < 4; i++)
                for (int h = 0; h < 2; h++) a[g + 8 * (i & 1)][2 * t + h + 8 * (i >> 1)] = F((RS(i) >> (16 * h)) << 16);
            for (int i = 0; i < 2; i++)
                for (int h = 0; h < 2; h++) b[2 * t + h + 8 * i][g] = F((RS(4 + i) >> (16 * h)) << 16);
        } else { /* the lower 13 bits of an operand are not looked at */
#define TF32(v) F(e->operands == 2 ? (v) : e->operands ? rna_tf32(v) : (v) & 0xffffe000u)
            for (int i = 0; i < 4; i++) a[g + 8 * (i & 1)][t + 4 * (i >> 1)] = TF32(RS(i));
            for (int i = 0; i < 2; i++) b[t + 4 * i][g] = TF32(RS(4 + i));
        }
        for (int i = 0; i < 4; i++) c[g + 8 * (i >> 1)][2 * t + (i & 1)] = F(RS(6 + i));
    }
    for (int l = 0; l < 32; l++)
        for (int i = 0; i < 4; i++) {
            int row = (l >> 2) + 8 * (i >> 1), column = 2 * (l & 3) + (i & 1);
            float sum = c[row][column];
            for (int k = 0; k < K; k += 4) { /* groups of four products are added up at once */
                double part = sum;
                for (int j = k; j < k + 4; j++) part += (double)a[row][j] * (double)b[j][column];
                sum = e->rz ? add_rz(part) : (float)part;
            }
            w->r[32 * (size_t)x->d[i] + l] = B(sum);
        }
}

#define PUTR(t)                                                                                                        \
    {                                                                                                                  \
        uint32_t *o = w->r + 32 * (size_t)x->d[0];                                                                     \
        if (m == ~0u)                                                                                                  \
            memcpy(o, t, 128);                                                                                         \
        else                                                                                                           \
            for (int l = 0; l < 32; l++)                                                                               \
                if (m >> l & 1) o[l] = t[l];                                                                           \
    }
#define PUTQ(t)                                                                                                        \
    {                                                                                                                  \
        uint64_t *o = w->q + 32 * (size_t)x->d[0];                                                                     \
        if (m == ~0u)                                                                                                  \
            memcpy(o, t, 256);                                                                                         \
        else                                                                                                           \
            for (int l = 0; l < 32; l++)                                                                               \
                if (m >> l & 1) o[l] = t[l];                                                                           \
    }
#define PUTP(t)                                                                                                        \
    { w->p[x->d[0]] = (w->p[x->d[0]] & ~m) | ((t) & m); }

/* Up to ``most`` instructions of a warp, or up to a barrier. */
static void run(Emulator *e, Warp *w, int64_t most, int cta) {
    while (most-- > 0) {
        Level *top = &w->stack[w->depth];
        while (w->depth > 0 && (top->pc == top->rpc || top->mask == 0)) top = &w->stack[--w->depth];
        int pc = top->pc;
        if (pc >= e->n) {
            w->state = 2;
            return;
        }
        const Ins *x = e->code + pc;
        uint32_t m = top->mask, full = w->stack[0].mask;
        if (x->guard >= 0) m &= x->neg ? ~w->p[x->guard] : w->p[x->guard];
        e->count[pc]++;
        e->lanes[pc] += __builtin_popcount(m);
        e->instructions++;
        int64_t begin = w->clock;
        int awaited = pc;
        for (int i = 0; i < x->nus; i++)
            if (w->ready[x->us[i]] > begin) {
                begin = w->ready[x->us[i]];
                awaited = w->maker[x->us[i]];
            }
        e->stall[awaited] += begin - w->clock;
        int latency = e->latency[x->cls], cost = e->cost[x->cls];
        top->pc++;
        switch (x->op) {
            case OP_LD_GLOBAL:
            case OP_ST_GLOBAL:
            case OP_LD_SHARED:
            case OP_ST_SHARED: {
                int shared = x->op == OP_LD_SHARED || x->op == OP_ST_SHARED,
                    write = x->op == OP_ST_GLOBAL || x->op == OP_ST_SHARED;
                uint64_t address[32];
                int bytes = x->width * x->vec;
                for (int l = 0; l < 32; l++)
                    address[l] = (x->wide ? w->q[32 * (size_t)x->s[0] + l] : (uint64_t)w->r[32 * (size_t)x->s[0] + l]) +
                                 (int64_t)x->imm;
                uint8_t loaded[32][32];
                uint32_t good = 0;
                for (int l = 0; l < 32; l++)
                    if (m >> l & 1) {
                        uint8_t *at = place(e, shared, address[l], bytes, write, pc, w->id, l, cta);
                        if (!at) continue;
                        good |= 1u << l;
                        if (write) {
                            uint8_t value[64];
                            for (int i = 0; i < x->vec; i++) {
                                if (x->rwide)
                                    memcpy(value + x->width * i, w->q + 32 * (size_t)x->s[1 + i] + l, x->width);
                                else
                                    memcpy(value + x->width * i, w->r + 32 * (size_t)x->s[1 + i] + l, x->width);
                            }
                            watch(e, w, shared, at, bytes, 1, value, pc, l, cta);
                            memcpy(at, value, bytes);
                        } else {
                            watch(e, w, shared, at, bytes, 0, NULL, pc, l, cta);
                            memcpy(loaded[l], at, bytes);
                        }
                    }
                if (!write)
                    for (int l = 0; l < 32; l++)
                        if (good >> l & 1)
                            for (int i = 0; i < x->vec; i++) {
                                uint64_t v = 0;
                                memcpy(&v, loaded[l] + x->width * i, x->width);
                                if (x->trans)
                                    v = x->width == 1   ? (uint64_t)(int8_t)v
                                        : x->width == 2 ? (uint64_t)(int16_t)v
                                        : x->width == 4 ? (uint64_t)(int32_t)v
                                                        : v;
                                if (x->rwide)
                                    w->q[32 * (size_t)x->d[i] + l] = v;
                                else
                                    w->r[32 * (size_t)x->d[i] + l] = (uint32_t)v;
                            }
                if (!shared) {
                    if (traffic(e, address, m, bytes, pc, write) && !write) latency = e->far_latency;
                } else {
                    int n = passes(address, m, bytes);
                    e->wavefronts[pc] += n;
                    if (n > 1) {
                        cost += n - 1;
                        latency += n - 1;
                    }
                }
                break;
            }
            case OP_LDMATRIX:
            case OP_STMATRIX: {
                int write = x->op == OP_STMATRIX;
                uint64_t rows[32];
                uint8_t *at[32];
                if (m != full || full != ~0u) report(e, DIVERGED, pc, -1, w->id, -1, 0, cta, 0);
                for (int l = 0; l < 8 * x->vec; l++) {
                    rows[l] = (x->wide ? w->q[32 * (size_t)x->s[0] + l] : (uint64_t)w->r[32 * (size_t)x->s[0] + l]) +
                              (int64_t)x->imm;
                    at[l] = place(e, 1, rows[l], 16, write, pc, w->id, l, cta);
                    if (at[l] && !write) watch(e, w, 1, at[l], 16, 0, NULL, pc, l, cta);
                }
                for (int i = 0; i < x->vec; i++) {
                    uint16_t tile[8][8] = {{0}};
                    if (write) {
                        for (int l = 0; l < 32; l++)
                            for (int h = 0; h < 2; h++) {
                                uint16_t v = (uint16_t)(w->r[32 * (size_t)x->s[1 + i] + l] >> (16 * h));
                                if (x->trans)
                                    tile[2 * (l & 3) + h][l >> 2] = v;
                                else
                                    tile[l >> 2][2 * (l & 3) + h] = v;
                            }
                        for (int r = 0; r < 8; r++)
                            if (at[8 * i + r]) {
                                watch(e, w, 1, at[8 * i + r], 16, 1, (uint8_t *)tile[r], pc, 8 * i + r, cta);
                                memcpy(at[8 * i + r], tile[r], 16);
                            }
                    } else {
                        for (int r = 0; r < 8; r++)
                            if (at[8 * i + r]) memcpy(tile[r], at[8 * i + r], 16);
                        for (int l = 0; l < 32; l++) {
                            uint32_t v = 0;
                            for (int h = 0; h < 2; h++)
                                v |=
                                    (uint32_t)(x->trans ? tile[2 * (l & 3) + h][l >> 2] : tile[l >> 2][2 * (l & 3) + h])
                                    << (16 * h);
                            w->r[32 * (size_t)x->d[i] + l] = v;
                        }
                    }
                }
                int n = 0; /* eight rows of 16 bytes each go through at once */
                for (int i = 0; i < x->vec; i++) {
                    int banks[32] = {0}, most_ = 0;
                    for (int r = 0; r < 8; r++)
                        for (int b = 0; b < 4; b++) {
                            int k = (int)((rows[8 * i + r] >> 2) + b) & 31;
                            if (++banks[k] > most_) most_ = banks[k];
                        }
                    n += most_;
                }
                e->wavefronts[pc] += n;
                if (n > 1) {
                    cost += n - 1;
                    latency += n - 1;
                }
                break;
            }
            case OP_MMA_TF32:
            case OP_MMA_BF16:
                if (m != ~0u) report(e, DIVERGED, pc, -1, w->id, -1, 0, cta, 0);
                mma(e, w, x);
                break;
            case OP_SHFL_BFLY:
            case OP_SHFL_IDX:
            case OP_SHFL_UP:
            case OP_SHFL_DOWN: {
                uint32_t t[32];
                if (m != ~0u) report(e, DIVERGED, pc, -1, w->id, -1, 0, cta, 0);
                for (int l = 0; l < 32; l++) {
                    uint32_t b = w->r[32 * (size_t)x->s[1] + l] & 31, c = w->r[32 * (size_t)x->s[2] + l],
                             clamp = c & 31, seg = (c >> 8) & 31;
                    int hi = (l & seg) | (clamp & ~seg & 31), lo = l & seg, j, ok;
                    if (x->op == OP_SHFL_BFLY) {
                        j = l ^ (int)b;
                        ok = j <= hi;
                    } else if (x->op == OP_SHFL_IDX) {
                        j = lo | ((int)b & ~(int)seg & 31);
                        ok = j <= hi;
                    } else if (x->op == OP_SHFL_UP) {
                        j = l - (int)b;
                        ok = j >= hi;
                    } else {
                        j = l + (int)b;
                        ok = j <= hi;
                    }
                    t[l] = w->r[32 * (size_t)x->s[0] + (ok ? j : l)];
                }
                PUTR(t)
                break;
            }
            case OP_BRA: {
                if (x->guard < 0 || m == top->mask) {
                    top->pc = x->target;
                    latency = 0;
                    break;
                }
                if (m == 0) break;
                uint32_t other = top->mask & ~m;
                int next = pc + 1;
                top->pc = x->reconv;
                if (w->depth + 2 >= 64) {
                    report(e, ENDLESS, pc, -1, w->id, -1, 0, cta, 0);
                    w->state = 2;
                    return;
                }
                w->stack[++w->depth] = (Level){next, x->reconv, other};
                w->stack[++w->depth] = (Level){x->target, x->reconv, m};
                break;
            }
            case OP_BAR:
                if (m != full || full != ~0u) report(e, DIVERGED, pc, -1, w->id, -1, 0, cta, 0);
                w->clock = begin + cost;
                w->slots += cost;
                w->state = 1;
                w->barrier_pc = pc;
                return;
            case OP_CP: {
                uint64_t from[32];
                for (int l = 0; l < 32; l++) from[l] = w->q[32 * (size_t)x->s[0] + l];
                int64_t there = begin + (traffic(e, from, m, x->width, pc, 0) ? e->far_latency : latency);
                for (int l = 0; l < 32; l++)
                    if (m >> l & 1) {
                        int bytes = x->ns > 2 ? (int)w->r[32 * (size_t)x->s[2] + l] : x->width;
                        Copy copy = {w->group,
                                     x->width,
                                     pc,
                                     l,
                                     x->rwide ? w->q[32 * (size_t)x->s[1] + l] : w->r[32 * (size_t)x->s[1] + l],
                                     there,
                                     {0}};
                        if (bytes > 0) {
                            uint8_t *at = place(e, 0, from[l], bytes, 0, pc, w->id, l, cta);
                            if (!at) continue;
                            watch(e, w, 0, at, bytes, 0, NULL, pc, l, cta);
                            memcpy(copy.data, at, bytes);
                        }
                        if (w->ncopies == w->most_copies)
                            w->copies = realloc(w->copies, sizeof(Copy) * (w->most_copies = 2 * w->most_copies + 64));
                        w->copies[w->ncopies++] = copy;
                    }
                break;
            }
            case OP_CP_COMMIT:
                w->group++;
                break;
            case OP_CP_WAIT: { /* what was copied is there from now on, for this warp */
                int kept = 0;
                for (int i = 0; i < w->ncopies; i++) {
                    Copy *copy = w->copies + i;
                    if (copy->group >= w->group - x->imm) {
                        w->copies[kept++] = *copy;
                        continue;
                    }
                    if (copy->there > begin) begin = copy->there;
                    uint8_t *at = place(e, 1, copy->to, copy->bytes, 1, copy->pc, w->id, copy->lane, cta);
                    if (!at) continue;
                    watch(e, w, 1, at, copy->bytes, 1, copy->data, copy->pc, copy->lane, cta);
                    memcpy(at, copy->data, copy->bytes);
                }
                w->ncopies = kept;
                break;
            }
            case OP_REDUX: {
                uint32_t t[32];
                float best = F(w->r[32 * (size_t)x->s[0]]);
                if (m != ~0u) report(e, DIVERGED, pc, -1, w->id, -1, 0, cta, 0);
                for (int l = 1; l < 32; l++) {
                    float v = F(w->r[32 * (size_t)x->s[0] + l]);
                    best = x->trans ? fmaxf(best, v) : fminf(best, v);
                }
                for (int l = 0; l < 32; l++) t[l] = B(best);
                PUTR(t)
                break;
            }
            case OP_PACK:
                for (int l = 0; l < 32; l++)
                    if (m >> l & 1)
                        w->q[32 * (size_t)x->d[0] + l] =
                            w->r[32 * (size_t)x->s[0] + l] | (uint64_t)w->r[32 * (size_t)x->s[1] + l] << 32;
                break;
            case OP_UNPACK:
                for (int l = 0; l < 32; l++)
                    if (m >> l & 1) {
                        uint64_t v = w->q[32 * (size_t)x->s[0] + l];
                        w->r[32 * (size_t)x->d[0] + l] = (uint32_t)v;
                        w->r[32 * (size_t)x->d[1] + l] = v >> 32;
                    }
                break;
            case OP_WARPSYNC:
                w->sync++;
                break;
            case OP_FENCE:
                break;
            case OP_RET:
                if (m == full) {
                    w->state = 2;
                    w->clock = begin + 1;
                    return;
                }
                for (int i = 0; i <= w->depth; i++) w->stack[i].mask &= ~m;
                break;
                /*@CASES@*/
            default:
                report(e, ENDLESS, pc, -1, w->id, -1, 0, cta, 0);
                w->state = 2;
                return;
        }
        for (int i = 0; i < x->nd; i++) {
            w->ready[x->ud[i]] = begin + latency;
            w->maker[x->ud[i]] = pc;
        }
        w->clock = begin + cost;
        w->slots += cost;
    }
}

static uint64_t random_(uint64_t *s) {
    *s ^= *s << 13;
    *s ^= *s >> 7;
    *s ^= *s << 17;
    return *s;
}

/* One program. ``mode`` 0: warps in turn between two barriers, 1: the last first, 2: slices of random warps and
 * lengths. */
int run_program(Emulator *e, int cta, int mode, uint64_t seed) {
    Warp *warps = calloc(e->warps, sizeof(Warp));
    uint64_t state = seed * 0x9e3779b97f4a7c15ull + 88172645463325252ull;
    for (int i = 0; i < e->warps; i++) {
        Warp *w = warps + i;
        w->id = i;
        w->r = malloc(128 * (size_t)(e->nr + 1));
        w->q = malloc(256 * (size_t)(e->nq + 1));
        w->p = calloc(e->np_ + 1, 4);
        w->ready = calloc(e->nu + 1, 8);
        w->maker = calloc(e->nu + 1, 4);
        for (int j = 0; j < e->nr; j++)
            for (int l = 0; l < 32; l++) w->r[32 * j + l] = e->init_r[j];
        for (int j = 0; j < e->nq; j++)
            for (int l = 0; l < 32; l++) w->q[32 * j + l] = e->init_q[j];
        for (int j = 0; j < e->np_; j++) w->p[j] = e->init_p[j];
        for (int l = 0; l < 32; l++) {
            if (e->tid_x >= 0) w->r[32 * e->tid_x + l] = 32 * i + l;
            if (e->laneid >= 0) w->r[32 * e->laneid + l] = l;
        }
        w->stack[0] = (Level){0, -2, ~0u};
    }
    memset(e->shared, 0xC5, e->ssize);
    for (int64_t g = 0; g < (e->ssize + 1) / 2; g++) e->sshadow[g].init = 0;
    e->epoch++;
    e->l1_stamp++;
    int64_t before = e->instructions;
    int failed = 0;
    for (;;) {
        for (;;) { /* up to the next barrier of all */
            int alive[64], n = 0;
            for (int i = 0; i < e->warps; i++)
                if (warps[i].state == 0) alive[n++] = i;
            if (!n) break;
            int chosen = mode == 0 ? alive[0] : mode == 1 ? alive[n - 1] : alive[random_(&state) % n];
            int64_t slice = mode < 2 ? 1000000 : 1 + (int64_t)(random_(&state) % (random_(&state) % 4 ? 8 : 200));
            run(e, warps + chosen, slice, cta);
            if (e->instructions - before > e->most) {
                report(e, ENDLESS, warps[chosen].stack[warps[chosen].depth].pc, -1, chosen, -1, 0, cta, 0);
                failed = 1;
                goto end;
            }
        }
        int waiting = 0;
        int64_t latest = 0;
        for (int i = 0; i < e->warps; i++) {
            waiting += warps[i].state == 1;
            if (warps[i].clock > latest) latest = warps[i].clock;
        }
        if (!waiting) break;
        int pc = -1;
        for (int i = 0; i < e->warps; i++) {
            if (warps[i].state == 2 || (pc >= 0 && warps[i].state == 1 && warps[i].barrier_pc != pc))
                report(e, MISMATCH, pc, warps[i].barrier_pc, i, -1, 0, cta, 0);
            if (warps[i].state == 1) pc = warps[i].barrier_pc;
        }
        for (int i = 0; i < e->warps; i++)
            if (warps[i].state == 1) {
                e->stall[warps[i].barrier_pc] += latest - warps[i].clock + e->bar_latency;
                warps[i].state = 0;
                warps[i].clock = latest + e->bar_latency;
                warps[i].sync++;
            }
        e->epoch++;
        e->barriers++;
    }
    e->cycles = 0;
    e->slots = 0;
    for (int i = 0; i < e->warps; i++) {
        if (warps[i].clock > e->cycles) e->cycles = warps[i].clock;
        if (warps[i].slots > e->slots) e->slots = warps[i].slots;
    }
end:
    for (int i = 0; i < e->warps; i++) {
        free(warps[i].r);
        free(warps[i].q);
        free(warps[i].p);
        free(warps[i].ready);
        free(warps[i].maker);
        free(warps[i].copies);
    }
    free(warps);
    return failed;
}

int64_t size_of_state(void) { return sizeof(Emulator); }
