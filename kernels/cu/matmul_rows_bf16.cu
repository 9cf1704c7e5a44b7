// Products of up to 64 rows with weights in bf16: a file for each type, so that they are compiled at the same time.
#include "matmul_rows.cuh"

KERNELS(bf16)
