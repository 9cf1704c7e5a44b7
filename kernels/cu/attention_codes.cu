// What spans of attention gave of a row, put together and made into E4M3 at once: the numbers of attention_combine in bf16, and
// then of quantize_rows.
#include "attention_codes.cuh"

// A thread has four elements of a head, and PER times as many; `head_fours`: fours of a head.

// A block a row. Shared: of each head what its spans are multiplied by, two numbers for each of `most_parts`, and its share.
template <u32 PER>
FG_DEVICE void combine_codes(u8 *codes, float *scales, u32 stride, const float *parts, const u32 *step, u32 units_at,
                             u32 most_parts, const float *sinks, u32 heads, u32 value_dim, u32 window) {
    constexpr u32 AHEAD = 4 / PER;  // spans whose values are asked for before it is known what they are multiplied by
    FG_DYNAMIC_SHARED(shared);
    float *befores = (float *)shared, *mores = befores + heads * most_parts, *shares = mores + heads * most_parts;
    u32 lane = threadIdx.x % 32, head_fours = value_dim / 4, fours = heads * head_fours;
    // No kernel writes where rows are: it is found before others have ended.
    Run unit = tile_of(step + units_at, 0, 0, blockIdx.x);
    u32 count = 0;
    if (unit.rows > 0) {
        Seen seen = seen_by(unit, window, false, 0);
        count = (seen.end - 1) / seen.span - seen.begin / seen.span + 1;
    }
    begin_after_others();
    const float *of_row = parts + (u64)blockIdx.x * heads * most_parts * (value_dim + 2);
    const float *mine[PER];
    float4 ahead[PER][AHEAD];
    FG_UNROLL
    for (u32 j = 0; j < PER; j++) {
        u32 four = threadIdx.x + j * blockDim.x, head = four / head_fours;
        mine[j] = of_row + (u64)head * most_parts * (value_dim + 2) + four % head_fours * 4;
        FG_UNROLL
        for (u32 i = 0; i < AHEAD; i++) ahead[j][i] = part_at(mine[j] + (u64)i * (value_dim + 2), i < count && four < fours);
    }
    FG_NO_UNROLL
    for (u32 head = threadIdx.x / 32; head < heads; head += blockDim.x / 32) {
        // As attention_combine does it: the greatest so far, and the greatest before, of all spans at once.
        const float *about = of_row + ((u64)head * most_parts + lane) * (value_dim + 2) + value_dim;
        float2 own = lane < count ? *(const float2 *)about : make_float2(minus_infinity(), 0.0f);
        float greatest = own.x;
        FG_UNROLL
        for (u32 step = 1; step < 32; step *= 2) {
            float other = __shfl_up_sync(0xffffffffu, greatest, step);
            if (lane >= step) greatest = fmaxf(greatest, other);
        }
        float until = __shfl_up_sync(0xffffffffu, greatest, 1);
        Merge m = merge_of(lane == 0 ? minus_infinity() : until, own.x);
        float top = __shfl_sync(0xffffffffu, m.top, 31), all = 0.0f;
        for (u32 i = 0; i < count; i++) {
            float before = __shfl_sync(0xffffffffu, m.before, i), more = __shfl_sync(0xffffffffu, m.more, i);
            all = merged(all, before, __shfl_sync(0xffffffffu, own.y, i), more);
        }
        if (lane < count) befores[head * most_parts + lane] = m.before, mores[head * most_parts + lane] = m.more;
        if (lane == 0) shares[head] = count ? share_of(top, all, sinks ? sinks + head : nullptr) : 0.0f;
    }
    __syncthreads();
    float4 values[PER];
    u32 size = 0;
    FG_UNROLL
    for (u32 j = 0; j < PER; j++) {
        u32 four = threadIdx.x + j * blockDim.x, head = min(four, fours - 1) / head_fours;
        const float *before = befores + head * most_parts, *more = mores + head * most_parts;
        bool live = four < fours;
        float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        FG_UNROLL
        for (u32 i = 0; i < AHEAD; i++) {
            if (i < count) merge_four(sum, before[i], ahead[j][i], more[i]);
        }
        _Pragma("unroll 4")
        for (u32 i = AHEAD; i < count; i++) {
            merge_four(sum, before[i], part_at(mine[j] + (u64)i * (value_dim + 2), live), more[i]);
        }
        values[j] = floats_of_bf16(live ? in_bf16(sum, shares[head]) : make_uint2(0, 0));
        size = max(size, sizes_of(values[j]));
    }
    F8Scale scale = f8_scale(block_max(size));
    if (threadIdx.x == 0) scales[unit.row] = scale.back;
    u32 *to = (u32 *)(codes + (u64)unit.row * stride);
    FG_UNROLL
    for (u32 j = 0; j < PER; j++) {
        u32 four = threadIdx.x + j * blockDim.x;
        if (four < stride / 4) to[four] = to_codes(values[j], scale);
    }
}

#define COMBINE_CODES(per)                                                                                              \
    FG_KERNEL(1024, attention_combine_codes_##per,                                                                      \
              (u8 *codes, float *scales, u32 stride, const float *parts, const u32 *step, u32 units_at, u32 most_parts, \
               const float *sinks, u32 heads, u32 value_dim, u32 window)) {                                             \
        combine_codes<per>(codes, scales, stride, parts, step, units_at, most_parts, sinks, heads, value_dim, window);   \
    }
COMBINE_CODES(1)
COMBINE_CODES(2)
