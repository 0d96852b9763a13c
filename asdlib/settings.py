"""Settings: frozen pydantic models that validate names, types and ranges on construction.

A section is a subclass of `Settings` whose fields are made by `setting`. Errors are one sentence with the
expected value and, for a misspelled name, a suggestion; checks across fields are validators that raise the
whole sentence. `digest` identifies results by their settings.

Source: METHOD 8.2. Notebooks: all (through `config`).
"""

from __future__ import annotations

import hashlib
import json
import typing
from typing import Annotated, Self

import pydantic
from pydantic.fields import FieldInfo

from asdlib import errors

T = typing.TypeVar("T")


def _several(value: object) -> tuple:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


Many = Annotated[tuple[T, ...], pydantic.BeforeValidator(_several)]  # accepts a list or a single value


def setting(default, doc: str, low: float | None = None, high: float | None = None):
    """Field with a description and, for numbers, a closed range of values."""
    return pydantic.Field(default, description=doc, ge=low, le=high)


class Settings(pydantic.BaseModel):
    """A section of settings.

    raises : errors.InputError for unknown names, wrong types and values out of range
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def __init__(self, /, **values):
        try:
            super().__init__(**values)
        except pydantic.ValidationError as error:
            raise errors.InputError(_sentence(type(self), error.errors(include_url=False)[0])) from None

    __init__.__pydantic_base_init__ = True  # nested sections bypass __init__: one error, full path

    def replace(self, /, **changes) -> Self:
        """Validated copy with some fields changed; a nested section may be given as a dict of changes.

        raises : errors.InputError as for construction
        """
        return type(self)(**merged(self.model_dump(), changes))


def _sentence(cls: type[Settings], error: typing.Mapping) -> str:
    """Message for a pydantic validation error."""
    kind, value = error["type"], error["input"]
    if kind == "value_error":  # raised by a validator with a complete message
        return str(error["ctx"]["error"])
    *sections, last = [part for part in error["loc"] if isinstance(part, str)]
    for section in sections:
        cls = cls.model_fields[section].annotation
    where, name = ".".join([*sections, ""]), ".".join([*sections, last])
    if kind == "extra_forbidden":
        close = errors.closest(last, cls.model_fields)
        hint = f"did you mean {where}{close}?" if close else f"known here: {', '.join(cls.model_fields)}"
        return f"unknown setting {describe_value(name)[1:-1]}; {hint}"
    field = cls.model_fields[last]
    if typing.get_origin(field.annotation) is tuple:
        field = FieldInfo.from_annotation(typing.get_args(field.annotation)[0])
    got = describe_value(value)
    if kind == "model_type":
        expected = f"a section [{name}]"
    elif kind == "literal_error":
        expected = f"one of {', '.join(map(repr, typing.get_args(field.annotation)))}"
    elif kind.endswith("_type"):
        got, expected = f"{got} ({type(value).__name__})", field.annotation.__name__
    elif kind in ("greater_than_equal", "less_than_equal", "finite_number"):
        low, high = ([getattr(m, side) for m in field.metadata if hasattr(m, side)] for side in ("ge", "le"))
        expected = f"a number from {low[0]} to {high[0]}" if low and high else error["msg"]
    else:
        expected = error["msg"]
    return f"setting {name}: got {got}, expected {expected}"


def describe_value(value: object) -> str:
    """Literal of a value for error messages, shortened; its type if it has no usable literal."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # huge integers, deeply nested lists
        return f"a very long {type(value).__name__}"
    return text if len(text) <= 200 else f"{text[:200]}..."


def merged(under: dict, over: dict) -> dict:
    """Merge two nested dicts into a new one; values of `over` win."""
    both = {
        key: (
            merged(under[key], value)
            if isinstance(value, dict) and isinstance(under.get(key), dict)
            else value
        )
        for key, value in over.items()
    }
    return under | both


def to_tree(settings: Settings) -> dict:
    """Settings as a nested dict, ready for JSON."""
    return json.loads(json.dumps(settings.model_dump()))


def digest(*parts) -> str:
    """Hexadecimal digest (16 digits) of settings and JSON-serializable values."""
    plain = [part.model_dump() if isinstance(part, Settings) else part for part in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def flat(tree: dict, where: str = "") -> dict:
    """Flatten nested settings to a dict of dotted names."""
    out = {}
    for name, value in tree.items():
        out |= flat(value, f"{where}{name}.") if isinstance(value, dict) else {f"{where}{name}": value}
    return out
