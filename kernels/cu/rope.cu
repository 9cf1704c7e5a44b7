// Rotary position embedding (Su et al., "RoFormer", 2021), and what else happens to queries, keys and values before attention.
//
// `step` is what step_rows.rs uploads: for each row (position, where its blocks begin), and the blocks.
#include "rope.cuh"

// For each row and pair cosine and sine. The angle is a f32 product, its sine and cosine are taken in f64.
FG_KERNEL(256, rope_angles, (float *turns, const u32 *step, const float *inv_freq, u32 rows, u32 pairs, float scale)) {
    begin_after_others();
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (u64)rows * pairs) return;
    u32 position = step[2 * (i / pairs)];
    float angle = (float)(position == NO_ROW ? 0 : position) * inv_freq[i % pairs];
    turns[2 * i] = (float)cos((double)angle) * scale;
    turns[2 * i + 1] = (float)sin((double)angle) * scale;
}

// One warp a head: query heads, then key heads, then value heads of the row. `keys` and `values` are those of the layer.
template <class E>
FG_DEVICE void rope_and_write(float *q, E *keys, E *values, const u32 *step, const float *qkv, const float *bias,
                              const float *q_norm, const float *k_norm, const float *turns, float eps, u32 pairs,
                              u32 half, u32 heads, u32 kv_heads, u32 dim, u32 stride, u32 block_size) {
    FG_DYNAMIC_SHARED(shared);
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u32 row = blockIdx.x, head = blockIdx.y * (blockDim.x / 32) + warp, all = heads + 2 * kv_heads;
    bool is_query = head < heads, is_key = !is_query && head < heads + kv_heads;
    // No kernel writes where rows are: it is found before others have ended.
    u32 position = step[2 * row], kv_head = head - heads - (is_key ? 0 : kv_heads);
    u64 at = 0;
    if (!is_query && head < all && position != NO_ROW) {
        at = (place(step, row, position, block_size, kv_heads) + (u64)kv_head * block_size) * stride;
    }
    begin_after_others();
    if (head >= all) return;
    if (position == NO_ROW) {
        if (is_query)
            for (u32 i = lane; i < dim; i += 32) q[((u64)row * heads + head) * dim + i] = 0.0f;
        return;
    }
    turns += (u64)row * 2 * pairs;
    for (u32 i = lane * 32; i < 2 * pairs; i += 1024) fetch_first_level(turns + i);
    float *x = (float *)shared + warp * dim;
    const float *from = qkv + ((u64)row * all + head) * dim;
    float squares = 0.0f;
    // So many are on their way at once.
    const u32 ahead = 4;
    for (u32 base = lane; base < dim; base += ahead * 32) {
        float some[ahead], more[ahead];
        FG_UNROLL
        for (u32 j = 0; j < ahead; j++) {
            u32 i = base + j * 32;
            some[j] = i < dim ? from[i] : 0.0f;
            more[j] = bias && i < dim ? bias[head * dim + i] : 0.0f;
        }
        if (base == lane) {
            fetch_cached(keys, values, step, row, gridDim.x, position, kv_heads, stride, block_size,
                         blockIdx.y * blockDim.x + threadIdx.x, gridDim.y * blockDim.x);
        }
        FG_UNROLL
        for (u32 j = 0; j < ahead; j++) {
            u32 i = base + j * 32;
            if (i >= dim) break;
            float value = bias ? some[j] + more[j] : some[j];
            x[i] = value;
            squares += value * value;
        }
    }
    const float *norm = is_query ? q_norm : is_key ? k_norm : nullptr;
    if (norm) {
        float inverse = 1.0f / sqrtf(warp_sum(squares) / dim + eps);
        for (u32 i = lane; i < dim; i += 32) x[i] = x[i] * inverse * norm[i];
    }
    __syncwarp();
    if (is_query) {
        float *to = q + ((u64)row * heads + head) * dim;
        for (u32 i = lane; i < dim; i += 32) to[i] = rotated(x, i, turns, pairs, half);
        return;
    }
    E *to = is_key ? keys + at : values + at;
    for (u32 i = lane; i < stride; i += 32) {
        float value = i >= dim ? 0.0f : is_key ? rotated(x, i, turns, pairs, half) : x[i];
        store(to + i, value);
    }
}

FG_KERNEL(128, rope_and_write_f32, (float *q, float *keys, float *values, const u32 *step, const float *qkv, const float *bias, const float *q_norm, const float *k_norm, const float *turns, float eps, u32 pairs, u32 half, u32 heads, u32 kv_heads, u32 dim, u32 stride, u32 block_size)) {
    rope_and_write(q, keys, values, step, qkv, bias, q_norm, k_norm, turns, eps, pairs, half, heads, kv_heads, dim, stride, block_size);
}
FG_KERNEL(128, rope_and_write_f16, (float *q, f16 *keys, f16 *values, const u32 *step, const float *qkv, const float *bias, const float *q_norm, const float *k_norm, const float *turns, float eps, u32 pairs, u32 half, u32 heads, u32 kv_heads, u32 dim, u32 stride, u32 block_size)) {
    rope_and_write(q, keys, values, step, qkv, bias, q_norm, k_norm, turns, eps, pairs, half, heads, kv_heads, dim, stride, block_size);
}
FG_KERNEL(128, rope_and_write_f8, (float *q, f8 *keys, f8 *values, const u32 *step, const float *qkv, const float *bias, const float *q_norm, const float *k_norm, const float *turns, float eps, u32 pairs, u32 half, u32 heads, u32 kv_heads, u32 dim, u32 stride, u32 block_size)) {
    rope_and_write(q, keys, values, step, qkv, bias, q_norm, k_norm, turns, eps, pairs, half, heads, kv_heads, dim, stride, block_size);
}

// One thread a pair: heads of 2 · pairs elements, from `x` to `out`, which may be the same.
FG_KERNEL(128, rope_rows, (float *out, const float *x, const float *turns, u32 pairs, u32 half, u32 heads, u64 out_row, u64 out_head, u64 x_row, u64 x_head)) {
    begin_after_others();
    u32 row = blockIdx.x, i = blockIdx.y * blockDim.x + threadIdx.x;
    if (i >= heads * pairs) return;
    u32 head = i / pairs, pair = i % pairs;
    u32 first = half ? pair : 2 * pair, second = half ? pair + pairs : 2 * pair + 1;
    const float *from = x + row * x_row + head * x_head;
    float *to = out + row * out_row + head * out_head;
    float a = from[first], b = from[second];
    float cosine = turns[2 * ((u64)row * pairs + pair)], sine = turns[2 * ((u64)row * pairs + pair) + 1];
    to[first] = turned_first(a, b, cosine, sine);
    to[second] = turned_second(a, b, cosine, sine);
}

// One block a row: a short vector that is normalised and 2 · pairs elements that are rotated, as one key.
template <class E>
FG_DEVICE void latent_write(E *keys, const u32 *step, const float *x, const float *bias, const float *norm,
                            const float *turns, float eps, u32 pairs, u32 half, u32 width, u32 stride,
                            u32 block_size) {
    begin_after_others();
    FG_DYNAMIC_SHARED(shared);
    float *key = (float *)shared;
    u32 row = blockIdx.x, rank = width - 2 * pairs, position = step[2 * row];
    if (position == NO_ROW) return;
    float squares = 0.0f;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        float value = x[(u64)row * width + i];
        if (bias) value += bias[i];
        key[i] = value;
        if (i < rank) squares += value * value;
    }
    float inverse = 1.0f / sqrtf(block_sum(squares) / rank + eps);  // it also waits for all of `key`
    turns += (u64)row * 2 * pairs;
    E *to = keys + place(step, row, position, block_size, 1) * stride;
    for (u32 i = threadIdx.x; i < stride; i += blockDim.x) {
        float value = i >= width ? 0.0f
                      : i < rank ? key[i] * inverse * norm[i]
                                 : rotated(key + rank, i - rank, turns, pairs, half);
        store(to + i, value);
    }
}

FG_KERNEL(128, latent_write_f32, (float *keys, const u32 *step, const float *x, const float *bias, const float *norm, const float *turns, float eps, u32 pairs, u32 half, u32 width, u32 stride, u32 block_size)) {
    latent_write(keys, step, x, bias, norm, turns, eps, pairs, half, width, stride, block_size);
}
FG_KERNEL(128, latent_write_f16, (f16 *keys, const u32 *step, const float *x, const float *bias, const float *norm, const float *turns, float eps, u32 pairs, u32 half, u32 width, u32 stride, u32 block_size)) {
    latent_write(keys, step, x, bias, norm, turns, eps, pairs, half, width, stride, block_size);
}
FG_KERNEL(128, latent_write_f8, (f8 *keys, const u32 *step, const float *x, const float *bias, const float *norm, const float *turns, float eps, u32 pairs, u32 half, u32 width, u32 stride, u32 block_size)) {
    latent_write(keys, step, x, bias, norm, turns, eps, pairs, half, width, stride, block_size);
}

// One block a row: the first `width` elements by their root mean square, times `weight`, in place.
FG_KERNEL(256, norm_heads, (float *x, const float *weight, u32 width, u64 row_stride, float eps)) {
    begin_after_others();
    x += blockIdx.x * row_stride;
    float squares = 0.0f;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) squares += x[i] * x[i];
    float inverse = 1.0f / sqrtf(block_sum(squares) / width + eps);
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) x[i] = x[i] * inverse * weight[i];
}
