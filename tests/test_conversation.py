"""A chat as its client keeps it, and its file."""

import json
from pathlib import Path

import pytest

from omniserve.commands.conversation import Conversation, Said
from omniserve.errors import ConfigError


def test_messages_are_the_whole_talk_in_order() -> None:
    talk = Conversation("Be brief.")
    talk.add("one?", "1")
    talk.add("two?", "2")
    assert [(each.role, each.content) for each in talk.messages("three?")] == [
        ("system", "Be brief."),
        ("user", "one?"),
        ("assistant", "1"),
        ("user", "two?"),
        ("assistant", "2"),
        ("user", "three?"),
    ]
    assert talk.take_back() == "two?"
    assert [each.content for each in talk.messages("x")] == ["Be brief.", "one?", "1", "x"]
    talk.clear()
    assert talk.take_back() is None
    assert [each.content for each in talk.messages("x")] == ["Be brief.", "x"]
    assert Conversation().messages("x") == [Said("user", "x")]


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    talk, other = Conversation("Say “hé”."), Conversation("old")
    talk.add("a\nb", "\u2028 \\ 𝄞")
    talk.save(tmp_path / "chat.json")
    other.add("gone", "gone")
    assert other.load(tmp_path / "chat.json") == 1
    assert other.messages("x") == talk.messages("x") and other.system == talk.system


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"system": 1, "messages": []}',
        '{"system": "", "messages": {"role": "user"}}',
        '{"system": "", "messages": [1]}',
        '{"system": "", "messages": [{"role": "user", "content": "x"}]}',
        '{"system": "", "messages": [{"role": "assistant", "content": "x"},'
        ' {"role": "user", "content": "x"}]}',
        '{"system": "\\ud800", "messages": []}',
        "[" * 100_000,
    ],
)
def test_other_files_change_nothing(tmp_path: Path, content: str) -> None:
    path = tmp_path / "chat.json"
    path.write_text(content)
    talk = Conversation("kept")
    talk.add("one?", "1")
    with pytest.raises(ConfigError, match="holds no chat that was saved"):
        talk.load(path)
    assert [each.content for each in talk.messages("x")] == ["kept", "one?", "1", "x"]


def test_files_that_cannot_be_had(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        Conversation().load(tmp_path)
    with pytest.raises(ConfigError, match="cannot be written: No such file"):
        Conversation().save(tmp_path / "none" / "chat.json")
    with pytest.raises(ConfigError, match="cannot be written"):
        Conversation().save(Path("a\0b"))
    path = tmp_path / "chat.json"
    path.write_text(json.dumps({"system": "", "messages": []}))
    assert Conversation().load(path) == 0
