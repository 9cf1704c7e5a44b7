// Norms of the residual stream (Zhang and Sennrich, "Root mean square layer normalization", 2019), and what is added to it before:
// what the kernels that do it have in common.
#pragma once
#include "foggara.cuh"

// Where a norm's rows go in E4M3, each `stride` codes, with zeros behind its end.
struct Codes {
    u8 *codes;
    float *scales;
    u32 stride;
};

#define NOWHERE 0xffffffffu

// What experts give, added up.

// Rounded once, in every kernel: which of them adds up depends on more than the row.
FG_DEVICE void add_weighted(float &sum, float weight, float y, float bias) { sum = fmaf(weight, y + bias, sum); }
FG_DEVICE void add_weighted(float4 &sum, float weight, float4 y, float4 bias) {
    add_weighted(sum.x, weight, y.x, bias.x);
    add_weighted(sum.y, weight, y.y, bias.y);
    add_weighted(sum.z, weight, y.z, bias.z);
    add_weighted(sum.w, weight, y.w, bias.w);
}

// Rows of whole float4s, of which each thread has PER: all that is read is asked for at once, and stays in registers.

FG_DEVICE float4 floats_of(uint4 v) {
    return make_float4(bits_to_float(v.x), bits_to_float(v.y), bits_to_float(v.z), bits_to_float(v.w));
}
FG_DEVICE void store_4(float *to, float4 v) { *(float4 *)to = v; }
FG_DEVICE void store_4(bf16 *to, float4 v) { *(uint2 *)to = make_uint2(to_bf16x2(v.x, v.y), to_bf16x2(v.z, v.w)); }
// Said how it is rounded, as below: several kernels do this, and a row's bits are not to depend on which.
FG_DEVICE float squares_of(float4 v) { return fmaf(v.w, v.w, fmaf(v.z, v.z, fmaf(v.y, v.y, v.x * v.x))); }

// Experts' results: sorted rows `stride` float4s apart, and of each pair of a row and an expert, which it is, and its weight.
struct Results {
    const float4 *y, *bias;
    const u32 *positions;
    const float *weights;
    const u32 *group_of_row;
    u32 stride, top_k;
};

// Adds those of a row to `sums`, in the order of its pairs.
template <u32 PER>
FG_DEVICE void add_results(float4 (&sums)[PER], const Results &e, u32 row, u32 width) {
    const u32 ahead = PER == 1 ? 4 : 1;  // more has no room in registers
    const u32 *positions = e.positions + (u64)row * e.top_k;
    const float *weights = e.weights + (u64)row * e.top_k;
    const float4 zero = {0.0f, 0.0f, 0.0f, 0.0f};
    FG_NO_UNROLL
    for (u32 base = 0; base < e.top_k; base += ahead) {
        u32 position[ahead];
        float by[ahead];
        FG_UNROLL
        for (u32 i = 0; i < ahead; i++) {
            position[i] = base + i < e.top_k ? positions[base + i] : NOWHERE;
            by[i] = base + i < e.top_k ? weights[base + i] : 0.0f;
        }
        float4 value[ahead][PER];
        FG_UNROLL
        for (u32 i = 0; i < ahead; i++) {
            FG_UNROLL
            for (u32 j = 0; j < PER; j++) {
                u32 at = threadIdx.x + j * blockDim.x;
                bool live = position[i] != NOWHERE && at < width;
                value[i][j] = floats_of(load_cached_or_zero(e.y + (u64)position[i] * e.stride + at, live));
            }
        }
        FG_UNROLL
        for (u32 i = 0; i < ahead; i++) {
            if (position[i] == NOWHERE) continue;
            const float4 *bias = e.bias ? e.bias + (u64)e.group_of_row[position[i]] * width : nullptr;
            FG_UNROLL
            for (u32 j = 0; j < PER; j++) {
                u32 at = threadIdx.x + j * blockDim.x;
                add_weighted(sums[j], by[i], value[i][j], bias && at < width ? bias[at] : zero);
            }
        }
    }
}

// A row as its threads have it: `across` of them PER float4s each, with the weights of its norms; `width` in float4s.
template <u32 PER>
struct NormedRow {
    float4 weights[PER], posts[PER], values[PER];
    u32 across, width;
};
// Which of the row's float4s this thread's j'th is, and whether there is such a one.
template <u32 PER>
FG_DEVICE u32 place_of(const NormedRow<PER> &row, u32 j) { return threadIdx.x + j * row.across; }
template <u32 PER>
FG_DEVICE bool is_live(const NormedRow<PER> &row, u32 j) { return threadIdx.x < row.across && place_of(row, j) < row.width; }

// Asks for the norms' weights: before the kernel waits for others.
template <u32 PER>
FG_DEVICE void ask_weights(NormedRow<PER> &row, const float4 *weight, const float4 *post_norm, bool normed) {
    FG_UNROLL
    for (u32 j = 0; j < PER; j++) {
        u32 at = place_of(row, j);
        row.weights[j] = floats_of(load_streaming_or_zero(weight + at, normed && is_live(row, j)));
        row.posts[j] = floats_of(load_streaming_or_zero(post_norm + at, post_norm && is_live(row, j)));
    }
}

// x += what is added, where it is and in the row's values. What comes out is this thread's sum of squares.
template <bool EXPERTS, u32 PER>
FG_DEVICE float add_to(NormedRow<PER> &row, float4 *x, const float4 *added, const float4 *post_norm, float eps, const Results &e,
                       u32 nth) {
    float4 more[PER];
    u64 begin = (u64)nth * row.width;
    FG_UNROLL
    for (u32 j = 0; j < PER; j++) {
        u32 at = place_of(row, j);
        row.values[j] = floats_of(load_cached_or_zero(x + begin + at, is_live(row, j)));
        more[j] = floats_of(load_cached_or_zero(added + begin + at, added && is_live(row, j)));
    }
    if (EXPERTS) add_results<PER>(more, e, nth, row.width);
    float scale = 1.0f, squares = 0.0f;
    if (post_norm) {
        FG_UNROLL
        for (u32 j = 0; j < PER; j++) squares += squares_of(more[j]);
        scale = 1.0f / sqrtf(block_sum(squares) / (row.width * 4) + eps);
    }
    squares = 0.0f;
    FG_UNROLL
    for (u32 j = 0; j < PER; j++) {
        if (post_norm) {
            const float4 &post = row.posts[j];
            more[j].x = __fmul_rn(more[j].x, scale * post.x), more[j].y = __fmul_rn(more[j].y, scale * post.y);
            more[j].z = __fmul_rn(more[j].z, scale * post.z), more[j].w = __fmul_rn(more[j].w, scale * post.w);
        }
        float4 &v = row.values[j];
        v.x += more[j].x, v.y += more[j].y, v.z += more[j].z, v.w += more[j].w;
        squares += squares_of(v);
        if ((added || EXPERTS) && is_live(row, j)) x[begin + place_of(row, j)] = v;
    }
    return squares;
}

// Behind a row's end there are zeros then, or, like all of it, what is no number.
template <u32 PER>
FG_DEVICE void norm(NormedRow<PER> &row, float squares, float eps) {
    float inverse = 1.0f / sqrtf(block_sum(squares) / (row.width * 4) + eps);
    FG_UNROLL
    for (u32 j = 0; j < PER; j++) {
        float4 &v = row.values[j], w = row.weights[j];
        v.x *= inverse * w.x, v.y *= inverse * w.y, v.z *= inverse * w.z, v.w *= inverse * w.w;
    }
}

template <u32 PER>
FG_DEVICE void store_codes(const NormedRow<PER> &row, const Codes &to, u32 nth, const F8Scale &scale) {
    if (threadIdx.x == 0) to.scales[nth] = scale.back;
    u32 *codes = (u32 *)(to.codes + (u64)nth * to.stride);
    FG_UNROLL
    for (u32 j = 0; j < PER; j++) {
        u32 at = place_of(row, j);
        if (threadIdx.x < row.across && at < to.stride / 4) codes[at] = to_codes(row.values[j], scale);
    }
}

// As add_and_norm; `added` may be absent, and with EXPERTS what they give is added to it first (and stays here). `width` in float4s.
template <class A, u32 PER, bool EXPERTS, bool CODES>
FG_DEVICE void add_and_norm_4(A *out, float4 *x, const float4 *added, const float4 *post_norm, const float4 *weight, u32 width,
                              float eps, const Results &e, const Codes &to) {
    // Of one block, the next kernel's weights would be in the way of those that the kernel before still reads.
    bool alone = gridDim.x == 1;
    if (!alone) let_next_kernel_begin();
    NormedRow<PER> row;
    row.across = blockDim.x, row.width = width;
    ask_weights(row, weight, post_norm, CODES || out);
    wait_for_kernel_before();
    if (alone) let_next_kernel_begin();
    float squares = add_to<EXPERTS>(row, x, added, post_norm, eps, e, blockIdx.x);
    if (!out && !CODES) return;
    norm(row, squares, eps);
    u32 size = 0;
    FG_UNROLL
    for (u32 j = 0; j < PER; j++) {
        if (out && is_live(row, j)) store_4(out + ((u64)blockIdx.x * width + place_of(row, j)) * 4, row.values[j]);
        if (CODES) size = max(size, sizes_of(row.values[j]));
    }
    if (CODES) store_codes(row, to, blockIdx.x, f8_scale(block_max(size)));
    trace(ENDS, threadIdx.x == 0);
}
