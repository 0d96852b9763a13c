"""Columns of the clip, score and metric tables and shapes of arrays, checked where they cross a border.

Tables and arrays that do not hold to them are refused with one sentence (`errors.InputError`).
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
SUPPLEMENTAL = "supplemental"  # a third one, of clips that stand in no other table
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


FEWEST_OF_SECTION = 3  # training clips: one to be scored, its reference, and that one's neighbor


def clip_table(table: pd.DataFrame) -> pd.DataFrame:
    """The clip table as every stage may assume it: columns, known values, unique clips; others are refused.
    Returned unchanged.
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
    """Columns of a table that hold text and nothing else; others are refused."""
    for column in columns:
        every = table[column].dtype == "str"  # pandas' own column of texts needs no look at each
        wrong = (
            None if every else next((value for value in table[column] if not isinstance(value, str)), None)
        )
        if wrong is not None or table[column].isna().any():
            raise InputError(f"{what}: {column} has {wrong!r}, expected text only")


def score_table(table: pd.DataFrame) -> pd.DataFrame:
    """The score table as it crosses the border to metrics: columns, finite scores, one row per clip and
    component; others are refused.
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
    """A batch of waveforms: float, (n, samples), finite length > 0; else refused. Returned unchanged."""
    if batch.ndim != 2 or batch.shape[1] == 0:
        raise InputError(f"waveforms came as {tuple(batch.shape)}, expected (n, samples) with samples > 0")
    if samples is not None and batch.shape[1] != samples:
        raise InputError(
            f"waveforms of {batch.shape[1]} samples came, expected {samples}; set the length in the study"
        )
    return batch


def embeddings(test: np.ndarray, train: np.ndarray) -> None:
    """Two sets of embeddings that can be compared: two-dimensional, same width, finite, train not empty.

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
    """The table with each section of a machine that has several as a machine of its own, named
    <machine>_<section>.

    Metrics, thresholds and intervals are per machine and section, as in the official evaluation of DCASE 2020
    to 2022.
    table : with the columns machine and section.  returns : a new table, or the same one where nothing
        changes
    raises : errors.InputError where such a name is the name of another machine
    """
    return _apart(table, table.groupby("machine")["section"].nunique().gt(1))


def by_references(table: pd.DataFrame) -> pd.DataFrame:
    """As `by_section`, but a machine stays whole where one of its sections has fewer than `FEWEST_OF_SECTION`
    training clips.

    A clip is compared with the training clips, and brought to the scale of the training scores, that have its
    name here: such a
    section has nothing to be judged by, and its machine's clips are judged together.  table : clip or score
    table
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
