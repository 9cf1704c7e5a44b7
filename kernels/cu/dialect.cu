// Kernels that tests of the dialect itself are made of: on every device it must mean the same (src/cuda/dialect_tests.rs).
#include "foggara.cuh"

// Eight numbers of each thread: what shuffles and votes bring it.
FG_KERNEL(1024, dialect_shuffles, (u32 *out, const u32 *values)) {
    begin_after_others();
    u32 all = 0xffffffffu, thread = threadIdx.x, value = values[thread];
    u64 wide = (u64)value << 32 | thread;
    out += thread * 8;
    out[0] = __shfl_xor_sync(all, value, 5);
    out[1] = __shfl_down_sync(all, value, 3);
    out[2] = __shfl_up_sync(all, value, 7, 16);
    out[3] = __shfl_sync(all, value, 2, 8);
    out[4] = (u32)(__shfl_xor_sync(all, wide, 1) >> 32);
    out[5] = __ballot_sync(all, value & 1);
    // Half a warp by itself, the other half at something else meanwhile.
    u32 half = thread % 32 < 16 ? 0xffffu : 0xffff0000u;
    out[6] = thread % 32 < 16 ? __shfl_xor_sync(half, value, 8) : __ballot_sync(half, value & 2);
    out[7] = (u32)(__shfl_sync(all, (float)thread, 31) + warp_max((float)(value % 1000)));
}

// Thread i < live gets the value of its neighbour on the left, through shared memory, again and again; others leave early.
FG_KERNEL(1024, dialect_barriers, (u32 *values, u32 live, u32 rounds)) {
    begin_after_others();
    FG_SHARED u32 shared[1024];
    u32 thread = threadIdx.x;
    if (thread >= live) return;
    u32 value = values[thread];
    for (u32 round = 0; round < rounds; round++) {
        shared[thread] = value;
        __syncthreads();
        value = shared[(thread + live - 1) % live];
        __syncthreads();
    }
    values[thread] = value;
}

FG_KERNEL(1024, dialect_block_sum, (float *out, const float *values)) {
    begin_after_others();
    u32 thread = blockIdx.x * blockDim.x + threadIdx.x;
    float sum = block_sum(values[thread]);
    out[thread] = sum + block_sum(1.0f);
}

// out (16×16) = a (16×16) · b, one warp. b is 16 columns of 16, or 16 rows of 16 if `transposed`. Through shared memory, with
// rows 24 elements apart.
FG_KERNEL(32, dialect_multiply, (float *out, const u16 *a, const u16 *b, u32 transposed)) {
    begin_after_others();
    FG_DYNAMIC_SHARED(memory);
    u16 *shared_a = (u16 *)memory, *shared_b = shared_a + 16 * 24;
    u32 lane = threadIdx.x, row = lane / 2, column = lane % 2 * 8;
    copy_async_16(shared_a + row * 24 + column, a + row * 16 + column);
    copy_async_commit();
    copy_async_16_or_zero(shared_b + row * 24 + column, b + row * 16 + column, true);
    copy_async_commit();
    copy_async_wait<0>();
    __syncwarp();
    u32 at[4], bt[4];
    load_matrices(at, shared_a + lane % 16 * 24 + lane / 16 * 8);
    if (transposed) load_matrices_transposed(bt, shared_b + (lane / 8 % 2 * 8 + lane % 8) * 24 + lane / 16 * 8);
    else load_matrices(bt, shared_b + (lane / 16 * 8 + lane % 8) * 24 + lane / 8 % 2 * 8);
    float d[2][4] = {};
    multiply_16x8x16(d[0], at, bt[0], bt[1]);
    multiply_16x8x16(d[1], at, bt[2], bt[3]);
    FG_UNROLL
    for (u32 half = 0; half < 2; half++) {
        FG_UNROLL
        for (u32 i = 0; i < 4; i++) out[(lane / 4 + i / 2 * 8) * 16 + half * 8 + lane % 4 * 2 + i % 2] = d[half][i];
    }
}

// Each thread's copies arrive in the order of their groups; what is not live becomes zeros.
FG_KERNEL(256, dialect_copies, (uint4 *out, const uint4 *values, u32 live)) {
    begin_after_others();
    FG_DYNAMIC_SHARED(memory);
    u32 threads = blockDim.x, thread = threadIdx.x;
    uint4 *shared = (uint4 *)memory;
    copy_async_16_or_zero(shared + thread, values + thread, thread < live);
    copy_async_commit();
    copy_async_16(shared + threads + thread, values + threads + thread);
    copy_async_commit();
    copy_async_wait<1>();
    __syncthreads();
    out[thread] = shared[threads - 1 - thread];
    copy_async_wait<0>();
    __syncthreads();
    out[threads + thread] = shared[2 * threads - 1 - thread];
    uint4 direct = load_streaming(values + thread);
    out[2 * threads + thread] = direct;
}

// Of each number its f16 and its bf16 (alone, and as the upper one of a pair); and of each f16 and E4M3 its number.
FG_KERNEL(256, dialect_to_halves, (u16 *out, const float *values, u32 count)) {
    begin_after_others();
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
        out[i * 3] = to_f16(values[i]).bits;
        out[i * 3 + 1] = to_bf16(values[i]).bits;
        out[i * 3 + 2] = (u16)(to_bf16x2(1.0f, values[i]) >> 16);
    }
}
FG_KERNEL(256, dialect_from_halves, (float *out)) {
    begin_after_others();
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < 65536; i += gridDim.x * blockDim.x) {
        out[i * 3] = to_float(f16{(u16)i});
        out[i * 3 + 1] = to_float(bf16{(u16)i});
        out[i * 3 + 2] = to_float(f8{(u8)i});
    }
}

FG_KERNEL(256, dialect_atomics, (u32 *sum, u64 *wide, float *parts, u32 *largest, u32 *places)) {
    begin_after_others();
    u32 thread = blockIdx.x * blockDim.x + threadIdx.x;
    atomicAdd(sum, thread);
    atomicAdd(wide, (u64)thread << 20);
    atomicAdd(parts, 0.5f);
    atomicMax(largest, thread * 7919 % 1000);
    places[atomicAdd(sum + 1, 1u)] = thread;
}
