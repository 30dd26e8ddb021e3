"""How to go on after the demo: commands and code that work against a daemon one starts oneself."""

import shlex
from dataclasses import dataclass

from omniserve.demo.options import DEFAULT_CONFIG, Addresses, DemoOptions


@dataclass(frozen=True, slots=True)
class Step:
    title: str
    code: str


def next_steps(options: DemoOptions, addresses: Addresses, model: str, tier: str) -> list[Step]:
    """`addresses` are those of the daemon that the steps talk to."""
    return [
        *([] if options.attach else [Step("Serve in the foreground", _serve(options))]),
        Step("Ask over HTTP", _curl(addresses, model, tier)),
        Step("Ask with the openai package", _openai(addresses, model, tier)),
        Step("Ask over gRPC", _grpc(addresses, model, tier)),
        Step("Watch", f"curl http://{addresses.http}/metrics"),
        Step("Read", "docs/demo.md, docs/configuration.md, omniserve --help"),
    ]


def _serve(options: DemoOptions) -> str:
    command = f"omniserve serve {shlex.quote(str(options.config))}"
    # The default file lies in a checkout, where the command need not be on the PATH.
    return (
        f"make serve    # or: .venv/bin/{command}" if options.config == DEFAULT_CONFIG else command
    )


def _curl(addresses: Addresses, model: str, tier: str) -> str:
    body = f'{{"model": "{model}", "service_tier": "{tier}", "prompt": "Hello", "max_tokens": 32}}'
    header = "-H 'content-type: application/json'"
    return f"curl http://{addresses.http}/v1/completions {header} -d '{body}'"


def _openai(addresses: Addresses, model: str, tier: str) -> str:
    return f"""\
from openai import OpenAI

client = OpenAI(base_url="http://{addresses.http}/v1", api_key="none")
stream = client.completions.create(
    model="{model}", prompt="Once upon a time", max_tokens=64, stream=True,
    extra_body={{"service_tier": "{tier}"}},
)
for event in stream:
    print(event.choices[0].text, end="", flush=True)"""


def _grpc(addresses: Addresses, model: str, tier: str) -> str:
    return f"""\
import grpc
from omniserve.v1 import omniserve_pb2 as pb, omniserve_pb2_grpc

with grpc.insecure_channel("{addresses.grpc}") as channel:
    inference = omniserve_pb2_grpc.InferenceStub(channel)
    request = pb.GenerateRequest(
        model="{model}", text="Once upon a time", tier="{tier}",
        sampling=pb.Sampling(max_tokens=64),
    )
    for chunk in inference.Generate(request):
        print(chunk.text, end="", flush=True)"""
