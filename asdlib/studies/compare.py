"""Compare two finished studies: settings, results, and whether the difference is significant.

Conventions
-----------
Reads only files written by `asd run`: `runs/<study>/metrics.csv`, `scores.parquet`, `clips.parquet` and
`09_report/manifest.json`; only the paired test is computed. It covers machines with the same test clips in
both studies (same names, domains, labels and sample digests); other machines are listed. Differences are
first − second on the same resamples, with Holm's correction over all systems. A study is given by name, or by
the path of its run folder (to compare two runs of the same study).

Source: METHOD 3.8, 8.2. Command: `asd compare`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from asdlib import errors, io, schemas
from asdlib.evaluation import comparison, metrics
from asdlib.scoring import fusion
from asdlib.settings import flat
from asdlib.studies import artifacts, config
from asdlib.studies.home import home_folder
from asdlib.viz import claims, pages, tables

CLIP = ["clip", "domain", "label", "digest"]  # identity of a test clip
IGNORED = ("name", "about")  # settings without effect on results


@dataclass(frozen=True)
class Side:
    """Results of one study: settings and versions by name, metrics, final scores, clips with digests."""

    name: str
    settings: dict[str, str]
    versions: dict[str, str]
    metrics: pd.DataFrame
    scores: pd.DataFrame
    clips: pd.DataFrame

    @property
    def chosen_by(self) -> str:
        """Value of the setting chosen_by."""
        return json.loads(self.settings.get("chosen_by", '""'))


def load(study: str, home: str | Path = "") -> Side:
    """Load a study by name (in `home`/runs, see `asdlib.studies.home`) or by the path of its run folder.

    raises : errors.InputError if it does not exist or has no results
    """
    folder = Path(study)
    if not (folder.is_dir() and (folder / "study.txt").is_file()):
        runs = home_folder(home) / "runs"
        folder = runs / study
        if not folder.is_dir():
            known = sorted(path.parent.name for path in runs.glob("*/study.txt"))
            raise errors.InputError(f"no study {study!r} in {runs}{errors.suggest(study, known)}")
    if not (folder / "09_report" / "DONE").is_file():
        raise errors.InputError(
            f"study {study} has no results: no finished report in {folder}; run `asd run {folder.name}` first"
        )
    try:
        manifest = artifacts.read_manifest(folder / "09_report")
        scores = io.scores(folder / "scores.parquet")
        return Side(
            folder.name,
            {key: json.dumps(value, ensure_ascii=False) for key, value in flat(manifest["settings"]).items()},
            manifest["versions"] | {"recordings": manifest["data"], "device": manifest["device"]},
            pd.read_csv(folder / "metrics.csv"),
            schemas.score_table(scores[scores["component"] == "score"]),
            io.table(folder / "clips.parquet", schemas.CLIP_COLUMNS),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise errors.InputError(
            f"the results of study {study} are not readable ({error}); run `asd run {folder.name}` again"
        ) from error


def titles(a: Side, b: Side) -> tuple[str, str]:
    """Return display names of two studies, numbered if equal."""
    return (a.name, b.name) if a.name != b.name else (f"{a.name} (1)", f"{b.name} (2)")


def differing(a: dict[str, str], b: dict[str, str], names: tuple[str, str]) -> pd.DataFrame:
    """Return the entries of two dicts that differ: name and both values, "—" if missing."""
    keys = [key for key in dict.fromkeys([*a, *b]) if a.get(key) != b.get(key) and key not in IGNORED]
    return pd.DataFrame([(key, a.get(key, "—"), b.get(key, "—")) for key in keys], columns=["what", *names])


def shared_machines(a: Side, b: Side) -> tuple[list[str], list[str]]:
    """Return the machines of both studies with the same test clips, and those with other test clips."""
    both = sorted(set(a.scores["machine"]) & set(b.scores["machine"]))
    sets = [{m: _clips(side.clips, m) for m in both} for side in (a, b)]
    same = [m for m in both if sets[0][m] == sets[1][m] and sets[0][m]]
    return same, [m for m in both if m not in same]


def _clips(clips: pd.DataFrame, machine: str) -> set[tuple]:
    part = clips[(clips["machine"] == machine) & (clips["split"] == "test")]
    return set(part[CLIP].itertuples(index=False, name=None))


def results(a: Side, b: Side) -> pd.DataFrame:
    """Return the metrics of both studies with intervals, as text: over all machines, and each machine's
    harmonic mean, for all systems of either study.
    """
    names, parts = titles(a, b), []
    for side in (a, b):
        own = tables.own_scores(side.metrics)
        own = own[(own["machine"] == "all") | (own["metric"] == "hmean")]
        own["text"] = [tables.number(*row) for row in own[["value", "low", "high"]].itertuples(index=False)]
        parts.append(own.set_index(["machine", "metric", "system"])["text"])
    both = pd.concat(parts, axis=1, keys=names).fillna("—").reset_index()
    rank = {name: i for i, name in enumerate([*claims.OVER_ALL, "hmean", *fusion.in_order(both["system"])])}
    keys = both[["machine", "metric", "system"]].assign(first=both["machine"] != "all")
    keys[["metric", "system"]] = keys[["metric", "system"]].map(rank.get)
    both = both.loc[keys.sort_values(["first", "machine", "metric", "system"]).index].reset_index(drop=True)
    both["metric"] = both["metric"].map(tables.METRIC_NAMES)
    return both[["machine", "metric", "system", *names]]


def tested(
    a: Side, b: Side, machines: list[str], settings: metrics.MetricsSettings, seed: int = 0
) -> pd.DataFrame:
    """Compare the systems that both studies have, on machines with the same test clips.

    returns : claims.DIFFERENCES, of Ω over these machines (or its available parts), with Holm's correction
    """
    systems = fusion.in_order(set(a.scores["system"]) & set(b.scores["system"]))
    settings = comparison.enough(3 * len(systems), settings)
    scores = [side.scores[side.scores["machine"].isin(machines)] for side in (a, b)]
    found = []
    for system in systems:
        pair = [f"{system} of {name}" for name in titles(a, b)]
        both = [
            part[part["system"] == system].assign(system=name)
            for part, name in zip(scores, pair, strict=True)
        ]
        found.append(
            comparison.over_all(comparison.paired(pd.concat(both, ignore_index=True), *pair, settings, seed))
        )
    if not found:
        return pd.DataFrame(columns=list(claims.DIFFERENCES))
    return claims.verdicts(pd.concat(found, ignore_index=True), settings, [a.chosen_by, b.chosen_by])


def measured_as(a: Side) -> metrics.MetricsSettings:
    """Return the first study's metrics settings that this version knows; used for both studies."""
    tree = {name: json.loads(value) for name, value in a.settings.items() if name.startswith("metrics.")}
    known = metrics.MetricsSettings.model_fields
    values = {k.split(".")[1]: v for k, v in tree.items() if k.split(".")[1] in known}
    return config.StudySettings(metrics=values).metrics


def compared(a: Side, b: Side) -> list[tuple[str, str, pd.DataFrame]]:
    """Return the sections of the comparison: heading, text, table."""
    names, settings = titles(a, b), measured_as(a)
    same, other = shared_machines(a, b)
    absent = sorted(set(a.scores["machine"]) ^ set(b.scores["machine"]))
    notes = ["No paired test: no machine has the same test clips in both studies."]
    if same:
        notes = [f"Paired on {', '.join(same)}."]
    if other:
        notes.append(f"Not paired because of different test clips: {', '.join(other)}.")
    if absent:
        notes.append(f"In one study only: {', '.join(absent)}.")
    if a.settings.get("metrics.max_fpr") != b.settings.get("metrics.max_fpr"):
        notes.append(f"pAUC settings differ (metrics.max_fpr); the paired test uses that of {names[0]}.")
    pairs = tested(a, b, same, settings) if same else pd.DataFrame(columns=list(claims.DIFFERENCES))
    if len(pairs):
        notes.append(claims.family(pairs, settings))
    for name, side in zip(names, (a, b)):
        if side.chosen_by in claims.TEST_TUNED:
            notes.append(f"No claim, as of {name} {claims.TEST_TUNED[side.chosen_by]}.")
    pairs = pairs.rename(columns={"system_a": "first", "system_b": "second", "a − b": "first − second"})
    return [
        ("Settings that differ", "", differing(a.settings, b.settings, names)),
        ("Is one better", " ".join(notes), pairs),
        ("Results", "Each study on its own machines and clips; intervals in brackets.", results(a, b)),
        ("Made by", "Versions and recordings that differ.", differing(a.versions, b.versions, names)),
    ]


def text(a: Side, b: Side) -> str:
    """Format the comparison for a terminal."""
    lines = [" against ".join(titles(a, b))]
    for heading, sentence, table in compared(a, b):
        shown = table.map(lambda value: f"{value:.3g}" if isinstance(value, float) else _short(str(value)))
        lines += [
            "",
            f"{heading}. {sentence}".strip(),
            shown.to_string(index=False, justify="left") if len(table) else "  none",
        ]
    return "\n".join(lines)


def _short(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def page(a: Side, b: Side) -> str:
    """Return the comparison as a self-contained HTML page."""
    parts = [
        f"<h2>{tables.escape(heading)}</h2><p>{tables.escape(sentence)}</p>{tables.styled(table)}"
        for heading, sentence, table in compared(a, b)
    ]
    return pages.page(" against ".join(titles(a, b)), "".join(parts))


def write_page(path: Path, a: Side, b: Side) -> None:
    """Write `page` to a file.

    raises : errors.InputError if its folder does not exist, or it cannot be written
    """
    if not path.parent.is_dir():
        raise errors.InputError(
            f"{path}: the folder {path.parent} does not exist; create it, or choose another --html FILE"
        )
    try:
        io.write_text(path, page(a, b))
    except OSError as error:
        raise errors.InputError(
            f"{path}: cannot be written ({error.strerror or error}); choose another --html FILE"
        ) from error
