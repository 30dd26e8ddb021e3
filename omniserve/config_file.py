"""Reads one YAML file into plain data and remembers on which line each key stands."""

from dataclasses import dataclass
from pathlib import Path

import yaml

from omniserve.access.bearer_token import without_tokens
from omniserve.errors import ConfigError
from omniserve.regular_file import read_regular_file

MAX_FILE_BYTES = 256 << 10
MAX_DEPTH = 16
MAX_PROBLEM_CHARS = 1000

KeyPath = tuple[str | int, ...]
Data = str | int | float | bool | None | dict[str, "Data"] | list["Data"]

_TAGS = {
    f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "map", "seq")
}
_STRING_TAG = "tag:yaml.org,2002:str"
_COLLECTION_TAGS = {"tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"}
_TIMESTAMP_TAG = "tag:yaml.org,2002:timestamp"


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """The content of a file as plain data. A key path consists of mapping keys and list indexes."""

    path: Path
    data: Data
    lines: dict[KeyPath, int]

    def line_of(self, path: KeyPath) -> int:
        """The line of a key, or of the nearest enclosing one if the key is not written."""
        while path not in self.lines:
            path = path[:-1]
        return self.lines[path]


def read_config_file(path: Path) -> ConfigFile:
    """Raises ConfigError where the file cannot be read or is not one plain YAML document."""
    return parse_config(path, read_text(path), "'models' and 'tiers'")


def parse_config(path: Path, text: str, needed: str) -> ConfigFile:
    """What stands in a file, or in what came in place of one, called `path` in messages.

    `needed` are the keys that it has at least. Raises ConfigError.
    """
    try:
        loader = _LimitedLoader(text)
        node = loader.get_single_node()
        if node is None:
            raise ConfigError(f"{path}:1: the file is empty; it needs at least {needed}")
        builder = _Builder(loader)
        data = builder.build(node, (), node.start_mark.line + 1)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        text = ", ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(f"{path}:{line}: {shown_problem(text)}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from None
    return ConfigFile(path, data, builder.lines)


def shown_problem(text: str) -> str:
    """Of a file whose names and values may be anything: without secrets, and not too long."""
    text = without_tokens(text)
    return text if len(text) <= MAX_PROBLEM_CHARS else text[:MAX_PROBLEM_CHARS] + "…"


def read_text(path: Path) -> str:
    """Of a regular file of UTF-8, at most as large as a configuration; raises ConfigError."""
    try:
        raw = read_regular_file(path, MAX_FILE_BYTES)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except ValueError:
        raise ConfigError(f"cannot read {str(path)!r}: not a usable file name") from None
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: the file is larger than {MAX_FILE_BYTES >> 10} KiB")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}:{line}: not UTF-8 text") from None


class _LimitedLoader(yaml.SafeLoader):
    """Refuses aliases (a few lines of them expand to gigabytes) and deep nesting."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise self._problem_here("aliases (*name) are not allowed")
        if self._depth > MAX_DEPTH:
            raise self._problem_here(f"nested more than {MAX_DEPTH} levels deep")
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def _problem_here(self, text: str) -> yaml.MarkedYAMLError:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        return yaml.MarkedYAMLError(problem=text, problem_mark=event.start_mark)


class _Builder:
    """Turns nodes into data and fills `lines`."""

    def __init__(self, loader: _LimitedLoader) -> None:
        self._loader = loader
        self.lines: dict[KeyPath, int] = {}

    def build(self, node: yaml.Node, path: KeyPath, line: int) -> Data:
        self.lines[path] = line
        if node.tag == _TIMESTAMP_TAG and isinstance(node, yaml.ScalarNode):
            return str(node.value)
        if node.tag not in _TAGS:
            raise _problem(node, f"the tag {node.tag!r} is not allowed; values are plain YAML")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [
                self.build(item, (*path, index), item.start_mark.line + 1)
                for index, item in enumerate(node.value)
            ]
        if isinstance(node, yaml.ScalarNode) and node.tag not in _COLLECTION_TAGS:
            return self._scalar(node)
        raise _problem(node, f"the tag {node.tag!r} does not fit its value")

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Data]:
        mapping: dict[str, Data] = {}
        for key_node, value_node in node.value:
            key = key_node.value
            if key_node.tag != _STRING_TAG or not isinstance(key_node, yaml.ScalarNode):
                shown = f" {key!r}" if isinstance(key_node, yaml.ScalarNode) else ""
                raise _problem(key_node, f"the key{shown} is not a plain name")
            if key in mapping:
                first = self.lines[*path, key]
                raise _problem(
                    key_node,
                    f"the key {key!r} is given twice (first on line {first}); give it once",
                )
            mapping[key] = self.build(value_node, (*path, key), key_node.start_mark.line + 1)
        return mapping

    def _scalar(self, node: yaml.ScalarNode) -> Data:
        try:
            value = self._loader.construct_object(node)
        except (ValueError, KeyError):
            raise _problem(node, f"{node.value[:40]!r} is not a valid value") from None
        assert value is None or isinstance(value, str | int | float)
        return value


def _problem(node: yaml.Node, text: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=text, problem_mark=node.start_mark)
