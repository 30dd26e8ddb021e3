"""What all foreign formats have in common: what their token counts mean."""

from omniserve.bench.trace.trace import TraceRequest


def recorded(
    arrival_s: float,
    prompt_tokens: int,
    output_tokens: int,
    *,
    session: str = "",
    prefix_hashes: tuple[int, ...] = (),
    tenant: str = "",
) -> TraceRequest:
    """A request that brought no token failed. No prompt is empty: a request with one cannot be
    replayed, so it gets one token."""
    return TraceRequest(
        arrival_s,
        max(1, prompt_tokens),
        output_tokens,
        session=session,
        prefix_hashes=prefix_hashes,
        tenant=tenant,
        failed=output_tokens == 0,
    )
