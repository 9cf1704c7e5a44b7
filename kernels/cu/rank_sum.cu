// What ranks have, added up in the order of ranks.
#include "foggara.cuh"

FG_DEVICE float plus(float a, float b) { return a + b; }
FG_DEVICE float4 plus(float4 a, float4 b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }

// out[i] = ((parts[0][i] + parts[1][i]) + parts[2][i]) + …; `parts`: [ranks][len], in elements of one float or four.
template <class V>
FG_DEVICE void rank_sum(V *out, const V *parts, u64 len, u32 ranks) {
    begin_after_others();
    // So many are on their way at once.
    const u32 ahead = 4;
    u64 step = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < len; i += step) {
        V sum = parts[i];
        for (u32 base = 1; base < ranks; base += ahead) {
            V more[ahead];
            FG_UNROLL
            for (u32 a = 0; a < ahead; a++) more[a] = parts[(u64)min(base + a, ranks - 1) * len + i];
            FG_UNROLL
            for (u32 a = 0; a < ahead; a++) {
                if (base + a < ranks) sum = plus(sum, more[a]);
            }
        }
        out[i] = sum;
    }
}

FG_KERNEL(256, rank_sum_1, (float *out, const float *parts, u64 len, u32 ranks)) { rank_sum(out, parts, len, ranks); }
FG_KERNEL(256, rank_sum_4, (float4 *out, const float4 *parts, u64 len, u32 ranks)) { rank_sum(out, parts, len, ranks); }
