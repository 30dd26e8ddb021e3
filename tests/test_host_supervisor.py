"""The supervisor's states, with a clock and processes that the test drives."""

from typing import cast

import pytest

from cpu_attn.host.child import HostChild
from cpu_attn.host.errors import HostAttentionDown
from cpu_attn.host.supervisor import Supervisor


class ScriptedChild:
    """A process that is and ends as the test says."""

    pid = 1

    def __init__(self) -> None:
        self.ready = False
        self.last_words = ""
        self.status: int | None = None
        self.killed = False
        self.grace_s: float | None = None
        self.cannot_end = False

    def poll(self) -> int | None:
        return self.status

    def kill(self) -> None:
        self.killed = True

    def end(self, grace_s: float) -> None:
        if self.cannot_end:
            raise HostAttentionDown("it does not end")
        self.grace_s = grace_s


class Scene:
    """A supervisor at a time, its processes and how often books were recovered."""

    def __init__(self, *, max_restarts: int = 2, stall_timeout_s: float = 4.0) -> None:
        self.children: list[ScriptedChild] = []
        self.num_recovered = 0
        self.now_s = 1000.0
        self.progress = 0
        self.has_work = False
        self.spawn_error: OSError | None = None
        self.supervisor = Supervisor(
            self._spawn,
            self._recover,
            stall_timeout_s=stall_timeout_s,
            start_timeout_s=60.0,
            max_restarts=max_restarts,
        )

    @property
    def child(self) -> ScriptedChild:
        return self.children[-1]

    def look(self, after_s: float = 0.1) -> str:
        self.now_s += after_s
        return self.supervisor.look(self.now_s, has_work=self.has_work, progress=self.progress)

    def make_ready(self) -> None:
        self.child.ready = True
        assert self.look() == "ready"

    def _spawn(self) -> HostChild:
        if self.spawn_error is not None:
            raise self.spawn_error
        self.children.append(ScriptedChild())
        return cast(HostChild, self.child)

    def _recover(self) -> None:
        self.num_recovered += 1


@pytest.fixture
def scene() -> Scene:
    scene = Scene()
    scene.supervisor.start(scene.now_s)
    assert scene.look() == "starting"
    return scene


def test_no_progress_with_work_is_a_stall(scene: Scene) -> None:
    scene.make_ready()
    scene.has_work = True
    for _ in range(39):
        assert scene.look() == "ready"
    scene.look(0.3)
    assert scene.child.killed
    assert scene.supervisor.state == "ending"
    # Not recovered before it is gone: until then it may still write.
    assert scene.num_recovered == 0
    scene.child.status = -9
    assert scene.look() == "waiting"
    assert scene.num_recovered == 1
    assert "no progress for 4 s" in scene.supervisor.reason


def test_progress_and_idleness_are_no_stall(scene: Scene) -> None:
    scene.make_ready()
    for _ in range(200):
        assert scene.look() == "ready"
    scene.has_work = True
    for _ in range(200):
        scene.progress += 1
        assert scene.look() == "ready"
    assert not scene.child.killed


def test_a_pause_of_our_own_is_not_taken_for_a_stall(scene: Scene) -> None:
    scene.make_ready()
    scene.has_work = True
    assert scene.look() == "ready"
    assert scene.look(3600.0) == "ready"
    scene.progress += 1
    assert scene.look() == "ready"


def test_one_that_does_not_get_ready_is_killed(scene: Scene) -> None:
    assert scene.look(59.0) == "starting"
    assert scene.look(2.0) == "ending"
    assert scene.child.killed


def test_deaths_in_a_row_wait_longer_and_end_in_failure(scene: Scene) -> None:
    delays = []
    for _ in range(2):
        scene.make_ready()
        scene.child.status = -9
        assert scene.look() == "waiting"
        waited_s = 0.0
        while scene.look(0.01) == "waiting":
            waited_s += 0.01
        delays.append(waited_s)
    assert delays[1] > 1.5 * delays[0] > 0.0
    assert scene.supervisor.num_restarts == 2
    scene.child.status = 1
    scene.child.last_words = "ValueError: cores"
    assert scene.look() == "failed"
    assert scene.look(100.0) == "failed"
    assert scene.supervisor.reason == "ValueError: cores"
    assert scene.num_recovered == 3
    assert len(scene.children) == 3


def test_a_process_that_cannot_be_made_counts_as_a_death(scene: Scene) -> None:
    scene.make_ready()
    scene.child.status = -9
    scene.spawn_error = OSError("no memory")
    assert scene.look() == "waiting"
    assert scene.look(1.0) == "waiting"
    scene.spawn_error = None
    assert scene.look(1.0) == "starting"
    scene.spawn_error = OSError("no memory")
    scene.child.status = -9
    assert scene.look() == "failed"


def test_a_healthy_minute_forgives_earlier_deaths(scene: Scene) -> None:
    for _ in range(10):
        scene.make_ready()
        assert scene.look(61.0) == "ready"
        scene.child.status = -11
        assert scene.look() == "waiting"
        assert "SIGSEGV" in scene.supervisor.reason
        assert scene.look(1.0) == "starting"


def test_a_healthy_minute_before_a_stall_counts(scene: Scene) -> None:
    for _ in range(10):
        scene.make_ready()
        scene.has_work = False
        assert scene.look(61.0) == "ready"
        scene.has_work = True
        while scene.look(1.0) == "ready":
            pass
        scene.child.status = -9
        assert scene.look() == "waiting"
        assert scene.look(1.0) == "starting"


def test_a_stall_of_a_minute_is_not_health() -> None:
    scene = Scene(stall_timeout_s=200.0)
    scene.supervisor.start(scene.now_s)
    scene.has_work = True
    for _ in range(3):
        scene.make_ready()
        while scene.look(1.0) == "ready":
            pass
        scene.child.status = -9
        scene.look()
        scene.look(1.0)
    assert scene.supervisor.state == "failed"


def test_one_that_does_not_end_is_not_taken_for_gone(scene: Scene) -> None:
    scene.make_ready()
    scene.child.cannot_end = True
    with pytest.raises(HostAttentionDown):
        scene.supervisor.stop(0.0)
    assert scene.num_recovered == 0
    scene.child.cannot_end = False
    scene.supervisor.stop(0.0)
    assert (scene.num_recovered, scene.supervisor.state) == (1, "stopped")


def test_stopping_ends_it_before_books_are_recovered(scene: Scene) -> None:
    scene.make_ready()
    scene.supervisor.stop(2.5)
    assert scene.child.grace_s == 2.5
    assert scene.num_recovered == 1
    assert scene.supervisor.state == "stopped"
    assert scene.look(100.0) == "stopped"
    scene.supervisor.start(scene.now_s)
    assert len(scene.children) == 2
