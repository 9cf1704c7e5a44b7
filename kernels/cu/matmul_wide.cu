// Products of many rows by Hopper's own instructions, with weights that have no blocks.
#include "matmul_wide.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(FOGGARA_HOST)
// Where no registers are needed to convert weights, three warpgroups share the rows of a tile: of what it reads, and the second
// level of the cache cannot give much faster, they make more.
FG_KERNEL_MIN(384, 1, wide_bf16, PRODUCT(bf16)) { wide<bf16, 192>(THE_PRODUCT); }
FG_KERNEL_MIN(256, 1, wide_f16, PRODUCT(bf16)) { wide<f16>(THE_PRODUCT); }
FG_KERNEL_MIN(256, 1, wide_f8, PRODUCT(bf16)) { wide<f8>(THE_PRODUCT); }
FG_KERNEL_MIN(384, 1, gated_wide_bf16, GATED_PRODUCT) { wide<bf16, 192, true>(THE_PRODUCT, THE_GATE); }
FG_KERNEL_MIN(256, 1, gated_wide_f16, GATED_PRODUCT) { wide<f16, 128, true>(THE_PRODUCT, THE_GATE); }
FG_KERNEL_MIN(256, 1, gated_wide_f8, GATED_PRODUCT) { wide<f8, 128, true>(THE_PRODUCT, THE_GATE); }
#endif
