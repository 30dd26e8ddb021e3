"""What synthetic models write: it depends on the whole context, and rounding does not change it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from omniserve.synthetic.create import write_checkpoint
from omniserve.synthetic.presets import ARCHITECTURES

NUM_PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 5, 80, 64
VOCAB = 512


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Layers this small run faster on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def load(path: Path, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, **options).eval()


def random_ids(rows: int, columns: int) -> torch.Tensor:
    return torch.randint(4, VOCAB, (rows, columns), generator=torch.manual_seed(11))


def greedy(model: Any, prompts: torch.Tensor) -> torch.Tensor:
    output: torch.Tensor = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return output[:, prompts.shape[1] :]


def with_one_changed(prompts: torch.Tensor, position: int) -> torch.Tensor:
    changed = prompts.clone()
    changed[:, position] = 4 + (changed[:, position] + 7) % (VOCAB - 4)
    return changed


def tail_period(tokens: list[int]) -> int:
    """The shortest period of the last 34 tokens, 0 where it is above 16."""
    tail = tokens[-34:]
    for period in range(1, 17):
        if tail[period:] == tail[:-period]:
            return period
    return 0


def share_kept(model: Any) -> tuple[float, list[int]]:
    """Share of greedy tokens that survive a change in the prompt's first half, and tail periods."""
    prompts = random_ids(NUM_PROMPTS, PROMPT_TOKENS)
    variants = [with_one_changed(prompts, place) for place in (0, 20, PROMPT_TOKENS // 2)]
    texts = greedy(model, torch.cat([prompts, *variants]))
    original, changed = texts[:NUM_PROMPTS], texts[NUM_PROMPTS:].view(3, NUM_PROMPTS, -1)
    kept = (changed == original).float().mean().item()
    return kept, [tail_period(row) for row in texts.tolist()]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_one_earlier_token_changes_most_later_ones(tmp_path: Path, arch: str, dtype: str) -> None:
    model = load(write_checkpoint(tmp_path / "model", arch=arch, preset="tiny", dtype=dtype))
    kept, periods = share_kept(model)
    assert kept < 0.2
    assert not any(periods)


def test_usual_initialisation_would_not_pass(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "model", arch="llama", preset="tiny")
    model = load(path)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0.0, 0.02, generator=torch.manual_seed(3))
    kept, periods = share_kept(model)
    assert kept > 0.5
    assert sum(period > 0 for period in periods) > len(periods) // 2


@pytest.mark.parametrize("overrides", [{"tie_word_embeddings": True}, {"sliding_window": 32}])
def test_overridden_models_write_no_cycles_either(
    tmp_path: Path, overrides: dict[str, Any]
) -> None:
    model = load(
        write_checkpoint(tmp_path / "model", arch="mistral", preset="tiny", overrides=overrides)
    )
    assert not any(tail_period(row) for row in greedy(model, random_ids(8, 40)).tolist())


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_rounding_in_float32_does_not_reach_the_best_token(tmp_path: Path, arch: str) -> None:
    path = write_checkpoint(tmp_path / "model", arch=arch, preset="tiny")
    # The default way of running experts takes no float64.
    experts = {"experts_implementation": "eager"} if arch in ("mixtral", "qwen3_moe") else {}
    model, tokens = load(path, **experts), random_ids(1, 300)
    with torch.inference_mode():
        logits = model(tokens).logits[0]
        exact = model.double()(tokens).logits[0]
    error = (logits - exact).abs().max() / exact.std()
    assert error.item() < 5e-5
    best, second = exact.topk(2).values.unbind(-1)
    assert (best - second < 1e-4).sum() <= 1
    assert 3.5 < exact.std().item() < 4.5
