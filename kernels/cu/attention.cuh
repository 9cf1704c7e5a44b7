// What the kernels of attention have in common, above all the order in which they add up: a row has the same bits whichever of
// those for its shape meets it, and with whichever other rows.
//
// Positions are cut into spans at multiples of a length that depends on how much the row sees (span_of), counted from position 0.
// A span is met from nothing, in tiles at multiples of the tile's length, with a running maximum; which positions and elements are
// added to each other when, the kernels of a shape agree upon. Then spans are merged one after the other (merged), whether by the
// block that met them or by attention_combine, and last comes the sink (share_of). Positions and spans that a row does not see leave
// everything as it was. Products and sums that a compiler could contract are written so that it cannot.
#pragma once
#include "foggara.cuh"

#define SPAN 256  // positions of a span, or twice that, and so on, so that a row sees at most
#define PARTS 32  // spans (attention.rs and step_rows.rs count them too)
#define LOG2E 1.4426950408889634f
#define NOWHERE 0xffffffffu

FG_DEVICE float minus_infinity() { return bits_to_float(0xff800000u); }

#ifdef FOGGARA_HOST
// Nothing is contracted there.
FG_DEVICE float product(float a, float b) { return a * b; }
FG_DEVICE float multiply_add(float a, float b, float c) { return a * b + c; }
#else
FG_DEVICE float product(float a, float b) { return __fmul_rn(a, b); }
FG_DEVICE float multiply_add(float a, float b, float c) { return __fmaf_rn(a, b, c); }
#endif

// Positions of a span, where `seen` are seen: those may begin within a span. Rows of a unit agree (step_rows.rs cuts runs where it
// changes).
FG_DEVICE u32 span_of(u32 seen) {
    u32 span = SPAN;
    while ((seen + span - 1) / span > PARTS - 1) span *= 2;
    return span;
}

// Of a row that sees the positions up to `position`, as far as `window` goes.
FG_DEVICE u32 first_seen(u32 position, u32 window) { return position + 1 > window ? position + 1 - window : 0; }

// Queries that a block has in common: rows of one sequence at positions that follow each other, the first of which is the nth of all
// units.
struct Run {
    u32 row, rows, position, blocks, nth;
};

// The tile'th piece of at most `tile_rows` rows of all units; with `tile_rows` 0, units are met as they are.
FG_DEVICE Run tile_of(const u32 *units, u32 count, u32 tile_rows, u32 tile) {
    if (tile_rows == 0) {
        units += 4 * tile;
        return {units[0], units[1], units[2], units[3], tile};
    }
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

// Positions begin..end, and the length of their spans.
struct Seen {
    u32 begin, end, span;
};

// What the rows of a unit see together: all of it, or of that the part'th span.
FG_DEVICE Seen seen_by(const Run &unit, u32 window, bool apart, u32 part) {
    u32 begin = first_seen(unit.position, window), end = unit.position + unit.rows;
    u32 span = span_of(unit.position + 1 - begin);
    if (!apart) return {begin, end, span};
    u64 from = ((u64)begin / span + part) * span;
    if (from >= end) return {end, end, span};
    return {begin > from ? begin : (u32)from, end - from > span ? (u32)from + span : end, span};
}

// Where positions of a head are in the cache.
struct Places {
    const u32 *table;
    u32 kv_heads, kv_head, block_size, shift;
    bool is_power;
};

FG_DEVICE Places places_in(const u32 *table, u32 kv_heads, u32 kv_head, u32 block_size) {
    Places p = {table, kv_heads, kv_head, block_size, 0, (block_size & (block_size - 1)) == 0};
    while (p.is_power && (1u << p.shift) < block_size) p.shift++;
    return p;
}

// Of positions that are not in begin..end: NOWHERE.
FG_DEVICE u32 place_of(const Places &p, u32 position, u32 begin, u32 end) {
    if (position < begin || position >= end) return NOWHERE;
    u32 nth = p.is_power ? position >> p.shift : position / p.block_size;
    return (p.table[nth] * p.kv_heads + p.kv_head) * p.block_size + (position - nth * p.block_size);
}

FG_DEVICE void put(void *out, u64 i, float x, u32 is_bf16) {
    if (is_bf16) store((bf16 *)out + i, x);
    else store((float *)out + i, x);
}
FG_DEVICE void put_two(void *out, u64 i, float x, float y, u32 is_bf16) {
    if (is_bf16) *(u32 *)((bf16 *)out + i) = to_bf16x2(x, y);
    else *(float2 *)((float *)out + i) = make_float2(x, y);
}

// e^(score - top): exactly 1 for the greatest, 0 for what is not seen.
FG_DEVICE float weight_of(float score, float top) {
    return score == minus_infinity() ? 0.0f : fast_exp2(product(score - top, LOG2E));
}

// What a sum over spans, and that of the next span, have to be multiplied by.
struct Merge {
    float top, before, more;
};
FG_DEVICE Merge merge_of(float top, float most) {
    float greatest = fmaxf(top, most);
    return {greatest, weight_of(top, greatest), weight_of(most, greatest)};
}
FG_DEVICE float merged(float x, float before, float next, float more) {
    return multiply_add(x, before, product(next, more));
}

// What a weighted sum is to be multiplied by at last: `top` and `all` are those of all spans.
FG_DEVICE float share_of(float top, float all, const float *sink) {
    float share = 1.0f;
    if (sink) {
        float greatest = fmaxf(top, *sink);
        share = weight_of(top, greatest);
        all = multiply_add(all, share, weight_of(*sink, greatest));
    }
    return all > 0.0f ? share / all : 0.0f;
}

// On tensor cores: a thread has of two queries (r) columns 8·n + pair and 8·n + pair + 1 of a tile's scores, and of the sums.

// Which element of a query is at place pair of word i of a product of 16 from k · 16 on. Over E4M3 they stand in another order, in
// which a lane has four that follow each other: so its keys come out of shared memory. The sixteen that are added at once are the same.
template <class E>
FG_DEVICE u32 query_at(u32 k, u32 i, u32 pair) {
    return sizeof(E) == 1 ? k * 16 + 2 * pair + i / 2 * 2 : k * 16 + i / 2 * 8 + pair;
}

// Rows of E4M3 become f16 where they are, in shared memory, by the warp that asked for them. They have PIECES times 16 bytes, and end
// where their f16 end: an element is overwritten by none that stands after it. With `as_keys`, each 16 come in the order of query_at.
template <int PIECES, int STRIDE>
FG_DEVICE constexpr u32 widened_from() {
    static_assert(STRIDE >= PIECES * 16, "f16 of a row");
    return PIECES * 8;
}
template <int ROWS, int PIECES, int STRIDE>
FG_DEVICE void widen_rows(f16 *rows, bool as_keys) {
    // As many whole rows at once as can be; of longer ones, 32 pieces and then those that are left.
    u32 lane = threadIdx.x % 32;
    FG_UNROLL
    for (int from = 0; from < PIECES; from += 32) {
        int wide = PIECES - from < 32 ? PIECES - from : 32, at_once = 32 / wide;
        FG_UNROLL
        for (int first = 0; first < ROWS; first += at_once) {
            u32 row = first + lane / wide, piece = from + lane % wide;
            bool mine = lane / wide < (u32)at_once && row < ROWS;
            f16 *of = rows + row * STRIDE;
            uint4 bytes = {0, 0, 0, 0};
            if (mine) bytes = *(const uint4 *)(of + PIECES * 8 + piece * 8);
            __syncwarp();
            if (mine) {
                uint4 low, high;
                if (as_keys) {
                    f8_to_f16(bytes.x, low.x, high.x);
                    f8_to_f16(bytes.y, low.y, high.y);
                    f8_to_f16(bytes.z, low.z, high.z);
                    f8_to_f16(bytes.w, low.w, high.w);
                } else {
                    f8_to_f16(bytes.x, low.x, low.y);
                    f8_to_f16(bytes.y, low.z, low.w);
                    f8_to_f16(bytes.z, high.x, high.y);
                    f8_to_f16(bytes.w, high.z, high.w);
                }
                *(uint4 *)(of + piece * 16) = low;
                *(uint4 *)(of + piece * 16 + 8) = high;
            }
        }
    }
}

// Scores of query r become weights; what its sum so far has to be multiplied by is the result.
template <int NS>
FG_DEVICE float soften(float (&score)[NS][4], int r, float &most, float &total) {
    float top = most;
    FG_UNROLL
    for (int n = 0; n < NS; n++) top = fmaxf(top, fmaxf(score[n][2 * r], score[n][2 * r + 1]));
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
    // Where nothing was seen yet, every weight is 2^-∞.
    float shift = top == minus_infinity() ? 0.0f : -product(top, LOG2E);
    float fix = weight_of(most, top), more = 0.0f;
    most = top;
    FG_UNROLL
    for (int n = 0; n < NS; n++) {
        FG_UNROLL
        for (int i = 0; i < 2; i++) {
            float weight = fast_exp2(multiply_add(score[n][2 * r + i], LOG2E, shift));
            score[n][2 * r + i] = weight;
            more += weight;
        }
    }
    total = multiply_add(total, fix, more);
    return fix;
}

// Of the four threads that have a query, at the end of a span.
FG_DEVICE void sum_of_four(float (&total)[2]) {
    FG_UNROLL
    for (int r = 0; r < 2; r++) {
        total[r] += __shfl_xor_sync(0xffffffffu, total[r], 1);
        total[r] += __shfl_xor_sync(0xffffffffu, total[r], 2);
    }
}

// Each of THREADS keeps a sum over spans in shared memory, a piece of 16 bytes at every so many'th place from its own on: one for each of DS
// times 8 columns, and one more (attention_forms.rs counts them, too).

// Columns of query r of two times 8, added to those of the spans before.
FG_DEVICE void merge_two(float4 x, const Merge &m, bool seen, int r, float (&one)[4], float (&two)[4]) {
    one[2 * r] = seen ? merged(x.x, m.before, one[2 * r], m.more) : x.x;
    one[2 * r + 1] = seen ? merged(x.y, m.before, one[2 * r + 1], m.more) : x.y;
    two[2 * r] = seen ? merged(x.z, m.before, two[2 * r], m.more) : x.z;
    two[2 * r + 1] = seen ? merged(x.w, m.before, two[2 * r + 1], m.more) : x.w;
}

// The sums of a span, added to those of the spans before, which are kept unless this is the first. `total` is that of four threads,
// and so it is thereafter.
template <int DS, int THREADS = 128>
FG_DEVICE void merge_onto(const float4 *kept, bool first, float (&sum)[DS][4], float (&most)[2], float (&total)[2]) {
    static_assert(DS % 2 == 0, "two by two");
    float4 about = make_float4(minus_infinity(), 0.0f, minus_infinity(), 0.0f);
    if (!first) about = kept[DS * THREADS];
    FG_UNROLL
    for (int r = 0; r < 2; r++) {
        bool seen = most[r] != minus_infinity();
        float all = r ? about.w : about.y;
        Merge m = merge_of(r ? about.z : about.x, most[r]);
        most[r] = m.top;
        total[r] = seen ? merged(all, m.before, total[r], m.more) : all;
        // Two loops: with one, all that is kept would be loaded before any of it is used.
        if (first) {
            FG_UNROLL
            for (int d = 0; d < DS; d += 2) merge_two(make_float4(0.0f, 0.0f, 0.0f, 0.0f), m, seen, r, sum[d], sum[d + 1]);
        } else {
            FG_UNROLL
            for (int d = 0; d < DS; d += 2)
                merge_two(kept[(r * DS / 2 + d / 2) * THREADS], m, seen, r, sum[d], sum[d + 1]);
        }
    }
}

// Keeps those, and begins anew.
template <int DS, int THREADS = 128>
FG_DEVICE void keep(float4 *kept, float (&sum)[DS][4], float (&most)[2], float (&total)[2]) {
    kept[DS * THREADS] = make_float4(most[0], total[0], most[1], total[1]);
    FG_UNROLL
    for (int r = 0; r < 2; r++) {
        most[r] = minus_infinity();
        total[r] = 0.0f;
        FG_UNROLL
        for (int d = 0; d < DS; d += 2) {
            kept[(r * DS / 2 + d / 2) * THREADS] =
                make_float4(sum[d][2 * r], sum[d][2 * r + 1], sum[d + 1][2 * r], sum[d + 1][2 * r + 1]);
            sum[d][2 * r] = sum[d][2 * r + 1] = sum[d + 1][2 * r] = sum[d + 1][2 * r + 1] = 0.0f;
        }
    }
}
