// Rows in f32, in the type that products take.
#include "foggara.cuh"

template <class A>
FG_DEVICE void convert(A *out, const float *x, u64 count) {
    begin_after_others();
    u64 step = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) store(out + i, x[i]);
}

FG_KERNEL(256, convert_f32, (float *out, const float *x, u64 count)) { convert(out, x, count); }
FG_KERNEL(256, convert_bf16, (bf16 *out, const float *x, u64 count)) { convert(out, x, count); }
