"""Tables of results: formatting of numbers, HTML style, comparison with the paper's Table 1.

Conventions
-----------
Values are fractions, chance is 0.5; intervals are in brackets. Missing values are shown as "not available",
with the reason. `styled` formats all tables and escapes everything except `Html`. Table columns:
`schemas.METRIC_COLUMNS`. Comparisons with the paper are in percent; synthetic machines are not compared.
Sources: METHOD 3.8; report, Table 1; METHOD 7.6. Notebooks: all.
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

from asdlib.evaluation import metrics, roc
from asdlib.scoring import fusion

SYSTEM_NAMES = {  # names in reports, in the order of `fusion.SYSTEMS`
    "baseline_knn": "nearest neighbor",
    "multires": "multi-resolution density",
    "pretrained": "pretrained network",
    "baseline_mse": "autoencoder (MSE)",
    "baseline_mahala": "autoencoder (Mahalanobis)",
    "oevae": "OEVAE",
    "classifier": "classifier",
    "ensemble": "ensemble",
    "fusion": "fusion of views",
    "control_level": "level of the clip alone",
}
METRIC_NAMES = {
    "auc_source": "AUC source",
    "auc_target": "AUC target",
    "pauc": "pAUC",
    "hmean": "harmonic mean",
    "omega": "Ω",
}

NO_NUMBER = ("— not available", "not reached")  # text in place of a number
LONG = 24  # characters; longer texts need a wide column and may be wrapped like file names
TABLE_CSS = {  # of all tables, in notebooks and reports
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
    "tbody th:empty, tbody th:empty ~ td": "border-top: 0",  # continues the group of the row above
}


class Html(str):
    """Text that is already HTML: displayed as such by notebooks, and not escaped."""

    def _repr_html_(self) -> str:
        return str(self)

    __html__ = _repr_html_


def escape(value: object) -> Html:
    """Return any value as escaped HTML; `Html` is returned unchanged."""
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def system_name(system: str, capital: bool = False) -> str:
    """Return the readable name of a system.  capital : for the start of a sentence"""
    base = system.removesuffix(fusion.SEEDS)
    words = SYSTEM_NAMES.get(base, base) + (", mean of seeds" if base != system else "")
    return words[:1].upper() + words[1:] if capital and base in SYSTEM_NAMES else words


def own_scores(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the systems' final scores (component `score`), averaged over seeds, in order.

    table : METRIC_COLUMNS.  returns : system, machine, metric, value, low, high, seeds (their number)
    """
    grouped = table[table["component"] == "score"].groupby(["system", "machine", "metric"], sort=False)
    return grouped.agg(
        value=("value", "mean"), low=("low", "mean"), high=("high", "mean"), seeds=("seed", "nunique")
    ).reset_index()


def number(value: float | None, low: float | None = None, high: float | None = None, digits: int = 3) -> str:
    """Format a value with its interval: "0.812 [0.704, 0.903]", or "— not available" for None and NaN."""
    if value is None or math.isnan(value):
        return "— not available"
    bounds = "" if low is None or math.isnan(low) else f" [{low:.{digits}f}, {high:.{digits}f}]"
    return f"{value:.{digits}f}{bounds}"


def signed(text: str) -> str:
    """Replace hyphens before numbers by minus signs, for display."""
    return re.sub(r"(?<![\w-])-(?=\d)", "−", text)


def styled(table: pd.DataFrame, caption: str = "", best: np.ndarray | None = None) -> Html:
    """Format a table for notebooks and reports, with its first column as row headers.

    table : floats are shown with 3 digits, NaN as "not available"; line breaks in texts are preserved
    best : (rows, columns) bool, the cells in bold with a star
    """
    if table.empty:
        return Html(f'<p class="note">{escape(caption)} none</p>')
    if table.shape[1] == 1:  # no columns except the row headers
        table = table.assign(**{"": ""})
    texts = np.array(
        [[_text(value) for value in row] for row in table.itertuples(index=False, name=None)], dtype=object
    )
    if best is not None:
        texts[best] = "* " + texts[best]
    shown = pd.DataFrame(texts[:, 1:], columns=table.columns[1:], dtype=object)
    shown.columns.names = [*[None] * (table.columns.nlevels - 1), np.ravel(table.columns[0])[-1]]
    look = TABLE_CSS | {
        f".col{i - 1}" if i else ".row_heading": _look(column, i == 0) for i, column in enumerate(texts.T)
    }
    uuid = zlib.crc32(repr((caption, list(table), texts.tolist())).encode(errors="replace"))
    styler = shown.style.format(_cell).format_index(_cell, axis=1).format_index_names(_cell, axis=1)
    styler.format_index(lambda row: _cell(texts[row, 0])).set_caption(escape(caption)).set_uuid(f"{uuid:08x}")
    styler.set_table_styles([{"selector": name, "props": props} for name, props in look.items() if props])
    if best is not None:
        styler.apply(lambda _: np.where(best[:, 1:], "font-weight: bold", ""), axis=None)
    styler.cell_ids = False
    styler.set_table_attributes('tabindex="0"')  # a page scrolls a wide table by the arrow keys
    return Html(styler.to_html())


def folded(title: str, content: Html) -> Html:
    """Return content that is folded until its title is clicked."""
    return Html(f"<details><summary>{escape(title)}</summary>{content}</details>")


def _text(value: object) -> str:
    """Format a cell's value; an interval is not wrapped."""
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral):
        return signed(number(float(value)))
    text = value if isinstance(value, Html) else str(value)
    return text.replace(", ", ",\u00a0") if text.endswith("]") and text.count(",") == 1 else text


def _cell(value: object) -> Html:
    return breakable(value) if len(str(value)) > LONG else escape(value)


def _look(texts: Sequence[str], heads: bool) -> str:
    """Return the CSS of a column of texts."""
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
    """Return escaped text that may be wrapped after _ and /, for file names."""
    return (
        text if isinstance(text, Html) else Html(escape(text).replace("_", "_<wbr>").replace("/", "/<wbr>"))
    )


def wide(table: pd.DataFrame) -> pd.DataFrame:
    """Arrange metrics as in the paper's Table 1: one row per machine and metric, one column per system.

    table : METRIC_COLUMNS (only the systems' final scores are used, averaged over seeds)
    returns : machine, metric, then text per system
    """
    own = own_scores(table)
    own["text"] = [number(*row) for row in own[["value", "low", "high"]].itertuples(index=False)]
    texts = own.pivot(index=["machine", "metric"], columns="system", values="text").fillna("—")
    order = list(dict.fromkeys(zip(own["machine"], own["metric"], strict=True)))
    order.sort(key=lambda row: row[0] == "all")
    return texts.loc[order, fusion.in_order(own["system"])].reset_index()


def metrics_table(table: pd.DataFrame, controls: pd.DataFrame | None = None) -> Html:
    """Return metrics with intervals per machine and system, and reasons for missing values.

    table : METRIC_COLUMNS.  controls : from `metrics.controls`, whose level control is the last column
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
        f"Bold with a star: best in its row. In brackets: interval. Chance: 0.5.{seeds} all: harmonic mean"
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
    """Return the reasons for missing values of a metric table, one sentence per machine and cause."""
    values = own_scores(table).groupby(["machine", "metric"], sort=False)["value"].max().unstack()
    causes = {
        "auc_source": "no normal test clip of the source domain",
        "auc_target": "no normal test clip of the target domain",
    }
    lines = []
    for machine, row in values.drop(index="all", errors="ignore").iterrows():
        if math.isnan(row["pauc"]):
            labels = "no test clips, or none with labels of both kinds"
            lines.append(f"{machine}: not available, {labels}; excluded from all and Ω")
        else:
            lines += [
                f"{machine}: {METRIC_NAMES[m]} not available, {cause}"
                for m, cause in causes.items()
                if math.isnan(row[m])
            ]
    parts = values.drop(index="all", errors="ignore")[list(roc.THREE)]
    available, total = int(parts.notna().sum(axis=None)), parts.size
    return (
        [*lines, f"Ω: the harmonic mean of the {available} of {total} values that are available"]
        if 0 < available < total
        else lines
    )


def markdown(text: object) -> str:
    """Escape text for a Markdown file; quotes are unchanged."""
    return html.escape(str(text), quote=False)


def markdown_table(table: pd.DataFrame) -> str:
    """Return a table in Markdown, with escaped cells."""
    lines = [list(table.columns), ["---"] * table.shape[1], *table.itertuples(index=False, name=None)]
    return "\n".join(
        "| " + " | ".join(markdown(cell).replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def reach_in_words(table: pd.DataFrame) -> pd.DataFrame:
    """Return the severity at which each system reaches `LEVEL` on each machine, with its interval, as text.

    table : REACH_COLUMNS
    returns : one row per machine, one column per system; limits above the largest tested severity (such as 2)
        are written ">2".  Notebook: 09_report
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


PAPER_NAMES = {"baseline_mse": "Baseline (MSE)", "baseline_mahala": "Baseline (MAHALA)", "oevaes": "OEVAES"}
PAPER_METRICS = {"auc_source": "AUC (source)", "auc_target": "AUC (target)", "pauc": "pAUC"}


def table1(table: pd.DataFrame, synthetic: bool) -> Html:
    """Compare with the paper's Table 1, in percent, on common machines; empty for synthetic machines.

    table : METRIC_COLUMNS.  The last row is Ω over these machines, mean over seeds.  Notebook: 09_report
    """
    machines = [] if synthetic else [name for name in metrics.PAPER_TABLE1 if name in set(table["machine"])]
    if not machines:
        return Html("")
    both = pd.concat([table[table["component"] == "score"], metrics.paper_table1()])
    both = both[both["machine"].isin(machines) & both["metric"].isin(roc.THREE)]
    columns = {("paper", title): f"paper_{name}" for name, title in PAPER_NAMES.items()}
    columns |= {("this study", name): name for name in fusion.in_order(own_scores(table)["system"])}
    values = own_scores(both).set_index(["machine", "metric", "system"])["value"].unstack()
    order = pd.MultiIndex.from_product([machines, list(PAPER_METRICS)])
    shown = values.reindex(index=order, columns=list(columns.values()))
    shown.loc[("Ω", f"over {len(machines)} machines"), :] = [
        _omega(both[both["system"] == name], len(machines)) for name in columns.values()
    ]
    shown = shown.map(lambda value: "—" if math.isnan(value) else f"{100 * value:.2f}")
    heads = shown.index.to_frame(index=False)
    heads = heads.set_axis(["machine", "metric"], axis=1).replace({"metric": PAPER_METRICS})
    heads["machine"] = heads["machine"].mask(heads["machine"].duplicated(), "")
    shown = pd.concat([heads, shown.reset_index(drop=True)], axis=1)
    shown.columns = pd.MultiIndex.from_tuples([("", "machine"), ("", "metric"), *columns])
    return styled(
        shown,
        "In percent, without intervals as in the paper. Its results are for the DCASE 2024 development"
        " recordings and can be compared only with ours on the same recordings.",
    )


def _omega(rows: pd.DataFrame, machines: int) -> float:
    """Return Ω of one system, mean over seeds; NaN if it did not score this number of machines."""
    found = [
        roc.harmonic(part["value"].to_numpy()) if len(part) == 3 * machines else math.nan
        for _, part in rows.groupby("seed")
    ]
    return float(np.mean(found)) if found else math.nan
