// The norm before a router, the router's product, and what follows it, of one row in one launch: a step of one row is a chain of
// small kernels, of which each begins with a wait. The numbers are those of add_and_norm_4, of moe_router_product and of
// moe_route_and_sort.
#include "norm.cuh"
#include "route.cuh"

// Where the row's pairs of row and expert go: as moe_sort does it, of one row and by one warp. `group`: that of lane l's pair, or
// NOWHERE.
FG_DEVICE void sort_row(u32 *positions, u32 *offsets, u32 *group_of_row, u32 *token_of_row, u32 group, u32 top_k, u32 groups) {
    u32 lane = threadIdx.x % 32, position = 0;
    if (group >= groups) group = NOWHERE;
    for (u32 i = 0; i < top_k; i++) position += __shfl_sync(ALL, group, i) < group;
    if (lane < top_k) {
        bool here = group != NOWHERE;
        positions[lane] = here ? position : NOWHERE;
        if (here) group_of_row[position] = group, token_of_row[position] = 0;
    }
    for (u32 base = 0; base <= groups; base += 32) {
        u32 before = 0;
        for (u32 i = 0; i < top_k; i++) before += __shfl_sync(ALL, group, i) < base + lane;
        if (base + lane <= groups) offsets[base + lane] = before;
    }
}

// One block of 1024 threads, of which `across` have a float4 of the row each. A warp has one of `split` parts of an expert's row of
// `w`, as in router_product; all of it, AHEAD · 32 eights at most, is asked for before the kernel waits for others.
// `codes` may be absent. Shared: the normed row in bf16.
template <class W>
FG_DEVICE void norm_route(bf16 *out, float4 *x, const float4 *added, const float4 *post_norm, const float4 *weight, u32 width,
                          u32 across, float eps, const Codes &to, Router &r, const W *w, u32 split, u32 *positions,
                          u32 *offsets, u32 *group_of_row, u32 *token_of_row, u64 *counts, const u32 *local,
                          const u32 *live, u32 local_groups) {
    constexpr u32 AHEAD = sizeof(W) == 2 ? 4 : 2;
    FG_SHARED u32 sizes[32];
    FG_SHARED float parts[32], logits[32];
    FG_SHARED u64 keys[64];
    FG_SHARED u32 kept[32];
    FG_DYNAMIC_SHARED(shared);
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u32 all = width / 2, each = (all + split - 1) / split, expert = warp % r.experts, part = warp / r.experts;
    u32 begin = part * each + lane, end = warp < r.experts * split ? min((part + 1) * each, all) : 0;
    Eight<W> router[AHEAD];
    FG_UNROLL
    for (u32 a = 0; a < AHEAD; a++) {
        const W *from = w + ((u64)expert * all + begin + a * 32) * 8;
        FG_UNROLL
        for (u32 i = 0; i < Eight<W>::PIECES; i++) {
            router[a].pieces[i] = load_streaming_or_zero((const uint4 *)from + i, begin + a * 32 < end);
        }
    }
    u32 place = warp == 0 && lane < r.experts ? local[lane] : NOWHERE;
    NormedRow<1> row;
    row.across = across, row.width = width;
    ask_weights(row, weight, post_norm, true);
    begin_after_others();
    bool lives = *live > 0;
    float squares = add_to<false>(row, x, added, post_norm, eps, {}, 0);
    norm(row, squares, eps);
    if (is_live(row, 0)) {
        store_4((bf16 *)shared + threadIdx.x * 4, row.values[0]);
        if (out) store_4(out + threadIdx.x * 4, row.values[0]);
    }
    u32 size = warp_max(sizes_of(row.values[0]));
    if (lane == 0) sizes[warp] = size;
    __syncthreads();
    float sum = 0.0f;
    FG_UNROLL
    for (u32 a = 0; a < AHEAD; a++) {
        u32 at = begin + a * 32;
        Eight<bf16> eight;
        eight.pieces[0] = at < end ? ((const uint4 *)shared)[at] : uint4{0, 0, 0, 0};
        FG_UNROLL
        for (u32 i = 0; i < 8; i++) sum = fmaf(to_float(eight.each[i]), to_float(router[a].each[i]), sum);
    }
    sum = warp_sum(sum);
    if (lane == 0) parts[warp] = sum;
    __syncthreads();
    if (to.codes) store_codes(row, to, 0, f8_scale(warp_max(sizes[lane])));
    if (warp > 0) return;
    if (lane < r.experts) {
        float logit = 0.0f;
        for (u32 i = 0; i < split; i++) logit += parts[i * r.experts + lane];
        logits[lane] = r.bias ? logit + r.bias[lane] : logit;
    }
    __syncwarp();
    r.logits = logits, r.bias = nullptr, r.kept = kept;
    write_keys(keys, r, 0, 1);
    __syncwarp();
    choose_experts(keys, r, 0);
    __syncwarp();
    u32 chosen = lane < r.top_k ? kept[lane] : 0, group = __shfl_sync(ALL, place, chosen);
    if (!lives || lane >= r.top_k) group = NOWHERE;
    if (counts && lives && lane < r.top_k) atomicAdd(counts + chosen, 1ull);
    sort_row(positions, offsets, group_of_row, token_of_row, group, r.top_k, local_groups);
    trace(ENDS, threadIdx.x == 0);
}

#define NORM_ROUTE(W)                                                                                                  \
    FG_KERNEL(1024, moe_norm_route_##W,                                                                               \
              (bf16 *out, float4 *x, const float4 *added, const float4 *post_norm, const float4 *weight, u32 width,    \
               float eps, u8 *codes, float *code_scales, u32 stride, u32 across, ROUTER_PARAMS, const W *w, u32 split, \
               u32 *positions, u32 *offsets, u32 *group_of_row, u32 *token_of_row, u64 *counts, const u32 *local,      \
               const u32 *live, u32 local_groups, u32)) {                                                              \
        Router r = ROUTER(nullptr);                                                                                    \
        norm_route<W>(out, x, added, post_norm, weight, width, across, eps, {codes, code_scales, stride}, r, w, split, \
                      positions, offsets, group_of_row, token_of_row, counts, local, live, local_groups);              \
    }
NORM_ROUTE(bf16)
NORM_ROUTE(float)
