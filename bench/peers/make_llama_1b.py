#!/usr/bin/env python3
"""A Llama of 1.17 billion parameters with random 4-bit weights, as a GGUF file and in distributed-llama's format.

    python bench/peers/make_llama_1b.py TOKENIZER.gguf OUT_DIR

Both files hold the same Q4_0 blocks. The tokenizer (49,152 tokens) and its metadata come from TOKENIZER.gguf, the demo model's
file for instance. The text of such a model means nothing; its speed is that of any model of this shape.
Needs the packages gguf and numpy.
"""
import pathlib
import struct
import sys

import numpy as np
from gguf import GGMLQuantizationType as T, GGUFReader, GGUFValueType, GGUFWriter

LAYERS, DIM, HEADS, KV_HEADS, FFN, CONTEXT, THETA = 16, 2048, 32, 8, 8192, 4096, 10000
KV = DIM // HEADS * KV_HEADS
# name in GGUF, outputs, inputs; in the order in which distributed-llama wants a layer's.
PRODUCTS = [("attn_q", DIM, DIM), ("attn_k", KV, DIM), ("attn_v", KV, DIM), ("attn_output", DIM, DIM),
            ("ffn_gate", FFN, DIM), ("ffn_down", DIM, FFN), ("ffn_up", FFN, DIM)]
# Blocks of 32 weights: a scale in half precision, 16 bytes of codes. Both formats lay them out alike.
BLOCK, BLOCK_BYTES = 32, 18


def blocks(random, outputs, inputs):
    """Random codes; scales so that outputs are about as large as inputs."""
    count = outputs * inputs // BLOCK
    stored = random.integers(0, 256, (count, BLOCK_BYTES), dtype=np.uint8)
    scale = np.full(count, 1 / (4.6 * np.sqrt(inputs)), dtype="<f2")
    stored[:, :2] = scale.view(np.uint8).reshape(-1, 2)
    return stored.reshape(outputs, inputs // BLOCK * BLOCK_BYTES)


def values(stored):
    """What blocks say, as f32."""
    by_block = stored.reshape(-1, BLOCK_BYTES)
    scales = by_block[:, :2].copy().view("<f2").astype(np.float32)
    codes = np.concatenate([by_block[:, 2:] & 15, by_block[:, 2:] >> 4], axis=1)
    return (codes.astype(np.float32) - 8) * scales


def copy_tokenizer(source, writer):
    for name, field in source.fields.items():
        if not name.startswith("tokenizer."):
            continue
        kind = field.types[0]
        if kind == GGUFValueType.ARRAY:
            writer.add_array(name, field.contents())
        else:
            writer.add_key_value(name, field.contents(), kind)


def dllama_header(file, vocabulary):
    # Keys of its header: version, architecture (Llama), dim, FFN, layers, heads, key heads, experts, active ones, vocabulary, context,
    # activation (SiLU), theta, type of weights (Q40), epsilon (1e-5).
    pairs = [(0, 0), (1, 0xABCD00), (2, DIM), (3, FFN), (4, LAYERS), (5, HEADS), (6, KV_HEADS), (7, 0), (8, 0), (9, vocabulary),
             (10, CONTEXT), (11, 1), (12, THETA), (13, 2), (20, 5)]
    data = b"".join(struct.pack("<ii", *pair) for pair in pairs)
    file.write(struct.pack("<ii", 0xA00ABCD, 8 + len(data)) + data)


def dllama_tokenizer(path, tokens):
    """Its file of tokens. Byte-level names become the bytes they stand for."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    bytes_of = {chr(byte): byte for byte in printable} | {chr(256 + at): byte for at, byte in enumerate(others)}
    as_bytes = [b"".join(bytes([bytes_of[c]]) if c in bytes_of else c.encode() for c in token) for token in tokens]
    # version, vocabulary, longest token, bos, number of ends, whether to begin with bos.
    pairs = [(0, 1), (1, len(tokens)), (2, max(map(len, as_bytes))), (3, 1), (9, 1), (10, 1)]
    data = b"".join(struct.pack("<ii", *pair) for pair in pairs)
    with open(path, "wb") as file:
        file.write(struct.pack("<ii", 0x567124, 8 + len(data)) + data + struct.pack("<i", 2))
        for rank, token in enumerate(as_bytes):
            file.write(struct.pack("<fI", -float(rank), len(token)) + token)


def main():
    source, out = GGUFReader(sys.argv[1]), pathlib.Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    tokens = source.fields["tokenizer.ggml.tokens"].contents()
    random = np.random.Generator(np.random.PCG64(1))
    writer = GGUFWriter(out / "llama-1b-q4_0.gguf", "llama")
    writer.add_name("Llama 1.17B, random")
    writer.add_block_count(LAYERS)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(DIM)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(float(THETA))
    writer.add_rope_dimension_count(DIM // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_file_type(2)
    copy_tokenizer(source, writer)
    ones = np.ones(DIM, dtype=np.float32)
    with open(out / "llama-1b-q40.m", "wb") as other:
        dllama_header(other, len(tokens))
        embedding = blocks(random, len(tokens), DIM)
        writer.add_tensor("token_embd.weight", embedding, raw_dtype=T.Q4_0)
        other.write(values(embedding).astype("<f4").tobytes())
        for layer in range(LAYERS):
            for name, outputs, inputs in PRODUCTS:
                stored = blocks(random, outputs, inputs)
                writer.add_tensor(f"blk.{layer}.{name}.weight", stored, raw_dtype=T.Q4_0)
                other.write(stored.tobytes())
            for name in ["attn_norm", "ffn_norm"]:
                writer.add_tensor(f"blk.{layer}.{name}.weight", ones)
                other.write(ones.tobytes())
        writer.add_tensor("output_norm.weight", ones)
        other.write(ones.tobytes())
        output = blocks(random, len(tokens), DIM)
        writer.add_tensor("output.weight", output, raw_dtype=T.Q4_0)
        other.write(output.tobytes())
    dllama_tokenizer(out / "llama-1b.t", tokens)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
