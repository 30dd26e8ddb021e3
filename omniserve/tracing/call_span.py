"""What a span tells of a call: names and values, without OpenTelemetry. Never what was said."""

from collections.abc import Iterator, Mapping

from omniserve.calls.call_record import CallRecord
from omniserve.calls.request_summary import RequestSummary
from omniserve.decision import WHOLE_REQUEST, Decision

Attribute = str | int | float | bool

_SERVER_FAULTS = frozenset({"error", "unavailable", "late"})
"""Outcomes that are a server's failure by the conventions of tracing; a refusal is none."""


def attributes_of(call: CallRecord) -> dict[str, Attribute]:
    """By the semantic conventions where they have a name for it; what is unknown is left out."""
    found: dict[str, Attribute | None] = {
        "omniserve.request_id": call.request_id,
        "omniserve.tenant": call.tenant,
        "network.peer.address": call.peer,
        **_protocol_attributes(call),
        **({} if call.request is None else _request_attributes(call.request)),
    }
    return {name: value for name, value in found.items() if value is not None and value != ""}


def _protocol_attributes(call: CallRecord) -> dict[str, Attribute]:
    if call.protocol == "grpc":
        return {
            "rpc.system.name": "grpc",
            "rpc.method": call.method,
            "rpc.response.status_code": call.status,
        }
    method, _, route = call.method.partition(" ")
    return {
        "http.request.method": method,
        "http.route": route,
        "http.response.status_code": int(call.status),
    }


def _request_attributes(request: RequestSummary) -> dict[str, Attribute | None]:
    usage = request.usage
    return {
        "gen_ai.request.model": request.model,
        "gen_ai.usage.input_tokens": usage.num_prompt_tokens,
        "gen_ai.usage.output_tokens": usage.num_output_tokens,
        "omniserve.cached_tokens": usage.num_cached_tokens,
        "omniserve.piggybacked_tokens": usage.num_piggybacked_tokens,
        "omniserve.tier": request.tier,
        "omniserve.fallback": request.fallback,
        "omniserve.outcome": request.outcome,
        "omniserve.ttft_ms": _milliseconds(request.ttft_s),
        "omniserve.tpot_ms": _milliseconds(request.tpot_s),
        "omniserve.e2e_ms": _milliseconds(request.e2e_s),
    }


def failure_of(call: CallRecord) -> str | None:
    """The kind of a failure that is the server's; None where there was none."""
    if call.request is not None:
        is_failed = call.request.outcome in _SERVER_FAULTS
    else:
        is_failed = call.status == "INTERNAL" or call.status.startswith("5")
    if not is_failed:
        return None
    return call.status if call.error is None else type(call.error).__name__


def events_of(
    decisions: tuple[Decision, ...],
) -> Iterator[tuple[float, str, Mapping[str, Attribute]]]:
    """Time, name and attributes of each entry of a request's timeline."""
    for each in decisions:
        found: dict[str, Attribute] = {}
        if each.reason:
            found["reason"] = each.reason
        # The last one's is what the client was told, which may repeat what it had sent.
        if each.detail and each.event != "ended":
            found["detail"] = each.detail
        if each.sequence != WHOLE_REQUEST:
            found["sequence"] = each.sequence
        if each.times > 1:
            found["times"] = each.times
        if each.last_s > each.at_s:
            found["for_ms"] = round((each.last_s - each.at_s) * 1e3, 3)
        yield each.at_s, each.event, found


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 3)
