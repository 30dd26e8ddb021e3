"""Protobuf messages filled from a case, field by field."""

from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from fuzz.byte_source import ByteSource
from fuzz.wild_values import wild_float, wild_integer, wild_text

COUNTS = (0, 1, 1, 2, 3, 5, 17, 130, 1100)
_BITS = {
    FieldDescriptor.CPPTYPE_INT32: (32, True),
    FieldDescriptor.CPPTYPE_INT64: (64, True),
    FieldDescriptor.CPPTYPE_UINT32: (32, False),
    FieldDescriptor.CPPTYPE_UINT64: (64, False),
    FieldDescriptor.CPPTYPE_ENUM: (8, False),
}


def fill(message: Message, source: ByteSource) -> None:
    """Sets some of the fields; of a oneof the last one that is set stays."""
    for field in message.DESCRIPTOR.fields:
        if source.is_empty:
            return
        if source.below(3):
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            _fill_map(getattr(message, field.name), field.message_type, source)
        elif field.is_repeated:
            _fill_repeated(getattr(message, field.name), field, source)
        elif field.message_type is not None:
            inner = getattr(message, field.name)
            inner.SetInParent()
            fill(inner, source)
        else:
            setattr(message, field.name, _scalar(field, source))


def _fill_map(entries: Any, entry: Any, source: ByteSource) -> None:
    key, value = entry.fields_by_name["key"], entry.fields_by_name["value"]
    for _ in range(source.choice(COUNTS)):
        entries[_scalar(key, source)] = _scalar(value, source)


def _fill_repeated(entries: Any, field: Any, source: ByteSource) -> None:
    count = source.choice(COUNTS)
    if field.message_type is not None:
        for _ in range(min(count, 20)):
            fill(entries.add(), source)
    elif source.flag():
        entries.extend([_scalar(field, source)] * count)
    else:
        entries.extend(_scalar(field, source) for _ in range(min(count, 20)))


def _scalar(field: Any, source: ByteSource) -> Any:
    if field.cpp_type in _BITS:
        num_bits, is_signed = _BITS[field.cpp_type]
        value = wild_integer(source) & ((1 << num_bits) - 1)
        return value - (1 << num_bits) if is_signed and value >> (num_bits - 1) else value
    if field.cpp_type in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return wild_float(source)
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return source.flag()
    text = wild_text(source)
    return text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text
