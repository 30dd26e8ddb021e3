"""Which model a name means while models come and go."""

from pathlib import Path

import pytest

from omniserve.config import ModelConfig
from omniserve.errors import ModelUnavailable, UnknownModel
from omniserve.model_table import Absence, ModelTable
from omniserve.tenant_threads import TenantThreads


def make_config(checkpoint: Path, name: str, *aliases: str) -> ModelConfig:
    return ModelConfig(name=name, path=str(checkpoint), aliases=aliases)


def make_table(*configs: ModelConfig) -> ModelTable:
    return ModelTable.load(configs, TenantThreads())


def test_a_model_that_leaves_has_no_alias_that_another_one_has_got(tiny_checkpoint: Path) -> None:
    old = make_config(tiny_checkpoint, "old", "chat")
    new = make_config(tiny_checkpoint, "new")
    table = make_table(old, new)
    assert table.resolve("chat").name == "old"
    table = table.with_configs([new.model_copy(update={"aliases": ("chat",)})])
    table = table.with_absent(Absence(old, "being unloaded", lambda: 3.0))
    assert table.resolve("chat").name == "new"
    with pytest.raises(ModelUnavailable, match="'old' is being unloaded"):
        table.resolve("old")
    with pytest.raises(UnknownModel):
        table.without("old").resolve("old")


def test_a_name_counts_before_an_alias_of_one_that_leaves(tiny_checkpoint: Path) -> None:
    old = make_config(tiny_checkpoint, "old", "chat")
    table = make_table(old).with_absent(Absence(old, "being unloaded", lambda: 3.0))
    served = make_table(make_config(tiny_checkpoint, "chat")).models["chat"]
    table = table.with_model(make_config(tiny_checkpoint, "chat"), served)
    assert table.resolve("chat") is served
