// Products of up to 64 rows of E4M3 with matrices in E4M3 (f8_few.cuh), as they are and with a gated activation.
#include "f8_few.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(FOGGARA_HOST)
// f8_few_HEIGHT and f8_few_gated_HEIGHT, of (N, PAIR, WARPGROUPS, STAGES, LINES): op/matmul/f8.rs knows the sizes, too.
#define FEW(name, warpgroups, ...)                                                                                      \
    FG_KERNEL_MIN(128 + 128 * warpgroups, 2, f8_few_##name, F8_PRODUCT) { f8_few<__VA_ARGS__>(THE_PRODUCT, x_scales, FromCodes{}, Plain{}); } \
    FG_KERNEL_MIN(128 + 128 * warpgroups, 2, f8_few_gated_##name, F8_GATED_PRODUCT) {                                       \
        f8_few<__VA_ARGS__>(THE_PRODUCT, x_scales, FromCodes{}, Gated{THE_GATE});                                                     \
    }
FEW(8, 1, 8, 2, 1, 5, 2)
FEW(16, 1, 16, 2, 1, 4, 2)
FEW(32, 1, 32, 1, 1, 4, 2)
FEW(64, 2, 64, 1, 2, 4, 1)
FEW(64_narrow, 1, 64, 1, 1, 3, 2)
FG_KERNEL_MIN(256, 2, f8_few_own, F8_PRODUCT) { f8_few<8, 2, 1, 4, 2>(THE_PRODUCT, x_scales, FromPlain{}, Plain{}); }
#endif
