"""When an engine counts as stalled: what the front sees of it, look after look."""

from systemd_builders import SeenEngine, make_stats

from omniserve.systemd.step_progress import StepProgress

PATIENCE_S = 10.0
BUSY = {"chat": 1}


def looked_at(engine: SeenEngine) -> StepProgress:
    """At second 0, with one report."""
    progress = StepProgress(PATIENCE_S)
    engine.report(*engine.stats.values())
    assert not progress.is_stalled(engine, 0.0)
    return progress


def test_steps_are_progress() -> None:
    engine = SeenEngine(num_in_flight=1)
    progress = looked_at(engine)
    for second in range(1, 100):
        engine.report(make_stats(num_steps=second, running=BUSY))
        assert not progress.is_stalled(engine, float(second))


def test_work_without_steps_is_a_stall_after_the_patience() -> None:
    engine = SeenEngine(num_in_flight=1)
    engine.report(make_stats(num_steps=7, running=BUSY))
    progress = looked_at(engine)
    for second, is_stalled in ((5, False), (10, False), (11, True), (60, True)):
        engine.report(make_stats(num_steps=7, running=BUSY))
        assert progress.is_stalled(engine, float(second)) is is_stalled


def test_waiting_requests_are_work() -> None:
    engine = SeenEngine(num_in_flight=1)
    engine.report(make_stats(num_steps=7, waiting=BUSY))
    progress = looked_at(engine)
    engine.report(make_stats(num_steps=7, waiting=BUSY))
    assert progress.is_stalled(engine, PATIENCE_S + 1)


def test_an_engine_that_freezes_while_idle_is_found_by_the_first_request() -> None:
    engine = SeenEngine()
    engine.report(make_stats(num_steps=7))
    progress = looked_at(engine)
    assert not progress.is_stalled(engine, 1000.0)
    engine.num_in_flight = 1
    assert not progress.is_stalled(engine, 1001.0)
    assert progress.is_stalled(engine, 1001.0 + PATIENCE_S)


def test_idle_is_well_for_ever() -> None:
    engine = SeenEngine()
    progress = looked_at(engine)
    assert not progress.is_stalled(engine, 1e6)


def test_a_request_that_only_its_client_holds_up_is_no_stall() -> None:
    """The engine is done with it and says so; the stream waits for its reader."""
    engine = SeenEngine(num_in_flight=1)
    engine.report(make_stats(num_steps=7))
    progress = looked_at(engine)
    for second in range(1, 100):
        engine.report(make_stats(num_steps=7))
        assert not progress.is_stalled(engine, float(second))


def test_an_engine_that_is_restarted_is_left_to_its_supervision() -> None:
    engine = SeenEngine(num_in_flight=1)
    engine.report(make_stats(num_steps=7, running=BUSY))
    progress = looked_at(engine)
    engine.state, engine.stats = "restarting", {}
    assert not progress.is_stalled(engine, 600.0)
    engine.state = "ready"
    engine.report(make_stats(num_steps=0, running=BUSY))
    assert not progress.is_stalled(engine, 601.0)
    assert progress.is_stalled(engine, 612.0)


def test_the_stall_of_one_model_is_no_stall_while_another_one_steps() -> None:
    """They take turns in one loop, which is what is watched."""
    engine = SeenEngine(num_in_flight=2)
    progress = looked_at(engine)
    for second in range(1, 30):
        engine.report(
            make_stats(num_steps=7, running=BUSY, name="a"),
            make_stats(num_steps=second, running=BUSY, name="b"),
        )
        assert not progress.is_stalled(engine, float(second))


def test_progress_ends_a_stall() -> None:
    engine = SeenEngine(num_in_flight=1)
    engine.report(make_stats(num_steps=7, running=BUSY))
    progress = looked_at(engine)
    assert progress.is_stalled(engine, 60.0)
    engine.report(make_stats(num_steps=8, running=BUSY))
    assert not progress.is_stalled(engine, 61.0)
    assert progress.is_stalled(engine, 72.0)
