"""Expressions of strangers: what Python's own matcher says, in bounded work."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniserve.plain_pattern import PatternError, PatternWork, PlainPattern

TEXTS = st.text("ab.1_-", max_size=8)
ATOMS = st.sampled_from(
    ["a", "b", "1", "_", r"\.", ".", r"\d", r"\w", r"\W", r"\b", "^", "$", "[ab]", "[^a]", "[a-b1]"]
    + [r"[\d_]", r"[.\-]", "[]a]", "[a-]", "()", "{", "a{,}b", "{a}"]
)


def _compound(parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    repeats = st.sampled_from(
        ["*", "+", "?", "*?", "+?", "??", "{2}", "{1,2}", "{,2}", "{1,}", "{0}"]
    )
    return st.one_of(
        st.lists(parts, max_size=3).map("".join),
        st.lists(parts, min_size=2, max_size=3).map(lambda each: f"({'|'.join(each)})"),
        st.tuples(parts, repeats).map(lambda each: f"(?:{each[0]}){each[1]}"),
        parts.map(lambda each: f"(?P<x>{each})" if "?P<" not in each else each),
    )


EXPRESSIONS = st.recursive(ATOMS, _compound, max_leaves=8)


@given(EXPRESSIONS, TEXTS)
def test_it_says_what_python_says(expression: str, text: str) -> None:
    try:
        expected = re.fullmatch(expression, text) is not None
    except re.error:
        return
    assert PlainPattern(expression, PatternWork()).matches(text) is expected


@pytest.mark.parametrize(
    ("expression", "text", "matches"),
    [
        (r"model\.layers\.\d+\.self_attn\.[qv]_proj", "model.layers.12.self_attn.v_proj", True),
        (r"model\.layers\.\d+\.self_attn\.[qv]_proj", "model.layers.12.self_attn.k_proj", False),
        (r".*\.layers\.([0-9]|1[0-5])\..*", "model.layers.15.mlp.up_proj", True),
        (r".*\.layers\.([0-9]|1[0-5])\..*", "model.layers.16.mlp.up_proj", False),
        ("a{3}", "aaa", True),
        ("a{3}", "aaaa", False),
    ],
)
def test_names_of_modules(expression: str, text: str, matches: bool) -> None:
    assert PlainPattern(expression, PatternWork()).matches(text) is matches


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("(", "group that is not closed"),
        (")", "closes nothing"),
        ("[a", "ends too early"),
        ("[b-a]", "range b-a"),
        ("a\\", "ends too early"),
        ("*a", "repeats nothing"),
        ("a**", "repeats a repeat"),
        ("a{2,1}", "repeats {2,1}"),
        ("a{999}", "at most 255"),
        ("(?=a)", "group of a kind"),
        ("(?<!a)", "group of a kind"),
        ("(?i)a", "group of a kind"),
        (r"(a)\1", r"has \1, which is not supported"),
        (r"\Aa", r"has \A, which is not supported"),
        ("a" * 4001, "longer than 4000"),
        ("(" * 40 + ")" * 40, "nested too deep"),
    ],
)
def test_what_is_not_supported_is_said(expression: str, problem: str) -> None:
    with pytest.raises(PatternError, match=re.escape(problem)):
        PlainPattern(expression, PatternWork())


def test_work_is_bounded_over_all_expressions() -> None:
    work = PatternWork(max_steps=2000)
    first, second = (PlainPattern(f"({each}*)*x", work) for each in "ab")
    assert not first.matches("a" * 10)
    with pytest.raises(PatternError, match="takes too long"):
        for _ in range(1000):
            second.matches("b" * 10)
