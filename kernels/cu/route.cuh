// Which experts a row goes to: what the kernels that choose have in common.
//
// Choosing is done in f64 and by keys: integers that are ordered as the numbers are, so that a choice is the same here and on the
// host. Nothing depends on what else is in the batch, nor on the order in which threads come.
#pragma once
#include "foggara.cuh"

#define ALL 0xffffffffu
#define NOWHERE 0xffffffffu

FG_DEVICE u64 bits_of(double x) { return (u64)__double_as_longlong(x); }
FG_DEVICE double number_of(u64 bits) { return __longlong_as_double((long long)bits); }
FG_DEVICE u32 ones(u32 x) { return (u32)__popc(x); }

FG_DEVICE double warp_total(double x) {
    FG_UNROLL
    for (int step = 16; step > 0; step /= 2) {
        u64 bits = bits_of(x);
        u32 low = __shfl_xor_sync(ALL, (u32)bits, step), high = __shfl_xor_sync(ALL, (u32)(bits >> 32), step);
        x += number_of((u64)high << 32 | low);
    }
    return x;
}

// Ordered as the numbers, -0 before 0; what is not a number is as little as -∞. No key is 0, nor all ones.
#define LEAST 0x000fffffffffffffull
FG_DEVICE u64 key_of(double x) {
    if (x != x) return LEAST;
    u64 bits = bits_of(x);
    return bits >> 63 ? ~bits : bits | 1ull << 63;
}
FG_DEVICE double score_of(u64 key) { return number_of(key >> 63 ? key & ~(1ull << 63) : ~key); }

// A lane's best of `keys` (those that are at its place modulo 32) after `place`, whose key is `key`.
FG_DEVICE void best_after(u64 &best, u32 &at, const u64 *keys, u32 len, u64 key, u32 place) {
    best = 0;
    at = NOWHERE;
    for (u32 i = threadIdx.x % 32; i < len; i += 32) {
        u64 mine = keys[i];
        bool after = mine < key || (mine == key && i > place && place != NOWHERE);
        if (after && mine > best) {
            best = mine;
            at = i;
        }
    }
}

// Calls `take(round, place)` for the `count` greatest of `keys`, greatest first, of equals the lower; by a whole warp, with the
// same on every lane. `take` may set the key of what it takes to all ones. There are at least `count`.
template <class Take>
FG_DEVICE void choose(const u64 *keys, u32 len, u32 count, Take take) {
    u64 best;
    u32 at;
    best_after(best, at, keys, len, ~0ull, NOWHERE);
    for (u32 round = 0; round < count; round++) {
        u64 greatest = warp_max(best);
        // The lower of equals is the greater complement.
        u32 place = ~warp_max(best == greatest ? ~at : 0u);
        take(round, place);
        if (at == place) best_after(best, at, keys, len, greatest, place);
    }
}

struct Router {
    u32 *ids;
    float *weights;
    const float *logits, *bias, *correction;
    u32 rows, experts, top_k;
    u32 groups, top_groups;  // 0: a softmax over all
    u32 renormalize;
    float scale;
    u32 scores;  // of a row in shared memory: those of experts, and of groups after them
    u32 *kept;   // a copy of ids for who goes on with them, or null
};

FG_DEVICE double logit(const Router &r, u32 row, u32 expert) {
    float x = r.logits[(u64)row * r.experts + expert];
    return r.bias ? x + r.bias[expert] : x;
}
FG_DEVICE double sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }

// The keys by which experts are chosen, of `rows` rows from `first`, by a whole block.
FG_DEVICE void write_keys(u64 *keys, const Router &r, u32 first, u32 rows) {
    for (u32 i = threadIdx.x; i < rows * r.experts; i += blockDim.x) {
        u32 row = i / r.experts, expert = i % r.experts;
        double score = logit(r, first + row, expert);
        if (r.groups) score = sigmoid(score) + (r.correction ? (double)r.correction[expert] : 0.0);
        keys[(u64)row * r.scores + expert] = key_of(score);
    }
}

// Leaves the keys of experts of the best groups, by a whole warp; all others become the least.
FG_DEVICE void close_groups(u64 *keys, const Router &r) {
    u32 lane = threadIdx.x % 32, size = r.experts / r.groups;
    u64 *sums = keys + r.experts;
    for (u32 group = lane; group < r.groups; group += 32) {
        u64 best = 0, second = 0;
        for (u32 i = 0; i < size; i++) {
            // Each lane begins elsewhere, for groups are often as long as shared memory is wide.
            u64 key = keys[group * size + (i + group) % size];
            u64 less = key > best ? best : key;
            best = key > best ? key : best;
            second = less > second ? less : second;
        }
        sums[group] = key_of(second ? score_of(best) + score_of(second) : score_of(best));
    }
    __syncwarp();
    choose(sums, r.groups, r.top_groups, [&](u32, u32 group) {
        if (group % 32 == lane) sums[group] = ~0ull;
    });
    __syncwarp();
    for (u32 i = lane; i < r.experts; i += 32) {
        if (~sums[i / size]) keys[i] = LEAST;
    }
    __syncwarp();
}

// Chooses the experts of a row, by a whole warp.
FG_DEVICE void choose_experts(u64 *keys, const Router &r, u32 row) {
    u32 lane = threadIdx.x % 32;
    if (r.groups) close_groups(keys, r);
    // Lane l has the places of rounds l and l + 32.
    u32 one = NOWHERE, two = NOWHERE, greatest = 0;
    choose(keys, r.experts, r.top_k, [&](u32 round, u32 place) {
        if (round == 0) greatest = place;
        if (round == lane) one = place;
        if (round == lane + 32) two = place;
    });
    double weight_one = 0.0, weight_two = 0.0, by;
    if (r.groups) {
        if (one != NOWHERE) weight_one = sigmoid(logit(r, row, one));
        if (two != NOWHERE) weight_two = sigmoid(logit(r, row, two));
        double sum = warp_total(weight_one + weight_two);
        by = r.renormalize ? (double)r.scale / (sum + 1e-20) : (double)r.scale;
    } else {
        double highest = logit(r, row, greatest);
        if (one != NOWHERE) weight_one = exp(logit(r, row, one) - highest);
        if (two != NOWHERE) weight_two = exp(logit(r, row, two) - highest);
        double sum = weight_one + weight_two;
        if (!r.renormalize) {
            sum = 0.0;
            for (u32 i = lane; i < r.experts; i += 32) sum += exp(logit(r, row, i) - highest);
        }
        by = warp_total(sum);
    }
    // Their places in the order of their numbers.
    u32 rank_one = 0, rank_two = 0;
    for (u32 round = 0; round < r.top_k; round++) {
        u32 other = __shfl_sync(ALL, round < 32 ? one : two, round % 32);
        rank_one += other < one;
        rank_two += other < two;
    }
    u64 at = (u64)row * r.top_k;
    if (one != NOWHERE) {
        r.ids[at + rank_one] = one;
        if (r.kept) r.kept[at + rank_one] = one;
        r.weights[at + rank_one] = (float)(r.groups ? weight_one * by : weight_one / by);
    }
    if (two != NOWHERE) {
        r.ids[at + rank_two] = two;
        if (r.kept) r.kept[at + rank_two] = two;
        r.weights[at + rank_two] = (float)(r.groups ? weight_two * by : weight_two / by);
    }
}

#define ROUTER_PARAMS                                                                                              \
    u32 *ids, float *weights, const float *logits, const float *bias, const float *correction, u32 rows, u32 experts, \
        u32 top_k, u32 groups, u32 top_groups, u32 renormalize, float scale, u32 scores
#define ROUTER(kept)                                                                                                  \
    {ids, weights, logits, bias, correction, rows, experts, top_k, groups, top_groups, renormalize, scale, scores, kept}

// Eight numbers in a row, as they are loaded.
template <class T>
struct Eight {
    static constexpr u32 PIECES = sizeof(T) / 2;
    union {
        uint4 pieces[PIECES];
        T each[8];
    };
};
