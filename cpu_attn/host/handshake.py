"""What the two ends say to each other beside the ring, each a message of a `Channel`."""

from dataclasses import dataclass

from cpu_attn.host.settings import HostModel, HostSettings


@dataclass(frozen=True, slots=True)
class Start:
    """First of all, from the parent, with one descriptor: the ring's memory."""

    parent_pid: int
    settings: HostSettings
    num_models: int
    """So many AddModel follow before the child is ready."""


@dataclass(frozen=True, slots=True)
class AddModel:
    """From the parent, with two descriptors: the model's slots, then its pool."""

    serial: int
    """Never the same twice, where an index may be."""
    index: int
    model: HostModel
    """The descriptor in its pool is the parent's, not the child's."""


@dataclass(frozen=True, slots=True)
class RemoveModel:
    """From the parent: no task of the model is in flight, nor will be."""

    index: int


@dataclass(frozen=True, slots=True)
class Stop:
    """The parent's last word; the child takes the end of the channel for the same."""


@dataclass(frozen=True, slots=True)
class Ready:
    """From the child: its workers run."""


@dataclass(frozen=True, slots=True)
class ModelAdded:
    """From the child: tasks of the model may be published, or `error` says why not."""

    serial: int
    error: str


@dataclass(frozen=True, slots=True)
class CannotStart:
    """From the child, its last words."""

    reason: str
