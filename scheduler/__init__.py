"""Scheduling policy: pure functions and small managers. Standard library only; no clock, no I/O."""

from scheduler.integrity import IntegrityError
from scheduler.plan import PlannedRows, StepPlan, StepResult
from scheduler.request import Request, ServiceClass, Status
from scheduler.scheduler import Scheduler
from scheduler.settings import SchedulerSettings
from scheduler.turns import ModelDemand, ModelTurns, Turn

__all__ = [
    "IntegrityError",
    "ModelDemand",
    "ModelTurns",
    "PlannedRows",
    "Request",
    "Scheduler",
    "SchedulerSettings",
    "ServiceClass",
    "Status",
    "StepPlan",
    "StepResult",
    "Turn",
]
