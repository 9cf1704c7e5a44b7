// What kernels of products have in common.
//
// One order of addition: an output is one chain of multiply-adds of 16 inputs each, from the first inputs to the last, on top of
// each other (multiply_16x8x16, or wgmma, which gives the same bits). No kernel splits it, whatever the number of rows, so that a
// row's numbers depend on nothing but the row.
#pragma once
#include "foggara.cuh"

// out[r][o] = scales[o] · Σ_i x[r][i] · w[o][i] for `rows` rows and `n` outputs of `k` inputs. Rows of w begin every 16 bytes.
// One of three: one matrix `w`; one matrix a batch (`w_table`, no `offsets`), where blockIdx.z is the batch and all rows meet
// it; or one a group (`offsets`), where rows offsets[g]..offsets[g + 1] of out meet matrix g. Row r of out reads row x_rows[r] of
// x if there are x_rows, and row r otherwise.
//
// `known`: after the offsets were written, another product of these groups was started before this one. Such products let the next
// kernel begin only when they themselves have waited, so the offsets were there before this one began, and matrices are asked for
// before it waits.
template <class A>
struct Product {
    float *out;
    u64 out_stride, out_batch;
    const A *x;
    u64 x_stride, x_batch;
    const u32 *x_rows;
    const u8 *w;
    const float *scales;
    const u64 *w_table, *scale_table;
    const u32 *offsets;
    u32 count, rows, n, k, known;
};
#define PRODUCT(A)                                                                                                      \
    (float *out, u64 out_stride, u64 out_batch, const A *x, u64 x_stride, u64 x_batch, const u32 *x_rows, const u8 *w,  \
     const float *scales, const u64 *w_table, const u64 *scale_table, const u32 *offsets, u32 count, u32 rows, u32 n,   \
     u32 k, u32 known)
#define THE_PRODUCT \
    {out, out_stride, out_batch, x, x_stride, x_batch, x_rows, w, scales, w_table, scale_table, offsets, count, rows, n, k, \
     known}

struct Gate {
    u32 activation;
    float alpha, limit;
};
#define GATED_PRODUCT                                                                                                   \
    (float *out, u64 out_stride, u64 out_batch, const bf16 *x, u64 x_stride, u64 x_batch, const u32 *x_rows,            \
     const u8 *w, const float *scales, const u64 *w_table, const u64 *scale_table, const u32 *offsets, u32 count,       \
     u32 rows, u32 n, u32 k, u32 known, u32 activation, float alpha, float limit)
#define THE_GATE {activation, alpha, limit}

// The output that is row `row` of the weights of a tile whose first one is `first`; n or more if there is none. `GATED`: eights
// of the first n / 2 outputs take turns with those n / 2 after them, so that a thread that has one has the other.
template <bool GATED>
FG_DEVICE u32 output_of(u32 n, u32 first, u32 row) {
    if (!GATED) return first + row;
    u32 gate = first / 2 + row / 16 * 8 + row % 8;
    return gate < n / 2 ? gate + row / 8 % 2 * (n / 2) : n;
}

// Rows that meet one matrix, and are met together.
struct Tile {
    u32 first, rows;  // of out
};

// An offset. Before a kernel has waited for others, what is in the first-level cache may be of before.
FG_DEVICE u32 offset_at(const u32 *offset, bool waited) { return waited ? *offset : load_latest(offset); }

// The group of the `index`-th of all groups' tiles of `height` rows, and which of the group's tiles it is; false if there are
// fewer. The whole warp asks for the same.
FG_DEVICE bool find_tile(const u32 *offsets, u32 count, bool waited, u32 height, u32 index, u32 &group, u32 &tile) {
    u32 lane = threadIdx.x % 32;
    for (u32 base = 0; base < count; base += 32) {
        u32 tiles = 0;
        if (base + lane < count) {
            u32 begin = offset_at(offsets + base + lane, waited), end = offset_at(offsets + base + lane + 1, waited);
            tiles = (end - begin + height - 1) / height;
        }
        u32 end = tiles;
        FG_UNROLL
        for (u32 step = 1; step < 32; step *= 2) {
            u32 before = __shfl_up_sync(0xffffffffu, end, step);
            if (lane >= step) end += before;
        }
        u32 mine = __ballot_sync(0xffffffffu, index < end);
        if (mine) {
            u32 owner = __ffs(mine) - 1;
            group = base + owner;
            tile = index - __shfl_sync(0xffffffffu, end - tiles, owner);
            return true;
        }
        index -= __shfl_sync(0xffffffffu, end, 31);
    }
    return false;
}

// Makes of the product the matrix that this block's tile of at most `height` rows meets; false if it has no tile. blockIdx.x
// counts tiles (of all groups, one after the other), blockIdx.z batches. If there are groups that are not `known`, it has waited
// for the kernels before. `waited`: so has the caller.
template <class A>
FG_DEVICE bool narrow(Product<A> &p, u32 height, Tile &at, bool waited = false) {
    u32 group = blockIdx.z, tile = blockIdx.x, first = 0;
    if (p.offsets) {
        if (!waited && !p.known) wait_for_kernel_before();
        waited |= !p.known;
        if (!find_tile(p.offsets, p.count, waited, height, blockIdx.x, group, tile)) return false;
        first = offset_at(p.offsets + group, waited);
        p.rows = offset_at(p.offsets + group + 1, waited) - first;
    }
    if (p.w_table) p.w = (const u8 *)p.w_table[group];
    if (p.scale_table) p.scales = (const float *)p.scale_table[group];
    p.x += group * p.x_batch;
    p.out += group * p.out_batch;
    at = {first + tile * height, min(p.rows - tile * height, height)};
    return true;
}

// The row of x that row `row` of a tile reads; past the last one, as that one.
template <class A>
FG_DEVICE const A *row_of(const Product<A> &p, const Tile &at, u32 row) {
    row = at.first + min(row, at.rows - 1);
    return p.x + (p.x_rows ? p.x_rows[row] : row) * p.x_stride;
}
