"""The parts of a status as tables of text."""

from collections.abc import Iterable, Sequence

from rich.table import Table
from rich.text import Text

from omniserve.charts.text import NOTHING, format_age, format_ms, format_share
from omniserve.commands.model_state import model_state
from omniserve.terminal import printable
from omniserve.top.text_table import Cell, text_table
from omniserve.v1 import omniserve_pb2 as pb

_SPARKS = "▁▂▃▄▅▆▇█"
_MAX_LAYER_GROUPS = 12
_BAR_CELLS = 8
_MIB = 1 << 20
_STATE_STYLES = {"serving": "dim", "asleep": "dim", "failed": "bold red"}


def models_table(models: Sequence[pb.ModelStatus]) -> Table:
    headings = ("model", "state", "device KV", "host KV", "lanes by layer", "offloaded>", "steps>")
    rows: list[list[Cell]] = []
    for model in models:
        piggyback = model.piggyback if model.HasField("piggyback") else None
        rows.append(
            [
                _name(model.name),
                _state(model),
                pool(model.kv_used_bytes, model.kv_total_bytes),
                ""
                if piggyback is None
                else pool(piggyback.kv_used_bytes, piggyback.kv_total_bytes),
                "" if piggyback is None else Text(_lanes(piggyback), style="magenta"),
                "" if piggyback is None else f"{piggyback.num_offloaded:,}",
                f"{model.num_steps:,}",
                format_ms(model.step_ms),
            ]
        )
    return text_table((*headings, "step ms>"), rows)


def _state(model: pb.ModelStatus) -> Text:
    """Nothing where there is nothing to say: it serves, and may go."""
    if model.state == "serving" and not model.pinned:
        return Text()
    style = _STATE_STYLES.get(model.state, "yellow")
    return Text(printable(model_state(model)), style=style)


def kv_table(models: Sequence[pb.ModelStatus]) -> Table | None:
    """Who has how much of a KV budget that models share; None where they do not."""
    sharing = [model for model in models if model.HasField("kv_share")]
    return _share_table(
        "KV it has",
        [
            (model.name, model.kv_share, model.kv_used_bytes, model.kv_total_bytes)
            for model in sharing
        ],
    )


def host_kv_table(models: Sequence[pb.ModelStatus]) -> Table | None:
    """The same of the host's."""
    sharing = [model for model in models if model.piggyback.HasField("kv_share")]
    hosts = [(model.name, model.piggyback) for model in sharing]
    return _share_table(
        "host KV it has",
        [(name, host.kv_share, host.kv_used_bytes, host.kv_total_bytes) for name, host in hosts],
    )


def _share_table(
    has: str, sharing: Sequence[tuple[str, pb.KvShareStatus, int, int]]
) -> Table | None:
    """Of names, shares, and bytes in use and at most."""
    if not sharing:
        return None
    headings = ("model", has, "in use>", "known prefixes>", "floor>", "got>", "gave up>")
    rows: list[list[Cell]] = [
        [
            _name(name),
            pool(share.granted_bytes, total_bytes),
            _mebibytes(used_bytes),
            _mebibytes(share.cached_bytes),
            _mebibytes(share.floor_bytes),
            _mebibytes(share.in_bytes),
            _mebibytes(share.out_bytes),
            f"{share.moves_per_s:.1f}",
        ]
        for name, share, used_bytes, total_bytes in sharing
    ]
    return text_table((*headings, "moves/s>"), rows)


def sharing_table(models: Sequence[pb.ModelStatus]) -> Table:
    """Whose weights are in memory once, and which layers ran once for several."""
    headings = (
        "model",
        "weights own>",
        "shared>",
        "saved>",
        "layers with others>",
        "of its layers>",
    )
    rows: list[list[Cell]] = []
    for model in models:
        weights, joint = model.weights, model.joint_layers
        rows.append(
            [
                _name(model.name),
                _mebibytes(weights.own_bytes),
                _mebibytes(weights.shared_bytes),
                _mebibytes(weights.saved_bytes),
                f"{joint.num_layers:,}",
                format_share(joint.share),
                f"{joint.num_rows:,}",
            ]
        )
    return text_table((*headings, "rows with others>"), rows)


def shares_with_others(models: Sequence[pb.ModelStatus]) -> bool:
    """Whether any of them does, or did."""
    return any(each.weights.shared_bytes or each.joint_layers.num_layers for each in models)


def _mebibytes(num_bytes: int) -> str:
    return f"{num_bytes / _MIB:,.0f} MiB"


def _lanes(piggyback: pb.PiggybackStatus) -> str:
    """Neighbouring layers in groups, each as high as its rows are many; and all rows together."""
    rows = [sum(pair) for pair in zip(piggyback.rows_on_host, piggyback.rows_ready, strict=False)]
    size = -(-len(rows) // _MAX_LAYER_GROUPS) or 1
    groups = [sum(rows[start : start + size]) for start in range(0, len(rows), size)]
    return f"{sparks(groups, max(groups, default=0))} {sum(rows)}"


def tenants_table(tenants: Sequence[pb.TenantStatus]) -> Table:
    headings = ("tenant", "requests>", "queued>", "input quota>", "output quota>", "refused>")
    return text_table(
        headings,
        [
            [
                _name(each.tenant),
                f"{each.num_concurrent:,}",
                f"{each.num_queued:,}",
                format_share(_optional(each, "input_tokens_share")),
                format_share(_optional(each, "output_tokens_share")),
                f"{each.num_refused:,}",
            ]
            for each in tenants
        ],
    )


def requests_table(requests: Sequence[pb.RequestStatus], num_rows: int) -> Table:
    """The first `num_rows`, and how many there are besides."""
    headings = ("request~", "tier", "tenant", "phase", "age>", "prompt>", "output>", "by host>")
    rows: list[list[Cell]] = [
        [
            _name(each.request_id),
            _name(each.tier),
            Text(printable(each.tenant)),
            Text(printable(each.phase), style="dim" if each.phase == "waiting" else ""),
            format_age(each.age_s),
            f"{each.prompt_tokens:,}",
            f"{each.output_tokens:,}",
            f"{each.piggybacked_tokens:,}",
        ]
        for each in requests[:num_rows]
    ]
    num_more = len(requests) - num_rows
    if num_more > 0:
        rows.append([Text(f"and {num_more} more", style="dim"), *[""] * (len(headings) - 1)])
    return text_table(headings, rows)


def refusals_table(refusals: Sequence[pb.Refusal]) -> Table:
    headings = ("refused>", "tier", "tenant", "why~", "try again>")
    rows: list[list[Cell]] = []
    for each in refusals:
        retry_after_s = _optional(each, "retry_after_s")
        rows.append(
            [
                f"{format_age(each.age_s)} ago",
                _name(each.tier),
                Text(printable(each.tenant)),
                Text(printable(each.reason), overflow="ellipsis"),
                NOTHING if retry_after_s is None else f"in {format_age(retry_after_s)}",
            ]
        )
    return text_table(headings, rows)


def sparks(values: Iterable[float], top: float) -> str:
    """A character for each value; `top` is as high as they can be."""
    last = len(_SPARKS) - 1
    return "".join(
        _SPARKS[min(last, round(value / top * last)) if top > 0 else 0] for value in values
    )


def pool(used_bytes: int, total_bytes: int) -> Text:
    """A bar, and what it stands for."""
    share = used_bytes / total_bytes if total_bytes else 0.0
    amount = f" {used_bytes / _MIB:,.0f} of {total_bytes / _MIB:,.0f} MiB"
    return Text.assemble(bar(share, "magenta"), amount)


def bar(share: float, style: str) -> Text:
    num_full = min(_BAR_CELLS, round(share * _BAR_CELLS))
    return Text.assemble(("█" * num_full, style), ("░" * (_BAR_CELLS - num_full), "dim"))


def _name(text: str) -> Text:
    return Text(printable(text) or NOTHING, overflow="ellipsis")


def _optional(message: pb.TenantStatus | pb.Refusal, name: str) -> float | None:
    value: float = getattr(message, name)
    return value if message.HasField(name) else None
