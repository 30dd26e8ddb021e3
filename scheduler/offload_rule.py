"""Whether best-effort work goes faster with attention on the host than on the device alone."""

from dataclasses import dataclass

_GAIN_TO_BEGIN = 1.15
_GAIN_TO_GO_ON = 0.95
_HOP_STEPS = 1.5
"""Steps between a row's leaving and its joining again, about: results come at any time of a step,
and are bound at the start of the next."""


@dataclass(frozen=True, slots=True)
class DeviceSpeed:
    """What a step costs on the device with a given number of threads."""

    step_s: float
    """Of a step with one row and no context."""
    row_s: float
    """Of each further row."""
    kv_bytes_per_s: float
    """At which attention reads."""

    def step_time_s(self, num_rows: float, kv_bytes: float) -> float:
        return self.step_s + self.row_s * max(0.0, num_rows - 1) + kv_bytes / self.kv_bytes_per_s


@dataclass(frozen=True, slots=True)
class HostSpeed:
    """What the rule must know of the machine."""

    device_alone: DeviceSpeed
    device_beside_host: DeviceSpeed
    """With the threads that are left to the device while the host attends."""
    host_kv_bytes_per_s: float


@dataclass(frozen=True, slots=True)
class Load:
    """The requests of one model at one moment."""

    num_ls_rows: int
    ls_kv_bytes: float
    """That the running latency-sensitive requests read in a step."""
    num_best_effort: int
    """Waiting, running and offloaded."""
    kv_bytes_per_request: float
    """Of a best-effort request, on average."""
    num_resident: int
    """Best-effort requests of that size for which the device has memory."""
    num_lanes: int
    """Of that size for which the host has memory and lanes."""
    max_lane_rows: int
    num_layers: int


def device_tokens_per_s(load: Load, speed: DeviceSpeed) -> float:
    """Best-effort tokens a second with attention on the device only."""
    num_rows = min(load.num_resident, load.num_best_effort)
    kv_bytes = load.ls_kv_bytes + num_rows * load.kv_bytes_per_request
    return num_rows / speed.step_time_s(load.num_ls_rows + num_rows, kv_bytes)


def piggyback_tokens_per_s(load: Load, speed: HostSpeed) -> float:
    """The same with everyone who does not fit offloaded; the device keeps room for a prefill."""
    num_rows = min(max(0, load.num_resident - 1), load.num_best_effort)
    num_offloaded = min(load.num_best_effort - num_rows, load.num_lanes)
    lane_rows = min(load.max_lane_rows, num_offloaded / (load.num_layers * _HOP_STEPS))
    kv_bytes = load.ls_kv_bytes + num_rows * load.kv_bytes_per_request
    step_s = speed.device_beside_host.step_time_s(load.num_ls_rows + num_rows + lane_rows, kv_bytes)
    host_tokens_per_s = speed.host_kv_bytes_per_s / max(1.0, load.kv_bytes_per_request)
    return num_rows / step_s + min(lane_rows / step_s, host_tokens_per_s)


def is_worth_offloading(load: Load, speed: HostSpeed, offloading: bool) -> bool:
    """Whether piggybacking is predicted to gain; with hysteresis around what is done now."""
    if load.num_best_effort <= load.num_resident:
        return False
    needed = _GAIN_TO_GO_ON if offloading else _GAIN_TO_BEGIN
    alone = device_tokens_per_s(load, speed.device_alone)
    return piggyback_tokens_per_s(load, speed) > needed * alone
