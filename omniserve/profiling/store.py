"""Where profiles are kept between starts of the daemon, by what they were measured on."""

import logging
from pathlib import Path

from omniserve.cache_directory import VARIABLE, cache_directory
from omniserve.errors import ConfigError
from omniserve.logs import get_logger, log_event
from omniserve.profiling.measured_on import MeasuredOn
from omniserve.profiling.profile import Profile, load_profile, save_profile

_LOG = get_logger(__name__)


class ProfileStore:
    """A directory with one file for each machine, model and version; trouble with it is logged."""

    def __init__(self, directory: Path | None) -> None:
        """None: nothing is found, and nothing can be kept."""
        self._directory = directory

    def path(self, of: MeasuredOn) -> Path | None:
        """Where a profile of this is kept, if anywhere."""
        return None if self._directory is None else self._directory / f"{of.key}.json"

    def load(self, of: MeasuredOn) -> Profile | None:
        """None where there is no profile of just this, or its file is broken."""
        path = self.path(of)
        if path is None or not path.exists():
            return None
        try:
            profile = load_profile(path)
            if profile.measured_on != of:
                raise ConfigError(f"{path}: not a profile of what its name says")
        except ConfigError as error:
            log_event(_LOG, "profile_ignored", level=logging.WARNING, problem=str(error))
            return None
        return profile

    def save(self, profile: Profile) -> Path | None:
        """Where it is now; None where it cannot be kept."""
        assert profile.measured_on is not None
        path = self.path(profile.measured_on)
        problem = f"there is no home directory; {VARIABLE} may name a directory"
        if path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                save_profile(profile, path)
                return path
            except OSError as error:
                problem = f"{path}: {error.strerror}"
        log_event(_LOG, "profile_not_kept", level=logging.WARNING, problem=problem)
        return None


def default_store() -> ProfileStore:
    """In the user's cache, or where OMNISERVE_CACHE_DIR says."""
    directory = cache_directory()
    return ProfileStore(None if directory is None else directory / "profiles")
