#!/usr/bin/env python3
"""Speaks to a cluster with OpenAI's own client library.

    python openai_client.py http://127.0.0.1:8080 MODEL
    python openai_client.py https://127.0.0.1:8080 MODEL ca.crt

Exits 0 if everything is as that library expects.
"""
import ssl
import sys

import openai

base, model = sys.argv[1], sys.argv[2]
# Whoever signs for the servers: the cluster's own authority, or those of the system.
verify = ssl.create_default_context(cafile=sys.argv[3]) if len(sys.argv) > 3 else True
http = openai.DefaultHttpxClient(verify=verify)
client = openai.OpenAI(base_url=base + "/v1", api_key="unused", max_retries=0, timeout=120, http_client=http)
messages = [{"role": "user", "content": "What is the capital of Algeria?"}]


def refused(error, status, call):
    """`call` must raise exactly `error`."""
    try:
        call()
    except error as raised:
        assert raised.status_code == status, raised
        assert raised.message and raised.body["message"], raised
        return raised
    raise AssertionError(f"{error} was not raised")


def models():
    listed = client.models.list().data
    assert [m.id for m in listed] == [model], listed
    assert client.models.retrieve(model).owned_by == "foggara"


def chat():
    ask = dict(model=model, messages=messages, temperature=0, max_tokens=24, seed=1)
    whole = client.chat.completions.create(**ask)
    choice = whole.choices[0]
    assert whole.object == "chat.completion" and whole.model == model
    assert choice.message.role == "assistant" and "Algeria" in choice.message.content, choice
    assert choice.finish_reason == "length"
    assert whole.usage.completion_tokens == 24
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + 24

    chunks = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    assert all(c.object == "chat.completion.chunk" and c.id == chunks[0].id for c in chunks)
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == choice.message.content, (text, choice.message.content)
    assert len(chunks) > 5, "it is streamed"
    ends = [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason]
    assert ends == ["length"], ends
    assert chunks[-1].usage.completion_tokens == 24 and not chunks[-1].choices

    with client.chat.completions.create(**ask, stream=True) as stream:
        next(iter(stream))  # and hangs up

    parts = [{"role": "user", "content": [{"type": "text", "text": messages[0]["content"]}]}]
    assert client.chat.completions.create(**{**ask, "messages": parts}).choices[0].message.content == text


def chat_logprobs():
    ask = dict(model=model, messages=messages, temperature=0, max_completion_tokens=6, logprobs=True, top_logprobs=3)
    choice = client.chat.completions.create(**ask).choices[0]
    tokens = choice.logprobs.content
    assert len(tokens) == 6
    assert b"".join(bytes(t.bytes) for t in tokens).decode() == choice.message.content
    for token in tokens:
        assert len(token.top_logprobs) == 3 and token.logprob <= 0
        assert token.logprob == token.top_logprobs[0].logprob, "greedy takes the likeliest"
    streamed = [t for c in client.chat.completions.create(**ask, stream=True)
                if c.choices and c.choices[0].logprobs for t in c.choices[0].logprobs.content]
    assert [t.logprob for t in streamed] == [t.logprob for t in tokens]


def completions():
    ask = dict(model=model, prompt="The capital of France is", temperature=0, max_tokens=12)
    whole = client.completions.create(**ask)
    assert whole.object == "text_completion" and whole.choices[0].text
    assert whole.usage.completion_tokens <= 12
    text = "".join(c.choices[0].text for c in client.completions.create(**ask, stream=True) if c.choices)
    assert text == whole.choices[0].text, (text, whole.choices[0].text)

    scored = client.completions.create(**{**ask, "max_tokens": 0}, echo=True, logprobs=2).choices[0]
    assert scored.text == ask["prompt"]
    assert "".join(scored.logprobs.tokens) == ask["prompt"]
    assert scored.logprobs.token_logprobs[0] is None and all(p <= 0 for p in scored.logprobs.token_logprobs[1:])
    assert scored.logprobs.text_offset[0] == 0 and len(scored.logprobs.top_logprobs[1]) >= 2

    several = client.completions.create(**{**ask, "prompt": [ask["prompt"], "One, two,"]})
    assert [c.index for c in several.choices] == [0, 1]
    assert several.choices[0].text == text, "beside another it is the same"

    extra = {"return_token_ids": True, "ignore_eos": True}
    ids = client.completions.create(**ask, extra_body=extra).choices[0]
    again = client.completions.create(**{**ask, "prompt": ids.prompt_token_ids}, extra_body=extra).choices[0]
    assert len(ids.token_ids) == 12 and again.token_ids == ids.token_ids


def evaluation():
    """What evaluation harnesses ask: several prompts as token ids, scored, with one token after them."""
    ask = dict(model=model, temperature=0, max_tokens=12, extra_body={"return_token_ids": True, "ignore_eos": True})
    prompts = [client.completions.create(**ask, prompt=text).choices[0].prompt_token_ids
               for text in ("The capital of France is Paris.", "One, two, three")]
    ask = dict(model=model, prompt=prompts, temperature=0, logprobs=1, echo=True, seed=1234)
    scored = client.completions.create(**ask, max_tokens=1, extra_body={"return_token_ids": True}).choices
    assert [c.index for c in scored] == [0, 1]
    for choice, prompt in zip(scored, prompts):
        assert choice.prompt_token_ids == prompt and len(choice.token_ids) == 1
        logprobs = choice.logprobs
        assert len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == len(logprobs.tokens) == len(prompt) + 1
        assert logprobs.token_logprobs[0] is None and logprobs.top_logprobs[0] is None
        # The last is the sampled one; greedy takes the likeliest.
        assert logprobs.token_logprobs[-1] == max(logprobs.top_logprobs[-1].values())
        for token, top in zip(logprobs.token_logprobs[1:], logprobs.top_logprobs[1:]):
            assert max(top.values()) >= token and token in top.values(), (token, top)
    # Without the token after them, one by one, as text and as a stream: the same.
    only = client.completions.create(**ask, max_tokens=0).choices
    assert [c.logprobs.token_logprobs for c in only] == [c.logprobs.token_logprobs[:-1] for c in scored]
    assert all(c.finish_reason == "length" and c.text == "".join(c.logprobs.tokens) for c in only)
    texts = client.completions.create(**{**ask, "prompt": [c.text for c in only]}, max_tokens=0).choices
    assert [c.logprobs for c in texts] == [c.logprobs for c in only]
    alone = client.completions.create(**{**ask, "prompt": prompts[1]}, max_tokens=0).choices
    assert [c.logprobs for c in alone] == [only[1].logprobs]
    streamed = [[], []]
    for chunk in client.completions.create(**ask, max_tokens=0, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.logprobs.token_logprobs if choice.logprobs else []
    assert streamed == [c.logprobs.token_logprobs for c in only]
    named = client.completions.create(**ask, max_tokens=0, extra_body={"return_tokens_as_token_ids": True}).choices
    assert named[0].logprobs.tokens == [f"token_id:{id}" for id in prompts[0]]
    assert all(token in top for token, top in zip(named[0].logprobs.tokens[1:], named[0].logprobs.top_logprobs[1:]))


def tokenizing():
    post = lambda path, **body: client.with_options(base_url=base).post(path, cast_to=object, body=dict(body, model=model))
    text = "Évaluer, c'est compter."
    told = post("/tokenize", prompt=text, return_token_strs=True)
    assert told["count"] == len(told["tokens"]) == len(told["token_strs"]) and told["max_model_len"] == 8192, told
    assert post("/detokenize", tokens=told["tokens"])["prompt"] == text


def stop():
    ask = dict(model=model, prompt="a b c d e f g h", temperature=0, max_tokens=24)
    text = client.completions.create(**ask).choices[0].text
    word = text[5:8]
    choice = client.completions.create(**ask, stop=[word]).choices[0]
    assert choice.finish_reason == "stop" and choice.text == text.split(word)[0], (choice, text)
    chunks = list(client.completions.create(**ask, stop=word, stream=True))
    assert "".join(c.choices[0].text for c in chunks if c.choices) == choice.text


def choices():
    """Each choice is what a request with its own seed gets, whole or streamed."""
    ask = dict(model=model, messages=messages, temperature=1.2, max_tokens=12, seed=40)
    whole = client.chat.completions.create(**ask, n=3)
    texts = [c.message.content for c in whole.choices]
    assert [c.index for c in whole.choices] == [0, 1, 2] and len(set(texts)) > 1, texts
    alone = client.chat.completions.create(**{**ask, "seed": 41})
    assert alone.choices[0].message.content == texts[1], (alone, texts)
    assert whole.usage.prompt_tokens == alone.usage.prompt_tokens, "the prompt is counted once"
    streamed, ends = [""] * 3, []
    for chunk in client.chat.completions.create(**ask, n=3, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
            ends += [choice.index] if choice.finish_reason else []
    assert streamed == texts and sorted(ends) == [0, 1, 2], (streamed, texts, ends)
    assert chunk.usage == whole.usage, (chunk.usage, whole.usage)
    several = client.completions.create(model=model, prompt=["One, two,", "A, B,"], n=2, temperature=0, max_tokens=4)
    assert [c.index for c in several.choices] == [0, 1, 2, 3]
    assert several.choices[0].text == several.choices[1].text != several.choices[2].text


def sampling():
    extra = {"return_token_ids": True}
    ask = dict(model=model, prompt="The capital of France is", temperature=0, max_tokens=16)
    say = lambda body={}, **more: client.completions.create(**{**ask, **more}, extra_body={**extra, **body}).choices[0]
    plain = say({"ignore_eos": True})
    first = plain.token_ids[0]
    assert first not in say(logit_bias={str(first): -100}).token_ids
    assert set(say({"allowed_token_ids": [first], "ignore_eos": True}).token_ids) == {first}
    assert say(logit_bias={str(first): 100}, max_tokens=3).token_ids == [first] * 3
    assert first not in say({"banned_token_ids": [first]}).token_ids
    assert "Paris" in plain.text and "Paris" not in say({"bad_words": ["Paris"]}).text, plain
    # What is greatly penalised is not said twice.
    forced = {"allowed_token_ids": plain.prompt_token_ids + [first], "ignore_eos": True}
    favoured = {str(first): 30}
    assert set(say(forced, max_tokens=40, logit_bias=favoured).token_ids) == {first}
    penalised = dict(presence_penalty=2, frequency_penalty=2, max_tokens=40, logit_bias=favoured)
    ids = say(forced, **penalised).token_ids
    assert ids == say(forced, **penalised).token_ids and ids[0] == first and len(set(ids)) > 1, ids
    repeated = say({"repetition_penalty": 1.5, "ignore_eos": True}, max_tokens=32).token_ids
    assert len(set(repeated)) > len(set(say({"ignore_eos": True}, max_tokens=32).token_ids)), repeated
    # Nothing ends an answer before it has so many tokens.
    stop = plain.text[:4]
    assert say(stop=stop).finish_reason == "stop"
    held = say({"min_tokens": 12}, stop=stop)
    assert len(held.token_ids) >= 12 and held.text.startswith(stop), held
    ended = say({"stop_token_ids": [first], "min_tokens": 2})
    assert first not in ended.token_ids[:2], ended
    shown = say({"include_stop_str_in_output": True}, stop=stop)
    assert shown.text.endswith(stop) and shown.model_extra["stop_reason"] == stop, shown
    # The same seed gives the same text; another one another.
    hot = lambda seed: say({"min_p": 0.02, "top_k": 50}, temperature=1.5, top_p=0.95, seed=seed, max_tokens=24).text
    assert hot(7) == hot(7) and len({hot(seed) for seed in range(4)}) > 1
    scored = say({"prompt_logprobs": 2}, max_tokens=1).model_extra["prompt_logprobs"]
    assert scored[0] is None and len(scored) == len(plain.prompt_token_ids)
    for token, entries in zip(plain.prompt_token_ids[1:], scored[1:]):
        assert str(token) in entries and len(entries) in (2, 3), entries


def errors():
    say = lambda **change: client.chat.completions.create(**{**dict(model=model, messages=messages, max_tokens=1), **change})
    assert refused(openai.NotFoundError, 404, lambda: say(model="nonesuch")).code == "model_not_found"
    assert refused(openai.BadRequestError, 400, lambda: say(temperature=-1)).param == "temperature"
    assert refused(openai.BadRequestError, 400, lambda: say(max_tokens=10**9)).param == "max_tokens"
    assert refused(openai.BadRequestError, 400, lambda: say(messages=[])).param == "messages"
    assert refused(openai.BadRequestError, 400, lambda: say(n=17)).param == "n"
    assert refused(openai.BadRequestError, 400, lambda: say(logit_bias={"5": 101})).param == "logit_bias"
    refused(openai.NotFoundError, 404, lambda: client.embeddings.create(model=model, input="x", encoding_format="float"))


for check in (models, chat, chat_logprobs, completions, evaluation, tokenizing, stop, choices, sampling, errors):
    check()
    print("ok", check.__name__)
