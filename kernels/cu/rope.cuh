// Rotary position embedding: what the kernels that rotate queries and keys, and write keys and values into the cache, have in common.
#pragma once
#include "foggara.cuh"

// The position of a row that does not exist. (`step` is what step_rows.rs uploads: for each row (position, where its blocks begin),
// and the blocks.)
#define NO_ROW 0xffffffffu

// A pair, rotated. Said how it is rounded: several kernels do this, and a row's bits are not to depend on which.
FG_DEVICE float turned_first(float a, float b, float cosine, float sine) {
    return __fadd_rn(__fmul_rn(a, cosine), -__fmul_rn(b, sine));
}
FG_DEVICE float turned_second(float a, float b, float cosine, float sine) {
    return __fadd_rn(__fmul_rn(a, sine), __fmul_rn(b, cosine));
}

// Element i of a rotated head of which `x` has the elements before; the first 2 · pairs are rotated.
FG_DEVICE float rotated(const float *x, u32 i, const float *turns, u32 pairs, bool half) {
    if (i >= 2 * pairs) return x[i];
    u32 pair = half ? (i < pairs ? i : i - pairs) : i / 2;
    bool first = half ? i < pairs : i % 2 == 0;
    float a = x[half ? pair : 2 * pair], b = x[half ? pair + pairs : 2 * pair + 1];
    float cosine = turns[2 * pair], sine = turns[2 * pair + 1];
    return first ? turned_first(a, b, cosine, sine) : turned_second(a, b, cosine, sine);
}

// Which of a layer's positions, over all blocks, has this row's key of head 0; that of the next head is block_size further.
FG_DEVICE u64 place(const u32 *step, u32 row, u32 position, u32 block_size, u32 kv_heads) {
    u32 block = step[step[2 * row + 1] + position / block_size];
    return (u64)block * kv_heads * block_size + position % block_size;
}

// So many positions, of all rows together, are fetched for attention.
#define FETCHED 2048

// Has the second level of the cache fetch what attention will meet of a row of `rows`, while it waits for queries: by `threads`
// threads, of which this is the nth. Of much nothing is fetched: it would not be there any more when it is met.
template <class E>
FG_DEVICE void fetch_cached(const E *keys, const E *values, const u32 *step, u32 row, u32 rows, u32 position, u32 kv_heads,
                            u32 stride, u32 block_size, u32 nth, u32 threads) {
    if (position >= FETCHED / rows) return;
    const u32 *blocks = step + step[2 * row + 1];
    u32 bytes = kv_heads * block_size * stride * sizeof(E), lines = (bytes + 127) / 128;
    u32 count = (position / block_size + 1) * lines;
    for (u32 i = nth; i < count; i += threads) {
        u64 at = (u64)blocks[i / lines] * bytes + i % lines * 128;
        fetch_second_level((const u8 *)keys + at);
        fetch_second_level((const u8 *)values + at);
    }
}
