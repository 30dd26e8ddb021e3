"""Chat templates against transformers' own rendering, and the sandbox."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from omniserve.chat import ChatMessage, ChatTemplate, check_messages
from omniserve.errors import CheckpointError, InvalidRequest

CONVERSATIONS = [
    [("user", "Hello")],
    [("system", "Be brief."), ("user", "Hi <b>you</b> & me"), ("assistant", "Yes?"), ("user", "")],
]

# Shapes that real templates have, each with something that a plainer environment gets wrong.
TEMPLATES = {
    "trimmed blocks": (
        "{% for message in messages %}\n"
        "    {% if message['role'] == 'user' %}\n"
        "[INST] {{ message['content'] | trim }} [/INST]\n"
        "    {% else %}\n{{ message['content'] }}{{ eos_token }}\n    {% endif %}\n"
        "{% endfor %}\n{% if add_generation_prompt %}>>{% endif %}"
    ),
    "json": "{{ bos_token }}{{ messages | tojson }}{{ messages | tojson(indent=2) }}",
    "loop controls": (
        "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}"
        "{{ m.role }}:{{ m.content }};{% endfor %}"
    ),
    "generation": (
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}|{% endfor %}"
    ),
    "no tools": "{% if tools %}T{% endif %}{% if documents %}D{% endif %}{{ messages | length }}",
    "namespace": (
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
        "{% endfor %}{{ ns.n }}{{ messages[-1].content.upper() }}"
    ),
}


def make_messages(*said: tuple[str, str]) -> list[ChatMessage]:
    return [ChatMessage(role, content) for role, content in said]


def write_config(directory: Path, **config: object) -> Path:
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize("said", CONVERSATIONS)
@pytest.mark.parametrize("name", [None, *TEMPLATES])
def test_agrees_with_transformers(
    tiny_checkpoint: Path, name: str | None, said: list[tuple[str, str]]
) -> None:
    oracle = AutoTokenizer.from_pretrained(tiny_checkpoint)
    template = ChatTemplate.load(tiny_checkpoint)
    assert template is not None
    if name is not None:
        oracle.chat_template = TEMPLATES[name]
        special_tokens = {
            key: value for key, value in oracle.special_tokens_map.items() if value is not None
        }
        template = ChatTemplate(TEMPLATES[name], special_tokens)
    expected = oracle.apply_chat_template(
        [{"role": role, "content": content} for role, content in said],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert template.render(make_messages(*said)) == expected


def test_template_file_wins_over_the_configuration(tmp_path: Path) -> None:
    write_config(tmp_path, chat_template="old")
    (tmp_path / "chat_template.jinja").write_text("new")
    template = ChatTemplate.load(tmp_path)
    assert template is not None
    assert template.render(make_messages(("user", "x"))) == "new"


def test_takes_the_default_of_named_templates(tmp_path: Path) -> None:
    named = [{"name": "rag", "template": "a"}, {"name": "default", "template": "b{{ eos_token }}"}]
    write_config(tmp_path, chat_template=named, eos_token={"content": "</s>", "special": True})
    template = ChatTemplate.load(tmp_path)
    assert template is not None
    assert template.render(make_messages(("user", "x"))) == "b</s>"


def test_a_checkpoint_may_have_no_template(tmp_path: Path) -> None:
    assert ChatTemplate.load(tmp_path) is None
    assert ChatTemplate.load(write_config(tmp_path, eos_token="</s>")) is None


@pytest.mark.parametrize(
    "config",
    [
        *("{", "[]", json.dumps({"chat_template": "{% if %}"}), '{"chat_template": 3}'),
        *('{"chat_template": [3]}', '{"chat_template": [{"name": "default"}]}'),
    ],
)
def test_broken_template_is_named(tmp_path: Path, config: str) -> None:
    (tmp_path / "tokenizer_config.json").write_text(config)
    with pytest.raises(
        CheckpointError, match=r"tokenizer_config\.json: not a usable chat template"
    ):
        ChatTemplate.load(tmp_path)


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[7].content }}",
        "{{ 1 / 0 }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__class__.__mro__ }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    ],
)
def test_a_failing_or_escaping_template_refuses_the_request(source: str) -> None:
    with pytest.raises(InvalidRequest, match="^messages: the chat template refuses") as refusal:
        ChatTemplate(source, {}).render(make_messages(("user", "x")))
    assert refusal.value.param == "messages"


@pytest.mark.parametrize("role", ["tool", "", "User", "x" * 1000])
def test_refuses_unknown_roles_by_place(role: str) -> None:
    with pytest.raises(InvalidRequest, match="allowed: system, user, assistant$") as refusal:
        check_messages(make_messages(("user", "x"), (role, "y")))
    assert refusal.value.param == "messages[1].role"
    assert len(str(refusal.value)) < 200


def test_refuses_no_messages() -> None:
    with pytest.raises(InvalidRequest, match="^messages: 0 are not allowed"):
        check_messages([])
