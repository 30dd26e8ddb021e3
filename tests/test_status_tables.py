"""What `omniserve status` prints."""

from status_builders import make_status

from omniserve.commands.status_tables import head_lines, refusal_lines


def test_the_device_is_left_out_while_it_is_not_known() -> None:
    assert next(head_lines(make_status())) == "ready: OmniServe 1.2.3 on cpu, up 1:02:05"
    starting = make_status(state="starting", device="")
    assert next(head_lines(starting)) == "starting: OmniServe 1.2.3, up 1:02:05"


def test_ages_of_refusals_are_in_minutes_where_they_are_long_ago() -> None:
    (line,) = refusal_lines(make_status())
    assert line == "1 min 5 s ago: tier interactive, request -: too late"
