"""A chat in the terminal: questions are typed, answers stream, commands begin with a slash."""

import sys

from omniserve.commands.answer_writer import AnswerWriter
from omniserve.commands.chat_commands import ChatCommands
from omniserve.commands.chat_input import history_path, line_editing, read_message
from omniserve.commands.connection import Connection
from omniserve.commands.conversation import Conversation
from omniserve.commands.generation import Generation
from omniserve.errors import OmniServeError
from omniserve.terminal import make_console, printable
from omniserve.v1 import omniserve_pb2 as pb

_PROMPT = "> "


class ChatSession:
    """`run` talks until the user has had enough."""

    def __init__(
        self,
        connection: Connection,
        request: pb.GenerateRequest,
        conversation: Conversation,
        *,
        has_history: bool,
    ) -> None:
        """`request` is what every question is sent with; commands change it."""
        self._connection = connection
        self._request = request
        self._conversation = conversation
        self._history = history_path() if has_history else None
        self._console = make_console()
        self._commands = ChatCommands(connection, request, conversation, self._say)

    def run(self) -> None:
        where = f"{self._request.model} at {self._connection.address}"
        self._say(f"{where}; /help tells what there is, Ctrl-D ends")
        with line_editing(self._commands.words, self._history):
            while not self._commands.is_over:
                try:
                    self._turn(read_message(_PROMPT))
                except EOFError:
                    self._say("")
                    return
                except KeyboardInterrupt:
                    self._say("\nCtrl-D or /quit ends")

    def _turn(self, line: str) -> None:
        try:
            line.encode()
        except UnicodeEncodeError:
            self._complain("that was not UTF-8 text")
            return
        try:
            question = self._commands.question_of(line)
        except OmniServeError as error:
            self._complain(str(error))
            return
        if question is not None:
            self._answer(question)

    def _answer(self, question: str) -> None:
        request = pb.GenerateRequest()
        request.CopyFrom(self._request)
        for said in self._conversation.messages(question):
            request.chat.messages.add(role=said.role, content=said.content)
        generation = Generation(self._connection, request)
        writer = AnswerWriter()
        error: OmniServeError | None = None
        note = ""
        try:
            for piece in generation:
                writer.write(piece)
            note = generation.figures()
        except KeyboardInterrupt:
            generation.cancel()
            note = "stopped"
        except OmniServeError as raised:
            error = raised
        writer.end_line()
        self._keep(question, generation)
        if error is not None:
            self._complain(str(error))
        else:
            self._say(note)

    def _keep(self, question: str, generation: Generation) -> None:
        """What came is part of the chat; a question without any answer can be asked again."""
        self._commands.last_request_id = generation.request_id
        self._commands.unanswered = None if generation.text else question
        if generation.text:
            self._conversation.add(question, generation.text)

    def _say(self, text: str) -> None:
        """Beside the chat itself."""
        self._console.print(printable(text), style="dim", soft_wrap=True, markup=False)

    def _complain(self, text: str) -> None:
        self._console.file.flush()
        for line in text.splitlines():
            sys.stderr.write(f"omniserve: {line}\n")
        sys.stderr.flush()
