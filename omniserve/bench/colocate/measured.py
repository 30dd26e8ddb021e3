"""All that a run of the command measured."""

from collections.abc import Sequence
from dataclasses import dataclass

from omniserve.bench.colocate.comparison import SceneResult
from omniserve.bench.colocate.control.comparison import ControlResult
from omniserve.bench.colocate.control.goals import control_goals
from omniserve.bench.colocate.frames import Frame
from omniserve.bench.colocate.goals import GoalResult, goal_results


@dataclass(frozen=True, slots=True)
class Measured:
    """Either may be empty, not both."""

    scenes: Sequence[SceneResult] = ()
    """Of the comparison with other systems."""
    control: Sequence[ControlResult] = ()

    def goals(self, num_be: int) -> list[GoalResult]:
        return [*control_goals(self.control), *goal_results(self.scenes, num_be)]

    @property
    def frames(self) -> list[Frame]:
        """Each once."""
        scenes = [*(each.scene for each in self.control), *(each.scene for each in self.scenes)]
        return list({scene.frame.name: scene.frame for scene in scenes}.values())
