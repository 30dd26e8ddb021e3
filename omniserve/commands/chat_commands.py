"""What may be typed into a chat besides questions: lines that begin with a slash."""

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from omniserve.commands.connection import Connection
from omniserve.commands.conversation import Conversation
from omniserve.commands.generation import SAMPLING_OPTIONS
from omniserve.commands.served import list_served
from omniserve.errors import ConfigError
from omniserve.v1 import omniserve_pb2 as pb

Question = str | None


@dataclass(frozen=True, slots=True)
class _Command:
    argument: str
    """What may follow, for the help."""
    help: str
    run: Callable[[str], Question]
    """Gets what follows; returns what is to be asked now, if anything."""


class ChatCommands:
    """Changes a chat and the request that its questions are sent with."""

    def __init__(
        self,
        connection: Connection,
        request: pb.GenerateRequest,
        conversation: Conversation,
        say: Callable[[str], None],
    ) -> None:
        self.is_over = False
        self.unanswered: Question = None
        """The last question, where nothing came of it."""
        self.last_request_id = ""
        self._connection = connection
        self._request = request
        self._conversation = conversation
        self._say = say
        self._commands = {
            "/help": _Command("", "this list", self._help),
            "/model": _Command("[NAME]", "list the models, or take another", self._model),
            "/tier": _Command("[NAME]", "list the tiers, or take another", self._tier),
            "/system": _Command("[TEXT]", "what the model is told first", self._system),
            "/set": _Command("[NAME [N]]", "show or change how text is chosen", self._set),
            "/retry": _Command("", "ask the last question again", self._retry),
            "/undo": _Command("", "forget the last question and its answer", self._undo),
            "/clear": _Command("", "forget all questions and answers", self._clear),
            "/save": _Command("FILE", "write the chat to a file", self._save),
            "/load": _Command("FILE", "go on with a chat that was saved", self._load),
            "/id": _Command("", "id of the last request, for omniserve explain", self._id),
            "/quit": _Command("", "end, as Ctrl-D does", self._quit),
        }

    @property
    def words(self) -> Sequence[str]:
        """All there are."""
        return tuple(self._commands)

    def question_of(self, line: str) -> Question:
        """What is to be asked because of a line: itself, or what its command brings about.

        Raises OmniServeError where a command cannot be carried out.
        """
        if line.startswith("//"):
            return line[1:]
        if not line.startswith("/"):
            return line if line.strip() else None
        name, _, argument = line.partition(" ")
        command = self._commands.get(name.rstrip())
        if command is None:
            raise ConfigError(f"{name}: is no command, /help lists them; // begins text with /")
        if argument.strip() and not command.argument:
            raise ConfigError(f"{name}: takes nothing")
        return command.run(argument.strip())

    def _help(self, argument: str) -> None:
        for name, command in self._commands.items():
            self._say(f"{name + ' ' + command.argument:<18}{command.help}")
        self._say("A backslash at the end of a line goes on in the next one; // begins text with /")

    def _model(self, wanted: str) -> None:
        names = [model.name for model in list_served(self._connection).models]
        if wanted:
            self._request.model = _one_of(names, wanted)
        self._list(names, self._request.model)

    def _tier(self, wanted: str) -> None:
        listed = list_served(self._connection)
        names = [tier.name for tier in listed.tiers]
        if wanted:
            self._request.tier = _one_of(names, wanted)
        defaults = [m.default_tier for m in listed.models if m.name == self._request.model]
        self._list(names, self._request.tier or next(iter(defaults), ""))

    def _list(self, names: Sequence[str], now: str) -> None:
        for name in names:
            self._say(f"{'*' if name == now else ' '} {name}")

    def _system(self, text: str) -> None:
        if text:
            self._conversation.system = text
        self._say(f"the model is told: {self._conversation.system or 'nothing'}")

    def _set(self, argument: str) -> None:
        sampling = self._request.sampling
        name, _, value = argument.partition(" ")
        options = {option.name: option for option in SAMPLING_OPTIONS}
        if name:
            _one_of(list(options), name)
        if value:
            try:
                setattr(sampling, name, options[name].parse(value.strip()))
            except argparse.ArgumentTypeError as error:
                raise ConfigError(f"{name}: {error}") from None
        elif name:
            sampling.ClearField(name)
        for each in [name] if name else options:
            shown = getattr(sampling, each) if sampling.HasField(each) else "not set"
            self._say(f"{each}: {shown}")

    def _retry(self, argument: str) -> Question:
        question = self.unanswered or self._conversation.take_back()
        if question is None:
            raise ConfigError("/retry: nothing was asked yet")
        return question

    def _undo(self, argument: str) -> None:
        question = self._conversation.take_back()
        if question is None:
            raise ConfigError("/undo: nothing was asked yet")
        self._say(f"forgotten: {question}")

    def _clear(self, argument: str) -> None:
        self._conversation.clear()
        self.unanswered = None

    def _save(self, argument: str) -> None:
        self._conversation.save(_path(argument))
        self._say(f"written: {argument}")

    def _load(self, argument: str) -> None:
        num = self._conversation.load(_path(argument))
        self.unanswered = None
        self._say(f"questions so far: {num}")

    def _id(self, argument: str) -> None:
        self._say(self.last_request_id or "nothing was asked yet")

    def _quit(self, argument: str) -> None:
        self.is_over = True


def _one_of(names: Sequence[str], wanted: str) -> str:
    if wanted not in names:
        raise ConfigError(f"{wanted}: is none of {', '.join(names)}")
    return wanted


def _path(argument: str) -> Path:
    if not argument:
        raise ConfigError("FILE: is missing")
    # Not Path.expanduser: that raises for users that are not known.
    return Path(os.path.expanduser(argument))
