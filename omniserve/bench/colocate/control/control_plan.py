"""What scenes of control measure."""

from dataclasses import dataclass

from omniserve.bench.colocate.control.contenders import ControlChoice
from omniserve.bench.colocate.control.loads import LoadName
from omniserve.bench.colocate.scene import SceneChoice


@dataclass(frozen=True, slots=True)
class ControlPlan:
    """Equal plans may be continued by each other."""

    scenes: tuple[SceneChoice, ...]
    loads: tuple[LoadName, ...]
    choice: ControlChoice
    capacity: float | None
    """Requests per second; None: searched for."""
    ttft_factor: float
    tpot_factor: float
    """Objectives, over what a request alone with the server needs."""
    rounds: int
    warm_up_s: float
    duration_s: float
    drain_s: float
    max_tries: int
