#!/usr/bin/env python3
"""Builds the bf16 Hugging Face checkpoints the tests measure against, from a SmolLM2 GGUF file.

    python make_smol.py MODEL.gguf OUT_DIR [--mixtral NOISE]

Writes OUT_DIR/{config.json, generation_config.json, tokenizer.json, tokenizer_config.json, model.safetensors}: the GGUF
file's weights dequantized and rounded to bf16. With --mixtral, a Mixtral in three shards: every MLP becomes eight experts,
each the dense MLP plus noise of its own (NOISE times the standard deviation of the matrix), behind a random router of two;
with 0, whatever the router picks, the text is the dense model's. The same input gives the same bytes on every machine.
"""
import argparse
import json
import pathlib

import numpy as np
import ml_dtypes
from gguf import GGUFReader, dequantize
from safetensors.numpy import save_file

BF16 = ml_dtypes.bfloat16
EXPERTS, TOP_K = 8, 2


def unpermute(w, heads):
    """GGUF stores q/k rows in interleaved-pair order; Hugging Face wants half-split order."""
    rows, cols = w.shape
    return w.reshape(heads, rows // heads // 2, 2, cols).swapaxes(1, 2).reshape(rows, cols)


def tokenizer_json(fields):
    tokens = fields["tokenizer.ggml.tokens"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()
    merges = fields["tokenizer.ggml.merges"].contents()
    special = [i for i, t in enumerate(types) if t == 3]
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [dict(id=i, content=tokens[i], single_word=False, lstrip=False, rstrip=False,
                              normalized=False, special=True) for i in special],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}]},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {t: i for i, t in enumerate(tokens)}, "merges": merges},
    }


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("gguf", type=pathlib.Path)
    ap.add_argument("out", type=pathlib.Path)
    ap.add_argument("--mixtral", type=float, metavar="NOISE", help="make a Mixtral with experts that differ so much")
    a = ap.parse_args()
    r = GGUFReader(a.gguf)
    f = r.fields
    get = lambda k: f[k].contents()
    heads, kv_heads = get("llama.attention.head_count"), get("llama.attention.head_count_kv")
    layers, hidden, ffn = get("llama.block_count"), get("llama.embedding_length"), get("llama.feed_forward_length")
    t = {x.name: dequantize(x.data, x.tensor_type).astype(np.float32) for x in r.tensors}
    base = {"model.embed_tokens.weight": t["token_embd.weight"], "model.norm.weight": t["output_norm.weight"]}
    mlp = {}
    for i in range(layers):
        g, p = f"blk.{i}.", f"model.layers.{i}."
        base[p + "input_layernorm.weight"] = t[g + "attn_norm.weight"]
        base[p + "post_attention_layernorm.weight"] = t[g + "ffn_norm.weight"]
        base[p + "self_attn.q_proj.weight"] = unpermute(t[g + "attn_q.weight"], heads)
        base[p + "self_attn.k_proj.weight"] = unpermute(t[g + "attn_k.weight"], kv_heads)
        base[p + "self_attn.v_proj.weight"] = t[g + "attn_v.weight"]
        base[p + "self_attn.o_proj.weight"] = t[g + "attn_output.weight"]
        mlp[i] = [t[g + "ffn_gate.weight"], t[g + "ffn_down.weight"], t[g + "ffn_up.weight"]]  # Mixtral's w1, w2, w3
    common = dict(torch_dtype="bfloat16", hidden_size=hidden, intermediate_size=ffn, num_hidden_layers=layers,
                  num_attention_heads=heads, num_key_value_heads=kv_heads, vocab_size=get("llama.vocab_size"),
                  max_position_embeddings=get("llama.context_length"), rope_theta=float(get("llama.rope.freq_base")),
                  rms_norm_eps=1e-5, hidden_act="silu", bos_token_id=1, eos_token_id=2, pad_token_id=2,
                  tie_word_embeddings=True, attention_dropout=0.0)
    tok = tokenizer_json(f)
    tok_cfg = dict(tokenizer_class="PreTrainedTokenizerFast", bos_token="<|im_start|>", eos_token="<|im_end|>",
                   pad_token="<|im_end|>", unk_token="<|endoftext|>", model_max_length=8192,
                   chat_template=get("tokenizer.chat_template"))

    def write(cfg, shards):
        d = a.out
        d.mkdir(parents=True, exist_ok=True)
        (d / "config.json").write_text(json.dumps(cfg, indent=2))
        (d / "generation_config.json").write_text(json.dumps(dict(bos_token_id=1, eos_token_id=2, pad_token_id=2)))
        (d / "tokenizer.json").write_text(json.dumps(tok)); (d / "tokenizer_config.json").write_text(json.dumps(tok_cfg, indent=2))
        where, total = {}, 0
        for n, shard in enumerate(shards):
            file = "model.safetensors" if len(shards) == 1 else f"model-{n + 1:05}-of-{len(shards):05}.safetensors"
            shard = {k: np.ascontiguousarray(v).astype(BF16) for k, v in shard.items()}
            save_file(shard, d / file, metadata={"format": "pt"})
            where.update({k: file for k in shard})
            total += sum(v.nbytes for v in shard.values())
        if len(shards) > 1:
            index = dict(metadata=dict(total_size=total), weight_map=where)
            (d / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))

    if a.mixtral is not None:
        shards, part = [], dict(base)
        for i, matrices in mlp.items():
            rng = np.random.default_rng(1000 + i)
            p = f"model.layers.{i}.block_sparse_moe."
            part[p + "gate.weight"] = rng.standard_normal((EXPERTS, hidden), dtype=np.float32) * (2.0 / hidden ** 0.5)
            for e in range(EXPERTS):
                for w, m in zip(("w1", "w2", "w3"), matrices):
                    noise = rng.standard_normal(m.shape, dtype=np.float32) * (a.mixtral * m.std()) if a.mixtral else 0.0
                    part[f"{p}experts.{e}.{w}.weight"] = m + noise
            if i % 10 == 9:
                shards.append(part)
                part = {}
        write(dict(common, architectures=["MixtralForCausalLM"], model_type="mixtral", num_local_experts=EXPERTS,
                   num_experts_per_tok=TOP_K, sliding_window=None, output_router_logits=False,
                   router_aux_loss_coef=0.02), shards)
        return
    dense = dict(base)
    for i, (gate, down, up) in mlp.items():
        p = f"model.layers.{i}.mlp."
        dense[p + "gate_proj.weight"], dense[p + "down_proj.weight"], dense[p + "up_proj.weight"] = gate, down, up
    write(dict(common, architectures=["LlamaForCausalLM"], model_type="llama", attention_bias=False, mlp_bias=False), [dense])


if __name__ == "__main__":
    main()
