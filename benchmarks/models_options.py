"""What the benchmark of two models can be told."""

from dataclasses import dataclass, replace

from models_layouts import Layout

from omniserve.bench.colocate.options import ColocateOptions


@dataclass(frozen=True, slots=True)
class Models:
    """Architectures of one preset."""

    preset: str = "100m"
    ls_arch: str = "llama"
    be_arch: str = "qwen3"


@dataclass(frozen=True, slots=True)
class Settings:
    """What is not in the plan of every comparison; defaults are those of the full measurement."""

    models: Models = Models()
    daemon_layouts: tuple[Layout, ...] = ("half", "all", "nice")
    vllm_layouts: tuple[Layout, ...] = ("half", "nice")
    search_windows: int = 3
    """Most windows of a pair of daemons, to bring its attainment to that of one daemon."""


FULL = ColocateOptions(
    ls_requests_in_kv=16,
    be_requests=16,
    scenes=(),
    # Best-effort prompts of a backlog that begins take most of it where LS has the cores.
    warm_up_s=18.0,
    duration_s=20.0,
    drain_s=2.0,
    max_tries=2,
)
LS_RATE_WITHOUT_VLLM = 3.0


def quick(options: ColocateOptions, settings: Settings) -> tuple[ColocateOptions, Settings]:
    """Under ten minutes on two cores: shorter windows and one of each contender."""
    shorter = replace(options, rounds=1, warm_up_s=5.0, duration_s=8.0, unloaded_s=5.0, max_tries=1)
    return shorter, replace(
        settings, daemon_layouts=("half", "all"), vllm_layouts=("half",), search_windows=2
    )
