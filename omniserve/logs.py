"""Structured logs: one event per line, as `time level event key=value` or as JSON.

Prompts and outputs are handed over as `content` only, and are dropped unless content logging is on.
"""

import json
import logging
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, Self, TextIO, get_args

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]
Value = str | int | float | bool | None

_FIELDS = "omniserve_fields"
_CONTENT = "omniserve_content"
_SPECIAL = re.compile(r'[ "=\\]')


_FORMAT_VARIABLE = "OMNISERVE_LOG_FORMAT"
_LEVEL_VARIABLE = "OMNISERVE_LOG_LEVEL"


@dataclass(frozen=True, slots=True)
class LogSettings:
    format: LogFormat = "text"
    level: LogLevel = "info"
    """The least severe of our own events to log."""
    content: bool = False
    """Whether prompts and outputs are logged; in this process only."""

    def environment(self) -> dict[str, str]:
        """Variables that make a child process log like this one."""
        return {_FORMAT_VARIABLE: self.format, _LEVEL_VARIABLE: self.level}

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """What `environment` of the parent process says; the defaults where it says nothing."""
        default = cls()
        given_format = environment.get(_FORMAT_VARIABLE)
        given_level = environment.get(_LEVEL_VARIABLE)
        return cls(
            next((known for known in get_args(LogFormat) if known == given_format), default.format),
            next((known for known in get_args(LogLevel) if known == given_level), default.level),
        )


def get_logger(name: str) -> logging.Logger:
    return logging.getLogger(name)


def log_event(
    logger: logging.Logger,
    event: str,
    *,
    level: int = logging.INFO,
    content: Mapping[str, object] | None = None,
    error: BaseException | None = None,
    **fields: Value,
) -> None:
    """Logs `event` with its fields; `error` adds a traceback.

    Whatever a client sent or received as text belongs in `content`, never in `fields` or `event`.
    """
    if logger.isEnabledFor(level):
        extra = {_FIELDS: fields, _CONTENT: content or {}}
        logger.log(level, "%s", event, extra=extra, exc_info=error, stacklevel=2)


def event_record(level: int, event: str, **fields: Value) -> logging.LogRecord:
    """An event of the logging itself, which no logger has seen."""
    known = {"levelno": level, "levelname": logging.getLevelName(level), "msg": event}
    return logging.makeLogRecord(known | {_FIELDS: fields})


def make_formatter(settings: LogSettings) -> logging.Formatter:
    kind = _JsonFormatter if settings.format == "json" else _TextFormatter
    return kind(settings.content)


def configure_logging(settings: LogSettings, stream: TextIO | None = None) -> None:
    """Sends the logs of this process, those of libraries too, to `stream` (stderr by default)."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(make_formatter(settings))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    # Libraries may put a request's text into their chatter, so they never log below a warning.
    root.setLevel(logging.WARNING)
    logging.getLogger("omniserve").setLevel(settings.level.upper())


class _EventFormatter(logging.Formatter):
    def __init__(self, log_content: bool) -> None:
        super().__init__()
        self._log_content = log_content

    def record_fields(self, record: logging.LogRecord) -> dict[str, object]:
        """Event and fields of a record; a library's record is an event with its logger's name."""
        fields: dict[str, object] = {"event": record.getMessage()}
        own = getattr(record, _FIELDS, None)
        if own is None:
            fields["logger"] = record.name
        else:
            fields.update(own)
        if self._log_content:
            fields.update(getattr(record, _CONTENT, {}))
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return fields


class _JsonFormatter(_EventFormatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {"time": _time(record), "level": record.levelname.lower()}
        return json.dumps(line | self.record_fields(record), default=str)


class _TextFormatter(_EventFormatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = self.record_fields(record)
        parts = [_time(record), record.levelname.lower(), _quote(fields.pop("event"))]
        traceback = fields.pop("traceback", None)
        parts += [f"{key}={_quote(value)}" for key, value in fields.items()]
        # A traceback is for people: its lines follow, indented so that no line looks like an event.
        tail = "" if traceback is None else "\n    " + str(traceback).replace("\n", "\n    ")
        return " ".join(parts) + tail


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _quote(value: object) -> str:
    """A value as one word; anything that could break the line or the word is written as JSON."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    text = str(value)
    plain = text and text.isprintable() and not _SPECIAL.search(text)
    return text if plain else json.dumps(text)
