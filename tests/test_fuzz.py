"""What the fuzzers found before stays fixed, what they check can fail, and they run."""

import random
from collections.abc import AsyncGenerator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from service_builders import make_output

from fuzz import config_target, sane_engine
from fuzz.byte_source import ByteSource
from fuzz.campaign import Budget, run_guided
from fuzz.corpus import MAX_CASE_BYTES, load_corpus
from fuzz.defects import PLANTED_PROMPT, PLANTED_TOKEN, Defect, check_message
from fuzz.json_mutation import mutated
from fuzz.protobuf_builder import fill
from fuzz.served import SERVED, run_served
from fuzz.served_front import check_log
from fuzz.targets import TARGETS
from omniserve.requests import EngineRequest, RequestOutput
from omniserve.v1 import omniserve_pb2 as pb

NUM_RANDOM_CASES = 300
MAX_CORPUS_BYTES = 64 << 10


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest, tiny_checkpoint: Path) -> Iterator[Any]:
    with closing(TARGETS[request.param](tiny_checkpoint)) as made:
        yield made


def random_cases(number: int) -> Iterator[bytes]:
    chance = random.Random(number)
    for _ in range(NUM_RANDOM_CASES):
        yield chance.randbytes(chance.choice((4, 40, 200)))


def test_random_cases_do_no_harm(target: Any) -> None:
    for case in random_cases(1):
        target.run(case)


def test_the_corpus_does_no_harm_and_stays_small(target: Any) -> None:
    cases = load_corpus(target.name)
    assert cases
    assert max(map(len, cases)) <= MAX_CASE_BYTES
    assert sum(map(len, cases)) <= MAX_CORPUS_BYTES
    for case in cases:
        target.run(case)


async def breaking(request: EngineRequest) -> AsyncGenerator[RequestOutput, None]:
    raise ZeroDivisionError
    yield make_output(request, 0, 1)


async def telling(request: EngineRequest) -> AsyncGenerator[RequestOutput, None]:
    """An answer with the prompt in it."""
    yield make_output(request, 0, 1, text=PLANTED_PROMPT)


@pytest.mark.parametrize("target", ["grpc", "http"], indirect=True)
def test_a_planted_fault_is_found(target: Any) -> None:
    for front in target.fronts:
        front.engine.script = breaking
    with pytest.raises(Defect):
        for case in random_cases(2):
            target.run(case)


@pytest.mark.parametrize("target", ["http"], indirect=True)
def test_a_prompt_in_an_answer_is_found(target: Any) -> None:
    for front in target.fronts:
        front.engine.script = telling
    with pytest.raises(Defect, match="a secret was shown"):
        for case in random_cases(3):
            target.run(case)


@pytest.mark.parametrize("target", ["grpc"], indirect=True)
def test_a_request_beyond_its_bounds_is_found(target: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sane_engine, "VOCAB_SIZE", 3)
    with pytest.raises(Defect):
        for case in random_cases(4):
            target.run(case)


@pytest.mark.parametrize("target", ["config"], indirect=True)
def test_a_fault_of_the_configuration_is_found(
    target: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> None:
        raise KeyError(PLANTED_TOKEN)

    monkeypatch.setattr(config_target, "load_config", broken)
    with pytest.raises(KeyError):
        target.run(b"\x01" * 40)


@pytest.mark.parametrize(
    "message", ["", "x" * 5000, "a\x1b[31m", f"prompt: {PLANTED_PROMPT}", PLANTED_TOKEN]
)
def test_bad_messages_are_found(message: str) -> None:
    with pytest.raises(Defect):
        check_message(message)


@pytest.mark.parametrize(
    "line",
    [
        "Traceback (most recent call last):",
        '{"level": "error", "event": "x"}',
        '{"level": "info", "event": "x", "traceback": "y"}',
        f'{{"level": "info", "event": "{PLANTED_TOKEN}"}}',
    ],
)
def test_bad_log_lines_are_found(line: str) -> None:
    check_log('{"level": "info", "event": "x"}\n')
    with pytest.raises(Defect):
        check_log(line)


def test_cases_reach_every_field_and_repeat() -> None:
    seen: set[str] = set()
    for case in random_cases(5):
        first, again = pb.GenerateRequest(), pb.GenerateRequest()
        fill(first, ByteSource(case))
        fill(again, ByteSource(case))
        assert first.SerializeToString() == again.SerializeToString()
        seen |= {field.name for field, _ in first.ListFields()}
    assert seen == {field.name for field in pb.GenerateRequest.DESCRIPTOR.fields}


def test_mutations_leave_the_original_alone() -> None:
    base = {"a": [1, {"b": 2}], "c": "d"}
    results = [mutated(base, ["a", "e"], ByteSource(case)) for case in random_cases(6)]
    assert base == {"a": [1, {"b": 2}], "c": "d"}
    assert base in results
    assert any("e" in each for each in results if isinstance(each, dict))


def test_a_guided_run_keeps_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("atheris", reason="atheris is not installed: pip install .[fuzz]")
    monkeypatch.setattr("fuzz.corpus.DIRECTORY", tmp_path / "corpus")
    outcome = run_guided("config", Budget(seconds=300, cases=60), tmp_path / "findings")
    assert not outcome.finding, outcome.finding
    assert outcome.num_cases >= 60
    assert outcome.num_kept == len(load_corpus("config")) > 0


@pytest.mark.parametrize("kind", SERVED)
def test_a_served_run_finds_nothing(kind: str, tiny_checkpoint: Path) -> None:
    outcome = run_served(kind, Budget(seconds=60, cases=60), tiny_checkpoint)
    assert not outcome.finding, outcome.finding
    assert outcome.num_cases >= 60
