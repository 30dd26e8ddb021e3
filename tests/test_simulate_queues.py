"""The host as a queue, and copies, against loops over one row at a time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniserve.simulate.engine.copy_queue import CopyQueue
from omniserve.simulate.engine.host_queue import HostQueue
from omniserve.simulate.prompts import prompt_tokens

SECONDS = st.floats(min_value=0, max_value=10)
SERVICE = st.floats(min_value=0.001, max_value=5)


@given(st.lists(st.lists(st.tuples(SECONDS, SERVICE), max_size=5), max_size=5))
def test_rows_are_served_one_after_the_other(gaps: list[list[tuple[float, float]]]) -> None:
    queue = HostQueue()
    at_s = free_s = 0.0
    expected: list[tuple[int, float]] = []
    for batch in gaps:
        sent, services, lanes = [], [], []
        for gap_s, service_s in batch:
            at_s += gap_s
            free_s = max(free_s, at_s) + service_s
            lanes.append(len(expected))
            expected.append((len(expected), free_s))
            sent.append(at_s)
            services.append(service_s)
        numbers = np.array(lanes, dtype=np.int64)
        queue.send(0, numbers, numbers + 1, np.array(sent), np.array(services))
    assert queue.num_waiting == len(expected)
    for lane, done_s in expected:
        assert queue.next_result_s == pytest.approx(done_s)
        assert queue.collect(done_s - 1e-6) == []
        results = queue.collect(done_s + 1e-9)
        assert [(rows.model, rows.lanes.tolist()) for rows in results] == [(0, [lane])]
        assert results[0].layers.tolist() == [lane + 1]
    assert queue.num_waiting == 0
    assert queue.next_result_s is None


def test_results_of_several_batches_come_together_and_keep_their_models() -> None:
    queue = HostQueue()
    lanes = np.array([3, 4])
    queue.send(0, lanes, lanes, np.array([0.0, 0.0]), np.array([1.0, 1.0]))
    queue.send(1, lanes, lanes, np.array([0.5, 0.5]), np.array([1.0, 1.0]))
    results = queue.collect(3.0)
    assert [(rows.model, rows.lanes.tolist()) for rows in results] == [(0, [3, 4]), (1, [3])]
    assert queue.num_waiting == 1


def test_prompts_begin_alike_where_their_hashes_are_equal() -> None:
    hashes = [(5,), (-5,), (2**64 - 1,), (2**64 - 2,), ()]
    prompts = [prompt_tokens(520, each, number) for number, each in enumerate(hashes)]
    assert len({prompt[0] for prompt in prompts}) == len(hashes)
    assert prompt_tokens(520, (5, 6), 9)[:512] == prompts[0][:512]
    assert prompts[0][512] not in prompts[1]


def test_copies_follow_each_other_at_their_rate() -> None:
    copies = CopyQueue(bytes_per_s=100.0)
    copies.begin("a", 100, now_s=5.0)
    copies.begin("b", 50, now_s=5.5)
    copies.begin("nothing", 0, now_s=5.5)
    assert copies.next_landing_s == 6.0
    assert copies.take_landed(5.9) == []
    assert copies.take_landed(6.0) == ["a"]
    assert copies.next_landing_s == 6.5
    assert copies.take_landed(7.0) == ["b", "nothing"]
    assert len(copies) == 0
    assert copies.next_landing_s is None
    copies.begin("c", 100, now_s=10.0)
    assert copies.next_landing_s == 11.0
