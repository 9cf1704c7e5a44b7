// Kernels that do what no kernel may, for the tests of the host twin (src/cuda/twin/tests.rs). Not compiled for devices.
#include "foggara.cuh"

FG_KERNEL(64, fault_read, (u32 *out, const u32 *values, u32 at)) {
    begin_after_others();
    out[threadIdx.x] = values[at];
}
FG_KERNEL(64, fault_write, (u32 *out, u32 at)) {
    begin_after_others();
    out[at] = threadIdx.x;
}

FG_KERNEL(64, fault_wide, (u32 *out, const u32 *values, u32 at)) {
    begin_after_others();
    uint4 four = *(const uint4 *)(values + at);
    out[threadIdx.x] = four.x + four.w;
}

FG_KERNEL(64, fault_index, (u32 *out, u32 at)) {
    begin_after_others();
    FG_SHARED u32 fixed[16];
    fixed[at + threadIdx.x % 4] = 1;
    __syncthreads();
    out[threadIdx.x] = fixed[at];
}

// Lanes from 16 on never come to the shuffle.
FG_KERNEL(64, fault_shuffle, (u32 *out)) {
    begin_after_others();
    if (threadIdx.x % 32 < 16) out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, threadIdx.x, 1);
}

// One thread of them all does not wait for the kernel before.
FG_KERNEL(64, fault_order, (u32 *out)) {
    if (blockIdx.x == 1 && threadIdx.x == 5) return;
    begin_after_others();
    out[threadIdx.x] = 1;
}

// Some wait for the block, others for their warp.
FG_KERNEL(64, fault_barrier, (u32 *out)) {
    begin_after_others();
    if (threadIdx.x < 7) __syncthreads();
    else __syncwarp();
    out[threadIdx.x] = 1;
}

// A barrier counts two arrivals in a round: `arrivals` come, and then its end is waited for.
FG_KERNEL(64, fault_round, (u32 *out, u32 arrivals)) {
    begin_after_others();
    FG_SHARED u64 barrier;
    if (threadIdx.x > 0) return;
    twin::init_barrier(&barrier, 2);
    for (u32 i = 0; i < arrivals; i++) twin::arrive(&barrier, i == 0 ? 16 : 0);
    twin::await_round(&barrier, 0);
    out[0] = 1;
}

FG_KERNEL(64, fault_shared, (u32 *out, u32 at)) {
    begin_after_others();
    FG_DYNAMIC_SHARED(memory);
    memory[at + threadIdx.x] = 1;
    out[threadIdx.x] = 1;
}

// Fixed and dynamic shared memory hold 0xff at first, also after a block that wrote there.
FG_KERNEL(64, fault_fresh, (u32 *out)) {
    begin_after_others();
    FG_SHARED u32 fixed[64];
    FG_DYNAMIC_SHARED(memory);
    u32 *dynamic = (u32 *)memory;
    out[blockIdx.x * 64 + threadIdx.x] = fixed[threadIdx.x] & dynamic[threadIdx.x];
    fixed[threadIdx.x] = dynamic[threadIdx.x] = 5;
}

FG_KERNEL(64, fault_copy, (u32 *out, const u8 *values, u32 off)) {
    begin_after_others();
    FG_DYNAMIC_SHARED(memory);
    copy_async_16(memory + threadIdx.x * 16, values + off);
    out[threadIdx.x] = *(u32 *)(memory + threadIdx.x * 16);
}

FG_KERNEL(64, fault_add, (u32 *x, u32 value, u64 wide, float number)) {
    begin_after_others();
    x[threadIdx.x] += value + (u32)wide + (u32)number;
}
