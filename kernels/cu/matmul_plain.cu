// Products with matrices in plain f32, for activations or weights in f32. blockIdx.x counts outputs, blockIdx.y matrices.
#include "blocks.cuh"
#include "product.cuh"

constexpr u32 MAX_WARPS = 8;

// The `index`-th of the groups that have rows; `count` if there are fewer.
FG_DEVICE u32 group_with_rows(const u32 *offsets, u32 count, u32 index) {
    u32 lane = threadIdx.x % 32;
    for (u32 base = 0; base < count; base += 32) {
        u32 group = base + lane;
        bool some = group < count && load_latest(offsets + group + 1) > load_latest(offsets + group);
        u32 all = __ballot_sync(0xffffffffu, some);
        u32 here = __popc(all);
        if (index < here) {
            bool mine = some && __popc(all & ((1u << lane) - 1)) == (int)index;
            return base + __ffs(__ballot_sync(0xffffffffu, mine)) - 1;
        }
        index -= here;
    }
    return count;
}

// Makes of the product the one matrix and all rows that meet it; false if this block has none. `first` is the first row of out.
template <class A>
FG_DEVICE bool narrow(Product<A> &p, u32 &first) {
    first = 0;
    u32 group = blockIdx.y;
    if (p.offsets) {
        group = group_with_rows(p.offsets, p.count, group);
        if (group == p.count) return false;
        first = load_latest(p.offsets + group);
        p.rows = load_latest(p.offsets + group + 1) - first;
    }
    if (p.w_table) p.w = (const u8 *)p.w_table[group];
    if (p.scale_table) p.scales = (const float *)p.scale_table[group];
    p.x += group * p.x_batch;
    p.out += group * p.out_batch;
    return true;
}

// What a thread reads of a row of k weights at a time: unit `unit` of ELEMENTS.
template <class W>
struct Plain {
    static constexpr u32 ELEMENTS = 16 / sizeof(W);
    uint4 all;
    FG_DEVICE Plain load(const u8 *row, u32, u32 unit, bool live) { return {load_streaming_or_zero(row + (u64)unit * 16, live)}; }
    FG_DEVICE void unpack(float (&out)[ELEMENTS], const Plain &v) {
        union {
            uint4 all;
            W each[ELEMENTS];
        } unit = {v.all};
        FG_UNROLL
        for (u32 i = 0; i < ELEMENTS; i++) out[i] = to_float(unit.each[i]);
    }
};
// Of blocks as many as of bf16, so that they are added up in the same order.
template <class W>
struct PlainBlocks {
    static constexpr u32 ELEMENTS = 8;
    float each[ELEMENTS];
    FG_DEVICE PlainBlocks load(const u8 *row, u32 k, u32 unit, bool live) {
        PlainBlocks v = {};
        FG_UNROLL
        for (u32 i = 0; live && i < ELEMENTS; i++) v.each[i] = block_weight<W>(row, k, unit * ELEMENTS + i);
        return v;
    }
    FG_DEVICE void unpack(float (&out)[ELEMENTS], const PlainBlocks &v) {
        FG_UNROLL
        for (u32 i = 0; i < ELEMENTS; i++) out[i] = v.each[i];
    }
};
template <>
struct Plain<q8_0> : PlainBlocks<q8_0> {};
template <>
struct Plain<q4_0> : PlainBlocks<q4_0> {};
template <>
struct Plain<q4_1> : PlainBlocks<q4_1> {};
template <>
struct Plain<q5_1> : PlainBlocks<q5_1> {};
template <>
struct Plain<q4_k> : PlainBlocks<q4_k> {};
template <>
struct Plain<q5_k> : PlainBlocks<q5_k> {};
template <>
struct Plain<q6_k> : PlainBlocks<q6_k> {};

// In plain f32, for activations or weights in f32: a warp an output; or, with as many blocks as outputs, all warps of a block. What
// a thread adds up, and in which order, depends on sizes of the matrix only: R says how many rows share a reading of it.
template <class W, class A, u32 R>
FG_DEVICE void plain_rows(Product<A> p) {
    constexpr u32 ELEMENTS = Plain<W>::ELEMENTS, AHEAD = 4;
    FG_SHARED float parts[2][MAX_WARPS][R];
    u32 first;
    wait_for_kernel_before();
    let_next_kernel_begin();
    if (!narrow(p, first)) return;
    bool alone = gridDim.x < p.n;
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    u32 output = alone ? blockIdx.x * warps + warp : blockIdx.x;
    if (output >= p.n) return;
    u32 units = (p.k + ELEMENTS - 1) / ELEMENTS;
    u32 begin = alone ? lane : threadIdx.x, step = alone ? 32 : blockDim.x, turn = 0;
    const u8 *w = p.w + (u64)output * row_bytes<W>(p.k);
    float scale = p.scales ? p.scales[output] : 1.0f;
    for (u32 pass = 0; pass < p.rows; pass += R) {
        const A *x[R];
        float sums[R];
        FG_UNROLL
        for (u32 r = 0; r < R; r++) {
            u32 row = first + min(pass + r, p.rows - 1);
            x[r] = p.x + (p.x_rows ? p.x_rows[row] : row) * p.x_stride;
            sums[r] = 0.0f;
        }
        FG_NO_UNROLL
        for (u32 next = begin; next < units; next += AHEAD * step) {
            decltype(Plain<W>::load(w, 0, 0, false)) weights[AHEAD];
            FG_UNROLL
            for (u32 a = 0; a < AHEAD; a++) {
                u32 unit = next + a * step;
                weights[a] = Plain<W>::load(w, p.k, unit, unit < units);
            }
            FG_UNROLL
            for (u32 a = 0; a < AHEAD; a++) {
                float each[ELEMENTS];
                Plain<W>::unpack(each, weights[a]);
                FG_UNROLL
                for (u32 i = 0; i < ELEMENTS; i++) {
                    u32 at = (next + a * step) * ELEMENTS + i;
                    if (at >= p.k) continue;
                    FG_UNROLL
                    for (u32 r = 0; r < R; r++) sums[r] = fmaf(to_float(x[r][at]), each[i], sums[r]);
                }
            }
        }
        FG_UNROLL
        for (u32 r = 0; r < R; r++) {
            sums[r] = warp_sum(sums[r]);
            if (lane == 0) parts[turn % 2][warp][r] = sums[r];
        }
        if (!alone) __syncthreads();
        FG_UNROLL
        for (u32 r = 0; r < R; r++) {
            if (lane != 0 || pass + r >= p.rows || (!alone && warp != 0)) continue;
            float sum = alone ? sums[r] : 0.0f;
            for (u32 j = 0; !alone && j < warps; j++) sum += parts[turn % 2][j][r];
            p.out[(first + pass + r) * p.out_stride + output] = sum * scale;
        }
        turn++;
    }
}

FG_KERNEL(256, plain_row_f32, PRODUCT(float)) { plain_rows<float, float, 1>(THE_PRODUCT); }
FG_KERNEL(256, plain_rows_f32, PRODUCT(float)) { plain_rows<float, float, 8>(THE_PRODUCT); }
FG_KERNEL(256, plain_rows_bf16, PRODUCT(float)) { plain_rows<bf16, float, 8>(THE_PRODUCT); }
FG_KERNEL(256, plain_rows_f16, PRODUCT(float)) { plain_rows<f16, float, 8>(THE_PRODUCT); }
FG_KERNEL(256, plain_rows_f8, PRODUCT(float)) { plain_rows<f8, float, 8>(THE_PRODUCT); }
FG_KERNEL(256, plain_rows_q8_0, PRODUCT(float)) { plain_rows<q8_0, float, 8>(THE_PRODUCT); }
FG_KERNEL(256, plain_rows_q4_0, PRODUCT(float)) { plain_rows<q4_0, float, 8>(THE_PRODUCT); }
FG_KERNEL(256, plain_rows_q4_1, PRODUCT(float)) { plain_rows<q4_1, float, 8>(THE_PRODUCT); }
FG_KERNEL(256, plain_rows_q5_1, PRODUCT(float)) { plain_rows<q5_1, float, 8>(THE_PRODUCT); }
FG_KERNEL(256, plain_rows_q4_k, PRODUCT(float)) { plain_rows<q4_k, float, 8>(THE_PRODUCT); }
FG_KERNEL(256, plain_rows_q5_k, PRODUCT(float)) { plain_rows<q5_k, float, 8>(THE_PRODUCT); }
FG_KERNEL(256, plain_rows_q6_k, PRODUCT(float)) { plain_rows<q6_k, float, 8>(THE_PRODUCT); }
FG_KERNEL(256, plain_row_f32_of_bf16, PRODUCT(bf16)) { plain_rows<float, bf16, 1>(THE_PRODUCT); }
FG_KERNEL(256, plain_rows_f32_of_bf16, PRODUCT(bf16)) { plain_rows<float, bf16, 8>(THE_PRODUCT); }
