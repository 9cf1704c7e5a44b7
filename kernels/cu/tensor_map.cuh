// Hopper's engine that copies boxes of a matrix to shared memory (PTX: cp.async.bulk.tensor), and barriers that count what has come
// (PTX: mbarrier): those who ask for bytes and those who use them wait for each other, and for nobody else.
#pragma once
#include "foggara.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(FOGGARA_HOST)
// A matrix in memory as the engine knows it: of bf16 (or any pairs of bytes: it only moves them), and of up to five dimensions, the
// first of which lies without gaps. What of a box is outside of it becomes zeros. A row of a box is 128 bytes, and lies as place_wide
// (wgmma.cuh) says.
struct __align__(128) TensorMap {
    u64 words[16];
};

#ifdef FOGGARA_HOST
// The same on the host, which copies at once. It has no clusters.
struct PlayedMap {
    const u8 *base;
    u64 stride[5];
    u32 size[5], box[5], dimensions;
};
static_assert(sizeof(PlayedMap) <= sizeof(TensorMap), "a map");

// Begins a map of no size; by one thread.
FG_DEVICE void begin_map(TensorMap *map, const void *base, u32 dimensions) {
    if ((u64)base % 16) twin::fail("a matrix begins at no multiple of 16 bytes");
    memset(map, 0, sizeof *map);
    ((PlayedMap *)map)->base = (const u8 *)base, ((PlayedMap *)map)->dimensions = dimensions;
}
// Dimension `D`: its size, that of boxes, and bytes from one to the next (but for the first).
template <u32 D>
FG_DEVICE void set_dimension(TensorMap *map, u32 size, u32 box, u64 stride) {
    PlayedMap *m = (PlayedMap *)map;
    // The engine's limit is 256: here one block copies what else two do.
    if (box == 0 || box > 512 || (D > 0 && stride % 16)) twin::fail("a dimension that no map has");
    m->size[D] = size, m->box[D] = box, m->stride[D] = D ? stride : 2;
}
// Makes it known to the engine: `to` is where copies find it. By a whole warp.
FG_DEVICE void show_map(TensorMap *to, const TensorMap *from) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) *to = *from;
    __syncwarp();
}

// A barrier's round ends when all who count have arrived, and all bytes that they said would come have come.
FG_DEVICE void init_barrier(u64 *barrier, u32 count) { twin::init_barrier(barrier, count); }
FG_DEVICE void show_barriers() {}
FG_DEVICE void arrive(u64 *barrier) { twin::arrive(barrier, 0); }
FG_DEVICE void arrive_expecting(u64 *barrier, u32 bytes) { twin::arrive(barrier, bytes); }
// Returns when a round of this parity has ended: rounds are 0, 1, 0 …
FG_DEVICE void await_round(u64 *barrier, u32 parity) { twin::await_round(barrier, parity); }

// The box whose first element is `inner` in the first dimension and `outer` in the last.
FG_DEVICE void copy_box(u8 *shared, const TensorMap *map, u64 *barrier, u32 inner, u32 outer, u32 dimensions) {
    const PlayedMap &m = *(const PlayedMap *)map;
    if (m.dimensions != dimensions || (u64)shared % 1024) twin::fail("copies a box of another kind, or to no multiple of 1024 bytes");
    u32 row = 0, count = 1;
    for (u32 d = 1; d < dimensions; d++) count *= m.box[d];
    for (; row < count; row++) {
        u64 from = (u64)inner * 2;
        bool inside = true;
        for (u32 d = 1, rest = row; d < dimensions; rest /= m.box[d], d++) {
            u32 at = rest % m.box[d] + (d + 1 == dimensions ? outer : 0);
            inside &= at < m.size[d], from += at * m.stride[d];
        }
        for (u32 unit = 0; unit < m.box[0] / 8; unit++) {
            u8 *to = shared + row * 128 + (unit ^ (row % 8)) * 16;
            u32 at = inner + unit * 8, live = inside && at < m.size[0] ? min(m.size[0] - at, 8u) : 0;
            twin::check_shared(to);
            memset(to, 0, 16);
            if (live) memcpy(to, m.base + from + unit * 16, live * 2);
        }
    }
    twin::bytes_came(barrier, count * m.box[0] * 2);
}

constexpr u32 CLUSTER = 1;  // blocks that share what they copy
FG_DEVICE u32 rank_in_cluster() { return 0; }
FG_DEVICE void cluster_together() { __syncthreads(); }
FG_DEVICE void arrive_at(u64 *barrier, u32) { arrive(barrier); }
FG_DEVICE void copy_box_to_all(u8 *shared, const TensorMap *map, u64 *barrier, u32 inner, u32 outer) {
    copy_box(shared, map, barrier, inner, outer, 2);
}
// Of 8 by 8 elements of 16 bits, of which a thread has two of a row, those of a column.
FG_DEVICE u32 transpose_8x8(u32 two) {
    u32 lane = threadIdx.x % 32, from = lane % 4 * 8 + lane / 8, high = lane / 4 % 2 * 16;
    u32 first = __shfl_sync(0xffffffffu, two, from), second = __shfl_sync(0xffffffffu, two, from + 4);
    return (first >> high & 0xffff) | (second >> high & 0xffff) << 16;
}
#else
#define FG_SET_32(field, map, value) \
    asm volatile("tensormap.replace.tile." field ", %1;" ::"r"(shared_address(map)), "r"((u32)(value)) : "memory")
#define FG_SET_64(field, map, value) \
    asm volatile("tensormap.replace.tile." field ", %1;" ::"r"(shared_address(map)), "l"((u64)(value)) : "memory")
#define FG_SET(field, map) asm volatile("tensormap.replace.tile." field ";" ::"r"(shared_address(map)) : "memory")
// In shared memory.
FG_DEVICE void begin_map(TensorMap *map, const void *base, u32 dimensions) {
    FG_UNROLL
    for (u32 i = 0; i < 16; i++) map->words[i] = 0;
    FG_SET_64("global_address.shared::cta.b1024.b64 [%0]", map, base);
    FG_SET_32("rank.shared::cta.b1024.b32 [%0]", map, dimensions - 1);
    FG_SET("elemtype.shared::cta.b1024.b32 [%0], 10", map);           // bf16
    FG_SET("interleave_layout.shared::cta.b1024.b32 [%0], 0", map);   // none
    FG_SET("swizzle_mode.shared::cta.b1024.b32 [%0], 3", map);        // 128 bytes
    FG_SET("fill_mode.shared::cta.b1024.b32 [%0], 0", map);           // zeros
}
template <u32 D>
FG_DEVICE void set_dimension(TensorMap *map, u32 size, u32 box, u64 stride) {
#define FG_SET_DIMENSION(D)                                                \
    FG_SET_32("global_dim.shared::cta.b1024.b32 [%0], " #D, map, size);    \
    FG_SET_32("box_dim.shared::cta.b1024.b32 [%0], " #D, map, box);        \
    FG_SET_32("element_stride.shared::cta.b1024.b32 [%0], " #D, map, 1)
#define FG_SET_STRIDE(D) FG_SET_64("global_stride.shared::cta.b1024.b64 [%0], " #D, map, stride)
    static_assert(D < 4, "as many as are needed");
    if constexpr (D == 0) { FG_SET_DIMENSION(0); }
    if constexpr (D == 1) { FG_SET_DIMENSION(1); FG_SET_STRIDE(0); }
    if constexpr (D == 2) { FG_SET_DIMENSION(2); FG_SET_STRIDE(1); }
    if constexpr (D == 3) { FG_SET_DIMENSION(3); FG_SET_STRIDE(2); }
}
FG_DEVICE void show_map(TensorMap *to, const TensorMap *from) {
    __syncwarp();
    asm volatile("tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned [%0], [%1], 128;" ::"l"(to),
                 "r"(shared_address(from))
                 : "memory");
    asm volatile("fence.proxy.tensormap::generic.acquire.gpu [%0], 128;" ::"l"(to) : "memory");
    __syncwarp();
}

FG_DEVICE void init_barrier(u64 *barrier, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
}
FG_DEVICE void show_barriers() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
FG_DEVICE void arrive_expecting(u64 *barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
}
FG_DEVICE void await_round(u64 *barrier, u32 parity) {
    asm volatile(
        "{ .reg .pred over; again: mbarrier.try_wait.parity.shared::cta.b64 over, [%0], %1; @over bra done; bra again; done: }" ::"r"(
            shared_address(barrier)),
        "r"(parity)
        : "memory");
}
template <u32 DIMENSIONS>
FG_DEVICE void copy_box_of(u32 to, const TensorMap *map, u32 barrier, u32 inner, u32 outer) {
    if constexpr (DIMENSIONS == 2) {
        asm volatile(
            "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(to),
            "l"(map), "r"(inner), "r"(outer), "r"(barrier)
            : "memory");
    } else {
        static_assert(DIMENSIONS == 4, "as many as are needed");
        asm volatile(
            "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %5, %5, %3}], [%4];" ::"r"(
                to),
            "l"(map), "r"(inner), "r"(outer), "r"(barrier), "r"(0)
            : "memory");
    }
}
FG_DEVICE void copy_box(u8 *shared, const TensorMap *map, u64 *barrier, u32 inner, u32 outer, u32 dimensions) {
    u32 to = shared_address(shared), counts = shared_address(barrier);
    if (dimensions == 2) copy_box_of<2>(to, map, counts, inner, outer);
    else copy_box_of<4>(to, map, counts, inner, outer);
}

// Blocks that share what they copy, on neighbouring multiprocessors.
constexpr u32 CLUSTER = 2;
FG_DEVICE u32 rank_in_cluster() {
    u32 rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
FG_DEVICE void cluster_together() { asm volatile("barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;" ::: "memory"); }
// At the same barrier of a block of the cluster. (With `.release.cluster` it would wait for all of memory.)
FG_DEVICE void arrive_at(u64 *barrier, u32 block) {
    asm volatile(
        "{ .reg .b32 there; mapa.shared::cluster.u32 there, %0, %1; mbarrier.arrive.shared::cluster.b64 _, [there]; }" ::"r"(
            shared_address(barrier)),
        "r"(block)
        : "memory");
}
// To the same place of all blocks of the cluster, whose barriers count it.
FG_DEVICE void copy_box_to_all(u8 *shared, const TensorMap *map, u64 *barrier, u32 inner, u32 outer) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%2, %3}], [%4], "
        "%5;" ::"r"(shared_address(shared)),
        "l"(map), "r"(inner), "r"(outer), "r"(shared_address(barrier)), "h"((u16)((1 << CLUSTER) - 1))
        : "memory");
}
FG_DEVICE u32 transpose_8x8(u32 two) {
    u32 other;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(other) : "r"(two));
    return other;
}
#endif
#endif
