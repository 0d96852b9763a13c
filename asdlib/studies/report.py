"""Reports: an executed notebook as one self-contained page, clips to hear, a summary, and the index of all
studies.

Conventions
-----------
The frame of a page is that of `pages`. Everything that comes from data is escaped. All clips of one set of
players have one common gain, so that levels can be compared by ear. Files are written whole or not at all;
disk full and missing permissions are worded by `io.wrap_os_errors`. Source: METHOD 8.4. Notebooks: all become
pages; summary and players are those of 09_report.
"""

from __future__ import annotations

import datetime
import json
import math
import operator
import os
import urllib.parse
from collections.abc import Sequence
from pathlib import Path

import nbformat
import pandas as pd
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import MarkdownWithMath
from traitlets.config import Config

from asdlib import errors, io
from asdlib.evaluation import metrics
from asdlib.scoring import fusion
from asdlib.settings import digest, to_tree
from asdlib.studies import artifacts, config
from asdlib.viz import audio, pages, plots, tables

FACES = [
    "text/html",
    "text/markdown",
    "image/svg+xml",
    "image/png",
    "image/jpeg",
    "text/plain",
]  # no widgets, no scripts


# ---------------------------------------------------------------- pages


def html(executed_notebook: Path, out: Path, footer: dict, title: str) -> Path:
    """One page from one executed notebook: contents, folded code, outputs, footer. Written whole or not at
    all.

    executed_notebook : .ipynb with outputs.  out : .html.  footer : name -> value, what made this page (run,
        device, versions).
    raises : errors.InputError if there is no such notebook
    """
    settings = Config(
        {"NbConvertBase": {"display_data_priority": FACES}, "HTMLExporter": {"anchor_link_text": ""}}
    )
    exporter = HTMLExporter(
        config=settings, template_name="basic", template_file=str(pages.TEMPLATES / "report.html.j2")
    )
    exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    try:
        book = nbformat.read(executed_notebook, 4)
        book.metadata.pop("widgets", None)
        page = {"title": title, "footer": footer, "contents": _contents(book), "head": pages.head(title)}
        text = exporter.from_notebook_node(book, resources={"page": page})[0]
    except (
        Exception
    ) as error:  # one that is JSON but no notebook raises many kinds, and some only on its way to the page
        raise errors.InputError(
            f"{executed_notebook}: no readable notebook ({str(error)[:200]!r}); run the stage again"
        ) from error
    io.write_text(out, text)
    return out


def _contents(book: nbformat.NotebookNode) -> list[tuple[str, str]]:
    """(anchor, text) of the second-level headings, with the anchors that nbconvert gives them."""
    source = "\n\n".join(cell.source for cell in book.cells if cell.cell_type == "markdown")
    tokens = MarkdownWithMath(renderer=None).parse(source)[0]
    found = [t for t in tokens if t["type"] == "heading" and t["attrs"]["level"] == 2]
    texts = [_words(t) for t in found]
    return [(text.strip().replace(" ", "-"), text) for text in texts] + [("run", "This run")]


def _words(token: dict) -> str:
    return token.get("raw", "") + "".join(map(_words, token.get("children", ())))


def write_index(reports: Path) -> Path:
    """reports/index.html: every study that has a report.json, newest first, with its Ω. Returns the page's
    path.
    """
    rows = []
    for path in reports.glob("*/report.json"):
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            omega = {name: tables.number(v, low, high) for name, (v, low, high) in facts["omega"].items()}
            lines = "\n".join(f"{name} {omega[name]}" for name in fusion.in_order(omega))
            texts = [str(facts[name]) for name in ("finished", "study", "about")]
            rows.append((*texts, ", ".join(facts["machines"]), lines, str(facts["left_out"])))
        except (ValueError, KeyError, OSError, TypeError, AttributeError, RecursionError) as error:
            rows.append(("", path.parent.name, f"report.json is not readable ({error})", "", "", ""))
    table = pd.DataFrame(
        sorted(rows, reverse=True),
        dtype=object,
        columns=["finished", "study", "about", "machines", "Ω", "clips left out"],
    )
    links = [tables.Html(_links(reports, name)) for name in table["study"]]
    table["study"] = pd.Series(links, dtype=object)  # a column of str would forget that they are HTML
    table["finished"] = table["finished"].str[:16]  # to the minute, on one line
    shown = tables.styled(table[["study", "about", "machines", "Ω", "clips left out", "finished"]])
    page, text = reports / "index.html", pages.page("Reports", shown)
    if not page.is_file() or page.read_bytes() != text.encode():  # what is finished stays untouched
        io.write_text(page, text)
    return page


def _links(reports: Path, study: str) -> str:
    """The way to a study's report and, where there is one, to its page of seeds and settings."""
    where = urllib.parse.quote(study)
    more = (
        f' <a href="{where}/sweep.html">seeds and settings</a>'
        if os.path.isfile(reports / study / "sweep.html")
        else ""
    )
    return f'<a href="{where}/index.html">{tables.escape(study)}</a>{more}'


def players(store, clips: Sequence[str], captions: Sequence[str], sample_rate: int) -> tables.Html:
    """Players of several clips of a store, all with the same gain. clips : as in the clip table.  Notebooks:
    01_data, 09_report.
    """
    row_of = {name: row for row, name in enumerate(store.clips["clip"])}
    for name in clips:
        errors.check_choice("clip", name, list(row_of))
    if not len(clips):
        return tables.Html('<p class="note">No clips to listen to.</p>')
    waves = [store.int16(row_of[name]) / 32768.0 for name in clips]
    gain = audio.common_gain(waves)
    return side_by_side(
        [
            pages.player(wave, sample_rate, caption, gain)
            for wave, caption in zip(waves, captions, strict=True)
        ],
        gain,
    )


def side_by_side(shown: Sequence[tables.Html], gain: float) -> tables.Html:
    """Several of `pages.player`, with a word about their common gain.  Notebook: 02_preprocessing"""
    words = (
        f"{'All with one gain' if len(shown) > 1 else 'Gain'} of"
        f" {tables.signed(f'{20 * math.log10(gain):+.1f}')} dB."
    )
    return tables.Html(f'<p class="note">{words}</p><div class="clips">{"".join(shown)}</div>')


# ---------------------------------------------------------------- summary


def claims_text(
    table: pd.DataFrame, controls: pd.DataFrame, pairs: pd.DataFrame, settings: metrics.MetricsSettings
) -> str:
    """Which system is best and what each may claim, for a terminal. Arguments as of `tables.claims`."""
    found = tables.claims(table, controls, pairs, settings)
    above = found[tables.ABOVE] if tables.ABOVE in found else [""] * len(found)
    omega = tables.own_scores(table)
    omega = omega[(omega["metric"] == "omega") & (omega["machine"] == "all")].sort_values("value")
    best = [f"highest Ω: {omega['system'].iloc[-1]} ({omega['value'].iloc[-1]:.3f})"] if len(omega) else []
    width = max((len(name) for name in found["system"]), default=0)
    return "\n".join(
        [
            *best,
            *(
                f"{name:{width}}  {claim}{f'; above the training-free reference: {more}' if more else ''}"
                for name, claim, more in zip(found["system"], found["claim"], above)
            ),
        ]
    )


def metrics_text(table: pd.DataFrame) -> str:
    """The metric table for a terminal. table : METRIC_COLUMNS."""
    return tables.wide(table).to_string(index=False, justify="left")


def summary_markdown(
    cfg: config.StudySettings,
    table: pd.DataFrame,
    controls: pd.DataFrame,
    problems: pd.DataFrame,
    versions: dict,
    pairs: pd.DataFrame | None = None,
) -> str:
    """The study in short: claims with controls, metrics per machine, what was left out, settings and
    versions.  pairs : of `comparison.all_pairs`.  Notebook: 09_report.
    """
    gone = problems[problems["left_out"].astype(bool)]
    parts = [
        f"# {cfg.name}",
        tables.markdown(cfg.about),
        "## Claims, with controls",
        tables.markdown_table(tables.claims(table, controls, pairs, cfg.metrics)),
    ]
    parts += [
        "## Metrics per machine (interval in brackets)",
        tables.markdown_table(tables.wide(table)),
        *(f"- {line}" for line in tables.reasons(table)),
    ]
    parts += [
        "## Left out",
        (
            f"Clips left out: {len(gone)}; further remarks: {len(problems) - len(gone)}. The page"
            " `index.html` lists them."
        ),
    ]
    parts += [
        "## Made by",
        f"settings {digest(cfg)}; " + ", ".join(f"{name} {version}" for name, version in versions.items()),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _plain(table: pd.DataFrame) -> list[dict]:
    """Rows as JSON values; NaN becomes null."""
    return json.loads(table.to_json(orient="records", double_precision=15))


def save_picture(figure: plots.Plot, path: Path) -> None:
    """A figure as PNG, beside the summary. Notebook: 09_report."""
    with io.atomic_write(path) as part:
        part.write_bytes(plots.image(figure, "png"))


def write_summary(
    folder: Path,
    cfg: config.StudySettings,
    table: pd.DataFrame,
    controls: pd.DataFrame,
    problems: pd.DataFrame,
    pairs: pd.DataFrame | None = None,
) -> None:
    """summary.md for people and report.json for machines, in a study's report folder; then the index of all
    studies.  pairs : of `comparison.all_pairs`
    """
    versions, own = artifacts.versions(), tables.own_scores(table)
    facts = {
        "study": cfg.name,
        "about": cfg.about,
        "finished": datetime.datetime.now().isoformat(" ", "seconds"),
        "machines": [name for name in dict.fromkeys(own["machine"]) if name != "all"],
        "omega": {
            row["system"]: [row["value"], row["low"], row["high"]]
            for row in _plain(own[own["metric"] == "omega"])
        },
        "left_out": int(problems["left_out"].astype(bool).sum()),
        "settings": to_tree(cfg),
        "settings_digest": digest(cfg),
        "versions": versions,
        "metrics": _plain(table),
        "controls": _plain(controls),
        "pairs": [] if pairs is None else _plain(pairs),
    }
    folder.mkdir(parents=True, exist_ok=True)
    io.write_text(folder / "summary.md", summary_markdown(cfg, table, controls, problems, versions, pairs))
    io.write_text(folder / "report.json", json.dumps(facts, indent=1, allow_nan=False))
    write_index(folder.parent)


def settings(cfg: config.StudySettings) -> pd.DataFrame:
    """Every setting of a study: name, value, default, meaning. Notebook: 09_report."""
    rows = [(name, operator.attrgetter(name)(cfg), default, doc) for name, default, doc in config.describe()]
    return pd.DataFrame(
        [[name, _told(value), _told(default), doc] for name, value, default, doc in rows],
        columns=["setting", "value", "default", "meaning"],
    )


def _told(value: object) -> str:
    """A setting's value as a person would write it."""
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
