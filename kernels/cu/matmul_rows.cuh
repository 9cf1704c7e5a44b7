// Products of rows with matrices by mma.sync: for up to 64 rows as fast as the matrix can be read, and for any number on GPUs
// without wgmma. blockIdx.x counts tiles of rows, blockIdx.y blocks that share the tiles of outputs.
#pragma once
#include "blocks.cuh"
#include "product.cuh"

// Weights come through a ring in shared memory of STAGES stages of LINES lines each, with the inputs of x that meet them. A line is
// 64 or 128 inputs: 128 bytes of a row of weights, or half of that of 4-bit ones, two lines of which lie side by side. A second plane
// of codes has 16 bytes a line, or 32. A step is 32 inputs, and of weights in blocks one block.
template <class W>
struct Line {
    static constexpr u32 INPUTS = sizeof(W) == 1 ? 128 : 64, X_BYTES = INPUTS * 2, X_UNITS = X_BYTES / 16, STEPS = INPUTS / 32;
    static constexpr bool IN_FOURS = sizeof(W) == 1;
    // Words of a step of 16 outputs that a thread has: the first plane's; then of two outputs each what is in the second one, what
    // blocks have beside codes, and what they share.
    static constexpr u32 RAW = BITS<W> / 2, OWN = RAW + (HIGH_BITS<W> > 0 ? 2 : 0), SHARED = OWN + (BLOCKS<W> ? 2 : 0);
    static constexpr u32 HELD = SHARED + (SHARED_BYTES<W> > 0 ? 2 : 0);
    static constexpr u32 SCALES = STEPS * SCALE_BYTES<W>;  // bytes beside codes, of a row
};

// Units of 16 bytes are so placed that those that threads read at a time are in different banks.
FG_DEVICE u32 place(u32 row, u32 unit) { return row * 128 + (unit ^ row % 8) * 16; }
// x of a line of weights of 8 bits or fewer, of which threads read pairs of units.
FG_DEVICE u32 place_twice(u32 row, u32 unit) { return row * 256 + (unit ^ row % 4 * 2) * 16; }
// The second plane of codes of OUTPUTS rows, of which a stage has UNITS units each: threads read the same unit of eight rows at a
// time, and copy all units of a row.
template <u32 OUTPUTS, u32 UNITS>
FG_DEVICE u32 place_high(u32 row, u32 unit) {
    return (unit * OUTPUTS + (row ^ unit * (8 / UNITS))) * 16;
}

// Copies COUNT parts of BYTES of each of OUTPUTS rows, the first `parts` of which are there, with all THREADS: `from` is part
// threadIdx.x / OUTPUTS of row threadIdx.x % OUTPUTS. In shared memory rows of a part follow each other. `any`: what may be read.
template <u32 BYTES, u32 COUNT, u32 OUTPUTS, u32 THREADS>
FG_DEVICE void copy_parts(u8 *to, const u8 *from, const u8 *any, u32 parts) {
    constexpr u32 ACROSS = THREADS / OUTPUTS;
    FG_UNROLL
    for (u32 i = 0; i < (COUNT + ACROSS - 1) / ACROSS; i++) {
        u32 part = i * ACROSS + threadIdx.x / OUTPUTS;
        if (COUNT % ACROSS != 0 && part >= COUNT) continue;
        bool live = part < parts;
        u8 *there = to + (part * OUTPUTS + threadIdx.x % OUTPUTS) * BYTES;
        copy_async_few_or_zero_cached<BYTES>(there, live ? from + i * ACROSS * BYTES : any, live);
    }
}

// What multiply_16x8x16 takes of 16 outputs and inputs 16 · i .. 16 · i + 16 of a step. Of weights of 8 bits or fewer a thread has
// inputs 4t .. 4t + 4 in place of 2t, 2t + 1, 2t + 8 and 2t + 9, and of x as well: the order within 16 inputs makes no difference.
template <class W>
FG_DEVICE void operand(u32 (&out)[4], const u32 *raw, u32 i) {
    if constexpr (BLOCKS<W>) {
        FG_UNROLL
        for (u32 high = 0; high < 2; high++) {
            using L = Line<W>;
            BlockScale<W> scale = block_scale<W>({raw[L::OWN + high], SHARED_BYTES<W> > 0 ? raw[L::SHARED + high] : 0}, i);
            u32 four = BITS<W> == 4 ? four_codes<W>(raw[high], HIGH_BITS<W> > 0 ? raw[L::RAW + high] : 0, i) : raw[2 * i + high];
            out[high] = block_pair<0>(four, scale), out[2 + high] = block_pair<2>(four, scale);
        }
    } else if constexpr (sizeof(W) == 1) {
        u32 low = raw[2 * i], high = raw[2 * i + 1];
        out[0] = Unit<f8>::pair<0>(low), out[1] = Unit<f8>::pair<0>(high);
        out[2] = Unit<f8>::pair<1>(low), out[3] = Unit<f8>::pair<1>(high);
    } else {
        FG_UNROLL
        for (u32 j = 0; j < 4; j++) out[j] = Unit<W>::pair(raw[4 * i + j]);
    }
}

// Threads of the block meet: all of one warp, or of several.
template <u32 WARPS>
FG_DEVICE void together() {
    if constexpr (WARPS == 1) __syncwarp();
    else __syncthreads();
}

// Of up to 8 · EIGHTS rows and 16 · HIGH · ACROSS outputs, DOWN × ACROSS warps have the same part each. `X_ROWS`: rows of x that
// shared memory has room for (where it is 1, all eight are the same one). `AHEAD`: a step is read while the one before is multiplied.
// `ALIGNED`: rows of x begin at, and have, multiples of 16 bytes. `GATED`: the activation of outputs o and o + n / 2 goes to out, in
// bf16. Matrices are asked for before the kernels before have ended.
template <class W, u32 EIGHTS, u32 DOWN, u32 ACROSS, u32 HIGH, u32 STAGES, u32 LINES, bool GATED, u32 X_ROWS = 8 * EIGHTS,
          bool AHEAD = true, bool ALIGNED = true>
FG_DEVICE void few(Product<bf16> p, Gate gate = {}) {
    using L = Line<W>;
    constexpr u32 WARPS = DOWN * ACROSS, THREADS = 32 * WARPS, OUTPUTS = 16 * HIGH * ACROSS;
    constexpr u32 EACH = EIGHTS / DOWN, HEIGHT = X_ROWS == 1 ? 1 : 8 * EIGHTS;
    // A stage: what it has of weights, by 128 bytes a row, and of their second plane, by units; x, by lines; what blocks have beside
    // codes, by lines, and what eight of them share.
    constexpr u32 W_BYTES = OUTPUTS * 128, W_LINES = LINES * L::INPUTS * BITS<W> / 1024, X_LINE = X_ROWS * L::X_BYTES;
    constexpr u32 H_UNITS = LINES * HIGH_BITS<W>, H_PARTS = H_UNITS > 0 ? H_UNITS : 1, SHARERS = LINES / 2;
    constexpr u32 H_AT = W_LINES * W_BYTES, X_AT = H_AT + H_UNITS * OUTPUTS * 16, S_AT = X_AT + LINES * X_LINE;
    constexpr u32 E_AT = S_AT + LINES * OUTPUTS * L::SCALES, STAGE = E_AT + SHARERS * OUTPUTS * SHARED_BYTES<W>;
    constexpr u32 H_EACH = (H_UNITS * OUTPUTS + THREADS - 1) / THREADS;
    constexpr u32 W_EACH = OUTPUTS * 8 / THREADS, X_EACH = (X_ROWS * L::X_UNITS + THREADS - 1) / THREADS;
    constexpr u32 STEPS = LINES * L::STEPS;
    static_assert(EIGHTS % DOWN == 0 && STEPS % 2 == 0, "steps take turns in two places");
    static_assert(W_LINES * 1024 == LINES * L::INPUTS * BITS<W>, "weights come by 128 bytes a row");
    static_assert(SHARED_BYTES<W> == 0 || LINES % 2 == 0, "a stage has all that share");
    FG_DYNAMIC_SHARED(shared);
    Tile at;
    if (!p.offsets) let_next_kernel_begin();
    if (!narrow(p, HEIGHT, at)) {
        wait_for_kernel_before();
        return;
    }
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    u32 units = low_bytes<W>(p.k) / 16, high_units = high_bytes<W>(p.k) / 16, pitch = row_bytes<W>(p.k);
    u32 tiles = (p.n + OUTPUTS - 1) / OUTPUTS, stages = (p.k + LINES * L::INPUTS - 1) / (LINES * L::INPUTS);

    // Stages are loaded one after the other, those of the next tile of outputs right after those of the one before. Here is where
    // this thread's units of the next one come from, and where they go. Outputs past the last are as the last.
    const u8 *w_from[W_EACH], *h_from[H_EACH + 1], *x_from[X_EACH], *s_from = p.w, *e_from = p.w;
    u32 w_to[W_EACH], x_to[X_EACH], w_tile = blockIdx.y, w_stage = 0, x_stage = 0;
    auto begin_w = [&] {
        FG_UNROLL
        for (u32 i = 0; i < W_EACH; i++) {
            u32 row = i * (THREADS / 8) + threadIdx.x / 8, output = output_of<GATED>(p.n, w_tile * OUTPUTS, row);
            w_from[i] = p.w + (u64)min(output, p.n - 1) * pitch + threadIdx.x % 8 * 16;
            w_to[i] = place(row, threadIdx.x % 8);
        }
        FG_UNROLL
        for (u32 i = 0; i < H_EACH; i++) {
            u32 at_once = i * THREADS + threadIdx.x, unit = at_once % H_PARTS;
            u32 output = output_of<GATED>(p.n, w_tile * OUTPUTS, at_once / H_PARTS);
            h_from[i] = p.w + (u64)min(output, p.n - 1) * pitch + (units + unit) * 16;
        }
        if constexpr (BLOCKS<W>) {
            u32 output = output_of<GATED>(p.n, w_tile * OUTPUTS, threadIdx.x % OUTPUTS), part = threadIdx.x / OUTPUTS;
            const u8 *beside = p.w + (u64)min(output, p.n - 1) * pitch + code_bytes<W>(p.k);
            s_from = beside + part * L::SCALES;
            e_from = beside + p.k / 32 * SCALE_BYTES<W> + part * SHARED_BYTES<W>;
        }
    };
    auto load_w = [&](u8 *to) {
        if ((w_stage + 1) * LINES * L::INPUTS <= p.k) {
            FG_UNROLL
            for (u32 i = 0; i < W_EACH * W_LINES; i++) {
                copy_async_16(to + i / W_EACH * W_BYTES + w_to[i % W_EACH], w_from[i % W_EACH] + i / W_EACH * 128);
            }
        } else {
            FG_UNROLL
            for (u32 i = 0; i < W_EACH * W_LINES; i++) {
                bool live = (w_stage * W_LINES + i / W_EACH) * 8 + threadIdx.x % 8 < units;
                const u8 *from = live ? w_from[i % W_EACH] + i / W_EACH * 128 : p.w;
                copy_async_16_or_zero(to + i / W_EACH * W_BYTES + w_to[i % W_EACH], from, live);
            }
        }
        FG_UNROLL
        for (u32 i = 0; i < W_EACH; i++) w_from[i] += W_LINES * 128;
        FG_UNROLL
        for (u32 i = 0; i < H_EACH; i++) {
            u32 at_once = i * THREADS + threadIdx.x, unit = at_once % H_PARTS;
            if (H_UNITS * OUTPUTS % THREADS != 0 && at_once >= H_UNITS * OUTPUTS) continue;
            bool live = w_stage * H_UNITS + unit < high_units;
            u8 *there = to + H_AT + place_high<OUTPUTS, H_PARTS>(at_once / H_PARTS, unit);
            copy_async_16_or_zero(there, live ? h_from[i] : p.w, live);
            h_from[i] += H_UNITS * 16;
        }
        if constexpr (BLOCKS<W>) {
            u32 lines = (p.k + L::INPUTS - 1) / L::INPUTS - w_stage * LINES;
            copy_parts<L::SCALES, LINES, OUTPUTS, THREADS>(to + S_AT, s_from, p.w, lines);
            s_from += LINES * L::SCALES;
        }
        if constexpr (SHARED_BYTES<W> > 0) {
            copy_parts<SHARED_BYTES<W>, SHARERS, OUTPUTS, THREADS>(to + E_AT, e_from, p.w, p.k / 256 - w_stage * SHARERS);
            e_from += SHARERS * SHARED_BYTES<W>;
        }
        if (++w_stage == stages) {
            w_tile += gridDim.y, w_stage = 0;
            begin_w();
        }
    };
    auto load_x = [&](u8 *to) {
        FG_UNROLL
        for (u32 i = 0; i < X_EACH * LINES; i++) {
            u32 line = i / X_EACH, unit = i % X_EACH * THREADS + threadIdx.x;
            if (X_ROWS * L::X_UNITS % THREADS != 0 && unit >= X_ROWS * L::X_UNITS) continue;
            u8 *there = to + X_AT + line * X_LINE + x_to[i % X_EACH];
            const u8 *from = x_from[i % X_EACH] + line * L::X_BYTES;
            u32 input = (x_stage * LINES + line) * L::INPUTS + unit % L::X_UNITS * 8;
            if constexpr (ALIGNED) {
                bool live = input < p.k;
                copy_async_16_or_zero_cached(there, live ? from : (const u8 *)p.x, live);
            } else {
                u32 pairs[4];
                FG_UNROLL
                for (u32 j = 0; j < 4; j++) {
                    const bf16 *two = (const bf16 *)from + 2 * j;
                    u32 low = input + 2 * j < p.k ? two[0].bits : 0, high = input + 2 * j + 1 < p.k ? two[1].bits : 0;
                    pairs[j] = low | high << 16;
                }
                *(uint4 *)there = uint4{pairs[0], pairs[1], pairs[2], pairs[3]};
            }
        }
        x_stage++;
        u32 on = LINES * L::X_BYTES;
        if (x_stage == stages) on -= stages * on, x_stage = 0;
        FG_UNROLL
        for (u32 i = 0; i < X_EACH; i++) x_from[i] += (i32)on;
    };

    u32 to_load = (tiles - blockIdx.y + gridDim.y - 1) / gridDim.y * stages;
    begin_w();
    FG_UNROLL
    for (u32 stage = 0; stage < STAGES; stage++) {
        if (stage < to_load) load_w(shared + stage * STAGE);
    }
    // Weights are always there, x only now.
    wait_for_kernel_before();
    let_next_kernel_begin();
    FG_UNROLL
    for (u32 i = 0; i < X_EACH; i++) {
        u32 at_once = i * THREADS + threadIdx.x, row = at_once / L::X_UNITS, unit = at_once % L::X_UNITS;
        x_from[i] = (const u8 *)(row_of(p, at, row) + unit * 8);
        x_to[i] = L::IN_FOURS ? place_twice(row, unit) : place(row, unit);
    }
    FG_UNROLL
    for (u32 stage = 0; stage < STAGES; stage++) {
        if (stage < to_load) load_x(shared + stage * STAGE);
        copy_async_commit();
    }
    to_load -= min(to_load, STAGES);

    float sums[HIGH][EACH][4];
    auto begin_sums = [&] {
        FG_UNROLL
        for (u32 i = 0; i < HIGH * EACH * 4; i++) sums[i / (EACH * 4)][i / 4 % EACH][i % 4] = 0.0f;
    };
    u32 my_output = warp % ACROSS * 16 * HIGH, my_row = warp / ACROSS * EACH * 8, w_row = my_output + lane % 16;
    auto read_w = [&](u32(&to)[HIGH][L::HELD], const u8 *stage, u32 step) {
        if constexpr (BITS<W> == 4) {
            FG_UNROLL
            for (u32 i = 0; i < 2 * HIGH; i++) {
                const u8 *line = stage + step / 8 * W_BYTES;
                to[i / 2][i % 2] = *(const u32 *)(line + place(my_output + i * 8 + g, step % 8) + t * 4);
            }
        } else {
            const u8 *line = stage + step / L::STEPS * W_BYTES;
            FG_UNROLL
            for (u32 h = 0; h < HIGH; h++) {
                FG_UNROLL
                for (u32 i = 0; i < L::RAW; i += 4) {
                    u32 four[4], unit = step % L::STEPS * (L::RAW / 2) + i / 2 + lane / 16;
                    load_matrices(four, line + place(w_row + h * 16, unit));
                    FG_UNROLL
                    for (u32 j = 0; j < 4; j++) to[h][i + j] = four[j];
                }
            }
        }
        if constexpr (BLOCKS<W>) {
            const u8 *scales = stage + S_AT + step / L::STEPS * OUTPUTS * L::SCALES + step % L::STEPS * SCALE_BYTES<W>;
            FG_UNROLL
            for (u32 i = 0; i < 2 * HIGH; i++) {
                to[i / 2][L::OWN + i % 2] = scale_bits(scales + (my_output + i * 8 + g) * L::SCALES, SCALE_BYTES<W>);
            }
        }
        if constexpr (HIGH_BITS<W> > 0) {
            constexpr u32 BLOCK = 2 * HIGH_BITS<W>, EACH_WORD = 8 / BLOCK;  // bits of a block in a byte, and blocks in a word
            FG_UNROLL
            for (u32 i = 0; i < 2 * HIGH; i++) {
                u32 at = place_high<OUTPUTS, H_PARTS>(my_output + i * 8 + g, step / EACH_WORD) + t * 4;
                to[i / 2][L::RAW + i % 2] = *(const u32 *)(stage + H_AT + at) >> step % EACH_WORD * BLOCK;
            }
        }
        if constexpr (SHARED_BYTES<W> > 0) {
            FG_UNROLL
            for (u32 i = 0; i < 2 * HIGH; i++) {
                u32 row = step / 8 * OUTPUTS + my_output + i * 8 + g;
                to[i / 2][L::SHARED + i % 2] = *(const u32 *)(stage + E_AT + row * SHARED_BYTES<W>);
            }
        }
    };
    auto read_x = [&](u32(&to)[4], const u8 *stage, u32 step, u32 eight) {
        const u8 *line = stage + X_AT + step / L::STEPS * X_LINE;
        step %= L::STEPS;
        if constexpr (L::IN_FOURS) {
            FG_UNROLL
            for (u32 i = 0; i < 2; i++) {
                u32 row = X_ROWS == 1 ? 0 : my_row + eight * 8 + g, unit = step * 4 + i * 2 + t / 2;
                uint2 two = *(const uint2 *)(line + place_twice(row, unit) + t % 2 * 8);
                to[2 * i] = two.x, to[2 * i + 1] = two.y;
            }
        } else {
            load_matrices(to, line + place(X_ROWS == 1 ? 0 : my_row + eight * 8 + lane % 8, step * 4 + lane / 8));
        }
    };
    // Returns when the next stage is there for all, and none reads the one before any more.
    auto next_stage = [&] {
        copy_async_wait<STAGES - 2>();
        together<WARPS>();
    };
    auto refill = [&](u8 *slot) {
        if (to_load > 0) {
            to_load--;
            load_w(slot);
            load_x(slot);
        }
        copy_async_commit();
    };
    // Rows 8 · e + 2t + c of a warp, outputs g and g + 8 of 16.
    auto finish = [&](u32 tile) {
        FG_UNROLL
        for (u32 h = 0; h < HIGH; h++) {
            u32 of_tile = my_output + h * 16 + g;
            if constexpr (GATED) {
                u32 o = output_of<true>(p.n, tile * OUTPUTS, of_tile), width = p.n / 2;
                if (o >= width) continue;
                float scale = p.scales ? p.scales[o] : 1.0f, up_scale = p.scales ? p.scales[width + o] : 1.0f;
                FG_UNROLL
                for (u32 i = 0; i < 2 * EACH; i++) {
                    u32 row = my_row + i / 2 * 8 + 2 * t + i % 2;
                    if (row >= at.rows) continue;
                    // Rounded, as they are where the activation is a kernel by itself.
                    float sum = __fmul_rn(sums[h][i / 2][i % 2], scale), up = __fmul_rn(sums[h][i / 2][2 + i % 2], up_scale);
                    float x = activate(gate.activation, sum, up, gate.alpha, gate.limit);
                    store((bf16 *)p.out + (at.first + row) * p.out_stride + o, x);
                }
            } else {
                FG_UNROLL
                for (u32 half = 0; half < 2; half++) {
                    u32 o = tile * OUTPUTS + of_tile + half * 8;
                    if (o >= p.n) continue;
                    float scale = p.scales ? p.scales[o] : 1.0f;
                    FG_UNROLL
                    for (u32 i = 0; i < 2 * EACH; i++) {
                        u32 row = my_row + i / 2 * 8 + 2 * t + i % 2;
                        if (row < at.rows) p.out[(at.first + row) * p.out_stride + o] = sums[h][i / 2][2 * half + i % 2] * scale;
                    }
                }
            }
        }
    };

    u8 *slot = shared, *end = shared + STAGES * STAGE;
    copy_async_wait<STAGES - 1>();
    together<WARPS>();
    if constexpr (AHEAD) {
        u32 raw[2][HIGH][L::HELD], x[2][EACH][4], now[HIGH][4], then[HIGH][4];
        auto read = [&](u32 to, const u8 *stage, u32 step) {
            read_w(raw[to], stage, step);
            FG_UNROLL
            for (u32 e = 0; e < EACH; e++) read_x(x[to][e], stage, step, e);
        };
        auto multiply = [&](const u32(&w)[HIGH][4], u32 from, u32 i) {
            FG_UNROLL
            for (u32 h = 0; h < HIGH; h++) {
                FG_UNROLL
                for (u32 e = 0; e < EACH; e++) {
                    multiply_16x8x16(sums[h][e], w[h], x[from][e][2 * i], x[from][e][2 * i + 1]);
                }
            }
        };
        read(0, slot, 0);
        FG_UNROLL
        for (u32 h = 0; h < HIGH; h++) operand<W>(now[h], raw[0][h], 0);
        FG_NO_UNROLL
        for (u32 tile = blockIdx.y; tile < tiles; tile += gridDim.y) {
            begin_sums();
            FG_NO_UNROLL
            for (u32 stage = 0; stage < stages; stage++) {
                FG_UNROLL
                for (u32 step = 0; step < STEPS; step++) {
                    u32 here = step % 2, next = 1 - here;
                    if (step == STEPS - 1) {
                        // Past the last stage, of what is not used.
                        u8 *before = slot;
                        slot += STAGE;
                        if (slot == end) slot = shared;
                        next_stage();
                        read(next, slot, 0);
                        refill(before);
                    } else {
                        read(next, slot, step + 1);
                    }
                    FG_UNROLL
                    for (u32 h = 0; h < HIGH; h++) operand<W>(then[h], raw[here][h], 1);
                    multiply(now, here, 0);
                    FG_UNROLL
                    for (u32 h = 0; h < HIGH; h++) operand<W>(now[h], raw[next][h], 0);
                    multiply(then, here, 1);
                }
            }
            finish(tile);
        }
    } else {
        FG_NO_UNROLL
        for (u32 tile = blockIdx.y; tile < tiles; tile += gridDim.y) {
            begin_sums();
            FG_NO_UNROLL
            for (u32 stage = 0; stage < stages; stage++) {
                FG_UNROLL
                for (u32 step = 0; step < STEPS; step++) {
                    u32 raw[HIGH][L::HELD], now[2][HIGH][4];
                    read_w(raw, slot, step);
                    FG_UNROLL
                    for (u32 h = 0; h < HIGH; h++) operand<W>(now[0][h], raw[h], 0), operand<W>(now[1][h], raw[h], 1);
                    FG_UNROLL
                    for (u32 e = 0; e < EACH; e++) {
                        u32 x[4];
                        read_x(x, slot, step, e);
                        FG_UNROLL
                        for (u32 i = 0; i < 2; i++) {
                            FG_UNROLL
                            for (u32 h = 0; h < HIGH; h++) multiply_16x8x16(sums[h][e], now[i][h], x[2 * i], x[2 * i + 1]);
                        }
                    }
                }
                u8 *before = slot;
                slot += STAGE;
                if (slot == end) slot = shared;
                next_stage();
                refill(before);
            }
            finish(tile);
        }
    }
}

// matmul_rows_TYPE.cu make of it rows_HEIGHT_TYPE and rows_gated_HEIGHT_TYPE, of (EIGHTS, DOWN, ACROSS, HIGH, STAGES, LINES,
// GATED, X_ROWS). choose.rs knows the sizes, too. `any` is for x of any length and place.
#define ROWS(threads, blocks, name, type, ...)                                                                     \
    FG_KERNEL_MIN(threads, blocks, rows_##name##_##type, PRODUCT(bf16)) {                                          \
        few<type, __VA_ARGS__>(THE_PRODUCT);                                                                       \
    }
#define GATED(threads, blocks, name, type, ...)                                                                    \
    FG_KERNEL_MIN(threads, blocks, rows_gated_##name##_##type, GATED_PRODUCT) {                                    \
        few<type, __VA_ARGS__>(THE_PRODUCT, THE_GATE);                                                             \
    }
#define BOTH(threads, blocks, name, type, eights, down, across, high, stages, lines, x_rows)                       \
    ROWS(threads, blocks, name, type, eights, down, across, high, stages, lines, false, x_rows)                    \
    GATED(threads, blocks, name, type, eights, down, across, high, stages, lines, true, x_rows)
#define KERNELS(type)                                                                                              \
    BOTH(32, 4, 1, type, 1, 1, 1, 1, 6, 4, 1)                                                                      \
    BOTH(32, 4, 1_of_32, type, 1, 1, 1, 2, 3, 4, 1)                                                                \
    BOTH(32, 4, 8_of_32, type, 1, 1, 1, 2, 5, 2, 8)                                                                \
    BOTH(32, 4, 8, type, 1, 1, 1, 1, 8, 2, 8)                                                                      \
    BOTH(128, 2, 16, type, 2, 2, 2, 1, 8, 2, 16)                                                                   \
    BOTH(128, 3, 16_of_64, type, 2, 1, 4, 1, 3, 2, 16)                                                             \
    BOTH(128, 2, 32, type, 4, 2, 2, 1, 6, 2, 32)                                                                   \
    BOTH(256, 2, 32_of_64, type, 4, 2, 4, 1, 4, 2, 32)                                                             \
    BOTH(256, 2, 64, type, 8, 4, 2, 1, 4, 2, 64)                                                                   \
    BOTH(256, 2, 64_of_64, type, 8, 2, 4, 1, 3, 2, 64)                                                             \
    ROWS(256, 1, 128, type, 16, 2, 4, 2, 3, 1, false, 128, false)                                                  \
    ROWS(32, 4, any, type, 1, 1, 1, 1, 4, 1, false, 8, true, false)
#define EIGHT_BIT_KERNELS(type)                                                                                    \
    BOTH(32, 4, 1, type, 1, 1, 1, 1, 5, 4, 1)                                                                      \
    BOTH(32, 4, 1_of_32, type, 1, 1, 1, 2, 3, 4, 1)                                                                \
    BOTH(32, 4, 8_of_32, type, 1, 1, 1, 2, 4, 2, 8)                                                                \
    BOTH(32, 4, 8, type, 1, 1, 1, 1, 6, 2, 8)                                                                      \
    BOTH(128, 2, 16, type, 2, 2, 2, 1, 6, 2, 16)                                                                   \
    BOTH(128, 3, 16_of_64, type, 2, 1, 4, 1, 3, 2, 16)                                                             \
    BOTH(128, 2, 32, type, 4, 2, 2, 1, 4, 2, 32)                                                                   \
    BOTH(256, 2, 32_of_64, type, 4, 2, 4, 1, 3, 2, 32)                                                             \
    BOTH(256, 2, 64, type, 8, 4, 2, 1, 4, 1, 64)                                                                   \
    BOTH(256, 2, 64_of_64, type, 8, 2, 4, 1, 4, 1, 64)                                                             \
    ROWS(256, 1, 128, type, 16, 2, 4, 2, 2, 1, false, 128, false)                                                  \
    ROWS(32, 4, any, type, 1, 1, 1, 1, 3, 1, false, 8, true, false)
// The same of blocks of 256, and of those that few files have: no two sizes of tiles for as many rows, which would take twice the time
// to compile.
#define FEWER_KERNELS(type)                                                                                        \
    BOTH(32, 4, 1, type, 1, 1, 1, 1, 6, 2, 1)                                                                      \
    BOTH(32, 4, 8, type, 1, 1, 1, 1, 4, 2, 8)                                                                      \
    BOTH(128, 3, 16_of_64, type, 2, 1, 4, 1, 3, 2, 16)                                                             \
    BOTH(256, 2, 32_of_64, type, 4, 2, 4, 1, 3, 2, 32)                                                             \
    BOTH(256, 2, 64_of_64, type, 8, 2, 4, 1, 2, 2, 64)                                                             \
    ROWS(32, 4, any, type, 1, 1, 1, 1, 3, 2, false, 8, true, false)
// Blocks of 4 bits come two lines at a time. Of 128 rows a stage would be too large.
#define FOUR_BIT_KERNELS(type)                                                                                     \
    BOTH(32, 4, 1, type, 1, 1, 1, 1, 4, 4, 1)                                                                      \
    BOTH(32, 4, 1_of_32, type, 1, 1, 1, 2, 3, 4, 1)                                                                \
    BOTH(32, 4, 8, type, 1, 1, 1, 1, 4, 2, 8)                                                                      \
    BOTH(32, 4, 8_of_32, type, 1, 1, 1, 2, 4, 2, 8)                                                                \
    BOTH(128, 2, 16, type, 2, 2, 2, 1, 4, 2, 16)                                                                   \
    BOTH(128, 3, 16_of_64, type, 2, 1, 4, 1, 3, 2, 16)                                                             \
    BOTH(128, 2, 32, type, 4, 2, 2, 1, 3, 2, 32)                                                                   \
    BOTH(256, 2, 32_of_64, type, 4, 2, 4, 1, 3, 2, 32)                                                             \
    BOTH(256, 2, 64, type, 8, 4, 2, 1, 2, 2, 64)                                                                   \
    BOTH(256, 2, 64_of_64, type, 8, 2, 4, 1, 2, 2, 64)                                                             \
    ROWS(32, 4, any, type, 1, 1, 1, 1, 3, 2, false, 8, true, false)
