// Softmax attention of single rows over a paged cache in f16 or E4M3, on tensor cores: for the query heads of one head of the
// cache, which are at most 16 of a product. It adds up as attention_prefill.cu does (attention.cuh).
//
// A block meets the positions of a span in tiles, of which the next STAGES - 1 are on their way. Each warp makes the scores of its
// part of a tile's positions, then all together some of the columns of the sums. Queries are scaled and rounded to f16, weights are
// rounded to f16, all sums are f32. E4M3 becomes f16 in registers: matrices of it are loaded as of pairs, of which a lane then has four
// neighbouring elements of a key, or of two positions two neighbouring columns of values.
//
// The row of a step of one row asks for keys and values of positions before its own when the kernel before has not ended yet: that
// one, which writes those of its own position, waited itself before this one began.
#include "attention.cuh"

#define STAGES 3

// W: warps of a block. Eight where a block has a multiprocessor to itself: a warp's work is a chain, and half as much of it is done sooner.
template <class E, int D, int W>
struct Shape {
    static constexpr int DIM = D, WARPS = W, THREADS = 32 * W;
    static constexpr bool IS_F8 = sizeof(E) == 1;
    static constexpr int TILE = D > 128 ? 32 : 64;         // positions
    static constexpr int MINE = TILE / WARPS;              // of those, a warp's
    static constexpr int PIECE = 16 / (int)sizeof(E);      // elements of 16 bytes
    static constexpr int PIECES = D / PIECE;               // of a row
    // No two of 8 rows share banks in shared memory: rows are an odd number of pieces apart, or pieces of a row lie in another order.
    static constexpr bool CROSSED = PIECES == 8;
    static constexpr int STRIDE = (CROSSED ? PIECES : PIECES | 1) * PIECE;  // elements of a row there
    static constexpr int SIDE = TILE * STRIDE;             // elements of keys (or values) of a stage
    static constexpr int QUERY_STRIDE = D + 8;             // elements of a query in shared memory
    static constexpr int SCORES = TILE + 8;                // floats of a query's scores in shared memory
    static constexpr int PAIRS = (D / 16 + WARPS - 1) / WARPS;  // times 16 columns of the sums, a warp's
    static constexpr bool QUERIES_SHARED = D > 128;        // too many for registers
    // Blocks on a multiprocessor: those of the shortest tiles are soon done with one.
    static constexpr int BLOCKS = IS_F8 && D <= 128 && W == 4 ? 4 : 2;
};

// Where a piece of a row is.
template <class S>
FG_DEVICE u32 piece_at(u32 row, u32 piece) {
    return row * S::STRIDE + (S::CROSSED ? piece ^ row % 8 : piece) * S::PIECE;
}

// Asks for the keys and values of a warp's positions of a tile, lane l % MINE of which has the place of the l'th; zeros for those
// that are nowhere.
template <class S, class E>
FG_DEVICE void fetch(E *to, const E *keys, const E *values, u32 place, u32 lane) {
    constexpr int ALL = S::MINE * S::PIECES;
    FG_UNROLL
    for (int i = 0; i < (ALL + 31) / 32; i++) {
        u32 at = i * 32 + lane, row = at / S::PIECES, piece = at % S::PIECES;
        u32 whose = __shfl_sync(0xffffffffu, place, row);
        if (ALL % 32 != 0 && at >= ALL) break;
        u64 source = whose == NOWHERE ? 0 : (u64)whose * S::DIM + piece * S::PIECE;
        u32 target = piece_at<S>(row, piece);
        copy_async_16_or_zero(to + target, keys + source, whose != NOWHERE);
        copy_async_16_or_zero(to + S::SIDE + target, values + source, whose != NOWHERE);
    }
}

// The four words of this lane, of 16 elements of all queries, from k · 16 on.
template <class S>
FG_DEVICE void query_of(u32 (&a)[4], const f16 *queries, int k, u32 lane) {
    load_matrices(a, queries + (lane / 8 % 2 * 8 + lane % 8) * S::QUERY_STRIDE + k * 16 + lane / 16 * 8);
}

// Scores of a warp's positions, 8 each: its keys by all queries, which `query(a, k)` gives.
template <class S, class E, class Query>
FG_DEVICE void score_of(float (&part)[S::MINE / 8][4], const E *keys, u32 lane, const Query &query) {
    constexpr int KS = S::DIM / 16, N = S::MINE / 8;
    // Of f16 a matrix is 8 keys by 8 elements, of E4M3 8 by 16: four are all keys by so many times 16.
    constexpr int STEPS = (S::IS_F8 ? 4 : 2) / N, EACH = S::IS_F8 ? 1 : 2, WIDE = STEPS * EACH;
    u32 row = lane / (8 * WIDE) * 8 + lane % 8, ahead = lane / 8 % WIDE;
    FG_UNROLL
    for (int k = 0; k < KS; k += STEPS) {
        u32 b[4], a[4];
        u32 piece = k * EACH + ahead;
        if (KS % STEPS != 0) piece = min(piece, S::PIECES - 1);
        load_matrices(b, keys + piece_at<S>(row, piece));
        FG_UNROLL
        for (int i = 0; i < STEPS; i++) {
            if (k + i >= KS) break;
            query(a, k + i);
            FG_UNROLL
            for (int n = 0; n < N; n++) {
                u32 low, high;
                if constexpr (S::IS_F8) f8_to_f16(b[n * STEPS + i], low, high);
                else low = b[(n * STEPS + i) * 2], high = b[(n * STEPS + i) * 2 + 1];
                multiply_16x8x16_f16(part[n], a, low, high);
            }
        }
    }
}

// What 16 positions add to the sums of 16 columns: values of E4M3 are loaded as pairs of columns, of which one product takes the even
// ones and one the odd ones.
template <class E>
FG_DEVICE void add_columns(float (&one)[4], float (&two)[4], const u32 (&weights)[4], const u32 (&b)[4], int first) {
    if constexpr (sizeof(E) == 1) {
        u32 even[2], odd[2];
        FG_UNROLL
        for (int i = 0; i < 2; i++) f8_to_f16(__byte_perm(b[first + i], 0, 0x3120), even[i], odd[i]);
        multiply_16x8x16_f16(one, weights, even[0], even[1]);
        multiply_16x8x16_f16(two, weights, odd[0], odd[1]);
    } else {
        multiply_16x8x16_f16(one, weights, b[0], b[1]);
        multiply_16x8x16_f16(two, weights, b[2], b[3]);
    }
}

template <class E, int D, int W>
FG_DEVICE void decode(void *out, u32 is_bf16, float *parts, const float *q, const E *keys, const E *values,
                      const u32 *step, u32 units_at, u32 step_rows, const u32 *chunks, const float *sinks, u32 heads,
                      u32 kv_heads, u32 block_size, u32 window, float scale, float cap) {
    bool waited = step_rows != 1;
    if (waited) begin_after_others();
    using S = Shape<E, D, W>;
    constexpr int WARPS = W, KS = D / 16, NS = S::TILE / 8, DS = 2 * S::PAIRS;
    FG_DYNAMIC_SHARED(shared);
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = lane / 4, pair = lane % 4 * 2;
    Run unit = tile_of(step + units_at, 0, 0, blockIdx.x);
    u32 first_head = chunks[3 * blockIdx.y], count = chunks[3 * blockIdx.y + 1];
    u64 first = (u64)unit.row * heads + first_head;
    if (unit.rows == 0) {
        // A row that does not exist.
        if (!waited) begin_after_others();
        if (!parts)
            for (u32 i = threadIdx.x; i < count * D; i += blockDim.x) put(out, first * D + i, 0.0f, is_bf16);
        return;
    }
    auto [begin, end, span] = seen_by(unit, window, parts, blockIdx.z);
    if (begin == end) {
        if (!waited) begin_after_others();
        return;
    }
    Places places = places_in(step + unit.blocks, kv_heads, chunks[3 * blockIdx.y + 2], block_size);

    // Where there are no more than 8 heads, the second half of products is nobody's.
    u32 queries_scored = count > 8 ? 16 : 8;

    // The first stages are asked for.
    E *stages = (E *)shared;
    f16 *queries = (f16 *)(stages + STAGES * 2 * S::SIDE);
    float *scores = (float *)(queries + (S::QUERIES_SHARED ? 16 * S::QUERY_STRIDE : 0));
    float4 *kept = (float4 *)(scores + 2 * queries_scored * S::SCORES) + threadIdx.x;  // only where there may be several spans
    E *stages_mine = stages + warp * S::MINE * S::STRIDE;
    u32 from = begin / S::TILE * S::TILE, ahead = from, mine = warp * S::MINE + lane % S::MINE;
    u32 place = place_of(places, ahead + mine, begin, end);
    FG_UNROLL
    for (int i = 0; i < STAGES - 1; i++) {
        if (!waited && min(ahead + S::TILE, end) > unit.position) {
            begin_after_others();
            waited = true;
        }
        if (ahead < end) fetch<S>(stages_mine + i * 2 * S::SIDE, keys, values, place, lane);
        copy_async_commit();
        ahead += S::TILE;
        place = place_of(places, ahead + mine, begin, end);
    }

    if (!waited) begin_after_others();

    // Queries in the form that products take.
    u32 a[S::QUERIES_SHARED ? 1 : KS][4];
    FG_UNROLL
    for (int k = 0; k < KS; k++) {
        FG_UNROLL
        for (int i = 0; i < 4; i++) {
            float x = 0.0f, y = 0.0f;
            u32 query = group + i % 2 * 8;
            if (query < count && (!S::QUERIES_SHARED || k % WARPS == (int)warp)) {
                float2 xy = *(const float2 *)(q + (first + query) * D + query_at<E>(k, i, pair));
                x = xy.x * scale;
                y = xy.y * scale;
            }
            if constexpr (S::QUERIES_SHARED) {
                if (k % WARPS == (int)warp)
                    *(u32 *)(queries + query * S::QUERY_STRIDE + k * 16 + i / 2 * 8 + pair) = to_f16x2(x, y);
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
    bool is_first = true;
    for (u32 stage = 0, turn = 0;; turn ^= 1) {
        copy_async_wait<STAGES - 2>();
        __syncwarp();
        const E *k_tile = stages_mine + stage * 2 * S::SIDE, *v_tile = stages + stage * 2 * S::SIDE + S::SIDE;

        float part[S::MINE / 8][4];
        FG_UNROLL
        for (int n = 0; n < S::MINE / 8; n++) {
            FG_UNROLL
            for (int i = 0; i < 4; i++) part[n][i] = 0.0f;
        }
        score_of<S>(part, k_tile, lane, [&](u32 (&these)[4], int k) {
            if constexpr (S::QUERIES_SHARED) {
                query_of<S>(these, queries, k, lane);
            } else {
                FG_UNROLL
                for (int i = 0; i < 4; i++) these[i] = a[k][i];
            }
        });
        float *tile_scores = scores + turn * queries_scored * S::SCORES;
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
            if (queries_scored > 8) *(float2 *)(to + 8 * S::SCORES) = make_float2(part[n][2], part[n][3]);
        }
        // All scores are there, and all values; no one uses the tile before any more.
        __syncthreads();
        if (ahead < end) {
            u32 free = stage == 0 ? STAGES - 1 : stage - 1;
            fetch<S>(stages_mine + free * 2 * S::SIDE, keys, values, place, lane);
        }
        copy_async_commit();
        ahead += S::TILE;
        place = place_of(places, ahead + mine, begin, end);
        stage = stage + 1 == STAGES ? 0 : stage + 1;

        float score[NS][4];
        FG_UNROLL
        for (int n = 0; n < NS; n++) {
            const float *of = tile_scores + group * S::SCORES + n * 8 + pair;
            float2 low = *(const float2 *)of, high = make_float2(0.0f, 0.0f);
            if (queries_scored > 8) high = *(const float2 *)(of + 8 * S::SCORES);
            score[n][0] = low.x, score[n][1] = low.y, score[n][2] = high.x, score[n][3] = high.y;
        }
        FG_UNROLL
        for (int r = 0; r < 2; r++) {
            if (r == 1 && queries_scored == 8) continue;
            float fix = soften<NS>(score, r, most[r], total[r]);
            FG_UNROLL
            for (int d = 0; d < DS; d++) {
                sum[d][2 * r] *= fix;
                sum[d][2 * r + 1] *= fix;
            }
        }
        // As many positions at once as four matrices have: of values of E4M3 twice as many, of half as many columns.
        constexpr int SIXTEENS = S::IS_F8 ? 2 : 1;
        FG_UNROLL
        for (int n = 0; n < NS; n += 2 * SIXTEENS) {
            u32 weights[SIXTEENS][4];
            FG_UNROLL
            for (int i = 0; i < 2 * SIXTEENS; i++) {
                weights[i / 2][i % 2 * 2] = to_f16x2(score[n + i][0], score[n + i][1]);
                weights[i / 2][i % 2 * 2 + 1] = to_f16x2(score[n + i][2], score[n + i][3]);
            }
            FG_UNROLL
            for (int j = 0; j < S::PAIRS; j++) {
                u32 sixteen = j * WARPS + warp;
                if (sixteen >= D / 16) continue;
                u32 b[4];
                if constexpr (S::IS_F8) load_matrices_transposed(b, v_tile + piece_at<S>(n * 8 + lane, sixteen));
                else load_matrices_transposed(b, v_tile + piece_at<S>(n * 8 + lane % 16, sixteen * 2 + lane / 16));
                FG_UNROLL
                for (int i = 0; i < SIXTEENS; i++) add_columns<E>(sum[2 * j], sum[2 * j + 1], weights[i], b, 2 * i);
            }
        }

        from += S::TILE;
        if (from < end && (from & (span - 1)) != 0) continue;
        sum_of_four(total);
        if (!parts) merge_onto<DS, S::THREADS>(kept, is_first, sum, most, total);
        if (from >= end) break;
        keep<DS, S::THREADS>(kept, sum, most, total);
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
            u32 sixteen = d / 2 * WARPS + warp;
            if (sixteen >= D / 16) continue;
            u32 column = sixteen * 16 + (S::IS_F8 ? 2 * pair + d % 2 * 2 : d % 2 * 8 + pair);
            float x = S::IS_F8 ? sum[d / 2 * 2][2 * r + d % 2] : sum[d][2 * r];
            float y = S::IS_F8 ? sum[d / 2 * 2 + 1][2 * r + d % 2] : sum[d][2 * r + 1];
            x *= share;
            y *= share;
            put_two(parts ? parts : out, to + column, x, y, parts ? 0 : is_bf16);
        }
    }
    trace(ENDS, threadIdx.x == 0);
}

// The parameters are those of attention.cu, but for the number of rows of the step.
#define DECODE(NAME, E, D, W)                                                                                             \
    FG_KERNEL_MIN(32 * W, (Shape<E, D, W>::BLOCKS), NAME,                                                                    \
                  (void *out, u32 is_bf16, float *parts, const float *q, const E *keys, const E *values,                  \
                   const u32 *step, u32 units_at, u32 step_rows, u32, const u32 *chunks, const float *sinks, u32 heads,   \
                   u32 kv_heads, u32, u32, u32, u32, u32, u32 block_size, u32 window, float scale, float cap)) {          \
        decode<E, D, W>(out, is_bf16, parts, q, keys, values, step, units_at, step_rows, chunks, sinks, heads, kv_heads,  \
                     block_size, window, scale, cap);                                                                     \
    }
#define DECODES(D)                          \
    DECODE(attention_decode_##D, f16, D, 4) \
    DECODE(attention_decode_f8_##D, f8, D, 4)
#define DECODES_EIGHT(D)                           \
    DECODES(D)                                     \
    DECODE(attention_decode_eight_##D, f16, D, 8) \
    DECODE(attention_decode_eight_f8_##D, f8, D, 8)
DECODES_EIGHT(64)
DECODES_EIGHT(80)
DECODES_EIGHT(96)
DECODES_EIGHT(128)
DECODES(256)
