"""What the arguments of `omniserve bench colocate` ask for."""

import argparse

import pytest

from omniserve.bench.colocate.command import add_colocate_command, options_of
from omniserve.bench.colocate.options import FULL_SCENES, QUICK_SCENES, ColocateOptions
from omniserve.bench.colocate.outlook import Outlook


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
