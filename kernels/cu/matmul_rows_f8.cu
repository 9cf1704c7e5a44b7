// Products of up to 64 rows with weights in E4M3: a file for each type, so that they are compiled at the same time.
#include "matmul_rows.cuh"

EIGHT_BIT_KERNELS(f8)
