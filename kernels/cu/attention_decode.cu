// Softmax attention of single rows over a paged cache in half precision, on tensor cores: for the query heads of one head of the
// cache, which are at most 16 of a product. It adds up as attention_prefill.cu does (attention.cuh).
//
// A block meets the positions of a span in tiles, of which the next STAGES - 1 are on their way. Each warp makes the scores of its
// part of a tile's positions, then all together some of the columns of the sums. Queries are scaled and rounded to f16, weights are
// rounded to f16, all sums are f32.
#include "attention.cuh"

#define WARPS 4
#define STAGES 3

template <int D>
struct Shape {
    static constexpr int TILE = D > 128 ? 32 : 64;         // positions
    static constexpr int MINE = TILE / WARPS;              // of those, a warp's
    static constexpr int STRIDE = D + 8;                   // elements of a row in shared memory: no two of 8 rows share banks
    static constexpr int SIDE = TILE * STRIDE;             // elements of keys (or values) of a stage
    static constexpr int SCORES = TILE + 8;                // floats of a query's scores in shared memory
    static constexpr int PAIRS = (D / 16 + WARPS - 1) / WARPS;  // times 16 columns of the sums, a warp's
    static constexpr bool QUERIES_SHARED = D > 128;        // too many for registers
};

// Asks for the keys and values of a warp's positions of a tile, lane l % MINE of which has the place of the l'th; zeros for those
// that are nowhere.
template <int D>
FG_DEVICE void fetch(f16 *to, const f16 *keys, const f16 *values, u32 place, u32 lane) {
    using S = Shape<D>;
    constexpr int PIECES = D / 8;
    static_assert(S::MINE * PIECES % 32 == 0, "every lane has as many pieces");
    FG_UNROLL
    for (int i = 0; i < S::MINE * PIECES / 32; i++) {
        u32 at = i * 32 + lane, row = at / PIECES, piece = at % PIECES * 8;
        u32 whose = __shfl_sync(0xffffffffu, place, row);
        u64 source = whose == NOWHERE ? 0 : (u64)whose * D + piece;
        copy_async_16_or_zero(to + row * S::STRIDE + piece, keys + source, whose != NOWHERE);
        copy_async_16_or_zero(to + S::SIDE + row * S::STRIDE + piece, values + source, whose != NOWHERE);
    }
}

// The four words of this lane, of 16 elements of all queries, from k · 16 on.
template <int D>
FG_DEVICE void query_of(u32 (&a)[4], const f16 *queries, int k, u32 lane) {
    load_matrices(a, queries + (lane / 8 % 2 * 8 + lane % 8) * Shape<D>::STRIDE + k * 16 + lane / 16 * 8);
}

template <int D>
FG_DEVICE void decode(void *out, u32 is_bf16, float *parts, const float *q, const f16 *keys, const f16 *values,
                      const u32 *step, u32 units_at, const u32 *chunks, const float *sinks, u32 heads, u32 kv_heads,
                      u32 block_size, u32 window, float scale, float cap) {
    begin_after_others();
    using S = Shape<D>;
    constexpr int KS = D / 16, NS = S::TILE / 8, DS = 2 * S::PAIRS;
    FG_DYNAMIC_SHARED(shared);
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = lane / 4, pair = lane % 4 * 2;
    Run unit = tile_of(step + units_at, 0, 0, blockIdx.x);
    u32 first_head = chunks[3 * blockIdx.y], count = chunks[3 * blockIdx.y + 1];
    u64 first = (u64)unit.row * heads + first_head;
    if (unit.rows == 0) {
        // A row that does not exist.
        if (!parts)
            for (u32 i = threadIdx.x; i < count * D; i += blockDim.x) put(out, first * D + i, 0.0f, is_bf16);
        return;
    }
    auto [begin, end, span] = seen_by(unit, window, parts, blockIdx.z);
    if (begin == end) return;
    Places places = places_in(step + unit.blocks, kv_heads, chunks[3 * blockIdx.y + 2], block_size);

    // The first stages are asked for.
    f16 *stages = (f16 *)shared, *queries = stages + STAGES * 2 * S::SIDE;
    float *scores = (float *)(queries + (S::QUERIES_SHARED ? 16 * S::STRIDE : 0));
    float4 *kept = (float4 *)(scores + 2 * 16 * S::SCORES) + threadIdx.x;  // only where there may be several spans
    f16 *stages_mine = stages + warp * S::MINE * S::STRIDE;
    u32 from = begin / S::TILE * S::TILE, ahead = from, mine = warp * S::MINE + lane % S::MINE;
    u32 place = place_of(places, ahead + mine, begin, end);
    FG_UNROLL
    for (int i = 0; i < STAGES - 1; i++) {
        if (ahead < end) fetch<D>(stages_mine + i * 2 * S::SIDE, keys, values, place, lane);
        copy_async_commit();
        ahead += S::TILE;
        place = place_of(places, ahead + mine, begin, end);
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
    // Rows of matrices that this lane gives the addresses of: 16 keys by 16 elements, or 8 by 32.
    u32 key_row = S::MINE == 16 ? (lane / 16 * 8 + lane % 8) * S::STRIDE + lane / 8 % 2 * 8
                                : lane % 8 * S::STRIDE + lane / 8 * 8;
    u32 value_row = (lane / 8 % 2 * 8 + lane % 8) * S::STRIDE + lane / 16 * 8;

    bool is_first = true;
    for (u32 stage = 0, turn = 0;; turn ^= 1) {
        copy_async_wait<STAGES - 2>();
        __syncwarp();
        const f16 *k_tile = stages_mine + stage * 2 * S::SIDE, *v_tile = stages + stage * 2 * S::SIDE + S::SIDE;

        float part[S::MINE / 8][4];
        FG_UNROLL
        for (int n = 0; n < S::MINE / 8; n++) {
            FG_UNROLL
            for (int i = 0; i < 4; i++) part[n][i] = 0.0f;
        }
        FG_UNROLL
        for (int k = 0; k < KS; k += 16 / S::MINE) {
            u32 b[4];
            load_matrices(b, k_tile + k * 16 + key_row);
            if constexpr (S::QUERIES_SHARED) {
                u32 these[4];
                query_of<D>(these, queries, k, lane);
                multiply_16x8x16_f16(part[0], these, b[0], b[1]);
                query_of<D>(these, queries, k + 1, lane);
                multiply_16x8x16_f16(part[0], these, b[2], b[3]);
            } else {
                multiply_16x8x16_f16(part[0], a[k], b[0], b[1]);
                multiply_16x8x16_f16(part[1], a[k], b[2], b[3]);
            }
        }
        float *tile_scores = scores + turn * 16 * S::SCORES;
        FG_UNROLL
        for (int n = 0; n < S::MINE / 8; n++) {
            FG_UNROLL
            for (int i = 0; i < 4; i++) {
                u32 position = from + warp * S::MINE + n * 8 + pair + i % 2;
                if (cap > 0.0f) part[n][i] = cap * tanhf(part[n][i] / cap);
                if (position < begin || position >= end) part[n][i] = minus_infinity();
            }
            float *to = tile_scores + group * S::SCORES + warp * S::MINE + n * 8 + pair;
            *(float2 *)to = make_float2(part[n][0], part[n][1]);
            *(float2 *)(to + 8 * S::SCORES) = make_float2(part[n][2], part[n][3]);
        }
        // All scores are there, and all values; no one uses the tile before any more.
        __syncthreads();
        if (ahead < end) {
            u32 free = stage == 0 ? STAGES - 1 : stage - 1;
            fetch<D>(stages_mine + free * 2 * S::SIDE, keys, values, place, lane);
        }
        copy_async_commit();
        ahead += S::TILE;
        place = place_of(places, ahead + mine, begin, end);
        stage = stage + 1 == STAGES ? 0 : stage + 1;

        float score[NS][4];
        FG_UNROLL
        for (int n = 0; n < NS; n++) {
            const float *of = tile_scores + group * S::SCORES + n * 8 + pair;
            float2 low = *(const float2 *)of, high = *(const float2 *)(of + 8 * S::SCORES);
            score[n][0] = low.x, score[n][1] = low.y, score[n][2] = high.x, score[n][3] = high.y;
        }
        FG_UNROLL
        for (int r = 0; r < 2; r++) {
            float fix = soften<NS>(score, r, most[r], total[r]);
            FG_UNROLL
            for (int d = 0; d < DS; d++) {
                sum[d][2 * r] *= fix;
                sum[d][2 * r + 1] *= fix;
            }
        }
        FG_UNROLL
        for (int n = 0; n < NS; n += 2) {
            u32 weights[4] = {to_f16x2(score[n][0], score[n][1]), to_f16x2(score[n][2], score[n][3]),
                              to_f16x2(score[n + 1][0], score[n + 1][1]), to_f16x2(score[n + 1][2], score[n + 1][3])};
            FG_UNROLL
            for (int j = 0; j < S::PAIRS; j++) {
                u32 column = (j * WARPS + warp) * 16;
                if (column >= D) continue;
                u32 b[4];
                load_matrices_transposed(b, v_tile + n * 8 * S::STRIDE + column + value_row);
                multiply_16x8x16_f16(sum[2 * j], weights, b[0], b[1]);
                multiply_16x8x16_f16(sum[2 * j + 1], weights, b[2], b[3]);
            }
        }

        from += S::TILE;
        if (from < end && (from & (span - 1)) != 0) continue;
        sum_of_four(total);
        if (!parts) merge_onto<DS>(kept, is_first, sum, most, total);
        if (from >= end) break;
        keep<DS>(kept, sum, most, total);
        is_first = false;
    }

    FG_UNROLL
    for (int r = 0; r < 2; r++) {
        u32 query = group + r * 8;
        if (query >= count) continue;
        u64 slot = ((u64)blockIdx.x * heads + first_head + query) * gridDim.z + blockIdx.z;
        u64 to = parts ? slot * (D + 2) : (first + query) * D;
        float share = 1.0f;
        if (!parts) share = share_of(most[r], total[r], sinks ? sinks + first_head + query : nullptr);
        else if (warp == 0 && pair == 0) *(float2 *)(parts + to + D) = make_float2(most[r], total[r]);
        FG_UNROLL
        for (int d = 0; d < DS; d++) {
            u32 column = (d / 2 * WARPS + warp) * 16 + d % 2 * 8 + pair;
            if (column >= D) continue;
            float x = sum[d][2 * r] * share, y = sum[d][2 * r + 1] * share;
            put_two(parts ? parts : out, to + column, x, y, parts ? 0 : is_bf16);
        }
    }
}

// The parameters are those of attention.cu.
#define DECODE(D)                                                                                                         \
    FG_KERNEL_MIN(128, 2, attention_decode_##D,                                                                           \
                  (void *out, u32 is_bf16, float *parts, const float *q, const f16 *keys, const f16 *values,              \
                   const u32 *step, u32 units_at, u32, u32, const u32 *chunks, const float *sinks, u32 heads,             \
                   u32 kv_heads, u32, u32, u32, u32, u32, u32 block_size, u32 window, float scale, float cap)) {          \
        decode<D>(out, is_bf16, parts, q, keys, values, step, units_at, chunks, sinks, heads, kv_heads, block_size,       \
                  window, scale, cap);                                                                                    \
    }
DECODE(64)
DECODE(80)
DECODE(96)
DECODE(128)
DECODE(256)
