"""The documents say what is so: commands parse, keys and messages exist, links lead somewhere."""

import argparse
import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from dashboard import known_series
from everything_measured import full_exposition
from source_strings import GAP, ROOT, logged_events, templates

from omniserve.cli import build_parser
from omniserve.config import Config, load_config
from omniserve.config_messages import _section_class
from omniserve.machine import Machine

DOCUMENTS = (ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md")))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHELL = {"sh", "bash", ""}
PROGRAM = re.compile(r"(.*/bin/)?omniserve")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# Commands


def code_of(document: str) -> Iterator[str]:
    """Logical lines of shell: of fenced and of indented blocks."""
    text = BLOCK.sub(lambda match: "\n", document)
    blocks = [body for language, body in BLOCK.findall(document) if language in SHELL]
    blocks += re.findall(r"(?:(?<=\n\n)|\A)((?:    .*\n)(?:(?:    .*)?\n)*)", text)
    for block in blocks:
        yield from re.sub(r"\\\n\s*", "", block).splitlines()


def commands_of(line: str) -> Iterator[list[str]]:
    """The arguments of each `omniserve` in a line of shell; what is around it is left out."""
    lexer = shlex.shlex(line.strip().removeprefix("$ "), posix=True, punctuation_chars="|&;()<>")
    lexer.whitespace_split = True
    try:
        words = list(lexer)
    except ValueError:
        return
    simple: list[str] = []
    for word in (*words, ";"):
        if word and set(word) <= set("|&;()<>"):
            if simple and PROGRAM.fullmatch(simple[0]):
                yield simple[1:]
            simple = []
        elif simple or not re.match(r"\w+=", word):
            simple.append(word)


def as_given(arguments: list[str]) -> list[str]:
    """With what is optional in a synopsis, and the first of alternatives."""
    words = [word.strip("[]") for word in arguments]
    words = [re.sub(r"^([\w-]+)\|.*", r"\1", word) for word in words]
    # What stands for a number or for a name among few.
    return ["1" if word in ("N", "S", "MS") else word for word in words if word != "..."]


def problem_of(arguments: list[str]) -> str:
    """Why the real parser does not take them; empty where it does."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            build_parser().parse_args(as_given(arguments))
        except SystemExit as exit_:
            return said.getvalue().strip().rpartition("\n")[2] if exit_.code else ""
    return ""


def unknown_in(arguments: list[str]) -> str:
    """The first word that names no command, or no option of the command before it."""
    parser = build_parser()
    for word in as_given(arguments):
        groups = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        if word.startswith("--"):
            option = word.partition("=")[0]
            if option not in parser._option_string_actions:
                return word
        elif groups and word not in ("COMMAND", GAP):
            if word not in groups[0].choices:
                return word
            parser = groups[0].choices[word]
    return ""


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_command_lines_parse(path: Path) -> None:
    lines = [line for line in code_of(path.read_text()) if not line.lstrip().startswith("#")]
    problems = {
        line.strip(): problem
        for line in lines
        for arguments in commands_of(line)
        # What the daemon prints begins like a command.
        if arguments[:1] != ["ready:"] and (problem := problem_of(arguments))
    }
    assert problems == {}


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_commands_in_sentences_exist(path: Path) -> None:
    text = BLOCK.sub("", path.read_text())
    found = re.findall(r"(?<!`)`omniserve ([a-z][^`]*)`", re.sub(r"(?<=\S)\n(?=\S)", " ", text))
    unknown = {
        snippet: word
        for snippet in found
        if not snippet.startswith("ready") and (word := unknown_in(snippet.split()))
    }
    assert unknown == {}


def test_commands_are_found_where_they_stand() -> None:
    text = (
        "Words `omniserve status`.\n\n"
        "    $ omniserve serve a.yaml | cat   # first\n"
        "    git diff | omniserve chat \\\n      --json < omniserve.txt\n\n"
        "```sh\n/opt/x/bin/omniserve config check F && omniserve reload; ls\n```\n"
        "```yaml\nx: omniserve nonsense\n```\n"
    )
    found = [words for line in code_of(text) for words in commands_of(line)]
    assert sorted(found) == [
        ["chat", "--json"],
        ["config", "check", "F"],
        ["reload"],
        ["serve", "a.yaml"],
    ]
    assert problem_of(["serve", "--no-such-option"])
    assert problem_of(["config", "check|show", "FILE"]) == ""
    assert unknown_in(["config", "chekc"]) == "chekc"
    assert unknown_in(["serve", "--nonsense"]) == "--nonsense"


def test_every_command_is_on_the_page_of_commands() -> None:
    (group,) = (a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    shown = (ROOT / "docs/cli.md").read_text()
    assert [name for name in group.choices if not re.search(rf"`[^`\n]*\b{name}\b", shown)] == []


# Configuration


def keys_of(model: type, section: str = "") -> Iterator[tuple[str, str]]:
    """Each key with the section it stands in, by the name of the section's own key."""
    for name, field in model.model_fields.items():  # type: ignore[attr-defined]
        key = field.alias or name
        inner = _section_class(field.annotation)
        if section or inner is None:
            yield section, key
        if inner is not None:
            yield from keys_of(inner, key)


def tables_of(document: str) -> Iterator[tuple[str, str]]:
    """The keys in the first column of the tables below the third level of headings."""
    section = ""
    for line in document.splitlines():
        if line.startswith("#"):
            section = line.removeprefix("### ") if line.startswith("### ") else ""
        elif section and (row := re.match(r"\| (`[^|]*`) \|", line)):
            yield from ((section, key) for key in re.findall(r"`([^`]+)`", row[1]))


def test_tables_of_the_configuration_have_all_keys_and_no_others() -> None:
    documented = list(tables_of((ROOT / "docs/configuration.md").read_text()))
    assert len(documented) == len(set(documented))
    sections = {"models", "tiers", "tenants", "piggyback", "quota"}
    # `models`, `tiers` and the like are sections, not rows; those inside of others are both.
    expected = set(keys_of(Config))
    assert len(expected) > 60
    assert {section for section, _ in expected} >= sections
    assert set(documented) == expected


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_whole_configurations_are_right(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "omniserve.yaml"
    machine = Machine(num_cores=8, memory_bytes=1 << 36, available_bytes=1 << 36)
    for language, body in BLOCK.findall(path.read_text()):
        if language == "yaml" and "models:" in body and "\ntiers:" in body:
            file.write_text(body)
            load_config(file, machine)


# Messages


def is_said(message: str) -> bool:
    """Whether one string of the sources has all that is between the gaps, in this order."""
    parts = [part.strip() for part in message.split(GAP) if part.strip()]
    in_order = re.compile(".*".join(map(re.escape, parts)), re.DOTALL)
    return any(in_order.search(text) for text in templates())


def first_cells(document: str) -> Iterator[str]:
    for line in document.splitlines():
        row = re.match(r"\| ((?:[^|\\]|\\.)+?) \|", line)
        if row and not row[1].startswith("-"):
            yield row[1]


def test_messages_of_troubleshooting_are_in_the_sources() -> None:
    text = (ROOT / "docs/troubleshooting.md").read_text()
    quoted = [each for cell in first_cells(text) for each in re.findall(r"`([^`]+)`", cell)]
    assert len(quoted) > 150
    paths = {each for each in quoted if each.startswith("/")}
    assert [each for each in quoted if each not in paths and not is_said(each)] == []


def test_a_message_that_nobody_says_is_noticed() -> None:
    assert is_said("the token is not known")
    assert is_said("tier … has no room in its queue of …")
    assert not is_said("the token is unknown")
    assert not is_said("tier … has no place in its queue of …")


def test_every_event_of_the_log_is_explained_somewhere() -> None:
    assert len(logged_events()) > 30
    pages = ("troubleshooting.md", "monitoring.md")
    text = "".join((ROOT / "docs" / page).read_text() for page in pages)
    assert {event for event in logged_events() if f"`{event}`" not in text} == set()


def test_metrics_and_variables_of_the_operators_documents_exist(tiny_checkpoint: Path) -> None:
    series = known_series(full_exposition(tiny_checkpoint))
    sources = "\n".join(templates())
    for path in DOCUMENTS:
        text = path.read_text()
        named = set(re.findall(r"`(omniserve_[a-z_]+[a-z])(?:\{[^`]*)?`", text))
        assert {name for name in named if not is_series(name, series)} == set(), name_of(path)
        variables = set(re.findall(r"\bOMNISERVE_[A-Z_]+\b", text))
        unknown = {each for each in variables if each not in sources}
        assert unknown <= {"OMNISERVE_TEST_SYSTEMD", "OMNISERVE_SYSTEMD_ROOT"}, name_of(path)


def is_series(name: str, series: dict[str, frozenset[str]]) -> bool:
    """Modules of stubs, `omniserve_pb2`, have digits and are not named like metrics."""
    return any(known in series for known in (name, f"{name}_bucket"))


# Links


def anchors_of(document: str) -> set[str]:
    """As code hosts make them of headings."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", document), re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", each).lower() for each in headings]
    return {re.sub(r"[^\w\- ]", "", each).strip().replace(" ", "-") for each in plain}


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_relative_links_lead_somewhere(path: Path) -> None:
    text = BLOCK.sub("", path.read_text())
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        if not there.exists() or (
            anchor and there.suffix == ".md" and anchor not in anchors_of(there.read_text())
        ):
            broken.append(target)
    assert broken == []


def test_every_document_is_reached_from_the_readme() -> None:
    linked = set(re.findall(r"\]\((docs/[\w-]+\.md)[)#]", (ROOT / "README.md").read_text()))
    pages = {name_of(path) for path in DOCUMENTS if path.parent.name == "docs"}
    assert pages - linked == set()
