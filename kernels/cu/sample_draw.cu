// Draws tokens from rows of logits. What is drawn is said by kernels/src/op/draw.rs: weights are integers, so that their sums are
// the same in any order, and the token is the one that the host would draw.
//
// Where top-p keeps the fewest tokens, best first, that weigh enough, the last of these is found digit by digit: sums of weights by
// the first digit say in which it lies, of those with this digit sums by the second, and so on. The first says how far a logit is below the
// greatest, since the leading bits of most logits are the same; the other four are the bytes of its key.
#include "sample.cuh"

#define ONE 1099511627776.0f       // 2^40: what the likeliest weighs
#define WHOLE (1ull << 53)         // a share that is all
#define NOT_DRAWN 0xffffffffffffffffull
#define DIGITS 5u
#define ALL 0xffffffffu

// Of a row; the host's `Draw`.
struct Draw {
    float scale, least;
    u64 share, uniform;
};

// e^x with the bits of the host's (kernels/src/cpu/lanes.rs): each step is rounded as it is there.
FG_DEVICE float exp_as_host(float x) {
    const float lowest = -87.33654f;
    x = x < 88.0f ? x : 88.0f;
    x = x > lowest ? x : lowest;
    float n = rintf(__fmul_rn(x, 1.44269504088896340736f));  // log2(e)
    float r = __fmaf_rn(n, -0.6933594f, x);
    r = __fmaf_rn(n, 2.1219444e-4f, r);
    float p = 1.0f / 720.0f;
    p = __fmaf_rn(p, r, 1.0f / 120.0f);
    p = __fmaf_rn(p, r, 1.0f / 24.0f);
    p = __fmaf_rn(p, r, 1.0f / 6.0f);
    p = __fmaf_rn(p, r, 0.5f);
    p = __fmaf_rn(p, r, 1.0f);
    p = __fmaf_rn(p, r, 1.0f);
    return __fmul_rn(p, bits_to_float((u32)((int)n + 127) << 23));
}

FG_DEVICE bool is_possible(float x) { return x == x && x != -INFINITE; }

FG_DEVICE u64 weight_of(float x, float greatest, const Draw &draw) {
    if (!is_possible(x)) return 0;
    float weight = exp_as_host(__fmul_rn(__fadd_rn(x, -greatest), draw.scale));
    weight = weight < 1.0f ? weight : 1.0f;
    return weight < draw.least ? 0 : (u64)__fmul_rn(weight, ONE);
}

// What of `total` is `share` parts of 2^53: rounded down, and up.
FG_DEVICE u64 part_of(u64 total, u64 share) { return __umul64hi(total, share) << 11 | total * share >> 53; }
FG_DEVICE u64 part_rounded_up(u64 total, u64 share) { return part_of(total, share) + ((total * share & (WHOLE - 1)) != 0); }

FG_DEVICE u32 bits_of_key(float x) { return (u32)(key_of(x, 0, 0) >> 32); }
FG_DEVICE float logit_of(u32 key) { return bits_to_float(key >> 31 ? key & 0x7fffffffu : ~key); }

// The greater the logit, the greater the digit, or it is the same.
FG_DEVICE u32 first_digit(float x, float greatest, const Draw &draw) {
    float below = __fmul_rn(__fmul_rn(__fadd_rn(greatest, -x), draw.scale), 8.0f);
    return below >= 255.0f ? 0 : below > 0.0f ? 255 - (u32)below : 255;
}

// What the threads before this one of 256 have, and what all have.
FG_DEVICE u64 sum_before(u64 x, u64 &all) {
    FG_SHARED u64 parts[8];
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u64 sum = x;
    FG_UNROLL
    for (u32 step = 1; step < 32; step *= 2) {
        u64 other = __shfl_up_sync(ALL, sum, step);
        if (lane >= step) sum += other;
    }
    __syncthreads();  // parts may still be read from the call before
    if (lane == 31) parts[warp] = sum;
    __syncthreads();
    u64 before = sum - x;
    all = 0;
    FG_UNROLL
    for (u32 i = 0; i < 8; i++) {
        if (i < warp) before += parts[i];
        all += parts[i];
    }
    return before;
}

// Where top-p cuts, as far as it is known.
struct Cut {
    u32 first, key;  // the first digit, and bytes of the key
    u64 left;        // what those with these digits must weigh for all that is kept to weigh enough
};

// What `digits` digits say, by the sums of a row's weights by each of them.
FG_DEVICE Cut find_cut(const u64 *sums, u64 share, u32 digits) {
    FG_SHARED u32 found;
    FG_SHARED u64 left;
    Cut cut = {0, 0, 0};
    for (u32 nth = 0; nth < digits; nth++) {
        // From the greatest on.
        u32 digit = 255 - threadIdx.x;
        u64 mine = sums[nth * 256 + digit], all, before = sum_before(mine, all);
        if (nth == 0) cut.left = max(part_rounded_up(all, share), 1ull);
        if (before < cut.left && cut.left <= before + mine) {
            found = digit;
            left = cut.left - before;
        }
        __syncthreads();
        if (nth == 0) cut.first = found;
        else cut.key = cut.key << 8 | found;
        cut.left = left;
    }
    return cut;
}

// Rows of which nothing is drawn, or nothing is possible.
FG_DEVICE bool is_idle(const Draw &draw, float greatest) { return draw.uniform == NOT_DRAWN || !is_possible(greatest); }

// Of each chunk of each row without top-p what it weighs. Of the others the sums by digits become 0.
FG_KERNEL(256, draw_sums, (u64 *sums, u64 *by_digit, const Draw *draws, const float *greatest, const float *logits, u32 vocab,
                           u64 stride)) {
    begin_after_others();
    u32 row = blockIdx.y;
    const Draw draw = draws[row];
    if (is_idle(draw, greatest[row])) return;
    if (draw.share < WHOLE) {
        for (u32 i = blockIdx.x * 256 + threadIdx.x; i < DIGITS * 256; i += gridDim.x * 256) by_digit[row * DIGITS * 256 + i] = 0;
        return;
    }
    u64 sum = 0, all;
    each_of_chunk(logits + row * stride, vocab, [&](float x, u32) { sum += weight_of(x, greatest[row], draw); });
    sum_before(sum, all);
    if (threadIdx.x == 0) sums[(u64)row * gridDim.x + blockIdx.x] = all;
}

// Adds up the weights of each chunk of each row with top-p, by their digit `nth`, of those whose digits before it are those of the cut.
FG_KERNEL(256, draw_digit, (u64 *by_digit, const Draw *draws, const float *greatest, const float *logits, u32 vocab, u64 stride,
                            u32 nth)) {
    begin_after_others();
    FG_SHARED u64 weights[256];
    u32 row = blockIdx.y;
    const Draw draw = draws[row];
    float most = greatest[row];
    if (is_idle(draw, most) || draw.share >= WHOLE) return;
    weights[threadIdx.x] = 0;
    by_digit += (u64)row * DIGITS * 256;
    Cut cut = find_cut(by_digit, draw.share, nth);
    __syncthreads();
    each_of_chunk(logits + row * stride, vocab, [&](float x, u32) {
        u64 weight = weight_of(x, most, draw);
        u32 digit = first_digit(x, most, draw), key = bits_of_key(x);
        if (nth > 0) {
            if (digit != cut.first || (nth > 1 && key >> (40 - 8 * nth) != cut.key)) return;
            digit = key >> (32 - 8 * nth) & 0xff;
        }
        if (weight > 0) atomicAdd(&weights[digit], weight);
    });
    __syncthreads();
    if (weights[threadIdx.x] > 0) atomicAdd(&by_digit[nth * 256 + threadIdx.x], weights[threadIdx.x]);
}

// Of each chunk of each row with top-p what those weigh that are better than the last that is kept, and how many are as good.
FG_KERNEL(256, draw_kept, (u64 *sums, u32 *equals, const u64 *by_digit, const Draw *draws, const float *greatest,
                           const float *logits, u32 vocab, u64 stride)) {
    begin_after_others();
    u32 row = blockIdx.y;
    const Draw draw = draws[row];
    float most = greatest[row];
    if (is_idle(draw, most) || draw.share >= WHOLE) return;
    Cut cut = find_cut(by_digit + (u64)row * DIGITS * 256, draw.share, DIGITS);
    u64 sum = 0, equal = 0, all, all_equal;
    each_of_chunk(logits + row * stride, vocab, [&](float x, u32) {
        u32 key = bits_of_key(x);
        if (key > cut.key) sum += weight_of(x, most, draw);
        equal += key == cut.key;
    });
    sum_before(sum, all);
    sum_before(equal, all_equal);
    if (threadIdx.x == 0) {
        sums[(u64)row * gridDim.x + blockIdx.x] = all;
        equals[(u64)row * gridDim.x + blockIdx.x] = (u32)all_equal;
    }
}

// A block for each row: the first place at which the sum of what is kept is above the part of it that was drawn. First the chunk
// is found, then the place in it.
FG_KERNEL(256, draw_pick, (u32 *tokens, const u64 *sums, const u32 *equals, const u64 *by_digit, const Draw *draws,
                           const float *greatest, const float *logits, u32 vocab, u64 stride)) {
    begin_after_others();
    FG_SHARED u32 found;
    FG_SHARED u64 weighed, passed;  // by the chunks before it, and how many as good as the last that is kept are in these
    u32 row = blockIdx.x, chunks = (vocab + CHUNK - 1) / CHUNK;
    const Draw draw = draws[row];
    float most = greatest[row];
    if (draw.uniform == NOT_DRAWN) return;
    if (!is_possible(most)) {
        // Something must be said.
        if (threadIdx.x == 0) tokens[row] = 0;
        return;
    }
    sums += (u64)row * chunks;
    equals += (u64)row * chunks;
    logits += row * stride;
    bool cuts = draw.share < WHOLE;
    // Of those that are as good as the last that is kept, what one weighs, and how many are kept: the first of them.
    Cut cut = {0, 0, 0};
    u64 each = 0, kept = 0;
    if (cuts) {
        cut = find_cut(by_digit + (u64)row * DIGITS * 256, draw.share, DIGITS);
        each = weight_of(logit_of(cut.key), most, draw);
        kept = (cut.left + each - 1) / each;
    }
    u64 sum = 0, total;
    for (u32 chunk = threadIdx.x; chunk < chunks; chunk += 256) sum += sums[chunk];
    sum_before(sum, total);
    u64 wanted = part_of(total + kept * each, draw.uniform);
    u64 weight_before = 0, equal_before = 0;
    for (u32 first = 0; first < chunks; first += 256) {
        u32 chunk = first + threadIdx.x;
        u64 equal = cuts && chunk < chunks ? equals[chunk] : 0, all;
        u64 place = equal_before + sum_before(equal, all);
        equal_before += all;
        u64 weight = chunk < chunks ? sums[chunk] : 0;
        if (place < kept) weight += each * min(equal, kept - place);
        u64 before = weight_before + sum_before(weight, all);
        weight_before += all;
        if (before <= wanted && wanted < before + weight) {
            found = chunk;
            weighed = before;
            passed = place;
        }
    }
    __syncthreads();
    // Each thread has places that follow each other.
    constexpr u32 EACH = CHUNK / 256;
    u32 begin = found * CHUNK + threadIdx.x * EACH;
    u64 weights[EACH], equal = 0, all;
    u32 is_equal = 0;
    FG_UNROLL
    for (u32 i = 0; i < EACH; i++) {
        weights[i] = 0;
        if (begin + i >= vocab) continue;
        float x = logits[begin + i];
        u32 key = bits_of_key(x);
        if (cuts && key == cut.key) {
            is_equal |= 1u << i;
            equal++;
        } else if (!cuts || key > cut.key) {
            weights[i] = weight_of(x, most, draw);
        }
    }
    u64 place = passed + sum_before(equal, all), mine = 0;
    FG_UNROLL
    for (u32 i = 0; i < EACH; i++) {
        if (is_equal >> i & 1) weights[i] = place++ < kept ? each : 0;
        mine += weights[i];
    }
    u64 before = weighed + sum_before(mine, all);
    if (wanted < before || wanted >= before + mine) return;
    FG_UNROLL
    for (u32 i = 0; i < EACH; i++) {
        if (before <= wanted && wanted < before + weights[i]) tokens[row] = begin + i;
        before += weights[i];
    }
}
