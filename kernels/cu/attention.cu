// Softmax attention over the paged cache, of any shape: one pass with a running maximum (Milakov and Gimelshein, "Online
// normalizer calculation for softmax", 2018).
//
// A block has up to Q queries (some query heads of one head of the cache, of one row or of some rows of a sequence) and a part
// of the positions they see. Of a warp, G lanes share a key: each has P pieces of 16 bytes of it, and the same pieces of the
// value and of every query. So 32 / G positions are met at once, U times that before anything depends on them. Parts of a row's
// positions meet again in attention_combine; how a row is cut depends on its own position only.
#include "foggara.cuh"

#define RUN 256    // positions of a part, or twice that, and so on, so that there are at most
#define PARTS 32   // parts (attention.rs counts them too)
#define WARPS 4

FG_DEVICE float minus_infinity() { return bits_to_float(0xff800000u); }

// Positions of a part, where `seen` are seen.
FG_DEVICE u32 run_of(u32 seen) {
    u32 run = RUN;
    while ((seen + run - 1) / run > PARTS) run *= 2;
    return run;
}

// Queries that a block has in common: rows of one sequence at positions that follow each other.
struct Run {
    u32 row, rows, position, blocks;
};

FG_DEVICE Run unit_at(const u32 *units, u32 i) { return {units[4 * i], units[4 * i + 1], units[4 * i + 2], units[4 * i + 3]}; }

// The tile'th piece of at most `tile_rows` rows of all units; with `tile_rows` 0, units are met as they are.
FG_DEVICE Run tile_of(const u32 *units, u32 count, u32 tile_rows, u32 tile) {
    if (tile_rows == 0) return unit_at(units, tile);
    for (u32 i = 0; i < count; i++) {
        Run unit = unit_at(units, i);
        u32 tiles = (unit.rows + tile_rows - 1) / tile_rows;
        if (tile < tiles) {
            u32 skipped = tile * tile_rows;
            u32 rows = unit.rows - skipped;
            return {unit.row + skipped, rows < tile_rows ? rows : tile_rows, unit.position + skipped, unit.blocks};
        }
        tile -= tiles;
    }
    return {0, 0, 0, 0};
}

FG_DEVICE void put(void *out, u64 i, float x, u32 is_bf16) {
    if (is_bf16) store((bf16 *)out + i, x);
    else store((float *)out + i, x);
}

// The elements of a piece.
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

template <class E, int G, int P, int Q>
FG_DEVICE void attend(void *out, u32 is_bf16, float *parts, const float *q, const E *keys, const E *values,
                      const u32 *step, u32 units_at, u32 unit_count, u32 tile_rows, const u32 *chunks,
                      const float *sinks, u32 heads, u32 kv_heads, u32 key_dim, u32 value_dim, u32 key_stride,
                      u32 value_stride, u32 in_key, u32 block_size, u32 window, float scale, float cap) {
    begin_after_others();
    constexpr int V = 16 / (int)sizeof(E);                  // elements of a piece
    constexpr int S = 32 / G;                               // positions at once
    constexpr int U = P > 2 ? (G / Q < 2 ? G / Q : 2) : (G / Q < 4 ? G / Q : 4);
    constexpr int N = U * Q, SPAN = G / N;                  // lane l of G cares for score l / SPAN
    constexpr bool IN_REGISTERS = Q * P * V <= 64;
    static_assert(N <= G, "a lane cares for one score");
    FG_DYNAMIC_SHARED(shared);
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, member = lane % G, sub = lane / G, origin = lane - member;

    u32 tile = tile_rows ? gridDim.x - 1 - blockIdx.x : blockIdx.x;  // what takes longest first
    Run unit = tile_of(step + units_at, unit_count, tile_rows, tile);
    u32 first_head = chunks[3 * blockIdx.y], count = chunks[3 * blockIdx.y + 1], kv_head = chunks[3 * blockIdx.y + 2];
    if (unit.rows == 0) {
        // A row that does not exist.
        if (!parts && !tile_rows)
            for (u32 i = threadIdx.x; i < count * value_dim; i += blockDim.x)
                put(out, ((u64)unit.row * heads + first_head) * value_dim + i, 0.0f, is_bf16);
        return;
    }

    // What all of its queries together see, and of that this block.
    u32 end = unit.position + unit.rows;
    u32 begin = unit.position + 1 > window ? unit.position + 1 - window : 0;
    if (parts) {
        u32 run = run_of(end - begin);
        u64 from = (u64)begin + (u64)blockIdx.z * run;
        if (from >= end) return;
        begin = (u32)from;
        if (end - begin > run) end = begin + run;
    }

    // Queries, scaled, padded with zeros.
    float *queries = (float *)shared;
    constexpr int WIDTH = G * P * V;
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

    // The score this lane cares for.
    u32 my_u = member / SPAN / Q, my_query = member / SPAN % Q;
    u32 my_len = unit.position + my_query / count + 1;
    u32 my_start = my_len > window ? my_len - window : 0;
    if (my_query / count >= unit.rows) my_len = 0;
    float most = minus_infinity(), total = 0.0f;
    float sum[Q][P * V];
    FG_UNROLL
    for (int i = 0; i < Q; i++) {
        FG_UNROLL
        for (int e = 0; e < P * V; e++) sum[i][e] = 0.0f;
    }

    bool is_power = (block_size & (block_size - 1)) == 0;
    u32 shift = 0;
    while (is_power && (1u << shift) < block_size) shift++;
    const u32 *table = step + unit.blocks;
    u32 at = begin + warp * S * U;
    const uint4 none = {0, 0, 0, 0};
    for (; at < end; at += WARPS * S * U) {
        uint4 key[U][P], value[U][P];
        FG_UNROLL
        for (int u = 0; u < U; u++) {
            u32 position = at + u * S + sub;
            bool live = position < end;
            u32 nth = is_power ? position >> shift : position / block_size;
            u32 block = live ? table[nth] : 0;
            u64 place = ((u64)block * kv_heads + kv_head) * block_size + (position - nth * block_size);
            FG_UNROLL
            for (int p = 0; p < P; p++) {
                u32 e = (p * G + member) * V;
                key[u][p] = live && e < key_stride ? load_streaming(keys + place * key_stride + e) : none;
                if (in_key) value[u][p] = key[u][p];
                else value[u][p] = live && e < value_stride ? load_streaming(values + place * value_stride + e) : none;
            }
        }
        float scores[N];
        FG_UNROLL
        for (int i = 0; i < N; i++) scores[i] = 0.0f;
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
                        scores[u * Q + i] += k[e] * x;
                    }
                }
            }
        }
        float score = spread_sum<N, G>(scores, lane);
        if (cap > 0.0f) score = cap * tanhf(score / cap);
        u32 position = at + my_u * S + sub;
        bool seen = position < end && position < my_len && position >= my_start;
        float greatest = seen ? score : minus_infinity();
        FG_UNROLL
        for (int other = Q * SPAN; other < G; other *= 2)
            greatest = fmaxf(greatest, __shfl_xor_sync(0xffffffffu, greatest, other));
        greatest = fmaxf(greatest, most);
        float weight = seen ? expf(score - greatest) : 0.0f;
        float fix = most == greatest ? 1.0f : expf(most - greatest);
        most = greatest;
        total = total * fix + weight;
        if (__ballot_sync(0xffffffffu, fix != 1.0f)) {
            FG_UNROLL
            for (int i = 0; i < Q; i++) {
                float f = __shfl_sync(0xffffffffu, fix, origin + i * SPAN);
                FG_UNROLL
                for (int e = 0; e < P * V; e++) sum[i][e] *= f;
            }
        }
        FG_UNROLL
        for (int u = 0; u < U; u++) {
            float w[Q];
            FG_UNROLL
            for (int i = 0; i < Q; i++) w[i] = __shfl_sync(0xffffffffu, weight, origin + (u * Q + i) * SPAN);
            FG_UNROLL
            for (int p = 0; p < P; p++) {
                float v[V];
                unpack(v, value[u][p], keys);
                FG_UNROLL
                for (int i = 0; i < Q; i++) {
                    FG_UNROLL
                    for (int e = 0; e < V; e++) sum[i][p * V + e] += w[i] * v[e];
                }
            }
        }
    }

    // The positions of a warp, then the warps of the block.
    FG_UNROLL
    for (int other = Q * SPAN; other < G; other *= 2) total += __shfl_xor_sync(0xffffffffu, total, other);
    float greatest = most;
    FG_UNROLL
    for (int other = G; other < 32; other *= 2)
        greatest = fmaxf(greatest, __shfl_xor_sync(0xffffffffu, greatest, other));
    float fix = most == minus_infinity() ? 0.0f : expf(most - greatest);
    total *= fix;
    FG_UNROLL
    for (int other = G; other < 32; other *= 2) total += __shfl_xor_sync(0xffffffffu, total, other);
    __syncthreads();  // `queries` is not needed any more
    float *warp_sums = (float *)shared, *warp_most = warp_sums + WARPS * Q * value_stride;
    float *warp_total = warp_most + WARPS * Q;
    FG_UNROLL
    for (int i = 0; i < Q; i++) {
        float f = __shfl_sync(0xffffffffu, fix, origin + i * SPAN);
        FG_UNROLL
        for (int e = 0; e < P * V; e++) {
            float x = sum[i][e] * f;
            FG_UNROLL
            for (int other = G; other < 32; other *= 2) x += __shfl_xor_sync(0xffffffffu, x, other);
            u32 to = (e / V * G + member) * V + e % V;
            if (sub == 0 && to < value_stride) warp_sums[(warp * Q + i) * value_stride + to] = x;
        }
    }
    if (sub == 0 && my_u == 0 && member % SPAN == 0) {
        warp_most[warp * Q + my_query] = greatest;
        warp_total[warp * Q + my_query] = total;
    }
    __syncthreads();
    for (u32 i = threadIdx.x; i < count * unit.rows * value_dim; i += blockDim.x) {
        u32 query = i / value_dim, e = i % value_dim, head = first_head + query % count;
        u64 row = unit.row + query / count;
        float top = minus_infinity(), all = 0.0f, x = 0.0f;
        for (u32 w = 0; w < WARPS; w++) top = fmaxf(top, warp_most[w * Q + query]);
        float sink = minus_infinity();
        if (!parts && sinks) top = fmaxf(top, sink = sinks[head]);
        for (u32 w = 0; w < WARPS; w++) {
            float theirs = warp_most[w * Q + query];
            float f = theirs == minus_infinity() ? 0.0f : expf(theirs - top);
            all += warp_total[w * Q + query] * f;
            x += warp_sums[(w * Q + query) * value_stride + e] * f;
        }
        if (parts) {
            float *part = parts + (((u64)blockIdx.x * heads + head) * gridDim.z + blockIdx.z) * (value_dim + 2);
            part[e] = x;
            if (e == 0) {
                part[value_dim] = top;
                part[value_dim + 1] = all;
            }
        } else {
            if (sink != minus_infinity()) all += expf(sink - top);
            put(out, (row * heads + head) * value_dim + e, all > 0.0f ? x / all : 0.0f, is_bf16);
        }
    }
}

#define ATTEND(E, G, P, Q)                                                                                             \
    FG_KERNEL_MIN(128, 1, attention_##E##_##G##_##P##_##Q,                                                             \
              (void *out, u32 is_bf16, float *parts, const float *q, const E *keys, const E *values, const u32 *step,  \
               u32 units_at, u32 unit_count, u32 tile_rows, const u32 *chunks, const float *sinks, u32 heads,          \
               u32 kv_heads, u32 key_dim, u32 value_dim, u32 key_stride, u32 value_stride, u32 in_key, u32 block_size, \
               u32 window, float scale, float cap, u32)) {                                                                  \
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

// One block for a head (blockIdx.y) of a row: its parts together, and the sink. With `run` 0, the row is the unit; otherwise
// one of all units' rows, of which each part is so many positions from the sequence's first on.
FG_KERNEL(128, attention_combine, (void *out, u32 is_bf16, const float *parts, const u32 *step, u32 units_at, u32 unit_count, u32 most_parts, const float *sinks, u32 heads, u32 value_dim, u32 window, u32 run)) {
    begin_after_others();
    FG_SHARED float weights[PARTS];
    u32 head = blockIdx.y, lane = threadIdx.x % 32;
    Run unit = tile_of(step + units_at, unit_count, run ? 1 : 0, blockIdx.x);
    u64 to = ((u64)unit.row * heads + head) * value_dim;
    if (unit.rows == 0) {
        for (u32 e = threadIdx.x; e < value_dim; e += blockDim.x) put(out, to + e, 0.0f, is_bf16);
        return;
    }
    u32 end = unit.position + 1, begin = end > window ? end - window : 0, first = 0;
    if (run) first = begin / run, begin = first * run;
    else run = run_of(end - begin);
    u32 count = (end - begin + run - 1) / run;
    const float *part = parts + (((u64)blockIdx.x * heads + head) * most_parts + first) * (value_dim + 2);
    if (threadIdx.x < 32) {
        const float *about = part + lane * (value_dim + 2) + value_dim;
        float top = lane < count ? about[0] : minus_infinity(), mine = top;
        if (sinks) top = fmaxf(top, sinks[head]);
        top = warp_max(top);
        float weight = mine == minus_infinity() ? 0.0f : expf(mine - top);
        float all = warp_sum(lane < count ? about[1] * weight : 0.0f);
        if (sinks) all += expf(sinks[head] - top);
        weights[lane] = all > 0.0f ? weight / all : 0.0f;
    }
    __syncthreads();
    for (u32 e = threadIdx.x; e < value_dim; e += blockDim.x) {
        float x = 0.0f;
        FG_UNROLL
        for (u32 i = 0; i < PARTS; i++)
            if (i < count) x += weights[i] * part[(u64)i * (value_dim + 2) + e];
        put(out, to + e, x, is_bf16);
    }
}
