"""Condition v, the number per clip to which OEVAE ties its attribute channels, and the prior scale k.

Conventions
-----------
v is a float per clip of one machine. The mapping from attribute values to numbers is learned from the
machine's training clips only; test clips with values outside it have v = NaN. d_min is the smallest
difference between two distinct training values of v, and k = k_scale / d_min (5 / 3 for 31, 34 and 40 V).

Source: METHOD 3.3, 4.4-4.7. Notebooks: 01_data, 05_oevae, 07_latents
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from asdlib import errors
from asdlib.data import index
from asdlib.settings import Settings, setting


class ConditionSettings(Settings):
    """Condition v of the latent space (METHOD 3.3)."""

    attribute: str = setting(
        "random",
        "attribute used as condition: random (drawn by the seed among those that vary in the source domain,"
        " report 4.1), most_values (the numeric one with the most values, METHOD 3.3), or an attribute name",
    )
    missing: Literal["power", "zero"] = setting(
        "power", "v of machines without attributes: power of the raw clip (report 4.1), or 0 (METHOD 4.7)"
    )
    bins: int = setting(4, "quantile bins of the power (METHOD 4.5)", 2, 1000)
    center: bool = setting(
        True,
        "subtract the mean of v over the training clips; false: prior mean k·v as printed in Eq. 3 (METHOD"
        " 4.5)",
    )
    k_scale: float = setting(
        5.0, "k = k_scale / smallest difference between values of v (report 4.2)", 0.0, 1000.0
    )


NUMBER = re.compile(r"([A-Za-z]*)([-+]?\d+(?:[.,]\d+)?)([A-Za-z]*)")  # 1.5 or 1,5


@dataclass(frozen=True)
class Condition:
    """v of one machine, indexed like its rows of the clip table, with its origin."""

    machine: str
    key: str  # attribute key, "power" or "zero"
    v: pd.Series  # float, NaN if unknown
    d_min: float  # > 0
    reason: str

    def k(self, k_scale: float = 5.0) -> float:
        """Scale of the prior mean k·v (METHOD 3.3)."""
        return k_scale / self.d_min


def condition(
    table: pd.DataFrame, *, choice: str, missing: Literal["power", "zero"], bins: int, seed: int, machine: str
) -> Condition:
    """Values v of all clips of one machine.

    choice : "random" (a key drawn by the seed among those with two or more values in source-domain training
        clips, or in all training clips if none is of the source; keys that only separate the domains are no
        condition, METHOD 4.6), "most_values" (the numeric key with most training values), or an attribute key
    missing : fallback, "power" (level_db in quantile bins of the training clips) or "zero"
    bins : number of quantile bins of the power
    raises : errors.InputError for an unknown machine or key, no training clips, or power without level_db
    """
    errors.check_choice("machine", machine, sorted(set(table["machine"])))
    if missing not in ("power", "zero"):
        raise errors.InputError(f"condition: got missing = {missing!r}, expected 'power' or 'zero'")
    rows = table[table["machine"] == machine]
    train = rows[rows["split"] == "train"]
    if train.empty:
        raise errors.InputError(
            f"no training clips of {machine} given, expected at least one to choose its condition"
        )
    keys = index.attribute_keys(train)
    values = {key: sorted(set(train[f"attr_{key}"]) - {""}, key=index.natural) for key in keys}
    source = train[train["domain"] != "target"] if "domain" in train else train
    varying = {
        key
        for key in keys
        if (source if len(source) else train)[f"attr_{key}"].replace("", pd.NA).nunique() >= 2
    }
    key, reason = _choose(
        choice,
        values,
        varying,
        index.attribute_keys(table),
        np.random.default_rng([seed, zlib.crc32(machine.encode())]),
    )
    if key is None:
        return _without_attribute(rows, train, missing, bins, machine, reason)
    v = pd.Series(_numbers(rows[f"attr_{key}"], values[key]), index=rows.index, dtype=float)
    return Condition(machine, key, v, _smallest_step(v[train.index]), reason)


def _choose(
    choice: str, values: dict[str, list[str]], varying: set[str], known: list[str], rng: np.random.Generator
) -> tuple[str | None, str]:
    """Selected key, or None, and the reason.  varying : keys with two or more values in the source domain"""
    several = sorted(key for key in values if len(values[key]) >= 2)
    if choice not in ("random", "most_values"):
        errors.check_choice("attribute key", choice, ["random", "most_values", *known])
        if choice in several:
            return choice, f"attribute {choice}, chosen by name"
        return (
            None,
            (
                f"attribute {choice} has"
                f" {'a single training value' if values.get(choice) else 'no training value'}"
            ),
        )
    if not values:
        return None, "no attribute"
    if not several:
        return None, f"attribute {', '.join(sorted(values))} has a single training value"
    if choice == "random":
        drawn = sorted(varying)
        if not drawn:
            return None, f"attribute {', '.join(several)} has a single value in the source domain"
        key = drawn[int(rng.integers(len(drawn)))]
        return key, f"attribute {key}, drawn among {', '.join(drawn)}"
    numeric = [key for key in several if _affixes(values[key])] or several
    key = max(numeric, key=lambda name: len(values[name]))
    return (
        key,
        (
            f"attribute {key}, the {'numeric ' if _affixes(values[key]) else ''}one with most training values"
            f" ({len(values[key])})"
        ),
    )


def _affixes(values: list[str]) -> tuple[str, str] | None:
    """Common prefix and suffix if all values are a number within the same text (31V, 34V), else None."""
    matches = [NUMBER.fullmatch(value) for value in values]
    around = {(match[1], match[3]) for match in matches if match}
    return around.pop() if all(matches) and len(around) == 1 else None


def _numbers(column: pd.Series, training_values: list[str]) -> list[float]:
    affixes = _affixes(training_values)
    order = {value: float(place) for place, value in enumerate(training_values)}
    if not affixes:
        return [order.get(value, np.nan) for value in column]
    numbers = []
    for value in column:
        match = NUMBER.fullmatch(value)
        numbers.append(
            float(match[2].replace(",", ".")) if match and (match[1], match[3]) == affixes else np.nan
        )
    return numbers


def _smallest_step(train_v: pd.Series) -> float:
    steps = np.diff(np.unique(train_v.dropna()))
    return float(steps.min()) if len(steps) else 1.0


def _without_attribute(
    rows: pd.DataFrame, train: pd.DataFrame, missing: str, bins: int, machine: str, reason: str
) -> Condition:
    if missing == "zero":
        return Condition(
            machine, "zero", pd.Series(0.0, index=rows.index), 1.0, f"{reason}; zero is used instead"
        )
    if "level_db" not in rows:
        raise errors.InputError(
            f"{machine}: {reason} and the table has no column level_db, expected the table of the audio"
            " store; decode the clips first"
        )
    edges = np.quantile(train["level_db"], np.arange(1, bins) / bins)
    v = pd.Series(np.searchsorted(edges, rows["level_db"], side="right").astype(float), index=rows.index)
    return Condition(machine, "power", v, _smallest_step(v[train.index]), f"{reason}; power is used instead")
