// The hardware, played by the host: every CUDA thread of a block is a fiber on the calling thread, blocks run one after the
// other (twin.cpp). Included by foggara.cuh in nvcc's place; what is said there of each function holds here.
#pragma once

#include <math.h>
#include <string.h>

#include <utility>

namespace twin {

struct Index {
    u32 x, y, z;
};

// Where the running fiber is.
struct Here {
    Index thread, block, block_size, grid;
    u8 *dynamic_shared;
};
extern __thread Here here __attribute__((visibility("hidden")));

// Does an operation of a warp for all lanes of `mask` at once; operands[lane] is what that lane gave.
typedef void (*Exchange)(u32 mask, void **operands);

// Returns when every lane of the mask has called it with the same mask and exchange, and the exchange has been done.
void warp_together(u32 mask, const char *what, Exchange exchange, void *operand);
void block_together();
// Returns when so many threads have come to this barrier, or at once if it is not to wait.
void barrier(u32 number, u32 threads, bool wait);

// A barrier in shared memory that counts who arrives and bytes that come (PTX: mbarrier). `arrive` says how many bytes will come.
void init_barrier(u64 *barrier, u32 count);
void arrive(u64 *barrier, u32 bytes);
void bytes_came(u64 *barrier, u32 bytes);
// Returns when a round of this parity has ended.
void await_round(u64 *barrier, u32 parity);
// Ends the process, saying what the running CUDA thread did wrong.
[[noreturn]] void fail(const char *what);
// Ends the process if so many bytes there are not in shared memory, or not aligned to as many.
void check_shared(const void *pointer, u32 bytes = 16);

// Tells the finder of races, where there is one, what it does not see by itself: 16 bytes are read or written by this thread.
#ifdef FOGGARA_RACES
extern "C" void __tsan_read16(void *pointer);
extern "C" void __tsan_write16(void *pointer);
inline void reads_16(const void *pointer) { __tsan_read16((void *)pointer); }
inline void writes_16(void *pointer) { __tsan_write16(pointer); }
#else
inline void reads_16(const void *) {}
inline void writes_16(void *) {}
#endif
void wait_for_kernel_before();  // remembers that it was called

void copy_async(void *shared, const void *global, u32 bytes);  // from null: zeros
void copy_async_commit();
void copy_async_wait(u32 left);
// A float and 16 products of two of at most 12 bits each, added up as tensor cores do: in fixed point, so that no order matters.
float add_together(float sum, const float (&products)[16]);

// What the launch code needs to know of a kernel.
struct Kernel {
    const char *name;
    u32 threads;
    u32 parameters;
    const u32 *sizes;
    void (*function)();
    void (*call)(void (*function)(), void **arguments);
    Kernel *next;
};
void add(Kernel *kernel);

template <class... P>
struct Parameters {
    static constexpr u32 sizes[sizeof...(P) + 1] = {(u32)sizeof(P)..., 0};
    static void call(void (*function)(), void **arguments) {
        spread((void (*)(P...))function, arguments, std::index_sequence_for<P...>());
    }
    template <size_t... I>
    static void spread(void (*function)(P...), void **arguments, std::index_sequence<I...>) {
        function(*(P *)arguments[I]...);
    }
};

struct Registered {
    Kernel kernel;
    template <class... P>
    Registered(const char *name, u32 threads, void (*function)(P...))
        : kernel{name, threads, (u32)sizeof...(P), Parameters<P...>::sizes, (void (*)())function,
                 &Parameters<P...>::call, nullptr} {
        add(&kernel);
    }
};

template <class T>
struct Shuffle {
    T value, out;
    u32 from;
};

template <class T>
void shuffle_exchange(u32 mask, void **operands) {
    for (u32 lane = 0; lane < 32; lane++) {
        if (!(mask >> lane & 1)) continue;
        Shuffle<T> *mine = (Shuffle<T> *)operands[lane];
        if (!(mask >> mine->from & 1)) fail("shuffles from a lane that is not in the mask");
        mine->out = ((Shuffle<T> *)operands[mine->from])->value;
    }
}

template <class T>
T shuffle(u32 mask, T value, u32 from, const char *what) {
    Shuffle<T> mine = {value, value, from};
    warp_together(mask, what, &shuffle_exchange<T>, &mine);
    return mine.out;
}

// What five shuffles to lanes 16, 8, 4, 2 and 1 away give, in the same order, with one meeting.
template <class T, T F(T, T)>
void butterfly_exchange(u32, void **operands) {
    T all[32], next[32];
    for (u32 lane = 0; lane < 32; lane++) all[lane] = *(T *)operands[lane];
    for (u32 step = 16; step > 0; step /= 2) {
        for (u32 lane = 0; lane < 32; lane++) next[lane] = F(all[lane], all[lane ^ step]);
        memcpy(all, next, sizeof all);
    }
    for (u32 lane = 0; lane < 32; lane++) *(T *)operands[lane] = all[lane];
}
template <class T, T F(T, T)>
T butterfly(T value, const char *what) {
    warp_together(0xffffffffu, what, &butterfly_exchange<T, F>, &value);
    return value;
}

struct Vote {
    bool value;
    u32 out;
};
void vote_exchange(u32 mask, void **operands);

struct Matrices {
    u32 *out;
    const void *row;
};
void matrices_exchange(u32 mask, void **operands);
void matrices_transposed_exchange(u32 mask, void **operands);

struct Multiplication {
    float *d;
    const u32 *a;
    u32 b[2];
};
void multiplication_exchange(u32 mask, void **operands);
void multiplication_f16_exchange(u32 mask, void **operands);

inline u32 lane() { return here.thread.x % 32; }

}  // namespace twin

#define FG_KERNEL(threads, name, params)                                                       \
    static void fg_kernel_##name params;                                                       \
    static twin::Registered fg_registered_##name(#name, threads, &fg_kernel_##name);           \
    static void fg_kernel_##name params
#define FG_KERNEL_MIN(threads, blocks, name, params) FG_KERNEL(threads, name, params)
#define FG_KERNEL_CLUSTER(threads, blocks, name, params) FG_KERNEL(threads, name, params)
#define FG_GLOBAL static __thread
#define FG_DEVICE [[maybe_unused]] static inline
#define FG_SHARED static __thread
#define FG_DYNAMIC_SHARED(pointer) u8 *pointer = twin::here.dynamic_shared
#define FG_UNROLL
#define FG_NO_UNROLL
#define FG_RESTRICT __restrict__
#define __align__(bytes) __attribute__((aligned(bytes)))

#define threadIdx (twin::here.thread)
#define blockIdx (twin::here.block)
#define blockDim (twin::here.block_size)
#define gridDim (twin::here.grid)

#define FG_VECTORS(type, name)                                                                                       \
    struct alignas(2 * sizeof(type)) name##2 { type x, y; };                                                         \
    struct alignas(4 * sizeof(type) > 16 ? 16 : 4 * sizeof(type)) name##4 { type x, y, z, w; };                      \
    FG_DEVICE name##2 make_##name##2(type x, type y) { return {x, y}; }                                              \
    FG_DEVICE name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
FG_VECTORS(float, float)
FG_VECTORS(unsigned int, uint)
FG_VECTORS(int, int)
FG_VECTORS(unsigned short, ushort)
FG_VECTORS(unsigned char, uchar)
FG_VECTORS(double, double)
struct alignas(16) ulonglong2 { u64 x, y; };
FG_DEVICE ulonglong2 make_ulonglong2(u64 x, u64 y) { return {x, y}; }

// Barriers, shuffles and votes.
FG_DEVICE void __syncthreads() { twin::block_together(); }
FG_DEVICE void barrier_sync(u32 number, u32 threads) { twin::barrier(number, threads, true); }
FG_DEVICE void barrier_arrive(u32 number, u32 threads) { twin::barrier(number, threads, false); }
void fg_syncwarp(u32 mask);
FG_DEVICE void __syncwarp(u32 mask = 0xffffffffu) { fg_syncwarp(mask); }
FG_DEVICE void __threadfence() {}
FG_DEVICE void __threadfence_block() {}

template <class T>
FG_DEVICE T __shfl_sync(u32 mask, T value, int from, int width = 32) {
    u32 lane = twin::lane();
    return twin::shuffle(mask, value, (lane & ~(width - 1)) | (from & (width - 1)), "__shfl_sync");
}
template <class T>
FG_DEVICE T __shfl_xor_sync(u32 mask, T value, int bits, int width = 32) {
    u32 lane = twin::lane(), from = lane ^ bits;
    return twin::shuffle(mask, value, from < (lane & ~(width - 1)) + width ? from : lane, "__shfl_xor_sync");
}
template <class T>
FG_DEVICE T __shfl_down_sync(u32 mask, T value, u32 by, int width = 32) {
    u32 lane = twin::lane(), from = lane + by;
    return twin::shuffle(mask, value, from < (lane & ~(width - 1)) + width ? from : lane, "__shfl_down_sync");
}
template <class T>
FG_DEVICE T __shfl_up_sync(u32 mask, T value, u32 by, int width = 32) {
    u32 lane = twin::lane(), first = lane & ~(width - 1);
    return twin::shuffle(mask, value, lane >= first + by ? lane - by : lane, "__shfl_up_sync");
}
FG_DEVICE u32 __ballot_sync(u32 mask, int value) {
    twin::Vote vote = {value != 0, 0};
    twin::warp_together(mask, "__ballot_sync", &twin::vote_exchange, &vote);
    return vote.out;
}
FG_DEVICE int __any_sync(u32 mask, int value) { return __ballot_sync(mask, value) != 0; }
FG_DEVICE int __all_sync(u32 mask, int value) { return __ballot_sync(mask, value) == mask; }
FG_DEVICE u32 __activemask() { twin::fail("__activemask means nothing here"); }

// Atomic operations.
template <class T, class F>
FG_DEVICE T fg_atomic(T *at, F next) {
    T old, now;
    __atomic_load(at, &old, __ATOMIC_RELAXED);
    do now = next(old);
    while (!__atomic_compare_exchange(at, &old, &now, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return old;
}
#define FG_ATOMIC(type)                                                                                               \
    FG_DEVICE type atomicAdd(type *at, type x) { return fg_atomic(at, [=](type old) { return old + x; }); }           \
    FG_DEVICE type atomicMax(type *at, type x) { return fg_atomic(at, [=](type old) { return old > x ? old : x; }); } \
    FG_DEVICE type atomicMin(type *at, type x) { return fg_atomic(at, [=](type old) { return old < x ? old : x; }); } \
    FG_DEVICE type atomicExch(type *at, type x) { return fg_atomic(at, [=](type) { return x; }); }                    \
    FG_DEVICE type atomicOr(type *at, type x) { return fg_atomic(at, [=](type old) { return old | x; }); }            \
    FG_DEVICE type atomicAnd(type *at, type x) { return fg_atomic(at, [=](type old) { return old & x; }); }           \
    FG_DEVICE type atomicCAS(type *at, type is, type x) {                                                             \
        return fg_atomic(at, [=](type old) { return old == is ? x : old; });                                          \
    }
FG_ATOMIC(int)
FG_ATOMIC(u32)
FG_ATOMIC(u64)
FG_DEVICE u32 atomicSub(u32 *at, u32 x) { return fg_atomic(at, [=](u32 old) { return old - x; }); }
FG_DEVICE u32 atomicInc(u32 *at, u32 top) { return fg_atomic(at, [=](u32 old) { return old >= top ? 0 : old + 1; }); }
FG_DEVICE float atomicAdd(float *at, float x) { return fg_atomic(at, [=](float old) { return old + x; }); }
FG_DEVICE double atomicAdd(double *at, double x) { return fg_atomic(at, [=](double old) { return old + x; }); }
FG_DEVICE float atomicExch(float *at, float x) { return fg_atomic(at, [=](float) { return x; }); }

// Arithmetic of CUDA that C does not have.
template <class T>
FG_DEVICE T __ldg(const T *at) { return *at; }
FG_DEVICE float rsqrtf(float x) { return 1.0f / sqrtf(x); }
FG_DEVICE double rsqrt(double x) { return 1.0 / sqrt(x); }
#define __expf expf
#define __logf logf
#define __log2f log2f
#define __sinf sinf
#define __cosf cosf
#define __powf powf
FG_DEVICE float __fdividef(float x, float y) { return x / y; }
FG_DEVICE float __frcp_rn(float x) { return 1.0f / x; }
FG_DEVICE float __fmul_rn(float x, float y) { return x * y; }
FG_DEVICE float __fadd_rn(float x, float y) { return x + y; }
FG_DEVICE float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
FG_DEVICE float __fsqrt_rn(float x) { return sqrtf(x); }
FG_DEVICE float __fdiv_rn(float x, float y) { return x / y; }
FG_DEVICE float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
FG_DEVICE int __float2int_rn(float x) { return (int)nearbyintf(x); }
FG_DEVICE int __float2int_rz(float x) { return (int)x; }
FG_DEVICE u64 __umul64hi(u64 x, u64 y) { return (u64)((unsigned __int128)x * y >> 64); }
FG_DEVICE int __popc(u32 x) { return __builtin_popcount(x); }
FG_DEVICE int __ffs(int x) { return __builtin_ffs(x); }
FG_DEVICE int __clz(int x) { return x ? __builtin_clz((u32)x) : 32; }
FG_DEVICE u32 __brev(u32 x) {
    u32 y = 0;
    for (u32 bit = 0; bit < 32; bit++) y |= (x >> bit & 1) << (31 - bit);
    return y;
}
FG_DEVICE u32 __byte_perm(u32 x, u32 y, u32 pick) {
    u64 bytes = (u64)y << 32 | x;
    u32 out = 0;
    for (u32 i = 0; i < 4; i++) out |= (u32)(bytes >> (pick >> 4 * i & 7) * 8 & 0xff) << 8 * i;
    return out;
}
#define FG_MIN_MAX(type)                                                  \
    FG_DEVICE type min(type a, type b) { return a < b ? a : b; }          \
    FG_DEVICE type max(type a, type b) { return a > b ? a : b; }
FG_MIN_MAX(int)
FG_MIN_MAX(u32)
FG_MIN_MAX(long)
FG_MIN_MAX(unsigned long)
FG_MIN_MAX(long long)
FG_MIN_MAX(u64)
FG_DEVICE u32 min(u32 a, int b) { return min(a, (u32)b); }
FG_DEVICE u32 min(int a, u32 b) { return min((u32)a, b); }
FG_DEVICE u32 max(u32 a, int b) { return max(a, (u32)b); }
FG_DEVICE u32 max(int a, u32 b) { return max((u32)a, b); }
FG_DEVICE float min(float a, float b) { return fminf(a, b); }
FG_DEVICE float max(float a, float b) { return fmaxf(a, b); }

// Conversions.
FG_DEVICE float bits_to_float(u32 bits) { return __builtin_bit_cast(float, bits); }
FG_DEVICE u32 float_to_bits(float x) { return __builtin_bit_cast(u32, x); }
FG_DEVICE float __uint_as_float(u32 bits) { return bits_to_float(bits); }
FG_DEVICE u32 __float_as_uint(float x) { return float_to_bits(x); }
FG_DEVICE float __int_as_float(int bits) { return __builtin_bit_cast(float, bits); }
FG_DEVICE int __float_as_int(float x) { return __builtin_bit_cast(int, x); }
FG_DEVICE u64 __double_as_longlong(double x) { return __builtin_bit_cast(u64, x); }
FG_DEVICE double __longlong_as_double(u64 bits) { return __builtin_bit_cast(double, bits); }

FG_DEVICE float to_float(f16 x) {
    u32 rest = (u32)(x.bits & 0x7fff) << 13;
    u32 sign = (u32)(x.bits & 0x8000) << 16;
    // The exponent is moved by a product, which also makes subnormals right; infinities and NaN by hand.
    u32 bits = rest >= 0x0f800000u ? rest | 0x7f800000u : float_to_bits(bits_to_float(rest) * 5.192296858534828e33f);
    return bits_to_float(bits | sign);
}
FG_DEVICE f16 to_f16(float x) {
    x = fminf(fmaxf(x, -65504.0f), 65504.0f);
    u32 bits = float_to_bits(x), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
    u32 half;
    if (rest < 0x38800000u) {
        // Subnormal: adding 0.5 leaves the units of 2^-24 in the last bits, rounded.
        half = float_to_bits(bits_to_float(rest) + 0.5f) - 0x3f000000u;
    } else {
        half = (rest - 0x38000000u + 0xfffu + (rest >> 13 & 1)) >> 13;
    }
    return {(u16)(half | sign)};
}
FG_DEVICE bf16 to_bf16(float x) {
    u32 bits = float_to_bits(x);
    if (x != x) return {0x7fff};
    return {(u16)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16)};
}
FG_DEVICE u32 to_bf16x2(float low, float high) { return (u32)to_bf16(high).bits << 16 | to_bf16(low).bits; }
FG_DEVICE u32 to_f16x2(float low, float high) { return (u32)to_f16(high).bits << 16 | to_f16(low).bits; }

// Copies arrive when they are waited for; until then the destination holds 0xff.
FG_DEVICE void copy_async_16(void *shared, const void *global) {
    if (!global) twin::fail("copies from null");
    twin::copy_async(shared, global, 16);
}
FG_DEVICE void copy_async_16_or_zero(void *shared, const void *global, bool live) {
    twin::copy_async(shared, live ? global : nullptr, 16);
}
FG_DEVICE void copy_async_16_or_zero_cached(void *shared, const void *global, bool live) {
    copy_async_16_or_zero(shared, global, live);
}
template <int BYTES>
FG_DEVICE void copy_async_few_or_zero_cached(void *shared, const void *global, bool live) {
    twin::copy_async(shared, live ? global : nullptr, BYTES);
}
FG_DEVICE void copy_async_commit() { twin::copy_async_commit(); }
template <int N>
FG_DEVICE void copy_async_wait() { twin::copy_async_wait(N); }

FG_DEVICE void load_matrices(u32 (&out)[4], const void *row) {
    twin::Matrices mine = {out, row};
    twin::reads_16(row);
    twin::warp_together(0xffffffffu, "load_matrices", &twin::matrices_exchange, &mine);
}
FG_DEVICE void load_matrices_transposed(u32 (&out)[4], const void *row) {
    twin::Matrices mine = {out, row};
    twin::reads_16(row);
    twin::warp_together(0xffffffffu, "load_matrices_transposed", &twin::matrices_transposed_exchange, &mine);
}
FG_DEVICE void multiply_16x8x16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    twin::Multiplication mine = {d, a, {b0, b1}};
    twin::warp_together(0xffffffffu, "multiply_16x8x16", &twin::multiplication_exchange, &mine);
}
FG_DEVICE void multiply_16x8x16_f16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    twin::Multiplication mine = {d, a, {b0, b1}};
    twin::warp_together(0xffffffffu, "multiply_16x8x16_f16", &twin::multiplication_f16_exchange, &mine);
}
FG_DEVICE float fast_exp2(float x) { return exp2f(x); }
FG_DEVICE float fast_reciprocal(float x) { return 1.0f / x; }
FG_DEVICE uint4 load_streaming(const void *global) {
    if ((unsigned long)global % 16) twin::fail("load_streaming from an address that is not aligned to 16");
    return *(const uint4 *)global;
}
FG_DEVICE uint2 load_streaming_8(const void *global) {
    if ((unsigned long)global % 8) twin::fail("load_streaming_8 from an address that is not aligned to 8");
    return *(const uint2 *)global;
}
