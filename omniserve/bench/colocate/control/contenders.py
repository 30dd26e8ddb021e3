"""Who is compared in scenes of control, and the daemons of each."""

from typing import Literal

from omniserve.bench.colocate.contenders import (
    CONTROL,
    LS_ALONE,
    NO_ADMISSION,
    NO_CONTROL,
    PLAIN,
    Contender,
    Route,
)
from omniserve.bench.colocate.control.loads import LoadName
from omniserve.bench.colocate.objectives import Objectives
from omniserve.bench.colocate.scene import Scene
from omniserve.bench.colocate.server_plan import ServerPlan

ControlChoice = Literal["on", "off", "both"]
CONTROL_CHOICES: tuple[ControlChoice, ...] = ("on", "off", "both")


def control_contenders(load: LoadName, choice: ControlChoice, num_be: int) -> list[Contender]:
    """With `num_be` best-effort requests always unfinished; each has a daemon of its own."""
    beside = [Contender(key, key, (Route(key, num_be),)) for key in _keys(load, choice)]
    if load == "overload":
        return beside
    return [Contender(LS_ALONE, PLAIN, ()), *beside]


def _keys(load: LoadName, choice: ControlChoice) -> tuple[str, ...]:
    if load == "overload":
        # What is compared there is admission, which is a part of control.
        return (CONTROL, NO_ADMISSION)
    return {"on": (CONTROL,), "off": (NO_CONTROL,), "both": (CONTROL, NO_CONTROL)}[choice]


def control_servers(
    scene: Scene, wanted: frozenset[str], objectives: Objectives | None
) -> list[ServerPlan]:
    """Of the contenders with these servers; before objectives are known, LS alone's."""
    models, frame = scene.models(), scene.frame
    # LS alone is the measure of the others: nothing of what they are judged by has a part in it.
    plans = [ServerPlan(PLAIN, "omniserve", models, frame)]
    if objectives is None:
        return plans
    for key in (CONTROL, NO_CONTROL, NO_ADMISSION):
        if key in wanted:
            held = None if key == NO_CONTROL else objectives
            has_admission = key != NO_ADMISSION
            plans.append(
                ServerPlan(key, "omniserve", models, frame, True, held, admission=has_admission)
            )
    return plans
