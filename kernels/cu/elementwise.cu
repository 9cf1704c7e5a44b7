// What is done to each row, or each number, by itself: embeddings, gated activations, biases, rows picked from others.
#include "blocks.cuh"

// One block a row: out[r] = scale · row (tokens[r] - first) of the table, or zeros where there is no such row.
template <class W>
FG_DEVICE void embed(float *out, const u32 *tokens, const u8 *table, const float *scales, u64 row_bytes, u32 table_rows,
                     u32 first, u32 width, float scale) {
    begin_after_others();
    u32 row = tokens[blockIdx.x] - first;  // huge for tokens before the first
    bool live = row < table_rows;
    const u8 *from = table + (live ? row : 0) * row_bytes;
    if (live && scales) scale *= scales[row];
    out += (u64)blockIdx.x * width;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        float weight;
        if constexpr (BLOCKS<W>) weight = block_weight<W>(from, width, i);
        else weight = to_float(((const W *)from)[i]);
        out[i] = live ? weight * scale : 0.0f;
    }
}

#define EMBED(name, type)                                                                                              \
    FG_KERNEL(1024, name, (float *out, const u32 *tokens, const u8 *table, const float *scales, u64 row_bytes,         \
                           u32 table_rows, u32 first, u32 width, float scale)) {                                       \
        embed<type>(out, tokens, table, scales, row_bytes, table_rows, first, width, scale);                           \
    }
EMBED(embed_f32, float)
EMBED(embed_bf16, bf16)
EMBED(embed_f16, f16)
EMBED(embed_f8, f8)
EMBED(embed_q8_0, q8_0)
EMBED(embed_q4_0, q4_0)
EMBED(embed_q4_1, q4_1)
EMBED(embed_q5_1, q5_1)
EMBED(embed_q4_k, q4_k)
EMBED(embed_q5_k, q5_k)
EMBED(embed_q6_k, q6_k)

// Tokens that the step before has found take their places: where `tokens` has FED, a row is named, and whether its token was drawn.
constexpr u32 FED = 1u << 31, FED_DRAWN = 1u << 30;

FG_KERNEL(256, feed_tokens, (u32 *tokens, const u32 *greatest, const u32 *drawn, u32 rows, u32 greatest_rows,
                             u32 drawn_rows)) {
    begin_after_others();
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= rows) return;
    u32 token = tokens[i];
    if (!(token & FED)) return;
    u32 row = token & (FED_DRAWN - 1);
    bool was_drawn = token & FED_DRAWN;
    if (row < (was_drawn ? drawn_rows : greatest_rows)) tokens[i] = was_drawn ? drawn[row] : greatest[row];
}

// Elements of a row that each thread works at, so that several loads are on their way.
constexpr u32 EACH = 4;

// Blocks: rows × parts of a row. Row r has `width` gates, then `width` others. With groups, the bias has a row for each of
// them, and rows from the end of the last group on are left alone.
template <class A>
FG_DEVICE void gated(A *out, const float *gate_up, const float *bias, const u32 *group_of_row, const u32 *total, u32 width,
                     u32 activation, float alpha, float limit) {
    begin_after_others();
    u64 row = blockIdx.x;
    if (total && row >= *total) return;
    const float *gate = gate_up + row * width * 2;
    if (bias && group_of_row) bias += (u64)group_of_row[row] * width * 2;
    u32 first = blockIdx.y * blockDim.x * EACH + threadIdx.x;
    FG_UNROLL
    for (u32 step = 0; step < EACH; step++) {
        u32 i = first + step * blockDim.x;
        if (i >= width) return;
        float g = gate[i], u = gate[width + i];
        if (bias) {
            g += bias[i];
            u += bias[width + i];
        }
        store(out + row * width + i, activate(activation, g, u, alpha, limit));
    }
}

#define GATED(name, type)                                                                                              \
    FG_KERNEL(256, name, (type *out, const float *gate_up, const float *bias, const u32 *group_of_row,                 \
                          const u32 *total, u32 width, u32 activation, float alpha, float limit)) {                    \
        gated(out, gate_up, bias, group_of_row, total, width, activation, alpha, limit);                               \
    }
GATED(gated_f32, float)
GATED(gated_bf16, bf16)

// Blocks: rows × parts of a row.
FG_KERNEL(256, add_bias, (float *x, const float *bias, u64 stride, u32 width)) {
    begin_after_others();
    u32 i = blockIdx.y * blockDim.x + threadIdx.x;
    if (i < width) x[blockIdx.x * stride + i] += bias[i];
}

// x = cap · tanh(x / cap), element by element.
FG_KERNEL(256, soft_cap, (float *x, u64 len, float cap)) {
    begin_after_others();
    u64 first = (u64)blockIdx.x * blockDim.x * EACH + threadIdx.x;
    FG_UNROLL
    for (u32 step = 0; step < EACH; step++) {
        u64 i = first + step * blockDim.x;
        if (i < len) x[i] = cap * tanhf(x[i] / cap);
    }
}

// One block a row of `words` pieces: out[r] = x[rows[r]], or zeros where there is no such row.
template <class T>
FG_DEVICE void gather_rows(T *out, const T *x, const u32 *rows, u32 x_rows, u32 words, T zero) {
    begin_after_others();
    u32 row = rows[blockIdx.x];
    const T *from = x + (u64)row * words;
    out += (u64)blockIdx.x * words;
    for (u32 i = threadIdx.x; i < words; i += blockDim.x) out[i] = row < x_rows ? from[i] : zero;
}

FG_KERNEL(1024, gather_rows_2, (u16 *out, const u16 *x, const u32 *rows, u32 x_rows, u32 words)) {
    gather_rows(out, x, rows, x_rows, words, (u16)0);
}
FG_KERNEL(1024, gather_rows_4, (u32 *out, const u32 *x, const u32 *rows, u32 x_rows, u32 words)) {
    gather_rows(out, x, rows, x_rows, words, (u32)0);
}
FG_KERNEL(1024, gather_rows_16, (uint4 *out, const uint4 *x, const u32 *rows, u32 x_rows, u32 words)) {
    gather_rows(out, x, rows, x_rows, words, uint4{0, 0, 0, 0});
}
