// The residual stream: what layers and their experts add to it, and its norms (Zhang and Sennrich, "Root mean square layer
// normalization", 2019).
#include "norm.cuh"

// One block a row. With `added`, x += added first (added · inverse root mean square · post_norm where there is a post_norm).
// out = x / rms(x) · weight, in the type products take; with CODES, also in E4M3. With neither, only the addition is done.
template <class A, bool CODES>
FG_DEVICE void add_and_norm(A *out, float *x, const float *added, const float *post_norm, const float *weight,
                            u32 width, float eps, const Codes &to) {
    begin_after_others();
    u64 row = (u64)blockIdx.x * width;
    float scale = 1.0f;
    if (added && post_norm) {
        float squares = 0.0f;
        for (u32 i = threadIdx.x; i < width; i += blockDim.x) squares += added[row + i] * added[row + i];
        scale = 1.0f / sqrtf(block_sum(squares) / width + eps);
    }
    float squares = 0.0f;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        float value = x[row + i];
        if (added) {
            float more = added[row + i];
            value += post_norm ? more * scale * post_norm[i] : more;
            x[row + i] = value;
        }
        squares += value * value;
    }
    if (!out && !CODES) return;
    float inverse = 1.0f / sqrtf(block_sum(squares) / width + eps);
    // Each thread reads what it wrote itself.
    if (out) {
        for (u32 i = threadIdx.x; i < width; i += blockDim.x) store(out + row + i, x[row + i] * inverse * weight[i]);
    }
    if (!CODES) return;
    u32 size = 0;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) size = max(size, size_of(x[row + i] * inverse * weight[i]));
    F8Scale code_scale = f8_scale(block_max(size));
    if (threadIdx.x == 0) to.scales[blockIdx.x] = code_scale.back;
    u8 *codes = to.codes + (u64)blockIdx.x * to.stride;
    for (u32 i = threadIdx.x; i < to.stride; i += blockDim.x)
        codes[i] = i < width ? to_code(x[row + i] * inverse * weight[i], code_scale) : 0;
}

FG_KERNEL(1024, add_and_norm_f32, (float *out, float *x, const float *added, const float *post_norm, const float *weight, u32 width, float eps)) {
    add_and_norm<float, false>(out, x, added, post_norm, weight, width, eps, {});
}
FG_KERNEL(1024, add_and_norm_bf16, (bf16 *out, float *x, const float *added, const float *post_norm, const float *weight, u32 width, float eps)) {
    add_and_norm<bf16, false>(out, x, added, post_norm, weight, width, eps, {});
}
FG_KERNEL(1024, add_and_norm_f8, (bf16 *out, float *x, const float *added, const float *post_norm, const float *weight, u32 width, float eps, u8 *codes, float *scales, u32 stride)) {
    add_and_norm<bf16, true>(out, x, added, post_norm, weight, width, eps, {codes, scales, stride});
}

// A thread for each element (of one float or four) of a row; `width` and `stride` in elements. `zero` is one of 0.
template <class V>
FG_DEVICE void combine(V *out, const V *y, const V *bias, const u32 *positions, const float *weights,
                       const u32 *group_of_row, u32 width, u32 stride, u32 top_k, u32 add, V zero) {
    begin_after_others();
    u32 at = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y;
    if (at >= width) return;
    V *to = out + (u64)row * width + at;
    V sum = add ? *to : zero;
    positions += (u64)row * top_k;
    weights += (u64)row * top_k;
    // So many are on their way at once.
    const u32 ahead = 8;
    for (u32 base = 0; base < top_k; base += ahead) {
        u32 position[ahead];
        V value[ahead], more[ahead];
        FG_UNROLL
        for (u32 i = 0; i < ahead; i++) position[i] = base + i < top_k ? positions[base + i] : NOWHERE;
        FG_UNROLL
        for (u32 i = 0; i < ahead; i++) {
            bool here = position[i] != NOWHERE;
            value[i] = here ? y[(u64)position[i] * stride + at] : zero;
            more[i] = here && bias ? bias[(u64)group_of_row[position[i]] * width + at] : zero;
        }
        FG_UNROLL
        for (u32 i = 0; i < ahead; i++) {
            if (position[i] != NOWHERE) add_weighted(sum, weights[base + i], value[i], more[i]);
        }
    }
    *to = sum;
}

FG_KERNEL(256, moe_combine_1, (float *out, const float *y, const float *bias, const u32 *positions, const float *weights, const u32 *group_of_row, u32 width, u32 stride, u32 top_k, u32 add)) {
    combine(out, y, bias, positions, weights, group_of_row, width, stride, top_k, add, 0.0f);
}
FG_KERNEL(256, moe_combine_4, (float4 *out, const float4 *y, const float4 *bias, const u32 *positions, const float *weights, const u32 *group_of_row, u32 width, u32 stride, u32 top_k, u32 add)) {
    float4 zero = {0.0f, 0.0f, 0.0f, 0.0f};
    combine(out, y, bias, positions, weights, group_of_row, width, stride, top_k, add, zero);
}

#define NORM_KERNELS(A, name, floats, with_codes, to, ...)                                                               \
    FG_KERNEL(1024, add_and_norm_##floats##_##name,                                                                      \
              (A *out, float4 *x, const float4 *added, const float4 *post_norm, const float4 *weight, u32 width,         \
               float eps __VA_ARGS__)) {                                                                                 \
        add_and_norm_4<A, floats / 4, false, with_codes>(out, x, added, post_norm, weight, width, eps, {}, to);          \
    }                                                                                                                    \
    FG_KERNEL(1024, combine_add_and_norm_##floats##_##name,                                                              \
              (A *out, float4 *x, const float4 *added, const float4 *post_norm, const float4 *weight, u32 width,         \
               float eps __VA_ARGS__, const float4 *y, const float4 *bias, const u32 *positions, const float *weights,   \
               const u32 *group_of_row, u32 results_stride, u32 top_k)) {                                                \
        Results e = {y, bias, positions, weights, group_of_row, results_stride, top_k};                                  \
        add_and_norm_4<A, floats / 4, true, with_codes>(out, x, added, post_norm, weight, width, eps, e, to);            \
    }
#define NORM(A, name, floats) NORM_KERNELS(A, name, floats, false, Codes{})
#define NORM_F8(floats) \
    NORM_KERNELS(bf16, f8, floats, true, (Codes{codes, scales, stride}), , u8 *codes, float *scales, u32 stride)
NORM(float, f32, 4)
NORM(float, f32, 8)
NORM(bf16, bf16, 4)
NORM(bf16, bf16, 8)
NORM_F8(4)
NORM_F8(8)
