"""The engine in this process: what ends a request, what is refused, what is left behind."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from engine_builders import GREEDY, make_engine, make_model_settings, make_request, run_all

from omniserve.engine.core import Engine
from omniserve.errors import CheckpointError, ConfigError, InvalidRequest, UnknownModel
from omniserve.requests import EngineRequest, SamplingParams

PROMPT = list(range(30, 70))


@pytest.fixture(scope="module")
def engine(tiny_checkpoint: Path) -> Engine:
    return make_engine(make_model_settings(tiny_checkpoint))


def test_length_ends_a_request(engine: Engine) -> None:
    result = run_all(engine, [make_request("a", PROMPT)])["a"]
    assert len(result.token_ids) == 16
    assert result.finish_reason == "length"
    assert result.text


def test_a_stop_token_ends_a_request(engine: Engine) -> None:
    free = run_all(engine, [make_request("a", PROMPT)])["a"].token_ids
    sampling = replace(GREEDY, stop_token_ids=(free[5],))
    result = run_all(engine, [make_request("b", PROMPT, sampling)])["b"]
    assert result.token_ids == free[: free.index(free[5]) + 1]
    assert (result.finish_reason, result.stop_reason) == ("stop", free[5])


def test_the_end_of_sequence_token_ends_a_request(engine: Engine) -> None:
    eos = engine.models[0].eos_token_ids[0]
    sampling = SamplingParams(temperature=0.0, max_tokens=8, logit_bias={eos: 100.0})
    result = run_all(engine, [make_request("a", PROMPT, sampling)])["a"]
    assert (result.token_ids, result.text, result.finish_reason) == ([eos], "", "stop")
    ignored = replace(sampling, ignore_eos=True)
    result = run_all(engine, [make_request("b", PROMPT, ignored)])["b"]
    assert result.token_ids == [eos] * 8


def test_a_stop_string_across_tokens_ends_a_request(engine: Engine) -> None:
    sampling = replace(GREEDY, max_tokens=40)
    text = run_all(engine, [make_request("a", PROMPT, sampling)])["a"].text
    stop = text[10:16]
    stopped = replace(sampling, stop=(stop,))
    result = run_all(engine, [make_request("b", PROMPT, stopped)])["b"]
    assert result.text == text[: text.index(stop)]
    assert (result.finish_reason, result.stop_reason) == ("stop", stop)


def test_held_back_text_comes_out_at_the_end(engine: Engine) -> None:
    text = run_all(engine, [make_request("a", PROMPT)])["a"].text
    sampling = replace(GREEDY, stop=(text[-1] + "never",))
    assert run_all(engine, [make_request("b", PROMPT, sampling)])["b"].text == text


def test_seeded_sampling_does_not_depend_on_company(tiny_checkpoint: Path) -> None:
    """Alone, in a batch, and preempted in a pool that is too small."""
    sampling = SamplingParams(temperature=1.0, seed=11, top_p=0.9, max_tokens=24, ignore_eos=True)
    seeded = make_request("seeded", PROMPT, sampling, "best_effort")
    roomy = make_engine(make_model_settings(tiny_checkpoint))
    alone = run_all(roomy, [seeded])["seeded"].token_ids
    company = [
        make_request(f"r{i}", range(10 + i, 60 + i), replace(GREEDY, max_tokens=20))
        for i in range(8)
    ]
    tight = make_engine(make_model_settings(tiny_checkpoint, device_kv_bytes=300_000))
    crowded = run_all(tight, [seeded, *company], arrivals_per_step=1)["seeded"].token_ids
    assert tight.stats()[0].num_preemptions > 0
    assert crowded == alone
    other = replace(sampling, seed=12)
    assert run_all(roomy, [make_request("o", PROMPT, other)])["o"].token_ids != alone


def test_penalties_see_tokens_from_before_a_preemption(tiny_checkpoint: Path) -> None:
    sampling = replace(GREEDY, max_tokens=24, frequency_penalty=2.0, repetition_penalty=1.5)
    penalised = make_request("p", PROMPT, sampling, "best_effort")
    roomy = make_engine(make_model_settings(tiny_checkpoint))
    alone = run_all(roomy, [penalised])["p"].token_ids
    assert alone != run_all(roomy, [make_request("free", PROMPT)])["free"].token_ids[:24]
    company = [make_request(f"r{i}", range(10 + i, 60 + i)) for i in range(8)]
    tight = make_engine(make_model_settings(tiny_checkpoint, device_kv_bytes=300_000))
    assert run_all(tight, [penalised, *company], arrivals_per_step=1)["p"].token_ids == alone
    assert tight.stats()[0].num_preemptions > 0


def test_logprobs_come_with_every_token(engine: Engine) -> None:
    sampling = replace(GREEDY, logprobs=2)
    result = run_all(engine, [make_request("a", PROMPT, sampling)])["a"]
    assert [entry.token_id for entry in result.logprobs] == result.token_ids
    for entry in result.logprobs:
        assert len(entry.top) == 2
        best_id, best_logprob = entry.top[0]
        assert best_id == entry.token_id
        assert best_logprob == pytest.approx(entry.logprob)


def test_a_second_prompt_with_the_same_beginning_hits_the_cache(tiny_checkpoint: Path) -> None:
    engine = make_engine(make_model_settings(tiny_checkpoint))
    first = run_all(engine, [make_request("a", PROMPT)])["a"]
    second = run_all(engine, [make_request("b", PROMPT)])["b"]
    assert (first.num_cached_tokens, second.num_cached_tokens) == (0, 32)
    assert first.token_ids == second.token_ids


@pytest.mark.parametrize("num_steps", [0, 1, 2, 5])
def test_an_aborted_request_leaves_nothing(tiny_checkpoint: Path, num_steps: int) -> None:
    engine = make_engine(make_model_settings(tiny_checkpoint, max_step_tokens=16))
    engine.add(make_request("a", PROMPT))
    for _ in range(num_steps):
        engine.step()
    engine.abort("a")
    assert engine.step() == []
    assert not engine.has_unfinished
    assert engine.stats()[0].kv_used_bytes == 0


def test_aborting_the_unknown_is_nothing(engine: Engine) -> None:
    engine.abort("never seen")


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "message"),
    [
        ([], 4, "empty"),
        ([5] * 5000, 4, "leave no room"),
        ([5] * 10, 5000, "max_tokens: 5000"),
        ([5, 1_000_000], 4, "token id 1000000"),
        ([-1], 4, "token id -1"),
    ],
)
def test_bad_prompts_are_refused(
    engine: Engine, prompt: list[int], max_tokens: int, message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        engine.add(make_request("a", prompt, replace(GREEDY, max_tokens=max_tokens)))
    assert not engine.has_unfinished


def test_a_request_id_in_use_is_refused(engine: Engine) -> None:
    engine.add(make_request("same", PROMPT))
    with pytest.raises(InvalidRequest, match="same"):
        engine.add(make_request("same", PROMPT))
    engine.abort("same")


def test_an_unknown_model_is_refused(engine: Engine) -> None:
    with pytest.raises(UnknownModel, match="nobody"):
        engine.add(make_request("a", PROMPT, model="nobody"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device_kv_bytes": 100}, "hold no KV block"),
        ({"max_model_len": 100_000}, "more than the"),
        ({"max_model_len": 2000, "device_kv_bytes": 100_000}, "fewer than one request"),
    ],
)
def test_kv_limits_are_checked_before_loading(
    tiny_checkpoint: Path, settings: dict[str, int], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_engine(replace(make_model_settings(tiny_checkpoint), **settings))  # type: ignore[arg-type]


def test_a_missing_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        make_engine(make_model_settings(tmp_path / "nowhere"))


def test_two_models_share_the_engine(tiny_checkpoint: Path) -> None:
    """Each has its own pool; best-effort work of one goes on beside the other's urgent work."""
    engine = make_engine(
        make_model_settings(tiny_checkpoint, name="one"),
        make_model_settings(tiny_checkpoint, name="two"),
    )
    long = replace(GREEDY, max_tokens=60)
    requests = [
        make_request("ls", PROMPT, long, "latency_sensitive", model="one"),
        make_request("be", PROMPT, GREEDY, "best_effort", model="two"),
    ]
    ended: list[str] = []
    for request in requests:
        engine.add(request)
    tokens: dict[str, list[int]] = {"ls": [], "be": []}
    while engine.has_unfinished:
        for output in engine.step():
            tokens[output.request_id] += output.token_ids
            if output.finish_reason:
                ended.append(output.request_id)
    assert ended == ["be", "ls"]
    assert tokens["be"] == tokens["ls"][:16]


def park_best_effort_step(path: Path, late: EngineRequest, pipeline_depth: int) -> Engine:
    """An engine whose best-effort step stands between two layers, as `late` has arrived."""
    arrivals = [late]
    engine: Engine

    def poll() -> None:
        if arrivals:
            engine.add(arrivals.pop())

    settings = make_model_settings(path)
    engine = make_engine(settings, poll_arrivals=poll, pipeline_depth=pipeline_depth)
    engine.add(make_request("early", PROMPT, service_class="best_effort"))
    assert engine.step() == []
    assert not arrivals
    return engine


def test_aborting_all_while_a_step_is_parked_leaves_nothing(tiny_checkpoint: Path) -> None:
    engine = park_best_effort_step(tiny_checkpoint, make_request("late", PROMPT), 1)
    engine.abort("early")
    engine.abort("late")
    while engine.has_unfinished:
        assert engine.step() == []
    assert engine.stats()[0].kv_used_bytes == 0


@pytest.mark.parametrize("pipeline_depth", [1, 2])
@pytest.mark.parametrize("max_tokens", [1, 2])
def test_a_first_token_does_not_wait_for_the_parked_step(
    tiny_checkpoint: Path, pipeline_depth: int, max_tokens: int
) -> None:
    """Also where nothing of the request is left to plan once its token is being sampled."""
    late = make_request("late", PROMPT, replace(GREEDY, max_tokens=max_tokens))
    engine = park_best_effort_step(tiny_checkpoint, late, pipeline_depth)
    first: list[str] = []
    while not first:
        first = [output.request_id for output in engine.step()]
    assert first == ["late"]
    assert engine.is_parked, "the best-effort step was run to its end first"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_broken_weights_end_a_request_with_an_error(
    tmp_path: Path, tiny_checkpoint: Path, temperature: float
) -> None:
    """One request's broken numbers are its own: the engine and the others go on."""
    engine = make_engine(make_model_settings(tiny_checkpoint))
    embedding = engine.runtime("tiny")._executor._model._embedding
    with torch.inference_mode():
        embedding[77] = float("nan")
    sampling = replace(GREEDY, temperature=temperature)
    requests = [make_request("bad", [5, 77, 6], sampling), make_request("good", PROMPT[:5])]
    results = run_all(engine, requests)
    assert results["bad"].finish_reason == "error"
    assert results["bad"].token_ids == []
    assert len(results["good"].token_ids) == 16
    assert engine.stats()[0].kv_used_bytes == 0


def test_warm_up_refuses_a_model_without_finite_logits(tiny_checkpoint: Path) -> None:
    engine = make_engine(make_model_settings(tiny_checkpoint))
    engine.warm_up()
    with torch.inference_mode():
        engine.runtime("tiny")._executor._model._embedding[:] = float("inf")
    with pytest.raises(CheckpointError, match="not finite"):
        engine.warm_up()
