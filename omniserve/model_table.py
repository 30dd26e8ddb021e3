"""The served models: which one a request means, and what the front holds of each."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Self

from omniserve.access.bearer_token import without_tokens
from omniserve.access.caller import ANYONE, Caller
from omniserve.config import ModelConfig
from omniserve.errors import InvalidRequest, ModelUnavailable, PermissionDenied, UnknownModel
from omniserve.served_model import ServedModel
from omniserve.tenant_threads import TenantThreads

_SHOWN_CHARS = 128


@dataclass(frozen=True, slots=True)
class TableEntry:
    """A model whose requests are answered."""

    config: ModelConfig
    served: ServedModel


@dataclass(frozen=True, slots=True)
class Absence:
    """A model that is known, and that requests cannot have now."""

    config: ModelConfig
    reason: str
    """What is being done with it: `being loaded`."""
    retry_after_s: Callable[[], float]
    """After which time to ask again."""


class ModelTable:
    """Requests ask for a model by its name or an alias; answers, logs and metrics have the name.

    Never changes: other models are another table.
    """

    def __init__(self, entries: Iterable[TableEntry], absent: Iterable[Absence] = ()) -> None:
        self._entries = {entry.config.name: entry for entry in entries}
        self._absent = {each.config.name: each for each in absent}
        self._models = {name: entry.served for name, entry in self._entries.items()}
        # Served ones last: theirs counts where a model that leaves had the same alias.
        known = [each.config for each in self._absent.values()]
        known += [entry.config for entry in self._entries.values()]
        self._name_of = {alias: model.name for model in known for alias in model.aliases}

    @classmethod
    def load(cls, models: Sequence[ModelConfig], threads: TenantThreads) -> Self:
        """Of the configuration; raises CheckpointError."""
        return cls(TableEntry(model, ServedModel.load(model, threads)) for model in models)

    @property
    def models(self) -> Mapping[str, ServedModel]:
        """By name, in order."""
        return MappingProxyType(self._models)

    @property
    def configs(self) -> tuple[ModelConfig, ...]:
        return tuple(entry.config for entry in self._entries.values())

    def with_model(self, config: ModelConfig, served: ServedModel) -> Self:
        """Its requests are answered."""
        entries = self._entries | {config.name: TableEntry(config, served)}
        return type(self)(entries.values(), self._absent_but(config.name))

    def with_absent(self, absence: Absence) -> Self:
        """Requests for it are told to come again."""
        name = absence.config.name
        return type(self)(self._entries_but(name), (*self._absent_but(name), absence))

    def without(self, name: str) -> Self:
        """Nobody knows it any more."""
        return type(self)(self._entries_but(name), self._absent_but(name))

    def with_configs(self, configs: Iterable[ModelConfig]) -> Self:
        """With other aliases and defaults of models that are served."""
        changed = {
            config.name: TableEntry(config, self._models[config.name])
            for config in configs
            if config.name in self._entries
        }
        return type(self)((self._entries | changed).values(), self._absent.values())

    def ordered(self, names: Iterable[str]) -> Self:
        """These come first, in this order, the others behind them."""
        order = [name for name in dict.fromkeys((*names, *self._entries)) if name in self._entries]
        return type(self)((self._entries[name] for name in order), self._absent.values())

    def allowed(self, caller: Caller) -> Iterator[str]:
        """Names of those that the caller may use, in order."""
        return filter(caller.may_use_model, self._models)

    def aliases(self, name: str) -> tuple[str, ...]:
        """Of the model of this name."""
        return self._entries[name].config.aliases

    def resolve(
        self, asked: str, caller: Caller = ANYONE, default: str | None = None
    ) -> ServedModel:
        """The model that a request means.

        One that names none gets `default`, which is that of its tier, or the caller's own: the
        first that it may use and that is served.

        Raises InvalidRequest where there is no default either, UnknownModel, ModelUnavailable for
        one that is being loaded or unloaded, and PermissionDenied for one that the caller may not
        use.
        """
        wanted = asked or self._default(caller, default)
        names = ", ".join(self.allowed(caller)) or "none"
        if not wanted:
            raise InvalidRequest(f"model: must be given; served: {names}", "model")
        name = self._name(wanted)
        if name not in self._models and name not in self._absent:
            shown = repr(without_tokens(wanted)[:_SHOWN_CHARS])
            of_default = "" if asked else ", the default of tier or tenant,"
            raise UnknownModel(f"model {shown}{of_default} is not served; served: {names}")
        if not caller.may_use_model(name):
            raise PermissionDenied(
                f"model: {wanted!r} is not for tenant {caller.tenant!r}; allowed: {names}"
            )
        if name in self._models:
            return self._models[name]
        absence = self._absent[name]
        message = f"model {wanted!r} is {absence.reason}; try again later or elsewhere"
        raise ModelUnavailable(message, absence.retry_after_s())

    def _name(self, wanted: str) -> str:
        return wanted if wanted in self._models else self._name_of.get(wanted, wanted)

    def _default(self, caller: Caller, of_tier: str | None) -> str:
        defaults = filter(None, (of_tier, caller.default_model))
        usable = [each for each in defaults if caller.may_use_model(self._name(each))]
        # One that is not loaded stands back behind one that is; alone it is named in the refusal.
        served = (each for each in usable if self._name(each) in self._models)
        return next(served, usable[0] if usable else "")

    def _entries_but(self, name: str) -> list[TableEntry]:
        return [entry for other, entry in self._entries.items() if other != name]

    def _absent_but(self, name: str) -> list[Absence]:
        return [each for other, each in self._absent.items() if other != name]
