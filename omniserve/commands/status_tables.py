"""A daemon's status as lines and tables for the terminal."""

from collections.abc import Iterator
from datetime import timedelta

from omniserve.bench.report.rows import TextTable
from omniserve.charts.text import NOTHING, format_age, format_ms, format_rate, format_share
from omniserve.commands.model_state import model_state, trouble_words
from omniserve.terminal import printable
from omniserve.v1 import omniserve_pb2 as pb

MAX_REFUSALS = 10
_MIB = 1 << 20


def head_lines(status: pb.Status) -> Iterator[str]:
    """What holds for the daemon as a whole."""
    up = timedelta(seconds=int(status.uptime_s))
    # An engine that starts has not said yet what it computes on.
    on_device = f" on {status.device}" if status.device else ""
    line = f"{status.state}: OmniServe {status.version}{on_device}, up {up}"
    if status.num_engine_restarts:
        line += f", engine restarts: {status.num_engine_restarts}"
    yield printable(line)
    if status.HasField("host"):
        host = status.host
        line = f"cores: {host.num_cores}, {format_share(host.busy_share)} busy"
        if host.num_host_cores:
            now = "at work" if host.has_host_cores else "lent to the device now"
            line += f"; host attention: {host.num_host_cores}, {now}"
        if host.memory_total_bytes:
            line += f"; memory: {_used(host.memory_used_bytes, host.memory_total_bytes)}"
        yield line
    for model in status.models:
        if model.error:
            yield printable(trouble_words(model))
    for problem in status.reload_error.splitlines():
        yield printable(f"the changed configuration file was refused: {problem}")


def status_tables(status: pb.Status) -> Iterator[TextTable]:
    """Those that have something to say."""
    tables = (_tiers, _models, _kv_shares, _sharing, _hosts, _host_kv_shares, _tenants)
    for table in (make(status) for make in tables):
        if table.rows:
            yield table


def _tiers(status: pb.Status) -> TextTable:
    headings = (
        *("model", "tier", "running", "waiting", "TTFT met", "TPOT met"),
        *("tokens/s", "tokens", "refused"),
    )
    rows = [
        [
            printable(tier.model),
            printable(tier.tier),
            f"{tier.num_running:,}",
            f"{tier.num_waiting:,}",
            format_share(tier.ttft_attainment if tier.HasField("ttft_attainment") else None),
            format_share(tier.tpot_attainment if tier.HasField("tpot_attainment") else None),
            format_rate(tier.output_tokens_per_s),
            f"{tier.output_tokens:,}",
            f"{tier.num_refused:,}",
        ]
        for tier in status.tiers
    ]
    return TextTable("Tiers", headings, rows)


def _models(status: pb.Status) -> TextTable:
    headings = (
        *("model", "state", "KV used", "prompt tokens", "cached", "output tokens", "steps"),
        "step ms",
    )
    rows = [
        [
            printable(model.name),
            printable(model_state(model)),
            _used(model.kv_used_bytes, model.kv_total_bytes),
            f"{model.prompt_tokens:,}",
            f"{model.cached_tokens:,}",
            f"{model.output_tokens:,}",
            f"{model.num_steps:,}",
            format_ms(model.step_ms),
        ]
        for model in status.models
    ]
    return TextTable("Models", headings, rows)


_SHARE_HEADINGS = ("model", "KV it has", "known prefixes", "floor", "got", "gave up", "moves/s")


def _kv_shares(status: pb.Status) -> TextTable:
    rows = [
        _share_row(model.name, model.kv_share, model.kv_total_bytes)
        for model in status.models
        if model.HasField("kv_share")
    ]
    return TextTable("KV memory that models share", _SHARE_HEADINGS, rows)


def _host_kv_shares(status: pb.Status) -> TextTable:
    rows = [
        _share_row(model.name, model.piggyback.kv_share, model.piggyback.kv_total_bytes)
        for model in status.models
        if model.piggyback.HasField("kv_share")
    ]
    return TextTable("Host KV memory that models share", _SHARE_HEADINGS, rows)


def _share_row(model: str, share: pb.KvShareStatus, total_bytes: int) -> list[str]:
    return [
        printable(model),
        _used(share.granted_bytes, total_bytes),
        _mebibytes(share.cached_bytes),
        _mebibytes(share.floor_bytes),
        _mebibytes(share.in_bytes),
        _mebibytes(share.out_bytes),
        f"{share.moves_per_s:.1f}",
    ]


def _sharing(status: pb.Status) -> TextTable:
    headings = ("model", "own", "shared", "saved", "layers with others", "of its layers", "rows")
    models = [model for model in status.models if model.HasField("weights")]
    rows = [
        [
            printable(model.name),
            _mebibytes(model.weights.own_bytes),
            _mebibytes(model.weights.shared_bytes),
            _mebibytes(model.weights.saved_bytes),
            f"{model.joint_layers.num_layers:,}",
            format_share(model.joint_layers.share),
            f"{model.joint_layers.num_rows:,}",
        ]
        for model in models
        if any(each.weights.shared_bytes or each.joint_layers.num_layers for each in models)
    ]
    return TextTable("Weights in memory, and layers run once for several models", headings, rows)


def _mebibytes(num_bytes: int) -> str:
    return f"{num_bytes / _MIB:,.1f} MiB"


def _hosts(status: pb.Status) -> TextTable:
    headings = ("model", "host", "offloaded", "KV used", "rows joined", "tokens")
    rows = [
        [
            printable(model.name),
            printable(model.piggyback.host_state),
            f"{model.piggyback.num_offloaded:,}",
            _used(model.piggyback.kv_used_bytes, model.piggyback.kv_total_bytes),
            f"{model.piggyback.num_rows_joined:,}",
            f"{model.piggyback.num_tokens:,}",
        ]
        for model in status.models
        if model.HasField("piggyback")
    ]
    return TextTable("Host attention", headings, rows)


def _tenants(status: pb.Status) -> TextTable:
    headings = ("tenant", "requests", "queued", "input quota", "output quota", "refused")
    rows = [
        [
            printable(tenant.tenant),
            f"{tenant.num_concurrent:,}",
            f"{tenant.num_queued:,}",
            format_share(
                tenant.input_tokens_share if tenant.HasField("input_tokens_share") else None
            ),
            format_share(
                tenant.output_tokens_share if tenant.HasField("output_tokens_share") else None
            ),
            f"{tenant.num_refused:,}",
        ]
        for tenant in status.tenants
    ]
    return TextTable("Tenants", headings, rows)


def refusal_lines(status: pb.Status) -> Iterator[str]:
    """The newest first."""
    for refusal in status.refusals[:MAX_REFUSALS]:
        whose = f"{refusal.tenant}, " if refusal.tenant else ""
        what = f"{whose}tier {refusal.tier or NOTHING}, request {refusal.request_id or NOTHING}"
        yield printable(f"{format_age(refusal.age_s)} ago: {what}: {refusal.reason}")


def _used(used_bytes: int, total_bytes: int) -> str:
    return f"{used_bytes / _MIB:,.0f} of {total_bytes / _MIB:,.0f} MiB"
