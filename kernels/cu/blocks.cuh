// Weights in GGUF's blocks as a device holds them (kernels/src/cuda/blocks.rs). A row is planes of codes, then what each block of 32
// has beside codes, then what eight blocks of Q4_K, Q5_K and Q6_K share; planes and rows begin at multiples of 16 bytes.
//
// Codes are numbers from 0 on, of 8 bits, or of 4 with the bits above in a second plane. A plane is read by 16 bytes: byte j has
// elements j, 16 + j and so on, the first in its lowest bits (of 8 bits just one).
//
// A weight is scale · (code - ZERO), or scale · code + least, rounded to bf16: what the host makes of it where blocks are held in
// bf16. Beside codes there are, for a block of
// - Q8_0 and Q4_0: the scale in f16;
// - Q4_1 and Q5_1: scale and least in f16;
// - Q4_K and Q5_K: a byte each, which eight blocks' two numbers in f16 (scale, and least below zero) are multiplied by;
// - Q6_K: a byte each for elements 0..16 and 16..32, of which 128 is zero, which eight blocks' number in f32 is multiplied by.
// Scales are exact in f32 (at most 11 and 8 bits), and so is their product with a code (17 and 6, or 18 and 5 bits).
#pragma once
#include "foggara.cuh"

struct q8_0 { u8 code; };
struct q4_0 { u8 codes; };
struct q4_1 { u8 codes; };
struct q5_1 { u8 codes; };
struct q4_k { u8 codes; };
struct q5_k { u8 codes; };
struct q6_k { u8 codes; };

// Bits of a code in the first plane, and above; bytes that a block has beside codes, and that eight of them share. `LEAST`: it is
// added; else codes from ZERO on are positive.
template <u32 LOW_, u32 HIGH_, u32 SCALE_, u32 SHARED_, bool LEAST_, u32 ZERO_>
struct BlockLayout {
    static constexpr u32 LOW = LOW_, HIGH = HIGH_, SCALE = SCALE_, SHARED = SHARED_, ZERO = ZERO_;
    static constexpr bool LEAST = LEAST_;
};
template <class W>
struct Layout : BlockLayout<8 * sizeof(W), 0, 0, 0, false, 0> {};
template <>
struct Layout<q8_0> : BlockLayout<8, 0, 2, 0, false, 128> {};
template <>
struct Layout<q4_0> : BlockLayout<4, 0, 2, 0, false, 8> {};
template <>
struct Layout<q4_1> : BlockLayout<4, 0, 4, 0, true, 0> {};
template <>
struct Layout<q5_1> : BlockLayout<4, 1, 4, 0, true, 0> {};
template <>
struct Layout<q4_k> : BlockLayout<4, 0, 2, 4, true, 0> {};
template <>
struct Layout<q5_k> : BlockLayout<4, 1, 2, 4, true, 0> {};
template <>
struct Layout<q6_k> : BlockLayout<4, 2, 2, 4, false, 32> {};

template <class W>
constexpr u32 BITS = Layout<W>::LOW;
template <class W>
constexpr u32 HIGH_BITS = Layout<W>::HIGH;
template <class W>
constexpr u32 SCALE_BYTES = Layout<W>::SCALE;
template <class W>
constexpr u32 SHARED_BYTES = Layout<W>::SHARED;
template <class W>
constexpr bool BLOCKS = SCALE_BYTES<W> > 0;

// Bytes of a row of k weights: of its first plane, of the second, and of all.
template <class W>
FG_DEVICE u32 low_bytes(u32 k) {
    return (k * BITS<W> / 8 + 15) / 16 * 16;
}
template <class W>
FG_DEVICE u32 high_bytes(u32 k) {
    return (k * HIGH_BITS<W> + 127) / 128 * 16;
}
template <class W>
FG_DEVICE u32 code_bytes(u32 k) {
    return low_bytes<W>(k) + high_bytes<W>(k);
}
template <class W>
FG_DEVICE u32 row_bytes(u32 k) {
    return code_bytes<W>(k) + (k / 32 * SCALE_BYTES<W> + k / 256 * SHARED_BYTES<W> + 15) / 16 * 16;
}

// Codes are put into the bits of PLACED that are worth 1 and up. A fused multiply-add takes that, and what is zero, away again
// without rounding: both have few enough bits. (Where least is added a subtraction does, since the sum must be rounded.)
template <class W>
constexpr float PLACED = BITS<W> == 8 ? 32768.0f : 128.0f;
template <class W, int PART>
FG_DEVICE u32 place_code(u32 four) {
    if constexpr (BITS<W> == 8) return place_byte<PART>(four);
    else return place_small_byte<PART>(four);
}

// What is stored of a block beside codes: its own, and what it shares.
struct ScaleBits {
    u32 own, shared;
};
FG_DEVICE u32 scale_bits(const u8 *scale, u32 bytes) { return bytes == 2 ? *(const u16 *)scale : *(const u32 *)scale; }

template <class W>
struct BlockScale {
    float by, add;
};
// Of elements 0..16 of a block (`half` 0) or 16..32.
template <class W>
FG_DEVICE BlockScale<W> block_scale(ScaleBits bits, u32 half) {
    using L = Layout<W>;
    if constexpr (L::SHARED > 0 && L::LEAST) {
        float scale = bits_to_float(place_small_byte<0>(bits.own)) - 128.0f;
        float least = bits_to_float(place_small_byte<1>(bits.own)) - 128.0f;
        return {scale * to_float(f16{(u16)bits.shared}), -(least * to_float(f16{(u16)(bits.shared >> 16)}))};
    } else if constexpr (L::LEAST) {
        return {to_float(f16{(u16)bits.own}), to_float(f16{(u16)(bits.own >> 16)})};
    } else {
        float by;
        if constexpr (L::SHARED > 0) {
            u32 placed = half ? place_byte<1>(bits.own) : place_byte<0>(bits.own);
            by = (bits_to_float(placed) - (32768.0f + 128.0f)) * bits_to_float(bits.shared);
        } else {
            by = to_float(f16{(u16)bits.own});
        }
        return {by, -(by * (PLACED<W> + L::ZERO))};
    }
}
template <class W>
FG_DEVICE float block_value(const BlockScale<W> &scale, u32 placed) {
    float code = bits_to_float(placed);
    if constexpr (Layout<W>::LEAST) code -= PLACED<W>;
    return fmaf(scale.by, code, scale.add);
}
// Of codes that are bytes PART and PART + 1 of `four`.
template <int PART, class W>
FG_DEVICE u32 block_pair(u32 four, const BlockScale<W> &scale) {
    return to_bf16x2(block_value(scale, place_code<W, PART>(four)), block_value(scale, place_code<W, PART + 1>(four)));
}
// The codes of four elements as bytes, of a word of the first plane that has eight: those of the first half of a block, or of the
// second. `high`: a word of the second plane, the block's in the lowest bits of its bytes.
template <class W>
FG_DEVICE u32 four_codes(u32 low, u32 high, u32 half) {
    constexpr u32 HIGH = HIGH_BITS<W>;
    u32 four = low >> 4 * half & 0x0f0f0f0f;
    if constexpr (HIGH > 0) four |= high << (4 - HIGH * half) & ((1 << HIGH) - 1) * 0x10101010;
    return four;
}

// Weight i of a row, by itself.
template <class W>
FG_DEVICE float block_weight(const u8 *row, u32 k, u32 i) {
    constexpr u32 HIGH = HIGH_BITS<W>;
    u32 block = i / 32, half = i % 32 / 16;
    u32 code = BITS<W> == 8 ? row[i] : row[block * 16 + i % 16] >> half * 4 & 15;
    if constexpr (HIGH > 0) {
        u32 above = row[low_bytes<W>(k) + i * HIGH / 128 * 16 + i % 16] >> i / 16 * HIGH % 8;
        code |= (above & ((1 << HIGH) - 1)) << 4;
    }
    const u8 *scales = row + code_bytes<W>(k);
    ScaleBits bits = {scale_bits(scales + block * SCALE_BYTES<W>, SCALE_BYTES<W>), 0};
    if constexpr (SHARED_BYTES<W> > 0) bits.shared = *(const u32 *)(scales + k / 32 * SCALE_BYTES<W> + block / 8 * 4);
    return to_float(to_bf16(block_value(block_scale<W>(bits, half), place_code<W, 0>(code))));
}
