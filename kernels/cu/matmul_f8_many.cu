// Products of many rows of E4M3 with matrices in E4M3: tiles of 128 outputs and 128 rows. One warpgroup copies, two multiply 64
// outputs each, with two sets of sums: while one is multiplied, the other is added to the totals. Blocks share all tiles: block b of B has tiles b, b + B, and so on; those that run at the same time share the weights
// and rows they read.
#include "matmul_f8.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(FOGGARA_HOST)
constexpr u32 ROWS = 128, OUTPUTS = 128, THREADS = 384, STAGES = 6;
constexpr u32 W_BYTES = OUTPUTS * 128, STAGE = W_BYTES + ROWS * 128;

// Barriers: a stage is there; it is not needed any more; and the threads of a warpgroup that multiplies meet.
FG_DEVICE u32 is_there(u32 slot) { return 1 + slot; }
FG_DEVICE u32 is_free(u32 slot) { return 1 + STAGES + slot; }
FG_DEVICE void meet(u32 multiplier) { barrier_sync(1 + 2 * STAGES + multiplier, 128); }

// Copies the stages of this block's tiles.
template <bool GATED>
FG_DEVICE void copy_stages(const Product<f8> &p, u8 *shared) {
    constexpr u32 BEHIND = STAGES - 2;  // stages on their way when the one before them is waited for
    u32 units = (p.k + 15) / 16, stages = (units + 7) / 8, unit = threadIdx.x % 8, first_row = threadIdx.x / 8;
    u32 to = place_wide(first_row, unit), count = 0, slot = 0, ready = 0;
    auto tell = [&] {
        barrier_arrive(is_there(ready), THREADS);
        if (++ready == STAGES) ready = 0;
    };
    F8Tile at;
    FG_NO_UNROLL
    for (u32 index = blockIdx.x; find_f8_tile(p, true, ROWS, OUTPUTS, index, at); index += gridDim.x) {
        // This thread's outputs are EACH apart from the first, of `limit`.
        constexpr u32 EACH = GATED ? 8 : 16;
        u32 first = GATED ? at.output / 2 + first_row % 8 : at.output + first_row, limit = GATED ? p.n / 2 : p.n;
        const u8 *w = weights_of(p, at.group);
        const u8 *from_w = w + ((u64)(first + (GATED ? first_row / 8 * (p.n / 2) : 0)) * units + unit) * 16;
        const u8 *x = (const u8 *)p.x + at.group * p.x_batch;
        u32 x_units[ROWS / 16];  // before this thread's units of rows
        FG_UNROLL
        for (u32 i = 0; i < ROWS / 16; i++) {
            u32 row = min(first_row + i * 16, at.rows - 1);
            x_units[i] = (u32)(x_row_of(p, at, row) * (p.x_stride / 16)) + unit;
        }
        FG_NO_UNROLL
        for (u32 stage = 0; stage < stages; stage++) {
            if (count >= STAGES) barrier_sync(is_free(slot), THREADS);
            u8 *w_to = shared + slot * STAGE + to, *x_to = w_to + W_BYTES;
            if (++slot == STAGES) slot = 0;
            bool live = stage * 8 + unit < units;
            FG_UNROLL
            for (u32 i = 0; i < OUTPUTS / 16; i++) {
                bool there = live && first + i * EACH < limit;
                copy_async_16_or_zero(w_to + i * 2048, there ? from_w + (u64)(i * EACH) * units * 16 : w, there);
            }
            FG_UNROLL
            for (u32 i = 0; i < ROWS / 16; i++) {
                bool there = live && first_row + i * 16 < at.rows;
                copy_async_16_or_zero(x_to + i * 2048, there ? x + (u64)(x_units[i] + stage * 8) * 16 : x, there);
            }
            copy_async_commit();
            from_w += 128;
            if (count++ < BEHIND) continue;
            copy_async_wait<BEHIND>();
            tell();
        }
    }
    copy_async_wait<0>();
    for (u32 left = min(count, BEHIND); left > 0; left--) tell();
}

// The sums of 64 outputs go to out. Thread t of four has columns 8 · j + 2t and the next of outputs g and g + 8 of a warp's 16. What
// rows are multiplied by is in shared memory: from elsewhere it would be waited for again and again. ANY: the activation is whichever
// `gate` says, in place of SILU: asked for once a tile, so that several are worked on at once.
template <u32 N, bool GATED, bool ANY>
FG_DEVICE void store_sums(const Product<f8> &p, const F8Tile &at, const float *x_scales, const Gate &gate, u32 row_of_tile,
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
        for (u32 c = 0; c < 2; c++) x_scale[c] = x_scales[row + c];
        if constexpr (GATED) {
            u32 bits[2];
            FG_UNROLL
            for (u32 c = 0; c < 2; c++) {
                float sum = scaled(totals[j * 4 + c], x_scale[c], scale[0]), up = scaled(totals[j * 4 + 2 + c], x_scale[c], scale[1]);
                bits[c] = to_bf16(activate(ANY ? gate.activation : (u32)SILU, sum, up, gate.alpha, gate.limit)).bits;
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

// Adds up a tile of at most N rows, of the stages that begin in `slot`.
template <u32 N, bool GATED>
FG_DEVICE void multiply_tile(const Product<f8> &p, const F8Tile &at, const float *x_scales, const Gate &gate, u8 *shared, u32 &slot) {
    u32 stages = (p.k + GROUP - 1) / GROUP, multiplier = threadIdx.x / 128 - 1, thread = threadIdx.x % 128;
    float *row_scales = (float *)(shared + STAGES * STAGE) + multiplier * ROWS;
    meet(multiplier);  // what was there is not needed any more
    row_scales[thread] = thread < at.rows ? x_scales[x_row_of(p, at, thread)] : 0.0f;
    meet(multiplier);
    float totals[N / 2], sums[2][N / 2];
    FG_UNROLL
    for (u32 i = 0; i < N / 2; i++) totals[i] = 0.0f;
    // The sums of a stage, which is not needed any more then.
    auto add = [&](float(&set)[N / 2], u32 from) {
        barrier_arrive(is_free(from), THREADS);
        FG_UNROLL
        for (u32 i = 0; i < N / 2; i++) pin(set[i]);
        FG_UNROLL
        for (u32 i = 0; i < N / 2; i++) totals[i] = __fadd_rn(totals[i], set[i]);
    };
    auto multiply = [&](float(&set)[N / 2]) {
        barrier_sync(is_there(slot), THREADS);
        show_shared();
        const u8 *stage = shared + slot * STAGE;
        begin_multiply();
        multiply_group(set, describe(stage + multiplier * 8192), describe(stage + W_BYTES));
        commit_multiply();
    };
    auto next = [](u32 of) { return of + 1 == STAGES ? 0 : of + 1; };
    multiply(sums[0]);
    FG_NO_UNROLL
    for (u32 stage = 1; stage + 1 < stages; stage += 2) {
        FG_UNROLL
        for (u32 turn = 0; turn < 2; turn++) {
            u32 before = slot;
            slot = next(slot);
            multiply(sums[1 - turn]);
            wait_multiply<1>();
            add(sums[turn], before);
        }
    }
    if (stages % 2 == 0) {
        u32 before = slot;
        slot = next(slot);
        multiply(sums[1]);
        wait_multiply<1>();
        add(sums[0], before);
        wait_multiply<0>();
        add(sums[1], slot);
    } else {
        wait_multiply<0>();
        add(sums[0], slot);
    }
    slot = next(slot);
    u32 row_of_tile = multiplier * 64 + thread / 32 * 16;
    if (GATED && gate.activation != SILU) store_sums<N, GATED, true>(p, at, row_scales, gate, row_of_tile, totals);
    else store_sums<N, GATED, false>(p, at, row_scales, gate, row_of_tile, totals);
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
        u32 slot = 0;
        F8Tile at;
        FG_NO_UNROLL
        for (u32 index = blockIdx.x; find_f8_tile(p, true, ROWS, OUTPUTS, index, at); index += gridDim.x) {
            if (at.rows > 64) {
                multiply_tile<128, GATED>(p, at, x_scales, gate, shared, slot);
            } else {
                multiply_tile<64, GATED>(p, at, x_scales, gate, shared, slot);
            }
        }
    }
}

FG_KERNEL_MIN(THREADS, 1, f8_many, F8_PRODUCT) { f8_many<false>(THE_PRODUCT, x_scales); }
FG_KERNEL_MIN(THREADS, 1, f8_many_gated, F8_GATED_PRODUCT) { f8_many<true>(THE_PRODUCT, x_scales, THE_GATE); }
#endif
