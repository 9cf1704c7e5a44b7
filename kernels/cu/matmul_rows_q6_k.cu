// Products of up to 64 rows with weights in blocks of 6 bits, eight of which share a number.
#include "matmul_rows.cuh"

FEWER_KERNELS(q6_k)
