// Weights in blocks of 32 with a scale in f16 each, GGUF's Q8_0, Q4_0 and Q4_1, as a device holds them (kernels/src/cuda/blocks.rs): a
// row is its codes and then its scales, each a multiple of 16 bytes. Codes are numbers from 0 on: 128, or 8, is zero; of Q4_1 a scale
// is two numbers, of which the second is what 0 stands for. Codes of 8 bits follow each other; of 4, byte i of the 16 of a block has
// element i in its low half, and 16 + i in its high one.
//
// A weight is its scale times its number, or that and the second, rounded to bf16: what the host makes of it where blocks are held in
// bf16. The product is exact in f32 (11 and 8 bits): of Q8_0 and Q4_0 it is rounded once, of Q4_1 the sum is to f32 before.
#pragma once
#include "foggara.cuh"

struct q8_0 { u8 code; };
struct q4_0 { u8 codes; };
struct q4_1 { u8 codes; };

template <class W>
constexpr u32 BITS = 8 * sizeof(W);
template <>
constexpr u32 BITS<q4_0> = 4;
template <>
constexpr u32 BITS<q4_1> = 4;
// Bytes of a block's scale.
template <class W>
constexpr u32 SCALE_BYTES = 0;
template <>
constexpr u32 SCALE_BYTES<q8_0> = 2;
template <>
constexpr u32 SCALE_BYTES<q4_0> = 2;
template <>
constexpr u32 SCALE_BYTES<q4_1> = 4;
template <class W>
constexpr bool BLOCKS = SCALE_BYTES<W> > 0;

// Bytes of a row of k weights that come before its scales, and of all of it.
template <class W>
FG_DEVICE u32 code_bytes(u32 k) {
    return (k * BITS<W> / 8 + 15) / 16 * 16;
}
template <class W>
FG_DEVICE u32 row_bytes(u32 k) {
    return code_bytes<W>(k) + (k / 32 * SCALE_BYTES<W> + 15) / 16 * 16;
}

// Codes are put into the bits of 32768 that are worth 1 and up. A fused multiply-add takes that, and what is zero, away again without
// rounding: both have few enough bits. (Of Q4_1 a subtraction does, since the sum with its second number must be rounded.)
template <class W>
struct BlockScale {
    float by, add;
};
FG_DEVICE u32 scale_bits(const u8 *scale, u32 bytes) { return bytes == 2 ? *(const u16 *)scale : *(const u32 *)scale; }
template <class W>
FG_DEVICE BlockScale<W> block_scale(u32 bits) {
    constexpr float ZERO = 32768.0f + (BITS<W> == 8 ? 128.0f : 8.0f);
    float by = to_float(f16{(u16)bits});
    if constexpr (SCALE_BYTES<W> == 4) return {by, to_float(f16{(u16)(bits >> 16)})};
    else return {by, -(by * ZERO)};
}
template <class W>
FG_DEVICE float block_value(const BlockScale<W> &scale, u32 placed) {
    float code = bits_to_float(placed);
    if constexpr (SCALE_BYTES<W> == 4) code -= 32768.0f;
    return fmaf(scale.by, code, scale.add);
}
// Of codes that are bytes PART and PART + 1 of `four`.
template <int PART, class W>
FG_DEVICE u32 block_pair(u32 four, const BlockScale<W> &scale) {
    return to_bf16x2(block_value(scale, place_byte<PART>(four)), block_value(scale, place_byte<PART + 1>(four)));
}
// The codes of four elements as bytes, of a word that has eight: those of the first half of a block, or of the second.
FG_DEVICE u32 four_codes(u32 eight, u32 half) { return eight >> 4 * half & 0x0f0f0f0f; }

// Weight i of a row, by itself.
template <class W>
FG_DEVICE float block_weight(const u8 *row, u32 k, u32 i) {
    u32 code = BITS<W> == 8 ? row[i] : row[i / 32 * 16 + i % 16] >> i % 32 / 16 * 4 & 15;
    u32 scale = scale_bits(row + code_bytes<W>(k) + i / 32 * SCALE_BYTES<W>, SCALE_BYTES<W>);
    return to_float(to_bf16(block_value(block_scale<W>(scale), 0x47000000u | code << 8)));
}
