"""What `omniserve status` prints."""

from status_builders import make_status

from omniserve.commands.status_tables import head_lines, refusal_lines, status_tables
from omniserve.v1 import omniserve_pb2 as pb


def test_the_device_is_left_out_while_it_is_not_known() -> None:
    assert next(head_lines(make_status())) == "ready: OmniServe 1.2.3 on cpu, up 1:02:05"
    starting = make_status(state="starting", device="")
    assert next(head_lines(starting)) == "starting: OmniServe 1.2.3, up 1:02:05"


def test_ages_of_refusals_are_in_minutes_where_they_are_long_ago() -> None:
    (line,) = refusal_lines(make_status())
    assert line == "1 min 5 s ago: tier interactive, request -: too late"


def test_models_that_share_a_kv_budget_have_a_table() -> None:
    status = make_status()
    titles = [table.title for table in status_tables(status)]
    status.models[0].kv_share.CopyFrom(pb.KvShareStatus(granted_bytes=12 << 20, moves_per_s=2.5))
    shared = {table.title: table for table in status_tables(status)}
    (title,) = shared.keys() - set(titles)
    assert "share" in title
    status.models[0].piggyback.kv_share.granted_bytes = 5 << 20
    with_host = {table.title: table for table in status_tables(status)}
    (of_host,) = with_host.keys() - shared.keys()
    assert "Host" in of_host and with_host[of_host].rows[0][1] == "5 of 9 MiB"
    (row,) = shared[title].rows
    assert row[0] == "demo" and "12" in row[1] and row[-1] == "2.5"


def test_what_models_have_in_common_has_a_table_where_there_is_anything() -> None:
    status = make_status()
    status.models[0].weights.CopyFrom(pb.WeightStatus(own_bytes=7 << 20))
    titles = [table.title for table in status_tables(status)]
    assert titles == [table.title for table in status_tables(make_status())]
    joint = pb.JointLayersStatus(num_layers=1234, num_rows=5678, share=0.25)
    status.models[0].joint_layers.CopyFrom(joint)
    shared = {table.title: table for table in status_tables(status)}
    (title,) = shared.keys() - set(titles)
    (row,) = shared[title].rows
    assert row[0] == "demo" and row[1] == "7.0 MiB" and row[4:] == ["1,234", "25.0 %", "5,678"]
