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
    u32 count, rows, n, k, known;
};
#define PRODUCT                                                                                                           \
    (float *out, u64 out_stride, u64 out_batch, const bf16 *x, u64 x_stride, u64 x_batch, const u32 *x_rows, const u8 *w, \
     const float *scales, const u64 *w_table, const u64 *scale_table, const u32 *offsets, u32 count, u32 rows, u32 n,     \
     u32 k, u32 known)
#define THE_PRODUCT \
    {out, out_stride, out_batch, x, x_stride, x_batch, x_rows, w, scales, w_table, scale_table, offsets, count, rows, n, k, \
     known}

struct Gate {
    u32 activation;
    float alpha, limit;
};
#define GATED_PRODUCT                                                                                                     \
    (float *out, u64 out_stride, u64 out_batch, const bf16 *x, u64 x_stride, u64 x_batch, const u32 *x_rows, const u8 *w, \
     const float *scales, const u64 *w_table, const u64 *scale_table, const u32 *offsets, u32 count, u32 rows, u32 n,     \
     u32 k, u32 known, u32 activation, float alpha, float limit)
#define THE_GATE {activation, alpha, limit}

// The output that is row `row` of the weights of a tile whose first one is `first`; n or more if there is none. `GATED`: eights
// of the first n / 2 outputs take turns with those n / 2 after them, so that a thread that has one has the other.
template <bool GATED>
FG_DEVICE u32 output_of(u32 n, u32 first, u32 row) {
    if (!GATED) return first + row;
    u32 gate = first / 2 + row / 16 * 8 + row % 8;
    return gate < n / 2 ? gate + row / 8 % 2 * (n / 2) : n;
}

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

// Makes of the product the matrix that this block's tile of `height` rows meets; false if it has no tile. The tile's first row of
// out is `first`, and it has `rows`.
FG_DEVICE bool narrow(Product &p, u32 height, u32 &first, u32 &rows) {
    u32 group = blockIdx.z, tile = blockIdx.x;
    first = 0;
    wait_for_kernel_before();
    let_next_kernel_begin();  // not before: see `known` in matvec.cu
    if (p.offsets) {
        if (!find_tile(p.offsets, p.count, height, blockIdx.x, group, tile)) return false;
        first = p.offsets[group];
        p.rows = p.offsets[group + 1] - first;
    }
    if (p.w_table) p.w = (const u8 *)p.w_table[group];
    if (p.scale_table) p.scales = (const float *)p.scale_table[group];
    p.x += group * p.x_batch;
    p.out += group * p.out_batch;
    first += tile * height;
    rows = min(p.rows - tile * height, height);
    return true;
}

// Elements of x before each row of the tile; for those past the last one, before that.
FG_DEVICE void find_rows(const Product &p, u64 *row_at, u32 height, u32 first, u32 rows) {
    for (u32 i = threadIdx.x; i < height; i += blockDim.x) {
        u32 row = first + min(i, rows - 1);
        row_at[i] = (p.x_rows ? p.x_rows[row] : row) * p.x_stride;
    }
    __syncthreads();
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

#if !defined(FOGGARA_HOST) && __CUDA_ARCH__ >= 900 && __CUDA_ARCH__ < 1000
#define FOGGARA_CLUSTERS
// Returns when all threads of the cluster have called it; what they wrote before is there for all.
FG_DEVICE void cluster_together() {
    asm volatile("barrier.cluster.arrive; barrier.cluster.wait;" ::: "memory");
}
// What is in the shared memory of another block of the cluster, where `own` is in that of this one.
FG_DEVICE float load_of_cluster(const float *own, u32 block) {
    float x;
    asm volatile("{ .reg .u32 there; mapa.shared::cluster.u32 there, %1, %2; ld.shared::cluster.f32 %0, [there]; }"
                 : "=f"(x)
                 : "r"(shared_address(own)), "r"(block)
                 : "memory");
    return x;
}
#endif

// A tile of HEIGHT rows and WIDTH outputs, shared by DOWN × ACROSS warps; STAGES - 1 stages are on their way while one is used.
// Within a stage, inputs are taken in another order than that of memory, the same for x and w: see few_rows in matvec.cu.
// SPLIT blocks of a cluster share a tile: each takes a part of the inputs, and then adds up the sums of some rows.
// `GATED`: the activation of outputs o and o + n / 2 goes to out, in bf16.
template <class W, u32 HEIGHT, u32 WIDTH, u32 DOWN, u32 ACROSS, u32 STAGES, u32 SPLIT = 1, bool GATED = false>
FG_DEVICE void tile(Product p, Gate gate = {}) {
    constexpr u32 THREADS = 32 * DOWN * ACROSS;
    constexpr u32 HIGH = HEIGHT / DOWN / 16, WIDE = WIDTH / ACROSS / 8;  // products of 16 × 8 a warp has
    constexpr u32 X_BYTES = HEIGHT * 128, W_ROW = Stored<W>::ROW, W_UNITS = W_ROW / 16, STAGE = X_BYTES + WIDTH * W_ROW;
    FG_SHARED u64 row_at[HEIGHT];  // elements of x before each row
    FG_DYNAMIC_SHARED(shared);

    u32 first, rows, output = blockIdx.y * WIDTH;
    if (!narrow(p, HEIGHT, first, rows)) return;
    u32 units = (p.k * (W_ROW / 64) + 15) / 16, stages = (p.k + DEPTH - 1) / DEPTH;
    u32 part = blockIdx.z % SPLIT, begin = stages * part / SPLIT, end = stages * (part + 1) / SPLIT;
    find_rows(p, row_at, HEIGHT, first, rows);

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
            u32 o = output_of<GATED>(p.n, output, row);
            bool live = o < p.n && from < units;
            const u8 *source = live ? p.w + ((u64)o * units + from) * 16 : p.w;
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
    for (u32 stage = begin; stage < begin + STAGES - 1; stage++) {
        if (stage < end) load_stage(stage);
        copy_async_commit();
    }
    u32 warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    u32 warp_row = warp / ACROSS * (HEIGHT / DOWN), warp_output = warp % ACROSS * (WIDTH / ACROSS);
    for (u32 stage = begin; stage < end; stage++) {
        copy_async_wait<STAGES - 2>();
        __syncthreads();  // the stage is there for all, and the one before is no longer read
        if (stage + STAGES - 1 < end) load_stage(stage + STAGES - 1);
        copy_async_commit();
        const u8 *x = shared + stage % STAGES * STAGE, *w = x + X_BYTES;
        FG_NO_UNROLL
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

#ifdef FOGGARA_CLUSTERS
    if constexpr (SPLIT > 1) {
        constexpr u32 PITCH = WIDTH + 8;
        static_assert(HEIGHT * PITCH * 4 <= STAGES * STAGE, "sums take the place of the stages");
        float *parts = (float *)shared;
        copy_async_wait<0>();
        __syncthreads();
        FG_UNROLL
        for (u32 i = 0; i < HIGH; i++) {
            FG_UNROLL
            for (u32 j = 0; j < WIDE; j++) {
                float *to = parts + (warp_row + i * 16 + g) * PITCH + warp_output + j * 8 + 2 * t;
                to[0] = sums[i][j][0], to[1] = sums[i][j][1];
                to[8 * PITCH] = sums[i][j][2], to[8 * PITCH + 1] = sums[i][j][3];
            }
        }
        cluster_together();
        for (u32 i = threadIdx.x; i < HEIGHT / SPLIT * WIDTH; i += THREADS) {
            u32 row = i / WIDTH * SPLIT + part, o = output + i % WIDTH;
            if (row >= rows || o >= p.n) continue;
            float sum = 0.0f;
            FG_UNROLL
            for (u32 j = 0; j < SPLIT; j++) sum += load_of_cluster(parts + row * PITCH + i % WIDTH, j);
            p.out[(first + row) * p.out_stride + o] = p.scales ? sum * p.scales[o] : sum;
        }
        cluster_together();  // no block may go while its sums are read
    }
#endif
    if constexpr (GATED) {
        FG_UNROLL
        for (u32 j = 0; j < WIDE; j += 2) {
            FG_UNROLL
            for (u32 c = 0; c < 2; c++) {
                u32 o = output_of<true>(p.n, output, warp_output + j * 8 + 2 * t + c), width = p.n / 2;
                if (o >= width) continue;
                float scale = p.scales ? p.scales[o] : 1.0f, up_scale = p.scales ? p.scales[width + o] : 1.0f;
                FG_UNROLL
                for (u32 i = 0; i < HIGH * 2; i++) {
                    u32 row = warp_row + i * 8 + g;
                    if (row >= rows) continue;
                    float sum = __fmul_rn(sums[i / 2][j][i % 2 * 2 + c], scale);
                    float up = __fmul_rn(sums[i / 2][j + 1][i % 2 * 2 + c], up_scale);
                    float x = activate(gate.activation, sum, up, gate.alpha, gate.limit);
                    store((bf16 *)p.out + (first + row) * p.out_stride + o, x);
                }
            }
        }
    } else if constexpr (SPLIT == 1) {
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

// The same, with the gated activation of what comes out: out is in bf16, and n / 2 wide.
#define GATED_TILES(type, stages_low, stages_high)                                                                       \
    FG_KERNEL_MIN(128, 3, gated_16_##type, GATED_PRODUCT) {                                                              \
        tile<type, 16, 64, 1, 4, stages_low, 1, true>(THE_PRODUCT, THE_GATE);                                            \
    }                                                                                                                    \
    FG_KERNEL_MIN(128, 3, gated_32_##type, GATED_PRODUCT) {                                                              \
        tile<type, 32, 64, 1, 4, stages_low, 1, true>(THE_PRODUCT, THE_GATE);                                            \
    }                                                                                                                    \
    FG_KERNEL_MIN(256, 2, gated_64_##type, GATED_PRODUCT) {                                                              \
        tile<type, 64, 128, 2, 4, stages_high, 1, true>(THE_PRODUCT, THE_GATE);                                          \
    }
GATED_TILES(bf16, 6, 4)
GATED_TILES(f16, 6, 4)
GATED_TILES(f8, 8, 6)

#ifdef FOGGARA_CLUSTERS
// For one matrix with so few outputs that its tiles leave multiprocessors idle: blockIdx.z is the part of the inputs.
#define SPLIT(name) extern "C" __global__ void __cluster_dims__(1, 1, 4) __launch_bounds__(256, 2) name PRODUCT
SPLIT(split_64_bf16) { tile<bf16, 64, 128, 2, 4, 4, 4>(THE_PRODUCT); }
SPLIT(split_64_f16) { tile<f16, 64, 128, 2, 4, 4, 4>(THE_PRODUCT); }
SPLIT(split_64_f8) { tile<f8, 64, 128, 2, 4, 6, 4>(THE_PRODUCT); }
SPLIT(split_128_bf16) { tile<bf16, 128, 128, 2, 4, 3, 4>(THE_PRODUCT); }
SPLIT(split_128_f16) { tile<f16, 128, 128, 2, 4, 3, 4>(THE_PRODUCT); }
SPLIT(split_128_f8) { tile<f8, 128, 128, 2, 4, 4, 4>(THE_PRODUCT); }
#endif

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(FOGGARA_HOST)
// On Hopper, its own instructions: tiles of 256 rows and 128 outputs, of which two warpgroups have 64 each. Outputs are the rows
// of wgmma and rows its columns, so that weights that have to be converted first pass through registers.

// wgmma: d += a (64 outputs × 16 inputs) · b (16 inputs × N rows), by the 128 threads of a warpgroup, done when it is waited for.
// `a` is described like `b`, or given in registers: as multiply_16x8x16 takes it, 16 outputs a warp. Described are the first of
// rows that lie as place_wide says; 2 more are the next 16 inputs.
#ifdef FOGGARA_HOST
FG_DEVICE u64 describe(const u8 *rows) {
    if ((u64)rows % 1024) twin::fail("describes rows that do not begin at a multiple of 1024 bytes");
    return (u64)rows >> 4;
}
FG_DEVICE u32 described(u64 rows, u32 row, u32 pair) {
    u64 at = (rows << 4) + row * 128 + pair * 4;
    return *(const u32 *)(at ^ (at >> 7 & 7) << 4);
}
// Pair `pair` of inputs of outputs g and g + 8 of a warp is `a[high][pair]`.
template <u32 SUMS>
FG_DEVICE void multiply_by_hand(float (&d)[SUMS], const u32 (&a)[2][8], u64 b) {
    for (u32 i = 0; i < SUMS; i++) {
        u32 column = i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2;
        for (u32 pair = 0; pair < 8; pair++) {
            u32 w = a[i / 2 % 2][pair], x = described(b, column, pair);
            d[i] += low_bf16(w) * low_bf16(x) + high_bf16(w) * high_bf16(x);
        }
    }
}
template <u32 SUMS>
FG_DEVICE void multiply_warpgroup(float (&d)[SUMS], u64 a, u64 b) {
    u32 rows[2][8], row = threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4;
    for (u32 i = 0; i < 16; i++) rows[i / 8][i % 8] = described(a, row + i / 8 * 8, i % 8);
    multiply_by_hand(d, rows, b);
}
template <u32 SUMS>
FG_DEVICE void multiply_warpgroup(float (&d)[SUMS], const u32 (&a)[4], u64 b) {
    u32 rows[2][8];
    for (u32 i = 0; i < 16; i++) {
        u32 from = threadIdx.x % 32 / 4 * 4 + i % 4;
        rows[i / 8][i % 8] = __shfl_sync(0xffffffffu, a[i % 8 / 4 * 2 + i / 8], from);
    }
    multiply_by_hand(d, rows, b);
}
FG_DEVICE void begin_multiply() {}
FG_DEVICE void commit_multiply() {}
template <int N>
FG_DEVICE void wait_multiply() {}
FG_DEVICE void show_shared() {}
template <class T>
FG_DEVICE void pin(T &) {}
#else
FG_DEVICE u64 describe(const u8 *rows) {
    u64 address = shared_address(rows) >> 4 & 0x3fff;
    return address | (u64)1 << 16 | (u64)(1024 >> 4) << 32 | (u64)1 << 62;
}
#define FG_SUMS_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define FG_SUMS_16(i) FG_SUMS_4(i), FG_SUMS_4(i + 4), FG_SUMS_4(i + 8), FG_SUMS_4(i + 12)
FG_DEVICE void multiply_warpgroup(float (&d)[32], u64 a, u64 b) {
    asm volatile(
        "{ .reg .pred more; setp.ne.u32 more, 1, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31 "
        "}, %32, %33, more, 1, 1, 0, 0; }"
        : FG_SUMS_16(0), FG_SUMS_16(16)
        : "l"(a), "l"(b));
}
FG_DEVICE void multiply_warpgroup(float (&d)[32], const u32 (&a)[4], u64 b) {
    asm volatile(
        "{ .reg .pred more; setp.ne.u32 more, 1, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31 "
        "}, {%32, %33, %34, %35}, %36, more, 1, 1, 0; }"
        : FG_SUMS_16(0), FG_SUMS_16(16)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
FG_DEVICE void multiply_warpgroup(float (&d)[64], u64 a, u64 b) {
    asm volatile(
        "{ .reg .pred more; setp.ne.u32 more, 1, 0; wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63 "
        "}, %64, %65, more, 1, 1, 0, 0; }"
        : FG_SUMS_16(0), FG_SUMS_16(16), FG_SUMS_16(32), FG_SUMS_16(48)
        : "l"(a), "l"(b));
}
FG_DEVICE void multiply_warpgroup(float (&d)[64], const u32 (&a)[4], u64 b) {
    asm volatile(
        "{ .reg .pred more; setp.ne.u32 more, 1, 0; wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63 "
        "}, {%64, %65, %66, %67}, %68, more, 1, 1, 0; }"
        : FG_SUMS_16(0), FG_SUMS_16(16), FG_SUMS_16(32), FG_SUMS_16(48)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
FG_DEVICE void multiply_warpgroup(float (&d)[128], u64 a, u64 b) {
    asm volatile(
        "{ .reg .pred more; setp.ne.u32 more, 1, 0; wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
        "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
        "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127 "
        "}, %128, %129, more, 1, 1, 0, 0; }"
        : FG_SUMS_16(0), FG_SUMS_16(16), FG_SUMS_16(32), FG_SUMS_16(48), FG_SUMS_16(64), FG_SUMS_16(80), FG_SUMS_16(96),
          FG_SUMS_16(112)
        : "l"(a), "l"(b));
}
FG_DEVICE void multiply_warpgroup(float (&d)[128], const u32 (&a)[4], u64 b) {
    asm volatile(
        "{ .reg .pred more; setp.ne.u32 more, 1, 0; wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
        "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
        "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127 "
        "}, {%128, %129, %130, %131}, %132, more, 1, 1, 0; }"
        : FG_SUMS_16(0), FG_SUMS_16(16), FG_SUMS_16(32), FG_SUMS_16(48), FG_SUMS_16(64), FG_SUMS_16(80), FG_SUMS_16(96),
          FG_SUMS_16(112)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
FG_DEVICE void begin_multiply() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
FG_DEVICE void commit_multiply() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until at most N of the committed are not done.
template <int N>
FG_DEVICE void wait_multiply() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
// What threads have written to shared memory is there for wgmma.
FG_DEVICE void show_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// The value is what it is from here on: not earlier, when wgmma may still be at work.
FG_DEVICE void pin(float &x) { asm volatile("" : "+f"(x)::"memory"); }
FG_DEVICE void pin(u32 &x) { asm volatile("" : "+r"(x)::"memory"); }
#endif

// Rows of 128 bytes, eight of which make a pattern of 1024 bytes (its beginning is a multiple of that): unit u of row r is at
// u ^ (r % 8).
FG_DEVICE u32 place_wide(u32 row, u32 unit) { return row * 128 + (unit ^ (row % 8)) * 16; }
// 8-bit weights: rows of 64 bytes, so placed that the same unit of eight rows is in different banks.
FG_DEVICE u32 place_narrow(u32 row, u32 unit) { return row * 64 + (unit ^ (row / 2 % 4)) * 16; }

template <class W>
struct Wide {
    static constexpr u32 ROW = 128, STAGES = 4;
    FG_DEVICE u32 place(u32 row, u32 unit) { return place_wide(row, unit); }
    // Inputs 8 · eight + 2t and the next of a row.
    FG_DEVICE u32 pair(const u8 *tile, u32 row, u32 eight, u32 t) {
        return Unit<W>::pair(*(const u32 *)(tile + place_wide(row, eight) + t * 4));
    }
};
template <>
struct Wide<f8> {
    static constexpr u32 ROW = 64, STAGES = 5;
    FG_DEVICE u32 place(u32 row, u32 unit) { return place_narrow(row, unit); }
    FG_DEVICE u32 pair(const u8 *tile, u32 row, u32 eight, u32 t) {
        u32 four = *(const u32 *)(tile + place_narrow(row, eight / 2) + eight % 2 * 8 + t / 2 * 4);
        return Unit<f8>::pair<0>(four >> t % 2 * 16);
    }
};
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
FG_DEVICE void store_wide(const Product &p, const Place &at, const float (&sums)[SUMS]) {
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
FG_DEVICE void store_gated(const Product &p, const Place &at, const Gate &gate, u8 *shared, const float (&sums)[SUMS]) {
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
FG_DEVICE void wide_tile(const Product &p, const Place &at, const Gate &gate, const u64 *row_at, u8 *shared) {
    constexpr u32 X_BYTES = WIDE_ROWS * 128, W_UNITS = Wide<W>::ROW / 16, STAGES = Wide<W>::STAGES;
    constexpr u32 STAGE = X_BYTES + OUTPUTS * Wide<W>::ROW, LOOK = STAGES - 2, THREADS = OUTPUTS * 2;
    static_assert(OUTPUTS % 64 == 0 && (!GATED || N * (OUTPUTS + 4) * 4 <= STAGES * STAGE), "sums take the place of the stages");
    u32 units = (p.k * (Wide<W>::ROW / 64) + 15) / 16, stages = (p.k + DEPTH - 1) / DEPTH;
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
            const u8 *source = live ? p.w + ((u64)o * units + from) * 16 : p.w;
            copy_async_16_or_zero(w + Wide<W>::place(row, unit), source, live);
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
            FG_UNROLL
            for (u32 i = 0; i < 4; i++) {
                to[i][0] = Wide<W>::pair(w, row, 2 * i, t), to[i][1] = Wide<W>::pair(w, row + 8, 2 * i, t);
                to[i][2] = Wide<W>::pair(w, row, 2 * i + 1, t), to[i][3] = Wide<W>::pair(w, row + 8, 2 * i + 1, t);
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
FG_DEVICE void wide(Product p, Gate gate = {}) {
    FG_SHARED u64 row_at[WIDE_ROWS];
    FG_DYNAMIC_SHARED(shared);
    Place at;
    if (!narrow(p, WIDE_ROWS, at.first, at.rows)) return;
    at.output = blockIdx.y * OUTPUTS;
    find_rows(p, row_at, WIDE_ROWS, at.first, at.rows);
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

FG_KERNEL_MIN(256, 1, wide_bf16, PRODUCT) { wide<bf16>(THE_PRODUCT); }
FG_KERNEL_MIN(256, 1, wide_f16, PRODUCT) { wide<f16>(THE_PRODUCT); }
FG_KERNEL_MIN(256, 1, wide_f8, PRODUCT) { wide<f8>(THE_PRODUCT); }
// Where no registers are needed to convert weights, three warpgroups share the rows of a tile: of what it reads, and the second
// level of the cache cannot give much faster, they make more.
FG_KERNEL_MIN(384, 1, gated_wide_bf16, GATED_PRODUCT) { wide<bf16, 192, true>(THE_PRODUCT, THE_GATE); }
FG_KERNEL_MIN(256, 1, gated_wide_f16, GATED_PRODUCT) { wide<f16, 128, true>(THE_PRODUCT, THE_GATE); }
FG_KERNEL_MIN(256, 1, gated_wide_f8, GATED_PRODUCT) { wide<f8, 128, true>(THE_PRODUCT, THE_GATE); }
#endif
