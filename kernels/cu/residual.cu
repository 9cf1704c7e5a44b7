// The residual stream: what layers add to it, and its norms (Zhang and Sennrich, "Root mean square layer normalization", 2019).
#include "foggara.cuh"

// One block a row. With `added`, x += added first (added · inverse root mean square · post_norm where there is a post_norm).
// out = x / rms(x) · weight, in the type products take. Without `out`, only the addition is done.
template <class A>
FG_DEVICE void add_and_norm(A *out, float *x, const float *added, const float *post_norm, const float *weight,
                            u32 width, float eps) {
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
    if (!out) return;
    float inverse = 1.0f / sqrtf(block_sum(squares) / width + eps);
    // Each thread reads what it wrote itself.
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) store(out + row + i, x[row + i] * inverse * weight[i]);
}

FG_KERNEL(1024, add_and_norm_f32, (float *out, float *x, const float *added, const float *post_norm, const float *weight, u32 width, float eps)) {
    add_and_norm(out, x, added, post_norm, weight, width, eps);
}
FG_KERNEL(1024, add_and_norm_bf16, (bf16 *out, float *x, const float *added, const float *post_norm, const float *weight, u32 width, float eps)) {
    add_and_norm(out, x, added, post_norm, weight, width, eps);
}
