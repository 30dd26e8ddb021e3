"""What `systemctl status` shows."""

from systemd_builders import make_stats

from omniserve.systemd.status_text import MAX_TIERS, serving_text


def test_tiers_are_added_up_over_models() -> None:
    stats = (
        make_stats(running={"chat": 2, "batch": 1}, waiting={"chat": 0, "batch": 40}),
        make_stats(running={"chat": 1}, waiting={"chat": 3}, name="other"),
    )
    assert serving_text(("demo", "other"), stats) == (
        "serving demo, other: batch 1 running 40 waiting, chat 3 running 3 waiting"
    )


def test_without_a_snapshot_it_is_idle() -> None:
    assert serving_text(("demo",), ()) == "serving demo: idle"


def test_many_tiers_do_not_fill_the_screen() -> None:
    running = {f"tier-{index:03}": 1 for index in range(200)}
    text = serving_text(("demo",), (make_stats(running=running),))
    assert text.count(" running ") == MAX_TIERS
    assert text.endswith(f", {200 - MAX_TIERS} more tiers")
