// The dialect in which kernels are written: CUDA C++ without any of CUDA's own headers, so that NVRTC compiles it where no toolkit
// is installed, and so that the host's compiler can (host/twin.h stands in for the hardware then).
#pragma once

typedef unsigned char u8;
typedef signed char i8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef int i32;
typedef unsigned long long u64;

// Stored types. Their bits, not numbers: see load() and the conversions.
struct bf16 { u16 bits; };
struct f16 { u16 bits; };
struct f8 { u8 bits; };  // E4M3 (OCP 8-bit floating point, 2023): no infinities, one NaN, largest 448

// Where a block is when `trace` is called.
enum Moment { BEGINS_TO_WAIT, HAS_WAITED, ENDS };

// Blocks on a multiprocessor: one fewer where the compiler needs more registers for the same.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
#define FG_FEWER_ON_BLACKWELL(blocks) ((blocks) - 1)
#else
#define FG_FEWER_ON_BLACKWELL(blocks) (blocks)
#endif

#ifdef FOGGARA_HOST
#include "host/twin.h"
#else

// FG_KERNEL(threads, name, (type argument, ...)) { body }: a kernel of at most `threads` threads a block.
#define FG_KERNEL(threads, name, params) extern "C" __global__ void __launch_bounds__(threads) name params
// FG_KERNEL_MIN(threads, blocks, name, (...)): the same, with registers for at least `blocks` blocks on a multiprocessor.
#define FG_KERNEL_MIN(threads, blocks, name, params) \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name params
// FG_KERNEL_CLUSTER(threads, blocks, name, (...)): blocks that follow each other run together, one on a multiprocessor.
#define FG_KERNEL_CLUSTER(threads, blocks, name, params) \
    extern "C" __global__ void __cluster_dims__(blocks, 1, 1) __launch_bounds__(threads, 1) name params
#define FG_DEVICE static __device__ __forceinline__
// Memory of the device that is there as long as the kernels are.
#define FG_GLOBAL static __device__
// Shared memory of fixed size; FG_DYNAMIC_SHARED(pointer) declares `u8 *pointer` to what the launch gave.
#define FG_SHARED __shared__
extern __shared__ __align__(128) u8 fg_dynamic_shared[];
#define FG_DYNAMIC_SHARED(pointer) u8 *pointer = fg_dynamic_shared
#define FG_UNROLL _Pragma("unroll")
#define FG_NO_UNROLL _Pragma("unroll 1")
#define FG_RESTRICT __restrict__

FG_DEVICE float bits_to_float(u32 bits) { return __uint_as_float(bits); }
FG_DEVICE u32 float_to_bits(float x) { return __float_as_uint(x); }

FG_DEVICE float to_float(f16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}
// Rounded to nearest, ties to even; beyond the largest it becomes the largest.
FG_DEVICE f16 to_f16(float x) {
    f16 y;
    x = fminf(fmaxf(x, -65504.0f), 65504.0f);
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}
FG_DEVICE bf16 to_bf16(float x) {
    bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}
// Two at once, the first in the low half.
FG_DEVICE u32 to_bf16x2(float low, float high) {
    u32 y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}
// Of f16, which must not be beyond the largest.
FG_DEVICE u32 to_f16x2(float low, float high) {
    u32 y;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}

// 16 bytes from global to shared memory without passing through registers; `wait` until at most N groups are on their way.
FG_DEVICE u32 shared_address(const void *pointer) { return (u32)__cvta_generic_to_shared(pointer); }
FG_DEVICE void copy_async_16(void *shared, const void *global) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global) : "memory");
}
// The same, but zeros where `live` is false (nothing is read then).
FG_DEVICE void copy_async_16_or_zero(void *shared, const void *global, bool live) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(live ? 16 : 0)
                 : "memory");
}
// The same, by way of the first-level cache: of what other warps read as well.
FG_DEVICE void copy_async_16_or_zero_cached(void *shared, const void *global, bool live) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(live ? 16 : 0)
                 : "memory");
}
// The same of 4 or 8 bytes.
template <int BYTES>
FG_DEVICE void copy_async_few_or_zero_cached(void *shared, const void *global, bool live) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(shared)), "l"(global), "n"(BYTES),
                 "r"(live ? BYTES : 0)
                 : "memory");
}
FG_DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
FG_DEVICE void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// Barriers 1 to 15 of a block, for some of its warps: opened when `threads` have come, of which some wait for that and some do not.
FG_DEVICE void barrier_sync(u32 number, u32 threads) { asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory"); }
FG_DEVICE void barrier_arrive(u32 number, u32 threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

// Four 8×8 matrices of 16-bit elements from shared memory; lane l gives the address of row l % 8 of matrix l / 8.
FG_DEVICE void load_matrices(u32 (&out)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(shared_address(row))
                 : "memory");
}
FG_DEVICE void load_matrices_transposed(u32 (&out)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(shared_address(row))
                 : "memory");
}
// d += a (16×16, rows) · b (16×8, columns): PTX mma.m16n8k16, bf16 in, f32 out.
FG_DEVICE void multiply_16x8x16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// The same of f16.
FG_DEVICE void multiply_16x8x16_f16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// 2^x, to about 2 units in the last place; numbers too small for full precision become 0.
FG_DEVICE float fast_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
// 1 / x, to about a unit in the last place; of numbers beyond 2^126 it is 0.
FG_DEVICE float fast_reciprocal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// 16 bytes that are read once: past the first-level cache.
FG_DEVICE uint4 load_streaming(const void *global) {
    uint4 v;
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(global));
    return v;
}

// 8 of them.
FG_DEVICE uint2 load_streaming_8(const void *global) {
    uint2 v;
    asm volatile("ld.global.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(global));
    return v;
}

// The same of what no kernel of a step writes: weights. Zeros where `live` is false (nothing is read then). In one piece, so that
// no one waits for the bytes here.
FG_DEVICE uint4 load_streaming_or_zero(const void *global, bool live) {
    uint4 v;
    asm volatile(
        "{ .reg .pred live; setp.ne.u32 live, %5, 0; mov.u32 %0, 0; mov.u32 %1, 0; mov.u32 %2, 0; mov.u32 %3, 0; "
        "@live ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4]; }"
        : "=&r"(v.x), "=&r"(v.y), "=&r"(v.z), "=&r"(v.w)
        : "l"(global), "r"((u32)live));
    return v;
}
// With FG_TRACE the first block of a kernel, the one in the middle and the last keep the moments at which they come somewhere, in
// nanoseconds of the device's clock, until there is no more room (cuda/gpu/trace.rs).
#ifdef FG_TRACE
constexpr u32 MOST_MOMENTS = 1 << 19;
extern "C" {
__device__ u64 fg_moments[2 * MOST_MOMENTS];
__device__ u32 fg_moments_kept;
}
FG_DEVICE void trace(Moment what, bool live) {
    u32 blocks = gridDim.x * gridDim.y * gridDim.z, block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    if (!live || (block != 0 && block != blocks / 2 && block != blocks - 1)) return;
    u64 now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now)::"memory");
    u32 at = atomicAdd(&fg_moments_kept, 1);
    if (at >= MOST_MOMENTS) return;
    fg_moments[2 * at] = now;
    fg_moments[2 * at + 1] = what | (u64)(blockDim.x / 32) << 4 | (u64)block << 12 | (u64)blocks << 38;
}
#else
FG_DEVICE void trace(Moment, bool) {}
#endif

// A kernel may begin before those before it have ended (the launch says so; Hopper and later). This waits for their end. Before,
// only what no kernel of a step writes (weights, tables of their addresses) may be read, and nothing may be written: those before
// may still be reading it. Every thread of every kernel calls it, also one with nothing to do, for the kernel after this one waits
// for this one only: that all before it have ended it takes from this call. (The host twin sees to it.)
FG_DEVICE void wait_for_kernel_before() {
#if __CUDA_ARCH__ >= 900
    trace(BEGINS_TO_WAIT, threadIdx.x == 0);
    asm volatile("griddepcontrol.wait;" ::: "memory");
    trace(HAS_WAITED, threadIdx.x == 0);
#endif
}
// From here on the next kernel may begin: when all blocks have come here, or ended, and where there is room. What that one does
// before it waits is all that comes of it.
FG_DEVICE void let_next_kernel_begin() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
// 16 bytes that are read again soon; zeros where `live` is false. (Not by way of the cache of constants: what is there may be of
// before the kernel waited for others.)
FG_DEVICE uint4 load_cached_or_zero(const void *global, bool live) {
    uint4 v;
    asm volatile(
        "{ .reg .pred live; setp.ne.u32 live, %5, 0; mov.u32 %0, 0; mov.u32 %1, 0; mov.u32 %2, 0; mov.u32 %3, 0; "
        "@live ld.global.v4.u32 {%0, %1, %2, %3}, [%4]; }"
        : "=&r"(v.x), "=&r"(v.y), "=&r"(v.z), "=&r"(v.w)
        : "l"(global), "r"((u32)live));
    return v;
}
// Has a level of the cache fetch 128 bytes from there, which no one waits for: the second, of the device, or the first as well.
FG_DEVICE void fetch_second_level(const void *global) { asm volatile("prefetch.global.L2 [%0];" ::"l"(global)); }
FG_DEVICE void fetch_first_level(const void *global) { asm volatile("prefetch.global.L1 [%0];" ::"l"(global)); }
// What was there for all of the device when this is read, past what a cache may have kept.
FG_DEVICE u32 load_latest(const u32 *global) {
    u32 x;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(x) : "l"(global) : "memory");
    return x;
}
// Each of two bf16 times 2^120.
FG_DEVICE u32 raise_bf16x2(u32 pair) {
    u32 y;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(y) : "r"(pair), "r"(0x7b807b80u), "r"(0x80008000u));
    return y;
}
// Bytes 2·PART and 2·PART + 1 of `four`, each widened to 16 bits with its sign.
template <int PART>
FG_DEVICE u32 widen_bytes(u32 four) {
    u32 y;
    asm("prmt.b32 %0, %1, %1, %2;" : "=r"(y) : "r"(four), "n"(PART ? 0xb3a2 : 0x9180));
    return y;
}
// 32768 and byte PART of `four`, the bits of a float.
template <int PART>
FG_DEVICE u32 place_byte(u32 four) {
    u32 y;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(y) : "r"(four), "r"(0x47000000u), "n"(0x7404 | PART << 4));
    return y;
}
// 128 and byte PART of `four`, which is below 128.
template <int PART>
FG_DEVICE u32 place_small_byte(u32 four) {
    u32 y;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(y) : "r"(four), "r"(0x43000000u), "n"(0x7044 | PART << 8));
    return y;
}
// Each of two f16 times 2^8.
FG_DEVICE u32 raise_f16x2(u32 pair) {
    u32 y;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(y) : "r"(pair), "r"(0x5c005c00u));
    return y;
}
#endif

// What follows is the same on both.

FG_DEVICE float to_float(float x) { return x; }
FG_DEVICE float to_float(bf16 x) { return bits_to_float((u32)x.bits << 16); }
// E4M3: the exponent is moved to that of a float with one product, which also makes subnormals right.
FG_DEVICE float to_float(f8 x) {
    u32 sign = (u32)(x.bits & 0x80) << 24;
    u32 rest = (u32)(x.bits & 0x7f) << 20;
    return bits_to_float(float_to_bits(bits_to_float(rest) * 1.329227995784916e36f) | sign);  // 2^120
}

// The nearest of E4M3, ties to even; beyond the largest, the largest. Of four, the first in the lowest byte.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
FG_DEVICE u32 to_f8x4(float4 v) {
    u16 low, high;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(low) : "f"(v.y), "f"(v.x));
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(high) : "f"(v.w), "f"(v.z));
    return (u32)high << 16 | low;
}
#else
FG_DEVICE u32 to_f8_bits(float x) {
    u32 bits = float_to_bits(x), sign = bits >> 24 & 0x80, size = bits & 0x7fffffff;
    if (size > 0x7f800000) return sign | 0x7f;
    if (size >= 0x43e00000) return sign | 0x7e;  // 448
    // Below 2^-6 steps are 2^-9: what is added leaves just them. Above, the bits of the mantissa that go are rounded away; a carry
    // runs into the exponent, as it should.
    if (size < 0x3c800000) return sign | (float_to_bits(bits_to_float(size) * 512.0f + 8388608.0f) - 0x4b000000);
    return sign | min((size + 0x7ffff + (size >> 20 & 1)) / 0x100000 - (120 << 3), 0x7eu);
}
FG_DEVICE u32 to_f8x4(float4 v) {
    return to_f8_bits(v.x) | to_f8_bits(v.y) << 8 | to_f8_bits(v.z) << 16 | to_f8_bits(v.w) << 24;
}
#endif

// The elements of a 32-bit word of two bf16.
FG_DEVICE float low_bf16(u32 pair) { return bits_to_float(pair << 16); }
FG_DEVICE float high_bf16(u32 pair) { return bits_to_float(pair & 0xffff0000u); }

#ifdef FOGGARA_HOST
FG_DEVICE void trace(Moment, bool) {}
FG_DEVICE void wait_for_kernel_before() { twin::wait_for_kernel_before(); }
FG_DEVICE void let_next_kernel_begin() {}
FG_DEVICE u32 load_latest(const u32 *global) { return *global; }
FG_DEVICE void fetch_second_level(const void *) {}
FG_DEVICE void fetch_first_level(const void *) {}
FG_DEVICE uint4 load_streaming_or_zero(const void *global, bool live) {
    return live ? load_streaming(global) : uint4{0, 0, 0, 0};
}
FG_DEVICE uint4 load_cached_or_zero(const void *global, bool live) { return load_streaming_or_zero(global, live); }
FG_DEVICE u32 raise_bf16x2(u32 pair) {
    const float factor = 1.329227995784916e36f;  // 2^120
    return to_bf16x2(low_bf16(pair) * factor, high_bf16(pair) * factor);
}
FG_DEVICE u32 raise_f16x2(u32 pair) {
    return to_f16x2(to_float(f16{(u16)pair}) * 256.0f, to_float(f16{(u16)(pair >> 16)}) * 256.0f);
}
template <int PART>
FG_DEVICE u32 widen_bytes(u32 four) {
    u32 low = (u32)(i32)(i8)(four >> 16 * PART), high = (u32)(i32)(i8)(four >> (16 * PART + 8));
    return (low & 0xffff) | high << 16;
}
template <int PART>
FG_DEVICE u32 place_byte(u32 four) {
    return 0x47000000u | (four >> 8 * PART & 0xff) << 8;
}
template <int PART>
FG_DEVICE u32 place_small_byte(u32 four) {
    return 0x43000000u | (four >> 8 * PART & 0xff) << 16;
}
#endif

// Bytes 0 and 1 of four of E4M3, and bytes 2 and 3, as f16, which has all of their numbers. (NaN is 480 where there is no instruction
// for it.)
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
FG_DEVICE void f8_to_f16(u32 four, u32 &low, u32 &high) {
    asm("{ .reg .b16 a, b; mov.b32 {a, b}, %2; cvt.rn.f16x2.e4m3x2 %0, a; cvt.rn.f16x2.e4m3x2 %1, b; }"
        : "=r"(low), "=r"(high)
        : "r"(four));
}
#else
FG_DEVICE void f8_to_f16(u32 four, u32 &low, u32 &high) {
    // Sign, exponent and mantissa go where f16 has them; the exponent is put right by a product, and so are subnormals.
    low = raise_f16x2(widen_bytes<0>(four) << 7 & 0xbf80bf80u);
    high = raise_f16x2(widen_bytes<1>(four) << 7 & 0xbf80bf80u);
#ifdef FOGGARA_HOST
    for (u32 i = 0; i < 4; i++)
        if ((four >> 8 * i & 0x7f) == 0x7f) (i < 2 ? low : high) |= 0x7e00u << i % 2 * 16;
#endif
}
#endif

// How kernels begin that have nothing to do before others have ended. The next one is started only now: of those that wait there is
// never more than one, and it takes no room from one that works.
FG_DEVICE void begin_after_others() {
    wait_for_kernel_before();
    let_next_kernel_begin();
}

// Pairs of weights as multiply_16x8x16 takes them: of bf16. E4M3 loses nothing; f16 is rounded.
template <class W>
struct Unit;
template <>
struct Unit<bf16> {
    FG_DEVICE u32 pair(u32 two) { return two; }
};
template <>
struct Unit<f16> {
    FG_DEVICE u32 pair(u32 two) { return to_bf16x2(to_float(f16{(u16)two}), to_float(f16{(u16)(two >> 16)})); }
};
template <>
struct Unit<f8> {
    // Bytes 2·PART and 2·PART + 1 of four. Sign, exponent and mantissa go where bf16 has them; the exponent is put right by a
    // product, and so are subnormals.
    template <int PART>
    FG_DEVICE u32 pair(u32 four) {
        return raise_bf16x2(widen_bytes<PART>(four) << 4 & 0x87f087f0u);
    }
};

FG_DEVICE void store(float *to, float x) { *to = x; }
FG_DEVICE void store(bf16 *to, float x) { *to = to_bf16(x); }
FG_DEVICE void store(f16 *to, float x) { *to = to_f16(x); }
// As with f16, what is no number becomes the least.
FG_DEVICE void store(f8 *to, float x) {
    x = fminf(fmaxf(x, -448.0f), 448.0f);
    to->bits = (u8)to_f8x4(make_float4(x, 0.0f, 0.0f, 0.0f));
}

#ifdef FOGGARA_HOST
FG_DEVICE float sum_of(float a, float b) { return a + b; }
FG_DEVICE float max_of(float a, float b) { return fmaxf(a, b); }
FG_DEVICE float warp_sum(float x) { return twin::butterfly<float, sum_of>(x, "warp_sum"); }
FG_DEVICE float warp_max(float x) { return twin::butterfly<float, max_of>(x, "warp_max"); }
#else
FG_DEVICE float warp_sum(float x) {
    FG_UNROLL
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}
FG_DEVICE float warp_max(float x) {
    FG_UNROLL
    for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
    return x;
}
#endif
FG_DEVICE u32 warp_max(u32 x) {
#ifdef FOGGARA_HOST
    for (int step = 16; step > 0; step /= 2) x = max(x, __shfl_xor_sync(0xffffffffu, x, step));
    return x;
#else
    u32 y;
    asm volatile("redux.sync.max.u32 %0, %1, 0xffffffff;" : "=r"(y) : "r"(x));
    return y;
#endif
}
FG_DEVICE u64 warp_max(u64 x) {
    u32 high = warp_max((u32)(x >> 32));
    u32 low = warp_max((u32)(x >> 32) == high ? (u32)x : 0u);
    return (u64)high << 32 | low;
}
// The sum over a block of up to 1024 threads (a multiple of 32), on every thread.
FG_DEVICE float block_sum(float x) {
    FG_SHARED float parts[32];
    x = warp_sum(x);
    __syncthreads();  // parts may still be read from the call before
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    u32 warps = (blockDim.x + 31) / 32;
    float mine = threadIdx.x % 32 < warps ? parts[threadIdx.x % 32] : 0.0f;
    return warp_sum(mine);
}
// The same, the largest.
FG_DEVICE u32 block_max(u32 x) {
    FG_SHARED u32 parts[32];
    x = warp_max(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    u32 warps = (blockDim.x + 31) / 32;
    return warp_max(threadIdx.x % 32 < warps ? parts[threadIdx.x % 32] : 0u);
}

// A row of activations in E4M3: what its numbers are multiplied by to become codes, and the codes to become numbers again
// (kernels/src/cuda/f8_rows.rs says which). `size` is the largest of all sizes: NaN is above all of them.
struct F8Scale {
    float by, back;
};
FG_DEVICE u32 size_of(float x) { return float_to_bits(x) & 0x7fffffff; }
FG_DEVICE u32 sizes_of(float4 v) { return max(max(size_of(v.x), size_of(v.y)), max(size_of(v.z), size_of(v.w))); }
FG_DEVICE F8Scale f8_scale(u32 size) {
    float largest = bits_to_float(size);
    if (size >= 0x7f800000) return {0.0f, bits_to_float(0x7fc00000)};
    if (size < 0x0d800000) return {0.0f, 0.0f};  // 2^-100
    return {448.0f / largest, largest / 448.0f};
}
// Four codes; all of a row that has none are 0.
FG_DEVICE u32 to_codes(float4 v, const F8Scale &scale) {
    if (scale.by == 0.0f) return 0;
    return to_f8x4(make_float4(v.x * scale.by, v.y * scale.by, v.z * scale.by, v.w * scale.by));
}
// One of them.
FG_DEVICE u8 to_code(float x, const F8Scale &scale) { return (u8)to_codes(make_float4(x, 0.0f, 0.0f, 0.0f), scale); }

// Gated activations: Noam Shazeer, "GLU variants improve transformer", 2020. Comparisons, not fminf: what is no number stays so. Where
// a product meets a sum it is said whether it is rounded: several kernels do this, and the compiler may choose anew in each.
enum Activation { SILU, GELU_TANH, CLAMPED_SWIGLU };

// x · sigmoid(by): without branches, so that several are worked on at once. What is left off is far below the rounding to bf16.
FG_DEVICE float swish(float x, float by) {
    return x * fast_reciprocal(1.0f + fast_exp2(__fmul_rn(by, -1.44269504f)));  // -log2(e)
}

FG_DEVICE float activate(u32 activation, float gate, float up, float alpha, float limit) {
    if (activation == SILU) return swish(gate, gate) * up;
    // (1 + tanh(x)) / 2 = sigmoid(2x), which loses nothing where tanh is close to -1.
    if (activation == GELU_TANH) return swish(gate, 1.595769f * fmaf(0.044715f * gate * gate, gate, gate)) * up;
    gate = gate > limit ? limit : gate;
    up = up > limit ? limit : up < -limit ? -limit : up;
    return swish(gate, alpha * gate) * (up + 1.0f);
}
