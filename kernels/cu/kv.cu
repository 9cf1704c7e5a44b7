// Upkeep of the cache of keys and values.
#include "foggara.cuh"

// One block over another, in every layer (blockIdx.y). Sizes are in pieces of 16 bytes.
FG_KERNEL(256, kv_copy_block, (uint4 *data, u64 layer, u64 block, u32 from, u32 to)) {
    begin_after_others();
    data += blockIdx.y * layer;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < block; i += (u64)gridDim.x * blockDim.x)
        data[to * block + i] = data[from * block + i];
}
