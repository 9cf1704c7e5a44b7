"""Serves models of about a billion random weights from a GPU, and compares with transformers.

    cargo build --release && python3 tests/gpu/serve.py

Needs a GPU, PyTorch and transformers; FOGGARA names another program than target/release/foggara. For a Llama and a Mixtral: the log-probabilities of prompts, and greedy tokens where the
reference is sure of them, in f32 and (to see what bf16 alone does) in bf16; how fast streams and prompts are over HTTP. Then, with two workers on the same GPU,
what becomes of a stream whose worker is killed.
"""

import copy
import json
import os
import pathlib
import signal
import subprocess
import tempfile
import threading
import time
import urllib.request

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedTokenizerFast,
)

FOGGARA = os.environ.get("FOGGARA", pathlib.Path(__file__).parents[2] / "target/release/foggara")
URL = "http://127.0.0.1:8080/v1/completions"
VOCAB = 32000
# Of the best token over the second, in log-probability, for the reference to be sure.
SURE = 0.05

LLAMA = LlamaConfig(
    hidden_size=2048, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8, intermediate_size=5632,
    vocab_size=VOCAB, max_position_embeddings=4096, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2,
)
MIXTRAL = MixtralConfig(
    hidden_size=1024, num_hidden_layers=8, num_attention_heads=16, num_key_value_heads=4, intermediate_size=3584,
    num_local_experts=8, num_experts_per_tok=2, vocab_size=VOCAB, max_position_embeddings=4096, sliding_window=None,
    bos_token_id=1, eos_token_id=2,
)


def write_tokenizer(folder):
    """Every byte is a token; the others are never made of text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {f"<s{i}>": i for i in range(3)} | {c: i + 3 for i, c in enumerate(alphabet)}
    vocab |= {f"xq{i}": i for i in range(len(vocab), VOCAB)}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s1>", eos_token="<s2>").save_pretrained(folder)


def make(kind, config, folder):
    """Random weights in bf16, written; returns them in f32."""
    with torch.device("cuda"):
        model = kind(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return model.float().eval()


def prompts():
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(3, VOCAB, (n,), generator=generator).tolist() for n in (7, 40, 130, 300)]


def ask(body):
    request = urllib.request.Request(URL, json.dumps(body).encode(), {"content-type": "application/json"})
    return urllib.request.urlopen(request, timeout=180)


def stream(body, on_token=lambda count: None):
    """The tokens of a streamed answer."""
    tokens = []
    for line in ask(body | {"stream": True}):
        line = line.decode().strip()
        if line.startswith("data: ") and line != "data: [DONE]":
            for choice in json.loads(line[6:])["choices"]:
                tokens += choice.get("token_ids") or []
                on_token(len(tokens))
    return tokens


class Cluster:
    def __init__(self, folder, *arguments):
        command = [FOGGARA, "up", "--model", f"m={folder}", "--coordinators", "1", "--device", "cuda", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline().startswith("ready"), "the cluster did not start"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGINT)
        self.process.wait(60)


def log_probabilities(model, ids):
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([ids], device="cuda")).logits[0].double(), -1)


def loss(of, ids):
    return -of[:-1].gather(1, torch.tensor(ids[1:], device="cuda")[:, None]).mean().item()


def compare(name, exact):
    low = copy.deepcopy(exact).to(torch.bfloat16)
    ours_off = low_off = 0.0
    sure = ours_right = low_right = 0
    for ids in prompts():
        body = {"model": "m", "prompt": ids, "temperature": 0}
        scored = json.load(ask(body | {"max_tokens": 0, "echo": True, "logprobs": 1}))["choices"][0]["logprobs"]
        ours = -sum(scored["token_logprobs"][1:]) / (len(ids) - 1)
        reference = loss(log_probabilities(exact, ids), ids)
        ours_off = max(ours_off, abs(ours - reference))
        low_off = max(low_off, abs(loss(log_probabilities(low, ids), ids) - reference))
        greedy = body | {"max_tokens": 24, "return_token_ids": True, "ignore_eos": True}
        tokens = json.load(ask(greedy))["choices"][0]["token_ids"]
        whole, answered = ids + tokens, slice(len(ids) - 1, -1)
        best = torch.topk(log_probabilities(exact, whole)[answered], 2, -1)
        is_sure = best.values[:, 0] - best.values[:, 1] >= SURE
        right = lambda got: int((is_sure & (got == best.indices[:, 0])).sum())
        sure += int(is_sure.sum())
        ours_right += right(torch.tensor(tokens, device="cuda"))
        low_right += right(log_probabilities(low, whole)[answered].argmax(-1))
    print(f"{name}: off by {ours_off:.4f} at worst, {ours_right} of {sure} sure tokens "
          f"(transformers in bf16: {low_off:.4f}, {low_right})")


def rate(count):
    body = {"model": "m", "max_tokens": 200, "temperature": 0, "return_token_ids": True, "ignore_eos": True}
    got = []
    run = lambda i: got.append(len(stream(body | {"prompt": [3 + i] + prompts()[1]})))
    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    started = time.time()
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    print(f"  {count} streams: {sum(got) / (time.time() - started):.0f} tok/s")


def prompt_rate(count, length):
    body = {"model": "m", "max_tokens": 1, "temperature": 0}
    generator = torch.Generator().manual_seed(7)
    long = [torch.randint(3, VOCAB, (length,), generator=generator).tolist() for _ in range(count)]
    threads = [threading.Thread(target=lambda ids=ids: ask(body | {"prompt": ids}).read()) for ids in long]
    started = time.time()
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    print(f"  {count} prompts of {length}: {count * length / (time.time() - started):.0f} tok/s")


def kill_under_a_stream():
    body = {"model": "m", "prompt": prompts()[1], "max_tokens": 120, "temperature": 0, "return_token_ids": True}
    body["ignore_eos"] = True
    before, killed = stream(body), []

    def kill(count):
        if count >= 40 and not killed:
            status = subprocess.run([FOGGARA, "status", "--json"], capture_output=True, text=True, check=True).stdout
            killed.append(json.loads(status)["workers"][-1]["pid"])
            os.kill(killed[0], signal.SIGKILL)

    after = stream(body, kill)
    same = sum(a == b for a, b in zip(before, after))
    print(f"  a worker killed: {len(after)} of {len(before)} tokens, {same} of them the same")
    assert after == before, "a worker's end changed tokens"


def main():
    torch.manual_seed(1)
    for name, kind, config in [("llama", LlamaForCausalLM, LLAMA), ("mixtral", MixtralForCausalLM, MIXTRAL)]:
        with tempfile.TemporaryDirectory() as folder:
            exact = make(kind, config, folder)
            with Cluster(folder, "--workers", "1"):
                compare(name, exact)
                for count in (1, 32, 128, 400):
                    rate(count)
                prompt_rate(16, 3000)
            if name == "mixtral":
                with Cluster(folder, "--workers", "2", "--tp", "2", "--ep", "2"):
                    compare(f"{name}, two workers", exact)
                    kill_under_a_stream()


main()
