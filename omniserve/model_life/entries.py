"""A model that is to be served besides: read as the configuration file's own models are."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from omniserve.access.bearer_token import without_tokens
from omniserve.config import Config, ModelConfig, load_config
from omniserve.config_file import MAX_FILE_BYTES, ConfigFile, parse_config
from omniserve.config_messages import describe_problems
from omniserve.config_tier import TierConfig
from omniserve.errors import ConfigError, ModelExists, UnknownModel
from omniserve.settings import ModelSettings

_ENTRY = Path("entry")
_SHOWN_CHARS = 128


@dataclass(frozen=True, slots=True)
class WantedEntry:
    """One entry of the file's list of models, as YAML or JSON."""

    text: str


@dataclass(frozen=True, slots=True)
class WantedName:
    """A model of the configuration file."""

    name: str


Wanted = WantedEntry | WantedName


def shown_name(name: str) -> str:
    """Of a model, as messages have it, whatever a client sent for one."""
    return repr(without_tokens(name[: 2 * _SHOWN_CHARS])[:_SHOWN_CHARS])


def read_wanted(wanted: Wanted, config_path: Path) -> ModelConfig:
    """The model that is meant; relative paths start at the directory of `config_path`.

    Reads files, and may take a while. Raises ConfigError with a line for each problem, and
    UnknownModel for a name that is not in the file.
    """
    if isinstance(wanted, WantedEntry):
        return _read_entry(wanted.text, config_path.resolve().parent)
    config = load_config(config_path)
    model = config.model(wanted.name)
    if model is None:
        names = ", ".join(each.name for each in config.models)
        raise UnknownModel(
            f"model {shown_name(wanted.name)} is not in the configuration file; there: {names}"
        )
    return model


def _read_entry(text: str, directory: Path) -> ModelConfig:
    if len(text.encode()) > MAX_FILE_BYTES:
        raise ConfigError(f"{_ENTRY}: is larger than {MAX_FILE_BYTES >> 10} KiB")
    file = parse_config(_ENTRY, text, "'name' and 'path'")
    try:
        return ModelConfig.model_validate(
            file.data, context={"directory": directory}, by_name=False
        )
    except ValidationError as error:
        raise ConfigError("\n".join(describe_problems(file, error, ModelConfig))) from None


def settings_beside(
    model: ModelConfig,
    others: Sequence[ModelConfig],
    tiers: Sequence[TierConfig],
    started: Config,
) -> ModelSettings:
    """What the engine is told of a model that comes to those that are there; device and host are
    those with which the daemon was `started`.

    Raises ModelExists for a name that is taken, and ConfigError for what does not go together.
    """
    check_names(model, others)
    # What routes requests is not asked: a tier's default may be a model that is gone.
    plain = [tier.model_copy(update={"default_model": None}) for tier in tiers]
    machine = {"device": started.device, "host": started.host}
    data = {**machine, "models": [*others, model], "tiers": plain}
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        prefix = f"models[{len(others)}]."
        shown = [*({} for _ in others), model.model_dump(mode="json")]
        file = ConfigFile(_ENTRY, {"models": list(shown)}, {(): 1})
        lines = describe_problems(file, error, Config)
        raise ConfigError("\n".join(line.replace(prefix, "") for line in lines)) from None
    return config.settings_of(model.name)


def check_names(model: ModelConfig, others: Sequence[ModelConfig]) -> None:
    """Raises ModelExists where its name or an alias is a name of one of the others."""
    taken = {name: each.name for each in others for name in (each.name, *each.aliases)}
    for key, names in (("name", (model.name,)), ("aliases", model.aliases)):
        for name in names:
            if name in taken:
                raise ModelExists(f"{key}: {name!r} is a name of model {taken[name]!r} already")
    if len({model.name, *model.aliases}) <= len(model.aliases):
        raise ConfigError(f"{_ENTRY}: aliases: each must be another name, and none the model's own")
