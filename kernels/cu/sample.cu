// What sampling needs of rows of logits: the greatest, ln Σ e^x, and the best few, sorted.
#include "sample.cuh"

// The greatest of a block of 256 threads, on the first warp.
FG_DEVICE u64 block_max(u64 x) {
    FG_SHARED u64 parts[8];
    x = warp_max(x);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    return threadIdx.x < 32 ? warp_max(threadIdx.x < 8 ? parts[threadIdx.x] : 0ull) : 0;
}

// Of each chunk of each row the best. What is not a number is less than anything.
FG_KERNEL(256, sample_argmax_parts, (u64 *parts, const float *logits, u32 vocab, u64 stride)) {
    begin_after_others();
    u64 best = 0;
    each_of_chunk(logits + blockIdx.y * stride, vocab, [&](float x, u32 place) { best = max(best, key_of(x, 1, place)); });
    best = block_max(best);
    if (threadIdx.x == 0) parts[(u64)blockIdx.y * gridDim.x + blockIdx.x] = best;
}

// A block for each row: the best of its chunks.
FG_KERNEL(256, sample_argmax, (u32 *tokens, float *values, const u64 *parts, const float *logits, u32 chunks, u64 stride)) {
    begin_after_others();
    u64 row = blockIdx.x, best = 0;
    for (u32 i = threadIdx.x; i < chunks; i += blockDim.x) best = max(best, parts[row * chunks + i]);
    best = block_max(best);
    if (threadIdx.x == 0) {
        tokens[row] = place_of(best);
        values[row] = logits[row * stride + place_of(best)];
    }
}

// Of each chunk of each row its greatest, and Σ e^(scale · (x - greatest)).
FG_KERNEL(256, sample_sum_parts, (float2 *parts, const float *logits, const float *scales, u32 vocab, u64 stride)) {
    begin_after_others();
    FG_SHARED float greatest_of_warp[8];
    const float *row = logits + blockIdx.y * stride;
    float greatest = -INFINITE;
    each_of_chunk(row, vocab, [&](float x, u32) { greatest = fmaxf(greatest, x); });
    greatest = warp_max(greatest);
    if (threadIdx.x % 32 == 0) greatest_of_warp[threadIdx.x / 32] = greatest;
    __syncthreads();
    greatest = warp_max(greatest_of_warp[threadIdx.x % 8]);
    float scale = scales ? scales[blockIdx.y] : 1.0f, sum = 0.0f;
    each_of_chunk(row, vocab, [&](float x, u32) {
        // -∞ less -∞ is nothing, and what is not a number stays so.
        sum += x == -INFINITE ? 0.0f : expf(scale * (x - greatest));
    });
    sum = block_sum(sum);
    if (threadIdx.x == 0) parts[(u64)blockIdx.y * gridDim.x + blockIdx.x] = make_float2(greatest, sum);
}

// A warp for each row: ln Σ e^(scale · x) of all of it.
FG_KERNEL(32, sample_sum, (float *sums, const float2 *parts, const float *scales, u32 chunks)) {
    begin_after_others();
    parts += (u64)blockIdx.x * chunks;
    float greatest = -INFINITE;
    for (u32 i = threadIdx.x; i < chunks; i += 32) greatest = fmaxf(greatest, parts[i].x);
    greatest = warp_max(greatest);
    float scale = scales ? scales[blockIdx.x] : 1.0f;
    double sum = 0.0;
    for (u32 i = threadIdx.x; i < chunks; i += 32) {
        float2 part = parts[i];
        // A chunk of nothing but -∞ adds nothing; one with what is not a number makes all of it so.
        if (part.y != 0.0f) sum += (double)part.y * (part.x == -INFINITE ? 1.0 : exp((double)scale * ((double)part.x - greatest)));
    }
    FG_UNROLL
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    bool finite = greatest > -INFINITE && greatest < INFINITE;
    if (threadIdx.x == 0) sums[blockIdx.x] = finite ? (float)((double)scale * greatest + log(sum)) : greatest;
}

// Sorts CHUNK keys, greatest first, by 1024 threads, each of which compares one pair at a time (Batcher, "Sorting networks and
// their applications", 1968: the bitonic sorter). Pairs no more than 32 apart are those of one warp.
FG_DEVICE void sort_keys(u64 *keys) {
    __syncthreads();
    for (u32 size = 2; size <= CHUNK; size *= 2) {
        for (u32 apart = size / 2; apart > 0; apart /= 2) {
            u32 low = threadIdx.x / apart * 2 * apart + threadIdx.x % apart, high = low + apart;
            bool falling = (low & size) == 0;
            u64 a = keys[low], b = keys[high];
            if ((a < b) == falling) {
                keys[low] = b;
                keys[high] = a;
            }
            // The next pairs are as far apart as half of these, or, if these are neighbours, as this size.
            if (apart > 32 || (apart == 1 && size > 32)) __syncthreads();
            else __syncwarp();
        }
    }
}

// The best `count` of each chunk of each row, sorted. What is not a number is as little as -∞.
FG_KERNEL(1024, sample_top_first, (u64 *best, const float *logits, u32 vocab, u64 stride, u32 count)) {
    begin_after_others();
    FG_SHARED u64 keys[CHUNK];
    const float *row = logits + blockIdx.y * stride;
    for (u32 i = threadIdx.x; i < CHUNK; i += blockDim.x) {
        u32 place = blockIdx.x * CHUNK + i;
        keys[i] = place < vocab ? key_of(row[place], 0x007fffffu, place) : 0;
    }
    sort_keys(keys);
    best += ((u64)blockIdx.y * gridDim.x + blockIdx.x) * count;
    for (u32 i = threadIdx.x; i < count; i += blockDim.x) best[i] = keys[i];
}

// The same of what was left of each row: `len` keys.
FG_KERNEL(1024, sample_top_next, (u64 *best, const u64 *from, u32 len, u32 count)) {
    begin_after_others();
    FG_SHARED u64 keys[CHUNK];
    from += (u64)blockIdx.y * len;
    for (u32 i = threadIdx.x; i < CHUNK; i += blockDim.x) {
        u32 at = blockIdx.x * CHUNK + i;
        keys[i] = at < len ? from[at] : 0;
    }
    sort_keys(keys);
    best += ((u64)blockIdx.y * gridDim.x + blockIdx.x) * count;
    for (u32 i = threadIdx.x; i < count; i += blockDim.x) best[i] = keys[i];
}

// A block for each row: places and logits of its best.
FG_KERNEL(256, sample_top_write, (u32 *places, float *values, const u64 *best, const float *logits, u64 stride, u32 count)) {
    begin_after_others();
    u64 row = blockIdx.x;
    for (u32 i = threadIdx.x; i < count; i += blockDim.x) {
        u32 place = place_of(best[row * count + i]);
        places[row * count + i] = place;
        values[row * count + i] = logits[row * stride + place];
    }
}
