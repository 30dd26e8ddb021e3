"""What is sent: latency-sensitive requests of a trace, and a best-effort backlog beside them."""

import random
from dataclasses import dataclass

from omniserve.bench.colocate.contenders import Contender
from omniserve.bench.colocate.objectives import Objectives
from omniserve.bench.colocate.scene import Scene
from omniserve.bench.colocate.server_plan import BE_TIER, LS_TIER
from omniserve.bench.load.streams import BacklogStream, Stream, TraceStream
from omniserve.bench.run_record import StreamInfo
from omniserve.bench.trace.trace import Trace, TraceRequest

LS_STREAM, BE_STREAM = "LS", "BE"
NUM_UNLOADED = 9
"""Different requests that are timed alone with a server."""
SPREAD = 0.25
"""Best-effort lengths differ by up to this part from their mean, so that they do not march."""


@dataclass(frozen=True, slots=True)
class BacklogShape:
    """Best-effort requests: a number of them is always unfinished."""

    num_requests: int
    prompt_tokens: int
    output_tokens: int
    """Means."""

    @property
    def request_tokens(self) -> int:
        return self.prompt_tokens + self.output_tokens

    @property
    def longest_tokens(self) -> int:
        return int(self.request_tokens * (1 + SPREAD)) + 2


@dataclass(frozen=True, slots=True)
class Workload:
    """Both streams; the same for all contenders."""

    ls_trace: Trace
    """Lengths as they are sent; times are scaled to the rate that is asked for."""
    backlog: BacklogShape
    window_s: float
    """Warm-up and measured part of one window."""
    seed: int

    def streams(
        self,
        scene: Scene,
        contender: Contender,
        rate: float,
        round_index: int,
        objectives: Objectives | None,
    ) -> dict[str, tuple[str, Stream]]:
        """By name, each with the key of the server that it goes to; LS as the trace has it."""
        arrivals = self.arrivals(rate, round_index)
        return self.timed_streams(scene, contender, arrivals, round_index, objectives)

    def arrivals(self, rate: float, round_index: int) -> Trace:
        """Of LS requests in a window of a round."""
        return excerpt(self.ls_trace, rate, round_index * self.window_s, self.window_s)

    def timed_streams(
        self,
        scene: Scene,
        contender: Contender,
        arrivals: Trace,
        round_index: int,
        objectives: Objectives | None,
    ) -> dict[str, tuple[str, Stream]]:
        """The same with these LS requests; second 0 is the beginning of the warm-up."""
        streams: dict[str, tuple[str, Stream]] = {
            LS_STREAM: (contender.ls_server, _ls_stream(scene, arrivals, objectives))
        }
        for index, route in enumerate(contender.be_routes):
            name = BE_STREAM if index == 0 else f"{BE_STREAM} {index + 1}"
            info = StreamInfo(name, "best_effort", scene.be_model, BE_TIER, is_open_loop=False)
            lengths = self.be_lengths(round_index, index, route.num_requests)
            extra = {} if contender.be_priority is None else {"priority": contender.be_priority}
            stream = BacklogStream(info, lengths, route.num_requests, extra)
            streams[name] = (route.server, stream)
        return streams

    def unloaded(self, scene: Scene, server: str) -> tuple[str, Stream]:
        """Latency-sensitive requests of the trace's lengths one at a time."""
        return self.saturating(scene, server, 1)

    def saturating(self, scene: Scene, server: str, num_unfinished: int) -> tuple[str, Stream]:
        """So many latency-sensitive requests of the trace's lengths all the time."""
        info = StreamInfo(
            LS_STREAM, "latency_sensitive", scene.ls_model, LS_TIER, is_open_loop=False
        )
        return server, BacklogStream(
            info, spread_lengths(self.ls_trace, NUM_UNLOADED), num_unfinished
        )

    def be_lengths(self, round_index: int, route_index: int, num_running: int) -> Trace:
        """The same for all contenders. The first ones look as if work had been going on: a part of
        their output is in the prompt already."""
        rng = random.Random(f"{self.seed} {round_index} {route_index}")
        shape = self.backlog

        def around(mean: int) -> int:
            return max(1, round(mean * rng.uniform(1 - SPREAD, 1 + SPREAD)))

        requests = []
        for index in range(max(256, 4 * num_running)):
            prompt, output = around(shape.prompt_tokens), around(shape.output_tokens)
            if index < num_running:
                done = min(output - 1, round(output * rng.random()))
                prompt, output = prompt + done, output - done
            requests.append(TraceRequest(0.0, prompt, output))
        return Trace("backlog", tuple(requests))


def _ls_stream(scene: Scene, arrivals: Trace, objectives: Objectives | None) -> TraceStream:
    info = StreamInfo(
        LS_STREAM,
        "latency_sensitive",
        scene.ls_model,
        LS_TIER,
        ttft_ms=objectives.ttft_ms if objectives else None,
        tpot_ms=objectives.tpot_ms if objectives else None,
    )
    return TraceStream(info, arrivals)


def excerpt(trace: Trace, rate: float, start_s: float, length_s: float) -> Trace:
    """A window of the trace at a mean of `rate` requests per second over all of the trace.

    Time is scaled, so that burstiness stays; past its end the trace begins again.
    """
    duration_s = trace.duration_s + 1 / mean_rate(trace)
    factor = mean_rate(trace) / rate
    period_s = duration_s * factor
    chosen = []
    first_lap = int(start_s // period_s)
    for lap in range(first_lap, int((start_s + length_s) // period_s) + 1):
        for request in trace:
            at_s = lap * period_s + request.arrival_s * factor - start_s
            if 0 <= at_s < length_s:
                chosen.append(
                    TraceRequest(at_s, request.prompt_tokens, max(1, request.output_tokens))
                )
    return Trace.sorted(trace.name, chosen)


def spread_lengths(trace: Trace, number: int) -> Trace:
    """Few requests for many: prompts at evenly spaced quantiles, short and long in turn."""
    by_prompt = sorted(trace, key=lambda each: each.prompt_tokens)
    chosen = [by_prompt[int((index + 0.5) / number * len(by_prompt))] for index in range(number)]
    half = (number + 1) // 2
    mixed = [each for pair in zip(chosen[:half], chosen[half:], strict=False) for each in pair]
    return Trace(trace.name, (*mixed, *chosen[half - 1 : half] * (number % 2)))


def mean_rate(trace: Trace) -> float:
    """Requests per second."""
    return max(len(trace) - 1, 1) / trace.duration_s if trace.duration_s else 1.0
