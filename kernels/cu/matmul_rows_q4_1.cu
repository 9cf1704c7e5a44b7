// Products of up to 64 rows with weights in blocks of 4 bits, two numbers each.
#include "matmul_rows.cuh"

FOUR_BIT_KERNELS(q4_1)
