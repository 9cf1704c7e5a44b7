// Softmax attention of single rows over a paged cache in half precision, on tensor cores: for many query heads of one head of
// the cache, which are at most 16 of a product. (See attention.cu, whose parts and combination of parts these are, too.)
//
// Each warp has its own positions, 16 at a time, of which the next STAGES - 1 times 16 are on their way: warps wait for each
// other at the end only. Queries are scaled and rounded to f16, weights are rounded to f16, all sums are f32.
#include "foggara.cuh"

#define RUN 256
#define PARTS 32
#define WARPS 4

FG_DEVICE float minus_infinity() { return bits_to_float(0xff800000u); }

FG_DEVICE u32 run_of(u32 seen) {
    u32 run = RUN;
    while ((seen + run - 1) / run > PARTS) run *= 2;
    return run;
}

// Where positions of a head are in the cache.
struct Places {
    const u32 *table;
    u32 kv_heads, kv_head, block_size, shift;
    bool is_power;
};

FG_DEVICE u32 place_of(const Places &p, u32 position) {
    u32 nth = p.is_power ? position >> p.shift : position / p.block_size;
    return (p.table[nth] * p.kv_heads + p.kv_head) * p.block_size + (position - nth * p.block_size);
}

template <int D>
struct Shape {
    static constexpr int STAGES = D > 128 ? 2 : 3;
    static constexpr int STRIDE = D + 8;             // elements of a row in shared memory: no two of 8 rows share banks
    static constexpr int SIDE = 16 * STRIDE;         // elements of keys (or values) of a stage
    static constexpr bool QUERIES_SHARED = D > 128;  // too many for registers
};

// Asks for the keys and values of 16 positions, lane l % 16 of which has the place of the l'th; zeros beyond `count` of them.
template <int D>
FG_DEVICE void fetch(f16 *to, const f16 *keys, const f16 *values, u32 place, i32 count, u32 lane) {
    using S = Shape<D>;
    constexpr int PIECES = D / 8;
    FG_UNROLL
    for (int i = 0; i < PIECES / 2; i++) {
        u32 at = i * 32 + lane, row = at / PIECES, piece = at % PIECES * 8;
        bool live = (i32)row < count;
        u64 source = (u64)__shfl_sync(0xffffffffu, place, row) * D + piece;
        copy_async_16_or_zero(to + row * S::STRIDE + piece, keys + source, live);
        copy_async_16_or_zero(to + S::SIDE + row * S::STRIDE + piece, values + source, live);
    }
}

template <int D>
FG_DEVICE void decode(void *out, u32 is_bf16, float *parts, const float *q, const f16 *keys, const f16 *values,
                      const u32 *step, u32 units_at, const u32 *chunks, const float *sinks, u32 heads, u32 kv_heads,
                      u32 block_size, u32 window, float scale, float cap) {
    begin_after_others();
    using S = Shape<D>;
    constexpr float LOG2E = 1.4426950408889634f;
    constexpr int KS = D / 16, DS = D / 8;
    FG_DYNAMIC_SHARED(shared);
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = lane / 4, pair = lane % 4 * 2;
    const u32 *unit = step + units_at + 4 * blockIdx.x;
    u32 row = unit[0], position = unit[2];
    u32 first_head = chunks[3 * blockIdx.y], count = chunks[3 * blockIdx.y + 1];
    u64 first = (u64)row * heads + first_head;
    if (unit[1] == 0) {
        // A row that does not exist.
        if (!parts)
            for (u32 i = threadIdx.x; i < count * D; i += blockDim.x) {
                if (is_bf16) store((bf16 *)out + first * D + i, 0.0f);
                else store((float *)out + first * D + i, 0.0f);
            }
        return;
    }
    u32 end = position + 1, begin = end > window ? end - window : 0;
    if (parts) {
        u32 run = run_of(end - begin);
        u64 from = (u64)begin + (u64)blockIdx.z * run;
        if (from >= end) return;
        begin = (u32)from;
        if (end - begin > run) end = begin + run;
    }
    Places places = {step + unit[3], kv_heads, chunks[3 * blockIdx.y + 2], block_size, 0, false};
    places.is_power = (block_size & (block_size - 1)) == 0;
    while (places.is_power && (1u << places.shift) < block_size) places.shift++;

    // The first stages are asked for.
    f16 *stages = (f16 *)shared + warp * S::STAGES * 2 * S::SIDE;
    f16 *queries = (f16 *)shared + WARPS * S::STAGES * 2 * S::SIDE;
    u32 at = begin + warp * 16, ahead = at, asked = 0;
    u32 place = ahead + lane % 16 < end ? place_of(places, ahead + lane % 16) : 0;
    FG_UNROLL
    for (int i = 0; i < S::STAGES - 1; i++) {
        if (ahead < end) fetch<D>(stages + asked * 2 * S::SIDE, keys, values, place, (i32)(end - ahead), lane);
        copy_async_commit();
        ahead += WARPS * 16;
        asked++;
        place = ahead + lane % 16 < end ? place_of(places, ahead + lane % 16) : 0;
    }

    // Queries in the form that products take.
    u32 a[S::QUERIES_SHARED ? 1 : KS][4];
    FG_UNROLL
    for (int k = 0; k < KS; k++) {
        FG_UNROLL
        for (int i = 0; i < 4; i++) {
            float x = 0.0f, y = 0.0f;
            u32 query = group + i % 2 * 8, e = k * 16 + i / 2 * 8 + pair;
            if (query < count && (!S::QUERIES_SHARED || k % WARPS == (int)warp)) {
                float2 xy = *(const float2 *)(q + (first + query) * D + e);
                x = xy.x * scale;
                y = xy.y * scale;
            }
            if constexpr (S::QUERIES_SHARED) {
                if (k % WARPS == (int)warp) *(u32 *)(queries + query * S::STRIDE + e) = to_f16x2(x, y);
            } else {
                a[k][i] = to_f16x2(x, y);
            }
        }
    }
    if constexpr (S::QUERIES_SHARED) __syncthreads();

    float most[2] = {minus_infinity(), minus_infinity()}, total[2] = {0.0f, 0.0f};
    float sum[DS][4];
    FG_UNROLL
    for (int d = 0; d < DS; d++) {
        FG_UNROLL
        for (int i = 0; i < 4; i++) sum[d][i] = 0.0f;
    }
    // Rows of matrices that this lane gives the addresses of.
    u32 key_row = (lane / 16 * 8 + lane % 8) * S::STRIDE + lane / 8 % 2 * 8;
    u32 value_row = (lane / 8 % 2 * 8 + lane % 8) * S::STRIDE + lane / 16 * 8;

    u32 stage = 0;
    for (; at < end; at += WARPS * 16) {
        if (ahead < end) fetch<D>(stages + asked * 2 * S::SIDE, keys, values, place, (i32)(end - ahead), lane);
        copy_async_commit();
        ahead += WARPS * 16;
        asked = asked + 1 == S::STAGES ? 0 : asked + 1;
        place = ahead + lane % 16 < end ? place_of(places, ahead + lane % 16) : 0;
        copy_async_wait<S::STAGES - 1>();
        __syncwarp();
        const f16 *k_tile = stages + stage * 2 * S::SIDE, *v_tile = k_tile + S::SIDE;
        stage = stage + 1 == S::STAGES ? 0 : stage + 1;

        float score[2][4] = {{0.0f, 0.0f, 0.0f, 0.0f}, {0.0f, 0.0f, 0.0f, 0.0f}};
        FG_UNROLL
        for (int k = 0; k < KS; k++) {
            u32 b[4];
            load_matrices(b, k_tile + k * 16 + key_row);
            if constexpr (S::QUERIES_SHARED) {
                u32 mine[4];
                load_matrices(mine, queries + (lane / 8 % 2 * 8 + lane % 8) * S::STRIDE + k * 16 + lane / 16 * 8);
                multiply_16x8x16_f16(score[0], mine, b[0], b[1]);
                multiply_16x8x16_f16(score[1], mine, b[2], b[3]);
            } else {
                multiply_16x8x16_f16(score[0], a[k], b[0], b[1]);
                multiply_16x8x16_f16(score[1], a[k], b[2], b[3]);
            }
        }
        FG_UNROLL
        for (int n = 0; n < 2; n++) {
            FG_UNROLL
            for (int i = 0; i < 4; i++) {
                if (cap > 0.0f) score[n][i] = cap * tanhf(score[n][i] / cap);
                if (at + n * 8 + pair + i % 2 >= end) score[n][i] = minus_infinity();
            }
        }
        float fix[2];
        FG_UNROLL
        for (int r = 0; r < 2; r++) {
            float top = fmaxf(fmaxf(score[0][2 * r], score[0][2 * r + 1]), fmaxf(score[1][2 * r], score[1][2 * r + 1]));
            top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
            top = fmaxf(fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2)), most[r]);
            // A tile has one position at least that is seen, so that this is a number.
            float shift = top * LOG2E;
            fix[r] = fast_exp2(most[r] * LOG2E - shift);
            most[r] = top;
            float more = 0.0f;
            FG_UNROLL
            for (int n = 0; n < 2; n++) {
                FG_UNROLL
                for (int i = 0; i < 2; i++) {
                    float weight = fast_exp2(score[n][2 * r + i] * LOG2E - shift);
                    score[n][2 * r + i] = weight;
                    more += weight;
                }
            }
            total[r] = total[r] * fix[r] + more;
        }
        if (__ballot_sync(0xffffffffu, fix[0] != 1.0f || fix[1] != 1.0f)) {
            FG_UNROLL
            for (int d = 0; d < DS; d++) {
                FG_UNROLL
                for (int i = 0; i < 4; i++) sum[d][i] *= fix[i / 2];
            }
        }
        u32 weights[4] = {to_f16x2(score[0][0], score[0][1]), to_f16x2(score[0][2], score[0][3]),
                          to_f16x2(score[1][0], score[1][1]), to_f16x2(score[1][2], score[1][3])};
        FG_UNROLL
        for (int d = 0; d < DS; d += 2) {
            u32 b[4];
            load_matrices_transposed(b, v_tile + d * 8 + value_row);
            multiply_16x8x16_f16(sum[d], weights, b[0], b[1]);
            multiply_16x8x16_f16(sum[d + 1], weights, b[2], b[3]);
        }
        __syncwarp();  // what was used is written to next
    }

    // The warps together.
    copy_async_wait<0>();
    __syncthreads();
    float *warp_sums = (float *)shared, *warp_most = warp_sums + WARPS * 16 * D, *warp_total = warp_most + WARPS * 16;
    FG_UNROLL
    for (int r = 0; r < 2; r++) {
        u32 query = warp * 16 + group + r * 8;
        float all = total[r];
        all += __shfl_xor_sync(0xffffffffu, all, 1);
        all += __shfl_xor_sync(0xffffffffu, all, 2);
        if (pair == 0) {
            warp_most[query] = most[r];
            warp_total[query] = all;
        }
        FG_UNROLL
        for (int d = 0; d < DS; d++)
            *(float2 *)(warp_sums + query * D + d * 8 + pair) = make_float2(sum[d][2 * r], sum[d][2 * r + 1]);
    }
    __syncthreads();
    for (u32 i = threadIdx.x; i < count * D; i += blockDim.x) {
        u32 query = i / D, e = i % D;
        float top = minus_infinity(), all = 0.0f, x = 0.0f, sink = minus_infinity();
        for (u32 w = 0; w < WARPS; w++) top = fmaxf(top, warp_most[w * 16 + query]);
        if (!parts && sinks) top = fmaxf(top, sink = sinks[first_head + query]);
        for (u32 w = 0; w < WARPS; w++) {
            float theirs = warp_most[w * 16 + query];
            float f = theirs == minus_infinity() ? 0.0f : fast_exp2((theirs - top) * LOG2E);
            all += warp_total[w * 16 + query] * f;
            x += warp_sums[(w * 16 + query) * D + e] * f;
        }
        if (parts) {
            u64 slot = ((u64)blockIdx.x * heads + first_head + query) * gridDim.z + blockIdx.z;
            parts[slot * (D + 2) + e] = x;
            if (e == 0) {
                parts[slot * (D + 2) + D] = top;
                parts[slot * (D + 2) + D + 1] = all;
            }
        } else {
            if (sink != minus_infinity()) all += fast_exp2((sink - top) * LOG2E);
            x = all > 0.0f ? x / all : 0.0f;
            if (is_bf16) store((bf16 *)out + first * D + i, x);
            else store((float *)out + first * D + i, x);
        }
    }
}

// The parameters are those of attention.cu.
#define DECODE(D)                                                                                                         \
    FG_KERNEL_MIN(128, 2, attention_decode_##D,                                                                           \
                  (void *out, u32 is_bf16, float *parts, const float *q, const f16 *keys, const f16 *values,              \
                   const u32 *step, u32 units_at, u32, u32, const u32 *chunks, const float *sinks, u32 heads,             \
                   u32 kv_heads, u32, u32, u32, u32, u32, u32 block_size, u32 window, float scale, float cap, u32)) {          \
        decode<D>(out, is_bf16, parts, q, keys, values, step, units_at, chunks, sinks, heads, kv_heads, block_size,       \
                  window, scale, cap);                                                                                    \
    }
DECODE(64)
DECODE(80)
DECODE(96)
DECODE(128)
DECODE(256)
