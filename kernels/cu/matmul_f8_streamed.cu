// Products of many rows of E4M3 with matrices in E4M3, on Hopper: what matmul_streamed.cu does in bf16. A block has a warp that asks
// for bytes and two warpgroups that multiply them, 64 outputs each, and two neighbours have the same rows: each copies half of them
// to both. A warpgroup adds a group's sums to its totals while the other one multiplies, and writes results while the other one is
// not done yet.
#include "matmul_f8.cuh"
#include "streamed.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(FOGGARA_HOST)
// Of a block: outputs, rows at most, bytes of a line (the 128 inputs of a group), stages of shared memory, and threads (a warp of the
// last 128 copies). (matmul/streamed.rs knows them, too.)
constexpr u32 OUTPUTS = 128, MOST = 288, LINE = GROUP, STAGES = 4, MULTIPLY = 256, THREADS = MULTIPLY + 128;
constexpr u32 X_BYTES = MOST * LINE, STAGE = X_BYTES + OUTPUTS * LINE;
using Stages = Ring<STAGES>;

// Stages that the first warpgroup is ahead of the second when these begin, so that they do not write results at the same time. Only
// where there is an activation: without one the wait costs more than it saves (5 to 8 % on an H200).
constexpr u32 LEAD = 2;

// Barriers: the first warpgroup is ahead; and the threads of one meet.
constexpr u32 IS_AHEAD = 1;
FG_DEVICE void meet(u32 warpgroup) { barrier_sync(2 + warpgroup, 128); }

// Where blocks keep maps that the engine reads: of two groups, x and weights. One set is made while copies by the other may still
// be on their way, so that every product has at least STAGES stages.
constexpr u32 BLOCKS = 132;
FG_GLOBAL TensorMap maps[BLOCKS][2][2];

// Rows of a tile of a group of `rows`: as few tiles as can be, all of about the same height.
FG_DEVICE u32 height_of(u32 rows) {
    u32 tiles = (rows + MOST - 1) / MOST, height = (rows + tiles - 1) / tiles;
    if (height <= 64) return 64;
    if (height > 256 && height <= 272) return 272;
    return (height + 31) / 32 * 32;
}

// Maps of the group's weights, and of x for its tiles. To the engine pairs of E4M3 are bf16.
template <bool GATED>
FG_DEVICE void make_maps(const Product<f8> &p, const Work &work, TensorMap *to, TensorMap *scratch) {
    u32 pairs = (p.k + 15) / 16 * 8;
    u64 row = (u64)pairs * 2;
    bool one = threadIdx.x % 32 == 0;
    if (one) {
        begin_map(scratch, p.x, 2);
        set_dimension<0>(scratch, pairs, LINE / 2, 0);
        set_dimension<1>(scratch, p.rows, work.height / CLUSTER, p.x_stride);
    }
    show_map(to, scratch);
    if (one) {
        begin_map(scratch, weights_of(p, work.group), GATED ? 4 : 2);
        set_dimension<0>(scratch, pairs, LINE / 2, 0);
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

// By one thread: asks for all stages of a tile.
template <bool GATED>
FG_DEVICE void copy_tile(const Product<f8> &p, const Work &work, const TensorMap *map, const Stages &s, u32 &stage) {
    u32 share = work.height / CLUSTER, rank = rank_in_cluster();
    FG_NO_UNROLL
    for (u32 from = 0; from < p.k; from += GROUP, stage++) {
        u64 *full = s.full + stage % STAGES;
        u8 *x = s.stages + stage % STAGES * STAGE;
        await_free(s, stage);
        arrive_expecting(full, (work.height + OUTPUTS) * LINE);
        copy_box_to_all(x + rank * share * LINE, map, full, from / 2, work.first + rank * share);
        copy_box(x + X_BYTES, map + 1, full, from / 2, GATED ? work.output / 16 : work.output, GATED ? 4 : 2);
    }
}

// A warpgroup's 64 outputs from `output` on of a tile, of which thread t of four that share outputs g and g + 8 of a warp's 16 has
// those two, and what they are multiplied by. What rows are multiplied by is in shared memory.
struct Results {
    const Work &work;
    u32 output;
    float scale[2];
    const float *x_scales;
};

// Those of rows from `column` of the tile on.
template <u32 COLUMNS>
FG_DEVICE void store_sums(const Product<f8> &p, const Results &r, u32 column, const float (&totals)[COLUMNS / 2]) {
    u32 warp = threadIdx.x / 32 % 4, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, mine = r.output + warp * 16 + g;
    float *to = p.out + (r.work.first + column + 2 * t) * p.out_stride + mine;
    const float *x_scales = r.x_scales + column + 2 * t;
    i32 left = (i32)(r.work.rows - column - 2 * t);  // rows from here on
    FG_UNROLL
    for (i32 j = 0; j < (i32)COLUMNS / 8; j++) {
        FG_UNROLL
        for (i32 c = 0; c < 2; c++) {
            float x_scale = x_scales[j * 8 + c];
            if (j * 8 + c >= left) continue;
            FG_UNROLL
            for (u32 high = 0; high < 2; high++) {
                if (mine + high * 8 >= p.n) continue;
                to[c * p.out_stride + high * 8] = scaled(totals[j * 4 + high * 2 + c], x_scale, r.scale[high]);
            }
        }
        to += 8 * p.out_stride;
    }
}

// The activation of the same: a thread has the gate of an output of two rows, and the other of it. ANY: whichever `gate` says, in
// place of SILU.
template <u32 COLUMNS, bool ANY>
FG_DEVICE void store_activation(const Product<f8> &p, const Gate &gate, const Results &r, u32 column, const float (&totals)[COLUMNS / 2]) {
    u32 warp = threadIdx.x / 32 % 4, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, mine = r.output / 2 + warp * 8;
    if (mine >= p.n / 2) return;
    bf16 *to = (bf16 *)p.out + (r.work.first + column + g) * p.out_stride + mine + 2 * t;
    const float *x_scales = r.x_scales + column + 2 * t;
    i32 left = (i32)(r.work.rows - column - g);
    FG_UNROLL
    for (i32 j = 0; j < (i32)COLUMNS / 8; j++) {
        float of_row[2];
        FG_UNROLL
        for (u32 c = 0; c < 2; c++) {
            float x_scale = x_scales[j * 8 + c];
            float of_gate = scaled(totals[j * 4 + c], x_scale, r.scale[0]), up = scaled(totals[j * 4 + 2 + c], x_scale, r.scale[1]);
            of_row[c] = activate(ANY ? gate.activation : (u32)SILU, of_gate, up, gate.alpha, gate.limit);
        }
        u32 two = transpose_8x8(to_bf16x2(of_row[0], of_row[1]));  // two outputs of a row
        if (j * 8 < left) *(u32 *)to = two;
        to += 8 * p.out_stride;
    }
}

// By a warpgroup: 64 outputs of a tile that is multiplied as `HEIGHT` rows, in parts: there are registers for the sums of one besides
// all totals.
template <bool GATED, u32 HEIGHT>
FG_DEVICE void multiply_tile(const Product<f8> &p, const float *x_scales, const Gate &gate, const Work &work, const Stages &s,
                             float *row_scales, u32 &stage) {
    constexpr u32 PARTS = HEIGHT > 272 ? 3 : HEIGHT > 128 ? 2 : 1, COLUMNS = HEIGHT / PARTS, SCALES = (HEIGHT + 127) / 128;
    u32 warpgroup = threadIdx.x / 128, thread = threadIdx.x % 128;
    float my_scales[SCALES];  // asked for now, needed at the end
    FG_UNROLL
    for (u32 i = 0; i < SCALES; i++) {
        u32 row = i * 128 + thread;
        my_scales[i] = row < work.rows ? x_scales[work.first + row] : 0.0f;
    }
    float totals[PARTS][COLUMNS / 2], sums[COLUMNS / 2];
    FG_UNROLL
    for (u32 part = 0; part < PARTS; part++) {
        FG_UNROLL
        for (u32 i = 0; i < COLUMNS / 2; i++) totals[part][i] = 0.0f;
    }
    FG_NO_UNROLL
    for (u32 from = 0; from < p.k; from += GROUP) {
        await_filled(s, stage);
        const u8 *x = s.stages + stage % STAGES * STAGE;
        u64 x_is = describe(x), w_is = describe(x + X_BYTES + warpgroup * 64 * LINE);
        FG_UNROLL
        for (u32 part = 0; part < PARTS; part++) {
            begin_multiply();
            multiply_group(sums, w_is, x_is + part * (COLUMNS * LINE / 16));
            commit_multiply();
            wait_multiply<0>();
            if (part + 1 == PARTS) leave(s, stage);
            FG_UNROLL
            for (u32 i = 0; i < COLUMNS / 2; i++) pin(sums[i]);
            FG_UNROLL
            for (u32 i = 0; i < COLUMNS / 2; i++) totals[part][i] = __fadd_rn(totals[part][i], sums[i]);
        }
        stage++;
        if (GATED && stage == LEAD && warpgroup == 0) barrier_arrive(IS_AHEAD, MULTIPLY);
    }
    Results r = {work, work.output + warpgroup * 64, {}, row_scales};
    const float *scales = scales_of(p, work.group);
    FG_UNROLL
    for (u32 high = 0; high < 2; high++) {
        u32 mine = output_of<GATED>(p.n, r.output, thread / 32 * 16 + high * 8 + thread % 32 / 4);
        r.scale[high] = mine < p.n ? scales[mine] : 0.0f;
    }
    meet(warpgroup);  // what was there is not needed any more
    FG_UNROLL
    for (u32 i = 0; i < SCALES; i++) row_scales[i * 128 + thread] = my_scales[i];
    meet(warpgroup);
    FG_UNROLL
    for (u32 part = 0; part < PARTS; part++) {
        if constexpr (!GATED) store_sums<COLUMNS>(p, r, part * COLUMNS, totals[part]);
        else if (gate.activation == SILU) store_activation<COLUMNS, false>(p, gate, r, part * COLUMNS, totals[part]);
        else store_activation<COLUMNS, true>(p, gate, r, part * COLUMNS, totals[part]);
    }
}

template <bool GATED>
FG_DEVICE void f8_streamed(const Product<f8> &p, const float *x_scales, const Gate &gate = {}) {
    FG_DYNAMIC_SHARED(shared);
    FG_SHARED u64 barriers[2 * STAGES];
    FG_SHARED TensorMap scratch;
    FG_SHARED float row_scales[MULTIPLY / 128][(MOST + 127) / 128 * 128];
    Stages s = begin_ring<STAGES>(shared, barriers, MULTIPLY / 32);
    wait_for_kernel_before();
    let_next_kernel_begin();  // not before: see `known`
    Work work;
    u32 stage = 0, index = blockIdx.x / CLUSTER;
    if (threadIdx.x >= MULTIPLY) {
        give_registers<40>();
        u32 group = p.count, turn = 0;
        for (; threadIdx.x < MULTIPLY + 32 && find_work<OUTPUTS>(p, height_of, index, work); index += gridDim.x / CLUSTER) {
            if (work.group != group) {
                group = work.group, turn ^= 1;
                make_maps<GATED>(p, work, maps[blockIdx.x][turn], &scratch);
            }
            if (threadIdx.x == MULTIPLY) copy_tile<GATED>(p, work, maps[blockIdx.x][turn], s, stage);
        }
    } else {
        take_registers<232>();
        float *scales = row_scales[threadIdx.x / 128];
        for (; find_work<OUTPUTS>(p, height_of, index, work); index += gridDim.x / CLUSTER) {
            if (GATED && stage == 0 && threadIdx.x >= 128) barrier_sync(IS_AHEAD, MULTIPLY);
#define FG_HEIGHT(HEIGHT)                                                              \
    case HEIGHT:                                                                       \
        multiply_tile<GATED, HEIGHT>(p, x_scales, gate, work, s, scales, stage);       \
        break;
            switch (work.height) {
                FG_HEIGHT(64)
                FG_HEIGHT(96)
                FG_HEIGHT(128)
                FG_HEIGHT(160)
                FG_HEIGHT(192)
                FG_HEIGHT(224)
                FG_HEIGHT(256)
                FG_HEIGHT(272)
                FG_HEIGHT(288)
            }
        }
    }
    // No block ends while a neighbour may still copy to it, or arrive at its barriers.
    __syncwarp();
    cluster_together();
}

FG_KERNEL_CLUSTER(THREADS, 2, f8_streamed, F8_PRODUCT) { f8_streamed<false>(THE_PRODUCT, x_scales); }
FG_KERNEL_CLUSTER(THREADS, 2, f8_streamed_gated, F8_GATED_PRODUCT) { f8_streamed<true>(THE_PRODUCT, x_scales, THE_GATE); }
#endif
