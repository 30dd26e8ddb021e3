"""From a checkpoint directory to a model whose layers can be run."""

from pathlib import Path
from typing import Any

import torch

from omniserve.checkpoint import inspect_checkpoint
from omniserve.errors import CheckpointError
from omniserve.models.decoder import DecoderModel
from omniserve.models.families import family_of
from omniserve.models.linear import can_pack
from omniserve.models.rotary import check_rope
from omniserve.models.row_ops import RowOps
from omniserve.models.weight_store import ModelWeights, WeightStore

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def load_config(path: Path) -> Any:
    """The transformers config of a checkpoint, checked to be one that we can serve."""
    from transformers import AutoConfig

    inspect_checkpoint(path)
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True)
    except Exception as error:  # transformers raises whatever its config classes raise
        raise CheckpointError(f"{path / 'config.json'}: {error}") from error
    family_of(config)
    check_rope(config)
    return config


def load_model(
    path: Path,
    config: Any,
    dtype: torch.dtype,
    device: torch.device,
    max_model_len: int,
    row_ops: RowOps,
    store: WeightStore,
) -> DecoderModel:
    """Loads the weights to `device` and lays them out for it; what is in `store` is not loaded
    twice.

    Raises:
        CheckpointError: a weight is missing, unexpected, or of another shape than the config says.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    # transformers reports what is wrong with a checkpoint as a table on its log; we say it once,
    # below.
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            config=config,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: cannot load the weights: {reason}") from error
    module, info = loaded
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[problem]:
            names = ", ".join(sorted(str(name) for name in info[problem])[:4])
            raise CheckpointError(f"{path}: {problem.replace('_', ' ')} in the checkpoint: {names}")
    with torch.inference_mode():
        weights = ModelWeights(store, device, can_pack(device, dtype))
        return DecoderModel(module.eval(), family_of(config), max_model_len, weights, row_ops)
