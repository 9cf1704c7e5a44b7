// Products of up to 64 rows with weights in blocks of 5 bits, eight of which share two numbers.
#include "matmul_rows.cuh"

FEWER_KERNELS(q5_k)
