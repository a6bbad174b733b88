/* Tiles of a product whose sums stay in registers: ROWS rows of two vectors. */
#include "vectors.h"

#if BYTES == 64
#define ROWS 12 /* 24 sums, 2 weights and 1 broadcast in 32 registers */
#else
#define ROWS 6 /* 12 sums, 2 weights and 1 broadcast in 16 registers */
#endif

typedef REAL V __attribute__((vector_size(BYTES), aligned(sizeof(REAL)), may_alias));

#define UNROLL _Pragma("GCC unroll 12")

/* TILE for as many rows as a tile has: a constant, so that its sums stay in registers. */
#if ROWS == 12
#define LARGE           \
    CASE(12) CASE(11) CASE(10) CASE(9) CASE(8) CASE(7)
#else
#define LARGE
#endif
#define CASE(N) case N: TILE(N); break;
#define TILES(rows)                       \
    switch (rows) {                       \
        LARGE CASE(6) CASE(5) CASE(4) CASE(3) CASE(2) \
        default: TILE(1);                 \
    }
