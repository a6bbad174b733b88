/* Executes decoded PTX (ptx.py): one program (CTA) at a time, warps of 32 lanes with a reconvergence stack. It watches
   every access to memory for races between barriers, reads of memory never written, bounds and alignment; it counts,
   and keeps a clock. engine.py reads the structures up to Emulator, and fills in the marks for definitions and cases.
   A register is one or two rows of 32 words, one for each lane: two of 64 bits; the first word of a predicate's row is
   the mask of the lanes where it is true. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* what of operations.py and engine.py is a number here */
/*@DEFINES@*/

typedef struct {
    /* together: all lanes have to take part */
    int32_t op, together, guard, neg, nd, ns, d[4], s[12], width, vec, wide, rwide, target, reconv, latency, cost,
        trans, imm;
} Ins;

typedef struct { /* what is known about a cell: four bytes of global or two bytes of shared memory */
    uint32_t wepoch, wsync, wtick, repoch, rmask;
    uint8_t wwarp, wlane, state; /* state: READABLE, WRITABLE, WRITTEN */
    int32_t wpc, rpc, wcta, rcta;
} Cell;

typedef struct {
    uint8_t *memory;
    Cell *cells;
    uint64_t base;
    int64_t size;
    int32_t shift; /* of an address in bytes to that of a cell */
} Space;

typedef struct {
    int32_t kind, pc, pc2, warp, warp2, lane, cta;
    int64_t address, count;
} Finding;

typedef struct {
    Ins *code;
    int32_t n, rows, warps, tid_x, laneid; /* registers of %tid.x and %laneid, or -1 */
    uint64_t *initial;                     /* of each row: constants, poison elsewhere */
    Space global, shared;
    int64_t *count, *lanes, *sectors, *wavefronts, *missed; /* of each instruction */
    int64_t *stall;                                         /* cycles that warps waited for what each makes */
    uint32_t *l1;                /* of each sector: the program that it was last loaded in, as its first epoch */
    int32_t operands;            /* of tf32: 0 cut off, 1 rounded, 2 as they are */
    uint32_t epoch, program;     /* an epoch ends at each barrier */
    int32_t pc, warp, lane, cta; /* at work */
    int64_t barriers, cycles, slots, instructions;
    int32_t nfindings;
    Finding findings[MOST_FINDINGS];
} Emulator;

typedef struct {
    int32_t pc, rpc;
    uint32_t mask;
} Level;

typedef struct { /* cp.async on its way */
    int32_t group, bytes, pc, lane;
    uint64_t to;
    int64_t there;
    uint8_t data[16];
} Copy;

typedef struct {
    Copy *copies;
    int32_t ncopies, most_copies, group;
    uint32_t (*row)[32];
    int64_t *ready; /* when a register is there, */
    int32_t *maker; /* and which instruction makes it */
    Level stack[64];
    int32_t depth, id, barrier_pc;
    enum { RUNS, WAITS, ENDED } state;
    uint32_t sync;
    int64_t clock, slots;
} Warp;

#define EACH(mask)               \
    for (int l = 0; l < 32; l++) \
        if ((mask) >> l & 1)
#define S(i) (w->row[x->s[i]])
#define D(i) (w->row[x->d[i]])
#define S64(i) ((uint64_t *)S(i))
#define D64(i) ((uint64_t *)D(i))

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
    b &= 255, c &= 255;
    if (c == 0 || b > 31) return 0;
    a >>= b;
    return c > 31 ? a : a & ((1u << c) - 1);
}
static inline uint32_t bfe_s(uint32_t a, uint32_t b, uint32_t c) {
    b &= 255, c &= 255;
    if (c == 0) return 0;
    int64_t v = (int64_t)(int32_t)a;
    v >>= b > 63 ? 63 : b;
    if (c > 63) return (uint32_t)v;
    return (uint32_t)((int64_t)((uint64_t)v << (64 - c)) >> (64 - c));
}
static inline uint32_t bfi(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    c &= 255, d &= 255;
    uint32_t mask = c > 31 || !d ? 0 : (d > 31 ? ~0u : (1u << d) - 1) << c;
    return (a << (c & 31) & mask) | (b & ~mask);
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

static void report(Emulator *e, int kind, int pc2, int warp2, uint64_t address) {
    for (int i = 0; i < e->nfindings; i++) {
        Finding *known = e->findings + i;
        if (known->kind == kind && known->pc == e->pc && known->pc2 == pc2) {
            known->count++;
            return;
        }
    }
    if (e->nfindings < MOST_FINDINGS)
        e->findings[e->nfindings++] = (Finding){kind, e->pc, pc2, e->warp, warp2, e->lane, e->cta, (int64_t)address, 1};
}

static void watch_write(Emulator *e, const Warp *w, Cell *c, uint64_t address, int same) {
    int other = c->wwarp != w->id;
    if (c->wepoch == e->epoch) {
        if (other)
            report(e, same ? SAME_WW : RACE_WW, c->wpc, c->wwarp, address);
        else if (c->wtick == (uint32_t)e->instructions && c->wlane != e->lane && !same) /* lanes of one instruction */
            report(e, CONFLICT, c->wpc, w->id, address);
    }
    uint32_t readers = c->rmask & ~(1u << w->id);
    if (c->repoch == e->epoch && readers) report(e, RACE_WR, c->rpc, __builtin_ctz(readers), address);
    if ((c->rcta != -1 && c->rcta != e->cta) || (c->wcta != -1 && c->wcta != e->cta))
        report(e, PROGRAMS, c->wpc, -1, address);
    c->wcta = e->cta, c->wwarp = w->id, c->wlane = e->lane, c->wpc = e->pc;
    c->wepoch = e->epoch, c->wsync = w->sync, c->wtick = (uint32_t)e->instructions;
    c->state |= WRITTEN;
}

static void watch_read(Emulator *e, const Warp *w, Cell *c, uint64_t address) {
    if (!(c->state & WRITTEN)) report(e, UNINIT, -1, -1, address);
    if (c->wepoch == e->epoch) {
        if (c->wwarp != w->id)
            report(e, RACE_RW, c->wpc, c->wwarp, address);
        else if (c->wlane != e->lane && c->wsync == w->sync)
            report(e, INTRA, c->wpc, w->id, address);
    }
    if (c->wcta != -1 && c->wcta != e->cta) report(e, PROGRAMS, c->wpc, -1, address);
    c->rcta = c->rcta == -1 || c->rcta == e->cta ? e->cta : -2; /* -1: nobody, -2: several */
    if (c->repoch != e->epoch) c->rmask = 0;
    c->repoch = e->epoch, c->rpc = e->pc;
    c->rmask |= 1u << w->id;
}

/* Moves ``bytes`` between memory and ``data``, and watches. Returns whether a program may do that. */
static int move(Emulator *e, const Warp *w, Space *space, uint64_t address, int bytes, int write, uint8_t *data) {
    int64_t o = (int64_t)(address - space->base), end = o + bytes;
    int kind = address % bytes ? MISALIGNED : o < 0 || end > space->size ? OUTSIDE : -1;
    for (int64_t i = o >> space->shift; kind < 0 && i <= (end - 1) >> space->shift; i++) {
        int state = space->cells[i].state;
        kind = !(state & READABLE) ? OUTSIDE : write && !(state & WRITABLE) ? READONLY : -1;
    }
    if (kind >= 0) {
        report(e, kind, -1, -1, address);
        return 0;
    }
    for (int64_t i = o >> space->shift; i <= (end - 1) >> space->shift; i++) {
        int64_t begin = i << space->shift, from = begin < o ? o : begin, to = (i + 1) << space->shift;
        if (to > end) to = end;
        if (write)
            watch_write(e, w, space->cells + i, space->base + begin,
                        !memcmp(space->memory + from, data + from - o, to - from));
        else
            watch_read(e, w, space->cells + i, space->base + begin);
    }
    memcpy(write ? space->memory + o : data, write ? data : space->memory + o, bytes);
    return 1;
}

/* Counts the sectors of 32 bytes that a warp's access touches; returns how many of them a cache of the program's own,
   without limit, does not hold. */
static int traffic(Emulator *e, const uint64_t *address, uint32_t m, int bytes, int write) {
    uint64_t seen[64];
    int n = 0, missed = 0;
    EACH(m)
    for (uint64_t s = address[l] >> 5; s <= (address[l] + bytes - 1) >> 5; s++) {
        int i = n;
        while (i > 0 && seen[i - 1] != s) i--;
        if (i > 0 || n == 64) continue;
        seen[n++] = s;
        int64_t index = (int64_t)(s - (e->global.base >> 5));
        if (index < 0 || index >= e->global.size >> 5) continue;
        missed += !write && e->l1[index] != e->program;
        e->l1[index] = write ? 0 : e->program;
    }
    e->sectors[e->pc] += n;
    e->missed[e->pc] += missed;
    return missed;
}

/* Counts how often shared memory is passed through, once for each of the most different words that one bank has to
   give; returns how often more than once. */
static int passes(Emulator *e, const uint64_t *address, uint32_t m, int bytes) {
    int groups = bytes <= 4 ? 1 : bytes == 8 ? 2 : 4, each = 32 / groups, total = 0;
    for (int g = 0; g < groups; g++) {
        uint32_t words[32][32];
        int n[32] = {0}, most = 0;
        for (int l = g * each; l < (g + 1) * each; l++)
            for (int b = 0; (m >> l & 1) && b < bytes; b += 4) {
                uint32_t word = (uint32_t)((address[l] + b) >> 2), bank = word & 31;
                int i = n[bank];
                while (i > 0 && words[bank][i - 1] != word) i--;
                if (i == 0 && n[bank] < 32) words[bank][n[bank]++] = word;
                if (n[bank] > most) most = n[bank];
            }
        total += most;
    }
    e->wavefronts[e->pc] += total;
    return total > 1 ? total - 1 : 0;
}

static inline uint32_t narrowed(uint32_t a, int operands) { /* tf32: the lower 13 bits are not looked at */
    return operands == 2 ? a : operands ? rna_tf32(a) : a & 0xffffe000u;
}

static inline float towards_zero(double sum) { /* as tensor cores round */
    float f = (float)sum;
    return fabs((double)f) > fabs(sum) ? nextafterf(f, 0) : f;
}

static inline float downwards(double sum) {
    float f = (float)sum;
    return f > sum ? nextafterf(f, -INFINITY) : f;
}

static void mma(Emulator *e, Warp *w, const Ins *x) {
    float a[16][16], b[16][8], c[16][8];
    int bf16 = x->op == OP_MMA_BF16, halves = bf16 ? 2 : 1; /* numbers in a register, neighbours along k */
    for (int l = 0; l < 32; l++) {
        int g = l >> 2, t = l & 3;
#define OPERAND(i) F(bf16 ? S(i)[l] >> (16 * h) << 16 : narrowed(S(i)[l], e->operands))
        for (int h = 0; h < halves; h++) {
            for (int i = 0; i < 4; i++) a[g + 8 * (i & 1)][halves * (t + 4 * (i >> 1)) + h] = OPERAND(i);
            for (int i = 0; i < 2; i++) b[halves * (t + 4 * i) + h][g] = OPERAND(4 + i);
        }
        for (int i = 0; i < 4; i++) c[g + 8 * (i >> 1)][2 * t + (i & 1)] = F(S(6 + i)[l]);
    }
    for (int l = 0; l < 32; l++)
        for (int i = 0; i < 4; i++) {
            int row = (l >> 2) + 8 * (i >> 1), column = 2 * (l & 3) + (i & 1);
            float sum = c[row][column];
            for (int k = 0; k < 8 * halves; k += 4) { /* groups of four products are added up at once */
                double part = sum;
                for (int j = k; j < k + 4; j++) part += (double)a[row][j] * (double)b[j][column];
                sum = towards_zero(part);
            }
            D(i)[l] = B(sum);
        }
}

/* Loads or stores ``vec`` numbers of ``width`` bytes in each lane. */
static void access(Emulator *e, Warp *w, const Ins *x, uint32_t m, Space *space, const uint64_t *address, int write) {
    EACH(m) {
        uint8_t data[32];
        e->lane = l;
        for (int i = 0; write && i < x->vec; i++)
            memcpy(data + x->width * i, x->rwide ? (void *)(S64(1 + i) + l) : S(1 + i) + l, x->width);
        if (!move(e, w, space, address[l], x->width * x->vec, write, data) || write) continue;
        for (int i = 0; i < x->vec; i++) {
            uint64_t v = 0;
            memcpy(&v, data + x->width * i, x->width);
            if (x->trans) v = (uint64_t)((int64_t)(v << (64 - 8 * x->width)) >> (64 - 8 * x->width)); /* its sign */
            if (x->rwide)
                D64(i)[l] = v;
            else
                D(i)[l] = (uint32_t)v;
        }
    }
}

/* Moves ``vec`` tiles of 8 x 8 numbers of 16 bits, two in a register, between registers and rows in shared memory. */
static void matrices(Emulator *e, Warp *w, const Ins *x, const uint64_t *address, int write) {
    for (int i = 0; i < x->vec; i++) {
        uint16_t tile[8][8] = {{0}};
        for (int step = 0; step < 2; step++)
            if (step == write) {
                for (int r = 0; r < 8; r++) {
                    e->lane = 8 * i + r;
                    move(e, w, &e->shared, address[8 * i + r], 16, write, (uint8_t *)tile[r]);
                }
            } else {
                for (int l = 0; l < 32; l++) {
                    uint16_t halves[2];
                    if (write) memcpy(halves, S(1 + i) + l, 4);
                    for (int h = 0; h < 2; h++) {
                        int row = l >> 2, column = 2 * (l & 3) + h;
                        uint16_t *number = x->trans ? &tile[column][row] : &tile[row][column];
                        *(write ? number : halves + h) = *(write ? halves + h : number);
                    }
                    if (!write) memcpy(D(i) + l, halves, 4);
                }
            }
    }
}

static uint32_t shuffled(const uint32_t *of, int op, int l, int b, uint32_t c) {
    int clamp = c & 31, segment = c >> 8 & 31, low = l & segment, bound = low | (clamp & ~segment);
    if (op == OP_SHFL_UP) return of[l - b >= bound ? l - b : l];
    int from = op == OP_SHFL_BFLY ? l ^ b : op == OP_SHFL_IDX ? low | (b & ~segment) : l + b;
    return of[from <= bound ? from : l];
}

/* Not inlined: a compiler would take a minute for hundreds of copies. */
static __attribute__((noinline)) void put(void *into, const void *from, size_t width, uint32_t m) {
    if (m == ~0u)
        memcpy(into, from, 32 * width);
    else
        EACH(m) memcpy((char *)into + width * l, (const char *)from + width * l, width);
}
#define PUT(t) put(D(0), t, sizeof *(t), m);
#define PUT_MASK(t) *D(0) = (*D(0) & ~m) | ((t) & m);

static inline void addresses(const Warp *w, const Ins *x, int shared, uint64_t *address) {
    for (int l = 0; l < 32; l++) {
        address[l] = (x->wide ? S64(0)[l] : S(0)[l]) + (int64_t)x->imm;
        if (shared) address[l] = (uint32_t)address[l];
    }
}

static inline void wait_for(const Warp *w, int row, int64_t *begin, int *maker) {
    if (row >= 0 && w->ready[row] > *begin) *begin = w->ready[row], *maker = w->maker[row];
}

/* Up to ``most`` instructions of a warp, or up to a barrier. */
static void run(Emulator *e, Warp *w, int64_t most) {
    e->warp = w->id;
    while (most-- > 0 && w->state == RUNS) {
        Level *top = &w->stack[w->depth];
        while (w->depth > 0 && (top->pc == top->rpc || top->mask == 0)) top = &w->stack[--w->depth];
        int pc = top->pc++, awaited = pc;
        if (pc >= e->n) {
            w->state = ENDED;
            return;
        }
        const Ins *x = e->code + pc;
        uint32_t m = top->mask;
        if (x->guard >= 0) m &= x->neg ? ~*w->row[x->guard] : *w->row[x->guard];
        e->pc = pc, e->lane = 0;
        e->count[pc]++, e->instructions++;
        e->lanes[pc] += __builtin_popcount(m);
        int64_t begin = w->clock;
        for (int i = 0; i < x->ns; i++) wait_for(w, x->s[i], &begin, &awaited);
        wait_for(w, x->guard, &begin, &awaited);
        e->stall[awaited] += begin - w->clock;
        int latency = x->latency, again = 0; /* again: passes through shared memory after the first */
        if (x->together && m != ~0u) report(e, DIVERGED, -1, -1, 0);
        uint64_t address[32];
        switch (x->op) {
            case OP_LD_GLOBAL:
            case OP_ST_GLOBAL: {
                const int write = x->op == OP_ST_GLOBAL;
                addresses(w, x, 0, address);
                access(e, w, x, m, &e->global, address, write);
                if (traffic(e, address, m, x->width * x->vec, write) && !write) latency = FAR;
                break;
            }
            case OP_LD_SHARED:
            case OP_ST_SHARED:
                addresses(w, x, 1, address);
                access(e, w, x, m, &e->shared, address, x->op == OP_ST_SHARED);
                again = passes(e, address, m, x->width * x->vec);
                break;
            case OP_LDMATRIX:
            case OP_STMATRIX: /* eight rows of 16 bytes each go through at once */
                addresses(w, x, 1, address);
                matrices(e, w, x, address, x->op == OP_STMATRIX);
                again = passes(e, address, ~0u >> (32 - 8 * x->vec), 16);
                break;
            case OP_MMA_TF32:
            case OP_MMA_BF16: mma(e, w, x); break;
            case OP_SHFL_BFLY:
            case OP_SHFL_IDX:
            case OP_SHFL_UP:
            case OP_SHFL_DOWN: {
                uint32_t t[32];
                for (int l = 0; l < 32; l++) t[l] = shuffled(S(0), x->op, l, S(1)[l] & 31, S(2)[l]);
                PUT(t)
                break;
            }
            case OP_REDUX: {
                uint32_t t[32];
                float best = F(*S(0));
                for (int l = 1; l < 32; l++) best = x->trans ? fmaxf(best, F(S(0)[l])) : fminf(best, F(S(0)[l]));
                for (int l = 0; l < 32; l++) t[l] = B(best);
                PUT(t)
                break;
            }
            case OP_UNPACK:
                EACH(m) {
                    const uint64_t v = S64(0)[l];
                    D(0)[l] = (uint32_t)v, D(1)[l] = v >> 32;
                }
                break;
            case OP_UNPACK_B32:
                EACH(m) {
                    const uint32_t v = S(0)[l];
                    D(0)[l] = v & 0xffff, D(1)[l] = v >> 16;
                }
                break;
            case OP_BRA: {
                uint32_t others = top->mask & ~m;
                if (!others) {
                    top->pc = x->target;
                } else if (m) { /* this level goes on where they meet again */
                    top->pc = x->reconv;
                    if (w->depth + 2 >= 64) {
                        report(e, ENDLESS, -1, -1, 0);
                        w->state = ENDED;
                        return;
                    }
                    w->stack[++w->depth] = (Level){pc + 1, x->reconv, others};
                    w->stack[++w->depth] = (Level){x->target, x->reconv, m};
                }
                break;
            }
            case OP_BAR: w->state = WAITS, w->barrier_pc = pc; break;
            case OP_CP: {
                addresses(w, x, 0, address);
                int64_t there = begin + (traffic(e, address, m, x->width, 0) ? FAR : latency);
                EACH(m) {
                    uint64_t to = x->rwide ? S64(1)[l] : S(1)[l];
                    Copy copy = {w->group, x->width, pc, l, to, there, {0}};
                    int bytes = x->ns > 2 ? (int)S(2)[l] : x->width;
                    e->lane = l;
                    if (bytes > 0 && !move(e, w, &e->global, address[l], bytes, 0, copy.data)) continue;
                    if (w->ncopies == w->most_copies)
                        w->copies = realloc(w->copies, sizeof(Copy) * (w->most_copies = 2 * w->most_copies + 64));
                    w->copies[w->ncopies++] = copy;
                }
                break;
            }
            case OP_CP_COMMIT: w->group++; break;
            case OP_CP_WAIT: { /* what was copied is there from now on, for this warp */
                int kept = 0;
                for (int i = 0; i < w->ncopies; i++) {
                    Copy *copy = w->copies + i;
                    if (copy->group >= w->group - x->imm) {
                        w->copies[kept++] = *copy;
                        continue;
                    }
                    if (copy->there > begin) begin = copy->there;
                    e->pc = copy->pc, e->lane = copy->lane;
                    move(e, w, &e->shared, copy->to, copy->bytes, 1, copy->data);
                }
                w->ncopies = kept;
                break;
            }
            case OP_WARPSYNC: w->sync++; break;
            case OP_FENCE: break;
            case OP_RET:
                if (m == w->stack[0].mask) {
                    w->state = ENDED, w->clock = begin + 1;
                    return;
                }
                for (int i = 0; i <= w->depth; i++) w->stack[i].mask &= ~m;
                break;
                /*@CASES@*/
        }
        for (int i = 0; i < x->nd; i++) w->ready[x->d[i]] = begin + latency + again, w->maker[x->d[i]] = pc;
        w->clock = begin + x->cost + again;
        w->slots += x->cost + again;
    }
}

static void start(const Emulator *e, Warp *w, int id) {
    *w = (Warp){.id = id, .stack = {{0, -2, ~0u}}};
    w->row = malloc((128 + 8 + 4) * (size_t)(e->rows + 1));
    w->ready = memset(w->row + e->rows, 0, 8 * (size_t)e->rows);
    w->maker = (int32_t *)(w->ready + e->rows);
    for (int i = 0; i < e->rows; i++)
        for (int l = 0; l < 16; l++) memcpy(w->row[i] + 2 * l, e->initial + i, 8);
    for (int l = 0; l < 32; l++) {
        if (e->tid_x >= 0) w->row[e->tid_x][l] = 32 * id + l;
        if (e->laneid >= 0) w->row[e->laneid][l] = l;
    }
}

static uint64_t random_(uint64_t *s) {
    *s ^= *s << 13, *s ^= *s >> 7, *s ^= *s << 17;
    return *s;
}

/* Runs all warps up to their next barrier. Returns whether that seems to take for ever. */
static int run_all(Emulator *e, Warp *warps, int mode, uint64_t *seed, int64_t most) {
    for (;;) {
        int running[MOST_WARPS], n = 0;
        for (int i = 0; i < e->warps; i++)
            if (warps[i].state == RUNS) running[n++] = i;
        if (!n) return 0;
        Warp *w = warps + running[mode == 0 ? 0 : mode == 1 ? n - 1 : (int)(random_(seed) % n)];
        run(e, w, mode < 2 ? 1000000 : 1 + (int64_t)(random_(seed) % (random_(seed) % 4 ? 8 : 200)));
        if (e->instructions > most) {
            e->pc = w->stack[w->depth].pc;
            report(e, ENDLESS, -1, -1, 0);
            return 1;
        }
    }
}

/* Lets all warps go on from the barrier that they wait at. Returns whether there is one. */
static int meet(Emulator *e, Warp *warps) {
    int64_t latest = 0;
    int waiting = 0, pc = -1;
    for (int i = 0; i < e->warps; i++) {
        waiting += warps[i].state == WAITS;
        if (warps[i].clock > latest) latest = warps[i].clock;
    }
    if (!waiting) return 0;
    e->lane = 0;
    for (int i = 0; i < e->warps; i++) {
        Warp *w = warps + i;
        if (w->state == ENDED || (pc >= 0 && w->barrier_pc != pc)) {
            e->pc = pc, e->warp = i;
            report(e, MISMATCH, w->barrier_pc, -1, 0);
        }
        if (w->state == ENDED) continue;
        pc = w->barrier_pc;
        e->stall[pc] += latest - w->clock + BARRIER;
        w->clock = latest + BARRIER, w->state = RUNS;
        w->sync++;
    }
    e->epoch++, e->barriers++;
    return 1;
}

/* Runs one program. ``mode`` 0: warps in turn between two barriers, 1: the last first, 2: slices of random warps and
   lengths. Returns whether it seems to be endless. */
int run_program(Emulator *e, int cta, int mode, uint64_t seed) {
    Warp warps[MOST_WARPS];
    uint64_t state = seed * 0x9e3779b97f4a7c15ull + 88172645463325252ull;
    int64_t most = e->instructions + MOST_INSTRUCTIONS;
    for (int i = 0; i < e->warps; i++) start(e, warps + i, i);
    memset(e->shared.memory, 0xC5, e->shared.size);
    for (int64_t i = 0; i < (e->shared.size + 1) / 2; i++)
        e->shared.cells[i] = (Cell){.state = READABLE | WRITABLE, .rcta = -1, .wcta = -1};
    e->cta = cta;
    e->program = ++e->epoch;
    int endless;
    do endless = run_all(e, warps, mode, &state, most);
    while (!endless && meet(e, warps));
    e->cycles = e->slots = 0;
    for (int i = 0; i < e->warps; i++) {
        if (warps[i].clock > e->cycles) e->cycles = warps[i].clock;
        if (warps[i].slots > e->slots) e->slots = warps[i].slots;
        free(warps[i].row), free(warps[i].copies);
    }
    return endless;
}
