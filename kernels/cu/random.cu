// Matrices of random numbers, for measuring what depends on sizes only.
#include "foggara.cuh"

// SplitMix64's output function (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
FG_DEVICE u64 random_bits(u64 seed, u64 counter) {
    u64 z = seed + (counter + 1) * 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

// Four 16-bit numbers added up: nearly a normal distribution, of deviation 65536 / √3, around 0.
FG_DEVICE float random_number(u64 seed, u64 counter) {
    u64 bits = random_bits(seed, counter);
    int sum = (int)(bits & 0xffff) + (int)(bits >> 16 & 0xffff) + (int)(bits >> 32 & 0xffff) + (int)(bits >> 48);
    return (float)(sum - 131070);
}

// Blocks: x a row each, y parts of it. `pitch`: elements from one row to the next.
template <class W>
FG_DEVICE void fill_random(W *out, u32 columns, u32 pitch, u64 seed, float scale) {
    begin_after_others();
    u64 row = blockIdx.x;
    for (u32 i = blockIdx.y * blockDim.x + threadIdx.x; i < columns; i += gridDim.y * blockDim.x) {
        store(out + row * pitch + i, random_number(seed, row * columns + i) * scale);
    }
}

FG_KERNEL(256, random_f32, (float *out, u32 columns, u32 pitch, u64 seed, float scale)) {
    fill_random(out, columns, pitch, seed, scale);
}
FG_KERNEL(256, random_bf16, (bf16 *out, u32 columns, u32 pitch, u64 seed, float scale)) {
    fill_random(out, columns, pitch, seed, scale);
}
FG_KERNEL(256, random_f16, (f16 *out, u32 columns, u32 pitch, u64 seed, float scale)) {
    fill_random(out, columns, pitch, seed, scale);
}
// Any code but those of NaN; the scales make the deviation.
FG_KERNEL(256, random_f8, (u8 *out, u32 columns, u32 pitch, u64 seed)) {
    begin_after_others();
    u64 row = blockIdx.x;
    for (u32 i = blockIdx.y * blockDim.x + threadIdx.x; i < columns; i += gridDim.y * blockDim.x) {
        u64 element = row * columns + i;
        u8 code = (u8)(random_bits(seed, element / 8) >> element % 8 * 8);
        out[row * pitch + i] = (code & 0x7f) == 0x7f ? code ^ 1 : code;
    }
}
// Rows of blocks: any codes, of which there are `codes` bytes; then the four bytes of `own`, again and again, and from byte `shared_at`
// on those of `shared`, in all others of a row's `pitch`.
FG_KERNEL(256, random_blocks, (u8 *out, u32 codes, u32 pitch, u64 seed, u32 own, u32 shared_at, u32 shared)) {
    begin_after_others();
    u64 row = blockIdx.x;
    for (u32 i = blockIdx.y * blockDim.x + threadIdx.x; i < pitch; i += gridDim.y * blockDim.x) {
        u64 element = row * codes + i;
        u8 code = (u8)(random_bits(seed, element / 8) >> element % 8 * 8);
        u32 beside = i < shared_at ? own : shared;
        out[row * pitch + i] = i < codes ? code : (u8)(beside >> i % 4 * 8);
    }
}
