"""A stand-in for the engine process: speaks its messages and echoes prompts, without any model.

Run as `python scripted_engine.py [options] ADDRESS`. The answer to a request is its own prompt, one
token per `--token-s`; a token's text is its number and a blank.
"""

import argparse
import ctypes
import os
import signal
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import zmq

from omniserve.decision import Decision
from omniserve.messages import (
    Abort,
    Configure,
    EngineFailed,
    EngineReady,
    Explain,
    Explained,
    LoadModel,
    ModelLoaded,
    ModelProgress,
    ModelRefused,
    ModelUnloaded,
    Outputs,
    SetShares,
    SetTiers,
    Shutdown,
    SleepModel,
    Stats,
    Submit,
    ToFront,
    UnloadModel,
    decode_to_engine,
    encode,
)
from omniserve.requests import EngineRequest, FinishReason, RequestOutput
from omniserve.settings import ModelInfo, ModelSettings, ModelStats

KV_BYTES_PER_TOKEN = 16
STATS_EVERY_S = 0.05
PR_SET_PDEATHSIG = 1


@dataclass
class Echo:
    request: EngineRequest
    num_emitted: int = 0
    due_s: float = field(default_factory=time.monotonic)

    @property
    def num_tokens(self) -> int:
        wanted = self.request.sampling.max_tokens
        have = len(self.request.prompt_token_ids)
        return have if wanted is None else min(wanted, have)

    def next_output(self) -> RequestOutput:
        prompt = self.request.prompt_token_ids
        token = prompt[self.num_emitted]
        self.num_emitted += 1
        reason: FinishReason | None = None
        if self.num_emitted == self.num_tokens:
            reason = "length" if self.num_tokens < len(prompt) else "stop"
        return RequestOutput(
            self.request.request_id,
            text=f"{token} ",
            token_ids=(token,),
            finish_reason=reason,
            num_prompt_tokens=len(prompt),
            num_output_tokens=self.num_emitted,
        )


class ScriptedEngine:
    def __init__(self, socket: "zmq.Socket[bytes]", token_s: float, stop_s: float) -> None:
        self.socket = socket
        self.token_s = token_s
        self.stop_s = stop_s
        self.models: tuple[ModelSettings, ...] = ()
        self.kv_bytes: int | None = None
        self.echoes: dict[str, Echo] = {}
        self.tiers: tuple[str, ...] = ()
        self.shares: dict[str, float] = {}
        self.loading: dict[str, int] = {}
        self.num_steps = 0
        self.running = True
        self.stats_due_s = 0.0

    def send(self, message: ToFront) -> None:
        self.socket.send(encode(message))

    def load(self, fail_if: Path | None, load_s: float) -> None:
        configure = decode_to_engine(self.socket.recv())
        assert isinstance(configure, Configure)
        time.sleep(load_s)
        if fail_if is not None and fail_if.exists():
            self.send(EngineFailed(fail_if.read_text()))
            raise SystemExit(2)
        self.models = configure.settings.models
        self.kv_bytes = configure.settings.device.kv_bytes
        infos = tuple(self.model_info(model) for model in self.models)
        self.send(EngineReady(infos, "scripted"))

    def serve(self) -> None:
        while self.running:
            if self.socket.poll(timeout=5):
                self.handle(self.socket.recv())
            self.emit()
            if time.monotonic() >= self.stats_due_s:
                self.stats_due_s = time.monotonic() + STATS_EVERY_S
                self.send(Stats(tuple(self.model_stats(model) for model in self.models)))

    def handle(self, frame: bytes) -> None:
        message = decode_to_engine(frame)
        if isinstance(message, Submit):
            self.echoes[message.request.request_id] = Echo(message.request)
        elif isinstance(message, Abort):
            for request_id in message.request_ids:
                self.echoes.pop(request_id, None)
        elif isinstance(message, SetTiers):
            self.tiers = tuple(tier.name for tier in message.tiers)
        elif isinstance(message, SetShares):
            self.shares = message.shares
        elif isinstance(message, Explain) and message.request_id != "kept to itself":
            self.send(Explained(message.question, self.decisions(message.request_id)))
        elif isinstance(message, LoadModel):
            self.load_beside(message)
        elif isinstance(message, UnloadModel | SleepModel):
            self.models = tuple(model for model in self.models if model.name != message.model)
            if message.model in self.loading:
                self.send(ModelRefused(self.loading.pop(message.model), "ended", False))
            self.send(ModelUnloaded(message.question))
        elif isinstance(message, Shutdown):
            time.sleep(self.stop_s)
            self.running = False

    def load_beside(self, message: LoadModel) -> None:
        """A model called slow is never loaded, nor one beside whose path is a file `.slow`; one
        whose path exists is refused."""
        model = message.settings
        self.send(ModelProgress(message.question, "reading", 1, 2))
        if Path(model.path).exists():
            self.send(ModelRefused(message.question, f"{model.path}: broken", True))
        elif model.name == "slow" or Path(f"{model.path}.slow").exists():
            self.loading[model.name] = message.question
        else:
            self.models = (*self.models, model)
            self.send(ModelLoaded(message.question, self.model_info(model)))

    def model_info(self, model: ModelSettings) -> ModelInfo:
        """A floor that nobody gave depends on how many models there are now."""
        info = model_info(model)
        if self.kv_bytes is None:
            return info
        given = model.device_kv_floor_bytes
        floor_bytes = self.kv_bytes // (2 * len(self.models)) if given is None else given
        return replace(info, kv_floor_bytes=floor_bytes)

    def decisions(self, client_id: str) -> tuple[Decision, ...]:
        """One for each request that runs and is the client's, or called so itself."""
        return tuple(
            Decision(0, echo.due_s, echo.due_s, 1 + echo.num_emitted, "echoing", "", name)
            for name, echo in self.echoes.items()
            if client_id in (name, name.rpartition("/")[0])
        )

    def emit(self) -> None:
        now_s = time.monotonic()
        due = [echo for echo in self.echoes.values() if echo.due_s <= now_s]
        outputs = []
        for echo in due:
            echo.due_s = now_s + self.token_s
            outputs.append(echo.next_output())
            if outputs[-1].finish_reason is not None:
                del self.echoes[echo.request.request_id]
        if outputs:
            self.num_steps += 1
            self.send(Outputs(tuple(outputs)))

    def model_stats(self, model: ModelSettings) -> ModelStats:
        running: dict[str, int] = {}
        used = 0
        for echo in self.echoes.values():
            if echo.request.model == model.name:
                running[echo.request.tier] = running.get(echo.request.tier, 0) + 1
                num_tokens = len(echo.request.prompt_token_ids) + echo.num_emitted
                used += KV_BYTES_PER_TOKEN * num_tokens
        # The tiers and shares that it was told of, so that tests see them.
        waiting = dict.fromkeys(self.tiers, 0)
        waiting |= {f"{tenant}: {share:g}": 0 for tenant, share in self.shares.items()}
        return ModelStats(
            model.name,
            running,
            waiting,
            used,
            model.device_kv_bytes,
            num_steps=self.num_steps,
            num_preemptions=0,
            num_cached_prompt_tokens=0,
            step_ms=1.0,
        )


def model_info(model: ModelSettings) -> ModelInfo:
    return ModelInfo(
        name=model.name,
        architecture="EchoForCausalLM",
        dtype=model.dtype,
        vocab_size=4096,
        max_model_len=model.max_model_len or 4096,
        kv_bytes_per_token=KV_BYTES_PER_TOKEN,
        num_layers=2,
        device_kv_bytes=model.device_kv_bytes,
        num_parameters=1,
        eos_token_ids=(0,),
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--token-s", type=float, default=0.001)
    parser.add_argument("--load-s", type=float, default=0.0)
    parser.add_argument("--stop-s", type=float, default=0.0)
    parser.add_argument(
        "--fail-if", type=Path, help="fail at load with this file's text if it exists"
    )
    parser.add_argument(
        "--crash-if", type=Path, help="die at load without a word if this file exists"
    )
    parser.add_argument("address")
    options = parser.parse_args()
    front_pid = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != front_pid:
        raise SystemExit(1)
    if options.crash_if is not None and options.crash_if.exists():
        os.kill(os.getpid(), signal.SIGSEGV)
    context = zmq.Context()
    socket: zmq.Socket[bytes] = context.socket(zmq.PAIR)
    socket.connect(options.address)
    try:
        engine = ScriptedEngine(socket, options.token_s, options.stop_s)
        engine.load(options.fail_if, options.load_s)
        engine.serve()
    finally:
        socket.close(linger=1000)
        context.term()


if __name__ == "__main__":
    main()
