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
            f"clip table lacks the columns {', '.join(missing)}; make it with asdlib.clips.index"
        )
    texts(table, CLIP_COLUMNS, "clip table")
    for column, allowed in (("split", (*SPLITS, SUPPLEMENTAL)), ("domain", DOMAINS), ("label", LABELS)):
        wrong = set(table[column]) - set(allowed)
        if wrong:
            raise InputError(f"clip table: {column} has {sorted(wrong)}, expected {', '.join(allowed)}")
    if table["clip"].duplicated().any():
        twice = table.loc[table["clip"].duplicated(), "clip"].iloc[0]
        raise InputError(
            f"clip table: {twice} stands there twice, expected each clip once; check the data roots for"
            " overlap"
        )
    return table


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
            raise InputError(f"{what}: {column} has {wrong!r}, expected text only")


def score_table(table: pd.DataFrame) -> pd.DataFrame:
    """Validate a score table: columns, finite scores, unique clip, component and seed. Returned unchanged.

    raises : errors.InputError
    """
    missing = [name for name in SCORE_COLUMNS if name not in table]
    if missing:
        raise InputError(f"score table lacks the columns {', '.join(missing)}")
    texts(table, [name for name in SCORE_COLUMNS if name not in ("score", "seed")], "score table")
    if table["score"].dtype.kind not in "fiu" or table["seed"].dtype.kind not in "iu":
        raise InputError(
            f"score table: scores and seeds are {table['score'].dtype} and {table['seed'].dtype}, expected"
            " numbers"
        )
    bad = ~np.isfinite(table["score"].to_numpy(float))
    if bad.any():
        row = table[bad].iloc[0]
        raise InputError(
            f"{row.system}/{row.component}: score of {row.clip} is {row.score}, expected a finite number"
        )
    if table.duplicated(["system", "component", "clip", "seed"]).any():
        raise InputError(
            "score table: a clip was scored twice by one component, expected one row per clip and component"
        )
    return table


def waves(batch, samples: int | None = None):
    """Validate a batch of waveforms (n, samples) with samples > 0. Returned unchanged.

    samples : expected length, if any.  raises : errors.InputError
    """
    if batch.ndim != 2 or batch.shape[1] == 0:
        raise InputError(f"waveforms came as {tuple(batch.shape)}, expected (n, samples) with samples > 0")
    if samples is not None and batch.shape[1] != samples:
        raise InputError(
            f"waveforms of {batch.shape[1]} samples came, expected {samples}; set the length in the study"
        )
    return batch


def embeddings(test: np.ndarray, train: np.ndarray) -> None:
    """Check that two embedding arrays are comparable: 2-dimensional, same width, finite, train not empty.

    test : (n, dim).  train : (m, dim).  raises : errors.InputError
    """
    if test.ndim != 2 or train.ndim != 2 or test.shape[1] != train.shape[1]:
        raise InputError(
            f"embeddings of shapes {test.shape} and {train.shape} came, expected (n, dim) with the same dim"
        )
    if len(train) == 0:
        raise InputError(
            "no training embedding came, expected at least one; is there a training clip for this machine?"
        )
    if not (np.isfinite(test).all() and np.isfinite(train).all()):
        raise InputError(
            "embeddings with NaN or infinite values came, expected finite ones; did training diverge?"
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
    too few of them has no usable references, so its machine is not split.
    table : clip or score table
    """
    sections = table.groupby("machine")["section"].nunique()
    if sections.lt(2).all():
        return table
    facts = table[["machine", "section", "split", "clip"]].drop_duplicates()
    train = facts["split"].eq("train").groupby([facts["machine"], facts["section"]]).sum()
    return _apart(table, sections.gt(1) & train.groupby("machine").min().ge(FEWEST_OF_SECTION))


def _apart(table: pd.DataFrame, several: pd.Series) -> pd.DataFrame:
    apart = table["machine"].map(several).to_numpy(bool)
    if not apart.any():
        return table
    named = table["machine"].where(~apart, table["machine"] + "_" + table["section"])
    taken = sorted(set(named[apart]) & set(table["machine"]))
    if taken:
        raise InputError(f"machine {taken[0]} is named like a section of another machine; rename its folder")
    return table.assign(machine=named)
