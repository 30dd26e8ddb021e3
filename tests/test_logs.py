"""What log lines look like, and what never gets into them."""

import io
import json
import logging
from collections.abc import Iterator

import pytest

from omniserve.logs import LogSettings, configure_logging, get_logger, log_event

logger = get_logger("omniserve.test")


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    root, own = logging.getLogger(), logging.getLogger("omniserve")
    handlers, levels = root.handlers[:], (root.level, own.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    own.setLevel(levels[1])


def logged_to(settings: LogSettings) -> io.StringIO:
    stream = io.StringIO()
    configure_logging(settings, stream)
    return stream


def test_a_text_line_is_time_level_event_and_fields() -> None:
    stream = logged_to(LogSettings())
    log_event(logger, "request", model="demo", tokens=5, ttft_ms=1.25, tier=None, ok=True)
    time, rest = stream.getvalue().split(" ", 1)
    assert time.endswith("Z")
    assert rest == "info request model=demo tokens=5 ttft_ms=1.25 tier=null ok=true\n"


def test_a_json_line_holds_the_same() -> None:
    stream = logged_to(LogSettings("json"))
    log_event(logger, "request", level=logging.WARNING, model="demo", ttft_ms=1.25)
    line = json.loads(stream.getvalue())
    del line["time"]
    assert line == {"level": "warning", "event": "request", "model": "demo", "ttft_ms": 1.25}


@pytest.mark.parametrize(
    "value", ["two words", "", 'a"b', "a=b", "line\nforged info event", "\x1b[31m", "a\u2028b"]
)
def test_no_value_breaks_a_text_line(value: str) -> None:
    stream = logged_to(LogSettings())
    log_event(logger, "event", field=value)
    text = stream.getvalue()
    assert len(text.splitlines()) == 1
    assert text.rstrip("\n").split(" ", 2)[2] == f"event field={json.dumps(value)}"


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_content_is_logged_only_on_demand(log_format: str) -> None:
    for content in (False, True):
        stream = logged_to(LogSettings("json" if log_format == "json" else "text", "info", content))
        log_event(logger, "request", content={"prompt": "secret words"}, model="demo")
        assert ("secret words" in stream.getvalue()) is content
        assert "demo" in stream.getvalue()


def test_levels_apply_to_our_events_and_libraries_stay_quiet() -> None:
    stream = logged_to(LogSettings(level="warning"))
    log_event(logger, "unimportant")
    assert stream.getvalue() == ""
    stream = logged_to(LogSettings(level="debug"))
    log_event(logger, "detail", level=logging.DEBUG)
    logging.getLogger("library").info("chatter")
    logging.getLogger("library").warning("trouble with %s", "it")
    first, second = stream.getvalue().splitlines()
    assert first.endswith("debug detail")
    assert second.endswith('warning "trouble with it" logger=library')


def test_a_traceback_stays_with_its_event() -> None:
    try:
        raise ValueError("broken")
    except ValueError as error:
        stream = logged_to(LogSettings())
        log_event(logger, "failed", level=logging.ERROR, error=error)
        first, *rest = stream.getvalue().splitlines()
        assert first.endswith("error failed")
        assert all(line.startswith("    ") for line in rest)
        assert rest[-1].strip() == "ValueError: broken"
        stream = logged_to(LogSettings("json"))
        log_event(logger, "failed", level=logging.ERROR, error=error)
        assert "ValueError: broken" in json.loads(stream.getvalue())["traceback"]


def test_a_child_process_logs_like_its_parent() -> None:
    settings = LogSettings("json", "debug", content=True)
    assert LogSettings.from_environment(settings.environment()) == LogSettings("json", "debug")
    assert LogSettings.from_environment({}) == LogSettings()
    wrong = dict.fromkeys(settings.environment(), "wrong")
    assert LogSettings.from_environment(wrong) == LogSettings()
