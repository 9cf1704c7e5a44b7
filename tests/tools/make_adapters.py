#!/usr/bin/env python3
"""Makes tests/golden/adapters: low-rank adapters of tests/golden/llama and tests/golden/mixtral, and what transformers makes of
them. Needs torch, transformers and peft; is run by hand, its results are kept.

llama: a real one of PEFT, and PEFT computes the reference. mixtral: PEFT adapts no experts of transformers 5, where they are one
tensor; the adapter is written as PEFT wrote it for transformers 4, and the reference is the model with W + scale * B * A in place of W.
"""

import json
import pathlib
import sys

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

GOLDEN = pathlib.Path(__file__).resolve().parent.parent / "golden"
REFERENCE = "transformers and peft, float32, eager attention, greedy ignores eos"
NEW_TOKENS = 24


def base(name):
    model = AutoModelForCausalLM.from_pretrained(GOLDEN / name, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


def spread(shape, seed, size):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * size


@torch.no_grad()
def cases(model, name):
    """The prompts of the model's own fixture, answered by the adapted one."""
    made = []
    for case in json.loads((GOLDEN / name / "expected.json").read_text())["cases"]:
        tokens, prompt = list(case["prompt"]), case["prompt"]
        first = None
        for _ in range(NEW_TOKENS):
            logits = model(torch.tensor([tokens]), use_cache=False).logits[0]
            first = logits if first is None else first
            tokens.append(int(logits[-1].argmax()))
        logprobs = torch.log_softmax(first, -1)
        made.append({
            "prompt": prompt,
            "logits_last": [round(float(x), 5) for x in first[-1]],
            "greedy": tokens[len(prompt):],
            "prompt_logprobs": [round(float(logprobs[i, prompt[i + 1]]), 6) for i in range(len(prompt) - 1)],
        })
        assert made[-1]["greedy"] != case["greedy"], "the adapter makes a difference"
    return made


def write(name, made):
    (GOLDEN / "adapters" / name / "expected.json").write_text(json.dumps({"reference": REFERENCE, "cases": made}))


def llama(name, seed, targets, **config):
    torch.manual_seed(seed)
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM", lora_dropout=0.0, **config
    )
    model = get_peft_model(base("llama"), config)
    for i, (key, parameter) in enumerate(sorted(model.named_parameters())):
        if "lora_" in key:
            parameter.data = spread(parameter.shape, seed + i, 0.08)
    folder = GOLDEN / "adapters" / name
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    written = folder / "adapter_config.json"
    config = json.loads(written.read_text()) | {"base_model_name_or_path": "tests/golden/llama"}
    written.write_text(json.dumps(config | {"target_modules": sorted(targets)}, indent=2) + "\n")
    write(name, cases(model.eval(), "llama"))


def mixtral():
    name, rank, alpha = "mixtral", 3, 12
    model = base(name)
    tensors, state = {}, model.state_dict()
    seed = 500

    def adapt(module, weight):
        nonlocal seed
        rows, cols = weight.shape
        a, b = spread((rank, cols), seed, 0.1), spread((rows, rank), seed + 1, 0.1)
        seed += 2
        tensors[f"base_model.model.{module}.lora_A.weight"] = a.to(torch.bfloat16)
        tensors[f"base_model.model.{module}.lora_B.weight"] = b.to(torch.bfloat16)
        weight += alpha / rank * b.to(torch.bfloat16).float() @ a.to(torch.bfloat16).float()

    for layer in range(model.config.num_hidden_layers):
        at = f"model.layers.{layer}"
        for part in ["q_proj", "v_proj", "o_proj"]:
            adapt(f"{at}.self_attn.{part}", state[f"{at}.self_attn.{part}.weight"])
        adapt(f"{at}.block_sparse_moe.gate", state[f"{at}.mlp.gate.weight"])
        gate_up, down = state[f"{at}.mlp.experts.gate_up_proj"], state[f"{at}.mlp.experts.down_proj"]
        width = gate_up.shape[1] // 2
        for expert in range(model.config.num_local_experts):
            part = f"{at}.block_sparse_moe.experts.{expert}"
            adapt(f"{part}.w1", gate_up[expert, :width])
            adapt(f"{part}.w3", gate_up[expert, width:])
            adapt(f"{part}.w2", down[expert])
    folder = GOLDEN / "adapters" / name
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": alpha, "bias": "none", "use_dora": False,
        "use_rslora": False, "fan_in_fan_out": False, "modules_to_save": None, "inference_mode": True,
        "target_modules": ["q_proj", "v_proj", "o_proj", "gate", "w1", "w2", "w3"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    model.load_state_dict(state)
    write(name, cases(model, name))


if __name__ == "__main__":
    everything = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    llama("llama", 100, everything, rank_pattern={"v_proj": 7}, alpha_pattern={"o_proj": 3, "layers.1.mlp.up_proj": 16})
    llama("llama-attention", 300, ["q_proj", "v_proj"], use_rslora=True)
    mixtral()
    sys.exit(0)
