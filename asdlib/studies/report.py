"""Reports: notebook pages as self-contained HTML, findings of a study, clip cards, summary, index of studies.

Conventions
-----------
Page layout comes from `pages`, the wording of results from `claims`. Text from data is escaped. Clips shown
together are played with one gain, so that their levels can be compared. Files are written atomically.
Source: METHOD 8.4. Notebooks: all become pages; findings, summary and cards are shown in 09_report.
"""

from __future__ import annotations

import base64
import datetime
import io as memory
import json
import math
import operator
import os
import shlex
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.image
import nbformat
import numpy as np
import pandas as pd
import torch
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import MarkdownWithMath
from traitlets.config import Config

from asdlib import errors, features, io
from asdlib.analysis import changes
from asdlib.evaluation import comparison, metrics
from asdlib.scoring import fusion
from asdlib.settings import digest, to_tree
from asdlib.studies import artifacts, config
from asdlib.viz import audio, claims, embedding_plots, pages, report_plots, tables

UNFOLDED = ("04", "05")  # notebooks whose code is shown unfolded
MIME_TYPES = [  # by priority; no widgets, no scripts
    "text/html",
    "text/markdown",
    "image/svg+xml",
    "image/png",
    "image/jpeg",
    "text/plain",
]


# ---------------------------------------------------------------- pages


def html(executed_notebook: Path, out: Path, footer: dict, title: str = "") -> Path:
    """Convert an executed notebook to an HTML page with contents, folded code, outputs and footer.

    executed_notebook : .ipynb with outputs.  out : .html; its name contains the machine and seed
    footer : name -> value of what made the page (study, device, versions)
    title : default: the notebook's
    raises : errors.InputError if the notebook is missing or unreadable
    """
    settings = Config(
        {"NbConvertBase": {"display_data_priority": MIME_TYPES}, "HTMLExporter": {"anchor_link_text": ""}}
    )
    exporter = HTMLExporter(
        config=settings, template_name="basic", template_file=str(pages.TEMPLATES / "report.html.j2")
    )
    exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    try:
        book = nbformat.read(executed_notebook, 4)
        book.metadata.pop("widgets", None)
        title = title or book.cells[0].source.splitlines()[0].lstrip("# ")
        study, about = str(footer.get("study", "")), pages.about(out)
        which = filter(None, [study, *about, datetime.date.today().isoformat()])
        page = {"which": " · ".join(which), "footer": footer, "contents": _contents(book)}
        page["walk"] = out.name[:2] in UNFOLDED
        page["head"] = pages.head(" · ".join(filter(None, [title, *about, study])))
        text = exporter.from_notebook_node(book, resources={"page": page})[0]
    except Exception as error:  # of many kinds, if the file is not a valid notebook
        raise errors.InputError(
            f"{executed_notebook}: not a readable notebook ({str(error)[:200]!r}); run the stage again"
        ) from error
    io.write_text(out, text)
    return out


def _contents(book: nbformat.NotebookNode) -> list[tuple[str, str]]:
    """Return (anchor, text) of the second-level headings, with nbconvert's anchors."""
    source = "\n\n".join(cell.source for cell in book.cells if cell.cell_type == "markdown")
    tokens = MarkdownWithMath(renderer=None).parse(source)[0]
    texts = [_text(t) for t in tokens if t["type"] == "heading" and t["attrs"]["level"] == 2]
    return [(text.strip().replace(" ", "-"), text) for text in texts] + [("run", "This run")]


def _text(token: dict) -> str:
    return token.get("raw", "") + "".join(map(_text, token.get("children", ())))


def write_index(reports: Path) -> Path:
    """Write reports/index.html, a list of all studies with a report.json, newest first; return its path."""
    found = []
    for path in reports.glob("*/report.json"):
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            found.append((str(facts["finished"]), _entry(path.parent, facts)))
        except (ValueError, KeyError, OSError, TypeError, AttributeError, RecursionError) as error:
            problem = f"report.json is not readable ({error}); run the study again"
            found.append(("", f"<h2>{_link(path.parent)}</h2><p>{tables.escape(problem)}</p>"))
    body = "".join(f"<section>{text}</section>" for _, text in sorted(found, reverse=True))
    page, text = reports / "index.html", pages.page("Reports", body or "<p>No study has a report yet.</p>")
    if not page.is_file() or page.read_bytes() != text.encode():
        io.write_text(page, text)
    return page


def _entry(folder: Path, facts: dict) -> str:
    """Return the index entry of a study.  facts : its report.json"""
    badges = pages.badges([(str(short), bool(serious)) for short, serious in facts["warnings"]])
    scores = {name: tables.number(v, low, high) for name, (v, low, high) in facts["omega"].items()}
    lines = "; ".join(f"{tables.system_name(name)} {scores[name]}" for name in fusion.in_order(scores))
    machines = ", ".join(map(str, facts["machines"]))
    finished = f"{facts['finished'][:16]}; {machines}; {facts['left_out']} clips left out."
    texts = [f"{finished} {facts['about']}", f"Official scores: {lines}." if lines else ""]
    notes = "".join(f'<p class="note">{tables.escape(text)}</p>' for text in texts if text)
    lead = f'<p class="lead">{tables.escape(facts["headline"])}</p>'
    return f"<h2>{_link(folder)}</h2>{lead}{badges}{_files(folder)}{notes}"


def _link(folder: Path) -> str:
    return f'<a href="{urllib.parse.quote(folder.name)}/index.html">{tables.escape(folder.name)}</a>'


OTHERS = {  # files of a report that are not pages of notebooks, and their link texts
    "model_card.md": "model card",
    "summary.md": "summary",
    "report.json": "numbers",
}


def _files(folder: Path) -> str:
    """Return links to all pages and files of a study's report."""
    found, named = pages.series(folder), {}
    several = len({page.seed for page in found} - {""}) > 1
    for page in found:
        seed = f"seed {page.seed}" if several and page.seed else ""
        named[page.path.name] = " ".join(filter(None, [page.stage.replace("_", " "), page.machine, seed]))
    named |= {name: text for name, text in OTHERS.items() if os.path.isfile(folder / name)}
    links = " · ".join(
        f'<a href="{urllib.parse.quote(f"{folder.name}/{name}")}">{tables.escape(text)}</a>'
        for name, text in named.items()
    )
    return f'<p class="files">{links}</p>' if links else ""


def players(store, clips: Sequence[str], captions: Sequence[str], sample_rate: int) -> tables.Html:
    """Return audio players for clips of a store, with one common gain.

    clips : names in the clip table.  Notebooks: 01_data, 02_preprocessing, 06_embeddings
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
    """Arrange players (`pages.player`) next to each other and note their gain.  Notebook: 02_preprocessing"""
    note = (
        f"{'All with one gain' if len(shown) > 1 else 'Gain'} of"
        f" {tables.signed(f'{20 * math.log10(gain):+.1f}')} dB."
    )
    return tables.Html(f'<p class="note">{note}</p><div class="clips">{"".join(shown)}</div>')


# ---------------------------------------------------------------- findings


@dataclass(frozen=True)
class Findings:
    """Results of a study for its report, summary and model card.

    cfg : settings of the study
    table, controls : METRIC_COLUMNS.  decisions : metrics.DECISION_COLUMNS
    alarms : from `claims.calibration`.  pairs : from `comparison.all_pairs`.  claims : from `claims.claims`
    system : the system whose clips and counts are shown, from `claims.leader`
    places : from `claims.standardized`.  headline, warnings : sentences
    """

    cfg: config.StudySettings
    table: pd.DataFrame
    controls: pd.DataFrame
    decisions: pd.DataFrame
    alarms: pd.DataFrame
    pairs: pd.DataFrame
    claims: pd.DataFrame
    system: str
    places: pd.DataFrame
    headline: str
    warnings: list[claims.Warning]


def findings(run, scores: pd.DataFrame) -> Findings:
    """Compute and describe the results of a study.  run : run.Run.  scores : from `Run.collect`"""
    cfg, (table, controls) = run.cfg, run.measure(scores)
    decisions = metrics.decisions(scores, cfg.metrics)
    alarms = metrics.false_alarms(scores, run.unseen(scores), decisions, cfg.metrics.confidence)
    pairs = comparison.all_pairs(scores, cfg.metrics, run.seed)
    claim_table = claims.claims(table, controls, pairs, cfg.metrics, cfg.chosen_by)
    system, verdicts = claims.leader(claim_table), run.load_table("07_latents", "verdicts.csv")
    dead = []
    if len(verdicts) and "oevae" in cfg.systems:
        dead = sorted(set(verdicts.loc[verdicts["verdict"].str.contains("VAE is dead"), "machine"]))
    return Findings(
        cfg,
        table,
        controls,
        decisions,
        claims.calibration(alarms, 1 - cfg.metrics.decision_quantile),
        pairs,
        claim_table,
        system,
        claims.standardized(scores, decisions),
        claims.headline(claim_table, pairs, cfg.metrics, dead, cfg.chosen_by),
        claims.warnings(run.clips, table, controls, system, dead, cfg.chosen_by, run.synthetic)
        + _accepted_warning(run.withdrawn),
    )


def _accepted_warning(clips: Sequence[str]) -> list[claims.Warning]:
    """Return a warning if test clips were accepted as normal by hand."""
    if not clips:
        return []
    s = "s" * (len(clips) > 1)
    text = (
        f"{len(clips)} test clip{s} accepted as normal by hand {'are' if s else 'is'} excluded from all"
        f" figures here (pages 03 to 05 still include {'them' if s else 'it'}): {claims.listed(clips)}. This"
        " lowers the number of false alarms. Scores here do not use accepted references; asd score does."
    )
    return [claims.Warning(True, f"{len(clips)} accepted clip{s} withdrawn", text)]


def first_screen(found: Findings) -> tables.Html:
    """Return the top of the report: headline, warnings, official scores, decisions per machine."""
    badges = pages.badges([(warning.short, warning.serious) for warning in found.warnings])
    measured = found.claims.set_index("system")["case"][found.system] != "none"
    figure = tables.Html("<p>Not available: no labeled test clips.</p>")
    figure = report_plots.official_scores(found.table, found.controls) if measured else figure
    items = "".join(
        f"<li><strong>{tables.escape(machine)}</strong>: {tables.escape(text)}</li>"
        for machine, text in in_practice(found).items()
    )
    share = 1 - found.cfg.metrics.decision_quantile
    note = (
        f"At the threshold of {tables.system_name(found.system)}, set on normal training clips so that about"
        f" {share:.0%} of normals lie above it."
    )
    if measured:
        note += " The system was selected on these test clips: expect slightly lower scores on new ones."
    return tables.Html(
        f'{pages.parts_style()}<p class="lead">{tables.escape(found.headline)}</p>{badges}<div class="split">'
        f"<div><h3>Official score</h3>{figure}</div>"
        f"<div><h3>In practice, per machine</h3><ul>{items}</ul>"
        f'<p class="note">{tables.escape(note)}</p></div></div>'
    )


def in_practice(found: Findings) -> dict[str, str]:
    """Describe the decisions of the system at its threshold, one sentence per machine."""
    counts = claims.detections(found.places[found.places["system"] == found.system])
    sentences = {row.machine: claims.in_practice(row) for row in counts.itertuples()}
    limits = found.decisions[found.decisions["system"] == found.system].drop_duplicates("machine")
    for row in limits.sort_values("machine").itertuples():
        sentences.setdefault(
            row.machine,
            f"no test clips; threshold {row.threshold:.3g}, from {row.train_clips} normal training clips",
        )
    return sentences


def claims_table(found: Findings) -> tables.Html:
    """Return the claim of each system and its official score."""
    shown = found.claims[["system", "claim", claims.ABOVE, "Ω", "labels shuffled"]]
    return tables.styled(shown.assign(system=shown["system"].map(tables.system_name)))


def views_table(run, scores: pd.DataFrame) -> tables.Html:
    """Compare the fusion of views with fusions that leave one view out, by Ω over all machines, paired.

    run : run.Run.  scores : from `Run.collect`.  Notebook: 09_report
    """
    cfg = run.cfg
    if not (scores["split"] == "test").any():
        return tables.Html('<p class="note">Not available: no test clips.</p>')
    made = scores[~scores["system"].str.endswith(fusion.SEEDS)]
    made = fusion.leave_one_view_out(made, cfg.fusion.views, cfg.fusion.how, fusion.FUSED, cfg.fusion.weights)
    pairs, rows = comparison.Pairs(made, cfg.metrics, run.seed), []
    for view in cfg.fusion.views:
        rest = f"{fusion.FUSED} without {view}"
        pair = comparison.over_all(pairs(fusion.FUSED, rest))
        gain = tables.number(*pair[["value", "low", "high"]].iloc[0]) if len(pair) else ""
        rows.append([view, tables.number(pairs.omega(rest)), tables.signed(gain)])
    note = f"Ω of the {cfg.fusion.how} of all views: {tables.number(pairs.omega(fusion.FUSED))}."
    if cfg.fusion.weights:
        note += f" Weights: {', '.join(f'{weight:g}' for weight in cfg.fusion.weights)}."
    columns = ["without", "Ω of the rest", "all views less the rest"]
    return tables.styled(pd.DataFrame(rows, columns=columns), note)


def detection_table(found: Findings) -> tables.Html:
    """Return faults found and false alarms of every system, one row per machine."""
    counts = claims.detections(found.places).query("faults + normals > 0")
    if counts.empty:
        return tables.Html('<p class="note">Not available: no labeled test clips.</p>')
    texts = [f"{r.found}/{r.faults}, {r.false_alarms}/{r.normals}" for r in counts.itertuples()]
    wide = counts.assign(text=texts).pivot(index="machine", columns="system", values="text").fillna("—")
    wide = wide[fusion.in_order(wide.columns)].rename(columns=tables.system_name).reset_index()
    return tables.styled(wide, "Faults found, false alarms: each out of all labeled test clips.")


def alarm_table(found: Findings) -> tables.Html:
    """Return false alarms of every system on normal clips not used in training, with the nominal share."""
    return tables.styled(
        found.alarms.assign(system=found.alarms["system"].map(tables.system_name)), ALARM_NOTE
    )


ALARM_NOTE = (
    "Share above the threshold of normal clips not used in training. Held-out normals are training clips"
    " scored by models trained without them; thresholds are set on them. Without such clips, a network's"
    " threshold is set on clips it was trained on and may be too low. Test normals do not influence anything."
    f" “As set”: within {claims.NEAR:.2f} of the nominal share."
)


QUANTILES = (0.8, 0.9, 0.95, 0.99, 0.999)


def quantile_table(found: Findings, scores: pd.DataFrame) -> pd.DataFrame:
    """Return the decisions of the system at other threshold quantiles, per machine, as text.

    returns : columns machine, quantile, normal training clips above (leave-clip-out), false alarms, faults
        found (on labeled test clips; "—" if there are none).  Notebook: 09_report
    """
    own, rows = scores[scores["system"] == found.system], []
    for quantile in sorted({*QUANTILES, found.cfg.metrics.decision_quantile}):
        decisions = metrics.decisions(own, found.cfg.metrics.replace(decision_quantile=quantile))
        counts = claims.detections(claims.standardized(own, decisions)).set_index("machine")
        for machine, part in decisions[decisions["domain"] == "all"].groupby("machine"):
            clips, above = int(part["train_clips"].iloc[0]), part["train_above"].mean()
            r = counts.loc[machine] if machine in counts.index else dict.fromkeys(counts, 0)
            rows.append(
                {
                    "machine": machine,
                    "quantile": f"{quantile:g}",
                    "normal training clips above": f"{above:.1%} of {clips}" if clips else "—",
                    "false alarms": f"{r['false_alarms']}/{r['normals']}" if r["normals"] else "—",
                    "faults found": f"{r['found']}/{r['faults']}" if r["faults"] else "—",
                }
            )
    return pd.DataFrame(rows).sort_values("machine", kind="stable").reset_index(drop=True)


# ---------------------------------------------------------------- cards of clips


KINDS = ("missed fault", "false alarm", "fault found", "most anomalous")


def notable(places: pd.DataFrame, most: int) -> pd.DataFrame:
    """Select the most informative test clips of a system, ordered by machine and kind.

    These are the faults farthest below the threshold, normals farthest above, faults farthest above, and the
    most anomalous unlabeled clips.

    places : from `claims.standardized`, one system.  most : number of clips, divided evenly between machines
    returns : rows of `places` with a column kind (one of KINDS)
    """
    above = places["above_threshold"]
    fault, normal = (places["label"] == name for name in ("anomaly", "normal"))
    masks = (fault & (above <= 0), normal & (above > 0), fault & (above > 0), places["label"] == "unlabeled")
    parts = []
    for kind, mask, rising in zip(KINDS, masks, (True, False, False, False), strict=True):
        part = places[mask].sort_values("above_threshold", ascending=rising, kind="stable")
        parts.append(part.assign(kind=kind, rank=part.groupby("machine").cumcount()))
    ranked = pd.concat(parts).sort_values(["machine", "rank"], kind="stable")
    ranked["turn"] = ranked.groupby("machine").cumcount()
    chosen = ranked.sort_values(["turn", "machine"], kind="stable").head(most)
    chosen = chosen.assign(order=chosen["kind"].map(KINDS.index)).sort_values(["machine", "order", "rank"])
    return chosen[[*places.columns, "kind"]].reset_index(drop=True)


def clip_cards(run, found: Findings) -> tables.Html:
    """Return cards of notable clips: description, log-mel, player, and score relative to the threshold.

    Each clip is shown with the most similar normal training clip. Similarity and description depend on the
    sound only (`changes.Normals`), not on the system.

    run : run.Run; the setting report.players limits the number of players.  Notebook: 09_report
    """
    shown = notable(found.places[found.places["system"] == found.system], run.cfg.report.players // 2)
    if shown.empty:
        return tables.Html('<p class="note">No test clips to listen to.</p>')
    row_of = {name: row for row, name in enumerate(run.clips["clip"])}
    shown["row"] = shown["clip"].map(row_of)
    change_of = {}
    for machine, part in shown.groupby(run.clips["machine"].to_numpy()[shown["row"]]):
        normals = changes.Normals.of(run.store, machine)
        change_of |= {row: normals.describe(run.store.int16(row) / 32768.0) for row in part["row"]}
    rows = {*change_of, *(change.like for change in change_of.values())}
    waves = {row: run.store.int16(row) for row in rows}
    gain = audio.common_gain([wave / 32768.0 for wave in waves.values()])
    normals = found.places[(found.places["system"] == found.system) & (found.places["label"] == "normal")]
    cards = [
        _card(run, row, change_of[row.row], waves, gain, found.places, normals) for row in shown.itertuples()
    ]
    note = f"All clips have one gain of {tables.signed(f'{20 * math.log10(gain):+.1f}')} dB."
    legend = pages.legend(*embedding_plots.CHANGE_COLORS)
    return tables.Html(f'{legend}<div class="cards">{"".join(cards)}</div><p class="note">{note}</p>')


def _card(
    run, row, change: changes.Change, waves: dict, gain: float, places: pd.DataFrame, normals: pd.DataFrame
) -> str:
    rate, clips, pair = run.cfg.data.sample_rate, run.clips, (row.row, change.like)
    mels = [_log_mel(waves[number], rate) for number in pair]
    limits = np.percentile(np.concatenate([mel.ravel() for mel in mels]), [2, 99.5])
    figures = []
    for number, mel, name in zip(pair, mels, ("this clip", "most similar normal clip")):
        file = Path(clips["clip"][number]).name
        player = pages.sound(audio.vorbis(waves[number], rate, gain), f"{name}: {file}")
        figures.append(
            f'<figure><img alt="log-mel of {tables.escape(file)}" src="{_thumbnail(mel, limits)}">'
            f"{player}<figcaption>{name}: {tables.breakable(file)}</figcaption></figure>"
        )
    of_clip = places[places["clip"] == row.clip]
    flagged, systems = int((of_clip["above_threshold"] > 0).sum()), len(of_clip)
    normal_band = normals.loc[normals["machine"] == row.machine, "above_normal"].quantile([0.05, 0.95])
    limit, ends = row.above_normal - row.above_threshold, [row.above_normal, *normal_band.dropna()]
    ends = [*ends, limit] if math.isfinite(limit) else ends
    text = f"score {tables.signed(f'{row.above_normal:+.1f}')}, threshold {tables.signed(f'{limit:+.1f}')}"
    scale = pages.scale(
        (min(-1.0, *ends) - 0.3, max(1.0, *ends) + 0.3),
        f"{text} standard deviations from the mean of normal training clips",
        band=tuple(normal_band),
        lines=(limit,),
        dots=((row.above_normal, "target" if row.domain == "target" else "source"),),
    )
    accept = ""
    if row.kind == "false alarm":
        path = Path(clips["path"][int(row.row)])
        path = path.relative_to(run.home) if path.is_relative_to(run.home) else path
        which = ["--machine", row.machine, "--system", row.system]
        command = shlex.join(["asd", "score", run.cfg.name, *which, "--accept", str(path)])
        details = f"<summary>Normal after all?</summary><code>{tables.escape(command)}</code>"
        accept = f'<details class="note">{details}</details>'
    about = tables.escape(f"{row.domain}, {row.label}; flagged by {flagged} of {systems} systems")
    return (
        f'<article class="card"><h3>{tables.escape(row.machine)}: {row.kind}</h3><p>{about}</p>'
        f'{scale}<p class="note">{text}</p>{embedding_plots.change(change, whole=False)}{accept}'
        f'<div class="pair">{"".join(figures)}</div></article>'
    )


def _log_mel(wave: np.ndarray, rate: int) -> np.ndarray:
    """Return the log-mel spectrogram of a clip in dB, (48, at most 160).  wave : int16 (n,)"""
    batch = np.asarray(wave, np.float32)[None] / 32768.0
    mel = features.log_mel(torch.from_numpy(batch), n_mels=48, hop=512, rate=rate)[0, 0].numpy()
    step = math.ceil(mel.shape[1] / 160)
    return mel[:, : mel.shape[1] // step * step].reshape(len(mel), -1, step).mean(2)


def _thumbnail(mel: np.ndarray, limits: np.ndarray) -> str:
    """Return a log-mel (bands, frames) as the data URI of a JPEG.  limits : color range in dB, (2,)"""
    out, (low, high) = memory.BytesIO(), limits
    matplotlib.image.imsave(out, mel, vmin=low, vmax=high, cmap="magma", origin="lower", format="jpg")
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"


# ---------------------------------------------------------------- summary


def claims_text(found: pd.DataFrame) -> str:
    """Format claims for a terminal.  found : from `claims.claims`"""
    above = found.get(claims.ABOVE, pd.Series("", index=found.index))
    width = max((len(name) for name in found["system"]), default=0)
    return "\n".join(
        f"{name:{width}}  {claim}{f'; above the training-free reference: {more}' if more else ''}"
        for name, claim, more in zip(found["system"], found["claim"], above)
    )


def metrics_text(table: pd.DataFrame) -> str:
    """Format metrics for a terminal.  table : METRIC_COLUMNS"""
    return tables.wide(table).to_string(index=False, justify="left")


def summary_markdown(found: Findings, problems: pd.DataFrame, versions: dict) -> str:
    """Return a summary: headline, warnings, claims, controls, metrics per machine, left-out clips, settings
    and versions.  Notebook: 09_report
    """
    left_out, cfg = int(problems["left_out"].astype(bool).sum()), found.cfg
    parts = [
        f"# {cfg.name}",
        f"**{tables.markdown(found.headline)}**",
        "\n".join(f"- {tables.markdown(warning.sentence)}" for warning in found.warnings),
        tables.markdown(cfg.about),
        "## In practice",
        f"At the threshold of {tables.system_name(found.system)}:",
        "\n".join(f"- {tables.markdown(f'{name}: {text}')}" for name, text in in_practice(found).items()),
        "## Claims, with controls",
        tables.markdown_table(found.claims.drop(columns="case")),
        "## Metrics per machine (interval in brackets)",
        tables.markdown_table(tables.wide(found.table)),
        *(f"- {tables.markdown(line)}" for line in tables.reasons(found.table)),
        "## Left out",
        f"Clips left out: {left_out}; further remarks: {len(problems) - left_out}."
        " The page `index.html` lists them.",
        "## Made by",
        f"settings {digest(cfg)}; " + ", ".join(f"{name} {version}" for name, version in versions.items()),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _plain(table: pd.DataFrame) -> list[dict]:
    """Return rows as JSON values, with null for NaN."""
    return json.loads(table.to_json(orient="records", double_precision=15))


def write_summary(folder: Path, found: Findings, problems: pd.DataFrame) -> None:
    """Write summary.md and report.json to a study's report folder, and update the index of studies."""
    versions, own, cfg = artifacts.versions(), tables.own_scores(found.table), found.cfg
    facts = {
        "study": cfg.name,
        "about": cfg.about,
        "finished": datetime.datetime.now().isoformat(" ", "seconds"),
        "headline": found.headline,
        "warnings": [[warning.short, warning.serious] for warning in found.warnings],
        "chosen_by": cfg.chosen_by,
        "machines": [name for name in dict.fromkeys(own["machine"]) if name != "all"],
        "omega": {
            row["system"]: [row["value"], row["low"], row["high"]]
            for row in _plain(own[own["metric"] == "omega"])
        },
        "left_out": int(problems["left_out"].astype(bool).sum()),
        "settings": to_tree(cfg),
        "settings_digest": digest(cfg),
        "versions": versions,
        "metrics": _plain(found.table),
        "controls": _plain(found.controls),
        "pairs": _plain(found.pairs),
    }
    folder.mkdir(parents=True, exist_ok=True)
    io.write_text(folder / "summary.md", summary_markdown(found, problems, versions))
    io.write_text(folder / "report.json", json.dumps(facts, indent=1, allow_nan=False))
    write_index(folder.parent)


def settings(cfg: config.StudySettings) -> pd.DataFrame:
    """Return all settings of a study: name, value, default, meaning.  Notebook: 09_report"""
    rows = [(name, operator.attrgetter(name)(cfg), default, doc) for name, default, doc in config.describe()]
    return pd.DataFrame(
        [[name, _format(value), _format(default), doc] for name, value, default, doc in rows],
        columns=["setting", "value", "default", "meaning"],
    )


def _format(value: object) -> str:
    """Format a setting's value; tuples without brackets."""
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
