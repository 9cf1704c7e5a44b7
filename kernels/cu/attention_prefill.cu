// Softmax attention of many rows of a sequence over a paged cache in half precision, on tensor cores (Dao, "FlashAttention-2",
// 2023; the running maximum is that of Milakov and Gimelshein, 2018).
//
// A block has 64 queries (all query heads of one head of the cache, of some rows), each warp 16 of them, and meets the
// positions they see in tiles, of which the next is on its way while one is used. Where there are few blocks, positions are cut
// into parts of `run`, which meet again in attention_combine. Queries are scaled and rounded to f16, weights are rounded to
// f16, all sums are f32.
#include "foggara.cuh"

#define WARPS 4
#define QUERIES (WARPS * 16)

FG_DEVICE float minus_infinity() { return bits_to_float(0xff800000u); }

template <int D>
struct Shape {
    static constexpr int TILE = D > 128 ? 32 : 64;      // positions
    static constexpr int STRIDE = D + 8;                // elements of a row in shared memory: no two of 8 rows share banks
    static constexpr bool QUERIES_SHARED = D > 128;     // too many for registers
    static constexpr int SIDE = TILE * STRIDE;          // elements of keys (or values) of a tile
};

// Rows of a sequence at positions that follow each other; the first of them is the nth of all units.
struct Run {
    u32 row, rows, position, blocks, nth;
};

// The tile'th piece of at most `tile_rows` rows of all units.
FG_DEVICE Run tile_of(const u32 *units, u32 count, u32 tile_rows, u32 tile) {
    u32 before = 0;
    for (u32 i = 0; i < count; i++, units += 4) {
        u32 rows = units[1], tiles = (rows + tile_rows - 1) / tile_rows;
        if (tile < tiles) {
            u32 skipped = tile * tile_rows;
            rows -= skipped;
            rows = rows < tile_rows ? rows : tile_rows;
            return {units[0] + skipped, rows, units[2] + skipped, units[3], before + skipped};
        }
        tile -= tiles;
        before += rows;
    }
    return {0, 0, 0, 0, 0};
}

// Where positions of a head are in the cache.
struct Places {
    const u32 *table;
    u32 kv_heads, kv_head, block_size, shift;
    bool is_power;
};

#define NOWHERE 0xffffffffu

// Of positions that are not in begin..end: NOWHERE.
FG_DEVICE u32 place_of(const Places &p, u32 position, u32 begin, u32 end) {
    if (position < begin || position >= end) return NOWHERE;
    u32 nth = p.is_power ? position >> p.shift : position / p.block_size;
    return (p.table[nth] * p.kv_heads + p.kv_head) * p.block_size + (position - nth * p.block_size);
}

// Asks for the keys and values of a tile of positions, zeros for those that are nowhere.
template <int D>
FG_DEVICE void fetch(f16 *to, const f16 *keys, const f16 *values, const u32 *places) {
    using S = Shape<D>;
    constexpr int PIECES = D / 8;
    static_assert(S::TILE * PIECES % (WARPS * 32) == 0, "every thread has as many pieces");
    FG_UNROLL
    for (int i = 0; i < S::TILE * PIECES / (WARPS * 32); i++) {
        u32 at = i * WARPS * 32 + threadIdx.x, row = at / PIECES, piece = at % PIECES * 8, place = places[row];
        u64 source = place == NOWHERE ? 0 : (u64)place * D + piece;
        copy_async_16_or_zero(to + row * S::STRIDE + piece, keys + source, place != NOWHERE);
        copy_async_16_or_zero(to + S::SIDE + row * S::STRIDE + piece, values + source, place != NOWHERE);
    }
    copy_async_commit();
}

template <int D>
FG_DEVICE void prefill(void *out, u32 is_bf16, float *parts, const float *q, const f16 *keys, const f16 *values, const u32 *step,
                       u32 units_at, u32 unit_count, u32 tile_rows, const u32 *chunks, const float *sinks, u32 heads,
                       u32 kv_heads, u32 block_size, u32 window, float scale, float cap, u32 run) {
    begin_after_others();
    using S = Shape<D>;
    constexpr float LOG2E = 1.4426950408889634f;
    constexpr int KS = D / 16, NS = S::TILE / 8, DS = D / 8;
    FG_DYNAMIC_SHARED(shared);
    f16 *stages = (f16 *)shared;
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = lane / 4, pair = lane % 4 * 2;

    Run unit = tile_of(step + units_at, unit_count, tile_rows, gridDim.x - 1 - blockIdx.x);  // the longest first
    if (unit.rows == 0) return;
    u32 first_head = chunks[3 * blockIdx.y], count = chunks[3 * blockIdx.y + 1];
    Places places = {step + unit.blocks, kv_heads, chunks[3 * blockIdx.y + 2], block_size, 0, false};
    places.is_power = (block_size & (block_size - 1)) == 0;
    while (places.is_power && (1u << places.shift) < block_size) places.shift++;

    // The two queries this thread has a part of: how far they see. Where they are in rows × heads (where there are parts, in
    // those of all units) is kept in shared memory.
    FG_SHARED u32 owners[QUERIES];
    u32 len[2], owner[2];
    FG_UNROLL
    for (int i = 0; i < 2; i++) {
        u32 query = warp * 16 + group + i * 8, row = query / count;
        owner[i] = row < unit.rows ? (unit.row + row) * heads + first_head + query % count : NOWHERE;
        owners[query] = parts && owner[i] != NOWHERE ? owner[i] + (unit.nth - unit.row) * heads : owner[i];
        len[i] = unit.position + row + 1;
    }
    u32 end = unit.position + unit.rows, all_len = unit.position + 1;  // all queries see what is before all_len …
    u32 begin = all_len > window ? all_len - window : 0;
    u32 all_start = end > window ? end - window : 0;  // … and from all_start on
    if (parts) {
        // Of all positions this block has those of one part, tiles of the cache that are whole.
        u64 part = (u64)blockIdx.z * run;
        if (part >= end || part + run <= begin) return;
        if (begin < part) begin = (u32)part;
        if (end - part > run) end = (u32)part + run;
    }
    u32 from = begin / S::TILE * S::TILE;
    FG_SHARED u32 places_of[2][S::TILE];  // of the next tiles
    if (threadIdx.x < 2 * S::TILE)
        places_of[threadIdx.x / S::TILE][threadIdx.x % S::TILE] = place_of(places, from + threadIdx.x, begin, end);
    __syncthreads();
    fetch<D>(stages, keys, values, places_of[0]);

    // Queries in the form that products take.
    u32 a[S::QUERIES_SHARED ? 1 : KS][4];
    f16 *queries = stages + 4 * S::SIDE + warp * 16 * S::STRIDE;
    FG_UNROLL
    for (int k = 0; k < KS; k++) {
        u32 parts[4];
        FG_UNROLL
        for (int i = 0; i < 4; i++) {
            float x = 0.0f, y = 0.0f;
            if (owner[i % 2] != NOWHERE) {
                float2 xy = *(const float2 *)(q + (u64)owner[i % 2] * D + k * 16 + i / 2 * 8 + pair);
                x = xy.x * scale;
                y = xy.y * scale;
            }
            parts[i] = to_f16x2(x, y);
            if constexpr (S::QUERIES_SHARED)
                *(u32 *)(queries + (group + i % 2 * 8) * S::STRIDE + k * 16 + i / 2 * 8 + pair) = parts[i];
            else a[k][i] = parts[i];
        }
    }
    if constexpr (S::QUERIES_SHARED) __syncwarp();

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

    for (u32 stage = 0; from < end; from += S::TILE, stage ^= 1) {
        u32 place_then = NOWHERE;  // two tiles from here
        if (from + S::TILE < end) {
            fetch<D>(stages + (stage ^ 1) * 2 * S::SIDE, keys, values, places_of[stage ^ 1]);
            if (threadIdx.x < S::TILE) place_then = place_of(places, from + 2 * S::TILE + threadIdx.x, begin, end);
            copy_async_wait<1>();
        } else {
            copy_async_wait<0>();
        }
        __syncthreads();
        const f16 *k_tile = stages + stage * 2 * S::SIDE, *v_tile = k_tile + S::SIDE;

        float score[NS][4];
        FG_UNROLL
        for (int n = 0; n < NS; n++) {
            FG_UNROLL
            for (int i = 0; i < 4; i++) score[n][i] = 0.0f;
        }
        FG_UNROLL
        for (int k = 0; k < KS; k++) {
            u32 mine[4];
            if constexpr (S::QUERIES_SHARED)
                load_matrices(mine, queries + (lane / 8 % 2 * 8 + lane % 8) * S::STRIDE + k * 16 + lane / 16 * 8);
            FG_UNROLL
            for (int n = 0; n < NS; n += 2) {
                u32 b[4];
                load_matrices(b, k_tile + n * 8 * S::STRIDE + k * 16 + key_row);
                if constexpr (S::QUERIES_SHARED) {
                    multiply_16x8x16_f16(score[n], mine, b[0], b[1]);
                    multiply_16x8x16_f16(score[n + 1], mine, b[2], b[3]);
                } else {
                    multiply_16x8x16_f16(score[n], a[k], b[0], b[1]);
                    multiply_16x8x16_f16(score[n + 1], a[k], b[2], b[3]);
                }
            }
        }

        if (cap > 0.0f) {
            FG_UNROLL
            for (int n = 0; n < NS; n++) {
                FG_UNROLL
                for (int i = 0; i < 4; i++) score[n][i] = cap * tanhf(score[n][i] / cap);
            }
        }
        if (from < all_start || from + S::TILE > all_len) {
            FG_UNROLL
            for (int n = 0; n < NS; n++) {
                FG_UNROLL
                for (int i = 0; i < 4; i++) {
                    u32 position = from + n * 8 + pair + i % 2;
                    // A window of u32's largest number is none.
                    if (position >= len[i / 2] || len[i / 2] - position > window) score[n][i] = minus_infinity();
                }
            }
        }
        FG_UNROLL
        for (int r = 0; r < 2; r++) {
            float top = most[r];
            FG_UNROLL
            for (int n = 0; n < NS; n++) top = fmaxf(top, fmaxf(score[n][2 * r], score[n][2 * r + 1]));
            top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
            top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
            // Where nothing was seen yet, every weight is 2^-∞.
            float shift = top == minus_infinity() ? 0.0f : top * LOG2E;
            float fix = fast_exp2(most[r] * LOG2E - shift);
            most[r] = top;
            float more = 0.0f;
            FG_UNROLL
            for (int n = 0; n < NS; n++) {
                FG_UNROLL
                for (int i = 0; i < 2; i++) {
                    float weight = fast_exp2(score[n][2 * r + i] * LOG2E - shift);
                    score[n][2 * r + i] = weight;
                    more += weight;
                }
            }
            total[r] = total[r] * fix + more;
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
                load_matrices_transposed(b, v_tile + n * 8 * S::STRIDE + d * 8 + value_row);
                multiply_16x8x16_f16(sum[d], weights, b[0], b[1]);
                multiply_16x8x16_f16(sum[d + 1], weights, b[2], b[3]);
            }
        }
        if (threadIdx.x < S::TILE) places_of[stage][threadIdx.x] = place_then;
        __syncthreads();  // what was used is written to next
    }

    FG_UNROLL
    for (int r = 0; r < 2; r++) {
        float all = total[r];
        all += __shfl_xor_sync(0xffffffffu, all, 1);
        all += __shfl_xor_sync(0xffffffffu, all, 2);
        u32 mine = owners[warp * 16 + group + r * 8];
        if (mine == NOWHERE) continue;
        float fix = 1.0f;
        if (parts) {
            float *part = parts + ((u64)mine * gridDim.z + blockIdx.z) * (D + 2);
            FG_UNROLL
            for (int d = 0; d < DS; d++)
                *(float2 *)(part + d * 8 + pair) = make_float2(sum[d][2 * r], sum[d][2 * r + 1]);
            if (pair == 0) *(float2 *)(part + D) = make_float2(most[r], all);
            continue;
        }
        if (sinks) {
            float sink = sinks[mine % heads], top = fmaxf(most[r], sink);
            fix = fast_exp2((most[r] - top) * LOG2E);
            all = all * fix + fast_exp2((sink - top) * LOG2E);
        }
        fix = all > 0.0f ? fix / all : 0.0f;
        FG_UNROLL
        for (int d = 0; d < DS; d++) {
            float x = sum[d][2 * r] * fix, y = sum[d][2 * r + 1] * fix;
            u64 to = (u64)mine * D + d * 8 + pair;
            if (is_bf16) *(u32 *)((bf16 *)out + to) = to_bf16x2(x, y);
            else *(float2 *)((float *)out + to) = make_float2(x, y);
        }
    }
}

// The parameters are those of attention.cu.
#define PREFILL(D, BLOCKS)                                                                                                         \
    FG_KERNEL_MIN(128, FG_FEWER_ON_BLACKWELL(BLOCKS), attention_prefill_##D,                                                                           \
                  (void *out, u32 is_bf16, float *parts, const float *q, const f16 *keys, const f16 *values, const u32 *step,   \
                   u32 units_at, u32 unit_count, u32 tile_rows, const u32 *chunks, const float *sinks, u32 heads,          \
                   u32 kv_heads, u32, u32, u32, u32, u32, u32 block_size, u32 window, float scale, float cap, u32 run)) {           \
        prefill<D>(out, is_bf16, parts, q, keys, values, step, units_at, unit_count, tile_rows, chunks, sinks, heads, kv_heads,   \
                   block_size, window, scale, cap, run);                                                                   \
    }
PREFILL(64, 3)
PREFILL(80, 3)
PREFILL(96, 2)
PREFILL(128, 3)
PREFILL(256, 2)
