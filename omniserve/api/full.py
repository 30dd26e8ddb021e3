"""What is told to whoever comes while a server answers as much as it may, over either protocol."""

from omniserve.errors import Overloaded

RETRY_AFTER_S = 1.0


def all_taken(max_requests: int) -> Overloaded:
    problem = f"{max_requests} requests are being answered; no more are taken"
    return Overloaded(problem, RETRY_AFTER_S)
