"""The served models: which one a request means, and what the front holds of each."""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from omniserve.access.bearer_token import without_tokens
from omniserve.access.caller import ANYONE, Caller
from omniserve.config import ModelConfig
from omniserve.errors import InvalidRequest, PermissionDenied, UnknownModel
from omniserve.served_model import ServedModel
from omniserve.tenant_threads import TenantThreads

_SHOWN_CHARS = 128


class ModelTable:
    """Requests ask for a model by its name or an alias; answers, logs and metrics have the name."""

    def __init__(self, models: Sequence[ModelConfig]) -> None:
        """Loads the tokenizers; raises CheckpointError."""
        threads = TenantThreads()
        self._models = {model.name: ServedModel.load(model, threads) for model in models}
        self._aliases = {model.name: model.aliases for model in models}
        self._name_of = {alias: model.name for model in models for alias in model.aliases}

    @property
    def models(self) -> Mapping[str, ServedModel]:
        """By name, in the order of the configuration."""
        return MappingProxyType(self._models)

    def allowed(self, caller: Caller) -> Iterator[str]:
        """Names of those that the caller may use, in order."""
        return filter(caller.may_use_model, self._models)

    def aliases(self, name: str) -> tuple[str, ...]:
        """Of the model of this name."""
        return self._aliases[name]

    def resolve(
        self, asked: str, caller: Caller = ANYONE, default: str | None = None
    ) -> ServedModel:
        """The model that a request means.

        One that names none gets `default`, which is that of its tier, or the caller's own: the
        first that it may use.

        Raises InvalidRequest where there is no default either, UnknownModel, and PermissionDenied
        for one that the caller may not use.
        """
        wanted = asked or self._default(caller, default)
        names = ", ".join(self.allowed(caller))
        if not wanted:
            raise InvalidRequest(f"model: must be given; served: {names}", "model")
        name = self._name(wanted)
        served = self._models.get(name)
        if served is None:
            shown = repr(without_tokens(wanted)[:_SHOWN_CHARS])
            raise UnknownModel(f"model {shown} is not served; served: {names}")
        if caller.may_use_model(name):
            return served
        raise PermissionDenied(
            f"model: {wanted!r} is not for tenant {caller.tenant!r}; allowed: {names}"
        )

    def _name(self, wanted: str) -> str:
        return self._name_of.get(wanted, wanted)

    def _default(self, caller: Caller, of_tier: str | None) -> str:
        defaults = filter(None, (of_tier, caller.default_model))
        return next((each for each in defaults if caller.may_use_model(self._name(each))), "")
