"""The configuration: what a file may say, its defaults, and what must hold between its parts."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from omniserve.config_file import read_config_file
from omniserve.config_kv import HostConfig, check_host_kv_budget, check_kv_budget
from omniserve.config_listen import (
    UNIX,
    LimitsConfig,
    ListenConfig,
    TlsConfig,
    TracingConfig,
)
from omniserve.config_messages import describe_problems
from omniserve.config_piggyback import PiggybackConfig, PiggybackOff, PiggybackPlanner
from omniserve.config_routes import check_routes
from omniserve.config_section import Section
from omniserve.config_tenant import MAX_TENANTS, TenantConfig, check_tenants
from omniserve.config_tier import TierConfig, check_tiers
from omniserve.config_values import Name, Seconds, Size, SizeOrZero, is_loopback, refuse
from omniserve.errors import ConfigError
from omniserve.machine import Machine, this_machine
from omniserve.profiling.profile import load_profile
from omniserve.settings import (
    TOKENS_BESIDE_LS,
    DeviceKind,
    DeviceSettings,
    DtypeName,
    EngineSettings,
    ModelSettings,
    PiggybackSettings,
)
from scheduler.step_time import LinearStepTime

MEASURED, UNLIMITED = "auto", "none"
"""Values of step_times that name no file. YAML reads `off` as a boolean."""


class DeviceConfig(Section):
    """The device that runs the models."""

    kind: DeviceKind = "auto"
    """auto takes an accelerator where there is one, else the CPU."""
    threads: int | None = Field(default=None, ge=1, le=4096)
    """Compute threads of a CPU device; unset takes every core the process may use."""
    kv_bytes: Size | None = None
    """KV memory of all models together, which moves to where it is wanted; unset: every model has
    its device_kv_bytes for itself."""


class ModelConfig(Section):
    """One model to serve."""

    name: Name
    """The name by which requests ask for the model."""
    aliases: Annotated[tuple[Name, ...], Field(max_length=64, strict=False)] = ()
    """Other names by which they may."""
    path: str
    """Checkpoint directory in Hugging Face layout, or with `base` the directory of an adapter; a
    relative path starts at the config file."""
    base: str | None = None
    """Checkpoint directory of the model that a LoRA adapter at `path` changes; the base need not be
    served itself."""
    dtype: DtypeName = "bfloat16"
    """Number format of weights and KV."""
    device_kv_bytes: Size = 64 << 20
    """Size of the model's KV pool on the device; with device.kv_bytes the most it may have."""
    device_kv_floor_bytes: SizeOrZero | None = None
    """Of device.kv_bytes, kept for this model whenever it wants it; unset: half of an even
    share."""
    max_model_len: int | None = Field(default=None, ge=2, le=1 << 30)
    """Longest prompt plus output, in tokens; unset takes what the model and the KV pool allow."""
    pinned: bool = False
    """Whether it stays: a pinned model is unloaded only by force."""
    default_tier: Name | None = None
    """Tier of a request that names none; unset takes the first tier."""
    max_step_tokens: int = Field(default=512, ge=1, le=1 << 20)
    """Most tokens computed in one step."""
    best_effort_tokens_beside_ls: int | None = Field(default=None, ge=0, le=1 << 20)
    """Most best-effort tokens in a step that also carries latency-sensitive tokens; unset leaves it
    to the time that is left, and takes 64 with step_times none."""
    max_running_requests: int = Field(default=64, ge=1, le=4096)
    """Most requests that run at the same time."""
    block_size: int = Field(default=32, ge=1, le=1024)
    """Tokens in one KV block."""
    prefix_caching: bool = True
    """Whether KV of equal prompt beginnings is shared."""
    kv_reserve_share: float = Field(default=0.05, ge=0, lt=1)
    """Part of the KV memory that best-effort requests, as long as they are expected to become, must
    leave free to be admitted."""
    step_times: str = "auto"
    """What steps take on this machine, so that they can be held to latency_sensitive objectives:
    auto measures it at the first start and keeps it, none holds steps to token budgets alone; else
    a file from `omniserve profile` or `omniserve simulate calibrate`."""
    piggyback: PiggybackConfig = PiggybackConfig()

    @property
    def tokens_beside_ls(self) -> int:
        """Most best-effort tokens beside latency-sensitive ones; where time decides, all there are
        in a step."""
        if self.best_effort_tokens_beside_ls is not None:
            return self.best_effort_tokens_beside_ls
        return TOKENS_BESIDE_LS if self.step_times == UNLIMITED else self.max_step_tokens

    def held_by_time(self, settings: PiggybackSettings) -> PiggybackSettings:
        """With as many lane rows beside latency-sensitive ones as elsewhere, where time decides."""
        if self.step_times == UNLIMITED or self.piggyback.max_lane_rows_beside_ls is not None:
            return settings
        return replace(settings, max_lane_rows_beside_ls=settings.max_lane_rows)

    @property
    def checkpoint_path(self) -> str:
        """Of the directory that has config.json, tokenizer and all weights but an adapter's."""
        return self.path if self.base is None else self.base

    @field_validator("path", "base", "step_times")
    @classmethod
    def _absolute_path(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None:
            return None
        if info.field_name == "step_times" and value in (MEASURED, UNLIMITED):
            return value
        if not value or not value.isprintable():
            what = "file" if info.field_name == "step_times" else "directory"
            raise refuse(f"must be the path of a {what}")
        directory: Path = (info.context or {}).get("directory", Path.cwd())
        # Not as a Path, which raises where there is no such user and for links in a circle.
        return os.path.realpath(directory / os.path.expanduser(value))


class DaemonConfig(Section):
    """How the daemon starts, watches over its engine and stops."""

    shutdown_grace_s: float = Field(default=30.0, ge=0, le=86_400, allow_inf_nan=False)
    """Longest wait for running requests when the daemon is told to stop."""
    engine_heartbeat_s: float = Field(default=30.0, ge=2, le=86_400, allow_inf_nan=False)
    """An engine that says nothing for this long is killed and restarted; it speaks every second."""
    engine_load_s: Seconds = 600.0
    """Longest wait for the engine to load its models."""


class Config(Section):
    """Everything that a configuration file says, with the defaults filled in."""

    listen: ListenConfig = ListenConfig()
    device: DeviceConfig = DeviceConfig()
    host: HostConfig = HostConfig()
    models: Annotated[tuple[ModelConfig, ...], Field(min_length=1, max_length=64, strict=False)]
    """The models to serve; all of them share the device."""
    tiers: Annotated[tuple[TierConfig, ...], Field(min_length=1, max_length=256, strict=False)]
    """The classes of service; the first is the default of models that name none."""
    tenants: Annotated[tuple[TenantConfig, ...], Field(max_length=MAX_TENANTS, strict=False)] = ()
    """Who may use the daemon. Without any, everyone who can connect may, and only this machine
    can."""
    tls: TlsConfig | None = None
    """Unset: connections are not encrypted."""
    limits: LimitsConfig = LimitsConfig()
    tracing: TracingConfig | None = None
    """Unset: no traces are made."""
    daemon: DaemonConfig = DaemonConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        kinds: tuple[tuple[Literal["models", "tiers"], list[str]], ...] = (
            ("models", [model.name for model in self.models]),
            ("tiers", [tier.name for tier in self.tiers]),
        )
        for key, names in kinds:
            for index, name in enumerate(names):
                if name in names[:index]:
                    first = f"{key}[{names.index(name)}]"
                    raise refuse(f"is the name of {first} already", (key, index, "name"))
        tier_names = kinds[1][1]
        for index, model in enumerate(self.models):
            if model.default_tier is not None and model.default_tier not in tier_names:
                text = f"must name a tier: {', '.join(tier_names)}"
                raise refuse(text, ("models", index, "default_tier"))
        check_tiers(self.tiers)
        check_tenants(self.tenants, kinds[0][1], tier_names)
        check_routes(self.models, self.tiers, self.tenants)
        check_kv_budget(self.device.kv_bytes, self.models)
        check_host_kv_budget(self.host.kv_bytes, self.models)
        return self

    @model_validator(mode="after")
    def _open_to_known_callers_only(self) -> Self:
        listen = self.listen
        for key, address in (("grpc", listen.grpc), ("http", listen.http)):
            if not self.tenants and not is_loopback(address):
                text = "must be an address of this machine alone while the file has no tenants"
                raise refuse(text, ("listen", key))
        for key, place in (("status", listen.status), ("admin", listen.admin)):
            if place is None or place == "auto" or place.startswith(UNIX):
                continue
            if not is_loopback(place):
                raise refuse("must be an address of this machine alone", ("listen", key))
        return self

    @model_validator(mode="after")
    def _fits_the_machine(self, info: ValidationInfo) -> Self:
        machine: Machine = (info.context or {}).get("machine") or this_machine()
        self._planner(machine).check([model.piggyback for model in self.models])
        return self

    def tier(self, name: str) -> TierConfig | None:
        return next((tier for tier in self.tiers if tier.name == name), None)

    def model(self, name: str) -> ModelConfig | None:
        return next((model for model in self.models if model.name == name), None)

    def default_tier(self, model: str) -> TierConfig:
        """The tier of a request for this served model that names none."""
        config = self.model(model)
        assert config is not None
        tier = self.tier(config.default_tier) if config.default_tier else None
        return tier or self.tiers[0]

    def piggybacking(
        self, machine: Machine | None = None
    ) -> dict[str, PiggybackSettings | PiggybackOff]:
        """By model; of this machine where none is given."""
        sections = [model.piggyback for model in self.models]
        settings = self._planner(machine or this_machine()).settings(sections)
        return {
            model.name: model.held_by_time(each) if isinstance(each, PiggybackSettings) else each
            for model, each in zip(self.models, settings, strict=True)
        }

    def _planner(self, machine: Machine) -> PiggybackPlanner:
        has_best_effort = any(tier.service_class == "best_effort" for tier in self.tiers)
        return PiggybackPlanner(machine, self.device.kind, has_best_effort, self.host.kv_bytes)

    def engine_settings(self, machine: Machine | None = None) -> EngineSettings:
        """What the engine is told, with all that is unset filled in from the machine.

        Raises ConfigError where step times cannot be read.
        """
        piggybacking = self.piggybacking(machine)
        models = tuple(
            _model_settings(model, piggybacking[model.name], f"models[{index}].")
            for index, model in enumerate(self.models)
        )
        device = self.device
        settings = DeviceSettings(device.kind, device.threads, device.kv_bytes)
        return EngineSettings(settings, models, self.host.kv_bytes)

    def settings_of(self, name: str, machine: Machine | None = None) -> ModelSettings:
        """Of one of its models alone; raises ConfigError as `engine_settings` does."""
        model = self.model(name)
        assert model is not None
        return _model_settings(model, self.piggybacking(machine)[name], "")


def _model_settings(
    model: ModelConfig, piggyback: PiggybackSettings | PiggybackOff, key: str
) -> ModelSettings:
    """`key` is what messages call the entry; raises ConfigError."""
    return ModelSettings(
        **model.model_dump(
            exclude={
                *("aliases", "default_tier", "pinned", "piggyback", "step_times"),
                *("device_kv_bytes", "device_kv_floor_bytes", "best_effort_tokens_beside_ls"),
            }
        ),
        device_kv_bytes=model.device_kv_bytes,
        device_kv_floor_bytes=model.device_kv_floor_bytes,
        best_effort_tokens_beside_ls=model.tokens_beside_ls,
        piggyback=piggyback if isinstance(piggyback, PiggybackSettings) else None,
        step_time=_step_time(key, model.step_times),
        measures_step_time=model.step_times == MEASURED,
    )


def _step_time(key: str, source: str) -> LinearStepTime | None:
    """Of the model whose keys are called so; raises ConfigError, which names the key."""
    if source in (MEASURED, UNLIMITED):
        return None
    try:
        return load_profile(Path(source)).step_time
    except ConfigError as error:
        problem = str(error).removeprefix(f"{source}: ")
        raise ConfigError(f"{key}step_times = {source!r}: {problem}") from None


def without_step_times(config: Config) -> Config:
    """For whoever measures them: token budgets alone limit steps, and no file is read."""
    models = tuple(model.model_copy(update={"step_times": UNLIMITED}) for model in config.models)
    return config.model_copy(update={"models": models})


def load_config(path: str | Path, machine: Machine | None = None) -> Config:
    """Reads and validates a file, for this machine where none is given.

    The ConfigError holds one line for each problem.
    """
    file = read_config_file(Path(path))
    context = {"directory": Path(path).resolve().parent, "machine": machine}
    try:
        return Config.model_validate(file.data, context=context, by_name=False)
    except ValidationError as error:
        raise ConfigError("\n".join(describe_problems(file, error, Config))) from None
