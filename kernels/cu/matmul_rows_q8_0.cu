// Products of up to 64 rows with weights in blocks of 8 bits. A warp has to convert them: blocks are so small that many of them are on
// a multiprocessor at once.
#include "matmul_rows.cuh"

BOTH(32, 4, 1, q8_0, 1, 1, 1, 1, 3, 4, 1)
BOTH(32, 4, 1_of_32, q8_0, 1, 1, 1, 2, 4, 2, 1)
BOTH(32, 4, 8, q8_0, 1, 1, 1, 1, 4, 2, 8)
BOTH(32, 4, 8_of_32, q8_0, 1, 1, 1, 2, 3, 2, 8)
BOTH(128, 2, 16, q8_0, 2, 2, 2, 1, 4, 2, 16)
BOTH(128, 3, 16_of_64, q8_0, 2, 1, 4, 1, 3, 2, 16)
BOTH(128, 2, 32, q8_0, 4, 2, 2, 1, 4, 2, 32)
BOTH(256, 2, 32_of_64, q8_0, 4, 2, 4, 1, 2, 2, 32)
BOTH(256, 2, 64, q8_0, 8, 4, 2, 1, 4, 1, 64)
BOTH(256, 2, 64_of_64, q8_0, 8, 2, 4, 1, 4, 1, 64)
ROWS(256, 1, 128, q8_0, 16, 2, 4, 2, 2, 1, false, 128, false)
ROWS(32, 4, any, q8_0, 1, 1, 1, 1, 3, 1, false, 8, true, false)
