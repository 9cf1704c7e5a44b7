// How rows of logits are read, and their order: what finding the best of them (sample.cu) and drawing (sample_draw.cu) have in common.
//
// A logit and its place become one integer that is the greater the better: by the logit, then by the lower place. So the best of
// any parts is the best of the whole, in whichever order they are compared.
#pragma once
#include "foggara.cuh"

#define CHUNK 2048u  // logits of a block
#define INFINITE bits_to_float(0x7f800000u)

// What is not a number becomes `nan`; -∞ is 0x007fffff, and 0 and -0 are the same. Never 0.
FG_DEVICE u64 key_of(float x, u32 nan, u32 place) {
    u32 bits = x == 0.0f ? 0 : float_to_bits(x);
    u32 high = x != x ? nan : bits >> 31 ? ~bits : bits | 1u << 31;
    return (u64)high << 32 | (u32)~place;
}
FG_DEVICE u32 place_of(u64 key) { return ~(u32)key; }

// Calls `take(logit, place)` for this block's chunk of a row. Each of 256 threads has the same places wherever the row lies: fours,
// loaded at once where rows begin so.
template <class Take>
FG_DEVICE void each_of_chunk(const float *row, u32 vocab, Take take) {
    u32 first = blockIdx.x * CHUNK, last = min(first + CHUNK, vocab);
    bool whole = (u64)row % 16 == 0;
    FG_UNROLL
    for (u32 i = 0; i < CHUNK; i += 4 * 256) {
        u32 at = first + i + 4 * threadIdx.x;
        if (whole && at + 4 <= last) {
            float4 x = *(const float4 *)(row + at);
            take(x.x, at);
            take(x.y, at + 1);
            take(x.z, at + 2);
            take(x.w, at + 3);
        } else {
            for (u32 j = at; j < min(at + 4, last); j++) take(row[j], j);
        }
    }
}
