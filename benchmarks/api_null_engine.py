"""An engine without a model, as a process of its own: `api_null_engine.py OPTIONS ADDRESS`.

It speaks the engine's messages. A step gives every running request one token, as a batch does, and
is one message. A request's `seed` is its pace: steps so many microseconds apart, or, where it is 0,
as fast as tokens reach the client, some steps ahead of it: the client writes how many it has to
the pipe `--feedback`. Its share of the machine is small: only stamps and counts are written anew.
"""

import argparse
import contextlib
import ctypes
import os
import select
import signal
import struct
import time
from dataclasses import dataclass

import zmq
from api_stamps import STAMP_CHARS, now_us, stamp_of

from omniserve.messages import (
    Abort,
    Configure,
    EngineReady,
    Explain,
    Explained,
    Outputs,
    Shutdown,
    Stats,
    Submit,
    ToFront,
    decode_to_engine,
    encode,
)
from omniserve.requests import EngineRequest, RequestOutput
from omniserve.settings import ModelInfo, ModelSettings, ModelStats

MAX_MODEL_LEN = 1 << 20
STATS_EVERY_S = 0.25
COUNT = struct.Struct("<Q")
_PLACE_OF_STAMP = "#" * STAMP_CHARS
_PLACE_OF_COUNT = 0xFFFFFFF0
_COUNT_BYTES = struct.Struct(">BI")
_MSGPACK_UINT32 = 0xCE
_NO_OUTPUTS = encode(Outputs(()))
assert _NO_OUTPUTS[-1:] == b"\x90", "an empty array comes last"
_PIPE_BYTES = 1 << 16
_ARRAY_16 = struct.Struct(">BH")
_PR_SET_PDEATHSIG = 1


@dataclass(slots=True)
class Stream:
    """A running request: the bytes of its outputs around what changes, and how far it is."""

    before_stamp: bytes
    before_count: bytes
    end: bytes
    request: EngineRequest
    num_tokens: int = 0

    def next_output(self, stamp: bytes) -> bytes:
        self.num_tokens += 1
        if self.is_done:
            last = _output(self.request, stamp.decode(), self.num_tokens, is_last=True)
            return encode_output(last)
        count = _COUNT_BYTES.pack(_MSGPACK_UINT32, self.num_tokens)
        return b"".join((self.before_stamp, stamp, self.before_count, count, self.end))

    @property
    def is_done(self) -> bool:
        return self.num_tokens == self.request.sampling.max_tokens


def _output(
    request: EngineRequest, text: str, num_tokens: int, *, is_last: bool = False
) -> RequestOutput:
    return RequestOutput(
        request.request_id,
        text,
        (7,),
        finish_reason="length" if is_last else None,
        num_prompt_tokens=len(request.prompt_token_ids),
        num_output_tokens=num_tokens,
    )


def encode_output(output: RequestOutput) -> bytes:
    """As it stands inside of an `Outputs` message."""
    whole = encode(Outputs((output,)))
    return whole[len(_NO_OUTPUTS) :]


def make_stream(request: EngineRequest) -> Stream:
    encoded = encode_output(_output(request, _PLACE_OF_STAMP, _PLACE_OF_COUNT))
    before_stamp, rest = encoded.split(_PLACE_OF_STAMP.encode())
    before_count, end = rest.split(_COUNT_BYTES.pack(_MSGPACK_UINT32, _PLACE_OF_COUNT))
    return Stream(before_stamp, before_count, end, request)


class NullEngine:
    """Steps whenever its requests' pace says so."""

    def __init__(self, link: "zmq.Socket[bytes]", feedback: int, steps_ahead: int) -> None:
        self._link = link
        self._feedback = feedback
        self._steps_ahead = steps_ahead
        self._streams: dict[str, Stream] = {}
        self._models: tuple[ModelSettings, ...] = ()
        self._interval_us = 0
        self._next_step_us = 0
        self._next_stats_s = 0.0
        self._num_steps = 0
        self._num_made = 0
        """Tokens since the last time that nothing ran."""
        self._num_seen = 0
        """Of those, as many as the client has told that it has."""
        self._running = True

    def serve(self) -> None:
        first = decode_to_engine(self._link.recv())
        assert isinstance(first, Configure)
        self._models = first.settings.models
        self._send(EngineReady(tuple(map(_model_info, self._models)), "null"))
        descriptor = int(self._link.getsockopt(zmq.FD))
        while self._running:
            self._take_messages()
            self._take_feedback()
            if self._streams and self._wait_s() <= 0:
                self._step()
                continue
            self._send_stats()
            if int(self._link.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
                continue
            wait_s = max(0.0, min(self._wait_s(), self._next_stats_s - time.monotonic()))
            select.select([descriptor, self._feedback], [], [], wait_s)

    def _wait_s(self) -> float:
        """Until the next step may be made; with feedback awaited, until long after it."""
        if not self._streams:
            return 1.0
        if self._interval_us:
            return (self._next_step_us - now_us()) / 1e6
        room = self._steps_ahead * len(self._streams) - (self._num_made - self._num_seen)
        return 0.0 if room >= len(self._streams) else 1.0

    def _step(self) -> None:
        self._num_steps += 1
        at_us = now_us()
        stamp = stamp_of(at_us)
        self._num_made += len(self._streams)
        parts = [stream.next_output(stamp) for stream in self._streams.values()]
        head = _ARRAY_16.pack(0xDC, len(parts))
        self._link.send(b"".join((_NO_OUTPUTS[:-1], head, *parts)))
        self._streams = {
            name: stream for name, stream in self._streams.items() if not stream.is_done
        }
        # A step that comes late does not make those after it come sooner.
        self._next_step_us = max(self._next_step_us + self._interval_us, at_us)

    def _take_messages(self) -> None:
        while True:
            try:
                message = decode_to_engine(self._link.recv(zmq.NOBLOCK))
            except zmq.Again:
                return
            match message:
                case Submit(request=request):
                    self._submit(request)
                case Abort(request_ids=request_ids):
                    for request_id in request_ids:
                        self._streams.pop(request_id, None)
                case Explain(question=question):
                    self._send(Explained(question, ()))
                case Shutdown():
                    self._running = False

    def _submit(self, request: EngineRequest) -> None:
        if not self._streams:
            self._num_made = self._num_seen = 0
            self._next_step_us = now_us()
        self._interval_us = request.sampling.seed or 0
        self._streams[request.request_id] = make_stream(request)

    def _take_feedback(self) -> None:
        """The newest of what the client told."""
        with contextlib.suppress(BlockingIOError):
            told = os.read(self._feedback, _PIPE_BYTES)
            (self._num_seen,) = COUNT.unpack(told[-COUNT.size :])

    def _send(self, message: ToFront) -> None:
        self._link.send(encode(message))

    def _send_stats(self) -> None:
        now_s = time.monotonic()
        if now_s >= self._next_stats_s:
            self._next_stats_s = now_s + STATS_EVERY_S
            self._send(Stats(tuple(map(self._stats, self._models))))

    def _stats(self, model: ModelSettings) -> ModelStats:
        return ModelStats(
            model.name,
            running={"chat": len(self._streams)},
            waiting={},
            kv_used_bytes=0,
            kv_total_bytes=model.device_kv_bytes,
            num_steps=self._num_steps,
            num_preemptions=0,
            num_cached_prompt_tokens=0,
            step_ms=self._interval_us / 1e3,
        )


def _model_info(model: ModelSettings) -> ModelInfo:
    return ModelInfo(
        name=model.name,
        architecture="Null",
        dtype=model.dtype,
        vocab_size=4096,
        max_model_len=MAX_MODEL_LEN,
        kv_bytes_per_token=1,
        num_layers=1,
        device_kv_bytes=model.device_kv_bytes,
        num_parameters=1,
        eos_token_ids=(0,),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cpu", type=int, help="the core to run on")
    parser.add_argument("--feedback", required=True, help="path of a named pipe")
    parser.add_argument("--steps-ahead", type=int, default=4)
    parser.add_argument("address")
    options = parser.parse_args()
    front_pid = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != front_pid:
        raise SystemExit(1)
    if options.cpu is not None:
        os.sched_setaffinity(0, {options.cpu})
    context = zmq.Context()
    link: zmq.Socket[bytes] = context.socket(zmq.PAIR)
    link.set_hwm(0)
    link.connect(options.address)
    # For reading and writing: a pipe that nobody writes to would be at its end.
    feedback = os.open(options.feedback, os.O_RDWR | os.O_NONBLOCK)
    try:
        NullEngine(link, feedback, options.steps_ahead).serve()
    finally:
        os.close(feedback)
        link.close(linger=1000)
        context.term()


if __name__ == "__main__":
    main()
