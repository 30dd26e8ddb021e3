"""The sequences that an engine works on, and what comes of the tokens that it samples for them."""

from collections.abc import Collection, Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

from omniserve.engine.sampler import NO_TOKEN, THROWN_AWAY, Sampled, SamplingRow
from omniserve.engine.sequence import FAILED, Progress, Sequence
from omniserve.requests import RequestOutput


@dataclass(frozen=True, slots=True)
class SampledRow:
    """A row of a step that goes to the output head."""

    request_id: str
    position: int
    """Of the token that is sampled from it."""
    from_lane: bool
    """Whether its attention ran on the host."""


@dataclass(frozen=True, slots=True)
class Advance:
    """A sampled token and what it did to its sequence."""

    row: int
    token_id: int
    progress: Progress
    from_lane: bool


class Sequences:
    """By request id; requests that have ended are not there any more."""

    def __init__(self) -> None:
        self._by_id: dict[str, Sequence] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(tuple(self._by_id.values()))

    def add(self, sequence: Sequence) -> None:
        self._by_id[sequence.request.request_id] = sequence

    def remove(self, request_id: str) -> bool:
        """False if it is not here."""
        return self._by_id.pop(request_id, None) is not None

    def sampling_rows(self, rows: SequenceOf[SampledRow]) -> list[SamplingRow]:
        """How each row is to be sampled."""
        # A request may have been aborted while its step ran; its row is sampled and thrown away.
        return [
            THROWN_AWAY
            if sequence is None
            else sequence.sampling_row(row.position - sequence.state.num_prompt_tokens)
            for row, sequence in ((row, self._by_id.get(row.request_id)) for row in rows)
        ]

    def accept(
        self, rows: SequenceOf[SampledRow], token_ids: SequenceOf[int]
    ) -> dict[str, Advance]:
        """Gives each sequence its token; by request."""
        advances = {}
        for index, (row, token_id) in enumerate(zip(rows, token_ids, strict=True)):
            sequence = self._by_id.get(row.request_id)
            # A plan made ahead may hold one more row of a request that has ended meanwhile.
            if sequence is not None and (sequence.is_offloaded or not row.from_lane):
                progress = FAILED if token_id == NO_TOKEN else sequence.accept(token_id)
                sequence.num_piggybacked_tokens += row.from_lane
                advances[row.request_id] = Advance(index, token_id, progress, row.from_lane)
        return advances

    def outputs(
        self,
        advances: dict[str, Advance],
        sampled: Sampled | None,
        finished_ids: Collection[str],
    ) -> list[RequestOutput]:
        """What clients are told; `finished_ids` have ended with these tokens, and are forgotten."""
        outputs = []
        for request_id, advance in advances.items():
            sequence = self._by_id[request_id]
            if advance.progress is FAILED:
                outputs.append(sequence.failure())
                continue
            logprobs = sampled.logprobs.get(advance.row) if sampled is not None else None
            outputs.append(
                sequence.output(
                    advance.token_id,
                    advance.progress,
                    None if logprobs is None else logprobs.to_host(advance.token_id),
                    at_limit=request_id in finished_ids,
                )
            )
        for request_id in finished_ids:
            self._by_id.pop(request_id, None)
        return outputs
