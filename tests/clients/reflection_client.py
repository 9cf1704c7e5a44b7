#!/usr/bin/env python3
"""Speaks to a cluster over gRPC knowing nothing of it: every message is built from what server reflection says.

    python reflection_client.py 127.0.0.1:8081 MODEL

Exits 0 if everything is as described.
"""
import sys

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

address, model = sys.argv[1], sys.argv[2]
channel = grpc.insecure_channel(address)
reflection = ProtoReflectionDescriptorDatabase(channel)
pool = DescriptorPool(reflection)


def message(name, **fields):
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))(**fields)


def call(service, method, request, timeout=60):
    """The answers, as a list."""
    described = pool.FindServiceByName(service).FindMethodByName(method)
    answer = message_factory.GetMessageClass(described.output_type)
    kind = channel.unary_stream if described.server_streaming else channel.unary_unary
    rpc = kind(f"/{service}/{method}", request_serializer=lambda m: m.SerializeToString(),
               response_deserializer=answer.FromString)
    answers = rpc(request, timeout=timeout)
    return list(answers) if described.server_streaming else [answers]


def refused(code, request):
    try:
        call("foggara.inference.v1.Inference", "Generate", request)
    except grpc.RpcError as error:
        assert error.code() == code, error
        assert error.details(), "an error has a message"
        return
    raise AssertionError(f"{code} was not raised")


services = set(reflection.get_services())
for service in ("foggara.inference.v1.Inference", "foggara.admin.v1.Admin", "grpc.health.v1.Health"):
    assert service in services, services
assert not any(s.startswith(("foggara.cluster", "foggara.worker")) for s in services), "those are not for clients"

package = "foggara.inference.v1."
sampling = message(package + "SamplingParams", max_tokens=16, temperature=0, ignore_eos=True)
ask = lambda **fields: message(package + "GenerateRequest", **{**dict(model=model, sampling=sampling), **fields})
answers = call(package + "Inference", "Generate", ask(text="The capital of France is"))
kinds = [a.WhichOneof("event") for a in answers]
assert kinds[0] == "started" and kinds[-1] == "finished" and set(kinds[1:-1]) == {"delta"}, kinds
assert len(kinds) > 5, "it is streamed"
text = "".join(a.delta.text for a in answers)
tokens = [t for a in answers for t in a.delta.token_ids]
assert text and len(tokens) == 16 == answers[-1].finished.usage.completion_tokens
prompt = list(answers[0].started.prompt_token_ids)
again = call(package + "Inference", "Generate", ask(tokens=message(package + "TokenIds", ids=prompt)))
assert [t for a in again for t in a.delta.token_ids] == tokens, "ids and text are one prompt"

hello = message(package + "ChatMessage", role="user", content="Hello!")
chat = call(package + "Inference", "Chat",
            message(package + "ChatRequest", model=model, messages=[hello], sampling=sampling))
assert chat[-1].WhichOneof("event") == "finished"

models = call(package + "Inference", "ListModels", message(package + "ListModelsRequest"))[0].models
assert [m.name for m in models] == [model] and models[0].ready_replicas == 1
status = call("foggara.admin.v1.Admin", "Status", message("foggara.admin.v1.StatusRequest"))[0]
assert sorted(c.role for c in status.coordinators) == ["follower", "follower", "leader"]

for service in ("", "foggara.inference.v1.Inference"):
    health = call("grpc.health.v1.Health", "Check", message("grpc.health.v1.HealthCheckRequest", service=service))[0]
    assert health.status == 1, "SERVING"

refused(grpc.StatusCode.NOT_FOUND, ask(model="nonesuch", text="x"))
refused(grpc.StatusCode.INVALID_ARGUMENT, ask(text=""))
print("ok")
