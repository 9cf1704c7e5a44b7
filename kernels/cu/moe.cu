// Experts: which a row goes to, and its pairs of row and expert sorted by expert. (What they give is added up in residual.cu.)
#include "route.cuh"

// A warp for each row. Shared: scores · 8 bytes for each warp.
FG_KERNEL(256, moe_route, (ROUTER_PARAMS)) {
    begin_after_others();
    FG_DYNAMIC_SHARED(shared);
    u64 *keys = (u64 *)shared;
    Router r = ROUTER(nullptr);
    u32 first = blockIdx.x * (blockDim.x / 32), warp = threadIdx.x / 32;
    u32 here = rows - first < blockDim.x / 32 ? rows - first : blockDim.x / 32;
    write_keys(keys, r, first, here);
    __syncthreads();
    if (warp < here) choose_experts(keys + (u64)warp * scores, r, first + warp);
}

// Sorting. A tile is 32 · `words` rows. Of every group, a bit for each row of the tile that goes to it: how many there are is how
// many bits are set, and a pair's place among them is how many are set before its own. Rows from the `live`th on are no one's:
// they go nowhere.

struct Sort {
    u32 *positions, *group_of_row, *token_of_row;
    const u32 *ids, *local;
    u32 live, rows, top_k, groups, words;
};

FG_DEVICE u32 rows_of_tile(u32 rows, const Sort &s, u32 first) {
    return first < rows ? min(rows - first, 32 * s.words) : 0;
}

// Sets the bits of the tile of rows that begins with `first`, by a whole block, and counts pairs.
FG_DEVICE void mark(u32 *masks, const Sort &s, u32 first, u64 *counts) {
    for (u32 i = threadIdx.x; i < s.groups * s.words; i += blockDim.x) masks[i] = 0;
    __syncthreads();
    u32 rows = rows_of_tile(min(s.rows, s.live), s, first);
    for (u32 i = threadIdx.x; i < rows * s.top_k; i += blockDim.x) {
        u32 row = i / s.top_k, expert = s.ids[(u64)first * s.top_k + i], group = s.local[expert];
        if (counts) atomicAdd(counts + expert, 1ull);
        if (group < s.groups) atomicOr(masks + group * s.words + row / 32, 1u << row % 32);
    }
    __syncthreads();
}

FG_DEVICE u32 rows_of(const u32 *masks, u32 group, u32 words) {
    u32 count = 0;
    for (u32 i = 0; i < words; i++) count += ones(masks[group * words + i]);
    return count;
}

// Writes where each pair of the tile goes; `starts`: where the tile's rows of each group begin.
FG_DEVICE void scatter(const u32 *masks, const u32 *starts, const Sort &s, u32 first) {
    u32 rows = rows_of_tile(s.rows, s, first);
    for (u32 i = threadIdx.x; i < rows * s.top_k; i += blockDim.x) {
        u32 row = i / s.top_k, position = NOWHERE;
        u64 pair = (u64)first * s.top_k + i;
        u32 group = first + row < s.live ? s.local[s.ids[pair]] : NOWHERE;
        if (group < s.groups) {
            const u32 *mask = masks + group * s.words;
            position = starts[group] + ones(mask[row / 32] & ((1u << row % 32) - 1));
            for (u32 word = 0; word < row / 32; word++) position += ones(mask[word]);
            s.group_of_row[position] = group;
            s.token_of_row[position] = first + row;
        }
        s.positions[pair] = position;
    }
}

// Writes to `starts[0 .. len + 1]` the sums of what is before in `count(0 .. len)`, by a whole block of a multiple of 32 threads.
template <class Count>
FG_DEVICE void sums_before(u32 *starts, u32 *also, u32 len, Count count) {
    FG_SHARED u32 of_warp[32];
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u32 before = 0;  // the same on all threads
    for (u32 base = 0; base < len; base += blockDim.x) {
        u32 i = base + threadIdx.x;
        u32 own = i < len ? count(i) : 0, sum = own;
        FG_UNROLL
        for (u32 step = 1; step < 32; step *= 2) {
            u32 other = __shfl_up_sync(ALL, sum, step);
            if (lane >= step) sum += other;
        }
        if (lane == 31) of_warp[warp] = sum;
        __syncthreads();
        u32 total = 0;
        for (u32 w = 0; w < blockDim.x / 32; w++) {
            if (w < warp) sum += of_warp[w];
            total += of_warp[w];
        }
        __syncthreads();
        if (i < len) {
            starts[i] = before + sum - own;
            if (also) also[i] = before + sum - own;
        }
        before += total;
    }
    if (threadIdx.x == 0) starts[len] = before;
}

// Everything in one block. Shared: masks, and a start for each group.
FG_DEVICE void sort_tile(u32 *shared, u32 *offsets, const Sort &s, u64 *counts) {
    u32 *starts = shared + s.groups * s.words;
    mark(shared, s, 0, counts);
    sums_before(offsets, starts, s.groups, [&](u32 group) { return rows_of(shared, group, s.words); });
    __syncthreads();
    scatter(shared, starts, s, 0);
}

FG_KERNEL(1024, moe_sort, (u32 *positions, u32 *group_of_row, u32 *token_of_row, u32 *offsets, u64 *counts, const u32 *ids, const u32 *local, const u32 *live, u32 rows, u32 top_k, u32 groups, u32 words)) {
    begin_after_others();
    FG_DYNAMIC_SHARED(shared);
    Sort s = {positions, group_of_row, token_of_row, ids, local, *live, rows, top_k, groups, words};
    sort_tile((u32 *)shared, offsets, s, counts);
}

// By one block: a step's rows are chosen for, `per_pass` at once, and sorted.
FG_DEVICE void route_and_sort(u64 *keys, u32 *masks, const Router &r, u32 per_pass, u32 *offsets, const Sort &s, u64 *counts) {
    u32 warp = threadIdx.x / 32;
    for (u32 first = 0; first < r.rows; first += per_pass) {
        u32 here = min(r.rows - first, per_pass);
        write_keys(keys, r, first, here);
        __syncthreads();
        if (warp < here) choose_experts(keys + (u64)warp * r.scores, r, first + warp);
        __syncthreads();
    }
    sort_tile(masks, offsets, s, counts);
}

#define SORT_PARAMS                                                                                                    \
    u32 *positions, u32 *offsets, u32 *group_of_row, u32 *token_of_row, u64 *counts, const u32 *local, const u32 *live, \
        u32 local_groups, u32 words

// Shared: scores · 8 bytes for each row of a pass; what sorting needs; copies of `local` and of the chosen.
FG_KERNEL(1024, moe_route_and_sort, (ROUTER_PARAMS, u32 per_pass, SORT_PARAMS)) {
    begin_after_others();
    FG_DYNAMIC_SHARED(shared);
    u64 *keys = (u64 *)shared;
    u32 *masks = (u32 *)(keys + (u64)per_pass * scores), *places = masks + local_groups * (words + 1);
    Router r = ROUTER(places + experts);
    for (u32 i = threadIdx.x; i < experts; i += blockDim.x) places[i] = local[i];
    Sort s = {positions, group_of_row, token_of_row, r.kept, places, *live, rows, top_k, local_groups, words};
    route_and_sort(keys, masks, r, per_pass, offsets, s, counts);
}

// logits[r][e] = Σ x[r][i] · w[e][i] + bias[e] of up to R rows, by a whole block; `w` is asked for before the kernel waits for
// others. A row of `w` is cut into `split` parts, of each of which a warp takes the sum; that of a row is the same whatever R is.
// `parts`: [split][rows][experts].
template <class W, class A, u32 R>
FG_DEVICE void router_product(float *logits, float *parts, const A *x, const W *w, const float *bias, u32 rows, u32 experts,
                              u32 k, u32 split) {
    constexpr u32 AHEAD = R == 1 && sizeof(W) == 2 ? 4 : 2;
    u32 lane = threadIdx.x % 32, all = k / 8, each = (all + split - 1) / split;
    FG_NO_UNROLL
    for (u32 task = threadIdx.x / 32; task < experts * split; task += blockDim.x / 32) {
        u32 expert = task % experts, part = task / experts, end = min((part + 1) * each, all);
        float sums[R];
        FG_UNROLL
        for (u32 r = 0; r < R; r++) sums[r] = 0.0f;
        FG_NO_UNROLL
        for (u32 at = part * each + lane; at - lane < end; at += AHEAD * 32) {
            Eight<W> weights[AHEAD];
            FG_UNROLL
            for (u32 a = 0; a < AHEAD; a++) {
                const W *from = w + ((u64)expert * all + at + a * 32) * 8;
                FG_UNROLL
                for (u32 i = 0; i < Eight<W>::PIECES; i++) {
                    weights[a].pieces[i] = load_streaming_or_zero((const uint4 *)from + i, at + a * 32 < end);
                }
            }
            wait_for_kernel_before();
            FG_UNROLL
            for (u32 r = 0; r < R; r++) {
                if (r >= rows) break;
                Eight<A> xs[AHEAD];
                FG_UNROLL
                for (u32 a = 0; a < AHEAD; a++) {
                    const A *from = x + ((u64)r * all + at + a * 32) * 8;
                    FG_UNROLL
                    for (u32 i = 0; i < Eight<A>::PIECES; i++) {
                        xs[a].pieces[i] = load_cached_or_zero((const uint4 *)from + i, at + a * 32 < end);
                    }
                }
                FG_UNROLL
                for (u32 a = 0; a < AHEAD; a++) {
                    FG_UNROLL
                    for (u32 i = 0; i < 8; i++) sums[r] = fmaf(to_float(xs[a].each[i]), to_float(weights[a].each[i]), sums[r]);
                }
            }
        }
        FG_UNROLL
        for (u32 r = 0; r < R; r++) {
            if (r >= rows) break;
            float sum = warp_sum(sums[r]);
            if (lane == 0) parts[((u64)part * rows + r) * experts + expert] = sum;
        }
    }
    wait_for_kernel_before();  // who had nothing to do
    __syncthreads();
    for (u32 i = threadIdx.x; i < rows * experts; i += blockDim.x) {
        float sum = 0.0f;
        for (u32 part = 0; part < split; part++) sum += parts[part * rows * experts + i];
        logits[i] = bias ? sum + bias[i % experts] : sum;
    }
    __syncthreads();
}

// The router's product with up to R rows as well. Shared: as above, of all rows; then logits, and their `split` parts.
#define PRODUCT_ROUTE_AND_SORT(W, A, R)                                                                                \
    FG_KERNEL(1024, moe_product_route_and_sort_##W##_##A##_##R,                                                        \
              (ROUTER_PARAMS, const A *x, const W *w, u32 k, u32 split, SORT_PARAMS)) {                                \
        let_next_kernel_begin();                                                                                       \
        FG_DYNAMIC_SHARED(shared);                                                                                     \
        u64 *keys = (u64 *)shared;                                                                                     \
        u32 *masks = (u32 *)(keys + (u64)rows * scores), *places = masks + local_groups * (words + 1);                 \
        u32 *kept = places + experts;                                                                                  \
        float *sums = (float *)(kept + rows * top_k);                                                                  \
        for (u32 i = threadIdx.x; i < experts; i += blockDim.x) places[i] = local[i];                                  \
        router_product<W, A, R>(sums, sums + rows * experts, x, w, bias, rows, experts, k, split);                     \
        logits = sums, bias = nullptr;                                                                                 \
        Router r = ROUTER(kept);                                                                                       \
        Sort s = {positions, group_of_row, token_of_row, kept, places, *live, rows, top_k, local_groups, words};       \
        route_and_sort(keys, masks, r, rows, offsets, s, counts);                                                      \
    }
PRODUCT_ROUTE_AND_SORT(bf16, bf16, 1)
PRODUCT_ROUTE_AND_SORT(bf16, bf16, 8)
PRODUCT_ROUTE_AND_SORT(f16, bf16, 1)
PRODUCT_ROUTE_AND_SORT(f16, bf16, 8)
PRODUCT_ROUTE_AND_SORT(float, bf16, 1)
PRODUCT_ROUTE_AND_SORT(float, bf16, 8)
PRODUCT_ROUTE_AND_SORT(float, float, 1)
PRODUCT_ROUTE_AND_SORT(float, float, 8)

// The product alone, `each` rows (up to 8) a block: the same sums, so that a row's choice does not depend on how many rows there
// are. Shared: `split` parts of the logits of a block.
#define ROUTER_PRODUCT(W, A)                                                                                           \
    FG_KERNEL(1024, moe_router_product_##W##_##A,                                                                      \
              (float *logits, const A *x, const W *w, u32 rows, u32 each, u32 experts, u32 k, u32 split)) {            \
        let_next_kernel_begin();                                                                                       \
        FG_DYNAMIC_SHARED(shared);                                                                                     \
        u64 first = (u64)blockIdx.x * each;                                                                            \
        u32 here = min(rows - (u32)first, each);                                                                       \
        router_product<W, A, 8>(logits + first * experts, (float *)shared, x + first * k, w, nullptr, here, experts, k, split); \
    }
ROUTER_PRODUCT(bf16, bf16)
ROUTER_PRODUCT(f16, bf16)
ROUTER_PRODUCT(float, bf16)
ROUTER_PRODUCT(float, float)

// A block for each tile: how many of its rows go to each group.
FG_KERNEL(1024, moe_count, (u32 *tile_counts, u64 *counts, const u32 *ids, const u32 *local, const u32 *live, u32 rows, u32 top_k, u32 groups, u32 words)) {
    begin_after_others();
    FG_DYNAMIC_SHARED(shared);
    u32 *masks = (u32 *)shared;
    Sort s = {nullptr, nullptr, nullptr, ids, local, *live, rows, top_k, groups, words};
    mark(masks, s, blockIdx.x * 32 * words, counts);
    for (u32 group = threadIdx.x; group < groups; group += blockDim.x) {
        tile_counts[(u64)blockIdx.x * groups + group] = rows_of(masks, group, words);
    }
}

// One block: counts become how many are in the tiles before, and offsets where each group begins.
FG_KERNEL(1024, moe_offsets, (u32 *offsets, u32 *tile_counts, u32 tiles, u32 groups)) {
    begin_after_others();
    sums_before(offsets, nullptr, groups, [&](u32 group) {
        u32 sum = 0;
        // So many are on their way at once.
        const u32 ahead = 8;
        for (u32 base = 0; base < tiles; base += ahead) {
            u32 *at = tile_counts + (u64)base * groups + group;
            u32 here[ahead];
            FG_UNROLL
            for (u32 i = 0; i < ahead; i++) here[i] = base + i < tiles ? at[i * groups] : 0;
            FG_UNROLL
            for (u32 i = 0; i < ahead; i++) {
                if (base + i < tiles) at[i * groups] = sum;
                sum += here[i];
            }
        }
        return sum;
    });
}

// A block for each tile: where its pairs go.
FG_KERNEL(1024, moe_scatter, (u32 *positions, u32 *group_of_row, u32 *token_of_row, const u32 *offsets, const u32 *tile_counts, const u32 *ids, const u32 *local, const u32 *live, u32 rows, u32 top_k, u32 groups, u32 words)) {
    begin_after_others();
    FG_DYNAMIC_SHARED(shared);
    u32 *masks = (u32 *)shared, *starts = masks + groups * words;
    Sort s = {positions, group_of_row, token_of_row, ids, local, *live, rows, top_k, groups, words};
    for (u32 group = threadIdx.x; group < groups; group += blockDim.x) {
        starts[group] = offsets[group] + tile_counts[(u64)blockIdx.x * groups + group];
    }
    mark(masks, s, blockIdx.x * 32 * words, nullptr);
    scatter(masks, starts, s, blockIdx.x * 32 * words);
}
