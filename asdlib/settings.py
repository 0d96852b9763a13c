"""Settings dataclasses from nested dicts and back, checked on the way: names, types, ranges.

A section is a frozen dataclass whose fields come from `settings.setting`; a setting has one type. What is
wrong is refused with what was expected and, for a misspelt name, with a suggestion. `digest` turns settings
into the name of what they made.

Source: METHOD 8.2. Notebooks: all (through `config`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
from dataclasses import field
from typing import Literal

from asdlib import errors


def setting(default, doc: str, low: float | None = None, high: float | None = None):
    """A field with its explanation and, for numbers, the closed range of values it may take."""
    return field(default=default, metadata={"doc": doc, "low": low, "high": high})


def describe_value(value: object) -> str:
    """A value for a sentence: its literal, shortened; what cannot be written is named by its type."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # numbers of thousands of digits, nests of thousands of lists
        return f"a {type(value).__name__} of great length"
    return text if len(text) <= 200 else f"{text[:200]}..."


def merged(under: dict, over: dict) -> dict:
    """Two nested dicts merged; where both have a value, `over` wins. Neither is changed."""
    both = {
        key: (
            merged(under[key], value)
            if isinstance(value, dict) and isinstance(under.get(key), dict)
            else value
        )
        for key, value in over.items()
    }
    return under | both


def from_tree(cls: type, tree: dict, where: str = ""):
    """A settings class from nested dicts; unknown names, wrong types and bad values are refused."""
    hints = typing.get_type_hints(cls)
    values = {}
    for key, value in tree.items():
        name = f"{where}{key}"
        if key not in hints:
            close = errors.closest(key, list(hints))
            hint = f"; did you mean {where}{close}?" if close else f"; known here: {', '.join(hints)}"
            raise errors.InputError(f"unknown setting {describe_value(name)[1:-1]}{hint}")
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, dict):
                raise errors.InputError(
                    f"setting {name}: got {describe_value(value)}, expected a section [{name}]"
                )
            values[key] = from_tree(hints[key], value, f"{name}.")
        else:
            meta = next(f.metadata for f in dataclasses.fields(cls) if f.name == key)
            values[key] = _convert(hints[key], value, name, meta)
    return cls(**values)


def _convert(hint, value, name: str, meta: typing.Mapping):
    origin = typing.get_origin(hint)
    if origin is tuple:
        inner = typing.get_args(hint)[0]
        if not isinstance(value, (list, tuple)):
            value = [value]
        return tuple(_convert(inner, item, name, meta) for item in value)
    if origin is Literal:
        if value not in typing.get_args(hint):
            raise errors.InputError(
                f"setting {name}: got {describe_value(value)}, expected one of"
                f" {', '.join(map(repr, typing.get_args(hint)))}"
            )
        return value
    if isinstance(hint, types.UnionType):
        raise TypeError(f"{name}: settings have one type each")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not hint:
        raise errors.InputError(
            f"setting {name}: got {describe_value(value)} ({type(value).__name__}), expected {hint.__name__}"
        )
    if hint in (int, float):
        low, high = meta.get("low"), meta.get("high")
        if value != value or (low is not None and value < low) or (high is not None and value > high):
            raise errors.InputError(
                f"setting {name}: got {describe_value(value)}, expected a number from {low} to {high}"
            )
    return value


def to_tree(settings) -> dict:
    """Nested dict of a settings dataclass, ready for JSON."""
    return json.loads(json.dumps(dataclasses.asdict(settings)))


def digest(*parts) -> str:
    """Hexadecimal digest (16 digits) of settings dataclasses and JSON-able values: equal content, equal
    digest.
    """
    plain = [to_tree(part) if dataclasses.is_dataclass(part) else part for part in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]
