"""Columns of the clip, score and metric tables and array shapes, validated at module boundaries.

Invalid tables and arrays raise an `errors.InputError`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from asdlib.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

DOMAINS = ("source", "target", "unknown")
LABELS = ("normal", "anomaly", "unlabeled")
SPLITS = ("train", "test")
SUPPLEMENTAL = "supplemental"  # split of clips used only as pseudo-anomalies
STAND_IN = "stand-in"  # split of pseudo-anomalies in a score table, see `fusion.view_weights`
ALL = "all"  # machine of the values over all machines in a metric table
CLIP_COLUMNS = ("clip", "path", "machine", "section", "split", "domain", "label")
SCORE_COLUMNS = (
    "system",
    "component",
    "machine",
    "section",
    "split",
    "domain",
    "label",
    "clip",
    "score",
    "seed",
)
METRIC_COLUMNS = ("system", "component", "machine", "metric", "value", "low", "high", "seed")


FEWEST_OF_SECTION = 3  # training clips: the scored clip, its reference, and the reference's neighbor


def clip_table(table: pd.DataFrame) -> pd.DataFrame:
    """Validate a clip table: columns, known values, unique clips. Returned unchanged.

    raises : errors.InputError
    """
    missing = [name for name in CLIP_COLUMNS if name not in table]
    if missing:
        raise InputError(
            f"clip table: missing columns {', '.join(missing)}; build the table with asdlib.data.index.index"
        )
    texts(table, CLIP_COLUMNS, "clip table")
    _known_values(table, "clip table", (*SPLITS, SUPPLEMENTAL))
    if table["clip"].duplicated().any():
        duplicate = table.loc[table["clip"].duplicated(), "clip"].iloc[0]
        raise InputError(
            f"clip table: clip {duplicate} occurs more than once, expected unique clips; check the data roots"
            " for overlap"
        )
    return table


def _known_values(table: pd.DataFrame, what: str, splits: Iterable[str]) -> None:
    for name in (ALL, ""):  # values over all machines; `Clips.train("")`
        if (table["machine"] == name).any():
            raise InputError(f"{what}: a machine is named {name!r}, which means all machines; rename it")
    for column, allowed in (("split", splits), ("domain", DOMAINS), ("label", LABELS)):
        wrong = set(table[column].unique()) - set(allowed)
        if wrong:
            raise InputError(
                f"{what}: column {column} contains {sorted(wrong)}, expected {', '.join(allowed)}"
            )


def texts(table: pd.DataFrame, columns: Iterable[str], what: str) -> None:
    """Check that columns of a table hold only text.

    raises : errors.InputError
    """
    for column in columns:
        every = table[column].dtype == "str"  # string columns need no check per value
        wrong = (
            None if every else next((value for value in table[column] if not isinstance(value, str)), None)
        )
        if wrong is not None or table[column].isna().any():
            raise InputError(f"{what}: column {column} contains {wrong!r}, expected strings only")


def score_table(table: pd.DataFrame) -> pd.DataFrame:
    """Validate a score table: columns, known values, finite scores, unique clip, component and seed.

    Returned unchanged.

    raises : errors.InputError
    """
    missing = [name for name in SCORE_COLUMNS if name not in table]
    if missing:
        raise InputError(f"score table: missing columns {', '.join(missing)}")
    texts(table, [name for name in SCORE_COLUMNS if name not in ("score", "seed")], "score table")
    _known_values(table, "score table", (*SPLITS, SUPPLEMENTAL, STAND_IN))
    if table["score"].dtype.kind not in "fiu" or table["seed"].dtype.kind not in "iu":
        raise InputError(
            f"score table: score is {table['score'].dtype} and seed is {table['seed'].dtype}, expected"
            " numeric columns"
        )
    bad = ~np.isfinite(table["score"].to_numpy(float))
    if bad.any():
        row = table[bad].iloc[0]
        raise InputError(
            f"{row['system']}/{row['component']}: score of {row['clip']} is {row['score']}, expected a finite"
            " number"
        )
    if table.duplicated(["system", "component", "clip", "seed"]).any():
        raise InputError(
            "score table: duplicate scores for a clip, expected one row per system, component, clip and seed"
        )
    return table


def waves(batch, samples: int | None = None):
    """Validate a batch of waveforms (n, samples) with samples > 0. Returned unchanged.

    samples : expected length, if any.  raises : errors.InputError
    """
    if batch.ndim != 2 or batch.shape[1] == 0:
        raise InputError(f"waveforms have shape {tuple(batch.shape)}, expected (n, samples) with samples > 0")
    if samples is not None and batch.shape[1] != samples:
        raise InputError(
            f"waveforms have {batch.shape[1]} samples, expected {samples}; set the clip length in the study"
        )
    return batch


def embeddings(test: np.ndarray, train: np.ndarray) -> None:
    """Check that two embedding arrays are comparable: 2-dimensional, same width, finite, train not empty.

    test : (n, dim).  train : (m, dim).  raises : errors.InputError
    """
    if test.ndim != 2 or train.ndim != 2 or test.shape[1] != train.shape[1]:
        raise InputError(
            f"test and train embeddings have shapes {test.shape} and {train.shape}, expected (n, dim) with"
            " equal dim"
        )
    if len(train) == 0:
        raise InputError(
            "no training embeddings given, expected at least one; does this machine have training clips?"
        )
    if not (np.isfinite(test).all() and np.isfinite(train).all()):
        raise InputError(
            "embeddings contain NaN or infinite values, expected finite values; did training diverge?"
        )


def by_section(table: pd.DataFrame) -> pd.DataFrame:
    """Table in which each section of a machine with several sections is a machine <machine>_<section>.

    Metrics, thresholds and intervals are per machine and section, as in the official evaluation of DCASE 2020
    to 2022.
    table : with the columns machine and section.  returns : a new table, or `table` if nothing changes
    raises : errors.InputError if such a name is taken by another machine
    """
    return _apart(table, table.groupby("machine")["section"].nunique().gt(1))


def by_references(table: pd.DataFrame) -> pd.DataFrame:
    """`by_section`, except for machines with a section of fewer than `FEWEST_OF_SECTION` training clips.

    Clips are compared with, and normalized by, the training clips of the same resulting name. A section with
    too few of them has no usable references, so its machine is not split. Only normal training clips count:
    the sections of test clips move no score of another clip.
    table : clip or score table
    """
    if table.groupby("machine")["section"].nunique().lt(2).all():
        return table
    facts = table[["machine", "section", "split", "label", "clip"]].drop_duplicates()
    train = facts[(facts["split"] == "train") & (facts["label"] == "normal")]
    counts = train.groupby(["machine", "section"])["clip"].size().groupby("machine").agg(["size", "min"])
    apart = (counts["size"] > 1) & (counts["min"] >= FEWEST_OF_SECTION)
    return _apart(table, apart.reindex(facts["machine"].unique(), fill_value=False))


def _apart(table: pd.DataFrame, several: pd.Series) -> pd.DataFrame:
    apart = table["machine"].map(several).to_numpy(bool)
    if not apart.any():
        return table
    named = table["machine"].where(~apart, table["machine"] + "_" + table["section"])
    taken = sorted(set(named[apart]) & set(table["machine"]))
    if taken:
        raise InputError(
            f"machine name {taken[0]} collides with a section of another machine; rename its folder"
        )
    return table.assign(machine=named)
