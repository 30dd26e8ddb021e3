"""A byte-level BPE tokenizer, trained on the spot, with a chat template."""

import json
from collections.abc import Iterable, Iterator
from itertools import count, product
from pathlib import Path
from typing import Any

BOS_ID, EOS_ID, IM_START_ID, IM_END_ID = range(4)
SPECIAL_TOKENS = ("<|bos|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>")
"""Control tokens; a token's place is its id."""

_LINES_PER_TOKEN = 3

# Normalisation, this pattern and the name of the end token are Qwen2's: transformers rebuilds the
# tokenizer of a qwen2 checkpoint from the vocabulary and merges alone, and must get the same one.
_PRETOKENIZE_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def write_tokenizer(
    directory: Path, tokenizer_size: int, vocab_size: int, max_positions: int
) -> None:
    """Write tokenizer.json and tokenizer_config.json.

    The tokenizer produces ids below `tokenizer_size`; those from there to `vocab_size` are never
    produced, yet decode to made-up words, since a random model generates them all.
    """
    from omniserve.synthetic.corpus import training_text

    tokenizer = _train(training_text(_LINES_PER_TOKEN * tokenizer_size), tokenizer_size)
    vocabulary: dict[str, int] = tokenizer["model"]["vocab"]
    words = _made_up_words(vocabulary)
    for token_id in range(len(vocabulary), vocab_size):
        vocabulary[next(words)] = token_id
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
        "bos_token": SPECIAL_TOKENS[BOS_ID],
        "eos_token": SPECIAL_TOKENS[EOS_ID],
        "pad_token": SPECIAL_TOKENS[EOS_ID],
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_positions,
        "chat_template": CHAT_TEMPLATE,
    }
    _write_json(directory / "tokenizer.json", tokenizer)
    _write_json(directory / "tokenizer_config.json", config)


def _train(text: Iterable[str], size: int) -> dict[str, Any]:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PRETOKENIZE_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text, trainer)
    trained: dict[str, Any] = json.loads(tokenizer.to_str())
    return trained


def _made_up_words(taken: dict[str, int]) -> Iterator[str]:
    """Words not in `taken`, shortest first, with a leading space (Ġ where it is a byte's name)."""
    syllables = ["".join(pair) for pair in product("bdfgklmnprstvz", "aeiou")]
    for length in count(2):
        for parts in product(syllables, repeat=length):
            word = "Ġ" + "".join(parts)
            if word not in taken:
                yield word


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
