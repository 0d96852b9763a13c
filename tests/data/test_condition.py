"""condition: which attribute becomes v, how values become numbers, what stands in, and k."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from asdlib import errors
from asdlib.data import condition

SETTINGS = {"choice": "most_values", "missing": "power", "bins": 4, "seed": 0, "machine": "m"}


def table(train: dict[str, list[str]], test: dict[str, list[str]] | None = None, level=None) -> pd.DataFrame:
    """Clip table of machine m: attribute values of its training and test clips."""
    parts = [pd.DataFrame(train).assign(split="train"), pd.DataFrame(test or {}).assign(split="test")]
    rows = pd.concat([part for part in parts if len(part)], ignore_index=True).fillna("")
    rows = rows.rename(columns={name: f"attr_{name}" for name in rows if name not in ("split", "id")})
    if level is not None:
        rows["level_db"] = level
    return rows.assign(machine="m", section="00")


@pytest.mark.parametrize(
    ("values", "v", "k"),
    [
        (["4", "8", "12", "16"], [4, 8, 12, 16], 1.25),  # bearing, METHOD 7.1
        (["31V", "34V", "40V"], [31, 34, 40], 5 / 3),
        (["0.03", "0.30"], [0.03, 0.30], 5 / 0.27),
        (["00", "10", "15", "20"], [0, 10, 15, 20], 1.0),
        (["weight25", "weight30"], [25, 30], 1.0),
        (["1,5", "2,5", "4,5"], [1.5, 2.5, 4.5], 5.0),  # decimal commas
        (["A", "B", "D"], [0, 1, 2], 5.0),
        (["B1", "B2", "C1"], [0, 1, 2], 5.0),  # the numeric part would make B1 and C1 one
        (["none", "A", "B"], [2, 0, 1], 5.0),
    ],
)
def test_values_become_numbers(values, v, k):
    found = condition.condition(table({"x": values}), **SETTINGS)
    assert found.key == "x" and found.v.tolist() == v
    assert found.k() == pytest.approx(k) and found.k(10) == pytest.approx(2 * k)


def test_test_clips_use_the_terms_of_training():
    numeric = condition.condition(table({"x": ["4", "8"]}, {"x": ["5", "", "fast"]}), **SETTINGS)
    np.testing.assert_array_equal(numeric.v, [4, 8, 5, np.nan, np.nan])
    assert numeric.d_min == 4  # the 5 of the test does not count
    words = condition.condition(table({"x": ["B", "D"]}, {"x": ["A", "D"]}), **SETTINGS)
    np.testing.assert_array_equal(words.v, [0, 1, np.nan, 1])


def test_choice_of_the_key():
    rows = table({"loc": list("ABCDEA"), "vel": ["4", "8", "12", "4", "8", "12"], "mic": ["1"] * 6})
    most = condition.condition(rows, **SETTINGS)
    assert most.key == "vel" and "numeric one with most training values (3)" in most.reason
    assert condition.condition(rows, **SETTINGS | {"choice": "loc"}).key == "loc"
    drawn = {
        seed: condition.condition(rows, **SETTINGS | {"choice": "random", "seed": seed}).key
        for seed in range(20)
    }
    assert set(drawn.values()) == {"loc", "vel"}  # mic has one value
    assert drawn == {
        seed: condition.condition(rows, **SETTINGS | {"choice": "random", "seed": seed}).key
        for seed in range(20)
    }


def test_a_random_key_varies_in_the_source_domain():
    """mic of ToyCar is the domain: constant in the source, it would tie z_d to nothing there (METHOD 4.6)."""
    rows = table({"mic": ["1"] * 4 + ["2"] * 2, "spd": ["31V", "34V", "31V", "40V", "28V", "37V"]})
    rows["domain"] = ["source"] * 4 + ["target"] * 2
    random = [
        condition.condition(rows, **SETTINGS | {"choice": "random", "seed": seed}) for seed in range(20)
    ]
    assert {found.key for found in random} == {"spd"}
    assert random[0].d_min == 3 and random[0].v.tolist() == [31, 34, 31, 40, 28, 37]
    only = rows.drop(columns="attr_spd").assign(level_db=[-40, -30, -20, -10, -25, 0])
    found = condition.condition(only, **SETTINGS | {"choice": "random"})
    assert found.key == "power"
    assert found.reason == "attribute mic has a single value in the source domain; power is used instead"
    assert condition.condition(only, **SETTINGS | {"choice": "mic"}).key == "mic"  # by its name
    target = only.assign(domain="target")  # no source at all: all training clips
    assert condition.condition(target, **SETTINGS | {"choice": "random"}).key == "mic"


def test_one_training_value_falls_back_and_says_so():
    rows = table({"mic": ["1"] * 4}, {"mic": ["1", "2"]}, level=[-40, -30, -20, -10, -25, 0])
    found = condition.condition(rows, **SETTINGS)
    assert (
        found.key == "power"
        and found.reason == "attribute mic has a single training value; power is used instead"
    )
    assert condition.condition(rows, **SETTINGS | {"choice": "mic"}).reason == found.reason
    assert condition.condition(rows, **SETTINGS | {"missing": "zero"}).v.tolist() == [0.0] * 6


def test_power_bins_have_edges_of_training_clips_only():
    level = [*np.linspace(-50, -30, 8), -100, 100]
    found = condition.condition(table({"id": ["1"] * 8}, {"id": ["1"] * 2}, level=level), **SETTINGS)
    assert found.reason == "no attribute; power is used instead"
    assert found.v.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 0, 3] and found.k() == 5
    louder = condition.condition(
        table({"id": ["1"] * 8}, {"id": ["1"] * 2}, level=[*level[:8], 0, 0]), **SETTINGS
    )
    pd.testing.assert_series_equal(found.v[:8], louder.v[:8])
    same = condition.condition(table({"id": ["1"] * 8}, level=[-40.0] * 8), **SETTINGS)
    assert same.v.nunique() == 1 and same.d_min == 1


def test_refusals():
    rows = table({"vel": ["4", "8"]})
    with pytest.raises(errors.InputError, match=r"unknown machine 'n'; known: m"):
        condition.condition(rows, **SETTINGS | {"machine": "n"})
    with pytest.raises(errors.InputError, match=r"unknown attribute key 'velo'; did you mean vel?"):
        condition.condition(rows, **SETTINGS | {"choice": "velo"})
    with pytest.raises(errors.InputError, match="got missing = 'nought', expected 'power' or 'zero'"):
        condition.condition(rows, **SETTINGS | {"missing": "nought"})
    with pytest.raises(errors.InputError, match="no column level_db, expected the table of the audio store"):
        condition.condition(table({"id": ["1"] * 4}), **SETTINGS)
    with pytest.raises(errors.InputError, match="no training clips of m given"):
        condition.condition(table({"id": ["1"]}).assign(split="test"), **SETTINGS)
