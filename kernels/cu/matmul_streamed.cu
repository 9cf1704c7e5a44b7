// Products of many rows of groups with matrices in bf16, on Hopper: the fastest form of what matmul_wide.cuh does, for rows that lie
// sorted. A block has a warp that asks for bytes (the engine of tensor_map.cuh copies them) and two warpgroups that multiply them,
// 64 outputs each. Blocks stay, and do one tile after the other: what the next one needs comes while results are written. Two
// neighbours have the same rows: each copies half of them to both, so that the second level of the cache gives less.
#include "streamed.cuh"
#include "wgmma_bf16.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(FOGGARA_HOST)
// Of a block: outputs, rows at most, inputs of a stage, stages of shared memory, and threads (a warp of the last 128 copies).
// (matmul/streamed.rs knows them, too.)
constexpr u32 OUTPUTS = 128, MOST = 320, DEPTH = 64, STAGES = 4, MULTIPLY = 256, THREADS = MULTIPLY + 128;
constexpr u32 X_BYTES = MOST * DEPTH * 2, STAGE = X_BYTES + OUTPUTS * DEPTH * 2;

// Where blocks keep maps that the engine reads: of two groups, x and weights. One set is made while copies by the other may still
// be on their way, so that every product has at least STAGES stages.
constexpr u32 BLOCKS = 132;
FG_GLOBAL TensorMap maps[BLOCKS][2][2];

// Rows of a tile of a group of `rows`: as few tiles as can be, all of about the same height.
FG_DEVICE u32 height_of(u32 rows) {
    u32 tiles = (rows + MOST - 1) / MOST, height = (rows + tiles - 1) / tiles;
    if (height > 288) return 320;
    if (height > 256) return (height + 15) / 16 * 16;
    if (height > 192) return (height + 31) / 32 * 32;
    return height > 128 ? 192 : 128;
}

// Maps of the group's weights, and of x for its tiles.
template <bool GATED>
FG_DEVICE void make_maps(const Product<bf16> &p, const Work &work, TensorMap *to, TensorMap *scratch) {
    u64 row = (u64)p.k * 2;
    bool one = threadIdx.x % 32 == 0;
    if (one) {
        begin_map(scratch, p.x, 2);
        set_dimension<0>(scratch, p.k, DEPTH, 0);
        set_dimension<1>(scratch, p.rows, work.height / CLUSTER, p.x_stride * 2);
    }
    show_map(to, scratch);
    if (one) {
        begin_map(scratch, (const void *)p.w_table[work.group], GATED ? 4 : 2);
        set_dimension<0>(scratch, p.k, DEPTH, 0);
        if constexpr (GATED) {
            // Eight gates, the eight others that belong to them, and so on: see output_of.
            set_dimension<1>(scratch, 8, 8, row);
            set_dimension<2>(scratch, 2, 2, p.n / 2 * row);
            set_dimension<3>(scratch, p.n / 16, OUTPUTS / 16, 8 * row);
        } else {
            set_dimension<1>(scratch, p.n, OUTPUTS, row);
        }
    }
    show_map(to + 1, scratch);
}

using Stages = Ring<STAGES>;

// By one thread: asks for all stages of a tile.
template <bool GATED>
FG_DEVICE void copy_tile(const Product<bf16> &p, const Work &work, const TensorMap *map, const Stages &s, u32 &stage) {
    u32 share = work.height / CLUSTER, rank = rank_in_cluster();
    FG_NO_UNROLL
    for (u32 from = 0; from < p.k; from += DEPTH, stage++) {
        u64 *full = s.full + stage % STAGES;
        u8 *x = s.stages + stage % STAGES * STAGE;
        await_free(s, stage);
        arrive_expecting(full, (work.height + OUTPUTS) * DEPTH * 2);
        copy_box_to_all(x + rank * share * DEPTH * 2, map, full, from, work.first + rank * share);
        copy_box(x + X_BYTES, map + 1, full, from, GATED ? work.output / 16 : work.output, GATED ? 4 : 2);
    }
}

// Of rows from `column` of the tile on, 64 outputs of a warpgroup from `output` on.
template <u32 COLUMNS>
FG_DEVICE void store_sums(const Product<bf16> &p, const Work &work, u32 output, u32 column, const float (&sums)[COLUMNS / 2]) {
    u32 warp = threadIdx.x / 32 % 4, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    FG_UNROLL
    for (u32 high = 0; high < 2; high++) {
        u32 mine = output + warp * 16 + high * 8 + g;
        if (mine >= p.n) continue;
        float *to = p.out + (work.first + column + 2 * t) * p.out_stride + mine;
        i32 left = (i32)(work.rows - column - 2 * t);  // rows from here on
        FG_UNROLL
        for (i32 j = 0; j < (i32)COLUMNS / 8; j++) {
            if (j * 8 < left) to[0] = sums[j * 4 + high * 2];
            if (j * 8 + 1 < left) to[p.out_stride] = sums[j * 4 + high * 2 + 1];
            to += 8 * p.out_stride;
        }
    }
}

// The activation of the same: a thread has the gate of an output of two rows, and the other of it.
template <u32 COLUMNS>
FG_DEVICE void store_activation(const Product<bf16> &p, const Gate &gate, const Work &work, u32 output, u32 column,
                                const float (&sums)[COLUMNS / 2]) {
    u32 warp = threadIdx.x / 32 % 4, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    u32 mine = output / 2 + warp * 8;
    if (mine >= p.n / 2) return;
    bf16 *to = (bf16 *)p.out + (work.first + column + g) * p.out_stride + mine + 2 * t;
    i32 left = (i32)(work.rows - column - g);
    FG_UNROLL
    for (i32 j = 0; j < (i32)COLUMNS / 8; j++) {
        const float *of = sums + j * 4;
        u32 two = to_bf16x2(activate(gate.activation, of[0], of[2], gate.alpha, gate.limit),
                            activate(gate.activation, of[1], of[3], gate.alpha, gate.limit));
        two = transpose_8x8(two);  // two outputs of a row
        if (j * 8 < left) *(u32 *)to = two;
        to += 8 * p.out_stride;
    }
}

// By a warpgroup: 64 outputs of a tile that is multiplied as `HEIGHT` rows, in two parts if those are too many for one product.
template <bool GATED, u32 HEIGHT>
FG_DEVICE void multiply_tile(const Product<bf16> &p, const Gate &gate, const Work &work, const Stages &s, u32 &stage) {
    constexpr u32 PARTS = HEIGHT > 256 ? 2 : 1, COLUMNS = HEIGHT / PARTS;
    u32 group = threadIdx.x / 128;
    float sums[PARTS][COLUMNS / 2];
    FG_UNROLL
    for (u32 part = 0; part < PARTS; part++) {
        FG_UNROLL
        for (u32 i = 0; i < COLUMNS / 2; i++) sums[part][i] = 0.0f;
    }
    FG_NO_UNROLL
    for (u32 from = 0; from < p.k; from += DEPTH, stage++) {
        await_filled(s, stage);
        const u8 *x = s.stages + stage % STAGES * STAGE;
        u64 x_is = describe(x), w_is = describe(x + X_BYTES + group * 64 * DEPTH * 2);
        begin_multiply();
        FG_UNROLL
        for (u32 i = 0; i < 4; i++) {
            FG_UNROLL
            for (u32 part = 0; part < PARTS; part++)
                multiply_warpgroup(sums[part], w_is + i * 2, x_is + part * (COLUMNS * DEPTH * 2 / 16) + i * 2);
        }
        commit_multiply();
        wait_multiply<1>();
        if (from > 0) leave(s, stage - 1);
    }
    wait_multiply<0>();
    leave(s, stage - 1);
    u32 output = work.output + group * 64;
    FG_UNROLL
    for (u32 part = 0; part < PARTS; part++) {
        FG_UNROLL
        for (u32 i = 0; i < COLUMNS / 2; i++) pin(sums[part][i]);
        if constexpr (GATED) store_activation<COLUMNS>(p, gate, work, output, part * COLUMNS, sums[part]);
        else store_sums<COLUMNS>(p, work, output, part * COLUMNS, sums[part]);
    }
}

template <bool GATED>
FG_DEVICE void streamed(const Product<bf16> &p, const Gate &gate = {}) {
    FG_DYNAMIC_SHARED(shared);
    FG_SHARED u64 barriers[2 * STAGES];
    FG_SHARED TensorMap scratch;
    Stages s = begin_ring<STAGES>(shared, barriers, MULTIPLY / 32);
    begin_after_others();
    Work work;
    u32 stage = 0, index = blockIdx.x / CLUSTER;
    if (threadIdx.x >= MULTIPLY) {
        give_registers<56>();
        u32 group = p.count, turn = 0;
        for (; threadIdx.x < MULTIPLY + 32 && find_work<OUTPUTS>(p, height_of, index, work); index += gridDim.x / CLUSTER) {
            if (work.group != group) {
                group = work.group, turn ^= 1;
                make_maps<GATED>(p, work, maps[blockIdx.x][turn], &scratch);
            }
            if (threadIdx.x == MULTIPLY) copy_tile<GATED>(p, work, maps[blockIdx.x][turn], s, stage);
        }
    } else {
        take_registers<224>();
        for (; find_work<OUTPUTS>(p, height_of, index, work); index += gridDim.x / CLUSTER) {
#define FG_HEIGHT(HEIGHT)                                             \
    case HEIGHT:                                                      \
        multiply_tile<GATED, HEIGHT>(p, gate, work, s, stage);        \
        break;
            switch (work.height) {
                FG_HEIGHT(128)
                FG_HEIGHT(192)
                FG_HEIGHT(224)
                FG_HEIGHT(256)
                FG_HEIGHT(272)
                FG_HEIGHT(288)
                FG_HEIGHT(320)
            }
        }
    }
    // No block ends while a neighbour may still copy to it, or arrive at its barriers.
    __syncwarp();
    cluster_together();
}

FG_KERNEL_CLUSTER(THREADS, 2, streamed_bf16, PRODUCT(bf16)) { streamed<false>(THE_PRODUCT); }
FG_KERNEL_CLUSTER(THREADS, 2, gated_streamed_bf16, GATED_PRODUCT) { streamed<true>(THE_PRODUCT, THE_GATE); }
#endif

// out[r] = x[x_rows[r]] for rows r < offsets[count]: rows of `units` pieces of 16 bytes, and their scales, if they have any. A block a
// row.
FG_KERNEL(256, gather_rows, (uint4 *out, const uint4 *x, float *out_scales, const float *x_scales, const u32 *x_rows, const u32 *offsets,
                             u32 count, u32 units)) {
    begin_after_others();
    u32 row = blockIdx.x;
    if (row >= offsets[count]) return;
    u32 source = x_rows[row];
    const uint4 *from = x + (u64)source * units;
    for (u32 i = threadIdx.x; i < units; i += blockDim.x) out[(u64)row * units + i] = from[i];
    if (x_scales && threadIdx.x == 0) out_scales[row] = x_scales[source];
}
