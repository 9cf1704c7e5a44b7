// Softmax attention of many rows of a sequence over a paged cache in f16 or E4M3, on tensor cores (Dao, "FlashAttention-2", 2023; the
// running maximum is that of Milakov and Gimelshein, 2018). It adds up as attention_decode.cu does (attention.cuh).
//
// A block has 64 queries (all query heads of one head of the cache, of some rows), each warp 16 of them, and meets the positions
// they see in tiles: values are on their way while scores are made, and the next keys while values are used. Of long heads, two warps
// share 16 queries: each makes the scores of half of the positions, and half of the columns of the sums. Where there are few blocks,
// each meets one span only, and spans meet again in attention_combine. Queries are scaled and rounded to f16, weights are rounded to
// f16, all sums are f32. E4M3 becomes f16 in shared memory, by the warp that asked for it.
#include "attention.cuh"

#define QUERIES 64

template <int D>
struct Shape {
    static constexpr int HALVES = D > 128 ? 2 : 1;      // warps that share 16 queries
    static constexpr int THREADS = HALVES * 128;
    static constexpr int TILE = D > 128 ? 32 : 64;      // positions
    static constexpr int STRIDE = D + 8;                // elements of a row in shared memory: no two of 8 rows share banks
    static constexpr bool QUERIES_SHARED = D > 128;     // too many for registers
    static constexpr int SIDE = TILE * STRIDE;          // elements of keys (or values) of a tile
    static constexpr int MINE = TILE * 32 / THREADS;    // positions of a tile that a warp asks for
    static constexpr int SCORES = TILE + 8;             // floats of a query's scores in shared memory
};

// What all threads of a block know.
struct Block {
    Places places;
    Seen seen;
    u32 all_start, all_len;  // from all_start on and before all_len, all queries see all
    u32 lens[QUERIES];       // how far each sees
    // Where each is in rows × heads; where there are parts, in those of all units.
    u32 owners[QUERIES];
    u32 places_of[2][64];    // of the next tiles
};

// Asks for the keys or values of a tile of positions, zeros for those that are nowhere. Of E4M3, a row comes to where the end of its
// f16 will be.
template <class E, int D>
FG_DEVICE void fetch(f16 *to, const E *from, const u32 *places) {
    using S = Shape<D>;
    constexpr int PIECE = 16 / (int)sizeof(E), PIECES = D / PIECE;
    if constexpr (sizeof(E) == 1) to += widened_from<PIECES, S::STRIDE>();
    constexpr int ALL = S::MINE * PIECES;
    u32 first = threadIdx.x / 32 * S::MINE, lane = threadIdx.x % 32;
    FG_UNROLL
    for (int i = 0; i < (ALL + 31) / 32; i++) {
        u32 at = i * 32 + lane, row = first + at / PIECES, piece = at % PIECES;
        if (ALL % 32 != 0 && at >= ALL) break;
        u32 place = places[row];
        u64 source = place == NOWHERE ? 0 : (u64)place * D + piece * PIECE;
        copy_async_16_or_zero(to + row * S::STRIDE + piece * 8, from + source, place != NOWHERE);
    }
    copy_async_commit();
}

// What a warp asked for is there, as f16: after this, and a barrier. Keys: whether in the order of `query_at`.
template <class E, int D>
FG_DEVICE void arrived(f16 *to, bool keys) {
    using S = Shape<D>;
    copy_async_wait<0>();
    if constexpr (sizeof(E) == 1) {
        __syncwarp();
        widen_rows<S::MINE, D / 16, S::STRIDE>(to + threadIdx.x / 32 * S::MINE * S::STRIDE, keys);
    }
}

template <class E, int D>
FG_DEVICE void prefill(void *out, u32 is_bf16, float *parts, const float *q, const E *keys, const E *values, const u32 *step,
                       u32 units_at, u32 unit_count, u32 tile_rows, const u32 *chunks, const float *sinks, u32 heads,
                       u32 kv_heads, u32 block_size, u32 window, float scale, float cap) {
    begin_after_others();
    using S = Shape<D>;
    constexpr int KS = D / 16, NS = S::TILE / 8, MINE = NS / S::HALVES, DS = D / 8 / S::HALVES;
    FG_DYNAMIC_SHARED(shared);
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, half = S::HALVES > 1 ? threadIdx.x / 128 : 0, group = lane / 4, pair = lane % 4 * 2;
    f16 *key_tile = (f16 *)shared, *value_tile = key_tile + S::SIDE, *queries = value_tile + S::SIDE;
    float *scores = (float *)(queries + (S::QUERIES_SHARED ? QUERIES * S::STRIDE : 0));
    float4 *kept = (float4 *)(scores + (S::HALVES > 1 ? QUERIES * S::SCORES : 0));  // not where there are parts
    kept += half * (DS + 1) * 128 + threadIdx.x % 128;
    queries += warp * 16 * S::STRIDE;
    scores += (warp * 16 + group) * S::SCORES;

    Run unit = tile_of(step + units_at, unit_count, tile_rows, gridDim.x - 1 - blockIdx.x);  // the longest first
    if (unit.rows == 0) return;
    u32 first_head = chunks[3 * blockIdx.y], count = chunks[3 * blockIdx.y + 1];
    auto [begin, end, span] = seen_by(unit, window, parts, blockIdx.z);
    if (begin == end) return;
    u32 from = begin / S::TILE * S::TILE;
    Places places = places_in(step + unit.blocks, kv_heads, chunks[3 * blockIdx.y + 2], block_size);
    // What is needed now and then waits in shared memory: registers are short.
    FG_SHARED Block block;
    if (threadIdx.x == 0) {
        block.places = places;
        block.seen = {begin, end, span};
        block.all_start = first_seen(unit.position + unit.rows - 1, window);
        block.all_len = unit.position + 1;
    }
    u32 owner[2];
    FG_UNROLL
    for (int i = 0; i < 2; i++) {
        u32 query = warp * 16 + group + i * 8, row = query / count;
        owner[i] = row < unit.rows ? (unit.row + row) * heads + first_head + query % count : NOWHERE;
        if (half == 0) {
            block.owners[query] = parts && owner[i] != NOWHERE ? owner[i] + (unit.nth - unit.row) * heads : owner[i];
            block.lens[query] = unit.position + row + 1;
        }
    }
    if (threadIdx.x < 2 * S::TILE)
        block.places_of[(from + threadIdx.x) / S::TILE % 2][threadIdx.x % S::TILE] =
            place_of(places, from + threadIdx.x, begin, end);
    __syncthreads();
    fetch<E, D>(key_tile, keys, block.places_of[from / S::TILE % 2]);

    // Queries in the form that products take.
    u32 a[S::QUERIES_SHARED ? 1 : KS][4];
    FG_UNROLL
    for (int k = 0; k < KS; k++) {
        if (S::HALVES > 1 && k % S::HALVES != (int)half) continue;
        u32 words[4];
        FG_UNROLL
        for (int i = 0; i < 4; i++) {
            float x = 0.0f, y = 0.0f;
            if (owner[i % 2] != NOWHERE) {
                float2 xy = *(const float2 *)(q + (u64)owner[i % 2] * D + query_at<E>(k, i, pair));
                x = xy.x * scale;
                y = xy.y * scale;
            }
            words[i] = to_f16x2(x, y);
            if constexpr (S::QUERIES_SHARED)
                *(u32 *)(queries + (group + i % 2 * 8) * S::STRIDE + k * 16 + i / 2 * 8 + pair) = words[i];
            else a[k][i] = words[i];
        }
    }

    float most[2] = {minus_infinity(), minus_infinity()}, total[2] = {0.0f, 0.0f};
    float sum[DS][4];
    FG_UNROLL
    for (int d = 0; d < DS; d++) {
        FG_UNROLL
        for (int i = 0; i < 4; i++) sum[d][i] = 0.0f;
    }
    // Rows of matrices that this lane gives the addresses of.
    u32 key_row = (lane / 16 * 8 + lane % 8 + half * MINE * 8) * S::STRIDE + lane / 8 % 2 * 8;
    u32 value_row = (lane / 8 % 2 * 8 + lane % 8) * S::STRIDE + lane / 16 * 8 + half * DS * 8;

    for (;;) {
        arrived<E, D>(key_tile, true);
        __syncthreads();  // keys are there (and queries), and no one uses the values before any more
        fetch<E, D>(value_tile, values, block.places_of[from / S::TILE % 2]);

        float score[NS][4];  // this thread's first
        FG_UNROLL
        for (int n = 0; n < MINE; n++) {
            FG_UNROLL
            for (int i = 0; i < 4; i++) score[n][i] = 0.0f;
        }
        FG_UNROLL
        for (int k = 0; k < KS; k++) {
            u32 these[4];
            if constexpr (S::QUERIES_SHARED)
                load_matrices(these, queries + (lane / 8 % 2 * 8 + lane % 8) * S::STRIDE + k * 16 + lane / 16 * 8);
            FG_UNROLL
            for (int n = 0; n < MINE; n += 2) {
                u32 b[4];
                load_matrices(b, key_tile + n * 8 * S::STRIDE + k * 16 + key_row);
                if constexpr (S::QUERIES_SHARED) {
                    multiply_16x8x16_f16(score[n], these, b[0], b[1]);
                    multiply_16x8x16_f16(score[n + 1], these, b[2], b[3]);
                } else {
                    multiply_16x8x16_f16(score[n], a[k], b[0], b[1]);
                    multiply_16x8x16_f16(score[n + 1], a[k], b[2], b[3]);
                }
            }
        }

        if (cap > 0.0f) {
            FG_UNROLL
            for (int n = 0; n < MINE; n++) {
                FG_UNROLL
                for (int i = 0; i < 4; i++) score[n][i] = cap * tanhf(score[n][i] / cap);
            }
        }
        if (from < block.all_start || from + S::TILE > block.all_len) {
            u32 len[2] = {block.lens[warp * 16 + group], block.lens[warp * 16 + group + 8]};
            FG_UNROLL
            for (int n = 0; n < MINE; n++) {
                FG_UNROLL
                for (int i = 0; i < 4; i++) {
                    u32 position = from + (half * MINE + n) * 8 + pair + i % 2;
                    // A window of u32's largest number is none.
                    if (position >= len[i / 2] || len[i / 2] - position > window) score[n][i] = minus_infinity();
                }
            }
        }
        if constexpr (S::HALVES > 1) {
            FG_UNROLL
            for (int n = 0; n < MINE; n++) {
                float *to = scores + (half * MINE + n) * 8 + pair;
                *(float2 *)to = make_float2(score[n][0], score[n][1]);
                *(float2 *)(to + 8 * S::SCORES) = make_float2(score[n][2], score[n][3]);
            }
        }
        arrived<E, D>(value_tile, false);
        __syncthreads();  // values are there (and all scores), and no one uses the keys any more
        u32 place_then = NOWHERE;  // two tiles from here
        if (from + S::TILE < block.seen.end) {
            fetch<E, D>(key_tile, keys, block.places_of[from / S::TILE % 2 ^ 1]);
            if (threadIdx.x < S::TILE)
                place_then = place_of(block.places, from + 2 * S::TILE + threadIdx.x, block.seen.begin, block.seen.end);
        }
        if constexpr (S::HALVES > 1) {
            FG_UNROLL
            for (int n = 0; n < NS; n++) {
                const float *of = scores + n * 8 + pair;
                float2 low = *(const float2 *)of, high = *(const float2 *)(of + 8 * S::SCORES);
                score[n][0] = low.x, score[n][1] = low.y, score[n][2] = high.x, score[n][3] = high.y;
            }
        }

        FG_UNROLL
        for (int r = 0; r < 2; r++) {
            float fix = soften<NS>(score, r, most[r], total[r]);
            if (__ballot_sync(0xffffffffu, fix != 1.0f)) {
                FG_UNROLL
                for (int d = 0; d < DS; d++) {
                    sum[d][2 * r] *= fix;
                    sum[d][2 * r + 1] *= fix;
                }
            }
        }
        FG_UNROLL
        for (int n = 0; n < NS; n += 2) {
            u32 weights[4] = {to_f16x2(score[n][0], score[n][1]), to_f16x2(score[n][2], score[n][3]),
                              to_f16x2(score[n + 1][0], score[n + 1][1]), to_f16x2(score[n + 1][2], score[n + 1][3])};
            FG_UNROLL
            for (int d = 0; d < DS; d += 2) {
                u32 b[4];
                load_matrices_transposed(b, value_tile + n * 8 * S::STRIDE + d * 8 + value_row);
                multiply_16x8x16_f16(sum[d], weights, b[0], b[1]);
                multiply_16x8x16_f16(sum[d + 1], weights, b[2], b[3]);
            }
        }

        if (threadIdx.x < S::TILE) block.places_of[from / S::TILE % 2][threadIdx.x] = place_then;
        from += S::TILE;
        if (from >= block.seen.end) break;
        if ((from & (block.seen.span - 1)) != 0) continue;
        bool is_first = block.seen.begin / block.seen.span == from / block.seen.span - 1;
        sum_of_four(total);
        merge_onto<DS>(kept, is_first, sum, most, total);
        keep<DS>(kept, sum, most, total);
    }

    sum_of_four(total);
    bool is_first = block.seen.begin / block.seen.span == (from - 1) / block.seen.span;
    if (!parts) merge_onto<DS>(kept, is_first, sum, most, total);
    FG_UNROLL
    for (int r = 0; r < 2; r++) {
        u32 mine = block.owners[warp * 16 + group + r * 8];
        if (mine == NOWHERE) continue;
        u64 to = parts ? ((u64)mine * gridDim.z + blockIdx.z) * (D + 2) : (u64)mine * D;
        float share = 1.0f;
        if (!parts) share = share_of(most[r], total[r], sinks ? sinks + mine % heads : nullptr);
        else if (half == 0 && pair == 0) *(float2 *)(parts + to + D) = make_float2(most[r], total[r]);
        FG_UNROLL
        for (int d = 0; d < DS; d++) {
            float x = sum[d][2 * r] * share, y = sum[d][2 * r + 1] * share;
            put_two(parts ? parts : out, to + half * (D / 2) + d * 8 + pair, x, y, parts ? 0 : is_bf16);
        }
    }
}

// The parameters are those of attention.cu.
#define PREFILL(NAME, E, D, BLOCKS)                                                                                                \
    FG_KERNEL_MIN(Shape<D>::THREADS, BLOCKS, NAME,                                                                                 \
                  (void *out, u32 is_bf16, float *parts, const float *q, const E *keys, const E *values, const u32 *step,          \
                   u32 units_at, u32 unit_count, u32 tile_rows, const u32 *chunks, const float *sinks, u32 heads,                  \
                   u32 kv_heads, u32, u32, u32, u32, u32, u32 block_size, u32 window, float scale, float cap)) {                   \
        prefill<E, D>(out, is_bf16, parts, q, keys, values, step, units_at, unit_count, tile_rows, chunks, sinks, heads,           \
                      kv_heads, block_size, window, scale, cap);                                                                   \
    }
#define PREFILLS(D, BLOCKS)                     \
    PREFILL(attention_prefill_##D, f16, D, BLOCKS) \
    PREFILL(attention_prefill_f8_##D, f8, D, BLOCKS)
PREFILLS(64, FG_FEWER_ON_BLACKWELL(3))
PREFILLS(80, FG_FEWER_ON_BLACKWELL(3))
PREFILLS(96, FG_FEWER_ON_BLACKWELL(2))
PREFILLS(128, FG_FEWER_ON_BLACKWELL(3))
PREFILLS(256, 1)
