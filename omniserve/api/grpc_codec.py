"""Between protobuf messages and the service's own words."""

from collections.abc import Iterable
from dataclasses import dataclass

from omniserve.access.caller import ANYONE, Caller
from omniserve.chat import ChatMessage
from omniserve.config_tier import TierConfig
from omniserve.decision import Decision
from omniserve.errors import InvalidRequest
from omniserve.generation import ChatPrompt, Choice, Chunk, GenerationRequest, Prompt, Usage
from omniserve.requests import SamplingParams, TokenLogprob
from omniserve.settings import ModelInfo
from omniserve.tokenization import ModelTokenizer
from omniserve.v1 import omniserve_pb2 as pb

_PLAIN_SAMPLING_FIELDS = (
    *("temperature", "top_p", "top_k", "min_p", "seed", "presence_penalty", "frequency_penalty"),
    *("repetition_penalty", "ignore_eos", "max_tokens", "logprobs"),
)


@dataclass(frozen=True, slots=True)
class CallDetails:
    """What comes with a message: metadata, whoever sent it, and for how long the client waits."""

    tier: str = ""
    tenant: str = ""
    left_s: float | None = None
    caller: Caller = ANYONE


def generation_request(
    request: pb.GenerateRequest, call: CallDetails, arrival_s: float
) -> GenerationRequest:
    """Tier and tenant in the message win over those in the metadata.

    Raises InvalidRequest, and PermissionDenied for a tenant that is not the caller.
    """
    left_s = call.left_s
    return GenerationRequest(
        model=request.model,
        prompts=(prompt_of(request),),
        sampling=_sampling(request.sampling),
        n=request.sampling.n if request.sampling.HasField("n") else 1,
        tier=request.tier or call.tier,
        request_id=request.request_id,
        arrival_s=arrival_s,
        caller=call.caller.claiming(request.tenant or call.tenant),
        deadline_ms=request.deadline_ms if request.HasField("deadline_ms") else None,
        call_deadline_s=None if left_s is None else arrival_s + left_s,
    )


def prompt_of(request: pb.GenerateRequest | pb.TokenizeRequest) -> Prompt:
    """The one prompt of a request; raises InvalidRequest where none is set."""
    kind = request.WhichOneof("prompt")
    if kind == "text":
        return request.text
    if kind == "chat":
        messages = request.chat.messages
        return ChatPrompt(tuple(ChatMessage(said.role, said.content) for said in messages))
    if isinstance(request, pb.GenerateRequest) and kind == "token_ids":
        return tuple(request.token_ids.ids)
    fields = ", ".join(field.name for field in request.DESCRIPTOR.oneofs_by_name["prompt"].fields)
    raise InvalidRequest(f"prompt: is missing; set one of {fields}", "prompt")


def _sampling(sampling: pb.Sampling) -> SamplingParams:
    given = {
        name: getattr(sampling, name) for name in _PLAIN_SAMPLING_FIELDS if sampling.HasField(name)
    }
    return SamplingParams(
        **given,
        logit_bias=dict(sampling.logit_bias),
        stop=tuple(sampling.stop),
        stop_token_ids=tuple(sampling.stop_token_ids),
    )


def chunk_message(chunk: Chunk, request_id: str, tokenizer: ModelTokenizer) -> pb.GenerateChunk:
    message = pb.GenerateChunk(
        text=chunk.text,
        token_ids=chunk.token_ids,
        finish_reason=chunk.finish_reason or "",
        index=chunk.index,
        request_id=request_id,
    )
    if chunk.logprobs:
        message.logprobs.extend(_logprobs(chunk.logprobs, tokenizer))
    if chunk.stop_reason is not None:
        message.stop_reason.CopyFrom(_stop_reason(chunk.stop_reason))
    if chunk.usage is not None:
        message.usage.CopyFrom(usage_message(chunk.usage))
        message.tier = chunk.tier
    return message


def choice_message(choice: Choice, tokenizer: ModelTokenizer) -> pb.Choice:
    return pb.Choice(
        index=choice.index,
        text=choice.text,
        token_ids=choice.token_ids,
        logprobs=_logprobs(choice.logprobs, tokenizer),
        finish_reason=choice.finish_reason or "",
        stop_reason=None if choice.stop_reason is None else _stop_reason(choice.stop_reason),
    )


def usage_message(usage: Usage) -> pb.Usage:
    return pb.Usage(
        prompt_tokens=usage.num_prompt_tokens,
        cached_tokens=usage.num_cached_tokens,
        output_tokens=usage.num_output_tokens,
        piggybacked_tokens=usage.num_piggybacked_tokens,
    )


def _stop_reason(reason: str | int) -> pb.StopReason:
    if isinstance(reason, str):
        return pb.StopReason(text=reason)
    return pb.StopReason(token_id=reason)


def _logprobs(
    entries: Iterable[TokenLogprob], tokenizer: ModelTokenizer
) -> Iterable[pb.TokenLogprob]:
    for entry in entries:
        yield pb.TokenLogprob(
            token_id=entry.token_id,
            token=tokenizer.token_bytes(entry.token_id),
            logprob=entry.logprob,
            top=[
                pb.TokenLogprob.Alternative(
                    token_id=token_id, token=tokenizer.token_bytes(token_id), logprob=logprob
                )
                for token_id, logprob in entry.top
            ],
        )


def model_message(
    info: ModelInfo, aliases: Iterable[str], default_tier: str, state: str = "serving"
) -> pb.Model:
    return pb.Model(
        name=info.name,
        architecture=info.architecture,
        dtype=info.dtype,
        num_parameters=info.num_parameters,
        vocab_size=info.vocab_size,
        max_model_len=info.max_model_len,
        kv_bytes_per_token=info.kv_bytes_per_token,
        num_layers=info.num_layers,
        device_kv_bytes=info.device_kv_bytes,
        default_tier=default_tier,
        aliases=aliases,
        state=state,
    )


def tier_message(tier: TierConfig) -> pb.Tier:
    return pb.Tier(
        name=tier.name,
        service_class=tier.service_class,
        ttft_ms=tier.ttft_ms,
        tpot_ms=tier.tpot_ms,
        percentile=tier.percentile,
        admission=tier.admission and tier.service_class == "latency_sensitive",
        fallback=tier.fallback or "",
        max_waiting=tier.max_waiting,
        demote_after_tokens=tier.demote_after_tokens,
        sleep_after_s=tier.sleep_after_s,
    )


def explanation_message(timeline: tuple[Decision, ...]) -> pb.ExplainResponse:
    """With times since the first entry; there is at least one."""
    first_s = timeline[0].at_s
    return pb.ExplainResponse(
        timeline=[
            pb.TimelineEntry(
                at_s=entry.at_s - first_s,
                last_s=entry.last_s - first_s,
                times=entry.times,
                sequence=entry.sequence,
                event=entry.event,
                reason=entry.reason,
                detail=entry.detail,
            )
            for entry in timeline
        ]
    )
