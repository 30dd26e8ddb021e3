"""Reports on disk: beside a run stand its summary and its page."""

from pathlib import Path

from omniserve.atomic_file import write_text
from omniserve.bench.report.page import write_page
from omniserve.bench.report.run_summary import RunSummary
from omniserve.bench.report.summary import summarise
from omniserve.bench.run_files import RUN_FILE, load_run
from omniserve.bench.run_record import RunRecord
from omniserve.errors import ConfigError

SUMMARY_FILE = "summary.json"
PAGE_FILE = "report.html"


def write_report(record: RunRecord, directory: Path) -> RunSummary:
    """Writes the summary and the page of a run into a directory that exists; raises as `summarise`
    does, and OSError."""
    summary = summarise(record)
    write_text(directory / SUMMARY_FILE, summary.to_json())
    write_page(summary, directory / PAGE_FILE)
    return summary


def remove_report(directory: Path) -> None:
    """Of an earlier run, which a directory no longer holds; raises OSError."""
    for name in (SUMMARY_FILE, PAGE_FILE):
        (directory / name).unlink(missing_ok=True)


def load_summary(path: Path) -> RunSummary:
    """Of a summary's file or of a run's directory; raises ConfigError, which names the file, or as
    `load_run` and `summarise` do."""
    if path.is_dir() and (path / RUN_FILE).exists():
        return summarise(load_run(path))
    file = path / SUMMARY_FILE if path.is_dir() else path
    try:
        return RunSummary.from_json(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    except (ConfigError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: {error}") from None
