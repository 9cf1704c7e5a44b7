// Hopper's products of bf16, by the 128 threads of a warpgroup.
#pragma once
#include "wgmma.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(FOGGARA_HOST)
// wgmma: d += a (64 outputs × 16 inputs) · b (16 inputs × N rows), done when it is waited for. `a` is described like `b`, or given in
// registers: as multiply_16x8x16 takes it, 16 outputs a warp.
#ifdef FOGGARA_HOST
// Pair `pair` of inputs of outputs g and g + 8 of a warp is `a[high][pair]`.
template <u32 SUMS>
FG_DEVICE void multiply_by_hand(float (&d)[SUMS], const u32 (&a)[2][8], u64 b) {
    for (u32 i = 0; i < SUMS; i++) {
        u32 column = i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2;
        float products[16];
        for (u32 pair = 0; pair < 8; pair++) {
            u32 w = a[i / 2 % 2][pair], x = described(b, column, pair);
            products[2 * pair] = low_bf16(w) * low_bf16(x), products[2 * pair + 1] = high_bf16(w) * high_bf16(x);
        }
        d[i] = twin::add_together(d[i], products);
    }
}
template <u32 SUMS>
FG_DEVICE void multiply_warpgroup(float (&d)[SUMS], u64 a, u64 b) {
    u32 rows[2][8], row = threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4;
    for (u32 i = 0; i < 16; i++) rows[i / 8][i % 8] = described(a, row + i / 8 * 8, i % 8);
    multiply_by_hand(d, rows, b);
}
template <u32 SUMS>
FG_DEVICE void multiply_warpgroup(float (&d)[SUMS], const u32 (&a)[4], u64 b) {
    u32 rows[2][8];
    for (u32 i = 0; i < 16; i++) {
        u32 from = threadIdx.x % 32 / 4 * 4 + i % 4;
        rows[i / 8][i % 8] = __shfl_sync(0xffffffffu, a[i % 8 / 4 * 2 + i / 8], from);
    }
    multiply_by_hand(d, rows, b);
}
#else
// For `N` rows; A, B and so on are the numbers after those of the sums.
#define FG_MULTIPLY(N, SUMS, B, ...)                                                                                        \
    FG_DEVICE void multiply_warpgroup(float (&d)[SUMS], u64 a, u64 b) {                                                     \
        asm volatile("{ .reg .pred more; setp.ne.u32 more, 1, 0; wgmma.mma_async.sync.aligned.m64n" #N                      \
                     "k16.f32.bf16.bf16 {" FG_NAMES_##SUMS "}, %" #SUMS ", %" #B ", more, 1, 1, 0, 0; }"                    \
                     : __VA_ARGS__                                                                                          \
                     : "l"(a), "l"(b));                                                                                     \
    }
// With `a` in registers.
#define FG_MULTIPLY_HELD(N, SUMS, A1, A2, A3, B, ...)                                                                       \
    FG_DEVICE void multiply_warpgroup(float (&d)[SUMS], const u32 (&a)[4], u64 b) {                                         \
        asm volatile("{ .reg .pred more; setp.ne.u32 more, 1, 0; wgmma.mma_async.sync.aligned.m64n" #N                      \
                     "k16.f32.bf16.bf16 {" FG_NAMES_##SUMS "}, {%" #SUMS ", %" #A1 ", %" #A2 ", %" #A3 "}, %" #B            \
                     ", more, 1, 1, 0; }"                                                                                   \
                     : __VA_ARGS__                                                                                          \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                                 \
    }
FG_MULTIPLY(64, 32, 33, FG_SUMS_32(0))
FG_MULTIPLY(128, 64, 65, FG_SUMS_64)
FG_MULTIPLY(136, 68, 69, FG_SUMS_64, FG_SUMS_4(64))
FG_MULTIPLY(144, 72, 73, FG_SUMS_64, FG_SUMS_8(64))
FG_MULTIPLY(160, 80, 81, FG_SUMS_64, FG_SUMS_16(64))
FG_MULTIPLY(192, 96, 97, FG_SUMS_64, FG_SUMS_32(64))
FG_MULTIPLY(224, 112, 113, FG_SUMS_64, FG_SUMS_32(64), FG_SUMS_16(96))
FG_MULTIPLY(256, 128, 129, FG_SUMS_64, FG_SUMS_32(64), FG_SUMS_32(96))
FG_MULTIPLY_HELD(64, 32, 33, 34, 35, 36, FG_SUMS_32(0))
FG_MULTIPLY_HELD(128, 64, 65, 66, 67, 68, FG_SUMS_64)
FG_MULTIPLY_HELD(256, 128, 129, 130, 131, 132, FG_SUMS_64, FG_SUMS_32(64), FG_SUMS_32(96))
#endif
#endif
