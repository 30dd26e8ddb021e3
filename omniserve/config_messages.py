"""One line for each problem of a configuration file: file, line, key, value, what is allowed."""

import difflib
import types
from collections.abc import Iterator
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from omniserve.access.bearer_token import without_tokens
from omniserve.config_file import ConfigFile, Data, KeyPath, shown_problem

_MAX_SHOWN_CHARS = 60
_SECRET_KEYS = frozenset({"token_sha256", "key", "endpoint"})
"""Somebody may have put the token, the key or a password itself there."""
_PEM = "-----BEGIN"
"""Somebody may have put a file's content where its path belongs."""


def describe_problems(
    file: ConfigFile, error: ValidationError, root: type[BaseModel]
) -> Iterator[str]:
    """One line per problem, in the order of the file."""
    problems = [
        _describe(file, details, root)
        for details in error.errors(include_url=False)
        # A list whose entries are refused counts as empty too.
        if details["type"] != "too_short" or not _value_at(file.data, _path_of(file.data, details))
    ]
    for line, text in sorted(problems, key=lambda problem: problem[0]):
        yield f"{file.path}:{line}: {shown_problem(text)}"


def _describe(file: ConfigFile, details: ErrorDetails, root: type[BaseModel]) -> tuple[int, str]:
    path = _path_of(file.data, details)
    line = file.line_of(path)
    parent, key = _show_path(path[:-1]), path[-1] if path else ""
    if details["type"] == "missing":
        where = f"{parent}: " if parent else ""
        return line, f"{where}the required key {key!r} is missing"
    if details["type"] == "extra_forbidden":
        where = f" in {parent}" if parent else ""
        return line, f"unknown key {key!r}{where}; {_allowed_keys(root, path)}"
    is_shown = path and path in file.lines and not _SECRET_KEYS.intersection(path)
    given = f" = {_show_value(_value_at(file.data, path))}" if is_shown else ""
    name = _show_path(path) or "the file"
    return line, f"{name}{given}: {_requirement(details, root, path)}"


def _path_of(data: Data, details: ErrorDetails) -> KeyPath:
    """Where it is in the file: without the names of the alternatives that a value may be."""
    path: KeyPath = ()
    given = (*details["loc"], *details.get("ctx", {}).get("path", ()))
    for place, key in enumerate(given):
        if isinstance(data, dict) and isinstance(key, str) and key in data:
            data = data[key]
        elif isinstance(data, list) and isinstance(key, int) and key < len(data):
            data = data[key]
        elif not (isinstance(data, dict) and place == len(given) - 1):
            continue
        path = (*path, key)
    return path


def _requirement(details: ErrorDetails, root: type[BaseModel], path: KeyPath) -> str:
    if details["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return f"must be a mapping; {_allowed_keys(root, (*path, ''))}"
    if details["type"] in ("tuple_type", "list_type"):
        return "must be a list"
    if details["type"] == "too_short":
        return "must hold at least one entry"
    if details["type"] == "too_long":
        return f"must hold at most {details['ctx']['max_length']} entries"
    texts = {
        "int_type": "must be a whole number",
        "int_from_float": "must be a whole number",
        "float_type": "must be a number",
        "string_type": "must be a text",
        "bool_type": "must be true or false",
    }
    return texts.get(details["type"]) or details["msg"].replace("Input should be", "must be")


def _allowed_keys(root: type[BaseModel], path: KeyPath) -> str:
    names = [
        field.alias or name for name, field in _section_at(root, path[:-1]).model_fields.items()
    ]
    close = difflib.get_close_matches(str(path[-1]), names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}allowed keys: {', '.join(names)}"


def _section_at(root: type[BaseModel], path: KeyPath) -> type[BaseModel]:
    section = root
    for key in path:
        if isinstance(key, str):
            section = _section_class(section.model_fields[key].annotation) or section
    return section


def _section_class(annotation: Any) -> type[BaseModel] | None:
    """The section inside `tuple[Section, ...]`, `Section | None` and the like."""
    if get_origin(annotation) in (tuple, Annotated, Union, types.UnionType):
        found = (_section_class(argument) for argument in get_args(annotation))
        return next((section for section in found if section is not None), None)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return None


def _value_at(data: Any, path: KeyPath) -> Any:
    for key in path:
        data = data[key]
    return data


def _show_path(path: KeyPath) -> str:
    shown = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)
    return shown.removeprefix(".")


def _show_value(value: object) -> str:
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str) and _PEM in value:
        return "a text in PEM"
    if isinstance(value, int) and abs(value) >= 1 << 256:
        return "a huge number"
    # Before the end is cut off: what is left of a token would not look like one.
    shown = without_tokens(repr(value))
    return shown if len(shown) <= _MAX_SHOWN_CHARS else shown[:_MAX_SHOWN_CHARS] + "…"
