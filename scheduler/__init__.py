"""Scheduling policy: pure functions and small managers. Standard library only; no clock, no I/O."""

from scheduler.host_blocks import HostBlocks
from scheduler.integrity import IntegrityError
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
    "Copy",
    "HostBlocks",
    "IntegrityError",
    "LaneEntry",
    "ModelDemand",
    "ModelTurns",
    "Offload",
    "PiggybackLimits",
    "PlannedRows",
    "Request",
    "Return",
    "Scheduler",
    "SchedulerSettings",
    "ServiceClass",
    "Status",
    "StepPlan",
    "StepResult",
    "Turn",
]
