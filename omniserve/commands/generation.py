"""One request of `complete` and `chat`, from its options to its last piece of text."""

import argparse
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from omniserve.argument_types import number, utf8_text, whole_number
from omniserve.commands.connection import Connection
from omniserve.commands.served import list_served
from omniserve.errors import OmniServeError

if TYPE_CHECKING:
    from omniserve.v1 import omniserve_pb2 as pb


@dataclass(frozen=True, slots=True)
class SamplingOption:
    """One number of the message Sampling, by its name there."""

    name: str
    parse: Callable[[str], float]
    help: str


SAMPLING_OPTIONS = (
    SamplingOption(
        "max_tokens",
        whole_number(1, 1 << 30),
        "most tokens to generate (default: all that the context leaves)",
    ),
    SamplingOption("temperature", number("", 0, 2), "0 is greedy (default: 1)"),
    SamplingOption("top_p", number("", 0, 1), "of the probability to choose from (default: 1)"),
    SamplingOption("top_k", whole_number(0, 1 << 30), "tokens to choose from (default: all)"),
    SamplingOption("seed", whole_number(0, (1 << 63) - 1), "same seed, same text"),
)


def add_generation_arguments(parser: argparse.ArgumentParser) -> None:
    """What is to be generated and how; `build_request` reads them."""
    parser.add_argument(
        "--model", type=utf8_text, metavar="NAME", help="default: the first that is served"
    )
    parser.add_argument(
        "--tier", type=utf8_text, default="", metavar="NAME", help="default: the model's own"
    )
    for option in SAMPLING_OPTIONS:
        parser.add_argument(
            f"--{option.name.replace('_', '-')}",
            type=option.parse,
            metavar="N",
            help=option.help,
        )
    parser.add_argument(
        "--stop",
        type=utf8_text,
        action="append",
        default=[],
        metavar="TEXT",
        help="ends the text and is not part of it; may be repeated",
    )
    parser.add_argument("--ignore-eos", action="store_true", help="go on where the model would end")
    parser.add_argument(
        "--deadline-ms",
        type=whole_number(1, 86_400_000),
        metavar="MS",
        help="until the last token must be there",
    )
    parser.add_argument(
        "--request-id",
        type=utf8_text,
        default="",
        metavar="ID",
        help="by which `omniserve explain` and the server's log know it (default: it chooses one)",
    )


def build_request(args: argparse.Namespace, model: str) -> "pb.GenerateRequest":
    """Everything but the prompt."""
    from omniserve.v1 import omniserve_pb2 as pb

    given = {option.name: getattr(args, option.name) for option in SAMPLING_OPTIONS}
    sampling = pb.Sampling(**{name: value for name, value in given.items() if value is not None})
    sampling.stop.extend(args.stop)
    if args.ignore_eos:
        sampling.ignore_eos = True
    return pb.GenerateRequest(
        model=model,
        tier=args.tier,
        sampling=sampling,
        request_id=args.request_id,
        deadline_ms=args.deadline_ms,
    )


def choose_model(connection: Connection, wanted: str | None) -> str:
    """The model asked for, else the first one that is served. Raises OmniServeError."""
    if wanted is not None:
        return wanted
    models = list_served(connection).models
    if not models:
        raise OmniServeError(f"{connection.address} serves no model that may be used")
    return models[0].name


class Generation:
    """A request that is under way: iterating gives the text in pieces, as they come."""

    def __init__(self, connection: Connection, request: "pb.GenerateRequest") -> None:
        from omniserve.v1 import omniserve_pb2_grpc

        self._address = connection.address
        self._model = request.model
        self._started_s = time.monotonic()
        self._ended_s = self._first_s = self._started_s
        stub = omniserve_pb2_grpc.InferenceStub(connection.channel)
        self._start: Callable[[], Any] = lambda: stub.Generate(
            request, metadata=connection.metadata
        )
        self._call: Any = None
        """grpc's, once it is under way."""
        self._is_cancelled = False
        self._last: pb.GenerateChunk | None = None
        self.text = ""
        """All that has come."""
        self.request_id = request.request_id

    def __iter__(self) -> Iterator[str]:
        """Raises OmniServeError where the request fails."""
        import grpc

        from omniserve.commands.call_errors import error_of_call
        from omniserve.commands.call_thread import iterate_apart

        try:
            for chunk in iterate_apart(self._open):
                if self._last is None:
                    self._first_s = time.monotonic()
                self._last, self.request_id = chunk, chunk.request_id
                if chunk.text:
                    self.text += chunk.text
                    yield chunk.text
        except grpc.RpcError as error:
            raise error_of_call(error, self._address) from None
        self._ended_s = time.monotonic()

    def _open(self) -> "Iterable[pb.GenerateChunk]":
        self._call = self._start()
        if self._is_cancelled:
            self._call.cancel()
        chunks: Iterable[pb.GenerateChunk] = self._call
        return chunks

    def cancel(self) -> None:
        """The server stops; what has come stays."""
        from omniserve.commands.call_thread import call_apart

        self._is_cancelled = True
        if self._call is not None:
            call_apart(self._call.cancel)

    def result(self) -> dict[str, Any]:
        """Of one that has ended, for programs."""
        from omniserve.message_fields import message_fields
        from omniserve.v1 import omniserve_pb2 as pb

        last = self._last or pb.GenerateChunk()
        stop = last.stop_reason.WhichOneof("reason")
        return {
            "request_id": self.request_id,
            "model": self._model,
            "tier": last.tier,
            "text": self.text,
            "finish_reason": last.finish_reason,
            "stop_reason": None if stop is None else getattr(last.stop_reason, stop),
            "usage": message_fields(last.usage),
            "ttft_ms": round(1e3 * (self._first_s - self._started_s), 3),
            "total_ms": round(1e3 * (self._ended_s - self._started_s), 3),
        }

    def figures(self) -> str:
        """Of one that has ended, in a line for people."""
        if self._last is None:
            return "nothing came"
        usage = self._last.usage
        parts = [f"tier {self._last.tier}", f"{usage.prompt_tokens:,} prompt tokens"]
        if usage.cached_tokens:
            parts[-1] += f" ({usage.cached_tokens:,} cached)"
        parts.append(f"{usage.output_tokens:,} tokens")
        if usage.piggybacked_tokens:
            parts[-1] += f" ({usage.piggybacked_tokens:,} with the host)"
        parts.append(f"first after {1e3 * (self._first_s - self._started_s):,.0f} ms")
        decode_s = self._ended_s - self._first_s
        if usage.output_tokens > 1 and decode_s > 0:
            parts.append(f"{(usage.output_tokens - 1) / decode_s:,.1f} tokens/s")
        parts.append(f"ended by {self._last.finish_reason}")
        return ", ".join([*parts, f"request {self.request_id}"])
