// Spans of attention of one row, put together four elements at a time and made into bf16: what the kernels that make E4M3 of it have in
// common.
#pragma once
#include "attention.cuh"

FG_DEVICE float4 part_at(const float *from, bool live) {
    // Rows of parts begin at multiples of eight bytes.
    if (!live) return make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    float2 low = ((const float2 *)from)[0], high = ((const float2 *)from)[1];
    return make_float4(low.x, low.y, high.x, high.y);
}
FG_DEVICE void merge_four(float4 &sum, float before, const float4 &next, float more) {
    sum.x = merged(sum.x, before, next.x, more), sum.y = merged(sum.y, before, next.y, more);
    sum.z = merged(sum.z, before, next.z, more), sum.w = merged(sum.w, before, next.w, more);
}
// As they are where attention is not cut into spans: in bf16.
FG_DEVICE uint2 in_bf16(float4 v, float share) {
    return make_uint2(to_bf16x2(v.x * share, v.y * share), to_bf16x2(v.z * share, v.w * share));
}
FG_DEVICE float4 floats_of_bf16(uint2 v) {
    return make_float4(low_bf16(v.x), high_bf16(v.x), low_bf16(v.y), high_bf16(v.y));
}
