"""Numbers as tables: metrics in the form of the paper's Table 1, claims in words, the clips that stand out.

Conventions
-----------
Values are fractions, chance is 0.5; intervals in brackets. What is not available is written so, with the
reason; a claim is made only against the controls (what shuffled labels and the level of the clips alone would
reach), and beside it stands whether a system is above the reference that needs no training. `styled` makes
every table; it escapes all but what has the type `Html`. Table columns: `schemas.SCORE_COLUMNS`,
`schemas.METRIC_COLUMNS`, `metrics.DECISION_COLUMNS`. Sources: METHOD 3.8; report,
Table 1. Notebooks: 03_baseline, 09_report.

Claims that a reviewer may test: is one system better than another, how do we stand beside the paper, what do
the latents know.

Conventions
-----------
Differences are a − b of two systems on the same resampled test clips, seeds averaged first
(`comparison.Pairs`). A study compares many pairs, so their p-values are corrected together (Holm 1979: the
probability of a single false "better" in the whole table stays below 1 − confidence); a pair that is told
apart only without the correction is said to be so. The number of resamples rises with the number of pairs,
else the correction could reach no verdict at all.
Beside the paper: percent, its Table 1 as printed. What is synthetic compares with nothing and is shown alone.

Sources: METHOD 3.8; report, Table 1; METHOD 7.6. Notebook: 09_report.
"""

from __future__ import annotations

import html
import math
import numbers
import re
import zlib
from collections.abc import Sequence

import numpy as np
import pandas as pd

from asdlib import schemas
from asdlib.evaluation import comparison, metrics, roc
from asdlib.scoring import fusion

OVER_ALL = (
    "omega",
    *roc.THREE,
)  # of machine "all", in the order in which a claim is made on the first available
ABOVE = f"above the training-free reference ({comparison.REFERENCE})"  # column of claims
METRIC_NAMES = {
    "auc_source": "AUC source",
    "auc_target": "AUC target",
    "pauc": "pAUC",
    "hmean": "harmonic mean",
    "omega": "Ω",
}

NO_NUMBER = ("— not available", "not reached")  # words in the place of a number
LONG = 24  # characters: texts that need room and, being names of files, may be broken
LOOK = {  # of every table, in notebooks and reports
    "": (
        "border-collapse: collapse; border-bottom: 1px solid #8886; margin: 1em 0; font-size: .8125em;"
        " line-height: 1.5"
    ),
    "caption": "text-align: left",
    "th, td": (
        "padding: .25em .4em; border: 0; border-top: 1px solid #8886; text-align: left; vertical-align: top"
    ),
    "thead th": "border-top: 0; vertical-align: bottom",
    "thead .col_heading": "white-space: normal",
    "tbody tr:first-child > *": "border-top: 2px solid #888",
    "tbody": "font-variant-numeric: tabular-nums",
    "tbody th": "font-weight: 500",
    "tbody th:empty, tbody th:empty ~ td": "border-top: 0",  # goes on with what the row above is about
}


class Html(str):
    """Text that is HTML already; a notebook shows it as such, and it is not escaped again."""

    def _repr_html_(self) -> str:
        return str(self)

    __html__ = _repr_html_


def escape(value: object) -> Html:
    """Any value as HTML text; `Html` passes unchanged."""
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def own_scores(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of the systems' own scores (component `_score`) of a metric table, averaged over seeds; order is
    kept.

    table : METRIC_COLUMNS.  returns : system, machine, metric, value, low, high, seeds (how many)
    """
    grouped = table[table["component"] == "score"].groupby(["system", "machine", "metric"], sort=False)
    return grouped.agg(
        value=("value", "mean"), low=("low", "mean"), high=("high", "mean"), seeds=("seed", "nunique")
    ).reset_index()


def number(value: float | None, low: float | None = None, high: float | None = None, digits: int = 3) -> str:
    """A value with its interval as text: "0.812 [0.704, 0.903]", or "— not available" for None and NaN."""
    if value is None or math.isnan(value):
        return "— not available"
    bounds = "" if low is None or math.isnan(low) else f" [{low:.{digits}f}, {high:.{digits}f}]"
    return f"{value:.{digits}f}{bounds}"


def signed(text: str) -> str:
    """Numbers in words with a minus sign as wide as the plus, for people; files keep the hyphen."""
    return re.sub(r"(?<![\w-])-(?=\d)", "−", text)


def styled(table: pd.DataFrame, caption: str = "", best: np.ndarray | None = None) -> Html:
    """A table as notebooks display it and reports embed it: its first column heads the rows, columns of
    numbers stand right-aligned.

    table : fractions get 3 digits, NaN words; a line break in a text stays one.  best : (rows, columns) bool,
        the cells in bold with a star
    """
    if table.empty:
        return Html(f'<p class="note">{escape(caption)} none</p>')
    if table.shape[1] == 1:  # no heads for its rows
        table = table.assign(**{"": ""})
    texts = np.array(
        [[_text(value) for value in row] for row in table.itertuples(index=False, name=None)], dtype=object
    )
    if best is not None:
        texts[best] = "* " + texts[best]
    shown = pd.DataFrame(texts[:, 1:], columns=table.columns[1:], dtype=object)
    shown.columns.names = [*[None] * (table.columns.nlevels - 1), np.ravel(table.columns[0])[-1]]
    look = LOOK | {
        f".col{i - 1}" if i else ".row_heading": _look(column, i == 0) for i, column in enumerate(texts.T)
    }
    made = zlib.crc32(repr((caption, list(table), texts.tolist())).encode(errors="replace"))
    styler = shown.style.format(_cell).format_index(_cell, axis=1).format_index_names(_cell, axis=1)
    styler.format_index(lambda row: _cell(texts[row, 0])).set_caption(escape(caption)).set_uuid(f"{made:08x}")
    styler.set_table_styles([{"selector": name, "props": props} for name, props in look.items() if props])
    if best is not None:
        styler.apply(lambda _: np.where(best[:, 1:], "font-weight: bold", ""), axis=None)
    styler.cell_ids = False
    styler.set_table_attributes('tabindex="0"')  # a page scrolls a wide table by the arrow keys
    return Html(styler.to_html())


def folded(title: str, content: Html) -> Html:
    """Something long, folded until its title is clicked."""
    return Html(f"<details><summary>{escape(title)}</summary>{content}</details>")


def _text(value: object) -> str:
    """A cell's value as a person would write it; an interval stays on one line."""
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral):
        return signed(number(float(value)))
    text = value if isinstance(value, Html) else str(value)
    return text.replace(", ", ",\u00a0") if text.endswith("]") and text.count(",") == 1 else text


def _cell(value: object) -> Html:
    return breakable(value) if len(str(value)) > LONG else escape(value)


def _look(texts: Sequence[str], heads: bool) -> str:
    """How a column of texts is set."""
    if all(text.startswith(NO_NUMBER) or not any(map(str.isalpha, text)) for text in texts) and not heads:
        return (
            "text-align: right"
            if any("[" in text for text in texts)
            else "text-align: right; white-space: nowrap"
        )
    if any("\n" in text for text in texts):
        return "white-space: pre"
    return "min-width: 15em" if any(len(text) > LONG for text in texts if not isinstance(text, Html)) else ""


def breakable(text: object) -> Html:
    """Escaped text that may be broken after _ and /, for names of files."""
    return (
        text if isinstance(text, Html) else Html(escape(text).replace("_", "_<wbr>").replace("/", "/<wbr>"))
    )


def wide(table: pd.DataFrame) -> pd.DataFrame:
    """A metric table in the form of the paper's Table 1: one row per machine and metric, one column per
    system, cells as text.

    table : METRIC_COLUMNS (the systems' own scores are used, seeds averaged).  returns : machine, metric,
        then text per system
    """
    own = own_scores(table)
    own["text"] = [number(*row) for row in own[["value", "low", "high"]].itertuples(index=False)]
    texts = own.pivot(index=["machine", "metric"], columns="system", values="text").fillna("—")
    order = list(dict.fromkeys(zip(own["machine"], own["metric"], strict=True)))
    order.sort(key=lambda row: row[0] == "all")
    return texts.loc[order, fusion.in_order(own["system"])].reset_index()


def metrics_table(table: pd.DataFrame, controls: pd.DataFrame | None = None) -> Html:
    """Metrics with intervals per machine and system; the best of each row bold and starred, reasons for what
    is missing below.

    table : METRIC_COLUMNS.  controls : of `metrics.controls`, whose level control stands as last column.
        Notebook: 09_report
    """
    both = pd.concat([table, controls]) if controls is not None else table
    texts, own = wide(both), own_scores(both)
    values = own.pivot(index=["machine", "metric"], columns="system", values="value")
    rivals = values.drop(columns="control_level", errors="ignore")
    best = rivals.eq(rivals.max(axis=1), axis=0) & (rivals.shape[1] > 1)
    best = best.reindex(
        index=pd.MultiIndex.from_frame(texts[["machine", "metric"]]), columns=texts.columns, fill_value=False
    )
    seeds = f" Mean of {own['seeds'].max()} seeds." if own["seeds"].max() > 1 else ""
    note = (
        f"Bold with a star: best of its row. In brackets: interval. Chance: 0.5.{seeds} all: harmonic mean"
        " over machines."
    )
    texts["machine"], texts["metric"] = (
        texts["machine"].mask(texts["machine"].duplicated(), ""),
        texts["metric"].map(METRIC_NAMES),
    )
    missing = "".join(f"<li>{escape(line)}</li>" for line in reasons(table))
    return Html(
        styled(texts, note, best.to_numpy(bool)) + (f'<ul class="note">{missing}</ul>' if missing else "")
    )


def reasons(table: pd.DataFrame) -> list[str]:
    """Why values of a metric table are not available, one sentence per machine and cause."""
    values = own_scores(table).groupby(["machine", "metric"], sort=False)["value"].max().unstack()
    causes = {
        "auc_source": "no normal test clip of the source domain",
        "auc_target": "no normal test clip of the target domain",
    }
    lines = []
    for machine, row in values.drop(index="all", errors="ignore").iterrows():
        if math.isnan(row["pauc"]):
            labels = "no test clips, or none with labels of both kinds"
            lines.append(f"{machine}: not available, {labels}; it is not counted in all and Ω")
        else:
            lines += [
                f"{machine}: {METRIC_NAMES[m]} not available, {cause}"
                for m, cause in causes.items()
                if math.isnan(row[m])
            ]
    parts = values.drop(index="all", errors="ignore")[list(roc.THREE)]
    there, total = int(parts.notna().sum(axis=None)), parts.size
    return (
        [*lines, f"Ω: the harmonic mean of the {there} of {total} numbers that are available"]
        if 0 < there < total
        else lines
    )


def claims(
    table: pd.DataFrame,
    controls: pd.DataFrame,
    pairs: pd.DataFrame | None = None,
    settings: metrics.MetricsSettings | None = None,
) -> pd.DataFrame:
    """What each system reaches over all machines, beside the controls, with the claim in words.

    table : METRIC_COLUMNS.  controls : of `metrics.controls`.  pairs : of `comparison.all_pairs`, by
        `settings` (None: the defaults)
    returns : system, claim, ABOVE (see `above_reference`; only with `pairs`), Ω, AUC source, AUC target,
        pAUC, labels shuffled (range of the first that is available); text
    """
    settings = metrics.MetricsSettings() if settings is None else settings
    both = pd.concat([own_scores(table), own_scores(controls)])
    both = both[both["machine"] == "all"].set_index(["system", "metric"])
    chance = controls[(controls["machine"] == "all") & (controls["component"] != "score")]
    chance = chance.groupby(["component", "metric"])[["value", "low", "high"]].mean()
    rows = []
    for system in fusion.in_order(both.index.get_level_values(0)):
        found = {metric: both.loc[(system, metric), ["value", "low", "high"]] for metric in OVER_ALL}
        told = [metric for metric, row in found.items() if not math.isnan(row["value"])]
        row = {"system": system, "claim": ""}
        if pairs is not None:
            row[ABOVE] = "" if system == "control_level" else above_reference(system, pairs, settings)
        row |= {METRIC_NAMES[metric]: number(*values) for metric, values in found.items()}
        shuffled = chance.loc[(system, told[0])] if told and (system, told[0]) in chance.index else None
        row["labels shuffled"] = (
            "" if shuffled is None else f"[{shuffled['low']:.3f}, {shuffled['high']:.3f}]"
        )
        if system == "control_level":
            row["claim"] = "control: what the level of the clips alone would score"
        elif shuffled is None:
            row["claim"] = "no claim: no labeled test clips"
        else:
            level = both.loc[("control_level", told[0])] if ("control_level", told[0]) in both.index else None
            row["claim"] = _claim(METRIC_NAMES[told[0]], both.loc[(system, told[0])], shuffled, level)
        rows.append(row)
    return pd.DataFrame(rows)


def _claim(name: str, own: pd.Series, shuffled: pd.Series, level: pd.Series | None) -> str:
    chance = shuffled["value"]  # what shuffled labels reach on average: of Ω, a little below 0.5
    if own["value"] < shuffled["low"] and own["high"] < chance:
        return f"{name} is below chance: the order of the scores is turned around"
    if (
        own["value"] <= shuffled["high"] or own["low"] <= chance
    ):  # both: luck of the labels, and of the clips that were drawn
        return f"{name} is not distinguishable from chance"
    if level is None or math.isnan(level["value"]):
        return f"{name} is above chance"
    reach = max(
        level["value"], 1 - level["value"]
    )  # a level that is lower in anomalies tells them just as well
    if reach >= own["value"]:
        return (
            f"{name} is above chance, but the level alone tells as much ({level['value']:.3f}): no evidence"
            " of hearing faults"
        )
    if reach > own["low"]:
        return (
            f"{name} is above chance; its lead over the level alone ({level['value']:.3f}) lies within the"
            " interval"
        )
    return f"{name} is above chance and above what the level alone tells ({level['value']:.3f})"


def standing(scores: pd.DataFrame, decisions: pd.DataFrame) -> pd.DataFrame:
    """Each test clip in standard deviations of its machine's normal training scores, averaged over seeds.

    scores : SCORE_COLUMNS.  decisions : system, machine, seed, threshold
    returns : system, machine, domain, label, clip, above_normal (from the training mean), above_threshold;
        NaN without training scores
    """
    own = scores[scores["component"] == "score"]
    own = schemas.by_section(own).assign(references=schemas.by_references(own)["machine"])
    key, of_train = ["system", "machine", "seed"], ["system", "references", "seed"]
    train = own[own["split"] == "train"].groupby(of_train)["score"].agg(["mean", "std"])
    limits = decisions.drop_duplicates(key).set_index(key)["threshold"]
    test = own[own["split"] == "test"].join(train, on=of_train).join(limits, on=key)
    test["above_normal"] = (test["score"] - test["mean"]) / test["std"]
    test["above_threshold"] = (test["score"] - test["threshold"]) / test["std"]
    columns = ["above_normal", "above_threshold"]
    return (
        test.groupby(["system", "machine", "domain", "label", "clip"], sort=False)[columns]
        .mean()
        .reset_index()
    )


def most_anomalous(scores: pd.DataFrame, decisions: pd.DataFrame, n: int) -> pd.DataFrame:
    """The n test clips of each system that lie farthest above normal training clips. Columns as `job_state`,
    and why.
    """
    table = standing(scores, decisions).sort_values(
        "above_normal", ascending=False, kind="stable", na_position="last"
    )
    return (
        table.groupby("system")
        .head(n)
        .assign(why="most anomalous")
        .sort_values("system", kind="stable", key=_rank)
    )


def most_confused(scores: pd.DataFrame, decisions: pd.DataFrame, n: int) -> pd.DataFrame:
    """Of each system the n anomalies farthest below and the n normals farthest above the threshold. Columns
    as `job_state`, and why.
    """
    table = standing(scores, decisions).sort_values("above_threshold", kind="stable")
    missed = table[(table["label"] == "anomaly") & (table["above_threshold"] <= 0)].groupby("system").head(n)
    false = (
        table[(table["label"] == "normal") & (table["above_threshold"] > 0)]
        .iloc[::-1]
        .groupby("system")
        .head(n)
    )
    both = pd.concat([missed.assign(why="missed anomaly"), false.assign(why="false alarm")])
    return both.sort_values("system", kind="stable", key=_rank)


def behind(scores: pd.DataFrame, decisions: pd.DataFrame, most: int) -> pd.DataFrame:
    """At most `most` clips worth hearing, shared evenly between systems and reasons; each once, with all its
    reasons.

    returns : clip, caption
    """
    n = max(most // (3 * max(scores["system"].nunique(), 1)), 1)
    rows = pd.concat([most_anomalous(scores, decisions, n), most_confused(scores, decisions, n)])
    if rows.empty:  # no test clips
        return pd.DataFrame(columns=["clip", "caption"])
    distance = [
        a if why == "most anomalous" else t
        for a, t, why in zip(rows["above_normal"], rows["above_threshold"], rows["why"], strict=True)
    ]
    since = ["normal mean" if why == "most anomalous" else "threshold" for why in rows["why"]]
    facts = zip(rows["system"], rows["why"], distance, since, strict=True)
    rows["told"] = [
        f"{system}: {why} ({signed(f'{sd:+.1f}')} sd from the {end})" for system, why, sd, end in facts
    ]
    told = (
        rows.groupby(["clip", "domain", "label"], sort=False)["told"].agg("; ".join).reset_index().head(most)
    )
    told["caption"] = told["clip"] + " (" + told["domain"] + ", " + told["label"] + "). " + told["told"]
    return told[["clip", "caption"]]


def _rank(systems: pd.Series) -> pd.Series:
    return systems.map({name: i for i, name in enumerate(fusion.in_order(systems))})


def markdown(text: object) -> str:
    """Text for a Markdown file, where quotes are harmless and stay as they are; what looks like a tag becomes
    text.
    """
    return html.escape(str(text), quote=False)


def markdown_table(table: pd.DataFrame) -> str:
    """A table in Markdown; data cannot break out of its cell."""
    lines = [list(table.columns), ["---"] * table.shape[1], *table.itertuples(index=False, name=None)]
    return "\n".join(
        "| " + " | ".join(markdown(cell).replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def reach_in_words(table: pd.DataFrame) -> pd.DataFrame:
    """One row per machine, one column per system: the severity at which it reaches `LEVEL`, with its
    interval, or "not reached".

    table : REACH_COLUMNS.  An end of an interval that lies beyond what was tested is written ">2", 2 being
        the largest severity tested.
    Notebook: 09_report
    """
    texts = [_words(*row) for row in table[["severity", "low", "high", "tested"]].itertuples(index=False)]
    order, systems = list(dict.fromkeys(table["machine"])), fusion.in_order(table["system"])
    pivot = (
        table.assign(text=texts).pivot(index="machine", columns="system", values="text").loc[order, systems]
    )
    return pivot.fillna("—").reset_index()


def _words(value: float, low: float, high: float, tested: float) -> str:
    if np.isnan(value):
        return "— not available"
    if np.isinf(low):
        return "not reached"
    ends = ", ".join(f"{end:.2f}" if np.isfinite(end) else f">{tested:g}" for end in (low, high))
    return (f"{value:.2f}" if np.isfinite(value) else "not reached") + f" [{ends}]"


DIFFERENCES = ("system_a", "system_b", "metric", "a − b", "p", "p (Holm)", "claim")
PAPER_NAMES = {"baseline_mse": "Baseline (MSE)", "baseline_mahala": "Baseline (MAHALA)", "oevaes": "OEVAES"}
PAPER_METRICS = {"auc_source": "AUC (source)", "auc_target": "AUC (target)", "pauc": "pAUC"}


def verdicts(found: pd.DataFrame, settings: metrics.MetricsSettings) -> pd.DataFrame:
    """A family of comparisons with corrected p-values, in words.

    found : PAIRED_COLUMNS, for example of `comparison.all_pairs`.  returns : DIFFERENCES.  Notebook:
        09_report
    """
    corrected, rows = comparison.holm(found["p"]), []
    for row, p in zip(found.itertuples(), corrected, strict=True):
        better = row.system_a if row.value > 0 else row.system_b
        claim = {
            "holds": f"{better} is better",
            "alone": f"undecided: {better} ahead, not after correction",
            "no": "no difference shown",
        }[_verdict(row.p, p, settings)]
        shown = number(row.value, row.low, row.high).replace("-", "−")
        rows.append((row.system_a, row.system_b, METRIC_NAMES[row.metric], shown, row.p, p, claim))
    return pd.DataFrame(rows, columns=list(DIFFERENCES))


def _verdict(p: float, corrected: float, settings: metrics.MetricsSettings) -> str:
    """A difference `holds` after the correction, passes `alone` without it, or `no`."""
    level = 1 - settings.confidence
    return "holds" if corrected <= level else "alone" if p <= level else "no"


def above_reference(
    system: str, pairs: pd.DataFrame, settings: metrics.MetricsSettings, reference: str = comparison.REFERENCE
) -> str:
    """Whether a system is above the training-free reference, in words, with the paired difference to it.

    pairs : of `comparison.all_pairs`; the correction is for all of them, as in the table of differences
    returns : for example "yes: +0.042 [0.010, 0.074]".  Notebook: 09_report
    """
    if system == reference:
        return "the reference"
    if reference not in {*pairs["system_a"], *pairs["system_b"]}:
        return f"not compared: no {reference} on labeled test clips"
    both = pairs[pairs["system_a"].isin([system, reference]) & pairs["system_b"].isin([system, reference])]
    if both.empty:
        return ""
    row = both.iloc[0]
    value, low, high = row[["value", "low", "high"]]
    if row["system_a"] == reference:
        value, low, high = -value, -high, -low
    said = {"holds": "yes" if value > 0 else "no, below", "alone": "undecided", "no": "not shown"}
    shown = f"{value:+.3f} [{low:.3f}, {high:.3f}]".replace("-", "−")
    return f"{said[_verdict(row['p'], row['p_holm'], settings)]}: {shown}"


def family(found: pd.DataFrame, settings: metrics.MetricsSettings) -> str:
    """The comparisons in one sentence: how many there were, what the correction is, and what holds.  found :
    DIFFERENCES
    """
    if found.empty:
        return "One system: nothing to compare."
    level = f"{1 - settings.confidence:.2g}"
    alone = sum(claim.startswith("undecided") for claim in found["claim"])
    holds = [f"{r.claim} than {_other(r)}" for r in found.itertuples() if r.claim.endswith("is better")]
    least = f"smallest p {found['p'].min():.2g}, corrected {found['p (Holm)'].min():.2g}"
    words = f"{len(found)} comparisons, corrected together after Holm at level {level} ({least}): "
    words += f"{len(holds)} hold" + (f" ({'; '.join(holds)})" if holds else "")
    return words + (f"; {alone} more would pass alone and are not claimed." if alone else ".")


def _other(row) -> str:
    return row.system_b if row.claim.startswith(f"{row.system_a} ") else row.system_a


def table1(table: pd.DataFrame, synthetic: bool) -> Html:
    """The paper's Table 1 and ours in one form, in percent; ours alone where the machines are not the
    paper's, and said so.

    table : METRIC_COLUMNS.  The last row is Ω over the machines that both have, or over ours where there are
        none.  Notebook: 09_report
    """
    own, paper = own_scores(table), own_scores(metrics.paper_table1())
    machines = [name for name in dict.fromkeys(own["machine"]) if name != "all"]
    shared = [] if synthetic else [name for name in machines if name in metrics.PAPER_TABLE1]
    alone = [name for name in machines if name not in shared]
    ours, counted = fusion.in_order(own["system"]), shared or machines
    columns = {("paper", title): f"paper_{name}" for name, title in PAPER_NAMES.items()} if shared else {}
    columns |= {("this study", name): name for name in ours}
    values = pd.concat([own, paper]).set_index(["system", "machine", "metric"])["value"]
    rows = []
    for machine in [*shared, *alone]:
        for place, (metric, title) in enumerate(PAPER_METRICS.items()):
            rows.append(
                (
                    "" if place else machine,
                    title,
                    *(values.get((name, machine, metric), math.nan) for name in columns.values()),
                )
            )
    per_seed = pd.concat([table[table["component"] == "score"], metrics.paper_table1()])
    omegas = [_omega(per_seed[per_seed["system"] == name], counted) for name in columns.values()]
    rows.append(("Ω", f"over {len(counted)} machines", *omegas))
    shown = pd.DataFrame(rows, columns=pd.MultiIndex.from_tuples([("", "machine"), ("", "metric"), *columns]))
    shown = shown.map(
        lambda value: value if isinstance(value, str) else "—" if math.isnan(value) else f"{100 * value:.2f}"
    )
    note = f"In percent, without intervals as in the paper. {_beside(shared, alone, synthetic)}"
    return styled(shown if shared else shown.droplevel(0, axis=1), note)


def _omega(rows: pd.DataFrame, machines: list[str]) -> float:
    """Ω over some machines, mean over seeds; rows : METRIC_COLUMNS of one system."""
    rows = rows[rows["machine"].isin(machines) & rows["metric"].isin(roc.THREE)]
    found = [
        roc.harmonic(part["value"].to_numpy()) if len(part) == 3 * len(machines) else math.nan
        for _, part in rows.groupby("seed")
    ]
    return float(np.mean(found)) if found else math.nan


def _beside(shared: list[str], alone: list[str], synthetic: bool) -> str:
    if synthetic:
        return (
            "Ours alone: the machines of this study are synthetic, and the paper's numbers belong to"
            " recordings."
        )
    if not shared:
        return "Ours alone: no machine of this study is in the paper's table."
    words = (
        "The paper's numbers belong to the DCASE 2024 development recordings; they compare only with ours on"
        " the same ones."
    )
    return words + (f" Not in the paper's table: {', '.join(alone)}." if alone else "")


def latents(measures: pd.DataFrame) -> pd.DataFrame:
    """What z_d and z_c know, one row per machine and seed: R² of v from z_d, accuracy of v and of the domain
    from z_c, beside chance.

    measures : of stage 07, with the column seed.  returns : text and numbers.  Notebook: 09_report
    """
    asked = {
        "v from z_d (R²)": ("z_d", "v", "R²"),
        "v from z_c (R²)": ("z_c", "v", "R²"),
        "domain from z_c": ("z_c", "domain", "balanced accuracy"),
        "domain from embedding": ("embedding", "domain", "balanced accuracy"),
    }
    rows = []
    for (machine, seed), part in measures.groupby(["machine", "seed"], sort=False):
        found = part.set_index(["space", "of", "measure"])
        chance = float(found.loc[("z_c", "domain", "balanced accuracy"), "chance"])
        values = {name: float(found.loc[key, "value"]) for name, key in asked.items()}
        rows.append({"machine": machine, "seed": int(seed)} | values | {"chance": chance})
    return pd.DataFrame(rows)


def decisions(table: pd.DataFrame) -> pd.DataFrame:
    """F1, precision and recall over both domains, seeds averaged: one row per machine, one column per system;
    text.

    table : metrics.DECISION_COLUMNS.  Notebook: 09_report
    """
    both = (
        table[table["domain"] == "all"].groupby(["machine", "system"])[["f1", "precision", "recall"]].mean()
    )
    texts = [
        f"{f1:.2f} ({precision:.2f}, {recall:.2f})" if f1 == f1 else "—"
        for f1, precision, recall in both.itertuples(index=False)
    ]
    wide = pd.Series(texts, index=both.index, dtype=object).unstack("system").fillna("—")
    return wide[fusion.in_order(wide.columns)].reset_index()
