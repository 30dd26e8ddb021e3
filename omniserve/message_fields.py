"""Protobuf messages as plain values."""

from typing import Any

from google.protobuf.message import Message


def message_fields(message: Message) -> dict[str, Any]:
    """Every field by its name in the schema; an optional one that is unset is None.

    Not protobuf's own JSON, which turns large integers into strings.
    """
    return {field.name: _value_of(message, field.name) for field in message.DESCRIPTOR.fields}


def _value_of(message: Message, name: str) -> Any:
    field, value = message.DESCRIPTOR.fields_by_name[name], getattr(message, name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return dict(value)
    if field.is_repeated:
        is_message = field.message_type is not None
        return [message_fields(each) for each in value] if is_message else list(value)
    if field.has_presence and not message.HasField(name):
        return None
    return message_fields(value) if field.message_type is not None else value
