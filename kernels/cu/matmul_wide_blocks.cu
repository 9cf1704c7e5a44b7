// Products of many rows by Hopper's own instructions, with weights in blocks.
#include "matmul_wide.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(FOGGARA_HOST)
FG_KERNEL_MIN(256, 1, wide_q8_0, PRODUCT(bf16)) { wide<q8_0>(THE_PRODUCT); }
FG_KERNEL_MIN(256, 1, wide_q4_0, PRODUCT(bf16)) { wide<q4_0>(THE_PRODUCT); }
FG_KERNEL_MIN(256, 1, wide_q4_1, PRODUCT(bf16)) { wide<q4_1>(THE_PRODUCT); }
FG_KERNEL_MIN(256, 1, gated_wide_q8_0, GATED_PRODUCT) { wide<q8_0, 128, true>(THE_PRODUCT, THE_GATE); }
FG_KERNEL_MIN(256, 1, gated_wide_q4_0, GATED_PRODUCT) { wide<q4_0, 128, true>(THE_PRODUCT, THE_GATE); }
FG_KERNEL_MIN(256, 1, gated_wide_q4_1, GATED_PRODUCT) { wide<q4_1, 128, true>(THE_PRODUCT, THE_GATE); }
#endif
