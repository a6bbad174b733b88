/* How wide this processor's vectors are. For sources that compiler.py compiles with -DREAL=float -DINTEGER=int32_t, or
 * -DREAL=double -DINTEGER=int64_t, and with limits and names in the order of their numbers, as Python has them. */
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
#define MOST_KEPT (64L << 20) /* bytes that a thread keeps for its next call */
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

/* A thread's own memory, kept for its next call; 0 where there is none. Much of it comes in huge pages, where there are
 * any: a large problem spent a sixth of its time on being given small ones. */
static void *memory_of(long bytes) {
    static _Thread_local void *memory;
    static _Thread_local long held;
    if (held < bytes || (!bytes && held > MOST_KEPT)) {
        const long page = bytes < HUGE_PAGE ? 4096 : HUGE_PAGE;
        free(memory);
        held = (bytes + page - 1) / page * page;
        memory = bytes ? aligned_alloc(page, held) : 0;
        if (!memory) held = 0;
#if defined(MADV_HUGEPAGE)
        else if (page == HUGE_PAGE) madvise(memory, held, MADV_HUGEPAGE);
#endif
    }
#ifdef POISON
    if (memory && bytes) memset(memory, 0xff, bytes); /* NaN: for a test that nothing is read that was not written */
#endif
    return memory;
}
