"""Hypothesis strategies for wire messages, made from the messages' own types, so that a new message is tested at once."""

from functools import cache
from typing import Any, get_args

import msgspec
from hypothesis import strategies as st
from msgspec import inspect

from districomp.messages import AnyMessage, Message

MESSAGE_TYPES: tuple[type[Message], ...] = get_args(AnyMessage)

_SCALARS: dict[type[inspect.Type], st.SearchStrategy[Any]] = {
    inspect.AnyType: st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=8),
    inspect.NoneType: st.none(),
    inspect.BoolType: st.booleans(),
    inspect.IntType: st.integers(-(2**63), 2**64 - 1),
    inspect.StrType: st.text(max_size=20),
    inspect.BytesType: st.binary(max_size=20),
}


def messages() -> st.SearchStrategy[Message]:
    """Any message with any content that its types allow."""
    return st.one_of([messages_of(kind) for kind in MESSAGE_TYPES])


@cache
def messages_of(kind: type[Message]) -> st.SearchStrategy[Any]:
    """One kind of message (or of any other Struct)."""
    return _values(inspect.type_info(kind))


def _values(type_: inspect.Type) -> st.SearchStrategy[Any]:
    if type(type_) in _SCALARS:
        return _SCALARS[type(type_)]
    if isinstance(type_, inspect.FloatType):
        return st.floats(type_.ge, type_.le, allow_nan=False)
    if isinstance(type_, inspect.UnionType):
        return st.one_of([_values(one) for one in type_.types])
    if isinstance(type_, inspect.ListType):
        return st.lists(_values(type_.item_type), max_size=3)
    if isinstance(type_, inspect.TupleType):
        return st.tuples(*[_values(one) for one in type_.item_types])
    if isinstance(type_, inspect.DictType):
        return st.dictionaries(_values(type_.key_type), _values(type_.value_type), max_size=3)
    if isinstance(type_, inspect.StructType):
        fields = {field.name: _values(field.type) for field in type_.fields}
        kind: type[msgspec.Struct] = type_.cls
        return st.builds(kind, **fields)
    raise AssertionError(f"a message has a field of a type that has no strategy yet: {type_}")
