"""Protobuf messages as plain values."""

import json

from omniserve.message_fields import message_fields
from omniserve.v1 import omniserve_pb2 as pb


def test_every_field_is_there_and_numbers_stay_numbers() -> None:
    model = pb.ModelStatus(name="demo", running={"batch": 2}, kv_total_bytes=1 << 60)
    found = message_fields(pb.Status(state="ready", models=[model]))
    assert set(found) == {field.name for field in pb.Status.DESCRIPTOR.fields}
    assert found["state"] == "ready" and found["requests"] == [] and found["host"] is None
    (shown,) = found["models"]
    assert shown["running"] == {"batch": 2} and shown["kv_total_bytes"] == 1 << 60
    assert shown["piggyback"] is None
    assert json.loads(json.dumps(found)) == found


def test_optional_fields_that_are_unset_are_none() -> None:
    found = message_fields(pb.Tier(name="batch", tpot_ms=0.0))
    assert (found["ttft_ms"], found["tpot_ms"], found["fallback"]) == (None, 0.0, "")
    assert message_fields(pb.PiggybackStatus(rows_on_host=[1, 0]))["rows_on_host"] == [1, 0]
