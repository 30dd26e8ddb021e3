"""Scheduling policy: pure functions and small managers. Standard library only; no clock, no I/O."""

from scheduler.host_blocks import HostBlocks
from scheduler.host_cores_rule import HostCoresRule
from scheduler.integrity import IntegrityError
from scheduler.interleaving import Claim, StandingStep
from scheduler.lane_limits import NO_LANES, LaneAllowance, LaneLimits
from scheduler.objectives import Objectives
from scheduler.plan import (
    Copy,
    LaneEntry,
    Offload,
    PlannedRows,
    Return,
    StepPlan,
    StepResult,
)
from scheduler.request import Request, ServiceClass, Status
from scheduler.scheduler import Scheduler
from scheduler.settings import PiggybackLimits, SchedulerSettings
from scheduler.turns import ModelDemand, ModelTurns, Turn

__all__ = [
    "NO_LANES",
    "Claim",
    "Copy",
    "HostBlocks",
    "HostCoresRule",
    "IntegrityError",
    "LaneAllowance",
    "LaneEntry",
    "LaneLimits",
    "ModelDemand",
    "ModelTurns",
    "Objectives",
    "Offload",
    "PiggybackLimits",
    "PlannedRows",
    "Request",
    "Return",
    "Scheduler",
    "SchedulerSettings",
    "ServiceClass",
    "Status",
    "StandingStep",
    "StepPlan",
    "StepResult",
    "Turn",
]
