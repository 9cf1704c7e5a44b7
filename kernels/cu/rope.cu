// Rotary position embedding (Su et al., "RoFormer", 2021), and what else happens to queries, keys and values before attention.
//
// `step` is what step_rows.rs uploads: for each row (position, where its blocks begin), and the blocks.
#include "foggara.cuh"

#define NO_ROW 0xffffffffu

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

// Element i of a rotated head of which `x` has the elements before; the first 2 · pairs are rotated.
FG_DEVICE float rotated(const float *x, u32 i, const float *turns, u32 pairs, bool half) {
    if (i >= 2 * pairs) return x[i];
    u32 pair = half ? (i < pairs ? i : i - pairs) : i / 2;
    bool first = half ? i < pairs : i % 2 == 0;
    float a = x[half ? pair : 2 * pair], b = x[half ? pair + pairs : 2 * pair + 1];
    float cosine = turns[2 * pair], sine = turns[2 * pair + 1];
    return first ? a * cosine - b * sine : a * sine + b * cosine;
}

// Which of a layer's positions, over all blocks, has this row's key of head 0; that of the next head is block_size further.
FG_DEVICE u64 place(const u32 *step, u32 row, u32 position, u32 block_size, u32 kv_heads) {
    u32 block = step[step[2 * row + 1] + position / block_size];
    return (u64)block * kv_heads * block_size + position % block_size;
}

// So many positions, of all rows together, are fetched for attention.
#define FETCHED 2048

// Has the second level of the cache fetch what attention will meet of the row, while it waits for queries: by all threads of the row.
// Of much nothing is fetched: it would not be there any more when it is met.
template <class E>
FG_DEVICE void fetch_cached(const E *keys, const E *values, const u32 *step, u32 row, u32 position, u32 kv_heads, u32 stride,
                            u32 block_size) {
    if (position >= FETCHED / gridDim.x) return;
    const u32 *blocks = step + step[2 * row + 1];
    u32 bytes = kv_heads * block_size * stride * sizeof(E), lines = (bytes + 127) / 128;
    u32 count = (position / block_size + 1) * lines;
    for (u32 i = blockIdx.y * blockDim.x + threadIdx.x; i < count; i += gridDim.y * blockDim.x) {
        u64 at = (u64)blocks[i / lines] * bytes + i % lines * 128;
        fetch_second_level((const u8 *)keys + at);
        fetch_second_level((const u8 *)values + at);
    }
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
        if (base == lane) fetch_cached(keys, values, step, row, position, kv_heads, stride, block_size);
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
    to[first] = a * cosine - b * sine;
    to[second] = a * sine + b * cosine;
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
