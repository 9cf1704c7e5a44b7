// What kernels of products of weights in E4M3 with activations in E4M3 have in common: Hopper's tensor cores multiply these as they
// are.
//
// One order of addition, in every kernel of these: inputs in groups of 128; a group is a chain of four wgmma of 32 inputs each, from
// zero; sums of groups are added up in f32, in order. Tensor cores add E4M3 with some 14 bits: that is why totals are apart.
#pragma once
#include "product.cuh"
#include "wgmma.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(FOGGARA_HOST)
// As PRODUCT, but rows of x have a scale each. Strides of x are in bytes, multiples of 16; the rest of a row's last 16 is zeros.
#define F8_ARGUMENTS                                                                                                   \
    float *out, u64 out_stride, u64 out_batch, const f8 *x, u64 x_stride, u64 x_batch, const u32 *x_rows,              \
        const float *x_scales, const u8 *w, const float *scales, const u64 *w_table, const u64 *scale_table,           \
        const u32 *offsets, u32 count, u32 rows, u32 n, u32 k, u32 known
#define F8_PRODUCT (F8_ARGUMENTS)
#define F8_GATED_PRODUCT (F8_ARGUMENTS, u32 activation, float alpha, float limit)

// Inputs of a group, and bytes of a line.
constexpr u32 GROUP = 128;

// wgmma: d = (or +=, if not FRESH) a (64 outputs × 32 inputs) · b (32 inputs × N rows), by the 128 threads of a warpgroup, done when
// it is waited for. Both are described; 2 more are the next 32 inputs. N is twice the number of sums: thread t of four that share
// outputs g and g + 8 of a warp's 16 has columns 8 · i + 2t and the next of them.
#ifdef FOGGARA_HOST
template <bool FRESH, u32 SUMS>
FG_DEVICE void multiply_f8(float (&d)[SUMS], u64 a, u64 b) {
    u32 row = threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4;
    for (u32 i = 0; i < SUMS; i++) {
        u32 column = i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2;
        double sum = FRESH ? 0.0 : d[i];
        for (u32 four = 0; four < 8; four++) {
            u32 w = described(a, row + i / 2 % 2 * 8, four), x = described(b, column, four);
            for (u32 at = 0; at < 32; at += 8) sum += to_float(f8{(u8)(w >> at)}) * to_float(f8{(u8)(x >> at)});
        }
        d[i] = (float)sum;
    }
}
#else
// For `N` rows; B and C are the numbers after those of the sums.
#define FG_MULTIPLY_F8(N, SUMS, B, C, ...)                                                                                    \
    template <bool FRESH>                                                                                                     \
    FG_DEVICE void multiply_f8(float (&d)[SUMS], u64 a, u64 b) {                                                              \
        asm volatile("{ .reg .pred more; setp.ne.u32 more, %" #C ", 0; wgmma.mma_async.sync.aligned.m64n" #N                  \
                     "k32.f32.e4m3.e4m3 {" FG_NAMES_##SUMS "}, %" #SUMS ", %" #B ", more, 1, 1; }"                            \
                     : __VA_ARGS__                                                                                            \
                     : "l"(a), "l"(b), "n"(FRESH ? 0 : 1));                                                                   \
    }
FG_MULTIPLY_F8(8, 4, 5, 6, FG_SUMS_4(0))
FG_MULTIPLY_F8(16, 8, 9, 10, FG_SUMS_8(0))
FG_MULTIPLY_F8(32, 16, 17, 18, FG_SUMS_16(0))
FG_MULTIPLY_F8(64, 32, 33, 34, FG_SUMS_32(0))
FG_MULTIPLY_F8(80, 40, 41, 42, FG_SUMS_32(0), FG_SUMS_8(32))
FG_MULTIPLY_F8(96, 48, 49, 50, FG_SUMS_32(0), FG_SUMS_16(32))
FG_MULTIPLY_F8(112, 56, 57, 58, FG_SUMS_32(0), FG_SUMS_16(32), FG_SUMS_8(48))
FG_MULTIPLY_F8(128, 64, 65, 66, FG_SUMS_64)
FG_MULTIPLY_F8(136, 68, 69, 70, FG_SUMS_64, FG_SUMS_4(64))
#endif

// The sums of a group of the 64 outputs and the rows that begin there.
template <u32 SUMS>
FG_DEVICE void multiply_group(float (&sums)[SUMS], u64 w, u64 x) {
    multiply_f8<true>(sums, w, x);
    multiply_f8<false>(sums, w + 2, x + 2);
    multiply_f8<false>(sums, w + 4, x + 4);
    multiply_f8<false>(sums, w + 6, x + 6);
}

// A tile of outputs of rows that meet one matrix.
struct F8Tile {
    u32 group, first, rows, output;  // the rows and outputs begin with `first` and `output`
};

// The `index`-th of all tiles of `height` rows and `width` outputs; false if there are fewer. Tiles of the same weights follow each
// other. The whole warp asks for the same.
FG_DEVICE bool find_f8_tile(const Product<f8> &p, bool waited, u32 height, u32 width, u32 index, F8Tile &at) {
    u32 across = (p.n + width - 1) / width, begin = 0, end = p.rows;
    if (!p.offsets) {
        u32 each = across * ((end + height - 1) / height);
        at.group = index / each;
        index %= each;
        if (at.group >= p.count) return false;
    } else {
        u32 lane = threadIdx.x % 32, base = 0;
        while (true) {
            if (base >= p.count) return false;
            u32 from = 0, to = 0;
            if (base + lane < p.count) {
                from = offset_at(p.offsets + base + lane, waited), to = offset_at(p.offsets + base + lane + 1, waited);
            }
            u32 tiles = (to - from + height - 1) / height * across, past = tiles;
            FG_UNROLL
            for (u32 step = 1; step < 32; step *= 2) {
                u32 before = __shfl_up_sync(0xffffffffu, past, step);
                if (lane >= step) past += before;
            }
            u32 mine = __ballot_sync(0xffffffffu, index < past);
            if (mine) {
                u32 owner = __ffs(mine) - 1;
                index -= __shfl_sync(0xffffffffu, past - tiles, owner);
                begin = __shfl_sync(0xffffffffu, from, owner), end = __shfl_sync(0xffffffffu, to, owner);
                at.group = base + owner;
                break;
            }
            index -= __shfl_sync(0xffffffffu, past, 31);
            base += 32;
        }
    }
    u32 down = (end - begin + height - 1) / height, row = index % down * height;
    at.first = begin + row, at.rows = min(end - begin - row, height), at.output = index / down * width;
    return true;
}

// The matrix of a group, its scales, and where its part of x and of out begins.
FG_DEVICE const u8 *weights_of(const Product<f8> &p, u32 group) { return p.w_table ? (const u8 *)p.w_table[group] : p.w; }
FG_DEVICE const float *scales_of(const Product<f8> &p, u32 group) {
    return p.scale_table ? (const float *)p.scale_table[group] : p.scales;
}
// Which row of x row `row` of a tile is.
FG_DEVICE u32 x_row_of(const Product<f8> &p, const F8Tile &at, u32 row) {
    row += at.first;
    return p.x_rows ? p.x_rows[row] : row;
}

// What a sum is multiplied by: in one order, everywhere.
FG_DEVICE float scaled(float sum, float x_scale, float scale) { return __fmul_rn(__fmul_rn(x_scale, scale), sum); }
#endif
