// The residual stream: what layers and their experts add to it, and its norms (Zhang and Sennrich, "Root mean square layer
// normalization", 2019).
#include "foggara.cuh"

// Where a norm's rows go in E4M3, each `stride` codes, with zeros behind its end.
struct Codes {
    u8 *codes;
    float *scales;
    u32 stride;
};

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

#define NOWHERE 0xffffffffu

// What experts give, added up.

// Rounded once, in every kernel: which of them adds up depends on more than the row.
FG_DEVICE void add_weighted(float &sum, float weight, float y, float bias) { sum = fmaf(weight, y + bias, sum); }
FG_DEVICE void add_weighted(float4 &sum, float weight, float4 y, float4 bias) {
    add_weighted(sum.x, weight, y.x, bias.x);
    add_weighted(sum.y, weight, y.y, bias.y);
    add_weighted(sum.z, weight, y.z, bias.z);
    add_weighted(sum.w, weight, y.w, bias.w);
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

// Rows of whole float4s, of which each thread has PER: all that is read is asked for at once, and stays in registers.

FG_DEVICE float4 floats_of(uint4 v) {
    return make_float4(bits_to_float(v.x), bits_to_float(v.y), bits_to_float(v.z), bits_to_float(v.w));
}
FG_DEVICE void store_4(float *to, float4 v) { *(float4 *)to = v; }
FG_DEVICE void store_4(bf16 *to, float4 v) { *(uint2 *)to = make_uint2(to_bf16x2(v.x, v.y), to_bf16x2(v.z, v.w)); }
FG_DEVICE float squares_of(float4 v) { return v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w; }

// Experts' results: sorted rows `stride` float4s apart, and of each pair of a row and an expert, which it is, and its weight.
struct Results {
    const float4 *y, *bias;
    const u32 *positions;
    const float *weights;
    const u32 *group_of_row;
    u32 stride, top_k;
};

// Adds those of a row to `sums`, in the order of its pairs.
template <u32 PER>
FG_DEVICE void add_results(float4 (&sums)[PER], const Results &e, u32 row, u32 width) {
    const u32 ahead = PER == 1 ? 4 : 1;  // more has no room in registers
    const u32 *positions = e.positions + (u64)row * e.top_k;
    const float *weights = e.weights + (u64)row * e.top_k;
    const float4 zero = {0.0f, 0.0f, 0.0f, 0.0f};
    FG_NO_UNROLL
    for (u32 base = 0; base < e.top_k; base += ahead) {
        u32 position[ahead];
        float by[ahead];
        FG_UNROLL
        for (u32 i = 0; i < ahead; i++) {
            position[i] = base + i < e.top_k ? positions[base + i] : NOWHERE;
            by[i] = base + i < e.top_k ? weights[base + i] : 0.0f;
        }
        float4 value[ahead][PER];
        FG_UNROLL
        for (u32 i = 0; i < ahead; i++) {
            FG_UNROLL
            for (u32 j = 0; j < PER; j++) {
                u32 at = threadIdx.x + j * blockDim.x;
                bool live = position[i] != NOWHERE && at < width;
                value[i][j] = floats_of(load_cached_or_zero(e.y + (u64)position[i] * e.stride + at, live));
            }
        }
        FG_UNROLL
        for (u32 i = 0; i < ahead; i++) {
            if (position[i] == NOWHERE) continue;
            const float4 *bias = e.bias ? e.bias + (u64)e.group_of_row[position[i]] * width : nullptr;
            FG_UNROLL
            for (u32 j = 0; j < PER; j++) {
                u32 at = threadIdx.x + j * blockDim.x;
                add_weighted(sums[j], by[i], value[i][j], bias && at < width ? bias[at] : zero);
            }
        }
    }
}

// As add_and_norm; `added` may be absent, and with EXPERTS what they give is added to it first (and stays here). Norms' weights
// are asked for before the kernel waits for others. `width` in float4s.
template <class A, u32 PER, bool EXPERTS, bool CODES>
FG_DEVICE void add_and_norm_4(A *out, float4 *x, const float4 *added, const float4 *post_norm, const float4 *weight, u32 width,
                              float eps, const Results &e, const Codes &to) {
    let_next_kernel_begin();
    u64 row = (u64)blockIdx.x * width;
    float4 weights[PER], posts[PER], values[PER], more[PER];
    FG_UNROLL
    for (u32 j = 0; j < PER; j++) {
        u32 at = threadIdx.x + j * blockDim.x;
        weights[j] = floats_of(load_streaming_or_zero(weight + at, (CODES || out) && at < width));
        posts[j] = floats_of(load_streaming_or_zero(post_norm + at, post_norm && at < width));
    }
    wait_for_kernel_before();
    FG_UNROLL
    for (u32 j = 0; j < PER; j++) {
        u32 at = threadIdx.x + j * blockDim.x;
        values[j] = floats_of(load_cached_or_zero(x + row + at, at < width));
        more[j] = floats_of(load_cached_or_zero(added + row + at, added && at < width));
    }
    if (EXPERTS) add_results<PER>(more, e, blockIdx.x, width);
    float scale = 1.0f, squares = 0.0f;
    if (post_norm) {
        FG_UNROLL
        for (u32 j = 0; j < PER; j++) squares += squares_of(more[j]);
        scale = 1.0f / sqrtf(block_sum(squares) / (width * 4) + eps);
    }
    squares = 0.0f;
    FG_UNROLL
    for (u32 j = 0; j < PER; j++) {
        if (post_norm) {
            more[j].x *= scale * posts[j].x, more[j].y *= scale * posts[j].y;
            more[j].z *= scale * posts[j].z, more[j].w *= scale * posts[j].w;
        }
        values[j].x += more[j].x, values[j].y += more[j].y, values[j].z += more[j].z, values[j].w += more[j].w;
        squares += squares_of(values[j]);
        u32 at = threadIdx.x + j * blockDim.x;
        if ((added || EXPERTS) && at < width) x[row + at] = values[j];
    }
    if (!out && !CODES) return;
    float inverse = 1.0f / sqrtf(block_sum(squares) / (width * 4) + eps);
    u32 size = 0;
    FG_UNROLL
    for (u32 j = 0; j < PER; j++) {
        u32 at = threadIdx.x + j * blockDim.x;
        float4 v = values[j], w = weights[j];
        v.x *= inverse * w.x, v.y *= inverse * w.y, v.z *= inverse * w.z, v.w *= inverse * w.w;
        if (out && at < width) store_4(out + (row + at) * 4, v);
        if (CODES) values[j] = v, size = max(size, sizes_of(v));
    }
    if (!CODES) return;
    // Behind a row's end there are zeros, or, like all of it, what is no number.
    F8Scale code_scale = f8_scale(block_max(size));
    if (threadIdx.x == 0) to.scales[blockIdx.x] = code_scale.back;
    u32 *codes = (u32 *)(to.codes + (u64)blockIdx.x * to.stride);
    FG_UNROLL
    for (u32 j = 0; j < PER; j++) {
        u32 at = threadIdx.x + j * blockDim.x;
        if (at < to.stride / 4) codes[at] = to_codes(values[j], code_scale);
    }
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
