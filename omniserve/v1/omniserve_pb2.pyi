from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GenerateRequest(_message.Message):
    __slots__ = ("model", "text", "token_ids", "chat", "sampling", "tier", "request_id", "deadline_ms", "tenant")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    CHAT_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    model: str
    text: str
    token_ids: TokenIds
    chat: Chat
    sampling: Sampling
    tier: str
    request_id: str
    deadline_ms: int
    tenant: str
    def __init__(self, model: _Optional[str] = ..., text: _Optional[str] = ..., token_ids: _Optional[_Union[TokenIds, _Mapping]] = ..., chat: _Optional[_Union[Chat, _Mapping]] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., tier: _Optional[str] = ..., request_id: _Optional[str] = ..., deadline_ms: _Optional[int] = ..., tenant: _Optional[str] = ...) -> None: ...

class TokenIds(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Iterable[int]] = ...) -> None: ...

class Chat(_message.Message):
    __slots__ = ("messages",)
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[ChatMessage]
    def __init__(self, messages: _Optional[_Iterable[_Union[ChatMessage, _Mapping]]] = ...) -> None: ...

class ChatMessage(_message.Message):
    __slots__ = ("role", "content")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    role: str
    content: str
    def __init__(self, role: _Optional[str] = ..., content: _Optional[str] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("temperature", "top_p", "top_k", "min_p", "seed", "presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias", "stop", "stop_token_ids", "ignore_eos", "max_tokens", "logprobs", "n")
    class LogitBiasEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: float
        def __init__(self, key: _Optional[int] = ..., value: _Optional[float] = ...) -> None: ...
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    logit_bias: _containers.ScalarMap[int, float]
    stop: _containers.RepeatedScalarFieldContainer[str]
    stop_token_ids: _containers.RepeatedScalarFieldContainer[int]
    ignore_eos: bool
    max_tokens: int
    logprobs: int
    n: int
    def __init__(self, temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., top_k: _Optional[int] = ..., min_p: _Optional[float] = ..., seed: _Optional[int] = ..., presence_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., logit_bias: _Optional[_Mapping[int, float]] = ..., stop: _Optional[_Iterable[str]] = ..., stop_token_ids: _Optional[_Iterable[int]] = ..., ignore_eos: _Optional[bool] = ..., max_tokens: _Optional[int] = ..., logprobs: _Optional[int] = ..., n: _Optional[int] = ...) -> None: ...

class GenerateChunk(_message.Message):
    __slots__ = ("text", "token_ids", "logprobs", "finish_reason", "usage", "index", "request_id", "stop_reason", "tier")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    STOP_REASON_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    text: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedCompositeFieldContainer[TokenLogprob]
    finish_reason: str
    usage: Usage
    index: int
    request_id: str
    stop_reason: StopReason
    tier: str
    def __init__(self, text: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[_Union[TokenLogprob, _Mapping]]] = ..., finish_reason: _Optional[str] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., index: _Optional[int] = ..., request_id: _Optional[str] = ..., stop_reason: _Optional[_Union[StopReason, _Mapping]] = ..., tier: _Optional[str] = ...) -> None: ...

class GenerateResult(_message.Message):
    __slots__ = ("choices", "usage", "request_id", "model", "tier")
    CHOICES_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    choices: _containers.RepeatedCompositeFieldContainer[Choice]
    usage: Usage
    request_id: str
    model: str
    tier: str
    def __init__(self, choices: _Optional[_Iterable[_Union[Choice, _Mapping]]] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., request_id: _Optional[str] = ..., model: _Optional[str] = ..., tier: _Optional[str] = ...) -> None: ...

class Choice(_message.Message):
    __slots__ = ("index", "text", "token_ids", "logprobs", "finish_reason", "stop_reason")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    STOP_REASON_FIELD_NUMBER: _ClassVar[int]
    index: int
    text: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedCompositeFieldContainer[TokenLogprob]
    finish_reason: str
    stop_reason: StopReason
    def __init__(self, index: _Optional[int] = ..., text: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[_Union[TokenLogprob, _Mapping]]] = ..., finish_reason: _Optional[str] = ..., stop_reason: _Optional[_Union[StopReason, _Mapping]] = ...) -> None: ...

class StopReason(_message.Message):
    __slots__ = ("text", "token_id")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    text: str
    token_id: int
    def __init__(self, text: _Optional[str] = ..., token_id: _Optional[int] = ...) -> None: ...

class TokenLogprob(_message.Message):
    __slots__ = ("token_id", "token", "logprob", "top")
    class Alternative(_message.Message):
        __slots__ = ("token_id", "token", "logprob")
        TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
        TOKEN_FIELD_NUMBER: _ClassVar[int]
        LOGPROB_FIELD_NUMBER: _ClassVar[int]
        token_id: int
        token: bytes
        logprob: float
        def __init__(self, token_id: _Optional[int] = ..., token: _Optional[bytes] = ..., logprob: _Optional[float] = ...) -> None: ...
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    token: bytes
    logprob: float
    top: _containers.RepeatedCompositeFieldContainer[TokenLogprob.Alternative]
    def __init__(self, token_id: _Optional[int] = ..., token: _Optional[bytes] = ..., logprob: _Optional[float] = ..., top: _Optional[_Iterable[_Union[TokenLogprob.Alternative, _Mapping]]] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("prompt_tokens", "cached_tokens", "output_tokens", "piggybacked_tokens")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PIGGYBACKED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    piggybacked_tokens: int
    def __init__(self, prompt_tokens: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ..., piggybacked_tokens: _Optional[int] = ...) -> None: ...

class TokenizeRequest(_message.Message):
    __slots__ = ("model", "text", "chat")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    CHAT_FIELD_NUMBER: _ClassVar[int]
    model: str
    text: str
    chat: Chat
    def __init__(self, model: _Optional[str] = ..., text: _Optional[str] = ..., chat: _Optional[_Union[Chat, _Mapping]] = ...) -> None: ...

class TokenizeResponse(_message.Message):
    __slots__ = ("token_ids", "max_model_len")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_LEN_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    max_model_len: int
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., max_model_len: _Optional[int] = ...) -> None: ...

class DetokenizeRequest(_message.Message):
    __slots__ = ("model", "token_ids", "keep_special_tokens")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    KEEP_SPECIAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    model: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    keep_special_tokens: bool
    def __init__(self, model: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., keep_special_tokens: _Optional[bool] = ...) -> None: ...

class DetokenizeResponse(_message.Message):
    __slots__ = ("text",)
    TEXT_FIELD_NUMBER: _ClassVar[int]
    text: str
    def __init__(self, text: _Optional[str] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models", "tiers")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    TIERS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    tiers: _containers.RepeatedCompositeFieldContainer[Tier]
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ..., tiers: _Optional[_Iterable[_Union[Tier, _Mapping]]] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "architecture", "dtype", "num_parameters", "vocab_size", "max_model_len", "kv_bytes_per_token", "device_kv_bytes", "default_tier", "num_layers", "aliases", "state")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    NUM_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_LEN_FIELD_NUMBER: _ClassVar[int]
    KV_BYTES_PER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    DEVICE_KV_BYTES_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_TIER_FIELD_NUMBER: _ClassVar[int]
    NUM_LAYERS_FIELD_NUMBER: _ClassVar[int]
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    name: str
    architecture: str
    dtype: str
    num_parameters: int
    vocab_size: int
    max_model_len: int
    kv_bytes_per_token: int
    device_kv_bytes: int
    default_tier: str
    num_layers: int
    aliases: _containers.RepeatedScalarFieldContainer[str]
    state: str
    def __init__(self, name: _Optional[str] = ..., architecture: _Optional[str] = ..., dtype: _Optional[str] = ..., num_parameters: _Optional[int] = ..., vocab_size: _Optional[int] = ..., max_model_len: _Optional[int] = ..., kv_bytes_per_token: _Optional[int] = ..., device_kv_bytes: _Optional[int] = ..., default_tier: _Optional[str] = ..., num_layers: _Optional[int] = ..., aliases: _Optional[_Iterable[str]] = ..., state: _Optional[str] = ...) -> None: ...

class Tier(_message.Message):
    __slots__ = ("name", "service_class", "ttft_ms", "tpot_ms", "percentile", "admission", "fallback", "max_waiting", "demote_after_tokens", "sleep_after_s")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SERVICE_CLASS_FIELD_NUMBER: _ClassVar[int]
    TTFT_MS_FIELD_NUMBER: _ClassVar[int]
    TPOT_MS_FIELD_NUMBER: _ClassVar[int]
    PERCENTILE_FIELD_NUMBER: _ClassVar[int]
    ADMISSION_FIELD_NUMBER: _ClassVar[int]
    FALLBACK_FIELD_NUMBER: _ClassVar[int]
    MAX_WAITING_FIELD_NUMBER: _ClassVar[int]
    DEMOTE_AFTER_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SLEEP_AFTER_S_FIELD_NUMBER: _ClassVar[int]
    name: str
    service_class: str
    ttft_ms: float
    tpot_ms: float
    percentile: float
    admission: bool
    fallback: str
    max_waiting: int
    demote_after_tokens: int
    sleep_after_s: float
    def __init__(self, name: _Optional[str] = ..., service_class: _Optional[str] = ..., ttft_ms: _Optional[float] = ..., tpot_ms: _Optional[float] = ..., percentile: _Optional[float] = ..., admission: _Optional[bool] = ..., fallback: _Optional[str] = ..., max_waiting: _Optional[int] = ..., demote_after_tokens: _Optional[int] = ..., sleep_after_s: _Optional[float] = ...) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchStatusRequest(_message.Message):
    __slots__ = ("interval_ms",)
    INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    interval_ms: int
    def __init__(self, interval_ms: _Optional[int] = ...) -> None: ...

class Status(_message.Message):
    __slots__ = ("version", "state", "device", "uptime_s", "num_engine_restarts", "models", "tiers", "host", "requests", "refusals", "tenants", "reload_error")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    UPTIME_S_FIELD_NUMBER: _ClassVar[int]
    NUM_ENGINE_RESTARTS_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    TIERS_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    REFUSALS_FIELD_NUMBER: _ClassVar[int]
    TENANTS_FIELD_NUMBER: _ClassVar[int]
    RELOAD_ERROR_FIELD_NUMBER: _ClassVar[int]
    version: str
    state: str
    device: str
    uptime_s: float
    num_engine_restarts: int
    models: _containers.RepeatedCompositeFieldContainer[ModelStatus]
    tiers: _containers.RepeatedCompositeFieldContainer[TierStatus]
    host: HostStatus
    requests: _containers.RepeatedCompositeFieldContainer[RequestStatus]
    refusals: _containers.RepeatedCompositeFieldContainer[Refusal]
    tenants: _containers.RepeatedCompositeFieldContainer[TenantStatus]
    reload_error: str
    def __init__(self, version: _Optional[str] = ..., state: _Optional[str] = ..., device: _Optional[str] = ..., uptime_s: _Optional[float] = ..., num_engine_restarts: _Optional[int] = ..., models: _Optional[_Iterable[_Union[ModelStatus, _Mapping]]] = ..., tiers: _Optional[_Iterable[_Union[TierStatus, _Mapping]]] = ..., host: _Optional[_Union[HostStatus, _Mapping]] = ..., requests: _Optional[_Iterable[_Union[RequestStatus, _Mapping]]] = ..., refusals: _Optional[_Iterable[_Union[Refusal, _Mapping]]] = ..., tenants: _Optional[_Iterable[_Union[TenantStatus, _Mapping]]] = ..., reload_error: _Optional[str] = ...) -> None: ...

class TierStatus(_message.Message):
    __slots__ = ("model", "tier", "service_class", "ttft_ms", "tpot_ms", "percentile", "ttft_attainment", "tpot_attainment", "num_running", "num_waiting", "output_tokens", "num_refused", "output_tokens_per_s")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    SERVICE_CLASS_FIELD_NUMBER: _ClassVar[int]
    TTFT_MS_FIELD_NUMBER: _ClassVar[int]
    TPOT_MS_FIELD_NUMBER: _ClassVar[int]
    PERCENTILE_FIELD_NUMBER: _ClassVar[int]
    TTFT_ATTAINMENT_FIELD_NUMBER: _ClassVar[int]
    TPOT_ATTAINMENT_FIELD_NUMBER: _ClassVar[int]
    NUM_RUNNING_FIELD_NUMBER: _ClassVar[int]
    NUM_WAITING_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_REFUSED_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    model: str
    tier: str
    service_class: str
    ttft_ms: float
    tpot_ms: float
    percentile: float
    ttft_attainment: float
    tpot_attainment: float
    num_running: int
    num_waiting: int
    output_tokens: int
    num_refused: int
    output_tokens_per_s: float
    def __init__(self, model: _Optional[str] = ..., tier: _Optional[str] = ..., service_class: _Optional[str] = ..., ttft_ms: _Optional[float] = ..., tpot_ms: _Optional[float] = ..., percentile: _Optional[float] = ..., ttft_attainment: _Optional[float] = ..., tpot_attainment: _Optional[float] = ..., num_running: _Optional[int] = ..., num_waiting: _Optional[int] = ..., output_tokens: _Optional[int] = ..., num_refused: _Optional[int] = ..., output_tokens_per_s: _Optional[float] = ...) -> None: ...

class HostStatus(_message.Message):
    __slots__ = ("num_cores", "num_host_cores", "has_host_cores", "busy_share", "memory_used_bytes", "memory_total_bytes")
    NUM_CORES_FIELD_NUMBER: _ClassVar[int]
    NUM_HOST_CORES_FIELD_NUMBER: _ClassVar[int]
    HAS_HOST_CORES_FIELD_NUMBER: _ClassVar[int]
    BUSY_SHARE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    num_cores: int
    num_host_cores: int
    has_host_cores: bool
    busy_share: float
    memory_used_bytes: int
    memory_total_bytes: int
    def __init__(self, num_cores: _Optional[int] = ..., num_host_cores: _Optional[int] = ..., has_host_cores: _Optional[bool] = ..., busy_share: _Optional[float] = ..., memory_used_bytes: _Optional[int] = ..., memory_total_bytes: _Optional[int] = ...) -> None: ...

class RequestStatus(_message.Message):
    __slots__ = ("request_id", "model", "tier", "tenant", "phase", "age_s", "prompt_tokens", "output_tokens", "piggybacked_tokens")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    AGE_S_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PIGGYBACKED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model: str
    tier: str
    tenant: str
    phase: str
    age_s: float
    prompt_tokens: int
    output_tokens: int
    piggybacked_tokens: int
    def __init__(self, request_id: _Optional[str] = ..., model: _Optional[str] = ..., tier: _Optional[str] = ..., tenant: _Optional[str] = ..., phase: _Optional[str] = ..., age_s: _Optional[float] = ..., prompt_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ..., piggybacked_tokens: _Optional[int] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("request_id", "model", "tier", "tenant", "age_s", "reason", "retry_after_s")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    AGE_S_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_S_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model: str
    tier: str
    tenant: str
    age_s: float
    reason: str
    retry_after_s: float
    def __init__(self, request_id: _Optional[str] = ..., model: _Optional[str] = ..., tier: _Optional[str] = ..., tenant: _Optional[str] = ..., age_s: _Optional[float] = ..., reason: _Optional[str] = ..., retry_after_s: _Optional[float] = ...) -> None: ...

class TenantStatus(_message.Message):
    __slots__ = ("tenant", "num_concurrent", "num_queued", "input_tokens_share", "output_tokens_share", "num_refused")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    NUM_CONCURRENT_FIELD_NUMBER: _ClassVar[int]
    NUM_QUEUED_FIELD_NUMBER: _ClassVar[int]
    INPUT_TOKENS_SHARE_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_SHARE_FIELD_NUMBER: _ClassVar[int]
    NUM_REFUSED_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    num_concurrent: int
    num_queued: int
    input_tokens_share: float
    output_tokens_share: float
    num_refused: int
    def __init__(self, tenant: _Optional[str] = ..., num_concurrent: _Optional[int] = ..., num_queued: _Optional[int] = ..., input_tokens_share: _Optional[float] = ..., output_tokens_share: _Optional[float] = ..., num_refused: _Optional[int] = ...) -> None: ...

class ModelStatus(_message.Message):
    __slots__ = ("name", "running", "waiting", "kv_used_bytes", "kv_total_bytes", "prompt_tokens", "cached_tokens", "output_tokens", "num_steps", "num_preemptions", "step_ms", "piggyback", "state", "state_age_s", "origin", "pinned", "progress", "error", "aliases", "weights", "kv_share", "joint_layers")
    class RunningEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class WaitingEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    KV_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    KV_TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    NUM_PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    STEP_MS_FIELD_NUMBER: _ClassVar[int]
    PIGGYBACK_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    STATE_AGE_S_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    KV_SHARE_FIELD_NUMBER: _ClassVar[int]
    JOINT_LAYERS_FIELD_NUMBER: _ClassVar[int]
    name: str
    running: _containers.ScalarMap[str, int]
    waiting: _containers.ScalarMap[str, int]
    kv_used_bytes: int
    kv_total_bytes: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    num_steps: int
    num_preemptions: int
    step_ms: float
    piggyback: PiggybackStatus
    state: str
    state_age_s: float
    origin: str
    pinned: bool
    progress: ModelProgress
    error: str
    aliases: _containers.RepeatedScalarFieldContainer[str]
    weights: WeightStatus
    kv_share: KvShareStatus
    joint_layers: JointLayersStatus
    def __init__(self, name: _Optional[str] = ..., running: _Optional[_Mapping[str, int]] = ..., waiting: _Optional[_Mapping[str, int]] = ..., kv_used_bytes: _Optional[int] = ..., kv_total_bytes: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ..., num_steps: _Optional[int] = ..., num_preemptions: _Optional[int] = ..., step_ms: _Optional[float] = ..., piggyback: _Optional[_Union[PiggybackStatus, _Mapping]] = ..., state: _Optional[str] = ..., state_age_s: _Optional[float] = ..., origin: _Optional[str] = ..., pinned: _Optional[bool] = ..., progress: _Optional[_Union[ModelProgress, _Mapping]] = ..., error: _Optional[str] = ..., aliases: _Optional[_Iterable[str]] = ..., weights: _Optional[_Union[WeightStatus, _Mapping]] = ..., kv_share: _Optional[_Union[KvShareStatus, _Mapping]] = ..., joint_layers: _Optional[_Union[JointLayersStatus, _Mapping]] = ...) -> None: ...

class WeightStatus(_message.Message):
    __slots__ = ("own_bytes", "shared_bytes", "saved_bytes", "shared_with")
    class SharedWithEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    OWN_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHARED_BYTES_FIELD_NUMBER: _ClassVar[int]
    SAVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHARED_WITH_FIELD_NUMBER: _ClassVar[int]
    own_bytes: int
    shared_bytes: int
    saved_bytes: int
    shared_with: _containers.ScalarMap[str, int]
    def __init__(self, own_bytes: _Optional[int] = ..., shared_bytes: _Optional[int] = ..., saved_bytes: _Optional[int] = ..., shared_with: _Optional[_Mapping[str, int]] = ...) -> None: ...

class JointLayersStatus(_message.Message):
    __slots__ = ("num_layers", "num_rows", "share")
    NUM_LAYERS_FIELD_NUMBER: _ClassVar[int]
    NUM_ROWS_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    num_layers: int
    num_rows: int
    share: float
    def __init__(self, num_layers: _Optional[int] = ..., num_rows: _Optional[int] = ..., share: _Optional[float] = ...) -> None: ...

class ModelProgress(_message.Message):
    __slots__ = ("phase", "done_bytes", "total_bytes")
    PHASE_FIELD_NUMBER: _ClassVar[int]
    DONE_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    phase: str
    done_bytes: int
    total_bytes: int
    def __init__(self, phase: _Optional[str] = ..., done_bytes: _Optional[int] = ..., total_bytes: _Optional[int] = ...) -> None: ...

class KvShareStatus(_message.Message):
    __slots__ = ("granted_bytes", "cached_bytes", "floor_bytes", "num_moves_in", "num_moves_out", "in_bytes", "out_bytes", "moves_per_s")
    GRANTED_BYTES_FIELD_NUMBER: _ClassVar[int]
    CACHED_BYTES_FIELD_NUMBER: _ClassVar[int]
    FLOOR_BYTES_FIELD_NUMBER: _ClassVar[int]
    NUM_MOVES_IN_FIELD_NUMBER: _ClassVar[int]
    NUM_MOVES_OUT_FIELD_NUMBER: _ClassVar[int]
    IN_BYTES_FIELD_NUMBER: _ClassVar[int]
    OUT_BYTES_FIELD_NUMBER: _ClassVar[int]
    MOVES_PER_S_FIELD_NUMBER: _ClassVar[int]
    granted_bytes: int
    cached_bytes: int
    floor_bytes: int
    num_moves_in: int
    num_moves_out: int
    in_bytes: int
    out_bytes: int
    moves_per_s: float
    def __init__(self, granted_bytes: _Optional[int] = ..., cached_bytes: _Optional[int] = ..., floor_bytes: _Optional[int] = ..., num_moves_in: _Optional[int] = ..., num_moves_out: _Optional[int] = ..., in_bytes: _Optional[int] = ..., out_bytes: _Optional[int] = ..., moves_per_s: _Optional[float] = ...) -> None: ...

class PiggybackStatus(_message.Message):
    __slots__ = ("active", "host_state", "num_offloaded", "kv_used_bytes", "kv_total_bytes", "num_rows_joined", "num_tokens", "rows_on_host", "rows_ready", "num_swaps_out", "num_swaps_in", "kv_share")
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    HOST_STATE_FIELD_NUMBER: _ClassVar[int]
    NUM_OFFLOADED_FIELD_NUMBER: _ClassVar[int]
    KV_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    KV_TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    NUM_ROWS_JOINED_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ROWS_ON_HOST_FIELD_NUMBER: _ClassVar[int]
    ROWS_READY_FIELD_NUMBER: _ClassVar[int]
    NUM_SWAPS_OUT_FIELD_NUMBER: _ClassVar[int]
    NUM_SWAPS_IN_FIELD_NUMBER: _ClassVar[int]
    KV_SHARE_FIELD_NUMBER: _ClassVar[int]
    active: bool
    host_state: str
    num_offloaded: int
    kv_used_bytes: int
    kv_total_bytes: int
    num_rows_joined: int
    num_tokens: int
    rows_on_host: _containers.RepeatedScalarFieldContainer[int]
    rows_ready: _containers.RepeatedScalarFieldContainer[int]
    num_swaps_out: int
    num_swaps_in: int
    kv_share: KvShareStatus
    def __init__(self, active: _Optional[bool] = ..., host_state: _Optional[str] = ..., num_offloaded: _Optional[int] = ..., kv_used_bytes: _Optional[int] = ..., kv_total_bytes: _Optional[int] = ..., num_rows_joined: _Optional[int] = ..., num_tokens: _Optional[int] = ..., rows_on_host: _Optional[_Iterable[int]] = ..., rows_ready: _Optional[_Iterable[int]] = ..., num_swaps_out: _Optional[int] = ..., num_swaps_in: _Optional[int] = ..., kv_share: _Optional[_Union[KvShareStatus, _Mapping]] = ...) -> None: ...

class ReloadTiersRequest(_message.Message):
    __slots__ = ("dry_run",)
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    dry_run: bool
    def __init__(self, dry_run: _Optional[bool] = ...) -> None: ...

class ReloadTiersResponse(_message.Message):
    __slots__ = ("accepted", "changes", "needs_restart", "error", "forecast", "num_arrivals", "arrivals_s", "no_forecast", "forecast_notes", "notes")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    NEEDS_RESTART_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    FORECAST_FIELD_NUMBER: _ClassVar[int]
    NUM_ARRIVALS_FIELD_NUMBER: _ClassVar[int]
    ARRIVALS_S_FIELD_NUMBER: _ClassVar[int]
    NO_FORECAST_FIELD_NUMBER: _ClassVar[int]
    FORECAST_NOTES_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    accepted: bool
    changes: _containers.RepeatedCompositeFieldContainer[TierChange]
    needs_restart: _containers.RepeatedScalarFieldContainer[str]
    error: str
    forecast: _containers.RepeatedCompositeFieldContainer[TierForecast]
    num_arrivals: int
    arrivals_s: float
    no_forecast: str
    forecast_notes: _containers.RepeatedScalarFieldContainer[str]
    notes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, accepted: _Optional[bool] = ..., changes: _Optional[_Iterable[_Union[TierChange, _Mapping]]] = ..., needs_restart: _Optional[_Iterable[str]] = ..., error: _Optional[str] = ..., forecast: _Optional[_Iterable[_Union[TierForecast, _Mapping]]] = ..., num_arrivals: _Optional[int] = ..., arrivals_s: _Optional[float] = ..., no_forecast: _Optional[str] = ..., forecast_notes: _Optional[_Iterable[str]] = ..., notes: _Optional[_Iterable[str]] = ...) -> None: ...

class TierChange(_message.Message):
    __slots__ = ("tier", "key", "before", "after")
    TIER_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    tier: str
    key: str
    before: str
    after: str
    def __init__(self, tier: _Optional[str] = ..., key: _Optional[str] = ..., before: _Optional[str] = ..., after: _Optional[str] = ...) -> None: ...

class TierForecast(_message.Message):
    __slots__ = ("tier", "before", "after")
    TIER_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    tier: str
    before: TierOutcome
    after: TierOutcome
    def __init__(self, tier: _Optional[str] = ..., before: _Optional[_Union[TierOutcome, _Mapping]] = ..., after: _Optional[_Union[TierOutcome, _Mapping]] = ...) -> None: ...

class TierOutcome(_message.Message):
    __slots__ = ("num_requests", "num_refused", "ttft_attainment", "tpot_attainment", "tokens_per_s")
    NUM_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    NUM_REFUSED_FIELD_NUMBER: _ClassVar[int]
    TTFT_ATTAINMENT_FIELD_NUMBER: _ClassVar[int]
    TPOT_ATTAINMENT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    num_requests: int
    num_refused: int
    ttft_attainment: float
    tpot_attainment: float
    tokens_per_s: float
    def __init__(self, num_requests: _Optional[int] = ..., num_refused: _Optional[int] = ..., ttft_attainment: _Optional[float] = ..., tpot_attainment: _Optional[float] = ..., tokens_per_s: _Optional[float] = ...) -> None: ...

class LoadModelRequest(_message.Message):
    __slots__ = ("name", "entry")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    name: str
    entry: str
    def __init__(self, name: _Optional[str] = ..., entry: _Optional[str] = ...) -> None: ...

class ModelEvent(_message.Message):
    __slots__ = ("progress", "loaded")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    LOADED_FIELD_NUMBER: _ClassVar[int]
    progress: ModelProgress
    loaded: Model
    def __init__(self, progress: _Optional[_Union[ModelProgress, _Mapping]] = ..., loaded: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...

class UnloadModelRequest(_message.Message):
    __slots__ = ("name", "drain_s", "force")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DRAIN_S_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    name: str
    drain_s: float
    force: bool
    def __init__(self, name: _Optional[str] = ..., drain_s: _Optional[float] = ..., force: _Optional[bool] = ...) -> None: ...

class UnloadModelResponse(_message.Message):
    __slots__ = ("num_finished", "num_ended", "state")
    NUM_FINISHED_FIELD_NUMBER: _ClassVar[int]
    NUM_ENDED_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    num_finished: int
    num_ended: int
    state: str
    def __init__(self, num_finished: _Optional[int] = ..., num_ended: _Optional[int] = ..., state: _Optional[str] = ...) -> None: ...

class PinModelRequest(_message.Message):
    __slots__ = ("name", "pinned")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    name: str
    pinned: bool
    def __init__(self, name: _Optional[str] = ..., pinned: _Optional[bool] = ...) -> None: ...

class PinModelResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SleepModelRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class SleepModelResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WakeModelRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class WakeModelResponse(_message.Message):
    __slots__ = ("wake_s",)
    WAKE_S_FIELD_NUMBER: _ClassVar[int]
    wake_s: float
    def __init__(self, wake_s: _Optional[float] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...

class ExplainResponse(_message.Message):
    __slots__ = ("timeline",)
    TIMELINE_FIELD_NUMBER: _ClassVar[int]
    timeline: _containers.RepeatedCompositeFieldContainer[TimelineEntry]
    def __init__(self, timeline: _Optional[_Iterable[_Union[TimelineEntry, _Mapping]]] = ...) -> None: ...

class TimelineEntry(_message.Message):
    __slots__ = ("at_s", "last_s", "times", "sequence", "event", "reason", "detail")
    AT_S_FIELD_NUMBER: _ClassVar[int]
    LAST_S_FIELD_NUMBER: _ClassVar[int]
    TIMES_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    at_s: float
    last_s: float
    times: int
    sequence: int
    event: str
    reason: str
    detail: str
    def __init__(self, at_s: _Optional[float] = ..., last_s: _Optional[float] = ..., times: _Optional[int] = ..., sequence: _Optional[int] = ..., event: _Optional[str] = ..., reason: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...
