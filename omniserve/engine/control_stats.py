"""What the front is told of how a model's steps are held to objectives."""

from omniserve.settings import ControlStats
from scheduler import Scheduler


def control_stats(scheduler: Scheduler) -> ControlStats | None:
    """None where nothing is known of step times."""
    books = scheduler.step_books
    if books is None:
        return None
    return ControlStats(
        num_steps=books.num_steps,
        predicted_s=books.predicted_s,
        measured_s=books.measured_s,
        mean_error=books.mean_error,
        used_s=dict(books.used_s),
        budget_s=books.budget_s,
        aims=scheduler.aims(),
    )
