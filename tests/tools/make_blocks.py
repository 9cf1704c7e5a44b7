#!/usr/bin/env python3
"""Makes tests/golden/blocks/: stored blocks of every GGUF type we read, and the values the `gguf` package says they have.

    python make_blocks.py OUT_DIR

Writes OUT_DIR/{TYPE.blocks, TYPE.values} (little endian, values as f32). The same bytes on every machine.
"""
import pathlib
import sys

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as T, dequantize

# Where a block holds half-precision numbers: random bytes there could be infinite.
HALVES = {T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0],
          T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208]}
VALUES = 512


def blocks(ty, random):
    if ty == T.F32:
        return random.standard_normal(VALUES // 8).astype("<f4").view(np.uint8)
    if ty == T.F16:
        # Every exponent, subnormals included, but neither infinities nor NaN.
        halves = random.integers(0, 1 << 16, VALUES // 8, dtype=np.uint16)
        halves[(halves & 0x7C00) == 0x7C00] = 0x8001
        return halves.view(np.uint8)
    if ty == T.BF16:
        halves = random.integers(0, 1 << 16, VALUES // 8, dtype=np.uint16)
        halves[(halves & 0x7F80) == 0x7F80] = 0x8001
        return halves.view(np.uint8)
    elems, size = GGML_QUANT_SIZES[ty]
    stored = random.integers(0, 256, (VALUES // elems, size), dtype=np.uint8)
    for at in HALVES[ty]:
        halves = (random.standard_normal(len(stored)) * 0.05).astype("<f2")
        stored[:, at:at + 2] = halves.view(np.uint8).reshape(-1, 2)
    return stored


def main():
    out = pathlib.Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    for ty in [T.F32, T.F16, T.BF16, *HALVES]:
        stored = blocks(ty, np.random.Generator(np.random.PCG64(int(ty))))
        values = dequantize(stored.reshape(1, -1), ty).reshape(-1).astype("<f4")
        assert np.isfinite(values).all(), ty
        (out / f"{ty.name}.blocks").write_bytes(stored.tobytes())
        (out / f"{ty.name}.values").write_bytes(values.tobytes())


if __name__ == "__main__":
    main()
