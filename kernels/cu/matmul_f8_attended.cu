// The product of one row with a matrix in E4M3 (f8_few.cuh), where the row is what spans of attention gave, not put together yet: every
// block does that by itself, all of the row, and makes codes of it, as attention_combine_codes does, while weights are on their way.
#include "attention_codes.cuh"
#include "f8_few.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(FOGGARA_HOST)
// Spans at most: all blocks read all of them (op/matmul/attended.rs knows it, too).
constexpr u32 MOST_SPANS = 8;

// Parameters are those of attention_combine_codes, `unit` the only row of the step. A thread has PER fours of the row.
template <u32 PER>
struct FromSpans {
    static constexpr bool ONE_ROW = true, OF_TILES = false;
    const float *parts, *sinks;
    u32 most_parts, heads, value_dim, window;
    Run unit;
};

// Behind the codes there is in shared memory of each head what its spans are multiplied by, two numbers for each, and its share.
template <class F, u32 PER>
FG_DEVICE float prepare(const FromSpans<PER> &x, const Product<f8> &p, u8 *own) {
    constexpr u32 AHEAD = 16 / PER;  // spans whose values are asked for before it is known what they are multiplied by
    FG_SHARED u32 sizes[F::THREADS / 32];
    u32 codes = F::stages(p.k) * F::INPUTS, fours = p.k / 4, head_fours = x.value_dim / 4, stride = x.value_dim + 2;
    float *befores = (float *)(own + codes), *mores = befores + x.heads * x.most_parts, *shares = mores + x.heads * x.most_parts;
    u32 count = 0;
    if (x.unit.rows > 0) {
        Seen seen = seen_by(x.unit, x.window, false, 0);
        count = (seen.end - 1) / seen.span - seen.begin / seen.span + 1;
    }
    // A head is a thread's, which does as attention_combine does.
    const float *about = x.parts + min(threadIdx.x, x.heads - 1) * x.most_parts * stride + x.value_dim;
    float2 own_spans[MOST_SPANS];
    FG_UNROLL
    for (u32 i = 0; i < MOST_SPANS; i++) {
        own_spans[i] = make_float2(0.0f, 0.0f);
        if (threadIdx.x < x.heads && i < count) own_spans[i] = *(const float2 *)(about + i * stride);
    }
    u32 mine[PER];
    float4 ahead[PER][AHEAD];
    FG_UNROLL
    for (u32 j = 0; j < PER; j++) {
        u32 four = threadIdx.x + j * F::THREADS, head = four / head_fours;
        mine[j] = head * x.most_parts * stride + (four - head * head_fours) * 4;
        FG_UNROLL
        for (u32 i = 0; i < AHEAD; i++) ahead[j][i] = part_at(x.parts + mine[j] + i * stride, i < count && four < fours);
    }
    if (threadIdx.x < x.heads) {
        float top = minus_infinity(), all = 0.0f;
        FG_UNROLL
        for (u32 i = 0; i < MOST_SPANS; i++) {
            if (i >= count) continue;
            Merge m = merge_of(top, own_spans[i].x);
            top = m.top;
            all = merged(all, m.before, own_spans[i].y, m.more);
            befores[threadIdx.x * x.most_parts + i] = m.before, mores[threadIdx.x * x.most_parts + i] = m.more;
        }
        shares[threadIdx.x] = count ? share_of(top, all, x.sinks ? x.sinks + threadIdx.x : nullptr) : 0.0f;
    }
    F::meet_all();
    uint2 values[PER];
    u32 size = 0;
    FG_UNROLL
    for (u32 j = 0; j < PER; j++) {
        u32 four = threadIdx.x + j * F::THREADS, head = min(four, fours - 1) / head_fours;
        const float *before = befores + head * x.most_parts, *more = mores + head * x.most_parts;
        bool live = four < fours;
        float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        FG_UNROLL
        for (u32 i = 0; i < AHEAD; i++) {
            if (i < count) merge_four(sum, before[i], ahead[j][i], more[i]);
        }
        FG_NO_UNROLL
        for (u32 i = AHEAD; i < count; i++) merge_four(sum, before[i], part_at(x.parts + mine[j] + i * stride, live), more[i]);
        values[j] = live ? in_bf16(sum, shares[head]) : make_uint2(0, 0);
        size = max(size, sizes_of(floats_of_bf16(values[j])));
    }
    size = warp_max(size);
    if (threadIdx.x % 32 == 0) sizes[threadIdx.x / 32] = size;
    F::meet_all();
    FG_UNROLL
    for (u32 i = 0; i < F::THREADS / 32; i++) size = max(size, sizes[i]);
    F8Scale scale = f8_scale(size);
    FG_UNROLL
    for (u32 j = 0; j < PER; j++) {
        u32 four = threadIdx.x + j * F::THREADS;
        if (four < codes / 4) ((u32 *)own)[four] = to_codes(floats_of_bf16(values[j]), scale);
    }
    for (u32 four = PER * F::THREADS + threadIdx.x; four < codes / 4; four += F::THREADS) ((u32 *)own)[four] = 0;
    F::meet_all();
    return scale.back;
}

#define ATTENDED(per, ...)                                                                                             \
    FG_KERNEL_MIN(256, 2, f8_few_attended_##per,                                                                        \
                  (F8_ARGUMENTS, const float *parts, const u32 *step, u32 units_at, u32 most_parts, const float *sinks, \
                   u32 heads, u32 value_dim, u32 window)) {                                                             \
        /* No kernel writes where rows are: it is found before others have ended. */                                    \
        Run unit = tile_of(step + units_at, 0, 0, 0);                                                                   \
        FromSpans<per> spans = {parts, sinks, most_parts, heads, value_dim, window, unit};                              \
        f8_few<__VA_ARGS__>(THE_PRODUCT, x_scales, spans, Plain{});                                                   \
    }
// One block a multiprocessor, whose ring holds nearly all of a tile of 4096 inputs; codes behind the row's end are zeros. And two blocks.
ATTENDED(4, 8, 2, 1, 6, 3)
ATTENDED(8, 8, 2, 1, 5, 2)
#endif
