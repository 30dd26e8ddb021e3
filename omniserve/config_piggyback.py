"""The section `piggyback` of a model, and what its unset values are on a machine."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self

from pydantic import Field, model_validator

from omniserve.config_file import KeyPath
from omniserve.config_section import Section
from omniserve.config_values import Size, SizeOrZero, refuse
from omniserve.machine import Machine
from omniserve.settings import ROWS_BESIDE_LS_ON_CPU, DeviceKind, PiggybackSettings

MAX_DEFAULT_HOST_KV_BYTES = 8 << 30
MAX_DEFAULT_THREADS = 16
"""Memory bandwidth is used up by then."""
MAX_MODELS = 32
"""That one host attention process takes."""
_MIB = 1 << 20
_BUDGET_KEY: KeyPath = ("host", "kv_bytes")


class PiggybackConfig(Section):
    """How best-effort decodes of a model run on the host while the device is busy or full."""

    enabled: bool | None = None
    """Unset: on where a tier is best_effort and the device leaves a core to the host."""
    host_kv_bytes: Size | None = None
    """Size of the KV pool in host memory, with host.kv_bytes the most it may have; unset shares a
    quarter of what is available, with host.kv_bytes all of that."""
    host_kv_floor_bytes: SizeOrZero | None = None
    """Of host.kv_bytes, kept for this model whenever it wants it; unset: half of an even share."""
    host_attention_threads: int | None = Field(default=None, ge=1, le=128)
    """Cores that attend on the host, for all models the largest number; unset goes by the cores."""
    max_offloaded_requests: int = Field(default=256, ge=1, le=4096)
    """Most requests that decode on the host at the same time."""
    max_lane_rows: int = Field(default=64, ge=1, le=4096)
    """Most rows from the host that join a step at one layer."""
    max_lane_rows_beside_ls: int | None = Field(default=None, ge=0, le=4096)
    """The same beside latency-sensitive tokens; unset: all, at most 8 on a CPU device."""
    max_resident_decodes: int | None = Field(default=None, ge=0, le=4096)
    """Most best-effort decodes that stay on the device; unset: as many as its memory holds."""
    max_device_kv_share: float = Field(default=1.0, ge=0, le=1, allow_inf_nan=False)
    """Part of the device's KV that best-effort decodes may hold; the others go to the host."""
    binding_points: int = Field(default=1, ge=1, le=64)
    """Times in a step at which results from the host join it; 1 is its start."""
    when: Literal["auto", "always"] = "auto"
    """auto leaves the host alone while the device by itself is expected to be faster."""

    @model_validator(mode="after")
    def _rows_fit(self) -> Self:
        if (self.max_lane_rows_beside_ls or 0) > self.max_lane_rows:
            text = f"must be at most max_lane_rows, {self.max_lane_rows}"
            raise refuse(text, ("max_lane_rows_beside_ls",))
        return self


@dataclass(frozen=True, slots=True)
class PiggybackOff:
    """A model whose best-effort decodes run on the device only."""

    reason: str


@dataclass(frozen=True, slots=True)
class PiggybackPlanner:
    """Gives the models of a configuration their shares of a machine."""

    machine: Machine
    device_kind: DeviceKind
    has_best_effort: bool
    """Whether there is a tier whose requests may be offloaded."""
    host_kv_bytes: int | None = None
    """Of all models together; None: each has its own."""

    @property
    def max_threads(self) -> int:
        """Most host threads; one core is left to a device that is, or may be, the CPU."""
        return self.machine.num_cores - (not self._has_accelerator)

    @property
    def _has_accelerator(self) -> bool:
        return self.device_kind in ("cuda", "npu")

    def check(self, sections: Sequence[PiggybackConfig]) -> None:
        """Refuses what the machine does not have. The sections are of all models, in order."""
        num_models = total_bytes = 0
        self._check_budget()
        for index, section in enumerate(sections):
            if self._why_off(section) is not None:
                continue
            num_models += 1
            if num_models > MAX_MODELS:
                text = f"must have enabled: false, as {MAX_MODELS} models before it piggyback"
                # Not the key itself: of a section that is not there messages name the last key.
                raise refuse(f"{text} and no more can", ("models", index, "piggyback"))
            self._check_threads(index, section)
            if self.host_kv_bytes is None:
                total_bytes += section.host_kv_bytes or 0
            if total_bytes > self.machine.memory_bytes:
                raise refuse(
                    f"must keep all models' host KV, {_show_size(total_bytes)} together, "
                    f"within the {_show_size(self.machine.memory_bytes)} of memory of this machine",
                    _key(index, "host_kv_bytes"),
                )

    def _check_budget(self) -> None:
        if (self.host_kv_bytes or 0) > self.machine.memory_bytes:
            size = _show_size(self.machine.memory_bytes)
            raise refuse(f"must be within the {size} of memory of this machine", _BUDGET_KEY)

    def _check_threads(self, index: int, section: PiggybackConfig) -> None:
        cores = f"this process may use {_show_count(self.machine.num_cores, 'core')}"
        reserve = "" if self._has_accelerator else ", and a CPU device needs one"
        if self.max_threads < 1:
            raise refuse(f"must be false: {cores}{reserve}", _key(index, "enabled"))
        if (section.host_attention_threads or 1) > self.max_threads:
            text = f"must be at most {self.max_threads}: {cores}{reserve}"
            raise refuse(text, _key(index, "host_attention_threads"))

    def settings(
        self, sections: Sequence[PiggybackConfig]
    ) -> Iterator[PiggybackSettings | PiggybackOff]:
        """What each of them means on this machine; they have passed `check`."""
        default_bytes = self._default_host_kv_bytes(sections)
        for section in sections:
            reason = self._why_off(section)
            if reason is not None:
                yield PiggybackOff(reason)
            else:
                yield self._filled_in(section, default_bytes)

    def _why_off(self, section: PiggybackConfig) -> str | None:
        if section.enabled is False:
            return "enabled is false"
        if section.enabled is None and not self.has_best_effort:
            return "no tier is best_effort"
        if section.enabled is None and self.max_threads < 1:
            return "a CPU device needs the one core"
        return None

    def _filled_in(self, section: PiggybackConfig, default_bytes: int) -> PiggybackSettings:
        return PiggybackSettings(
            host_kv_bytes=section.host_kv_bytes or default_bytes,
            host_kv_floor_bytes=section.host_kv_floor_bytes,
            host_attention_threads=section.host_attention_threads or self._default_threads,
            max_offloaded_requests=section.max_offloaded_requests,
            max_lane_rows=section.max_lane_rows,
            max_lane_rows_beside_ls=self._rows_beside_ls(section),
            max_resident_decodes=section.max_resident_decodes,
            max_device_kv_share=section.max_device_kv_share,
            binding_points=section.binding_points,
            when=section.when,
        )

    @property
    def _default_threads(self) -> int:
        # A CPU device computes with all the others; an accelerator needs few of them.
        part = self.machine.num_cores // (2 if self._has_accelerator else 4)
        return min(max(part, 1), MAX_DEFAULT_THREADS)

    def _rows_beside_ls(self, section: PiggybackConfig) -> int:
        if section.max_lane_rows_beside_ls is not None:
            return section.max_lane_rows_beside_ls
        if self._has_accelerator:
            return section.max_lane_rows
        return min(ROWS_BESIDE_LS_ON_CPU, section.max_lane_rows)

    def _default_host_kv_bytes(self, sections: Sequence[PiggybackConfig]) -> int:
        """Equal for all that leave it unset: the budget, or a whole number of MiB."""
        if self.host_kv_bytes is not None:
            return self.host_kv_bytes
        sizes = [each.host_kv_bytes for each in sections if self._why_off(each) is None]
        free_bytes = self.machine.available_bytes - sum(size or 0 for size in sizes)
        share = free_bytes // 4 // max(sizes.count(None), 1)
        return min(max(share // _MIB, 1) * _MIB, MAX_DEFAULT_HOST_KV_BYTES)


def describe_piggybacking(
    models: Mapping[str, PiggybackSettings | PiggybackOff], host_kv_bytes: int | None
) -> str:
    """For people: what each model got, or why it got nothing; `host_kv_bytes` is of all."""
    most = "" if host_kv_bytes is None else "at most "
    return ", ".join(f"{name} {_describe(each, most)}" for name, each in models.items())


def _describe(piggyback: PiggybackSettings | PiggybackOff, most: str) -> str:
    if isinstance(piggyback, PiggybackOff):
        return f"off ({piggyback.reason})"
    threads = _show_count(piggyback.host_attention_threads, "host thread")
    return f"on ({threads}, {most}{_show_size(piggyback.host_kv_bytes)} of host KV)"


def _key(index: int, key: str) -> KeyPath:
    return ("models", index, "piggyback", key)


def _show_size(num_bytes: int) -> str:
    """A size for people, rounded."""
    unit, factor = ("GiB", 1 << 30) if num_bytes >= 1 << 30 else ("MiB", _MIB)
    return f"{num_bytes / factor:.1f} {unit}"


def _show_count(count: int, noun: str) -> str:
    """`1 core`, `2 cores`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
