// Products of few rows with matrices: as fast as the matrix can be read.
#include "foggara.cuh"

// out[r][o] = scales[o] · Σ_i x[r][i] · w[o][i] for `rows` rows and `n` outputs of `k` inputs. Rows of w begin every 16 bytes.
// One of three: one matrix `w`; one matrix a batch (`w_table`, no `offsets`), where blockIdx.y is the batch and all rows meet
// it; or one a group (`offsets`), where blockIdx.y counts the groups that have rows, and rows offsets[g]..offsets[g + 1] of out
// meet matrix g. Row r of out reads row x_rows[r] of x if there are x_rows, and row r otherwise.
template <class A>
struct Product {
    float *out;
    u64 out_stride, out_batch;
    const A *x;
    u64 x_stride, x_batch;
    const u32 *x_rows;
    const u8 *w;
    const float *scales;
    const u64 *w_table, *scale_table;
    const u32 *offsets;
    u32 count, rows, n, k;
};
#define PRODUCT(A)                                                                                                      \
    (float *out, u64 out_stride, u64 out_batch, const A *x, u64 x_stride, u64 x_batch, const u32 *x_rows, const u8 *w,  \
     const float *scales, const u64 *w_table, const u64 *scale_table, const u32 *offsets, u32 count, u32 rows, u32 n,   \
     u32 k)
#define THE_PRODUCT \
    {out, out_stride, out_batch, x, x_stride, x_batch, x_rows, w, scales, w_table, scale_table, offsets, count, rows, n, k}

// The `index`-th of the groups that have rows; `count` if there are fewer.
FG_DEVICE u32 group_with_rows(const u32 *offsets, u32 count, u32 index) {
    u32 lane = threadIdx.x % 32;
    for (u32 base = 0; base < count; base += 32) {
        u32 group = base + lane;
        bool some = group < count && offsets[group + 1] > offsets[group];
        u32 all = __ballot_sync(0xffffffffu, some);
        u32 here = __popc(all);
        if (index < here) {
            bool mine = some && __popc(all & ((1u << lane) - 1)) == (int)index;
            return base + __ffs(__ballot_sync(0xffffffffu, mine)) - 1;
        }
        index -= here;
    }
    return count;
}

// Makes of the product the one matrix and its rows that this block has; false if it has none. `first` is the first row of out.
template <class A>
FG_DEVICE bool narrow(Product<A> &p, u32 &first) {
    first = 0;
    u32 group = blockIdx.y;
    if (p.offsets) {
        group = group_with_rows(p.offsets, p.count, group);
        if (group == p.count) return false;
        first = p.offsets[group];
        p.rows = p.offsets[group + 1] - first;
    }
    if (p.w_table) p.w = (const u8 *)p.w_table[group];
    if (p.scale_table) p.scales = (const float *)p.scale_table[group];
    p.x += group * p.x_batch;
    p.out += group * p.out_batch;
    return true;
}

// The pairs of x that meet one unit of weights; zeros past the end. ALIGNED: rows begin at, and have, multiples of 16 bytes.
template <u32 ELEMENTS, bool ALIGNED>
FG_DEVICE void load_x(u32 (&out)[ELEMENTS / 2], const bf16 *x, u32 from, u32 k) {
    FG_UNROLL
    for (u32 i = 0; i < ELEMENTS; i += 8) {
        if (ALIGNED) {
            uint4 v = make_uint4(0, 0, 0, 0);
            if (from + i < k) v = *(const uint4 *)(x + from + i);
            out[i / 2] = v.x, out[i / 2 + 1] = v.y, out[i / 2 + 2] = v.z, out[i / 2 + 3] = v.w;
        } else {
            FG_UNROLL
            for (u32 j = i; j < i + 8; j += 2) {
                u32 low = from + j < k ? x[from + j].bits : 0, high = from + j + 1 < k ? x[from + j + 1].bits : 0;
                out[j / 2] = low | high << 16;
            }
        }
    }
}

// Bytes of a row that a warp takes at a time: a line of the cache, each thread two units of it.
constexpr u32 LINE_UNITS = 8;
// Lines on their way to a warp.
constexpr u32 AHEAD = 2;
constexpr u32 MAX_WARPS = 8;
constexpr u32 OUTPUTS = 16, ROWS = 8, PITCH = 20;

template <class W>
struct Line {
    uint4 low[2], high[2];  // of outputs g and g + 8
};

// Weights go from memory to the registers of the tensor cores directly: a block has 16 outputs, its warps take turns at the lines
// of their rows. Lane 4g + t has unit t of outputs g and g + 8 and of row g of x: the order of the inputs within
// multiply_16x8x16 is not that of memory, but the same for both sides. Eight rows cost what one does, and each row's sum has
// nothing to do with the others.
template <class W, bool ALIGNED>
FG_DEVICE void few_rows(Product<bf16> p) {
    constexpr u32 ELEMENTS = Unit<W>::ELEMENTS;
    FG_SHARED float parts[MAX_WARPS * ROWS * PITCH];
    u32 first;
    if (!narrow(p, first)) return;
    u32 warp = threadIdx.x / 32, warps = blockDim.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    u32 units = (p.k + ELEMENTS - 1) / ELEMENTS, lines = (units + LINE_UNITS - 1) / LINE_UNITS;
    u32 output = blockIdx.x * OUTPUTS;
    const u8 *low = p.w + ((u64)min(output + g, p.n - 1) * units + t) * 16;
    const u8 *high = p.w + ((u64)min(output + g + 8, p.n - 1) * units + t) * 16;

    auto load_line = [&](Line<W> &to, u32 line) {
        FG_UNROLL
        for (u32 i = 0; i < 2; i++) {
            u32 unit = line * LINE_UNITS + i * 4;
            to.low[i] = to.high[i] = make_uint4(0, 0, 0, 0);
            if (unit + t < units) {
                to.low[i] = load_streaming(low + (u64)unit * 16);
                to.high[i] = load_streaming(high + (u64)unit * 16);
            }
        }
    };
    for (u32 pass = 0; pass < p.rows; pass += ROWS) {
        // Where there are fewer than eight rows, the last one is taken again, and its sums left alone.
        u32 row = first + min(pass + g, p.rows - 1);
        const bf16 *x = p.x + (p.x_rows ? p.x_rows[row] : row) * p.x_stride;
        auto load_line_of_x = [&](u32(&to)[2][ELEMENTS / 2], u32 line) {
            FG_UNROLL
            for (u32 i = 0; i < 2; i++) load_x<ELEMENTS, ALIGNED>(to[i], x, (line * LINE_UNITS + i * 4 + t) * ELEMENTS, p.k);
        };
        Line<W> weights[AHEAD];
        u32 xs[2][2][ELEMENTS / 2];
        float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        FG_UNROLL
        for (u32 i = 0; i < AHEAD; i++) load_line(weights[i], warp + i * warps);
        load_line_of_x(xs[0], warp);
        for (u32 line = warp; line < lines; line += AHEAD * warps) {
            FG_UNROLL
            for (u32 i = 0; i < AHEAD; i++) {
                load_line_of_x(xs[(i + 1) % 2], line + (i + 1) * warps);
                FG_UNROLL
                for (u32 half = 0; half < 2; half++) {
                    u32 one[ELEMENTS / 2], two[ELEMENTS / 2];
                    Unit<W>::pairs(one, weights[i].low[half]);
                    Unit<W>::pairs(two, weights[i].high[half]);
                    FG_UNROLL
                    for (u32 j = 0; j < ELEMENTS / 2; j += 2) {
                        u32 a[4] = {one[j], two[j], one[j + 1], two[j + 1]};
                        multiply_16x8x16(sums, a, xs[i % 2][half][j], xs[i % 2][half][j + 1]);
                    }
                }
                load_line(weights[i], line + (i + AHEAD) * warps);
            }
        }

        float *mine = parts + warp * ROWS * PITCH;
        mine[2 * t * PITCH + g] = sums[0];
        mine[(2 * t + 1) * PITCH + g] = sums[1];
        mine[2 * t * PITCH + g + 8] = sums[2];
        mine[(2 * t + 1) * PITCH + g + 8] = sums[3];
        __syncthreads();
        u32 rows = min(p.rows - pass, ROWS);
        for (u32 i = threadIdx.x; i < rows * OUTPUTS; i += blockDim.x) {
            u32 r = i / OUTPUTS, o = i % OUTPUTS;
            if (output + o >= p.n) continue;
            float sum = 0.0f;
            for (u32 j = 0; j < warps; j++) sum += parts[(j * ROWS + r) * PITCH + o];
            if (p.scales) sum *= p.scales[output + o];
            p.out[(first + pass + r) * p.out_stride + output + o] = sum;
        }
        __syncthreads();
    }
}

// `_any`: rows of x of any length, anywhere.
FG_KERNEL_MIN(256, 3, few_rows_bf16, PRODUCT(bf16)) { few_rows<bf16, true>(THE_PRODUCT); }
FG_KERNEL_MIN(256, 3, few_rows_f16, PRODUCT(bf16)) { few_rows<f16, true>(THE_PRODUCT); }
FG_KERNEL_MIN(256, 2, few_rows_f8, PRODUCT(bf16)) { few_rows<f8, true>(THE_PRODUCT); }
FG_KERNEL(256, few_rows_bf16_any, PRODUCT(bf16)) { few_rows<bf16, false>(THE_PRODUCT); }
FG_KERNEL(256, few_rows_f16_any, PRODUCT(bf16)) { few_rows<f16, false>(THE_PRODUCT); }
FG_KERNEL(256, few_rows_f8_any, PRODUCT(bf16)) { few_rows<f8, false>(THE_PRODUCT); }

template <class W>
FG_DEVICE void unpack(float (&out)[16 / sizeof(W)], const uint4 &v) {
    union {
        uint4 all;
        W each[16 / sizeof(W)];
    } unit = {v};
    FG_UNROLL
    for (u32 i = 0; i < 16 / sizeof(W); i++) out[i] = to_float(unit.each[i]);
}

// In plain f32, a warp an output: for activations or weights in f32.
template <class W, class A, u32 R>
FG_DEVICE void plain_rows(Product<A> p) {
    constexpr u32 ELEMENTS = 16 / sizeof(W);
    u32 first;
    if (!narrow(p, first)) return;
    u32 lane = threadIdx.x % 32, output = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (output >= p.n) return;
    u32 units = (p.k + ELEMENTS - 1) / ELEMENTS;
    const u8 *w = p.w + (u64)output * units * 16;
    float scale = p.scales ? p.scales[output] : 1.0f;
    for (u32 pass = 0; pass < p.rows; pass += R) {
        const A *x[R];
        float sums[R];
        FG_UNROLL
        for (u32 r = 0; r < R; r++) {
            u32 row = first + min(pass + r, p.rows - 1);
            x[r] = p.x + (p.x_rows ? p.x_rows[row] : row) * p.x_stride;
            sums[r] = 0.0f;
        }
        for (u32 unit = lane; unit < units; unit += 32) {
            float weights[ELEMENTS];
            unpack<W>(weights, load_streaming(w + (u64)unit * 16));
            FG_UNROLL
            for (u32 i = 0; i < ELEMENTS; i++) {
                u32 at = unit * ELEMENTS + i;
                if (at >= p.k) continue;
                FG_UNROLL
                for (u32 r = 0; r < R; r++) sums[r] += to_float(x[r][at]) * weights[i];
            }
        }
        FG_UNROLL
        for (u32 r = 0; r < R; r++) {
            float sum = warp_sum(sums[r]) * scale;
            if (lane == 0 && pass + r < p.rows) p.out[(first + pass + r) * p.out_stride + output] = sum;
        }
    }
}

FG_KERNEL(256, plain_row_f32, PRODUCT(float)) { plain_rows<float, float, 1>(THE_PRODUCT); }
FG_KERNEL(256, plain_rows_f32, PRODUCT(float)) { plain_rows<float, float, 8>(THE_PRODUCT); }
FG_KERNEL(256, plain_rows_bf16, PRODUCT(float)) { plain_rows<bf16, float, 8>(THE_PRODUCT); }
FG_KERNEL(256, plain_rows_f16, PRODUCT(float)) { plain_rows<f16, float, 8>(THE_PRODUCT); }
FG_KERNEL(256, plain_rows_f8, PRODUCT(float)) { plain_rows<f8, float, 8>(THE_PRODUCT); }
FG_KERNEL(256, plain_row_f32_of_bf16, PRODUCT(bf16)) { plain_rows<float, bf16, 1>(THE_PRODUCT); }
FG_KERNEL(256, plain_rows_f32_of_bf16, PRODUCT(bf16)) { plain_rows<float, bf16, 8>(THE_PRODUCT); }
