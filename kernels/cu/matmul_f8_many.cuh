// Products of many rows of E4M3 with matrices in E4M3: tiles of 256 outputs and 128 rows. One warpgroup copies, two multiply, 128
// outputs each: while one adds up the sums of a group, the other's are made. Blocks share all tiles, as in matmul_f8_few.cuh, and
// those that run at the same time share the weights and rows they read.
#pragma once
#include "matmul_f8.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(FOGGARA_HOST)
constexpr u32 MANY_OUTPUTS = 256, MANY_ROWS = 128, MANY_THREADS = 384;
constexpr u32 MANY_W_BYTES = MANY_OUTPUTS * 128, MANY_STAGE = MANY_W_BYTES + MANY_ROWS * 128, MANY_STAGES = 4;

// Barriers: a stage is there, for each of those who multiply; and it is not needed any more.
FG_DEVICE u32 stage_is_there(u32 slot, u32 group) { return 1 + slot * 2 + group; }
FG_DEVICE u32 stage_is_free(u32 slot) { return 1 + MANY_STAGES * 2 + slot; }

// Copies the stages of this block's tiles.
template <bool GATED>
FG_DEVICE void copy_stages(const Product<f8> &p, u8 *shared) {
    constexpr u32 BEHIND = PROBE_BEHIND;  // stages on their way when the one before them is waited for
    u32 units = (p.k + 15) / 16, stages = (units + 7) / 8, unit = threadIdx.x % 8, first_row = threadIdx.x / 8;
    u32 to = place_wide(first_row, unit), count = 0;
    auto is_there = [&](u32 stage) {
#if PROBE_FENCE == 2
        show_shared();
#endif
        barrier_arrive(stage_is_there(stage % MANY_STAGES, 0), 256);
        barrier_arrive(stage_is_there(stage % MANY_STAGES, 1), 256);
    };
    F8Tile at;
    FG_NO_UNROLL
    for (u32 index = blockIdx.x; find_f8_tile(p, true, MANY_ROWS, MANY_OUTPUTS, index, at); index += gridDim.x) {
        // This thread's outputs are `each` apart from the first, of `limit`.
        constexpr u32 EACH = GATED ? 8 : 16;
        u32 first = GATED ? at.output / 2 + first_row % 8 : at.output + first_row, limit = GATED ? p.n / 2 : p.n;
        const u8 *w = weights_of(p, at.group);
        const u8 *from_w = w + ((u64)(first + (GATED ? first_row / 8 * (p.n / 2) : 0)) * units + unit) * 16;
        const u8 *x = (const u8 *)p.x + at.group * p.x_batch;
        u32 x_units[MANY_ROWS / 16];  // before this thread's units of rows
        FG_UNROLL
        for (u32 i = 0; i < MANY_ROWS / 16; i++) {
            u32 row = min(first_row + i * 16, at.rows - 1);
            x_units[i] = (u32)(x_row_of(p, at, row) * (p.x_stride / 16)) + unit;
        }
        FG_NO_UNROLL
        for (u32 stage = 0; stage < stages; stage++) {
            u32 slot = count % MANY_STAGES;
            if (count >= MANY_STAGES) barrier_sync(stage_is_free(slot), MANY_THREADS);
            u8 *w_to = shared + slot * MANY_STAGE + to, *x_to = w_to + MANY_W_BYTES;
            bool live = stage * 8 + unit < units;
            FG_UNROLL
            for (u32 i = 0; i < MANY_OUTPUTS / 16; i++) {
                bool there = live && first + i * EACH < limit;
                copy_async_16_or_zero(w_to + i * 2048, there ? from_w + (u64)(i * EACH) * units * 16 : w, there);
            }
            FG_UNROLL
            for (u32 i = 0; i < MANY_ROWS / 16; i++) {
                bool there = live && first_row + i * 16 < at.rows;
                copy_async_16_or_zero(x_to + i * 2048, there ? x + (u64)(x_units[i] + stage * 8) * 16 : x, there);
            }
            copy_async_commit();
            from_w += 128;
            if (count >= BEHIND) {
                copy_async_wait<BEHIND>();
                is_there(count - BEHIND);
            }
            count++;
        }
    }
    copy_async_wait<0>();
    for (u32 stage = count - min(count, BEHIND); stage < count; stage++) is_there(stage);
}

// The sums of 64 outputs go to out; thread t of four has columns 8 · j + 2t and the next.
template <u32 N, bool GATED>
FG_DEVICE void store_f8(const Product<f8> &p, const F8Tile &at, const float *x_scales, const Gate &gate, u32 row_of_tile,
                        const float (&totals)[N / 2]) {
    u32 lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, width = p.n / 2;
    const float *scales = scales_of(p, at.group);
    u32 o[2];
    float scale[2];
    FG_UNROLL
    for (u32 high = 0; high < 2; high++) {
        o[high] = output_of<GATED>(p.n, at.output, row_of_tile + high * 8 + g);
        scale[high] = o[high] < p.n ? scales[o[high]] : 0.0f;
    }
    float *out = p.out + at.group * p.out_batch;
    FG_UNROLL
    for (u32 j = 0; j < N / 8; j++) {
        u32 row = j * 8 + 2 * t;
        float x_scale[2];
        FG_UNROLL
        for (u32 c = 0; c < 2; c++) x_scale[c] = row + c < at.rows ? x_scales[x_row_of(p, at, row + c)] : 0.0f;
        if constexpr (GATED) {
            u32 bits[2];
            FG_UNROLL
            for (u32 c = 0; c < 2; c++) {
                float sum = scaled(totals[j * 4 + c], x_scale[c], scale[0]), up = scaled(totals[j * 4 + 2 + c], x_scale[c], scale[1]);
                bits[c] = to_bf16(activate(gate.activation, sum, up, gate.alpha, gate.limit)).bits;
            }
            // Of two threads with neighbouring outputs each takes both of one row.
            u32 odd = g % 2, other = __shfl_xor_sync(0xffffffffu, odd ? bits[0] : bits[1], 4);
            u32 low = odd ? other : bits[0], high = odd ? bits[1] : other;
            u32 output = at.output / 2 + row_of_tile / 2 + g - odd;
            bf16 *to = (bf16 *)out + (at.first + row + odd) * p.out_stride + output;
            if (row + odd >= at.rows || output >= width) continue;
            if (output + 1 < width && (u64)to % 4 == 0) {
                *(u32 *)to = low | high << 16;
            } else {
                to[0].bits = (u16)low;
                if (output + 1 < width) to[1].bits = (u16)high;
            }
        } else {
            FG_UNROLL
            for (u32 high = 0; high < 2; high++) {
                if (o[high] >= p.n) continue;
                float *to = out + (at.first + row) * p.out_stride + o[high];
                if (row < at.rows) to[0] = scaled(totals[j * 4 + high * 2], x_scale[0], scale[high]);
                if (row + 1 < at.rows) to[p.out_stride] = scaled(totals[j * 4 + high * 2 + 1], x_scale[1], scale[high]);
            }
        }
    }
}

// The tile of at most N rows, from the stages that begin with the `count`-th.
template <u32 N, bool GATED>
FG_DEVICE void f8_tile(const Product<f8> &p, const F8Tile &at, const float *x_scales, const Gate &gate, const u8 *shared, u32 &count) {
    u32 stages = (p.k + GROUP - 1) / GROUP, group = threadIdx.x / 128 - 1;
    float totals[2][N / 2];
    FG_UNROLL
    for (u32 i = 0; i < N; i++) totals[i / (N / 2)][i % (N / 2)] = 0.0f;
    FG_NO_UNROLL
    for (u32 stage = 0; stage < stages; stage++) {
        u32 slot = count++ % MANY_STAGES;
        const u8 *w = shared + slot * MANY_STAGE;
        u64 w_is = describe(w + group * 16384), x_is = describe(w + MANY_W_BYTES);
        barrier_sync(stage_is_there(slot, group), 256);
#if PROBE_FENCE == 1
        show_shared();
#endif
        FG_UNROLL
        for (u32 half = 0; half < 2; half++) {
            float sums[N / 2];
            FG_UNROLL
            for (u32 i = 0; i < N / 2; i++) sums[i] = 0.0f;
            begin_multiply();
            multiply_group(sums, w_is + half * (8192 >> 4), x_is);
            commit_multiply();
            wait_multiply<0>();
            if (half == 1) barrier_arrive(stage_is_free(slot), MANY_THREADS);
            FG_UNROLL
            for (u32 i = 0; i < N / 2; i++) pin(sums[i]);
            FG_UNROLL
            for (u32 i = 0; i < N / 2; i++) totals[half][i] = __fadd_rn(totals[half][i], sums[i]);
        }
    }
    FG_UNROLL
    for (u32 half = 0; half < 2; half++) {
        u32 row_of_tile = group * 128 + half * 64 + threadIdx.x / 32 % 4 * 16;
        store_f8<N, GATED>(p, at, x_scales, gate, row_of_tile, totals[half]);
    }
}

template <bool GATED>
FG_DEVICE void f8_many(Product<f8> p, const float *x_scales, Gate gate = {}) {
    FG_DYNAMIC_SHARED(shared);
    // The launch gives 1024 bytes more.
    shared += (1024 - (u64)shared % 1024) % 1024;
    wait_for_kernel_before();
    let_next_kernel_begin();  // not before: see `known`
    if (threadIdx.x < 128) {
        give_registers<56>();
        copy_stages<GATED>(p, shared);
    } else {
        take_registers<224>();
        u32 count = 0;
        F8Tile at;
        FG_NO_UNROLL
        for (u32 index = blockIdx.x; find_f8_tile(p, true, MANY_ROWS, MANY_OUTPUTS, index, at); index += gridDim.x) {
            if (at.rows > 64) {
                f8_tile<128, GATED>(p, at, x_scales, gate, shared, count);
            } else {
                f8_tile<64, GATED>(p, at, x_scales, gate, shared, count);
            }
        }
    }
}
#endif
