"""Windows on disk, and how long those that are missing will take."""

from pathlib import Path

from omniserve.bench.colocate.plan import WindowKey
from omniserve.bench.run_files import RUN_FILE, load_run, save_run
from omniserve.bench.run_record import RunRecord


class Windows:
    """Every finished window is saved at once, so that a comparison can go on where it stopped."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def has(self, key: WindowKey) -> bool:
        return (self._directory / key.path / RUN_FILE).exists()

    def load(self, key: WindowKey) -> RunRecord:
        """Raises RunFileError."""
        return load_run(self._directory / key.path)

    def save(self, key: WindowKey, record: RunRecord) -> None:
        save_run(record, self._directory / key.path)
