"""How a broken invariant of the scheduler is reported."""


class IntegrityError(AssertionError):
    """Two numbers that must agree do not. Raised also under `python -O`."""


def require_equal(what: str, actual: object, expected: object) -> None:
    """Raise IntegrityError, naming both sides, unless they are equal."""
    if actual != expected:
        raise IntegrityError(f"{what}: {actual!r} != {expected!r}")
