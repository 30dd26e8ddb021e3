"""What counts as the same error."""

from omniserve.error_groups import count_alike


def test_messages_that_differ_in_numbers_count_together() -> None:
    late = [f"late by {ms} ms; try again in {ms / 7:.1f} s" for ms in (12, 1_250, 9.5)]
    assert count_alike(["gone", *late, "gone"]) == {"gone": 2, late[0]: 3}


def test_statuses_of_http_do_not() -> None:
    messages = ["HTTP 502: no answer in 3 s", "HTTP 503: no answer in 3 s"]
    assert count_alike([*messages, "HTTP 503: no answer in 12 s"]) == {
        messages[0]: 1,
        messages[1]: 2,
    }
