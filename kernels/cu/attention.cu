// Softmax attention over the paged cache, of any shape: one pass with a running maximum (Milakov and Gimelshein, "Online
// normalizer calculation for softmax", 2018).
//
// A block has up to Q queries (some query heads of one head of the cache, of one row or of some rows of a sequence) and the
// positions they see, or a span of them. Of a warp, G lanes share a key: each has P pieces of 16 bytes of it (of E4M3 8 bytes: as many
// elements as of f16, so that both add up alike), and the same pieces of the value and of every query. So 32 / G positions are met at once, U times that before anything depends on them: that is a tile,
// of which each of a block's warps has every fourth. G lanes have a maximum and sums of their own, which come together at the end of
// a span. None of that depends on Q, and so the bits of a row do not (attention.cuh).
#include "attention.cuh"

#define WARPS 4

// What a lane loads at once, and its elements.
template <class E>
struct Piece {
    typedef uint4 Bits;
    FG_DEVICE Bits load(const E *from) { return load_streaming(from); }
};
template <>
struct Piece<f8> {
    typedef uint2 Bits;
    FG_DEVICE Bits load(const f8 *from) { return load_streaming_8(from); }
};
FG_DEVICE void unpack(float (&to)[4], uint4 piece, const float *) {
    to[0] = bits_to_float(piece.x);
    to[1] = bits_to_float(piece.y);
    to[2] = bits_to_float(piece.z);
    to[3] = bits_to_float(piece.w);
}
FG_DEVICE float half_of(u32 pair, int which) { return to_float(f16{(u16)(pair >> (16 * which))}); }
FG_DEVICE void unpack(float (&to)[8], uint4 piece, const f16 *) {
    FG_UNROLL
    for (int i = 0; i < 2; i++) {
        to[i] = half_of(piece.x, i);
        to[2 + i] = half_of(piece.y, i);
        to[4 + i] = half_of(piece.z, i);
        to[6 + i] = half_of(piece.w, i);
    }
}
FG_DEVICE void unpack(float (&to)[8], uint2 piece, const f8 *) {
    uint4 halves;
    f8_to_f16(piece.x, halves.x, halves.y);
    f8_to_f16(piece.y, halves.z, halves.w);
    unpack(to, halves, (const f16 *)nullptr);
}

// Sums of N values over G lanes, of which lane l then has that of value l / (G / N): half of the values go to each half of
// the lanes, and so on.
template <int N, int G>
FG_DEVICE float spread_sum(const float (&values)[N], u32 lane) {
    if constexpr (N == 1) {
        float sum = values[0];
        FG_UNROLL
        for (int step = G / 2; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
        return sum;
    } else {
        bool high = lane & (G / 2);
        float mine[N / 2];
        FG_UNROLL
        for (int i = 0; i < N / 2; i++) {
            float given = high ? values[i] : values[i + N / 2];
            mine[i] = (high ? values[i + N / 2] : values[i]) + __shfl_xor_sync(0xffffffffu, given, G / 2);
        }
        return spread_sum<N / 2, G / 2>(mine, lane);
    }
}

// Scores that a lane cares for, of N: at least one.
#define CARES(N, G) ((N) > (G) ? (N) / (G) : 1)

template <class E, int G, int P, int Q>
FG_DEVICE void attend(void *out, u32 is_bf16, float *parts, const float *q, const E *keys, const E *values,
                      const u32 *step, u32 units_at, u32 unit_count, u32 tile_rows, const u32 *chunks,
                      const float *sinks, u32 heads, u32 kv_heads, u32 key_dim, u32 value_dim, u32 key_stride,
                      u32 value_stride, u32 in_key, u32 block_size, u32 window, float scale, float cap) {
    begin_after_others();
    typedef typename Piece<E>::Bits Bits;
    constexpr int V = (int)(sizeof(Bits) / sizeof(E));      // elements of a piece
    constexpr int S = 32 / G;                               // positions at once
    constexpr int U = P > 2 ? 2 : 4;
    constexpr int J = CARES(U * Q, G), N = U * Q / J, STEP = G / N;  // lane l of G cares for scores l / STEP of J times N
    constexpr int UJ = U / J;
    constexpr bool IN_REGISTERS = Q * P * V <= 64;
    static_assert(N <= G && N % Q == 0 && U % J == 0, "a lane cares for J scores of a query");
    FG_DYNAMIC_SHARED(shared);
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, member = lane % G, sub = lane / G, origin = lane - member;

    u32 tile = tile_rows ? gridDim.x - 1 - blockIdx.x : blockIdx.x;  // what takes longest first
    Run unit = tile_of(step + units_at, unit_count, tile_rows, tile);
    u32 first_head = chunks[3 * blockIdx.y], count = chunks[3 * blockIdx.y + 1];
    if (unit.rows == 0) {
        // A row that does not exist.
        if (!parts && !tile_rows)
            for (u32 i = threadIdx.x; i < count * value_dim; i += blockDim.x)
                put(out, ((u64)unit.row * heads + first_head) * value_dim + i, 0.0f, is_bf16);
        return;
    }
    auto [begin, end, span] = seen_by(unit, window, parts, blockIdx.z);
    if (begin == end) return;

    // Queries, scaled, padded with zeros; then what each warp has of a span, and what there is of all spans so far.
    constexpr int WIDTH = G * P * V;
    float *queries = (float *)shared, *warp_sums = queries + Q * WIDTH;
    float *warp_most = warp_sums + WARPS * Q * value_stride, *warp_total = warp_most + WARPS * Q;
    float *all_sums = warp_total + WARPS * Q, *all_about = all_sums + Q * value_dim;
    for (u32 i = threadIdx.x; i < Q * WIDTH; i += blockDim.x) {
        u32 query = i / WIDTH, e = i % WIDTH, row = query / count, head = first_head + query % count;
        bool live = row < unit.rows && e < key_dim;
        queries[i] = live ? q[((u64)(unit.row + row) * heads + head) * key_dim + e] * scale : 0.0f;
    }
    __syncthreads();
    float held[IN_REGISTERS ? Q : 1][IN_REGISTERS ? P * V : 1];
    if constexpr (IN_REGISTERS) {
        FG_UNROLL
        for (int i = 0; i < Q; i++) {
            FG_UNROLL
            for (int e = 0; e < P * V; e++) held[i][e] = queries[i * WIDTH + (e / V * G + member) * V + e % V];
        }
    }

    // The scores this lane cares for: of positions my_u + j · UJ.
    u32 my_u = member / STEP / Q, my_query = member / STEP % Q;
    u32 my_len = unit.position + my_query / count + 1;
    u32 my_start = first_seen(unit.position + my_query / count, window);
    if (my_query / count >= unit.rows) my_len = 0;
    float most = minus_infinity(), total[J];
    float sum[Q][P * V];
    FG_UNROLL
    for (int j = 0; j < J; j++) total[j] = 0.0f;
    FG_UNROLL
    for (int i = 0; i < Q; i++) {
        FG_UNROLL
        for (int e = 0; e < P * V; e++) sum[i][e] = 0.0f;
    }

    Places places = places_in(step + unit.blocks, kv_heads, chunks[3 * blockIdx.y + 2], block_size);
    const Bits none = {};
    u32 from = begin / (WARPS * S * U) * (WARPS * S * U);
    for (u32 nth = 0;;) {
        u32 at = from + warp * S * U;
        Bits key[U][P], value[U][P];
        FG_UNROLL
        for (int u = 0; u < U; u++) {
            u32 place = place_of(places, at + u * S + sub, begin, end);
            bool live = place != NOWHERE;
            FG_UNROLL
            for (int p = 0; p < P; p++) {
                u32 e = (p * G + member) * V;
                key[u][p] = live && e < key_stride ? Piece<E>::load(keys + (u64)place * key_stride + e) : none;
                if (in_key) value[u][p] = key[u][p];
                else value[u][p] = live && e < value_stride ? Piece<E>::load(values + (u64)place * value_stride + e) : none;
            }
        }
        float scores[J][N];
        FG_UNROLL
        for (int i = 0; i < J * N; i++) scores[i / N][i % N] = 0.0f;
        FG_UNROLL
        for (int p = 0; p < P; p++) {
            FG_UNROLL
            for (int u = 0; u < U; u++) {
                float k[V];
                unpack(k, key[u][p], keys);
                FG_UNROLL
                for (int i = 0; i < Q; i++) {
                    FG_UNROLL
                    for (int e = 0; e < V; e++) {
                        float x;
                        if constexpr (IN_REGISTERS) x = held[i][p * V + e];
                        else x = queries[i * WIDTH + (p * G + member) * V + e];
                        float &score = scores[u / UJ][u % UJ * Q + i];
                        score = multiply_add(k[e], x, score);
                    }
                }
            }
        }
        float weight[J], greatest = minus_infinity();
        FG_UNROLL
        for (int j = 0; j < J; j++) {
            float score = spread_sum<N, G>(scores[j], lane);
            if (cap > 0.0f) score = cap * tanhf(score / cap);
            u32 position = at + (j * UJ + my_u) * S + sub;
            weight[j] = position < end && position < my_len && position >= my_start ? score : minus_infinity();
            greatest = fmaxf(greatest, weight[j]);
        }
        FG_UNROLL
        for (int other = Q * STEP; other < G; other *= 2)
            greatest = fmaxf(greatest, __shfl_xor_sync(0xffffffffu, greatest, other));
        greatest = fmaxf(greatest, most);
        float fix = most == greatest ? 1.0f : weight_of(most, greatest);
        most = greatest;
        FG_UNROLL
        for (int j = 0; j < J; j++) {
            weight[j] = weight_of(weight[j], greatest);
            total[j] = multiply_add(total[j], fix, weight[j]);
        }
        if (__ballot_sync(0xffffffffu, fix != 1.0f)) {
            FG_UNROLL
            for (int i = 0; i < Q; i++) {
                float f = __shfl_sync(0xffffffffu, fix, origin + i * STEP);
                FG_UNROLL
                for (int e = 0; e < P * V; e++) sum[i][e] = product(sum[i][e], f);
            }
        }
        FG_UNROLL
        for (int u = 0; u < U; u++) {
            float w[Q];
            FG_UNROLL
            for (int i = 0; i < Q; i++)
                w[i] = __shfl_sync(0xffffffffu, weight[u / UJ], origin + (u % UJ * Q + i) * STEP);
            FG_UNROLL
            for (int p = 0; p < P; p++) {
                float v[V];
                unpack(v, value[u][p], keys);
                FG_UNROLL
                for (int i = 0; i < Q; i++) {
                    FG_UNROLL
                    for (int e = 0; e < V; e++) sum[i][p * V + e] = multiply_add(w[i], v[e], sum[i][p * V + e]);
                }
            }
        }
        from += WARPS * S * U;
        if (from < end && (from & (span - 1)) != 0) continue;

        // The end of a span. The positions of a warp come together …
        FG_UNROLL
        for (int j = 0; j < J; j++) {
            FG_UNROLL
            for (int other = Q * STEP; other < G; other *= 2)
                total[j] += __shfl_xor_sync(0xffffffffu, total[j], other);
        }
        FG_UNROLL
        for (int apart = 1; apart < J; apart *= 2) {
            FG_UNROLL
            for (int j = 0; j < J; j += 2 * apart) total[j] += total[j + apart];
        }
        float top = most;
        FG_UNROLL
        for (int other = G; other < 32; other *= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, other));
        fix = weight_of(most, top);
        total[0] = product(total[0], fix);
        FG_UNROLL
        for (int other = G; other < 32; other *= 2) total[0] += __shfl_xor_sync(0xffffffffu, total[0], other);
        FG_UNROLL
        for (int i = 0; i < Q; i++) {
            float f = __shfl_sync(0xffffffffu, fix, origin + i * STEP);
            FG_UNROLL
            for (int e = 0; e < P * V; e++) {
                float x = product(sum[i][e], f);
                FG_UNROLL
                for (int other = G; other < 32; other *= 2) x += __shfl_xor_sync(0xffffffffu, x, other);
                u32 to = (e / V * G + member) * V + e % V;
                if (sub == 0 && to < value_stride) warp_sums[(warp * Q + i) * value_stride + to] = x;
                sum[i][e] = 0.0f;
            }
        }
        if (sub == 0 && my_u == 0 && member % STEP == 0) {
            warp_most[warp * Q + my_query] = top;
            warp_total[warp * Q + my_query] = total[0];
        }
        most = minus_infinity();
        FG_UNROLL
        for (int j = 0; j < J; j++) total[j] = 0.0f;
        __syncthreads();
        // … then the warps of the block, and the spans: of each element by one thread.
        const float *before = all_about + nth % 2 * 2 * Q;
        float *about = all_about + (nth + 1) % 2 * 2 * Q;
        for (u32 i = threadIdx.x; i < count * unit.rows * value_dim; i += blockDim.x) {
            u32 query = i / value_dim, e = i % value_dim, head = first_head + query % count;
            u64 row = unit.row + query / count;
            float top = minus_infinity(), all = 0.0f, x = 0.0f;
            for (u32 w = 0; w < WARPS; w++) top = fmaxf(top, warp_most[w * Q + query]);
            for (u32 w = 0; w < WARPS; w++) {
                float f = weight_of(warp_most[w * Q + query], top);
                all = multiply_add(warp_total[w * Q + query], f, all);
                x = multiply_add(warp_sums[(w * Q + query) * value_stride + e], f, x);
            }
            if (parts) {
                float *part = parts + (((u64)blockIdx.x * heads + head) * gridDim.z + blockIdx.z) * (value_dim + 2);
                part[e] = x;
                if (e == 0) {
                    part[value_dim] = top;
                    part[value_dim + 1] = all;
                }
                continue;
            }
            bool seen = top != minus_infinity();
            float sum_before = nth ? all_sums[i] : 0.0f, all_before = nth ? before[2 * query + 1] : 0.0f;
            Merge m = merge_of(nth ? before[2 * query] : minus_infinity(), top);
            all = seen ? merged(all_before, m.before, all, m.more) : all_before;
            x = seen ? merged(sum_before, m.before, x, m.more) : sum_before;
            if (from < end) {
                all_sums[i] = x;
                if (e == 0) about[2 * query] = m.top, about[2 * query + 1] = all;
            } else {
                x = x * share_of(m.top, all, sinks ? sinks + head : nullptr);
                put(out, (row * heads + head) * value_dim + e, x, is_bf16);
            }
        }
        if (from >= end) break;
        nth++;
        __syncthreads();  // the warps' are written to again
    }
}

#define ATTEND(E, G, P, Q)                                                                                             \
    FG_KERNEL_MIN(128, 1, attention_##E##_##G##_##P##_##Q,                                                             \
              (void *out, u32 is_bf16, float *parts, const float *q, const E *keys, const E *values, const u32 *step,  \
               u32 units_at, u32 unit_count, u32 tile_rows, const u32 *chunks, const float *sinks, u32 heads,          \
               u32 kv_heads, u32 key_dim, u32 value_dim, u32 key_stride, u32 value_stride, u32 in_key, u32 block_size, \
               u32 window, float scale, float cap)) {                                                                       \
        attend<E, G, P, Q>(out, is_bf16, parts, q, keys, values, step, units_at, unit_count, tile_rows, chunks, sinks, \
                           heads, kv_heads, key_dim, value_dim, key_stride, value_stride, in_key, block_size, window,  \
                           scale, cap);                                                                                \
    }
typedef float f32;
ATTEND(f16, 8, 1, 1)
ATTEND(f16, 8, 1, 2)
ATTEND(f16, 8, 1, 8)
ATTEND(f16, 16, 1, 1)
ATTEND(f16, 16, 1, 2)
ATTEND(f16, 16, 1, 8)
ATTEND(f16, 32, 1, 1)
ATTEND(f16, 32, 1, 2)
ATTEND(f16, 32, 1, 8)
ATTEND(f16, 32, 3, 1)
ATTEND(f16, 32, 3, 4)
ATTEND(f8, 8, 1, 1)
ATTEND(f8, 8, 1, 2)
ATTEND(f8, 8, 1, 8)
ATTEND(f8, 16, 1, 1)
ATTEND(f8, 16, 1, 2)
ATTEND(f8, 16, 1, 8)
ATTEND(f8, 32, 1, 1)
ATTEND(f8, 32, 1, 2)
ATTEND(f8, 32, 1, 8)
ATTEND(f8, 32, 3, 1)
ATTEND(f8, 32, 3, 4)
ATTEND(f32, 8, 1, 1)
ATTEND(f32, 8, 1, 4)
ATTEND(f32, 16, 1, 1)
ATTEND(f32, 16, 1, 4)
ATTEND(f32, 32, 1, 1)
ATTEND(f32, 32, 1, 4)
ATTEND(f32, 32, 2, 1)
ATTEND(f32, 32, 2, 4)
ATTEND(f32, 32, 5, 1)
ATTEND(f32, 32, 5, 4)

// One block for a head (blockIdx.y) of a row: its spans together, and the sink. With `together`, rows are those of all units;
// otherwise each row is a unit.
FG_KERNEL(128, attention_combine, (void *out, u32 is_bf16, const float *parts, const u32 *step, u32 units_at, u32 unit_count, u32 most_parts, const float *sinks, u32 heads, u32 value_dim, u32 window, u32 together)) {
    begin_after_others();
    FG_SHARED float before[PARTS], more[PARTS], totals[PARTS], top;
    u32 head = blockIdx.y, lane = threadIdx.x % 32;
    Run unit = tile_of(step + units_at, unit_count, together, blockIdx.x);
    u64 to = ((u64)unit.row * heads + head) * value_dim;
    if (unit.rows == 0) {
        for (u32 e = threadIdx.x; e < value_dim; e += blockDim.x) put(out, to + e, 0.0f, is_bf16);
        return;
    }
    Seen seen = seen_by(unit, window, false, 0);
    u32 count = (seen.end - 1) / seen.span - seen.begin / seen.span + 1;
    const float *part = parts + ((u64)blockIdx.x * heads + head) * most_parts * (value_dim + 2);
    if (threadIdx.x < 32) {
        // What comes of merging one after the other, of all at once: the greatest so far, and the greatest before.
        const float *about = part + lane * (value_dim + 2) + value_dim;
        float mine = lane < count ? about[0] : minus_infinity(), greatest = mine;
        FG_UNROLL
        for (int step = 1; step < 32; step *= 2) {
            float other = __shfl_up_sync(0xffffffffu, greatest, step);
            if (lane >= (u32)step) greatest = fmaxf(greatest, other);
        }
        float until = __shfl_up_sync(0xffffffffu, greatest, 1);
        Merge m = merge_of(lane == 0 ? minus_infinity() : until, mine);
        before[lane] = m.before;
        more[lane] = m.more;
        totals[lane] = lane < count ? about[1] : 0.0f;
        if (lane == 31) top = m.top;
    }
    __syncthreads();
    float all = 0.0f;
    for (u32 i = 0; i < count; i++) all = merged(all, before[i], totals[i], more[i]);
    float share = share_of(top, all, sinks ? sinks + head : nullptr);
    for (u32 e = threadIdx.x; e < value_dim; e += blockDim.x) {
        float x = 0.0f;
        _Pragma("unroll 8")
        for (u32 i = 0; i < count; i++) x = merged(x, before[i], part[(u64)i * (value_dim + 2) + e], more[i]);
        put(out, to + e, x * share, is_bf16);
    }
}
