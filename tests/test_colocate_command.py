"""What the arguments of `omniserve bench colocate` ask for."""

import argparse

import pytest

from omniserve.bench.colocate.command import add_colocate_command, options_of
from omniserve.bench.colocate.options import FULL_SCENES, QUICK_SCENES, ColocateOptions
from omniserve.bench.colocate.outlook import Outlook
from omniserve.errors import ConfigError


def options(*words: str) -> ColocateOptions:
    parser = argparse.ArgumentParser()
    add_colocate_command(parser.add_subparsers())
    return options_of(parser.parse_args(["colocate", *words]))


def test_quick_is_one_scene_at_a_given_rate() -> None:
    chosen = options("--quick")
    assert chosen.scenes == QUICK_SCENES
    assert chosen.ls_rate is not None
    assert options().ls_rate is None
    assert options().scenes == FULL_SCENES


def test_what_is_given_wins_over_quick() -> None:
    chosen = options("--quick", "--rounds", "7", "--ls-rate", "3", "--duration-s", "9")
    assert (chosen.rounds, chosen.ls_rate, chosen.duration_s) == (7, 3.0, 9.0)


def test_scenes_are_chosen_by_frame_and_shape() -> None:
    chosen = options("--frame", "whole", "--shape", "one", "two", "--kv", "0", "5")
    assert [(each.frame, each.shape) for each in chosen.scenes] == [
        ("whole", "one"),
        ("whole", "two"),
    ]
    assert {each.be_requests_in_kv for each in chosen.scenes} == {(0, 5)}


def test_control_alone_needs_no_vllm_and_has_all_loads() -> None:
    chosen = options("--control-only")
    assert (chosen.scenes, chosen.vllm_python) == ((), None)
    assert chosen.control.loads == ("steady", "bursty", "overload")
    assert chosen.control.rounds >= 3
    short = options("--control-only", "--quick")
    assert short.control.loads == chosen.control.loads
    assert short.control.duration_s < chosen.control.duration_s


@pytest.mark.parametrize(
    ("words", "loads"),
    [
        ((), ("steady", "bursty", "overload")),
        (("--quick",), ()),
        (("--quick", "--load", "bursty"), ("bursty",)),
        (("--load", "none"), ()),
        (("--control-only", "--load", "overload"), ("overload",)),
        (("--control-only", "--control", "off"), ("steady", "bursty")),
    ],
)
def test_loads_of_control(words: tuple[str, ...], loads: tuple[str, ...]) -> None:
    assert options(*words).control.loads == loads


def test_what_is_given_holds_for_control_too() -> None:
    chosen = options("--rounds", "7", "--capacity", "9", "--tpot-factor", "3", "--kv", "4", "6")
    control = chosen.control
    assert (chosen.rounds, control.rounds, control.capacity) == (7, 7, 9.0)
    assert (control.ttft_factor, control.tpot_factor) == (5.0, 3.0)
    assert [each.be_requests_in_kv for each in control.scenes] == [(4, 6)]
    assert [each.frame for each in options("--frame", "emulated").control.scenes] == ["emulated"]


@pytest.mark.parametrize("words", [("--load", "none"), ("--load", "overload", "--control", "off")])
def test_nothing_to_measure_is_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="nothing is left to measure"):
        options("--control-only", *words)


@pytest.mark.parametrize(
    "words", [("--rounds", "0"), ("--ls-rate", "-1"), ("--kv", "x"), ("--frame", "half")]
)
def test_nonsense_is_refused(words: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        options(*words)
    assert refused.value.code == 2
    assert words[0] in capsys.readouterr().err


def test_the_outlook_learns() -> None:
    outlook = Outlook(num_windows=7, num_scenes=2, window_s=30.0)
    outlook.started(60.0)
    outlook.skipped(2)
    assert outlook.text == "5 windows left, about 4 min"  # 5 x 30 s and a start of 60 s
    outlook.measured(15.0)
    assert outlook.text == "4 windows left, about 2 min"  # 4 x 15 s and a start of 60 s
