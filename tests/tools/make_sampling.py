#!/usr/bin/env python3
"""Makes tests/expected/sampling.json: what transformers' logits processors make of rows of logits.

    python make_sampling.py OUT_FILE

Needs torch and transformers. Presence and frequency penalties, which transformers does not have, are written down here as
OpenAI defines them. The order is that of worker/src/engine/sampler/mod.rs.
"""
import json
import pathlib
import random
import sys

import torch
from transformers.generation.logits_process import (
    LogitsProcessorList, MinNewTokensLengthLogitsProcessor, MinPLogitsWarper, NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor, SequenceBiasLogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper,
    TopPLogitsWarper)

VOCAB = 48
NOTHING = dict(temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, repetition_penalty=1.0, presence_penalty=0.0,
               frequency_penalty=0.0, logit_bias=[], allowed_token_ids=[], bad_words=[], min_tokens=0, stop_token_ids=[])


class Allow:
    def __init__(self, ids):
        self.ids = ids

    def __call__(self, _, scores):
        kept = torch.full_like(scores, -float("inf"))
        kept[:, self.ids] = scores[:, self.ids]
        return kept


class CountPenalties:
    def __init__(self, prompt_len, presence, frequency):
        self.prompt_len, self.presence, self.frequency = prompt_len, presence, frequency

    def __call__(self, ids, scores):
        counts = torch.bincount(ids[0, self.prompt_len:], minlength=VOCAB)
        return scores - self.frequency * counts - self.presence * (counts > 0)


class InAnswer:
    """A processor that sees the answer alone, as bad words are looked for there."""

    def __init__(self, prompt_len, processor):
        self.prompt_len, self.processor = prompt_len, processor

    def __call__(self, ids, scores):
        return self.processor(ids[:, self.prompt_len:], scores)


def processors(s, prompt_len):
    if s["allowed_token_ids"]:
        yield Allow(s["allowed_token_ids"])
    if s["bad_words"]:
        yield InAnswer(prompt_len, NoBadWordsLogitsProcessor(s["bad_words"], eos_token_id=[VOCAB - 1]))
    if s["min_tokens"]:
        yield MinNewTokensLengthLogitsProcessor(prompt_len, s["min_tokens"], s["stop_token_ids"])
    if s["logit_bias"]:
        yield SequenceBiasLogitsProcessor([[[token], bias] for token, bias in s["logit_bias"]])
    if s["repetition_penalty"] != 1:
        yield RepetitionPenaltyLogitsProcessor(s["repetition_penalty"])
    yield CountPenalties(prompt_len, s["presence_penalty"], s["frequency_penalty"])
    yield TemperatureLogitsWarper(s["temperature"])
    if s["min_p"]:
        yield MinPLogitsWarper(s["min_p"])
    if s["top_k"]:
        yield TopKLogitsWarper(s["top_k"])
    if s["top_p"] < 1:
        yield TopPLogitsWarper(s["top_p"])


def settings(chance):
    """One parameter at a time first, then several together."""
    one = [{}, dict(temperature=0.4), dict(temperature=3.0), dict(top_p=0.5), dict(top_p=0.95), dict(top_p=0.01), dict(top_k=1),
           dict(top_k=7), dict(min_p=0.05), dict(min_p=1.0), dict(repetition_penalty=1.3), dict(repetition_penalty=0.7),
           dict(presence_penalty=1.5), dict(presence_penalty=-2.0), dict(frequency_penalty=0.8),
           dict(frequency_penalty=-0.5), dict(logit_bias=[[3, 5.0], [9, -100.0]]), dict(allowed_token_ids=[1, 5, 30]),
           dict(bad_words=[[4], [7, 8]]), dict(min_tokens=6, stop_token_ids=[0, 11]), dict(min_tokens=2, stop_token_ids=[0, 11])]
    yield from one
    for _ in range(40):
        together = {}
        for change in chance.sample(one[1:], chance.randint(2, 6)):
            together.update(change)
        yield together


def main():
    chance, torch_chance = random.Random(4), torch.Generator().manual_seed(4)
    cases = []
    for change in settings(chance):
        logits = (torch.randn(VOCAB, generator=torch_chance) * 4).round(decimals=3)
        prompt = [chance.randrange(VOCAB) for _ in range(chance.randint(1, 6))]
        answer = [chance.choice([2, 3, 7, chance.randrange(VOCAB)]) for _ in range(chance.randint(0, 4))] + [7]
        s = {**NOTHING, **change}
        ids = torch.tensor([prompt + answer])
        scores = LogitsProcessorList(processors(s, len(prompt)))(ids, logits[None].clone())
        probabilities = scores.softmax(-1)[0].double()
        cases.append(dict(change, prompt=prompt, answer=answer, logits=[round(x, 3) for x in logits.tolist()],
                          probabilities=[float(f"{p:.6g}") for p in probabilities.tolist()]))
    lines = ",\n".join(json.dumps(case) for case in cases)
    pathlib.Path(sys.argv[1]).write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
