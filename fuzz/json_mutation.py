"""Valid data with a few things changed: most of the way in, and then wrong."""

import copy
from collections.abc import Sequence
from typing import Any

from fuzz.byte_source import ByteSource
from fuzz.wild_values import wild_json

MAX_CHANGES = 4


def mutated(data: Any, keys: Sequence[str], source: ByteSource) -> Any:
    """A copy with up to four changes at any depth; new keys are some of `keys`."""
    data = copy.deepcopy(data)
    for _ in range(source.below(MAX_CHANGES + 1)):
        data = _changed(data, keys, source)
    return data


def _changed(data: Any, keys: Sequence[str], source: ByteSource) -> Any:
    is_container = isinstance(data, dict | list)
    if not is_container or source.below(4) == 0:
        return _replaced(data, keys, source)
    if not data:
        return _replaced(data, keys, source)
    place = source.choice(sorted(data) if isinstance(data, dict) else range(len(data)))
    kind = source.below(8)
    if kind == 0:
        del data[place]
    elif kind == 1 and isinstance(data, list):
        data.append(copy.deepcopy(data[place]))
    else:
        data[place] = _changed(data[place], keys, source)
    return data


def _replaced(data: Any, keys: Sequence[str], source: ByteSource) -> Any:
    """Another value, or, of a mapping, one key more."""
    if isinstance(data, dict) and source.below(8):
        key = source.choice(keys) if source.below(8) else str(wild_json(source))
        return data | {key: wild_json(source)}
    if isinstance(data, list) and source.flag():
        return [*data, wild_json(source)]
    return wild_json(source)


def spliced(text: str, pieces: Sequence[str], source: ByteSource) -> str:
    """A text with up to three pieces put in anywhere, or parts cut out."""
    for _ in range(source.below(4)):
        place = source.below(len(text) + 1)
        if source.below(4) == 0:
            text = text[:place] + text[place + source.below(16) :]
        else:
            text = text[:place] + source.choice(pieces) + text[place:]
    return text


def keys_of(schema: Any) -> list[str]:
    """Every name of a property that a JSON Schema speaks of."""
    found: set[str] = set()
    waiting = [schema]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            found.update(part.get("properties", ()))
            waiting.extend(part.values())
        elif isinstance(part, list):
            waiting.extend(part)
    return sorted(found)
