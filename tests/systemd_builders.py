"""An engine as the link to the service manager sees one."""

from dataclasses import dataclass, field

from omniserve.settings import ModelInfo, ModelStats


def make_stats(
    num_steps: int = 0,
    running: dict[str, int] | None = None,
    waiting: dict[str, int] | None = None,
    name: str = "demo",
) -> ModelStats:
    return ModelStats(name, running or {}, waiting or {}, 0, 1, num_steps, 0, 0, 1.0)


def make_info(name: str) -> ModelInfo:
    return ModelInfo(name, "EchoForCausalLM", "float32", 8, 8, 8, 8, 1, (0,), 1)


@dataclass
class SeenEngine:
    """Set by tests to what the front would know."""

    state: str = "ready"
    num_in_flight: int = 0
    num_reports: int = 0
    stats: dict[str, ModelStats] = field(default_factory=dict)
    models: dict[str, ModelInfo] = field(default_factory=lambda: {"demo": make_info("demo")})

    @property
    def ready(self) -> bool:
        return self.state == "ready"

    def report(self, *stats: ModelStats) -> None:
        self.stats = {each.name: each for each in stats}
        self.num_reports += 1
