// What products that stream have in common: the order of tiles, and the ring of stages that tensor_map.cuh's engine fills.
#pragma once
#include "product.cuh"
#include "tensor_map.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(FOGGARA_HOST)
// A tile: its group, first row of out, rows, how many it is multiplied as, and first output.
struct Work {
    u32 group, first, rows, height, output;
};

// This block's tile of the index-th of all clusters' tiles of `OUTPUTS` outputs a block; false if there are fewer. A group's tiles of
// rows take turns, so that blocks that run at the same time read the same weights. `height_of` says how high those of a group of so
// many rows are. The whole warp asks for the same.
template <u32 OUTPUTS, class A, class F>
FG_DEVICE bool find_work(const Product<A> &p, F height_of, u32 index, Work &work) {
    u32 lane = threadIdx.x % 32, columns = (p.n + OUTPUTS * CLUSTER - 1) / (OUTPUTS * CLUSTER);
    for (u32 base = 0; base < p.count; base += 32) {
        u32 begin = 0, rows = 0, height = 0, across = 0;
        if (base + lane < p.count) {
            rows = p.rows;
            if (p.offsets) begin = p.offsets[base + lane], rows = p.offsets[base + lane + 1] - begin;
            if (rows > 0) height = height_of(rows), across = (rows + height - 1) / height;
        }
        u32 tiles = across * columns, end = tiles;
        FG_UNROLL
        for (u32 step = 1; step < 32; step *= 2) {
            u32 before = __shfl_up_sync(0xffffffffu, end, step);
            if (lane >= step) end += before;
        }
        u32 mine = __ballot_sync(0xffffffffu, index < end);
        if (mine) {
            u32 owner = __ffs(mine) - 1;
            index -= __shfl_sync(0xffffffffu, end - tiles, owner);
            begin = __shfl_sync(0xffffffffu, begin, owner), rows = __shfl_sync(0xffffffffu, rows, owner);
            height = __shfl_sync(0xffffffffu, height, owner), across = __shfl_sync(0xffffffffu, across, owner);
            u32 tile = index % across;
            u32 output = (index / across * CLUSTER + rank_in_cluster()) * OUTPUTS;
            work = {base + owner, begin + tile * height, min(rows - tile * height, height), height, output};
            return true;
        }
        index -= __shfl_sync(0xffffffffu, end, 31);
    }
    return false;
}

// STAGES stages of shared memory, counted through all tiles.
template <u32 STAGES>
struct Ring {
    u8 *stages;
    u64 *full, *empty;  // barriers of each stage: bytes are there, and nobody needs them any more
};

// Until the stage's place is free, or filled:
template <u32 STAGES>
FG_DEVICE void await_free(const Ring<STAGES> &s, u32 stage) {
    await_round(s.empty + stage % STAGES, stage / STAGES % 2 ^ 1);
}
template <u32 STAGES>
FG_DEVICE void await_filled(const Ring<STAGES> &s, u32 stage) {
    await_round(s.full + stage % STAGES, stage / STAGES % 2);
}
// By a warp that needs the stage no more.
template <u32 STAGES>
FG_DEVICE void leave(const Ring<STAGES> &s, u32 stage) {
    u32 lane = threadIdx.x % 32;
    if (lane < CLUSTER) arrive_at(s.empty + stage % STAGES, lane);
}
// The ring in a block's shared memory (the launch gives 1024 bytes more than the stages take) and 2 · STAGES barriers; by all
// threads. A stage is free when `leavers` warps of each block of the cluster have left it.
template <u32 STAGES>
FG_DEVICE Ring<STAGES> begin_ring(u8 *shared, u64 *barriers, u32 leavers) {
    Ring<STAGES> s = {shared + (1024 - (u64)shared % 1024) % 1024, barriers, barriers + STAGES};
    if (threadIdx.x == 0) {
        for (u32 i = 0; i < STAGES; i++) {
            init_barrier(s.full + i, 1);
            init_barrier(s.empty + i, leavers * CLUSTER);
        }
        show_barriers();
    }
    cluster_together();
    return s;
}
#endif
