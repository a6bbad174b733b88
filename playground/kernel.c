/* The CPU's kernel for the page: clang's own vector types, four tasks in a vector. kernel.py compiles it. */
#include "../kernels/mlp_adapt/native.c"
