// The product of up to eight rows of E4M3 that gives queries, keys and values (f8_few.cuh): at the end of a tile they get their bias
// and are rotated, queries go to `q`, keys and values into the cache, all as rope_and_write does it. For models without norms of heads:
// a tile has pairs of elements, not heads.
#include "f8_few.cuh"
#include "rope.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(FOGGARA_HOST)
// Parameters are those of rope_and_write; keys and values have `dim` elements each, an even number.
template <class E>
struct Cached {
    float *q;
    E *keys, *values;
    const u32 *step;
    const float *bias, *turns;
    u32 pairs, half, heads, kv_heads, dim, block_size;
};

// The head and the element that an output is. Pairs of a head are those that are rotated together, then what is left, two by two.
struct Element {
    u32 head, slot, element;  // `slot`: which pair of its head's
};
template <class F, class E>
FG_DEVICE Element element_at(const Cached<E> &end, u32 first, u32 row) {
    u32 pair = F::pair(first, row), member = F::member(row), of_head = end.dim / 2;
    u32 head = pair / of_head, slot = pair - head * of_head;
    bool apart = end.half && slot < end.pairs;
    return {head, slot, apart ? slot + member * end.pairs : 2 * slot + member};
}
template <class F, class E>
FG_DEVICE u32 output_at(const Cached<E> &end, u32 n, u32 first, u32 row) {
    if (F::pair(first, row) >= n / 2) return n;
    Element at = element_at<F>(end, first, row);
    return at.head * end.dim + at.element;
}

// Where rows are no kernel writes: it comes into the first level of the cache, to be there when it is asked for.
template <class E>
FG_DEVICE void before_waiting(const Cached<E> &end, const Product<f8> &p) {
    for (u32 row = 0; row < p.rows; row++) {
        u32 position = end.step[2 * row];
        if (position == NO_ROW) continue;
        fetch_first_level(end.step + end.step[2 * row + 1] + position / end.block_size);
        fetch_cached(end.keys, end.values, end.step, row, p.rows, position, end.kv_heads, end.dim, end.block_size,
                     blockIdx.x * 128 + threadIdx.x % 128, gridDim.x * 128);
    }
}

// Of a thread's output, and of it in each of its two rows.
template <class E>
struct CachedOutput {
    u32 o;
    float scale, bias;
    bool is_query, is_turned;  // and not a value, or not a part of the head that is rotated
    float2 turn[2];
    bool exists[2];
    // Where it goes, if there is such a row: one of them.
    float *q[2];
    E *cached[2];
};
template <class F, u32 PAIR, class E>
FG_DEVICE CachedOutput<E> begin_tile(const Cached<E> &end, const Product<f8> &p, const F8Tile &at, u32 row_of_tile) {
    static_assert(PAIR == 2, "one output a thread, and its pair's other 16 lanes away");
    CachedOutput<E> mine;
    Element e = element_at<F>(end, at.output, row_of_tile);
    mine.o = output_at<F>(end, p.n, at.output, row_of_tile);
    bool live = mine.o < p.n, is_key = e.head >= end.heads && e.head < end.heads + end.kv_heads;
    mine.is_query = e.head < end.heads;
    mine.is_turned = live && e.slot < end.pairs && (mine.is_query || is_key);
    mine.scale = live ? p.scales[mine.o] : 0.0f;
    mine.bias = live && end.bias ? end.bias[mine.o] : 0.0f;
    u32 kv_head = e.head - end.heads - (is_key ? 0 : end.kv_heads);
    FG_UNROLL
    for (u32 i = 0; i < 2; i++) {
        u32 row = column_of<8>(i);
        u32 position = live && row < p.rows ? end.step[2 * row] : NO_ROW;
        mine.exists[i] = position != NO_ROW;
        mine.turn[i] = make_float2(0.0f, 0.0f);
        mine.q[i] = nullptr;
        mine.cached[i] = nullptr;
        if (live && row < p.rows && mine.is_query) mine.q[i] = end.q + ((u64)row * end.heads + e.head) * end.dim + e.element;
        if (!mine.exists[i]) continue;
        if (mine.is_turned) mine.turn[i] = ((const float2 *)end.turns)[(u64)row * end.pairs + e.slot];
        if (mine.is_query) continue;
        u64 to = place(end.step, row, position, end.block_size, end.kv_heads) + (u64)kv_head * end.block_size;
        mine.cached[i] = (is_key ? end.keys : end.values) + to * end.dim + e.element;
    }
    return mine;
}

template <class F, u32 N, u32 PAIR, class E>
FG_DEVICE void finish_few(const Cached<E> &end, const Product<f8> &, const F8Tile &, const CachedOutput<E> &mine,
                          const float *x_scales, const float (&totals)[N / 2 / PAIR]) {
    static_assert(N == 8 && PAIR == 2, "two rows a thread");
    bool second = F::member(threadIdx.x % 32 / 4);
    FG_UNROLL
    for (u32 i = 0; i < 2; i++) {
        float x = scaled(totals[i], x_scales[column_of<8>(i)], mine.scale);
        if (end.bias) x = __fadd_rn(x, mine.bias);
        float other = __shfl_xor_sync(0xffffffffu, x, 16);
        float cosine = mine.turn[i].x, sine = mine.turn[i].y;
        if (mine.is_turned) x = second ? turned_second(other, x, cosine, sine) : turned_first(x, other, cosine, sine);
        if (mine.q[i]) *mine.q[i] = mine.exists[i] ? x : 0.0f;
        if (mine.cached[i]) store(mine.cached[i], x);
    }
}

#define CACHED(name, E)                                                                                                 \
    FG_KERNEL_MIN(256, 2, f8_few_cached_##name,                                                                         \
                  (F8_ARGUMENTS, float *q, E *keys, E *values, const u32 *step, const float *bias, const float *turns,  \
                   u32 pairs, u32 half, u32 heads, u32 kv_heads, u32 dim, u32 block_size)) {                            \
        Cached<E> end = {q, keys, values, step, bias, turns, pairs, half, heads, kv_heads, dim, block_size};            \
        f8_few<8, 2, 1, 5, 2>(THE_PRODUCT, x_scales, FromCodes{}, end);                                                 \
    }
CACHED(f16, f16)
CACHED(f8, f8)
#endif
