"""Ways in which two servers that know nothing of each other share the machine."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from omniserve.bench.colocate.contenders import Contender, Route
from omniserve.bench.colocate.objectives import Objectives
from omniserve.bench.colocate.placement import ANYWHERE, LEAST_NICE, Placement
from omniserve.bench.colocate.scene import Scene
from omniserve.bench.colocate.server_plan import ServerPlan, System

Layout = Literal["half", "all", "nice"]
LAYOUTS: dict[Layout, str] = {
    "half": "half of the cores each",
    "all": "all cores each",
    "nice": f"all cores each, BE at nice {LEAST_NICE}",
}
NAMES: dict[System, str] = {"omniserve": "two daemons", "vllm": "two vLLM"}
LS_ALONE, BE_ALONE, ONE = "ls-alone", "be-alone", "one-daemon"


@dataclass(frozen=True, slots=True)
class Pair:
    """A server for each model."""

    system: System
    layout: Layout

    @property
    def key(self) -> str:
        return f"{self.system}-{self.layout}"

    @property
    def title(self) -> str:
        return f"{NAMES[self.system]}, {LAYOUTS[self.layout]}"

    @property
    def ls_server(self) -> str:
        # What is nice to it leaves it as it is.
        return f"{self.system}-ls-{'half' if self.layout == 'half' else 'all'}"

    @property
    def be_server(self) -> str:
        return f"{self.system}-be-{self.layout}"

    @property
    def servers(self) -> tuple[str, str]:
        return self.ls_server, self.be_server

    def contender(self, num_be: int) -> Contender:
        """With so many best-effort requests always unfinished."""
        return Contender(f"{self.key}-be{num_be}", self.ls_server, (Route(self.be_server, num_be),))


ALONE_SERVER = Pair("omniserve", "all").ls_server
"""All cores and the LS model alone."""


def pairs(system: System, layouts: Sequence[Layout]) -> list[Pair]:
    return [Pair(system, layout) for layout in layouts]


def ls_alone() -> Contender:
    return Contender(LS_ALONE, ALONE_SERVER, ())


def be_alone(num_be: int) -> Contender:
    """One daemon to which no LS request comes: what all the cores give to best-effort work."""
    return Contender(BE_ALONE, ONE, (Route(ONE, num_be),))


def one_daemon(num_be: int) -> Contender:
    return Contender(ONE, ONE, (Route(ONE, num_be),))


def title_of(key: str) -> str:
    """Of a contender."""
    if key in _OWN:
        return f"OmniServe, {_OWN[key]}"
    pair, num_be = _pair_of(key)
    return f"{pair.title}, {num_be} BE"


def short_title_of(key: str) -> str:
    """For a legend."""
    if key in _OWN:
        return _OWN[key]
    pair, num_be = _pair_of(key)
    return f"{NAMES[pair.system]}, {pair.layout}, {num_be} BE"


_OWN = {LS_ALONE: "LS alone", BE_ALONE: "BE alone", ONE: "one daemon"}


def _pair_of(key: str) -> tuple[Pair, str]:
    """And the number of its best-effort requests."""
    name, _, num_be = key.rpartition("-be")
    by_key = {each.key: each for system in NAMES for each in pairs(system, list(LAYOUTS))}
    return by_key[name], num_be


def server_plans(scene: Scene, wanted: frozenset[str], held: Objectives | None) -> list[ServerPlan]:
    """Servers with these keys. Ours that answer LS requests hold their steps to the objectives
    where these are known; a daemon with best-effort work alone has none."""
    ls_model, be_model = scene.models()
    cores = scene.frame.device_cores
    middle = len(cores) // 2
    ls_half, be_half = Placement(cores[:middle]), Placement(cores[middle:])
    plans = [ServerPlan(ONE, "omniserve", (ls_model, be_model), scene.frame, objectives=held)]
    for system in NAMES:
        objectives = held if system == "omniserve" else None
        for layout, placement in (("half", ls_half), ("all", ANYWHERE)):
            plans.append(
                ServerPlan(
                    f"{system}-ls-{layout}",
                    system,
                    (ls_model,),
                    scene.frame,
                    objectives=objectives,
                    placement=placement,
                )
            )
        for layout, placement in (
            ("half", be_half),
            ("all", ANYWHERE),
            ("nice", Placement(nice=LEAST_NICE)),
        ):
            plans.append(
                ServerPlan(
                    f"{system}-be-{layout}",
                    system,
                    (be_model,),
                    scene.frame,
                    placement=placement,
                )
            )
    return [plan for plan in plans if plan.key in wanted]
