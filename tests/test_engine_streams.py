"""Who is told what of the engine's outputs."""

import asyncio

import pytest

from omniserve.engine_streams import RequestStreams
from omniserve.errors import EngineUnavailable, InvalidRequest
from omniserve.requests import FinishReason, RequestOutput

NUM_REQUESTS = 100


class Told:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.outputs: list[RequestOutput] = []
        self.errors: list[Exception] = []

    def put(self, output: RequestOutput) -> None:
        self.outputs.append(output)

    def fail(self, error: Exception) -> None:
        self.errors.append(error)


def make_output(name: str, finish_reason: FinishReason | None = None) -> RequestOutput:
    return RequestOutput(name, "text", (1,), finish_reason=finish_reason)


def open_streams(streams: RequestStreams, names: list[str]) -> dict[str, Told]:
    sinks = {name: Told() for name in names}
    for name, sink in sinks.items():
        streams.open(name, sink)
    return sinks


@pytest.mark.asyncio
async def test_a_large_batch_is_handed_out_in_turns_with_others() -> None:
    streams = RequestStreams()
    sinks = open_streams(streams, [str(number) for number in range(NUM_REQUESTS)])
    seen: list[int] = []

    async def watch() -> None:
        while True:
            seen.append(sum(len(sink.outputs) for sink in sinks.values()))
            await asyncio.sleep(0)

    watcher = asyncio.create_task(watch())
    outputs = [make_output(name) for name in sinks]
    await streams.deliver_in_turns(outputs)
    watcher.cancel()
    assert [sink.outputs for sink in sinks.values()] == [[output] for output in outputs]
    assert any(0 < num_told < NUM_REQUESTS for num_told in seen)


@pytest.mark.asyncio
async def test_what_is_closed_between_two_turns_hears_no_more() -> None:
    streams = RequestStreams()
    sinks = open_streams(streams, [str(number) for number in range(NUM_REQUESTS)])
    last = str(NUM_REQUESTS - 1)
    asyncio.get_running_loop().call_soon(streams.close, last)
    await streams.deliver_in_turns([make_output(name) for name in sinks])
    assert not sinks[last].outputs
    assert sinks["0"].outputs


@pytest.mark.asyncio
async def test_a_last_output_ends_its_stream() -> None:
    streams = RequestStreams()
    sinks = open_streams(streams, ["a", "b"])
    streams.deliver([make_output("a"), make_output("a", "stop"), make_output("a")])
    assert [output.finish_reason for output in sinks["a"].outputs] == [None, "stop"]
    assert len(streams) == 1
    assert not streams.close("a")
    assert streams.close("b")
    await streams.wait_idle()


@pytest.mark.asyncio
async def test_an_id_is_used_once_at_a_time() -> None:
    streams = RequestStreams()
    open_streams(streams, ["a"])
    with pytest.raises(InvalidRequest, match="'a' is in use"):
        streams.open("a", Told())
    streams.deliver([make_output("a", "length")])
    streams.open("a", Told())


@pytest.mark.asyncio
async def test_when_the_engine_is_lost_all_are_told_and_may_close_what_they_have() -> None:
    streams = RequestStreams()
    sinks = open_streams(streams, ["b", "c"])

    class Closing(Told):
        def fail(self, error: Exception) -> None:
            super().fail(error)
            assert not streams.close("c")

    first = Closing()
    streams.open("a", first)
    streams.fail_all("the engine was lost")
    for sink in (first, *sinks.values()):
        (error,) = sink.errors
        assert isinstance(error, EngineUnavailable)
    assert len(streams) == 0
    await streams.wait_idle()
