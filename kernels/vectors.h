/* How wide this processor's vectors are. For sources that compiler.py compiles with -DREAL=float -DINTEGER=int32_t, or
 * -DREAL=double -DINTEGER=int64_t, and with limits and names in the order of their numbers, as Python has them. */
#pragma once
#define _DEFAULT_SOURCE /* for madvise */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif
#define LANES (BYTES / (long)sizeof(REAL))
#define MOST_KEPT (64L << 20) /* bytes that a thread keeps for its next call, whatever else is short of memory */
#define HUGE_PAGE (2L << 20)  /* bytes of a huge page */
#define INLINE static inline __attribute__((always_inline))

enum { RETURNS };

/* Whether Python's names go as far as this number. */
#define IS_ONE_OF(number, ...) ((number) >= 0 && (number) < (long)(sizeof((int[]){__VA_ARGS__}) / sizeof(int)))

/* Whether labels are from 0 to below `classes`. */
static int all_below(const int64_t *labels, long count, long classes) {
    for (long i = 0; i < count; i++)
        if (labels[i] < 0 || labels[i] >= classes) return 0;
    return 1;
}

/* A thread's own memory, kept for its next call. */
static _Thread_local void *kept_memory;
static _Thread_local long kept_bytes;

static void forget_own(void) { free(kept_memory), kept_memory = 0, kept_bytes = 0; }

/* At least so much of it; 0 where there is none. Much of it comes in huge pages, where there are any: a large problem
 * spent a sixth of its time on being given small ones. */
static void *memory_of(long bytes) {
    if (kept_bytes < bytes) {
        const long page = bytes < HUGE_PAGE ? 4096 : HUGE_PAGE, whole = (bytes + page - 1) / page * page;
        forget_own();
        kept_memory = aligned_alloc(page, whole);
        kept_bytes = kept_memory ? whole : 0;
#if defined(MADV_HUGEPAGE)
        if (kept_memory && page == HUGE_PAGE) madvise(kept_memory, whole, MADV_HUGEPAGE);
#endif
    }
#ifdef POISON
    if (kept_memory) memset(kept_memory, 0xff, bytes); /* NaN: for a test that nothing is read that was not written */
#endif
    return kept_memory;
}

/* Behind a call: what is much the system may take back once it is short of memory; where that cannot be said it is free. */
static void leave_memory(void) {
    if (kept_bytes <= MOST_KEPT) return;
#if defined(MADV_FREE)
    if (!madvise(kept_memory, kept_bytes, MADV_FREE)) return;
#endif
    forget_own();
}

/* Frees what the threads keep. */
void forget(void) {
#pragma omp parallel
    forget_own();
}
