"""Recipes of synthetic traces: what they are like, and those that have a name."""

from dataclasses import dataclass

from omniserve.bench.trace.formats.rows import TraceError
from omniserve.bench.trace.synth.envelopes import AllAtOnce, Envelope, OnOff, Recorded, Wandering
from omniserve.bench.trace.synth.lengths import Lengths, QuantileLengths, SampleLengths, ZipfLengths
from omniserve.bench.trace.synth.sessions import SessionModel


@dataclass(frozen=True, slots=True)
class Stragglers:
    """A few requests whose output is far longer, as of models that reason: a Pareto tail."""

    share: float
    """Of the requests, in [0, 1]."""
    min_tokens: int
    alpha: float
    """The smaller, the heavier the tail."""
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Tenants:
    """Tenants of very different size: the k-th has a share proportional to k^-exponent."""

    count: int
    exponent: float = 1.0


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a synthetic trace is like."""

    name: str
    about: str
    """One line."""
    rate_per_s: float
    duration_s: float
    envelope: Envelope
    gap_cv: float
    """Standard deviation over mean of the gaps between arrivals, while the rate stays."""
    lengths: Lengths
    sessions: SessionModel | None = None
    stragglers: Stragglers | None = None
    failed_share: float = 0.0
    """Share of requests that fail without a token."""
    tenants: Tenants | None = None
    tier: str = ""


# Requests in each whole minute of Azure's traces of 2023.
_CONV_MINUTES = (
    *(191, 265, 329, 353, 307, 273, 268, 261, 322, 298, 301, 302, 345, 326, 283, 279, 280, 308),
    *(343, 351, 351, 343, 408, 396, 386, 398, 432, 480, 476, 453, 448, 507, 438, 413, 423, 418),
    *(465, 311, 329, 316, 333, 355, 319, 360, 334, 375, 330, 249, 221, 249, 265, 280, 256, 254),
    *(242, 260, 246, 225),
)
_CODE_MINUTES = (
    *(63, 0, 0, 531, 187, 130, 15, 42, 38, 476, 421, 63, 0, 0, 632, 299, 0, 20, 396, 315, 116),
    *(78, 306, 447, 252, 34, 128, 111, 406, 234, 118, 169, 130, 306, 158, 0, 339, 55, 285, 191),
    *(0, 28, 205, 245, 99, 0, 0, 32, 0, 0, 0, 97, 212, 22, 32, 113, 47),
)

# Quantiles of Mooncake's traces (FAST'25) at lengths.LEVELS.
_MOONCAKE_CONV = QuantileLengths(
    prompt=(
        *(891, 894, 896, 901, 964, 1261, 1662, 2306, 3263, 4993, 6909, 9570, 13196, 15367),
        *(17869, 21464, 27367, 39550, 66448, 85400, 100810, 126195),
    ),
    output=(
        *(1, 3, 3, 10, 24, 46, 100, 156, 213, 291, 350, 399, 447, 472, 504, 543, 597, 698, 891),
        *(1118, 1567, 2000),
    ),
    spearman=0.07,
)
_MOONCAKE_SYNTHETIC = QuantileLengths(
    prompt=(
        *(13, 16, 18, 22, 30, 45, 88, 277, 912, 4364, 11587, 16290, 19408, 23175, 28425, 34319),
        *(38611, 48904, 56631, 66456, 76328, 191378),
    ),
    output=(
        *(1, 2, 2, 2, 4, 6, 8, 11, 16, 32, 69, 126, 210, 250, 288, 332, 389, 519, 688, 768),
        *(782, 893),
    ),
    spearman=-0.52,
)

_CHAT_ENVELOPE = Wandering(memory=0.72, cv=0.22)
_CHAT_SESSIONS = SessionModel(continuing_share=0.6, think_time_s=40.0, num_system_blocks=1)

RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="azure-conv",
            about="conversations: steady arrivals, minutes as in Azure's trace of 2023",
            rate_per_s=5.53,
            duration_s=3480.0,
            envelope=Recorded(_CONV_MINUTES),
            gap_cv=1.02,
            lengths=SampleLengths("azure-conv"),
        ),
        Recipe(
            name="azure-code",
            about="code completion: volleys and silence, minutes as in Azure's trace of 2023",
            rate_per_s=2.57,
            duration_s=3420.0,
            envelope=Recorded(_CODE_MINUTES),
            gap_cv=3.5,
            lengths=SampleLengths("azure-code"),
        ),
        Recipe(
            name="mooncake-conv",
            about="long conversations with shared prefixes, as in Mooncake's trace",
            rate_per_s=3.40,
            duration_s=3540.0,
            envelope=Wandering(memory=0.35, cv=0.094),
            gap_cv=1.2,
            lengths=_MOONCAKE_CONV,
            sessions=SessionModel(continuing_share=0.38, think_time_s=60.0, num_system_blocks=1),
        ),
        Recipe(
            name="mooncake-synthetic",
            about="long prompts, most of them seen before, as in Mooncake's synthetic trace",
            rate_per_s=3.91,
            duration_s=1020.0,
            envelope=Wandering(memory=0.0, cv=0.0),
            gap_cv=1.0,
            lengths=_MOONCAKE_SYNTHETIC,
            sessions=SessionModel(continuing_share=0.68, think_time_s=20.0),
        ),
        Recipe(
            name="burstgpt",
            about="short requests in bursts, some fail, as BurstGPT's generator makes them",
            rate_per_s=2.0,
            duration_s=3600.0,
            envelope=Wandering(memory=0.5, cv=0.5),
            gap_cv=1.41,
            lengths=ZipfLengths(exponent=1.1, max_tokens=1024),
            failed_share=0.02,
        ),
        Recipe(
            name="chat",
            about="conversations that go on, with a common system prompt, for as long as wanted",
            rate_per_s=2.0,
            duration_s=3600.0,
            envelope=_CHAT_ENVELOPE,
            gap_cv=1.02,
            lengths=SampleLengths("azure-conv"),
            sessions=_CHAT_SESSIONS,
        ),
        Recipe(
            name="api",
            about="calls of programs: minutes of volleys, minutes of silence",
            rate_per_s=2.0,
            duration_s=3600.0,
            envelope=OnOff(idle_share=0.21, cv=0.9),
            gap_cv=3.5,
            lengths=SampleLengths("azure-code"),
        ),
        Recipe(
            name="reasoning",
            about="conversations of which a few think for thousands of tokens",
            rate_per_s=1.0,
            duration_s=3600.0,
            envelope=_CHAT_ENVELOPE,
            gap_cv=1.02,
            lengths=SampleLengths("azure-conv"),
            sessions=_CHAT_SESSIONS,
            stragglers=Stragglers(share=0.05, min_tokens=1000, alpha=1.2, max_tokens=16_384),
        ),
        Recipe(
            name="batch",
            about="a batch job: everything at the beginning",
            rate_per_s=1.0,
            duration_s=1000.0,
            envelope=AllAtOnce(),
            gap_cv=1.0,
            lengths=SampleLengths("azure-conv"),
        ),
    )
}


def named_recipe(name: str) -> Recipe:
    """One of RECIPES; raises TraceError for another name."""
    if name not in RECIPES:
        raise TraceError(f"recipe: {name!r} is not allowed; allowed: {', '.join(RECIPES)}")
    return RECIPES[name]
