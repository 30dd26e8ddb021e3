"""The report of a run: its page, its table, its files, and runs beside each other."""

import argparse
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from chart_points import points_of
from rich.console import Console
from run_builders import busy_run, make_request, make_run

from omniserve.bench.command import add_bench_commands
from omniserve.bench.report.compare import compare, render_comparison, write_comparison
from omniserve.bench.report.files import PAGE_FILE, SUMMARY_FILE, load_summary, write_report
from omniserve.bench.report.page import render_page
from omniserve.bench.report.plots import stream_colours
from omniserve.bench.report.summary import summarise
from omniserve.bench.report.table import render
from omniserve.bench.run_files import save_run
from omniserve.bench.run_record import RunRecord, StreamInfo
from omniserve.charts.svg import HEIGHT, WIDTH
from omniserve.charts.text import format_ms, format_share
from omniserve.errors import ConfigError, OmniServeError


def parsed(record: RunRecord) -> ElementTree.Element:
    return ElementTree.fromstring(render_page(summarise(record)))


def texts(element: ElementTree.Element, tag: str) -> list[str]:
    return ["".join(found.itertext()) for found in element.iter(tag)]


def rows_of(page: ElementTree.Element, title: str) -> list[list[str]]:
    for part in page.iter("section"):
        if texts(part, "h2") == [title]:
            return [texts(row, "td") for row in part.iter("tr")][1:]
    raise AssertionError(f"no section {title}")


def printed(shown: object) -> str:
    console = Console(width=100, highlight=False)
    with console.capture() as capture:
        console.print(shown)
    return capture.get()


def run_command(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    add_bench_commands(parser.add_subparsers())
    args = parser.parse_args(["bench", *argv])
    status: int = args.handler(args)
    return status


def test_the_page_holds_the_numbers_of_the_summary() -> None:
    record = busy_run()
    page, chat = parsed(record), summarise(record).stream("chat")
    outcome = rows_of(page, "Outcome")
    assert outcome[0][:3] == ["chat", str(chat.num_requests), str(chat.num_done)]
    assert outcome[1][0] == "batch"
    goals = rows_of(page, "Objectives")
    assert [row[0] for row in goals] == ["chat"], "the backlog has none"
    met = chat.attainment
    assert [goals[0][2], goals[0][4], goals[0][5]] == [
        format_share(share) for share in (met.ttft, met.tpot, met.joint)
    ]
    latency = rows_of(page, "Latency")
    assert [row[1] for row in latency] == ["TTFT", "TPOT", "ITL", "e2e"] * 2
    assert latency[0][6] == format_ms(chat.ttft.p99_ms)


def test_every_plot_is_there_and_keeps_inside_its_frame() -> None:
    charts = list(parsed(busy_run()).iter("svg"))
    assert [chart.attrib["aria-label"] for chart in charts] == [
        *("TTFT over time", "TPOT over time", "Time to first token", "Time per output token"),
        *("Time between tokens", "Throughput", "Lanes", "KV pool"),
    ]
    for chart in charts:
        assert points_of(chart)
        assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points_of(chart))
    assert "objective 500 ms" in texts(charts[0], "text")
    assert "objective 100 ms" in texts(charts[3], "text")


def test_the_page_needs_nothing_else() -> None:
    text = render_page(summarise(busy_run()))
    assert "<script" not in text
    assert not re.search(r"(src|href|@import|url\()", text)


def test_what_others_wrote_cannot_become_markup() -> None:
    record = busy_run(title="<i>&</i>")
    record.facts = {"<u>": "<s>"}
    page = parsed(record)
    assert not [tag for tag in ("b", "i", "u", "s") if list(page.iter(tag))]
    assert "HTTP 500: <b>broken</b>" in texts(page, "td")
    assert texts(page, "h1") == ["<i>&</i>"]


@pytest.mark.parametrize(
    "record",
    [
        make_run(),
        make_run(make_request()),
        make_run(make_request(num_tokens=0, outcome="cut_off")),
        make_run(make_request("batch", ttft_s=0.0, tpot_s=0.0)),
        make_run(make_request(at_s=9.99), duration_s=0.5),
    ],
    ids=["empty", "one", "cut off", "all at once", "none due"],
)
def test_a_run_with_hardly_anything_has_a_report_too(record: RunRecord) -> None:
    assert texts(parsed(record), "h1") == ["a run"]
    assert "chat" in printed(render(summarise(record)))


def test_facts_and_the_servers_clock_are_told() -> None:
    page = parsed(busy_run(seed=7))
    facts = rows_of(page, "How it was measured")
    assert ["machine", "cores 2, memory_gib 24"] in facts
    assert ["seed", "7"] in facts
    clocks = rows_of(page, "What the server says")
    assert [row[:3] for row in clocks] == [
        *(["all", "TTFT", "210"], ["all", "TPOT", "55.0"]),
        *(["chat", "TTFT", "150"], ["chat", "TPOT", "50.0"], ["chat", "e2e", "2000"]),
    ]


def test_the_terminal_shows_whole_lines() -> None:
    text = printed(render(summarise(busy_run())))
    assert "…" not in text
    assert "4x: HTTP 500: <b>broken</b>" in text
    assert "0.07 cores" in text


def test_notes_stand_in_the_terminal_too() -> None:
    record = busy_run()
    record.facts["notes"] = ["stream chat: its trace ends at 3 s of the run"]
    assert "note: stream chat: its trace ends at 3 s of the run" in printed(
        render(summarise(record))
    )


def test_streams_of_one_class_have_colours_of_their_own() -> None:
    record = make_run()
    record.streams = [StreamInfo(f"s{place}", "latency_sensitive", "m") for place in range(7)]
    colours = stream_colours(summarise(record).streams)
    assert len(set(colours.values())) == 7


def test_the_first_run_is_what_others_are_compared_with() -> None:
    slow = make_run(make_request(ttft_s=0.5), make_request("batch"))
    fast = make_run(make_request(ttft_s=0.125), make_request())
    tables = compare({"slow": summarise(slow), "fast": summarise(fast)})
    assert [each.title for each in tables] == ["chat", "batch"]
    assert tables[0].headings == ("", "slow", "fast", "fast\u00a0/ slow")
    rows = {row[0]: row[1:] for row in tables[0].rows}
    assert rows["TTFT p99, ms"] == ["500", "249", "0.50x"]
    assert rows["requests"] == ["1", "2", "2.00x"]
    assert rows["failed"] == ["0", "0", "-"], "a ratio of failures means nothing"
    batch = {row[0]: row[1:] for row in tables[1].rows}
    assert batch["TTFT p50, ms"] == ["250", "-", "-"]
    assert "both met" not in batch, "no run has a value"


def test_a_comparison_in_the_terminal_and_as_a_page(tmp_path: Path) -> None:
    runs = {f"run {place}": summarise(busy_run(place)) for place in range(3)}
    headings = printed(render_comparison(runs)).replace("\u00a0", " ").splitlines()[1:3]
    assert re.split(r"\s{2,}", headings[0].strip()) == ["run 1 /", "run 2 /"]
    assert re.split(r"\s{2,}", headings[1].strip()) == [*runs, "run 0", "run 0"]
    write_comparison(runs, tmp_path / "page.html")
    page = ElementTree.parse(tmp_path / "page.html").getroot()
    charts = list(page.iter("svg"))
    assert len(charts) == 6, "three for each of the two streams"
    assert [len(list(chart.iter("polyline"))) for chart in charts] == [3] * 6


def test_a_run_on_disk_becomes_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_run(busy_run(), tmp_path / "a")
    assert run_command("report", str(tmp_path / "a")) == 0
    assert str(tmp_path / "a" / PAGE_FILE) in capsys.readouterr().out.replace("\n", "")
    assert load_summary(tmp_path / "a" / SUMMARY_FILE) == summarise(busy_run())
    ElementTree.parse(tmp_path / "a" / PAGE_FILE)


def test_runs_are_compared_from_directories_and_summaries(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        save_run(busy_run(seed), tmp_path / name)
        write_report(busy_run(seed), tmp_path / name)
    page = tmp_path / "page.html"
    sources = [str(tmp_path / "a"), f"other={tmp_path / 'b' / SUMMARY_FILE}"]
    assert run_command("compare", *sources, "--page", str(page)) == 0
    assert "other\u00a0/" in capsys.readouterr().out
    assert page.exists()


def test_a_comparison_needs_two_names(tmp_path: Path) -> None:
    save_run(busy_run(), tmp_path)
    with pytest.raises(ConfigError, match="two runs"):
        run_command("compare", str(tmp_path))
    with pytest.raises(ConfigError, match="NAME=RUN"):
        run_command("compare", str(tmp_path), str(tmp_path))


def test_what_cannot_be_read_or_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"summary\.json: cannot be read"):
        load_summary(tmp_path)
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps({"title": 1}))
    with pytest.raises(ConfigError, match=r"broken\.json: not a summary"):
        load_summary(broken)
    save_run(busy_run(), tmp_path / "a")
    sources = [str(tmp_path / "a"), f"b={tmp_path / 'a'}"]
    with pytest.raises(OmniServeError, match="cannot be written"):
        run_command("compare", *sources, "--page", str(tmp_path / "none" / "page.html"))
