// Products of up to 64 rows with weights in f16, rounded to bf16: a file for each type, so that they are compiled at the same time.
#include "matmul_rows.cuh"

KERNELS(f16)
