"""Sweeps: a study at several values of its settings, and the variation of scores over seeds and settings.

    [sweep]                                    in a study file
    "oevae.condition.k_scale" = [1, 2.5, 5]    or --set 'sweep.oevae.condition.k_scale=[1, 5]'

A variant is one combination of the listed values, named after them: `k_scale=2.5`. The study itself is the
reference. A variant runs the notebooks that train; their pages are in runs/<study>/sweep/jobs/<digest>,
shared by variants with the same training settings. Networks and scores are in runs/artifacts as for any
study. 09_report compares the variants.

The interval of a difference comes from paired resamples of the test clips, averaged over seeds first
(comparison.paired), and covers the choice of test clips. The standard deviation over seeds covers training.
Neither includes the other. Source: METHOD 3.8, 8.3. Notebook: 09_report.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

from asdlib import errors
from asdlib.evaluation import comparison, metrics
from asdlib.scoring import fusion
from asdlib.settings import digest
from asdlib.studies import config
from asdlib.studies.run import Run
from asdlib.studies.study import load
from asdlib.viz import plots, tables

REFERENCE = "as the study"
MAX_VARIANTS = 200  # variants; more are probably a mistake
MEASURED = ("variant", "system", "metric", "seeds", "mean", "low", "high", "sd")
COLUMNS = (*MEASURED, "difference", "difference_low", "difference_high", "p", "same")


def axes(study: str, overrides: Sequence[str] = (), home: str | Path = "") -> dict[str, list]:
    """Return the swept settings of a study and their values, in the order of the file.

    raises : errors.InputError for unknown settings, values of the wrong type, no or repeated values
    """
    tree = config.read(study, overrides, home).get("sweep", {})
    if not isinstance(tree, dict):
        raise errors.InputError(
            f'sweep: got {tree!r}, expected a table of settings, for example "oevae.condition.k_scale" ='
            " [1, 5]"
        )
    found = {name: values for name, values in _leaves(tree)}
    sizes = [len(values) for values in found.values() if isinstance(values, list)]
    if math.prod(sizes) > MAX_VARIANTS:
        raise errors.InputError(
            f"sweep: {' × '.join(map(str, sizes))} variants, expected at most {MAX_VARIANTS}; list"
            " fewer values"
        )
    for name, values in found.items():
        if not isinstance(values, list) or not values:
            raise errors.InputError(f"sweep {name}: got {values!r}, expected a list of values")
        if name.split(".")[0] in ("name", "about", "seeds", "systems"):
            raise errors.InputError(
                f"sweep {name}: cannot be swept, expected a setting in a section; for seeds use seeds = [...]"
            )
        for value in values:
            text = f"{name}={json.dumps(value, ensure_ascii=False)}"
            if isinstance(value, dict):
                raise errors.InputError(
                    f"sweep {name}: got the table {value!r}, expected values of the setting"
                )
            config.load(study, [*overrides, text], home)  # checks names, types and ranges
        if len({json.dumps(value) for value in values}) < len(values):
            raise errors.InputError(f"sweep {name}: got {values}, expected no duplicates")
    return found


def _leaves(tree: dict, where: str = ""):
    for key, value in tree.items():
        yield from (
            _leaves(value, f"{where}{key}.")
            if isinstance(value, dict) and value
            else [(f"{where}{key}", value)]
        )


def variants(study: str, overrides: Sequence[str] = (), home: str | Path = "") -> dict[str, list[str]]:
    """Return name -> overrides of the variants of a study's sweep, except those equal to the study."""
    swept, own = axes(study, overrides, home), config.load(study, overrides, home)
    short = {name: name.rsplit(".", 1)[-1] for name in swept}
    if len(set(short.values())) < len(short):
        short = {name: name for name in swept}
    found = {}
    for choice in itertools.product(*swept.values()):
        texts = [f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in zip(swept, choice)]
        if digest(config.load(study, [*overrides, *texts], home)) == digest(own):
            continue
        name = ",".join(
            f"{short[key]}={re.sub(r'[^A-Za-z0-9.+-]+', '_', json.dumps(value)).strip('_')}"
            for key, value in zip(swept, choice)
        )
        while name in found:
            name += "'"
        found[name] = [*overrides, *texts]
    return found


def of(base: Run) -> dict[str, Run]:
    """Return a study (named "") and its variants by name, all on the study's device."""
    found = {"": base}
    for name, overrides in variants(base.study_file, base.overrides, base.home).items():
        cfg = load(base.study_file, overrides, base.home)
        run = found[name] = Run(cfg, base.home, base.seed, variant=name, base=base)
        run.study_file, run.overrides = base.study_file, overrides
        run.device, run.auto = base.device, base.auto
    return found


# ---------------------------------------------------------------- comparison


def over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """Summarize Ω of every system over the seeds.

    table : METRIC_COLUMNS
    returns : columns system, metric, seeds (their number), mean, low, high (interval over test clips,
        averaged over seeds), sd (over seeds; NaN for one seed), values (list, one per seed)
    """
    own = table[(table["machine"] == "all") & (table["component"] == "score") & (table["metric"] == "omega")]
    rows = []
    for system in fusion.in_order(own["system"]):
        part = own[own["system"] == system].sort_values("seed")
        value, metric = part["value"].to_numpy(float), part["metric"].iloc[0]
        sd = value.std(ddof=1) if len(value) > 1 else np.nan
        interval = part["low"].mean(), part["high"].mean()
        rows.append((system, metric, len(part), value.mean(), *interval, sd, value.tolist()))
    return pd.DataFrame(rows, columns=[*MEASURED[1:], "values"])


def over_variants(run: Run) -> pd.DataFrame:
    """Compare the scores of a study's seeds and variants; empty for one seed without a sweep.

    Notebook: 09_report
    """
    opened = of(run)
    if len(opened) == len(run.cfg.seeds) == 1:
        return pd.DataFrame(columns=[*COLUMNS, "values"])
    scores = {name: variant.load_scores(variant.cfg.systems) for name, variant in opened.items()}
    unlike = [name for name, variant in opened.items() if variant.store.fingerprint != run.store.fingerprint]
    return compare(scores, run.cfg.metrics, run.seed, unlike)


def compare(
    scores: dict[str, pd.DataFrame], settings: metrics.MetricsSettings, seed: int, unlike: Sequence[str] = ()
) -> pd.DataFrame:
    """Return Ω of every system and variant over seeds, and its paired difference from the study.

    scores : variant ("" is the study) -> score table.  seed : of the resamples
    unlike : variants with other recordings, for which no paired difference exists
    returns : COLUMNS and `values`; difference is NaN for the study itself and for `unlike`; same is True if
        all scores equal the study's
    """
    parts = []
    for variant, table in scores.items():
        found = over_seeds(metrics.table(table, settings, seed)).assign(variant=variant or REFERENCE)
        columns = ["difference", "difference_low", "difference_high", "p"]
        found[columns], found["same"] = np.nan, False
        for row in found.index if variant and variant not in unlike else []:
            system, metric = found.loc[row, ["system", "metric"]]
            both = [
                part[part["system"] == system].assign(system=name)
                for part, name in ((table, "variant"), (scores[""], "study"))
            ]
            first, second = (
                part.set_index(["component", "clip", "seed"])["score"].sort_index() for part in both
            )
            found.loc[row, "same"] = first.equals(second)
            pair = comparison.paired(pd.concat(both, ignore_index=True), "variant", "study", settings, seed)
            pair = pair[(pair["machine"] == "all") & (pair["metric"] == metric)]
            found.loc[row, columns] = pair[["value", "low", "high", "p"]].to_numpy(float)[0]
        parts.append(found)
    return pd.concat(parts, ignore_index=True)[[*COLUMNS, "values"]]


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """Format a comparison as text with claims.  table : from `compare`"""
    rows = []
    for row in table.itertuples():
        claim = "" if np.isnan(row.difference) else "no difference shown"
        if row.difference_low > 0 or row.difference_high < 0:
            claim = f"{'better' if row.difference > 0 else 'worse'} than the study's setting"
        if row.same:
            claim = "identical scores: the setting does not affect this system"
        change = (row.difference, row.difference_low, row.difference_high)
        difference = "" if np.isnan(row.difference) else tables.number(*change)
        sd, mean = "" if np.isnan(row.sd) else f"{row.sd:.3f}", tables.number(row.mean, row.low, row.high)
        metric = tables.METRIC_NAMES[row.metric]
        rows.append((row.variant, row.system, metric, mean, row.seeds, sd, difference, claim))
    names = ("settings", "system", "metric", "mean over seeds", "seeds", "sd over seeds")
    return pd.DataFrame(rows, columns=[*names, "difference from the study", "claim"])


def your_change(run: Run, scores: pd.DataFrame) -> tables.Html:
    """Compare an interactive variant with its study: every metric and the paired difference.

    scores : fused score table of this notebook.  Notebooks: 03_baseline, 04_classifier, 05_oevae
    """
    if run.base is None:
        return tables.Html("<p>Nothing to compare: no setting was changed.</p>")
    machines, seeds = set(scores["machine"]), set(scores["seed"])
    parts = []
    for system in fusion.in_order(scores["system"]):
        changed = scores[(scores["system"] == system) & (scores["component"] == "score")]
        try:
            study = run.base.load_scores([system], list(seeds))
        except errors.InputError as missing:
            return tables.Html(f"<p>{tables.escape(f'No comparison: {missing}')}</p>")
        study = study[
            study["machine"].isin(machines) & (study["system"] == system) & (study["component"] == "score")
        ]
        both = pd.concat([changed.assign(system="change"), study.assign(system="study")], ignore_index=True)
        if set(changed["clip"]) != set(study["clip"]):
            return tables.Html("<p>No comparison: the study has other recordings.</p>")
        values = metrics.table(both, run.cfg.metrics, run.seed).set_index(["system", "machine", "metric"])
        for row in comparison.paired(both, "change", "study", run.cfg.metrics, run.seed).itertuples():
            own = [values.loc[side, row.machine, row.metric]["value"] for side in ("study", "change")]
            numbers = ["" if np.isnan(value) else f"{value:.3f}" for value in own]
            difference = "" if np.isnan(row.value) else tables.number(row.value, row.low, row.high)
            parts.append((system, row.machine, tables.METRIC_NAMES[row.metric], *numbers, difference))
    columns = ["system", "machine", "metric", "this study", "your change", "difference (paired interval)"]
    return tables.styled(pd.DataFrame(parts, columns=columns), "This study and your change.")


@matplotlib.rc_context(plots.STYLE)
def dots(table: pd.DataFrame) -> plots.Plot:
    """Plot mean over seeds and interval of each variant, one panel per system; rings are single seeds.

    table : from `compare`
    """
    systems, names = list(dict.fromkeys(table["system"])), list(dict.fromkeys(table["variant"]))
    metric = tables.METRIC_NAMES[table["metric"].iloc[0]]
    text = f"{metric} at each setting, one panel per system; the numbers are in the table"
    figure, panels = plots.panels(
        len(systems), 1, 0.5 + len(systems) * (0.55 + 0.3 * len(names)), text, 7.5, share="x"
    )
    for axis, system in zip(panels[:, 0], systems):
        part = table[table["system"] == system].set_index("variant")
        for y, name in enumerate(names):
            if name in part.index:
                row = part.loc[name]
                axis.plot([row.low, row.high], [y, y], color=plots.BLUE, lw=1.5)
                axis.plot(row["mean"], y, marker="D" if name == REFERENCE else "o", color=plots.BLUE, ms=6)
                if row.seeds > 1:
                    axis.plot(
                        row["values"],
                        np.full(len(row["values"]), y),
                        ls="",
                        marker="o",
                        mfc="white",
                        mec=plots.ORANGE,
                        ms=3.5,
                    )
        axis.set(yticks=range(len(names)), yticklabels=names, title=system, ylim=(len(names) - 0.5, -0.5))
        axis.axvline(0.5, **plots.CHANCE)
    panels[-1, 0].set_xlabel(
        f"{metric} over all machines; diamond: the study's settings; rings: single seeds"
    )
    return figure
