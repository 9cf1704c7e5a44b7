// Rows of activations in E4M3, each with a scale of its own.
#include "foggara.cuh"

// Eight of them at once.
struct Eight {
    float4 low, high;
};
FG_DEVICE float4 floats_of(uint4 v) {
    return make_float4(bits_to_float(v.x), bits_to_float(v.y), bits_to_float(v.z), bits_to_float(v.w));
}
FG_DEVICE Eight load_eight(const float *x, bool live) {
    return {floats_of(load_cached_or_zero(x, live)), floats_of(load_cached_or_zero(x + 4, live))};
}
FG_DEVICE Eight load_eight(const bf16 *x, bool live) {
    uint4 v = load_cached_or_zero(x, live);
    return {make_float4(low_bf16(v.x), high_bf16(v.x), low_bf16(v.y), high_bf16(v.y)),
            make_float4(low_bf16(v.z), high_bf16(v.z), low_bf16(v.w), high_bf16(v.w))};
}

// A block a row of whole eights, of which each thread has PER in registers; `width` and `stride` in eights. Rows from `*end` on, if
// there is one, are left alone.
template <class A, u32 PER>
FG_DEVICE void quantize_eights(u8 *codes, float *scales, const A *x, const u32 *end, u32 width, u32 stride) {
    let_next_kernel_begin();  // a product, which asks for its weights at once
    wait_for_kernel_before();
    u64 row = blockIdx.x;
    if (end && row >= *end) return;
    Eight values[PER];
    u32 size = 0;
    FG_UNROLL
    for (u32 j = 0; j < PER; j++) {
        u32 at = threadIdx.x + j * blockDim.x;
        values[j] = load_eight(x + (row * width + at) * 8, at < width);
    }
    FG_UNROLL
    for (u32 j = 0; j < PER; j++) size = max(size, max(sizes_of(values[j].low), sizes_of(values[j].high)));
    F8Scale scale = f8_scale(block_max(size));
    if (threadIdx.x == 0) scales[row] = scale.back;
    FG_UNROLL
    for (u32 j = 0; j < PER; j++) {
        u32 at = threadIdx.x + j * blockDim.x;
        uint2 both = make_uint2(to_codes(values[j].low, scale), to_codes(values[j].high, scale));
        if (at < stride) *(uint2 *)(codes + (row * stride + at) * 8) = both;
    }
}

// Any rows; `width` and `stride` in numbers.
template <class A>
FG_DEVICE void quantize_any(u8 *codes, float *scales, const A *x, const u32 *end, u32 width, u32 stride) {
    begin_after_others();
    u64 row = blockIdx.x;
    if (end && row >= *end) return;
    x += row * width;
    codes += row * stride;
    u32 size = 0;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) size = max(size, size_of(to_float(x[i])));
    F8Scale scale = f8_scale(block_max(size));
    if (threadIdx.x == 0) scales[row] = scale.back;
    for (u32 i = threadIdx.x; i < stride; i += blockDim.x) codes[i] = i < width ? to_code(to_float(x[i]), scale) : 0;
}

#define QUANTIZE(A, name, per)                                                                                        \
    FG_KERNEL(1024, quantize_rows_##name##_##per,                                                                     \
              (u8 *codes, float *scales, const A *x, const u32 *end, u32 width, u32 stride)) {                        \
        quantize_eights<A, per>(codes, scales, x, end, width, stride);                                                \
    }
#define QUANTIZE_ALL(A, name)                                                                                         \
    QUANTIZE(A, name, 1)                                                                                              \
    QUANTIZE(A, name, 2)                                                                                              \
    QUANTIZE(A, name, 4)                                                                                              \
    FG_KERNEL(1024, quantize_rows_##name##_any,                                                                       \
              (u8 *codes, float *scales, const A *x, const u32 *end, u32 width, u32 stride)) {                        \
        quantize_any(codes, scales, x, end, width, stride);                                                           \
    }
QUANTIZE_ALL(float, f32)
QUANTIZE_ALL(bf16, bf16)
