#!/usr/bin/env python3
"""How fast OpenVINO GenAI reads a prompt of 512 tokens, and decodes one stream, from the same GGUF file.

    python bench/peers/openvino_rates.py MODEL.gguf [ROUNDS]

Needs the package openvino-genai. Prompts are random token ids, no two alike, as `foggara-bench` sends them.
"""
import sys

import numpy as np
import openvino
import openvino_genai as genai

THREADS, PROMPT, SHORT, ANSWER = 2, 512, 32, 128


def metrics(pipeline, random, length, answer):
    ids = random.integers(1000, 40000, (1, length)).astype(np.int64)
    prompt = genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
    return pipeline.generate(prompt, max_new_tokens=answer, do_sample=False, ignore_eos=True).perf_metrics


def spread(rates):
    rates = sorted(rates)
    return f"{rates[len(rates) // 2]:.0f} tok/s ({rates[0]:.0f} to {rates[-1]:.0f})"


def main():
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    pipeline = genai.LLMPipeline(sys.argv[1], "CPU", INFERENCE_NUM_THREADS=THREADS)
    random = np.random.default_rng(1)
    metrics(pipeline, random, PROMPT, 1)
    print("prefill", spread([1000 * PROMPT / metrics(pipeline, random, PROMPT, 1).get_ttft().mean for _ in range(rounds)]))
    print("decode ", spread([1000 / metrics(pipeline, random, SHORT, ANSWER).get_tpot().mean for _ in range(rounds)]))


if __name__ == "__main__":
    main()
