// Softmax attention over keys of latent attention (DeepSeek-AI, "DeepSeek-V2", 2024, section 2.1.2), on tensor cores: one key
// of 576 elements at each position for all query heads, of which the first 512 are the value, in half precision. (See
// attention.cu, whose parts and combination of parts these are, too.)
//
// A block has M times 16 queries and meets the positions they see in tiles of 32, of which the next is on its way while one is
// used. Of a tile, each of four warps makes the scores of 8 positions, then all together their 128 elements of the values.
// Queries are scaled and rounded to f16, weights are rounded to f16, all sums are f32.
#include "foggara.cuh"

#define RUN 256
#define PARTS 32
#define KEY 576
#define VALUE 512
#define TILE 32
#define STRIDE (KEY + 8)     // elements of a row in shared memory: no two of 8 rows share banks
#define SCORES (TILE + 4)    // floats of a query's scores in shared memory

FG_DEVICE float minus_infinity() { return bits_to_float(0xff800000u); }

FG_DEVICE u32 run_of(u32 seen) {
    u32 run = RUN;
    while ((seen + run - 1) / run > PARTS) run *= 2;
    return run;
}

// Rows of a sequence at positions that follow each other.
struct Run {
    u32 row, rows, position, blocks;
};

// The tile'th piece of at most `tile_rows` rows of all units; with `tile_rows` 0, units are met as they are.
FG_DEVICE Run tile_of(const u32 *units, u32 count, u32 tile_rows, u32 tile) {
    if (tile_rows == 0) {
        units += 4 * tile;
        return {units[0], units[1], units[2], units[3]};
    }
    for (u32 i = 0; i < count; i++, units += 4) {
        u32 rows = units[1], tiles = (rows + tile_rows - 1) / tile_rows;
        if (tile < tiles) {
            u32 skipped = tile * tile_rows;
            rows -= skipped;
            return {units[0] + skipped, rows < tile_rows ? rows : tile_rows, units[2] + skipped, units[3]};
        }
        tile -= tiles;
    }
    return {0, 0, 0, 0};
}

FG_DEVICE void put_two(void *out, u64 at, float x, float y, u32 is_bf16) {
    if (is_bf16) *(u32 *)((bf16 *)out + at) = to_bf16x2(x, y);
    else *(float2 *)((float *)out + at) = make_float2(x, y);
}

// Asks for the keys of positions from..from + TILE, zeros for those that are not before `end`.
FG_DEVICE void fetch(f16 *to, const f16 *keys, const u32 *table, u32 block_size, u32 from, u32 end) {
    constexpr u32 PIECES = KEY / 8;
    _Pragma("unroll 6")
    for (u32 i = 0; i < TILE * PIECES / 128; i++) {
        u32 at = i * 128 + threadIdx.x, row = at / PIECES, piece = at % PIECES * 8, position = from + row;
        bool live = position < end;
        u64 place = live ? (u64)table[position / block_size] * block_size + position % block_size : 0;
        copy_async_16_or_zero(to + row * STRIDE + piece, keys + place * KEY + piece, live);
    }
    copy_async_commit();
}

template <int M>
FG_DEVICE void attend(void *out, u32 is_bf16, float *parts, const float *q, const f16 *keys, const u32 *step, u32 units_at,
                      u32 unit_count, u32 tile_rows, const u32 *chunks, const float *sinks, u32 heads, u32 block_size,
                      u32 window, float scale, float cap) {
    begin_after_others();
    constexpr float LOG2E = 1.4426950408889634f;
    constexpr int DS = VALUE / 4 / 8;
    FG_DYNAMIC_SHARED(shared);
    f16 *queries = (f16 *)shared, *stages = queries + M * 16 * STRIDE;
    float *scores = (float *)(stages + 2 * TILE * STRIDE);
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
    u32 end = unit.position + unit.rows;
    u32 begin = unit.position + 1 > window ? unit.position + 1 - window : 0;
    if (parts) {
        u32 run = run_of(end - begin);
        u64 from = (u64)begin + (u64)blockIdx.z * run;
        if (from >= end) return;
        begin = (u32)from;
        if (end - begin > run) end = begin + run;
    }
    const u32 *table = step + unit.blocks;
    fetch(stages, keys, table, block_size, begin, end);

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
            start[m][r] = len[m][r] > window ? len[m][r] - window : 0;
            if (len[m][r] > end) len[m][r] = end;
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

    for (u32 from = begin, stage = 0; from < end; from += TILE, stage ^= 1) {
        copy_async_wait<0>();
        __syncthreads();  // this tile is there, and no one uses the other any more
        const f16 *tile = stages + stage * TILE * STRIDE;
        if (from + TILE < end) fetch(stages + (stage ^ 1) * TILE * STRIDE, keys, table, block_size, from + TILE, end);

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
            FG_UNROLL
            for (int r = 0; r < 2; r++) {
                float x[8], top = most[m][r];
                FG_UNROLL
                for (int i = 0; i < 4; i++) {
                    float2 two = *(const float2 *)(scores + (m * 16 + r * 8 + group) * SCORES + i * 8 + pair);
                    u32 position = from + i * 8 + pair;
                    x[2 * i] = position >= start[m][r] && position < len[m][r] ? two.x : minus_infinity();
                    x[2 * i + 1] = position + 1 >= start[m][r] && position + 1 < len[m][r] ? two.y : minus_infinity();
                    top = fmaxf(top, fmaxf(x[2 * i], x[2 * i + 1]));
                }
                top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
                top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
                // Where nothing was seen yet, every weight is 2^-∞.
                float shift = top == minus_infinity() ? 0.0f : top * LOG2E;
                float fix = fast_exp2(most[m][r] * LOG2E - shift), more = 0.0f;
                most[m][r] = top;
                FG_UNROLL
                for (int i = 0; i < 8; i++) {
                    x[i] = fast_exp2(x[i] * LOG2E - shift);
                    more += x[i];
                }
                total[m][r] = total[m][r] * fix + more;
                FG_UNROLL
                for (int i = 0; i < 4; i++) weights[m][i / 2][i % 2 * 2 + r] = to_f16x2(x[2 * i], x[2 * i + 1]);
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
    }

    FG_UNROLL
    for (int m = 0; m < M; m++) {
        FG_UNROLL
        for (int r = 0; r < 2; r++) {
            float all = total[m][r], top = most[m][r], fix = 1.0f;
            all += __shfl_xor_sync(0xffffffffu, all, 1);
            all += __shfl_xor_sync(0xffffffffu, all, 2);
            u32 query = m * 16 + r * 8 + group, row = query / count, head = first_head + query % count;
            if (row >= unit.rows) continue;
            u64 slot = ((u64)blockIdx.x * heads + head) * gridDim.z + blockIdx.z;
            u64 to = parts ? slot * (VALUE + 2) : ((u64)(unit.row + row) * heads + head) * VALUE;
            if (parts) {
                if (warp == 0 && pair == 0) *(float2 *)(parts + to + VALUE) = make_float2(top, all);
            } else {
                if (sinks) {
                    float sink = sinks[head], greater = fmaxf(top, sink);
                    fix = fast_exp2((top - greater) * LOG2E);
                    all = all * fix + fast_exp2((sink - greater) * LOG2E);
                }
                fix = all > 0.0f ? fix / all : 0.0f;
            }
            FG_UNROLL
            for (int d = 0; d < DS; d++) {
                u64 at = to + warp * (VALUE / 4) + d * 8 + pair;
                float x = sum[m][d][2 * r] * fix, y = sum[m][d][2 * r + 1] * fix;
                put_two(parts ? parts : out, at, x, y, parts ? 0 : is_bf16);
            }
        }
    }
}

// The parameters are those of attention.cu.
#define LATENT(M)                                                                                                          \
    FG_KERNEL_MIN(128, 2, attention_latent_##M,                                                                            \
                  (void *out, u32 is_bf16, float *parts, const float *q, const f16 *keys, const f16 *, const u32 *step,    \
                   u32 units_at, u32 unit_count, u32 tile_rows, const u32 *chunks, const float *sinks, u32 heads, u32,     \
                   u32, u32, u32, u32, u32, u32 block_size, u32 window, float scale, float cap, u32)) {                         \
        attend<M>(out, is_bf16, parts, q, keys, step, units_at, unit_count, tile_rows, chunks, sinks, heads, block_size,   \
                  window, scale, cap);                                                                                     \
    }
LATENT(1)
LATENT(2)
