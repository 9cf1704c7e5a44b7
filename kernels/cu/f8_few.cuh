// Products of up to 64 rows of E4M3 with matrices in E4M3, as fast as these can be read. Blocks share all tiles: block b of B has
// tiles b, b + B, and so on. One warpgroup copies, the others multiply. Where rows come from, and what becomes of a tile's sums, are
// parameters: kernels do with it what would be a launch of its own before or after.
#pragma once
#include "matmul_f8.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(FOGGARA_HOST)
// WARPGROUPS of 64 rows of wgmma each. Weights come by stages of LINES lines of 128 inputs through a ring in shared memory of STAGES
// of them, with the inputs of N rows of x that meet them; those of the next tile right after those of the one before.
//
// PAIR 2: a warpgroup has 32 outputs in place of 64, and two groups of inputs at the same time. Eight rows of wgmma are of one group
// and the next eight of the other, and so are N columns and the next N; of what comes out half is of no use. There are tiles for
// twice as many blocks, and 256 bytes of each row are read at a time.
template <u32 N, u32 PAIR, u32 WARPGROUPS, u32 STAGES, u32 LINES>
struct Few {
    static constexpr u32 THREADS = 128 + 128 * WARPGROUPS, OUTPUTS = 64 / PAIR * WARPGROUPS, COLUMNS = N * PAIR, UNITS = 8 * PAIR;
    static constexpr u32 W_BYTES = WARPGROUPS * 8192, LINE = W_BYTES + COLUMNS * 128, STAGE = LINES * LINE;
    static constexpr u32 INPUTS = LINES * PAIR * GROUP;  // of a stage

    // Stages that a tile takes.
    FG_DEVICE u32 stages(u32 k) { return (k + INPUTS - 1) / INPUTS; }
    // Barriers: a stage is there, and it is not needed any more.
    FG_DEVICE u32 is_there(u32 slot) { return 1 + slot; }
    FG_DEVICE u32 is_free(u32 slot) { return 1 + STAGES + slot; }
    // Those that multiply meet.
    FG_DEVICE void meet() { barrier_sync(1 + 2 * STAGES, THREADS - 128); }
    // Those that copy meet.
    FG_DEVICE void meet_copying() { barrier_sync(2 + 2 * STAGES, 128); }
    // All meet.
    FG_DEVICE void meet_all() { barrier_sync(3 + 2 * STAGES, THREADS); }
    static_assert(2 * STAGES + 3 <= 15, "there are no more barriers");
    // Both members of pairs of outputs are a warp's, so that a thread that has one meets the other: pair and member that are row `row`
    // of a tile's weights whose first output is `first`. In eights where a warp has 16 outputs, in fours where it has eight.
    FG_DEVICE u32 pair(u32 first, u32 row) {
        return first / 2 + (PAIR == 1 ? row / 16 * 8 + row % 8 : row / 8 * 4 + row % 4);
    }
    FG_DEVICE u32 member(u32 row) { return row / (PAIR == 1 ? 8 : 4) % 2; }
};

// Where rows come from: they are codes, in rows x_stride apart;
struct FromCodes {
    static constexpr bool ONE_ROW = false, OF_TILES = false;
};
// or tiles have one row of x, in bf16, of which the warpgroup that copies makes codes: as quantize_rows does, once a tile (or a row, where
// tiles of the same one follow each other), while weights are on their way. It keeps them behind the ring.
struct FromPlain {
    static constexpr bool ONE_ROW = true, OF_TILES = true;
};
// Others have one row for all tiles: all threads make its codes when they have waited (`prepare`), which gives its scale.

// What becomes of sums: they are the result;
struct Plain {};
// or a gate's, of which each has the output half of all further on, in bf16.
struct Gated {
    Gate gate;
};

// The output that is row `row` of a tile's weights whose first one is `first`; n or more if there is none.
template <class F>
FG_DEVICE u32 output_at(const Plain &, u32, u32 first, u32 row) { return first + row; }
template <class F>
FG_DEVICE u32 output_at(const Gated &, u32 n, u32 first, u32 row) {
    u32 gate = F::pair(first, row);
    return gate < n / 2 ? gate + F::member(row) * (n / 2) : n;
}
// What those that multiply do before they wait.
template <class End>
FG_DEVICE void before_waiting(const End &, const Product<f8> &) {}

// Scales of so many tiles' rows are kept: one more than a ring has stages, and those that copy are not further ahead.
constexpr u32 OWN_SCALES = 8;
// Eights of a row that a thread of a warpgroup has, at most.
constexpr u32 OWN_EACH = 16;

FG_DEVICE float4 low_four(const uint4 &v) { return make_float4(low_bf16(v.x), high_bf16(v.x), low_bf16(v.y), high_bf16(v.y)); }
FG_DEVICE float4 high_four(const uint4 &v) { return make_float4(low_bf16(v.z), high_bf16(v.z), low_bf16(v.w), high_bf16(v.w)); }

// Codes of a row in bf16, and zeros up to `units` eights; its scale is the result. By those that copy.
template <class F>
FG_DEVICE float make_codes(u8 *codes, const u8 *row, u32 k, u32 units) {
    FG_SHARED u32 parts[4];
    uint4 values[OWN_EACH];
    FG_UNROLL
    for (u32 i = 0; i < OWN_EACH; i++) {
        u32 at = i * 128 + threadIdx.x;
        values[i] = load_cached_or_zero(row + (u64)at * 16, at < k / 8);
    }
    u32 size = 0;
    FG_UNROLL
    for (u32 i = 0; i < OWN_EACH; i++) size = max(size, max(sizes_of(low_four(values[i])), sizes_of(high_four(values[i]))));
    size = warp_max(size);
    F::meet_copying();  // no one reads the row before any more
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = size;
    F::meet_copying();
    F8Scale by = f8_scale(max(max(parts[0], parts[1]), max(parts[2], parts[3])));
    FG_UNROLL
    for (u32 i = 0; i < OWN_EACH; i++) {
        u32 at = i * 128 + threadIdx.x;
        uint2 both = make_uint2(to_codes(low_four(values[i]), by), to_codes(high_four(values[i]), by));
        if (at < units) ((uint2 *)codes)[at] = both;
    }
    F::meet_copying();
    return by.back;
}

// Copies the stages of this block's tiles: weights of the first ones before the kernels before have ended. `waited`: they have.
template <class F, u32 N, u32 STAGES, u32 LINES, class X, class End>
FG_DEVICE void copy_few(const Product<f8> &p, const X &x, const End &end, u8 *shared, bool waited, float *own_scales) {
    constexpr u32 UNITS = F::UNITS, W_EACH = F::OUTPUTS * UNITS / 128, X_EACH = (N * UNITS + 127) / 128, BEHIND = STAGES - 2;
    u32 units = (p.k + 15) / 16, stages = F::stages(p.k), unit = threadIdx.x % UNITS, row = threadIdx.x / UNITS;
    // Where this thread's units of the next stage come from: of weights, and of x.
    F8Tile w_at, x_at;
    u32 w_index = blockIdx.x, w_stage = 0, x_index = blockIdx.x, x_stage = 0;
    const u8 *w_from[W_EACH], *x_from[X_EACH], *w_begin = nullptr, *own_row = nullptr;
    u8 *own = shared + STAGES * F::STAGE;
    u32 own_tile = 0;
    float own_scale = 0.0f;
    auto w_to = [&](u32 i) {
        u32 output = i * (128 / UNITS) + row;
        return place_wide(UNITS == 8 ? output : output / 8 * 16 + unit / 8 * 8 + output % 8, unit % 8);
    };
    auto begin_w = [&] {
        if (!find_f8_tile(p, waited, N, F::OUTPUTS, w_index, w_at)) return false;
        w_begin = weights_of(p, w_at.group);
        FG_UNROLL
        for (u32 i = 0; i < W_EACH; i++) {
            u32 output = output_at<F>(end, p.n, w_at.output, i * (128 / UNITS) + row);
            w_from[i] = w_begin + ((u64)min(output, p.n - 1) * units + unit) * 16;
        }
        return true;
    };
    auto begin_x = [&] {
        if (!find_f8_tile(p, waited, N, F::OUTPUTS, x_index, x_at)) return false;
        if constexpr (X::OF_TILES) {
            const u8 *row = (const u8 *)p.x + x_at.group * p.x_batch + x_row_of(p, x_at, 0) * p.x_stride;
            if (row != own_row) own_scale = make_codes<F>(own, row, p.k, stages * LINES * UNITS * 2);
            own_row = row;
            if (threadIdx.x == 0) own_scales[own_tile % OWN_SCALES] = own_scale;
            own_tile++;
        } else if constexpr (!X::ONE_ROW) {
            FG_UNROLL
            for (u32 i = 0; i < X_EACH; i++) {
                u32 mine = i * (128 / UNITS) + row;
                x_from[i] = nullptr;
                if (mine < x_at.rows) {
                    x_from[i] = (const u8 *)p.x + x_at.group * p.x_batch + x_row_of(p, x_at, mine) * p.x_stride + unit * 16;
                }
            }
        }
        return true;
    };
    auto load_w = [&](u8 *to) {
        bool whole = (w_stage + 1) * LINES * UNITS <= units;
        FG_UNROLL
        for (u32 line = 0; line < LINES; line++) {
            FG_UNROLL
            for (u32 i = 0; i < W_EACH; i++) {
                u8 *there = to + line * F::LINE + w_to(i);
                const u8 *from = w_from[i] + line * UNITS * 16;
                if (whole) {
                    copy_async_16(there, from);
                } else {
                    bool live = (w_stage * LINES + line) * UNITS + unit < units;
                    copy_async_16_or_zero(there, live ? from : w_begin, live);
                }
            }
        }
        FG_UNROLL
        for (u32 i = 0; i < W_EACH; i++) w_from[i] += LINES * UNITS * 16;
        if (++w_stage < stages) return true;
        w_stage = 0, w_index += gridDim.x;
        return begin_w();
    };
    // Of rows that there are not comes nothing, whatever is there.
    auto load_x = [&](u8 *to) {
        if constexpr (X::ONE_ROW) {
            u32 line = threadIdx.x / UNITS;
            const uint4 *from = (const uint4 *)own + x_stage * LINES * UNITS + threadIdx.x;
            u8 *there = to + line * F::LINE + F::W_BYTES + place_wide(unit / 8 * N, unit % 8);
            if (line < LINES) *(uint4 *)there = *from;
        } else {
            FG_UNROLL
            for (u32 line = 0; line < LINES; line++) {
                FG_UNROLL
                for (u32 i = 0; i < X_EACH; i++) {
                    if (!x_from[i]) continue;
                    u32 before = (x_stage * LINES + line) * UNITS, mine = i * (128 / UNITS) + row;
                    bool live = before + unit < units;
                    u8 *there = to + line * F::LINE + F::W_BYTES + place_wide(mine + unit / 8 * N, unit % 8);
                    copy_async_16_or_zero_cached(there, live ? x_from[i] + before * 16 : (const u8 *)p.x, live);
                }
            }
        }
        if (++x_stage < stages) return true;
        x_stage = 0, x_index += gridDim.x;
        return begin_x();
    };

    bool more_w = begin_w();
    FG_NO_UNROLL
    for (u32 stage = 0; stage < STAGES && more_w; stage++) more_w = load_w(shared + stage * F::STAGE);
    // Weights are always there, x only now.
    wait_for_kernel_before();
    let_next_kernel_begin();
    waited = true;
    if constexpr (X::ONE_ROW && !X::OF_TILES) prepare<F>(x, p, own);
    u32 count = 0, slot = 0, ready = 0;
    auto tell = [&] {
        barrier_arrive(F::is_there(ready), F::THREADS);
        if (++ready == STAGES) ready = 0;
    };
    FG_NO_UNROLL
    for (bool more_x = begin_x(); more_x; count++) {
        u8 *to = shared + slot * F::STAGE;
        if (count >= STAGES) {
            barrier_sync(F::is_free(slot), F::THREADS);
            more_w = load_w(to);
        }
        more_x = load_x(to);
        copy_async_commit();
        if (++slot == STAGES) slot = 0;
        if (count < BEHIND) continue;
        copy_async_wait<BEHIND>();
        tell();
    }
    copy_async_wait<0>();
    for (u32 left = min(count, BEHIND); left > 0; left--) tell();
}

// What a thread knows of its outputs of a tile before it has their sums.
template <u32 PAIR>
struct Outputs {
    u32 o[2 / PAIR];
    float scale[2 / PAIR];
};
template <class F, u32 PAIR, class End>
FG_DEVICE Outputs<PAIR> begin_tile(const End &end, const Product<f8> &p, const F8Tile &at, u32 row_of_tile) {
    Outputs<PAIR> mine;
    const float *scales = scales_of(p, at.group);
    FG_UNROLL
    for (u32 high = 0; high < 2 / PAIR; high++) {
        mine.o[high] = output_at<F>(end, p.n, at.output, row_of_tile + high * 8);
        mine.scale[high] = mine.o[high] < p.n ? scales[mine.o[high]] : 0.0f;
    }
    return mine;
}

// The sums of a warp's part of a tile go to out. What rows are multiplied by is in shared memory: from elsewhere it would be waited
// for again and again. Thread t of four has columns 8 · j + 2t + c: sums 2 · j + c where PAIR is 2, else
// 4 · j + c of output g and 4 · j + 2 + c of output g + 8.
template <u32 N>
FG_DEVICE u32 column_of(u32 i) { return i / 2 * 8 + 2 * (threadIdx.x % 4) + i % 2; }

template <class F, u32 N, u32 PAIR>
FG_DEVICE void finish_few(const Plain &, const Product<f8> &p, const F8Tile &at, const Outputs<PAIR> &mine,
                          const float *x_scales, const float (&totals)[N / 2 / PAIR]) {
    float *out = p.out + at.group * p.out_batch;
    FG_UNROLL
    for (u32 i = 0; i < N / 4; i++) {
        u32 row = column_of<N>(i), sum = i / 2 * (4 / PAIR) + i % 2;
        float x_scale = x_scales[row];
        pin(x_scale);  // not long before: there are no registers for all of them
        FG_UNROLL
        for (u32 high = 0; high < 2 / PAIR; high++) {
            if (row >= at.rows || mine.o[high] >= p.n) continue;
            out[(at.first + row) * p.out_stride + mine.o[high]] = scaled(totals[sum + high * 2], x_scale, mine.scale[high]);
        }
    }
}
template <class F, u32 N, u32 PAIR>
FG_DEVICE void finish_few(const Gated &end, const Product<f8> &p, const F8Tile &at, const Outputs<PAIR> &mine,
                          const float *x_scales, const float (&totals)[N / 2 / PAIR]) {
    const Gate &gate = end.gate;
    float *out = p.out + at.group * p.out_batch;
    FG_UNROLL
    for (u32 i = 0; i < N / 4; i++) {
        u32 row = column_of<N>(i), sum = i / 2 * (4 / PAIR) + i % 2;
        float x_scale = x_scales[row];
        pin(x_scale);
        float of_gate = scaled(totals[sum], x_scale, mine.scale[0]), up;
        if constexpr (PAIR == 1) up = scaled(totals[sum + 2], x_scale, mine.scale[1]);
        else up = __shfl_down_sync(0xffffffffu, of_gate, 16);
        if (row >= at.rows || mine.o[0] >= p.n / 2) continue;
        float x = activate(gate.activation, of_gate, up, gate.alpha, gate.limit);
        store((bf16 *)out + (at.first + row) * p.out_stride + mine.o[0], x);
    }
}

template <u32 N, u32 PAIR, u32 WARPGROUPS, u32 STAGES, u32 LINES, class X, class End>
FG_DEVICE void f8_few(Product<f8> p, const float *x_scales, const X &x, const End &end) {
    using F = Few<N, PAIR, WARPGROUPS, STAGES, LINES>;
    constexpr u32 SUMS = N / 2 / PAIR;
    FG_SHARED float row_scales[N], own_scales[OWN_SCALES];
    static_assert(STAGES < OWN_SCALES, "scales of all tiles on their way");
    FG_DYNAMIC_SHARED(shared);
    // The launch gives 1024 bytes more.
    shared += (1024 - (u64)shared % 1024) % 1024;
    // Where matrices are is asked for before it is known which are needed.
    if (p.w_table && threadIdx.x < p.count && threadIdx.x % 16 == 0) {
        fetch_first_level(p.w_table + threadIdx.x);
        fetch_first_level(p.scale_table + threadIdx.x);
    }
    bool waited = p.offsets && !p.known;
    if (waited) wait_for_kernel_before();
    if (threadIdx.x < 128) {
        copy_few<F, N, STAGES, LINES>(p, x, end, shared, waited, own_scales);
        return;
    }
    before_waiting(end, p);
    wait_for_kernel_before();
    let_next_kernel_begin();
    float own_scale = 0.0f;
    if constexpr (X::ONE_ROW && !X::OF_TILES) own_scale = prepare<F>(x, p, shared + STAGES * F::STAGE);
    u32 stages = F::stages(p.k), slot = 0, lane = threadIdx.x % 32, warp = threadIdx.x / 32 - 4, tile = 0;
    F8Tile at;
    FG_NO_UNROLL
    for (u32 index = blockIdx.x; find_f8_tile(p, true, N, F::OUTPUTS, index, at); index += gridDim.x) {
        u32 thread = threadIdx.x - 128;
        float my_scale = own_scale;  // of a row
        if constexpr (!X::ONE_ROW) my_scale = thread < at.rows ? x_scales[x_row_of(p, at, thread)] : 0.0f;
        // What is known of outputs is asked for now, unless there are no registers for it.
        u32 row_of_tile = warp * (16 / PAIR) + lane / 4;
        decltype(begin_tile<F, PAIR>(end, p, at, row_of_tile)) mine;
        if (PAIR == 2) mine = begin_tile<F, PAIR>(end, p, at, row_of_tile);
        float totals[SUMS];
        FG_UNROLL
        for (u32 i = 0; i < SUMS; i++) totals[i] = 0.0f;
        FG_NO_UNROLL
        for (u32 stage = 0; stage < stages; stage++) {
            const u8 *here = shared + slot * F::STAGE;
            float sums[LINES][F::COLUMNS / 2];
            FG_UNROLL
            for (u32 line = 0; line < LINES; line++) {
                FG_UNROLL
                for (u32 i = 0; i < F::COLUMNS / 2; i++) sums[line][i] = 0.0f;
            }
            barrier_sync(F::is_there(slot), F::THREADS);
            if (X::OF_TILES && stage == 0 && thread == 0) my_scale = own_scales[tile++ % OWN_SCALES];
            show_shared();
            begin_multiply();
            FG_UNROLL
            for (u32 line = 0; line < LINES; line++) {
                const u8 *of_line = here + line * F::LINE;
                multiply_group(sums[line], describe(of_line + warp / 4 * 8192), describe(of_line + F::W_BYTES));
            }
            commit_multiply();
            wait_multiply<0>();
            barrier_arrive(F::is_free(slot), F::THREADS);
            if (++slot == STAGES) slot = 0;
            FG_UNROLL
            for (u32 line = 0; line < LINES; line++) {
                FG_UNROLL
                for (u32 i = 0; i < F::COLUMNS / 2; i++) pin(sums[line][i]);
                FG_UNROLL
                for (u32 i = 0; i < SUMS; i++) {
                    if constexpr (PAIR == 1) {
                        totals[i] = __fadd_rn(totals[i], sums[line][i]);
                    } else {
                        // Rows of the one group and its columns, then of the other.
                        u32 one = i / 2 * 4 + i % 2;
                        totals[i] = __fadd_rn(__fadd_rn(totals[i], sums[line][one]), sums[line][N / 2 + one + 2]);
                    }
                }
            }
        }
        if (PAIR == 1) mine = begin_tile<F, PAIR>(end, p, at, row_of_tile);
        F::meet();  // what was there is not needed any more
        if (thread < N) row_scales[thread] = my_scale;
        F::meet();
        finish_few<F, N, PAIR>(end, p, at, mine, row_scales, totals);
    }
    trace(ENDS, threadIdx.x == 128);
}
#endif
