// Products of many rows by Hopper's own instructions, with weights in blocks of 256, and in those that have a second plane.
#include "matmul_wide.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(FOGGARA_HOST)
FG_KERNEL_MIN(256, 1, wide_q5_1, PRODUCT(bf16)) { wide<q5_1>(THE_PRODUCT); }
FG_KERNEL_MIN(256, 1, wide_q4_k, PRODUCT(bf16)) { wide<q4_k>(THE_PRODUCT); }
FG_KERNEL_MIN(256, 1, wide_q5_k, PRODUCT(bf16)) { wide<q5_k>(THE_PRODUCT); }
FG_KERNEL_MIN(256, 1, wide_q6_k, PRODUCT(bf16)) { wide<q6_k>(THE_PRODUCT); }
FG_KERNEL_MIN(256, 1, gated_wide_q5_1, GATED_PRODUCT) { wide<q5_1, 128, true>(THE_PRODUCT, THE_GATE); }
FG_KERNEL_MIN(256, 1, gated_wide_q4_k, GATED_PRODUCT) { wide<q4_k, 128, true>(THE_PRODUCT, THE_GATE); }
FG_KERNEL_MIN(256, 1, gated_wide_q5_k, GATED_PRODUCT) { wide<q5_k, 128, true>(THE_PRODUCT, THE_GATE); }
FG_KERNEL_MIN(256, 1, gated_wide_q6_k, GATED_PRODUCT) { wide<q6_k, 128, true>(THE_PRODUCT, THE_GATE); }
#endif
