"""Settings: frozen pydantic models that check names, types and ranges whenever one is made.

A section is a subclass of `Settings` whose fields come from `setting`; a setting has one type. What is wrong
is refused in one sentence with what was expected and, for a misspelt name, with a suggestion; a check over
several fields is a validator that raises the whole sentence. `digest` turns settings into the name of what
they made.

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


Many = Annotated[tuple[T, ...], pydantic.BeforeValidator(_several)]  # a list, or one value alone, will do


def setting(default, doc: str, low: float | None = None, high: float | None = None):
    """A field with its explanation and, for numbers, the closed range of values it may take."""
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

    __init__.__pydantic_base_init__ = True  # sections inside are not made by it: one refusal, the whole path

    def replace(self, /, **changes) -> Self:
        """A checked copy with some fields changed; a section may be given as a dict of what changes in it.

        raises : errors.InputError as for a new one
        """
        return type(self)(**merged(self.model_dump(), changes))


def _sentence(cls: type[Settings], error: typing.Mapping) -> str:
    """One of pydantic's errors in the project's words."""
    kind, value = error["type"], error["input"]
    if kind == "value_error":  # of a validator, which says all of it
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
    came = describe_value(value)
    if kind == "model_type":
        expected = f"a section [{name}]"
    elif kind == "literal_error":
        expected = f"one of {', '.join(map(repr, typing.get_args(field.annotation)))}"
    elif kind.endswith("_type"):
        came, expected = f"{came} ({type(value).__name__})", field.annotation.__name__
    elif kind in ("greater_than_equal", "less_than_equal", "finite_number"):
        low, high = ([getattr(m, side) for m in field.metadata if hasattr(m, side)] for side in ("ge", "le"))
        expected = f"a number from {low[0]} to {high[0]}" if low and high else error["msg"]
    else:
        expected = error["msg"]
    return f"setting {name}: got {came}, expected {expected}"


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


def to_tree(settings: Settings) -> dict:
    """Nested dict of settings, ready for JSON."""
    return json.loads(json.dumps(settings.model_dump()))


def digest(*parts) -> str:
    """Hexadecimal digest (16 digits) of settings and JSON-able values: equal content, equal digest."""
    plain = [part.model_dump() if isinstance(part, Settings) else part for part in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def flat(tree: dict, where: str = "") -> dict:
    """Nested settings as one dict, by dotted name."""
    out = {}
    for name, value in tree.items():
        out |= flat(value, f"{where}{name}.") if isinstance(value, dict) else {f"{where}{name}": value}
    return out
