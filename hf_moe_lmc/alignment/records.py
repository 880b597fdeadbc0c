"""Dataclasses out of JSON of unknown origin."""

from collections.abc import Mapping
from dataclasses import fields
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

Record = TypeVar("Record")

LARGEST_NUMBER = 2**63


def of_record(kind: type[Record], entries: Any) -> Record:
    """The value whose `dataclasses.asdict` is `entries`; entries that `kind` does not know are left out.

    Args:
        kind: a dataclass whose fields are None, bool, int, float, str, tables of them, or tuples of such dataclasses.
        entries: any JSON value.

    Raises:
        KeyError: an entry is missing.
        ValueError: one has another type than its field, or `entries` is no table.
    """
    if not isinstance(entries, Mapping):
        raise ValueError(f"{entries!r} is no table of figures")
    hints, names = get_type_hints(kind), [field.name for field in fields(kind)]  # type: ignore[arg-type]
    return kind(**{name: _value(name, entries[name], hints[name]) for name in names})


def _value(name: str, value: Any, hint: Any) -> Any:
    if get_origin(hint) is tuple and isinstance(value, list):
        return tuple(of_record(get_args(hint)[0], row) for row in value)
    if not _fits(value, hint):
        raise ValueError(f"{name} is {value!r}")
    return value


def _fits(value: Any, hint: Any) -> bool:
    if isinstance(hint, UnionType):
        return any(_fits(value, part) for part in get_args(hint))
    if get_origin(hint) is dict:
        return isinstance(value, dict) and all(_fits(part, get_args(hint)[1]) for part in value.values())
    if hint is float and type(value) is int:
        hint = int
    return type(value) is hint and (hint is not int or abs(value) < LARGEST_NUMBER)
