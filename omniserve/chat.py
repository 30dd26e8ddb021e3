"""Chat templates: a list of messages to one prompt text."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import msgspec
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from omniserve.errors import CheckpointError, InvalidRequest
from omniserve.regular_file import read_small_file

ROLES = ("system", "user", "assistant")
MAX_MESSAGES = 4096
_REFUSALS = (
    *(jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError),
    *(MemoryError, RecursionError),
)
_UNUSABLE = (
    *(OSError, ValueError, AttributeError, LookupError, TypeError),
    jinja2.TemplateSyntaxError,
)
"""What a file of another shape than expected leads to."""


@dataclass(frozen=True, slots=True)
class ChatMessage:
    role: str
    content: str


class ChatTemplate:
    """The chat template of one checkpoint, rendered in a sandbox."""

    def __init__(self, source: str, special_tokens: dict[str, str]) -> None:
        """Raises jinja2.TemplateSyntaxError for a broken template."""
        self._template = _environment().from_string(source)
        self._special_tokens = special_tokens

    @classmethod
    def load(cls, checkpoint: Path, adapter: Path | None = None) -> "ChatTemplate | None":
        """The checkpoint's template, or that of an adapter of it, where this has one of its own;
        None where there is none. Raises CheckpointError."""
        source, tokens = None, dict[str, str]()
        for directory in (checkpoint, adapter):
            if directory is not None:
                own, of_directory = cls._read(directory)
                source = source if own is None else own
                tokens |= of_directory
        return None if source is None else cls(source, tokens)

    @classmethod
    def _read(cls, directory: Path) -> tuple[str | None, dict[str, str]]:
        """Template and special tokens, as far as they are there."""
        config_path = directory / "tokenizer_config.json"
        template_path = directory / "chat_template.jinja"
        path = config_path
        try:
            told = read_small_file(config_path) if config_path.exists() else b"{}"
            config = msgspec.json.decode(told)
            source = _default_template(config.get("chat_template"))
            if template_path.exists():
                path = template_path
                source = read_small_file(template_path).decode("utf-8") or source
            if source is not None:
                cls(source, {})  # Raises here, where it is known which file it is.
            return source, _special_tokens(config)
        except _UNUSABLE as error:
            raise CheckpointError(f"{path}: not a usable chat template: {error}") from error

    def render(self, messages: Sequence[ChatMessage]) -> str:
        """The prompt text, up to where the assistant is to speak; raises InvalidRequest."""
        try:
            return self._template.render(
                messages=[{"role": said.role, "content": said.content} for said in messages],
                add_generation_prompt=True,
                tools=None,
                documents=None,
                **self._special_tokens,
            )
        # A template is a program that sees the client's messages: whatever it raises is about them.
        except _REFUSALS as error:
            message = f"messages: the chat template refuses them: {error}"
            raise InvalidRequest(message, "messages") from error


def check_messages(messages: Sequence[ChatMessage]) -> None:
    """Raises InvalidRequest unless there are messages and each has a known role."""
    if not 1 <= len(messages) <= MAX_MESSAGES:
        found = f"{len(messages)} are not allowed; allowed: 1 to {MAX_MESSAGES}"
        raise InvalidRequest(f"messages: {found}", "messages")
    for place, message in enumerate(messages):
        if message.role not in ROLES:
            param = f"messages[{place}].role"
            found = f"{message.role[:32]!r} is not allowed; allowed: {', '.join(ROLES)}"
            raise InvalidRequest(f"{param}: {found}", param)


def _default_template(found: object) -> str | None:
    """One template, or the one named `default` of a list of named ones."""
    if isinstance(found, list):
        named = {entry["name"]: entry["template"] for entry in found}
        found = named.get("default")
    if found is None or isinstance(found, str):
        return found
    raise ValueError("chat_template is neither a string nor a list of named templates")


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """bos_token, eos_token and the like; each is a string or an object with `content`."""
    tokens: dict[str, str] = {}
    for name, value in config.items():
        content = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(content, str):
            tokens[name] = content
    return tokens


class _GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}` marks training targets and changes no prompt."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(value: object, **options: Any) -> str:
    """Unlike jinja's own filter this does not escape for HTML: prompts are not web pages."""
    return json.dumps(value, **{"ensure_ascii": False, **options})


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(template: str) -> str:
    return datetime.now().strftime(template)
