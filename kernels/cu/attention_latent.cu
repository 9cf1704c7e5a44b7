// Softmax attention over keys of latent attention (DeepSeek-AI, "DeepSeek-V2", 2024, section 2.1.2), on tensor cores: one key
// of 576 elements at each position for all query heads, of which the first 512 are the value, in f16 or E4M3. In which order it adds up:
// attention.cuh.
//
// A block has M times 16 queries and meets the positions they see in tiles of 32, of which the next is on its way while one is
// used. Of a tile, each of four warps makes the scores of 8 positions, then all together their 128 elements of the values.
// Queries are scaled and rounded to f16, weights are rounded to f16, all sums are f32. E4M3 becomes f16 in shared memory, by the warp
// that asked for it.
#include "attention.cuh"

#define KEY 576
#define VALUE 512
#define TILE 32
#define STRIDE (KEY + 8)     // elements of a row in shared memory: no two of 8 rows share banks
#define SCORES (TILE + 4)    // floats of a query's scores in shared memory

#define MINE (TILE / 4)      // positions of a tile that a warp asks for

// Asks for the keys of positions from..from + TILE, zeros for those that are not in begin..end.
template <class E>
FG_DEVICE void fetch(f16 *to, const E *keys, const u32 *table, u32 block_size, u32 from, u32 begin, u32 end) {
    constexpr u32 PIECE = 16 / sizeof(E), PIECES = KEY / PIECE;
    if constexpr (sizeof(E) == 1) to += widened_from<PIECES, STRIDE>();
    u32 first = threadIdx.x / 32 * MINE, lane = threadIdx.x % 32;
    _Pragma("unroll 6")
    for (u32 i = 0; i < MINE * PIECES / 32; i++) {
        u32 at = i * 32 + lane, row = first + at / PIECES, piece = at % PIECES, position = from + row;
        bool live = position >= begin && position < end;
        u64 place = live ? (u64)table[position / block_size] * block_size + position % block_size : 0;
        copy_async_16_or_zero(to + row * STRIDE + piece * 8, keys + place * KEY + piece * PIECE, live);
    }
    copy_async_commit();
}

template <class E, int M>
FG_DEVICE void attend(void *out, u32 is_bf16, float *parts, const float *q, const E *keys, const u32 *step, u32 units_at,
                      u32 unit_count, u32 tile_rows, const u32 *chunks, const float *sinks, u32 heads, u32 block_size,
                      u32 window, float scale, float cap) {
    begin_after_others();
    constexpr int DS = VALUE / 4 / 8;
    FG_DYNAMIC_SHARED(shared);
    f16 *queries = (f16 *)shared, *stages = queries + M * 16 * STRIDE;
    float *scores = (float *)(stages + 2 * TILE * STRIDE);
    float4 *kept = (float4 *)(scores + M * 16 * SCORES) + threadIdx.x;  // only where there may be several spans
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = lane / 4, pair = lane % 4 * 2;

    Run unit = tile_of(step + units_at, unit_count, tile_rows, tile_rows ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
    u32 first_head = chunks[3 * blockIdx.y], count = chunks[3 * blockIdx.y + 1];
    if (unit.rows == 0) {
        // A row that does not exist.
        if (!parts && !tile_rows)
            for (u32 i = threadIdx.x; i < count * VALUE / 2; i += blockDim.x)
                put_two(out, ((u64)unit.row * heads + first_head) * VALUE + 2 * i, 0.0f, 0.0f, is_bf16);
        return;
    }
    auto [begin, end, span] = seen_by(unit, window, parts, blockIdx.z);
    if (begin == end) return;
    const u32 *table = step + unit.blocks;
    u32 from = begin / TILE * TILE;
    fetch(stages, keys, table, block_size, from, begin, end);

    for (u32 i = threadIdx.x; i < M * 16 * KEY / 2; i += blockDim.x) {
        u32 query = i / (KEY / 2), e = i % (KEY / 2) * 2, row = query / count;
        float2 x = make_float2(0.0f, 0.0f);
        if (row < unit.rows)
            x = *(const float2 *)(q + ((u64)(unit.row + row) * heads + first_head + query % count) * KEY + e);
        *(u32 *)(queries + query * STRIDE + e) = to_f16x2(x.x * scale, x.y * scale);
    }

    // The queries this thread has a part of: what they see, greatest score and total weight so far.
    u32 start[M][2], len[M][2];
    float most[M][2], total[M][2], sum[M][DS][4];
    FG_UNROLL
    for (int m = 0; m < M; m++) {
        FG_UNROLL
        for (int r = 0; r < 2; r++) {
            u32 row = (m * 16 + r * 8 + group) / count;
            len[m][r] = unit.position + row + 1;
            start[m][r] = first_seen(unit.position + row, window);
            most[m][r] = minus_infinity();
            total[m][r] = 0.0f;
        }
        FG_UNROLL
        for (int d = 0; d < DS; d++) {
            FG_UNROLL
            for (int i = 0; i < 4; i++) sum[m][d][i] = 0.0f;
        }
    }
    // Rows of matrices that this lane gives the addresses of.
    u32 query_row = (lane / 8 % 2 * 8 + lane % 8) * STRIDE + lane / 16 * 8;
    u32 key_row = (warp * 8 + lane % 8) * STRIDE + lane / 8 * 8;
    u32 value_row = (lane / 8 % 2 * 8 + lane % 8) * STRIDE + warp * (VALUE / 4) + lane / 16 * 8;

    bool is_first = true;
    for (u32 stage = 0;; stage ^= 1) {
        f16 *tile = stages + stage * TILE * STRIDE;
        copy_async_wait<0>();
        if constexpr (sizeof(E) == 1) {
            __syncwarp();
            widen_rows<MINE, KEY / 16, STRIDE>(tile + threadIdx.x / 32 * MINE * STRIDE, false);
        }
        __syncthreads();  // this tile is there, and no one uses the other any more
        f16 *other = stages + (stage ^ 1) * TILE * STRIDE;
        if (from + TILE < end) fetch(other, keys, table, block_size, from + TILE, begin, end);

        // Two sums each, so that fewer products wait for one before.
        float score[M][2][4];
        FG_UNROLL
        for (int m = 0; m < M; m++) {
            FG_UNROLL
            for (int i = 0; i < 8; i++) score[m][i / 4][i % 4] = 0.0f;
        }
        _Pragma("unroll 3")
        for (int k = 0; k < KEY; k += 32) {
            u32 b[4];
            load_matrices(b, tile + key_row + k);
            FG_UNROLL
            for (int m = 0; m < M; m++) {
                u32 a[4];
                load_matrices(a, queries + m * 16 * STRIDE + query_row + k);
                multiply_16x8x16_f16(score[m][0], a, b[0], b[1]);
                load_matrices(a, queries + m * 16 * STRIDE + query_row + k + 16);
                multiply_16x8x16_f16(score[m][1], a, b[2], b[3]);
            }
        }
        FG_UNROLL
        for (int m = 0; m < M; m++) {
            FG_UNROLL
            for (int r = 0; r < 2; r++) {
                float x = score[m][0][2 * r] + score[m][1][2 * r], y = score[m][0][2 * r + 1] + score[m][1][2 * r + 1];
                if (cap > 0.0f) {
                    x = cap * tanhf(x / cap);
                    y = cap * tanhf(y / cap);
                }
                *(float2 *)(scores + (m * 16 + r * 8 + group) * SCORES + warp * 8 + pair) = make_float2(x, y);
            }
        }
        __syncthreads();

        // Every warp makes all weights.
        u32 weights[M][2][4];
        FG_UNROLL
        for (int m = 0; m < M; m++) {
            float x[4][4];
            FG_UNROLL
            for (int r = 0; r < 2; r++) {
                FG_UNROLL
                for (int n = 0; n < 4; n++) {
                    float2 two = *(const float2 *)(scores + (m * 16 + r * 8 + group) * SCORES + n * 8 + pair);
                    u32 position = from + n * 8 + pair;
                    x[n][2 * r] = position >= start[m][r] && position < len[m][r] ? two.x : minus_infinity();
                    x[n][2 * r + 1] = position + 1 >= start[m][r] && position + 1 < len[m][r] ? two.y : minus_infinity();
                }
                float fix = soften<4>(x, r, most[m][r], total[m][r]);
                FG_UNROLL
                for (int n = 0; n < 4; n++) weights[m][n / 2][n % 2 * 2 + r] = to_f16x2(x[n][2 * r], x[n][2 * r + 1]);
                if (__ballot_sync(0xffffffffu, fix != 1.0f)) {
                    FG_UNROLL
                    for (int d = 0; d < DS; d++) {
                        sum[m][d][2 * r] *= fix;
                        sum[m][d][2 * r + 1] *= fix;
                    }
                }
            }
        }
        FG_UNROLL
        for (int n = 0; n < 2; n++) {
            FG_UNROLL
            for (int d = 0; d < DS; d += 2) {
                u32 b[4];
                load_matrices_transposed(b, tile + n * 16 * STRIDE + value_row + d * 8);
                FG_UNROLL
                for (int m = 0; m < M; m++) {
                    multiply_16x8x16_f16(sum[m][d], weights[m][n], b[0], b[1]);
                    multiply_16x8x16_f16(sum[m][d + 1], weights[m][n], b[2], b[3]);
                }
            }
        }

        from += TILE;
        if (from < end && (from & (span - 1)) != 0) continue;
        FG_UNROLL
        for (int m = 0; m < M; m++) {
            float4 *mine = kept + m * (DS + 1) * 128;
            sum_of_four(total[m]);
            if (!parts) merge_onto<DS>(mine, is_first, sum[m], most[m], total[m]);
            if (from < end) keep<DS>(mine, sum[m], most[m], total[m]);
        }
        if (from >= end) break;
        is_first = false;
    }

    FG_UNROLL
    for (int m = 0; m < M; m++) {
        FG_UNROLL
        for (int r = 0; r < 2; r++) {
            u32 query = m * 16 + r * 8 + group, row = query / count, head = first_head + query % count;
            if (row >= unit.rows) continue;
            u64 slot = ((u64)blockIdx.x * heads + head) * gridDim.z + blockIdx.z;
            u64 to = parts ? slot * (VALUE + 2) : ((u64)(unit.row + row) * heads + head) * VALUE;
            float share = 1.0f;
            if (!parts) share = share_of(most[m][r], total[m][r], sinks ? sinks + head : nullptr);
            else if (warp == 0 && pair == 0) *(float2 *)(parts + to + VALUE) = make_float2(most[m][r], total[m][r]);
            FG_UNROLL
            for (int d = 0; d < DS; d++) {
                u64 at = to + warp * (VALUE / 4) + d * 8 + pair;
                float x = sum[m][d][2 * r] * share, y = sum[m][d][2 * r + 1] * share;
                put_two(parts ? parts : out, at, x, y, parts ? 0 : is_bf16);
            }
        }
    }
}

// The parameters are those of attention.cu.
#define LATENT(NAME, E, M)                                                                                                 \
    FG_KERNEL_MIN(128, 2, NAME,                                                                                            \
                  (void *out, u32 is_bf16, float *parts, const float *q, const E *keys, const E *, const u32 *step,        \
                   u32 units_at, u32 unit_count, u32 tile_rows, const u32 *chunks, const float *sinks, u32 heads, u32,     \
                   u32, u32, u32, u32, u32, u32 block_size, u32 window, float scale, float cap)) {                         \
        attend<E, M>(out, is_bf16, parts, q, keys, step, units_at, unit_count, tile_rows, chunks, sinks, heads,            \
                     block_size, window, scale, cap);                                                                      \
    }
LATENT(attention_latent_1, f16, 1)
LATENT(attention_latent_2, f16, 2)
LATENT(attention_latent_f8_1, f8, 1)
LATENT(attention_latent_f8_2, f8, 2)
