// Products of few rows with matrices: as fast as the matrix can be read.
#include "foggara.cuh"

// out[r][o] = scales[o] · Σ_i x[r][i] · w[o][i] for `rows` rows and `n` outputs of `k` inputs. Rows of w begin every 16 bytes.
// One of three: one matrix `w`; one matrix a batch (`w_table`, no `offsets`), where blockIdx.y is the batch and all rows meet
// it; or one a group (`offsets`), where blockIdx.y counts the groups that have rows, and rows offsets[g]..offsets[g + 1] of out
// meet matrix g. Row r of out reads row x_rows[r] of x if there are x_rows, and row r otherwise.
//
// `known`: after the offsets were written, another product of these groups was started before this one. Such products let the next
// kernel begin only when they themselves have waited, so the offsets were there before this one began, and matrices are asked for
// before it waits.
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
    u32 count, rows, n, k, known;
};
#define PRODUCT(A)                                                                                                      \
    (float *out, u64 out_stride, u64 out_batch, const A *x, u64 x_stride, u64 x_batch, const u32 *x_rows, const u8 *w,  \
     const float *scales, const u64 *w_table, const u64 *scale_table, const u32 *offsets, u32 count, u32 rows, u32 n,   \
     u32 k, u32 known)
#define THE_PRODUCT \
    {out, out_stride, out_batch, x, x_stride, x_batch, x_rows, w, scales, w_table, scale_table, offsets, count, rows, n, k, \
     known}

struct Gate {
    u32 activation;
    float alpha, limit;
};
#define GATED_PRODUCT                                                                                                   \
    (float *out, u64 out_stride, u64 out_batch, const bf16 *x, u64 x_stride, u64 x_batch, const u32 *x_rows,            \
     const u8 *w, const float *scales, const u64 *w_table, const u64 *scale_table, const u32 *offsets, u32 count,       \
     u32 rows, u32 n, u32 k, u32 known, u32 activation, float alpha, float limit)

// The `index`-th of the groups that have rows; `count` if there are fewer.
FG_DEVICE u32 group_with_rows(const u32 *offsets, u32 count, u32 index) {
    u32 lane = threadIdx.x % 32;
    for (u32 base = 0; base < count; base += 32) {
        u32 group = base + lane;
        bool some = group < count && load_latest(offsets + group + 1) > load_latest(offsets + group);
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
        if (!p.known) wait_for_kernel_before();
        group = group_with_rows(p.offsets, p.count, group);
        if (group == p.count) return false;
        first = load_latest(p.offsets + group);
        p.rows = load_latest(p.offsets + group + 1) - first;
    }
    if (p.w_table) p.w = (const u8 *)p.w_table[group];
    if (p.scale_table) p.scales = (const float *)p.scale_table[group];
    p.x += group * p.x_batch;
    p.out += group * p.out_batch;
    return true;
}

// What is known of sizes.
constexpr u32 ANY = 0;
constexpr u32 ALIGNED = 1;  // rows of x begin at, and have, multiples of 16 bytes
constexpr u32 WHOLE = 2;    // and those of w are whole rounds: lines that the warps of a block read at a time, AHEAD each

// The pairs of x that meet one unit of weights; zeros past the end.
template <u32 ELEMENTS, u32 KNOWN>
FG_DEVICE void load_x(u32 (&out)[ELEMENTS / 2], const bf16 *x, u32 from, u32 k) {
    FG_UNROLL
    for (u32 i = 0; i < ELEMENTS; i += 8) {
        if (KNOWN != ANY) {
            uint4 v = load_cached_or_zero(x + from + i, KNOWN == WHOLE || from + i < k);
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

// Units of a row that a warp takes at a time: a line of the cache, of which each thread has two.
constexpr u32 LINE_UNITS = 8;
constexpr u32 MAX_WARPS = 8;
constexpr u32 OUTPUTS = 16, PITCH = 20;

struct Line {
    uint4 low[2], high[2];  // of outputs g and g + 8
};

// The lines of some tiles of 16 outputs that one warp reads, one tile after the other without a stop in between. The warps of a
// block take turns at the lines of a tile; all have as many, some of which may lie past the end and are zeros.
struct Lines {
    const u8 *w;
    u32 units, n;           // of a row; outputs
    const u8 *low, *high;   // this thread's first unit of the next line
    u32 steps, step;        // lines of a tile; the next one
    u32 tile, end;
};

// `GATED`: a tile has 8 outputs and the 8 that are n / 2 after them.
template <bool GATED>
FG_DEVICE void begin_tile(Lines &lines) {
    u32 g = threadIdx.x % 32 / 4, unit = threadIdx.x / 32 * LINE_UNITS + threadIdx.x % 4;
    u32 tile = min(lines.tile, lines.end - 1);
    u32 low = GATED ? min(tile * 8 + g, lines.n / 2 - 1) : min(tile * OUTPUTS + g, lines.n - 1);
    u32 high = GATED ? lines.n / 2 + low : min(tile * OUTPUTS + g + 8, lines.n - 1);
    lines.low = lines.w + ((u64)low * lines.units + unit) * 16;
    lines.high = lines.w + ((u64)high * lines.units + unit) * 16;
    lines.step = 0;
}

// `turns`: whether this may be the first line of a tile.
template <u32 KNOWN, bool GATED>
FG_DEVICE void next_line(Line &to, Lines &lines, bool turns) {
    if (turns && lines.step == lines.steps) {
        lines.tile++;
        begin_tile<GATED>(lines);
    }
    u32 warps = blockDim.x / 32, unit = (lines.step * warps + threadIdx.x / 32) * LINE_UNITS + threadIdx.x % 4;
    FG_UNROLL
    for (u32 i = 0; i < 2; i++) {
        if (KNOWN == WHOLE) {
            // Past the last tile nothing is read, and what is there not used.
            to.low[i] = load_streaming_if(lines.low + i * 64, lines.tile < lines.end);
            to.high[i] = load_streaming_if(lines.high + i * 64, lines.tile < lines.end);
        } else {
            bool live = unit + i * 4 < lines.units && lines.tile < lines.end;
            to.low[i] = load_streaming_or_zero(lines.low + i * 64, live);
            to.high[i] = load_streaming_or_zero(lines.high + i * 64, live);
        }
    }
    lines.low += warps * LINE_UNITS * 16;
    lines.high += warps * LINE_UNITS * 16;
    lines.step++;
}

// Weights go from memory to the registers of the tensor cores directly. Lane 4g + t has unit t of outputs g and g + 8 and of
// row g of x: the order of the inputs within multiply_16x8x16 is not that of memory, but the same for both sides. Eight rows
// cost what one does, and each row's sum has nothing to do with the others. EIGHTS · 8 rows share a reading of the matrix; AHEAD
// lines are on their way to a warp, the first of them before the kernel before has ended.
//
// `GATED`: the activation of outputs o and o + n / 2 goes to out, in bf16.
template <class W, u32 KNOWN, u32 EIGHTS, u32 AHEAD, bool GATED = false>
FG_DEVICE void few_rows(Product<bf16> p, Gate gate = {}) {
    constexpr u32 ELEMENTS = Unit<W>::ELEMENTS, ROWS = 8 * EIGHTS;
    FG_SHARED float parts[2][MAX_WARPS * ROWS * PITCH];
    u32 first;
    if (!p.offsets) let_next_kernel_begin();
    if (!narrow(p, first)) {
        wait_for_kernel_before();
        return;
    }
    u32 warp = threadIdx.x / 32, warps = blockDim.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    u32 tiles = (p.n + OUTPUTS - 1) / OUTPUTS, each = (tiles + gridDim.x - 1) / gridDim.x;
    u32 begin = min(blockIdx.x * each, tiles), end = min(begin + each, tiles);
    if (begin == end) {
        wait_for_kernel_before();
        return;
    }
    u32 units = (p.k + ELEMENTS - 1) / ELEMENTS, a_round = LINE_UNITS * warps * AHEAD;
    Lines lines = {p.w, units, p.n, nullptr, nullptr, (units + a_round - 1) / a_round * AHEAD, 0, begin, end};
    u32 x_begin = (warp * LINE_UNITS + t) * ELEMENTS, x_step = warps * LINE_UNITS * ELEMENTS;

    u32 turn = 0;
    FG_NO_UNROLL
    for (u32 pass = 0; pass < p.rows; pass += ROWS) {
        lines.tile = begin;
        begin_tile<GATED>(lines);
        Line weights[AHEAD];
        FG_UNROLL
        for (u32 i = 0; i < AHEAD; i++) next_line<KNOWN, GATED>(weights[i], lines, false);
        // Weights are always there, x only now.
        wait_for_kernel_before();
        let_next_kernel_begin();

        const bf16 *x[EIGHTS];
        u32 xs[2][EIGHTS][ELEMENTS / 2], rows = min(p.rows - pass, ROWS), at = x_begin;
        FG_UNROLL
        for (u32 e = 0; e < EIGHTS; e++) {
            // Where there are fewer rows, the last one is taken again, and its sums left alone.
            u32 row = first + min(pass + e * 8 + g, p.rows - 1);
            x[e] = p.x + (p.x_rows ? p.x_rows[row] : row) * p.x_stride;
            load_x<ELEMENTS, KNOWN>(xs[0][e], x[e], at, p.k);
        }
        FG_NO_UNROLL
        for (u32 tile = begin; tile < end; tile++) {
            float sums[EIGHTS][4];
            FG_UNROLL
            for (u32 e = 0; e < EIGHTS; e++) sums[e][0] = sums[e][1] = sums[e][2] = sums[e][3] = 0.0f;
            FG_NO_UNROLL
            for (u32 step = 0; step < lines.steps; step += AHEAD) {
                FG_UNROLL
                for (u32 i = 0; i < AHEAD; i++) {
                    FG_UNROLL
                    for (u32 half = 0; half < 2; half++) {
                        if (half == 1) at = i == AHEAD - 1 && step + AHEAD == lines.steps ? x_begin : at + x_step;
                        FG_UNROLL
                        for (u32 e = 0; e < EIGHTS; e++) {
                            load_x<ELEMENTS, KNOWN>(xs[1 - half][e], x[e], half == 0 ? at + 4 * ELEMENTS : at, p.k);
                        }
                        u32 one[ELEMENTS / 2], two[ELEMENTS / 2];
                        Unit<W>::pairs(one, weights[i].low[half]);
                        Unit<W>::pairs(two, weights[i].high[half]);
                        FG_UNROLL
                        for (u32 j = 0; j < ELEMENTS / 2; j += 2) {
                            u32 a[4] = {one[j], two[j], one[j + 1], two[j + 1]};
                            FG_UNROLL
                            for (u32 e = 0; e < EIGHTS; e++) {
                                multiply_16x8x16(sums[e], a, xs[half][e][j], xs[half][e][j + 1]);
                            }
                        }
                    }
                    next_line<KNOWN, GATED>(weights[i], lines, i == 0);
                }
            }

            // Two turns' sums have room, so one barrier a tile is enough.
            float *all = parts[turn++ % 2];
            FG_UNROLL
            for (u32 e = 0; e < EIGHTS; e++) {
                float *mine = all + (warp * ROWS + e * 8 + 2 * t) * PITCH + g;
                mine[0] = sums[e][0], mine[PITCH] = sums[e][1];
                mine[8] = sums[e][2], mine[PITCH + 8] = sums[e][3];
            }
            __syncthreads();
            if constexpr (GATED) {
                FG_NO_UNROLL
                for (u32 i = threadIdx.x; i < rows * 8; i += blockDim.x) {
                    u32 r = i / 8, width = p.n / 2, o = tile * 8 + i % 8;
                    if (o >= width) continue;
                    float sum = 0.0f, up = 0.0f;
                    FG_NO_UNROLL
                    for (u32 j = 0; j < warps; j++) {
                        const float *two = all + (j * ROWS + r) * PITCH + i % 8;
                        sum += two[0], up += two[8];
                    }
                    // Rounded, as they are where the activation is a kernel by itself.
                    if (p.scales) sum = __fmul_rn(sum, p.scales[o]), up = __fmul_rn(up, p.scales[width + o]);
                    float x = activate(gate.activation, sum, up, gate.alpha, gate.limit);
                    store((bf16 *)p.out + (first + pass + r) * p.out_stride + o, x);
                }
            } else {
                FG_NO_UNROLL
                for (u32 i = threadIdx.x; i < rows * OUTPUTS; i += blockDim.x) {
                    u32 r = i / OUTPUTS, o = tile * OUTPUTS + i % OUTPUTS;
                    if (o >= p.n) continue;
                    float sum = 0.0f;
                    FG_NO_UNROLL
                    for (u32 j = 0; j < warps; j++) sum += all[(j * ROWS + r) * PITCH + i % OUTPUTS];
                    if (p.scales) sum *= p.scales[o];
                    p.out[(first + pass + r) * p.out_stride + o] = sum;
                }
            }
        }
    }
}

#define FEW_ROWS(type, ahead)                                                                                       \
    FG_KERNEL_MIN(256, 2, few_rows_##type, PRODUCT(bf16)) { few_rows<type, WHOLE, 1, 4>(THE_PRODUCT); }             \
    FG_KERNEL_MIN(256, FG_FEWER_ON_BLACKWELL(2), few_rows_16_##type, PRODUCT(bf16)) { few_rows<type, WHOLE, 2, ahead>(THE_PRODUCT); }      \
    FG_KERNEL_MIN(256, 1, few_rows_aligned_##type, PRODUCT(bf16)) { few_rows<type, ALIGNED, 1, 2>(THE_PRODUCT); }   \
    FG_KERNEL_MIN(256, 1, few_rows_any_##type, PRODUCT(bf16)) { few_rows<type, ANY, 1, 2>(THE_PRODUCT); }
FEW_ROWS(bf16, 4)
FEW_ROWS(f16, 2)
FEW_ROWS(f8, 4)

// The same, with the gated activation of what comes out: out is in bf16, and n / 2 wide.
#define GATED(type)                                                                                                   \
    FG_KERNEL_MIN(256, 2, gated_rows_##type, GATED_PRODUCT) {                                                         \
        few_rows<type, WHOLE, 1, 4, true>(THE_PRODUCT, {activation, alpha, limit});                                   \
    }
GATED(bf16)
GATED(f16)
GATED(f8)

template <class W>
FG_DEVICE void unpack(float (&out)[16 / sizeof(W)], const uint4 &v) {
    union {
        uint4 all;
        W each[16 / sizeof(W)];
    } unit = {v};
    FG_UNROLL
    for (u32 i = 0; i < 16 / sizeof(W); i++) out[i] = to_float(unit.each[i]);
}

// In plain f32, for activations or weights in f32: a warp an output; or, with as many blocks as outputs, all warps of a block. What
// a thread adds up, and in which order, depends on sizes of the matrix only: R says how many rows share a reading of it.
template <class W, class A, u32 R>
FG_DEVICE void plain_rows(Product<A> p) {
    constexpr u32 ELEMENTS = 16 / sizeof(W), AHEAD = 4;
    FG_SHARED float parts[2][MAX_WARPS][R];
    u32 first;
    wait_for_kernel_before();
    let_next_kernel_begin();
    if (!narrow(p, first)) return;
    bool alone = gridDim.x < p.n;
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    u32 output = alone ? blockIdx.x * warps + warp : blockIdx.x;
    if (output >= p.n) return;
    u32 units = (p.k + ELEMENTS - 1) / ELEMENTS;
    u32 begin = alone ? lane : threadIdx.x, step = alone ? 32 : blockDim.x, turn = 0;
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
        FG_NO_UNROLL
        for (u32 next = begin; next < units; next += AHEAD * step) {
            uint4 weights[AHEAD];
            FG_UNROLL
            for (u32 a = 0; a < AHEAD; a++) {
                u32 unit = next + a * step;
                weights[a] = load_streaming_or_zero(w + (u64)unit * 16, unit < units);
            }
            FG_UNROLL
            for (u32 a = 0; a < AHEAD; a++) {
                float each[ELEMENTS];
                unpack<W>(each, weights[a]);
                FG_UNROLL
                for (u32 i = 0; i < ELEMENTS; i++) {
                    u32 at = (next + a * step) * ELEMENTS + i;
                    if (at >= p.k) continue;
                    FG_UNROLL
                    for (u32 r = 0; r < R; r++) sums[r] = fmaf(to_float(x[r][at]), each[i], sums[r]);
                }
            }
        }
        FG_UNROLL
        for (u32 r = 0; r < R; r++) {
            sums[r] = warp_sum(sums[r]);
            if (lane == 0) parts[turn % 2][warp][r] = sums[r];
        }
        if (!alone) __syncthreads();
        FG_UNROLL
        for (u32 r = 0; r < R; r++) {
            if (lane != 0 || pass + r >= p.rows || (!alone && warp != 0)) continue;
            float sum = alone ? sums[r] : 0.0f;
            for (u32 j = 0; !alone && j < warps; j++) sum += parts[turn % 2][j][r];
            p.out[(first + pass + r) * p.out_stride + output] = sum * scale;
        }
        turn++;
    }
}

FG_KERNEL(256, plain_row_f32, PRODUCT(float)) { plain_rows<float, float, 1>(THE_PRODUCT); }
FG_KERNEL(256, plain_rows_f32, PRODUCT(float)) { plain_rows<float, float, 8>(THE_PRODUCT); }
FG_KERNEL(256, plain_rows_bf16, PRODUCT(float)) { plain_rows<bf16, float, 8>(THE_PRODUCT); }
FG_KERNEL(256, plain_rows_f16, PRODUCT(float)) { plain_rows<f16, float, 8>(THE_PRODUCT); }
FG_KERNEL(256, plain_rows_f8, PRODUCT(float)) { plain_rows<f8, float, 8>(THE_PRODUCT); }
FG_KERNEL(256, plain_row_f32_of_bf16, PRODUCT(bf16)) { plain_rows<float, bf16, 1>(THE_PRODUCT); }
FG_KERNEL(256, plain_rows_f32_of_bf16, PRODUCT(bf16)) { plain_rows<float, bf16, 8>(THE_PRODUCT); }
