// Products of many rows with matrices, by tiles on the tensor cores.
#include "foggara.cuh"

// As in matvec.cu, for activations in bf16 whose rows begin at, and have, multiples of 16 bytes; but blockIdx.x counts tiles of
// rows (of all groups, one after the other, if there are `offsets`), blockIdx.y tiles of outputs, and blockIdx.z batches. So
// blocks that run at the same time share the weights they read.
struct Product {
    float *out;
    u64 out_stride, out_batch;
    const bf16 *x;
    u64 x_stride, x_batch;
    const u32 *x_rows;
    const u8 *w;
    const float *scales;
    const u64 *w_table, *scale_table;
    const u32 *offsets;
    u32 count, rows, n, k;
};
#define PRODUCT                                                                                                           \
    (float *out, u64 out_stride, u64 out_batch, const bf16 *x, u64 x_stride, u64 x_batch, const u32 *x_rows, const u8 *w, \
     const float *scales, const u64 *w_table, const u64 *scale_table, const u32 *offsets, u32 count, u32 rows, u32 n,     \
     u32 k)
#define THE_PRODUCT \
    {out, out_stride, out_batch, x, x_stride, x_batch, x_rows, w, scales, w_table, scale_table, offsets, count, rows, n, k}

// The group of the `index`-th of all groups' tiles of `height` rows, and which of the group's tiles it is; false if there are
// fewer. The whole warp asks for the same.
FG_DEVICE bool find_tile(const u32 *offsets, u32 count, u32 height, u32 index, u32 &group, u32 &tile) {
    u32 lane = threadIdx.x % 32;
    for (u32 base = 0; base < count; base += 32) {
        u32 tiles = 0;
        if (base + lane < count) tiles = (offsets[base + lane + 1] - offsets[base + lane] + height - 1) / height;
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

// Inputs of a stage: 128 bytes of a row of x.
constexpr u32 DEPTH = 64;

// 16 bytes of a row of a tile of x, or of 16-bit weights: the halves of every second row change places, so that what eight
// threads read at a time (four units of two rows) is in different banks.
FG_DEVICE u32 place_16(u32 row, u32 unit) { return row * 128 + (unit ^ (row % 2 * 4)) * 16; }
// The same for 8-bit weights, of which sixteen threads read 8 bytes each, two units of four rows.
FG_DEVICE u32 place_8(u32 row, u32 unit) { return row * 64 + (unit ^ (row / 2 % 2 * 2)) * 16; }

template <class W>
struct Stored {
    static constexpr u32 ROW = 128;
    FG_DEVICE u32 place(u32 row, u32 unit) { return place_16(row, unit); }
    // The pairs of 32 inputs from 32 · half on that lane 4g + t has of row g: 8t .. 8t + 8.
    FG_DEVICE void pairs(u32 (&out)[4], const u8 *tile, u32 row, u32 half, u32 t) {
        Unit<W>::pairs(out, *(const uint4 *)(tile + place_16(row, half * 4 + t)));
    }
};
template <>
struct Stored<f8> {
    static constexpr u32 ROW = 64;
    FG_DEVICE u32 place(u32 row, u32 unit) { return place_8(row, unit); }
    FG_DEVICE void pairs(u32 (&out)[4], const u8 *tile, u32 row, u32 half, u32 t) {
        uint2 v = *(const uint2 *)(tile + place_8(row, half * 2 + t / 2) + t % 2 * 8);
        out[0] = Unit<f8>::pair<0>(v.x), out[1] = Unit<f8>::pair<1>(v.x);
        out[2] = Unit<f8>::pair<0>(v.y), out[3] = Unit<f8>::pair<1>(v.y);
    }
};

// A tile of HEIGHT rows and WIDTH outputs, shared by DOWN × ACROSS warps; STAGES - 1 stages are on their way while one is used.
// Within a stage, inputs are taken in another order than that of memory, the same for x and w: see few_rows in matvec.cu.
template <class W, u32 HEIGHT, u32 WIDTH, u32 DOWN, u32 ACROSS, u32 STAGES>
FG_DEVICE void tile(Product p) {
    constexpr u32 THREADS = 32 * DOWN * ACROSS;
    constexpr u32 HIGH = HEIGHT / DOWN / 16, WIDE = WIDTH / ACROSS / 8;  // products of 16 × 8 a warp has
    constexpr u32 X_BYTES = HEIGHT * 128, W_ROW = Stored<W>::ROW, W_UNITS = W_ROW / 16, STAGE = X_BYTES + WIDTH * W_ROW;
    FG_SHARED u64 row_at[HEIGHT];  // elements of x before each row
    FG_DYNAMIC_SHARED(shared);

    u32 group = blockIdx.z, row_tile = blockIdx.x, first = 0;
    if (p.offsets) {
        if (!find_tile(p.offsets, p.count, HEIGHT, blockIdx.x, group, row_tile)) return;
        first = p.offsets[group];
        p.rows = p.offsets[group + 1] - first;
    }
    if (p.w_table) p.w = (const u8 *)p.w_table[group];
    if (p.scale_table) p.scales = (const float *)p.scale_table[group];
    p.x += group * p.x_batch;
    p.out += group * p.out_batch;
    first += row_tile * HEIGHT;
    u32 rows = min(p.rows - row_tile * HEIGHT, HEIGHT), output = blockIdx.y * WIDTH;
    u32 units = (p.k * (W_ROW / 64) + 15) / 16, stages = (p.k + DEPTH - 1) / DEPTH;

    for (u32 i = threadIdx.x; i < HEIGHT; i += THREADS) {
        u32 row = first + min(i, rows - 1);
        row_at[i] = (p.x_rows ? p.x_rows[row] : row) * p.x_stride;
    }
    __syncthreads();

    auto load_stage = [&](u32 stage) {
        u8 *x = shared + stage % STAGES * STAGE, *w = x + X_BYTES;
        FG_UNROLL
        for (u32 i = 0; i < (HEIGHT * 8 + THREADS - 1) / THREADS; i++) {
            u32 at = i * THREADS + threadIdx.x, row = at / 8, unit = at % 8, from = stage * DEPTH + unit * 8;
            if (HEIGHT * 8 % THREADS != 0 && row >= HEIGHT) break;
            bool live = row < rows && from < p.k;
            copy_async_16_or_zero(x + place_16(row, unit), live ? p.x + row_at[row] + from : p.x, live);
        }
        FG_UNROLL
        for (u32 i = 0; i < (WIDTH * W_UNITS + THREADS - 1) / THREADS; i++) {
            u32 at = i * THREADS + threadIdx.x, row = at / W_UNITS, unit = at % W_UNITS, from = stage * W_UNITS + unit;
            if (WIDTH * W_UNITS % THREADS != 0 && row >= WIDTH) break;
            bool live = output + row < p.n && from < units;
            const u8 *source = live ? p.w + ((u64)(output + row) * units + from) * 16 : p.w;
            copy_async_16_or_zero(w + Stored<W>::place(row, unit), source, live);
        }
    };

    float sums[HIGH][WIDE][4];
    FG_UNROLL
    for (u32 i = 0; i < HIGH; i++) {
        FG_UNROLL
        for (u32 j = 0; j < WIDE; j++) {
            FG_UNROLL
            for (u32 c = 0; c < 4; c++) sums[i][j][c] = 0.0f;
        }
    }
    FG_UNROLL
    for (u32 stage = 0; stage < STAGES - 1; stage++) {
        if (stage < stages) load_stage(stage);
        copy_async_commit();
    }
    u32 warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    u32 warp_row = warp / ACROSS * (HEIGHT / DOWN), warp_output = warp % ACROSS * (WIDTH / ACROSS);
    for (u32 stage = 0; stage < stages; stage++) {
        copy_async_wait<STAGES - 2>();
        __syncthreads();  // the stage is there for all, and the one before is no longer read
        if (stage + STAGES - 1 < stages) load_stage(stage + STAGES - 1);
        copy_async_commit();
        const u8 *x = shared + stage % STAGES * STAGE, *w = x + X_BYTES;
        FG_UNROLL
        for (u32 half = 0; half < 2; half++) {
            u32 b[WIDE][4];
            FG_UNROLL
            for (u32 j = 0; j < WIDE; j++) Stored<W>::pairs(b[j], w, warp_output + j * 8 + g, half, t);
            FG_UNROLL
            for (u32 i = 0; i < HIGH; i++) {
                uint4 low = *(const uint4 *)(x + place_16(warp_row + i * 16 + g, half * 4 + t));
                uint4 high = *(const uint4 *)(x + place_16(warp_row + i * 16 + g + 8, half * 4 + t));
                u32 one[4] = {low.x, high.x, low.y, high.y}, two[4] = {low.z, high.z, low.w, high.w};
                FG_UNROLL
                for (u32 j = 0; j < WIDE; j++) multiply_16x8x16(sums[i][j], one, b[j][0], b[j][1]);
                FG_UNROLL
                for (u32 j = 0; j < WIDE; j++) multiply_16x8x16(sums[i][j], two, b[j][2], b[j][3]);
            }
        }
    }

    FG_UNROLL
    for (u32 j = 0; j < WIDE; j++) {
        FG_UNROLL
        for (u32 c = 0; c < 2; c++) {
            u32 o = output + warp_output + j * 8 + 2 * t + c;
            if (o >= p.n) continue;
            float scale = p.scales ? p.scales[o] : 1.0f;
            FG_UNROLL
            for (u32 i = 0; i < HIGH; i++) {
                u32 row = warp_row + i * 16 + g;
                float *to = p.out + (first + row) * p.out_stride + o;
                if (row < rows) to[0] = sums[i][j][c] * scale;
                if (row + 8 < rows) to[8 * p.out_stride] = sums[i][j][2 + c] * scale;
            }
        }
    }
}

FG_KERNEL_MIN(128, 3, tile_16_bf16, PRODUCT) { tile<bf16, 16, 64, 1, 4, 6>(THE_PRODUCT); }
FG_KERNEL_MIN(128, 3, tile_16_f16, PRODUCT) { tile<f16, 16, 64, 1, 4, 6>(THE_PRODUCT); }
FG_KERNEL_MIN(128, 3, tile_16_f8, PRODUCT) { tile<f8, 16, 64, 1, 4, 8>(THE_PRODUCT); }
FG_KERNEL_MIN(128, 3, tile_32_bf16, PRODUCT) { tile<bf16, 32, 64, 1, 4, 6>(THE_PRODUCT); }
FG_KERNEL_MIN(128, 3, tile_32_f16, PRODUCT) { tile<f16, 32, 64, 1, 4, 6>(THE_PRODUCT); }
FG_KERNEL_MIN(128, 3, tile_32_f8, PRODUCT) { tile<f8, 32, 64, 1, 4, 8>(THE_PRODUCT); }
FG_KERNEL_MIN(256, 2, tile_64_bf16, PRODUCT) { tile<bf16, 64, 128, 2, 4, 4>(THE_PRODUCT); }
FG_KERNEL_MIN(256, 2, tile_64_f16, PRODUCT) { tile<f16, 64, 128, 2, 4, 4>(THE_PRODUCT); }
FG_KERNEL_MIN(256, 2, tile_64_f8, PRODUCT) { tile<f8, 64, 128, 2, 4, 6>(THE_PRODUCT); }
FG_KERNEL_MIN(256, 2, tile_128_bf16, PRODUCT) { tile<bf16, 128, 128, 2, 4, 3>(THE_PRODUCT); }
FG_KERNEL_MIN(256, 2, tile_128_f16, PRODUCT) { tile<f16, 128, 128, 2, 4, 3>(THE_PRODUCT); }
FG_KERNEL_MIN(256, 2, tile_128_f8, PRODUCT) { tile<f8, 128, 128, 2, 4, 4>(THE_PRODUCT); }
