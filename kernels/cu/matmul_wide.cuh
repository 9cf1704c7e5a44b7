// Products of many rows with matrices by Hopper's own instructions. blockIdx.x counts tiles of rows (of all groups, one after the
// other, if there are any), blockIdx.y tiles of outputs: blocks that run at the same time share the weights they read.
// (Many sorted rows of groups in bf16 are matmul_streamed.cu's.)
#pragma once
#include "blocks.cuh"
#include "product.cuh"
#include "wgmma_bf16.cuh"

// Inputs of a stage: 128 bytes of a row of x.
constexpr u32 DEPTH = 64;

// Elements of x before each row of the tile; for those past the last one, before that.
FG_DEVICE void find_rows(const Product<bf16> &p, u64 *row_at, u32 height, const Tile &at) {
    for (u32 i = threadIdx.x; i < height; i += blockDim.x) row_at[i] = row_of(p, at, i) - p.x;
    __syncthreads();
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(FOGGARA_HOST)
// On Hopper, its own instructions: tiles of 256 rows and 128 outputs, of which two warpgroups have 64 each. Outputs are the rows
// of wgmma and rows its columns, so that weights that have to be converted first pass through registers.

// 8-bit weights: rows of 64 bytes, so placed that the same unit of eight rows is in different banks.
FG_DEVICE u32 place_narrow(u32 row, u32 unit) { return row * 64 + (unit ^ (row / 2 % 4)) * 16; }

// Weights of 4 bits: rows of 32 bytes.
FG_DEVICE u32 place_narrowest(u32 row, u32 unit) { return row * 32 + (unit ^ (row / 4 % 2)) * 16; }

// SCALES: bytes of a stage for what two blocks of each row of weights have beside codes (the next stage begins at a multiple of 1024).
template <class W>
struct Wide {
    static constexpr u32 ROW = 128, STAGES = 4, SCALES = 0;
    FG_DEVICE u32 place(u32 row, u32 unit) { return place_wide(row, unit); }
    // Inputs 8 · eight + 2t and the next of a row.
    FG_DEVICE u32 pair(const u8 *tile, u32 row, u32 eight, u32 t) {
        return Unit<W>::pair(*(const u32 *)(tile + place_wide(row, eight) + t * 4));
    }
};
template <>
struct Wide<f8> {
    static constexpr u32 ROW = 64, STAGES = 5, SCALES = 0;
    FG_DEVICE u32 place(u32 row, u32 unit) { return place_narrow(row, unit); }
    FG_DEVICE u32 pair(const u8 *tile, u32 row, u32 eight, u32 t) {
        u32 four = *(const u32 *)(tile + place_narrow(row, eight / 2) + eight % 2 * 8 + t / 2 * 4);
        return Unit<f8>::pair<0>(four >> t % 2 * 16);
    }
};
template <>
struct Wide<q8_0> {
    static constexpr u32 ROW = 64, STAGES = 5, SCALES = 1024;
    FG_DEVICE u32 place(u32 row, u32 unit) { return place_narrow(row, unit); }
    FG_DEVICE u32 codes(const u8 *tile, const u8 *, u32, u32 row, u32 eight, u32 t) {
        return *(const u16 *)(tile + place_narrow(row, eight / 2) + eight % 2 * 8 + t * 2);
    }
};
// Of a second plane a row has the unit that the stage's inputs are in: `high`.
template <class W>
struct WideFour {
    static constexpr u32 ROW = 32, STAGES = 5, SCALES = 1024;
    FG_DEVICE u32 place(u32 row, u32 unit) { return place_narrowest(row, unit); }
    FG_DEVICE u32 codes(const u8 *tile, const u8 *high, u32 stage, u32 row, u32 eight, u32 t) {
        constexpr u32 HIGH = HIGH_BITS<W>;
        u32 low = *(const u16 *)(tile + place_narrowest(row, eight / 4) + eight % 2 * 8 + t * 2), above = 0;
        if constexpr (HIGH > 0) {
            above = *(const u16 *)(high + row * 16 + eight % 2 * 8 + t * 2) >> (stage * 4 * HIGH % 8 + eight / 4 * 2 * HIGH);
        }
        return four_codes<W>(low, above, eight % 4 / 2);
    }
};
template <>
struct Wide<q4_0> : WideFour<q4_0> {};
template <>
struct Wide<q4_1> : WideFour<q4_1> {};
template <>
struct Wide<q5_1> : WideFour<q5_1> {};
template <>
struct Wide<q4_k> : WideFour<q4_k> {};
template <>
struct Wide<q5_k> : WideFour<q5_k> {};
template <>
struct Wide<q6_k> : WideFour<q6_k> {};
template <class W>
constexpr bool DIRECT = false;
template <>
constexpr bool DIRECT<bf16> = true;

constexpr u32 WIDE_ROWS = 256;

FG_DEVICE void unpack_four(float (&out)[4], const float *from) {
    union {
        uint4 all;
        float each[4];
    } four = {*(const uint4 *)from};
    FG_UNROLL
    for (u32 i = 0; i < 4; i++) out[i] = four.each[i];
}

struct Place {
    u32 first, rows, output;  // the tile's first row of out, its rows, and its first output
};

template <u32 N, u32 SUMS>
FG_DEVICE void store_wide(const Product<bf16> &p, const Place &at, const float (&sums)[SUMS]) {
    u32 warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    FG_UNROLL
    for (u32 high = 0; high < 2; high++) {
        u32 output = at.output + warp * 16 + high * 8 + g;
        if (output >= p.n) continue;
        float scale = p.scales ? p.scales[output] : 1.0f;
        float *to = p.out + (at.first + 2 * t) * p.out_stride + output;
        FG_UNROLL
        for (u32 j = 0; j < N / 8; j++) {
            if (j * 8 + 2 * t < at.rows) to[0] = sums[j * 4 + high * 2] * scale;
            if (j * 8 + 2 * t + 1 < at.rows) to[p.out_stride] = sums[j * 4 + high * 2 + 1] * scale;
            to += 8 * p.out_stride;
        }
    }
}

// The activation of a tile's sums goes to out in bf16, by way of shared memory, which nothing else uses now: there the gates of a
// row are one part, and the others another. So the code is short, and what is written at a time lies side by side.
template <u32 N, u32 OUTPUTS, u32 SUMS>
FG_DEVICE void store_gated(const Product<bf16> &p, const Place &at, const Gate &gate, u8 *shared, const float (&sums)[SUMS]) {
    constexpr u32 WIDTH = OUTPUTS / 2, PITCH = OUTPUTS + 4, FOURS = WIDTH / 4;
    u32 warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    u32 width = p.n / 2, begin = at.output / 2;
    float *all = (float *)shared;
    __syncthreads();
    FG_UNROLL
    for (u32 high = 0; high < 2; high++) {
        u32 o = begin + warp * 8 + g;
        float scale = p.scales && o < width ? p.scales[high * width + o] : 1.0f;
        FG_UNROLL
        for (u32 j = 0; j < N / 8; j++) {
            float *to = all + (j * 8 + 2 * t) * PITCH + high * WIDTH + warp * 8 + g;
            to[0] = __fmul_rn(sums[j * 4 + high * 2], scale), to[PITCH] = __fmul_rn(sums[j * 4 + high * 2 + 1], scale);
        }
    }
    __syncthreads();
    FG_NO_UNROLL
    for (u32 i = threadIdx.x; i < at.rows * FOURS; i += blockDim.x) {
        u32 row = i / FOURS, four = i % FOURS * 4;
        float gates[4], ups[4];
        unpack_four(gates, all + row * PITCH + four);
        unpack_four(ups, all + row * PITCH + WIDTH + four);
        bf16 *to = (bf16 *)p.out + (at.first + row) * p.out_stride + begin + four;
        u32 few = begin + four < width ? min(width - begin - four, 4u) : 0;
        u32 bits[4];
        FG_UNROLL
        for (u32 c = 0; c < 4; c++) {
            bits[c] = to_bf16(activate(gate.activation, gates[c], ups[c], gate.alpha, gate.limit)).bits;
        }
        if (few == 4 && (u64)to % 8 == 0) {
            *(uint2 *)to = uint2{bits[0] | bits[1] << 16, bits[2] | bits[3] << 16};
        } else {
            FG_UNROLL
            for (u32 c = 0; c < 4; c++) {
                if (c < few) to[c].bits = (u16)bits[c];
            }
        }
    }
}

// The tile, for at most N rows: 64 outputs a warpgroup.
template <class W, u32 N, u32 OUTPUTS, bool GATED>
FG_DEVICE void wide_tile(const Product<bf16> &p, const Place &at, const Gate &gate, const u64 *row_at, u8 *shared) {
    constexpr u32 X_BYTES = WIDE_ROWS * 128, W_UNITS = Wide<W>::ROW / 16, STAGES = Wide<W>::STAGES;
    // A stage: x; weights, and units of their second plane; what is beside codes, of two blocks each, and what they share.
    constexpr u32 H_AT = X_BYTES + OUTPUTS * Wide<W>::ROW, S_AT = H_AT + (HIGH_BITS<W> > 0 ? OUTPUTS * 16 : 0);
    constexpr u32 TWO = 2 * SCALE_BYTES<W>, E_AT = S_AT + OUTPUTS * TWO, STAGE = S_AT + Wide<W>::SCALES;
    constexpr u32 LOOK = STAGES - 2, THREADS = OUTPUTS * 2;
    static_assert(OUTPUTS % 64 == 0 && (!GATED || N * (OUTPUTS + 4) * 4 <= STAGES * STAGE), "sums take the place of the stages");
    static_assert(OUTPUTS * (TWO + SHARED_BYTES<W>) <= Wide<W>::SCALES || !BLOCKS<W>, "what is beside codes has room");
    u32 units = low_bytes<W>(p.k) / 16, high_units = high_bytes<W>(p.k) / 16, pitch = row_bytes<W>(p.k);
    u32 stages = (p.k + DEPTH - 1) / DEPTH;
    u32 group = threadIdx.x / 128, warp = threadIdx.x / 32 % 4, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;

    auto load_stage = [&](u32 stage) {
        u8 *x = shared + stage % STAGES * STAGE, *w = x + X_BYTES;
        FG_UNROLL
        for (u32 i = 0; i < (N * 8 + THREADS - 1) / THREADS; i++) {
            u32 row = i * (THREADS / 8) + threadIdx.x / 8, unit = threadIdx.x % 8, from = stage * DEPTH + unit * 8;
            if (N * 8 % THREADS != 0 && row >= N) break;
            bool live = row < at.rows && from < p.k;
            copy_async_16_or_zero(x + place_wide(row, unit), live ? p.x + row_at[row] + from : p.x, live);
        }
        FG_UNROLL
        for (u32 i = 0; i < OUTPUTS * W_UNITS / THREADS; i++) {
            u32 row = i * (THREADS / W_UNITS) + threadIdx.x / W_UNITS, unit = threadIdx.x % W_UNITS;
            u32 from = stage * W_UNITS + unit;
            u32 o = output_of<GATED>(p.n, at.output, row);
            bool live = o < p.n && from < units;
            const u8 *source = live ? p.w + (u64)o * pitch + from * 16 : p.w;
            copy_async_16_or_zero(w + Wide<W>::place(row, unit), source, live);
        }
        if constexpr (BLOCKS<W>) {
            if (threadIdx.x < OUTPUTS) {
                u32 o = output_of<GATED>(p.n, at.output, threadIdx.x);
                bool live = o < p.n;
                const u8 *row = p.w + (u64)(live ? o : 0) * pitch, *beside = row + code_bytes<W>(p.k);
                copy_async_few_or_zero_cached<TWO>(x + S_AT + threadIdx.x * TWO, live ? beside + stage * TWO : p.w, live);
                if constexpr (HIGH_BITS<W> > 0) {
                    u32 unit = stage * HIGH_BITS<W> / 2;
                    bool there = live && unit < high_units;
                    copy_async_16_or_zero_cached(x + H_AT + threadIdx.x * 16, there ? row + (units + unit) * 16 : p.w, there);
                }
                if constexpr (SHARED_BYTES<W> > 0) {
                    const u8 *shared_by = beside + p.k / 32 * SCALE_BYTES<W> + stage / 4 * SHARED_BYTES<W>;
                    copy_async_few_or_zero_cached<SHARED_BYTES<W>>(x + E_AT + threadIdx.x * 4, live ? shared_by : p.w, live);
                }
            }
        }
    };

    float sums[N / 2];
    FG_UNROLL
    for (u32 i = 0; i < N / 2; i++) sums[i] = 0.0f;
    FG_UNROLL
    for (u32 stage = 0; stage < LOOK; stage++) {
        if (stage < stages) load_stage(stage);
        copy_async_commit();
    }
    // Returns when the stage is there for all; the one before the last is used by none then.
    auto await_stage = [&] {
        copy_async_wait<LOOK - 1>();
        show_shared();
        __syncthreads();
    };
    if constexpr (DIRECT<W>) {
        FG_NO_UNROLL
        for (u32 stage = 0; stage < stages; stage++) {
            await_stage();
            const u8 *x = shared + stage % STAGES * STAGE;
            u64 x_is = describe(x), w_is = describe(x + X_BYTES + group * 64 * 128);
            begin_multiply();
            FG_UNROLL
            for (u32 i = 0; i < 4; i++) multiply_warpgroup(sums, w_is + i * 2, x_is + i * 2);
            commit_multiply();
            if (stage + LOOK < stages) load_stage(stage + LOOK);
            copy_async_commit();
            wait_multiply<1>();
        }
    } else {
        // While a stage is multiplied, the weights of the next are converted.
        u32 a[2][4][4];
        auto convert = [&](u32(&to)[4][4], u32 stage) {
            const u8 *w = shared + stage % STAGES * STAGE + X_BYTES;
            u32 row = group * 64 + warp * 16 + g;
            if constexpr (BLOCKS<W>) {
                const u8 *slot = shared + stage % STAGES * STAGE, *high = slot + H_AT;
                FG_UNROLL
                for (u32 i = 0; i < 16; i++) {
                    u32 lower = i % 2, right = i / 2 % 2, part = i / 4, at = row + lower * 8;
                    ScaleBits bits = {scale_bits(slot + S_AT + (at * 2 + part / 2) * SCALE_BYTES<W>, SCALE_BYTES<W>), 0};
                    if constexpr (SHARED_BYTES<W> > 0) bits.shared = *(const u32 *)(slot + E_AT + at * 4);
                    u32 codes = Wide<W>::codes(w, high, stage, at, 2 * part + right, t);
                    to[part][2 * right + lower] = block_pair<0>(codes, block_scale<W>(bits, part % 2));
                }
            } else {
                FG_UNROLL
                for (u32 i = 0; i < 4; i++) {
                    to[i][0] = Wide<W>::pair(w, row, 2 * i, t), to[i][1] = Wide<W>::pair(w, row + 8, 2 * i, t);
                    to[i][2] = Wide<W>::pair(w, row, 2 * i + 1, t), to[i][3] = Wide<W>::pair(w, row + 8, 2 * i + 1, t);
                }
            }
        };
        await_stage();
        convert(a[0], 0);
        FG_NO_UNROLL
        for (u32 pair = 0; pair < stages; pair += 2) {
            FG_UNROLL
            for (u32 turn = 0; turn < 2; turn++) {
                u32 stage = pair + turn;
                if (stage == stages) break;
                u64 x_is = describe(shared + stage % STAGES * STAGE);
                begin_multiply();
                FG_UNROLL
                for (u32 i = 0; i < 4; i++) multiply_warpgroup(sums, a[turn][i], x_is + i * 2);
                commit_multiply();
                if (stage + LOOK < stages) load_stage(stage + LOOK);
                copy_async_commit();
                await_stage();
                convert(a[1 - turn], stage + 1);  // past the last one, of what is not used
                wait_multiply<0>();
                FG_UNROLL
                for (u32 i = 0; i < 16; i++) pin(a[1 - turn][i / 4][i % 4]);
            }
        }
    }
    wait_multiply<0>();
    FG_UNROLL
    for (u32 i = 0; i < N / 2; i++) pin(sums[i]);
    if constexpr (GATED) {
        store_gated<N, OUTPUTS>(p, at, gate, shared, sums);
    } else {
        store_wide<N>(p, at, sums);
    }
}

template <class W, u32 OUTPUTS = 128, bool GATED = false>
FG_DEVICE void wide(Product<bf16> p, Gate gate = {}) {
    FG_SHARED u64 row_at[WIDE_ROWS];
    FG_DYNAMIC_SHARED(shared);
    Tile tile;
    wait_for_kernel_before();
    let_next_kernel_begin();  // not before: see `known`
    if (!narrow(p, WIDE_ROWS, tile, true)) return;
    find_rows(p, row_at, WIDE_ROWS, tile);
    Place at = {tile.first, tile.rows, blockIdx.y * OUTPUTS};
    // The launch gives 1024 bytes more.
    shared += (1024 - (u64)shared % 1024) % 1024;
    if (at.rows > 128) {
        wide_tile<W, 256, OUTPUTS, GATED>(p, at, gate, row_at, shared);
    } else if (at.rows > 64) {
        wide_tile<W, 128, OUTPUTS, GATED>(p, at, gate, row_at, shared);
    } else {
        wide_tile<W, 64, OUTPUTS, GATED>(p, at, gate, row_at, shared);
    }
}
#endif
