"""Two finished studies side by side: what was set differently, what came of it, and whether that is more than
chance.

Conventions
-----------
Read are the files of `asd run` alone: `runs/<study>/metrics.csv`, `scores.parquet`, `09_report/manifest.json`
and `clips.parquet`; nothing is computed again but the paired test. That test needs the same test clips
on both sides: a machine counts where names, domains, labels and the digests of the samples agree; the others
are named. Differences are first − second, on the same resamples, corrected together after Holm. A study is
named as in `asd run`, or by the path of its run folder (the same study computed twice).

Sources: METHOD 3.8, 8.2. Command: `asd compare`.
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
from asdlib.studies import config
from asdlib.studies.home import home_folder
from asdlib.viz import claims, pages, tables

CLIP = ["clip", "domain", "label", "digest"]  # what makes two test clips one and the same
UNSAID = ("name", "about")  # settings that change nothing


@dataclass(frozen=True)
class Side:
    """What a finished study left: settings and versions by name, metrics, own scores, clips with digests."""

    name: str
    settings: dict[str, str]
    versions: dict[str, str]
    metrics: pd.DataFrame
    scores: pd.DataFrame
    clips: pd.DataFrame

    @property
    def chosen_by(self) -> str:
        """How its settings were chosen, of the setting of that name."""
        return json.loads(self.settings.get("chosen_by", '""'))


def load(study: str, home: str | Path = "") -> Side:
    """A study by name below `home`/runs (see `asdlib.studies.home`), or by the path of its run folder.

    raises : errors.InputError where there is no such study, or it has no results
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
            f"study {study} has no results: {folder} holds no finished report; run `asd run {folder.name}`"
            " first"
        )
    try:
        manifest = json.loads((folder / "09_report" / "manifest.json").read_text(encoding="utf-8"))
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
    """What to call the two sides; studies of one name are numbered."""
    return (a.name, b.name) if a.name != b.name else (f"{a.name} (1)", f"{b.name} (2)")


def differing(one: dict[str, str], other: dict[str, str], names: tuple[str, str]) -> pd.DataFrame:
    """Entries of two dicts that differ: name and both values, — where one has none."""
    keys = [
        key for key in dict.fromkeys([*one, *other]) if one.get(key) != other.get(key) and key not in UNSAID
    ]
    rows = [(key, one.get(key, "—"), other.get(key, "—")) for key in keys]
    return pd.DataFrame(rows, columns=["what", *names])


def shared_machines(a: Side, b: Side) -> tuple[list[str], list[str]]:
    """Machines of both studies: those with the same test clips, and those without."""
    both = sorted(set(a.scores["machine"]) & set(b.scores["machine"]))
    sets = [{m: _clips(side.clips, m) for m in both} for side in (a, b)]
    same = [m for m in both if sets[0][m] == sets[1][m] and sets[0][m]]
    return same, [m for m in both if m not in same]


def _clips(clips: pd.DataFrame, machine: str) -> set[tuple]:
    part = clips[(clips["machine"] == machine) & (clips["split"] == "test")]
    return set(part[CLIP].itertuples(index=False, name=None))


def results(a: Side, b: Side) -> pd.DataFrame:
    """Metrics with intervals of both, for every system of either: over all machines, and the harmonic mean of
    each machine; text.
    """
    names, parts = titles(a, b), []
    for side in (a, b):
        own = tables.own_scores(side.metrics)
        own = own[(own["machine"] == "all") | (own["metric"] == "hmean")]
        own["text"] = [tables.number(*row) for row in own[["value", "low", "high"]].itertuples(index=False)]
        parts.append(own.set_index(["machine", "metric", "system"])["text"])
    both = pd.concat(parts, axis=1, keys=names).fillna("—").reset_index()
    place = {system: number for number, system in enumerate(fusion.in_order(both["system"]))}
    metric = {name: number for number, name in enumerate((*claims.OVER_ALL, "hmean"))}
    order = [
        (m != "all", m, metric[n], place[s])
        for m, n, s in both[["machine", "metric", "system"]].itertuples(index=False)
    ]
    both = both.loc[sorted(both.index, key=lambda row: order[row])]
    return both.assign(metric=both["metric"].map(tables.METRIC_NAMES))[
        ["machine", "metric", "system", *names]
    ].reset_index(drop=True)


def tested(
    a: Side, b: Side, machines: list[str], settings: metrics.MetricsSettings, seed: int = 0
) -> pd.DataFrame:
    """The systems of both studies, compared in pairs over machines with the same test clips.

    returns : claims.DIFFERENCES, Ω over these machines (or what there is of its parts), corrected for their
        number
    """
    systems = fusion.in_order(set(a.scores["system"]) & set(b.scores["system"]))
    settings = comparison.enough(3 * len(systems), settings)
    mine = [side.scores[side.scores["machine"].isin(machines)] for side in (a, b)]
    found = []
    for system in systems:
        pair = [f"{system} of {name}" for name in titles(a, b)]
        both = [
            part[part["system"] == system].assign(system=name) for part, name in zip(mine, pair, strict=True)
        ]
        found.append(
            comparison.over_all(comparison.paired(pd.concat(both, ignore_index=True), *pair, settings, seed))
        )
    return (
        claims.verdicts(pd.concat(found, ignore_index=True), settings, [a.chosen_by, b.chosen_by])
        if found
        else pd.DataFrame(columns=list(claims.DIFFERENCES))
    )


def measured_as(a: Side) -> metrics.MetricsSettings:
    """The first study's settings of the metrics, as far as this version knows them; both are compared by
    them.
    """
    tree = {name: json.loads(value) for name, value in a.settings.items() if name.startswith("metrics.")}
    known = metrics.MetricsSettings.model_fields
    values = {k.split(".")[1]: v for k, v in tree.items() if k.split(".")[1] in known}
    return config.StudySettings(metrics=values).metrics


def compared(a: Side, b: Side) -> list[tuple[str, str, pd.DataFrame]]:
    """The comparison as sections: heading, a sentence, a table."""
    names, settings = titles(a, b), measured_as(a)
    same, other = shared_machines(a, b)
    absent = sorted(set(a.scores["machine"]) ^ set(b.scores["machine"]))
    told = [
        (
            f"Paired on {', '.join(same)}."
            if same
            else "No paired test: no machine has the same test clips in both."
        )
    ]
    told += [f"Not paired, other test clips under the same name: {', '.join(other)}."] if other else []
    told += [f"In one of them only: {', '.join(absent)}."] if absent else []
    if a.settings.get("metrics.max_fpr") != b.settings.get("metrics.max_fpr"):
        told.append(
            f"pAUC was measured differently (metrics.max_fpr); the paired test takes that of {names[0]}."
        )
    pairs = tested(a, b, same, settings) if same else pd.DataFrame(columns=list(claims.DIFFERENCES))
    if len(pairs):
        told.append(claims.family(pairs, settings))
    for name, side in zip(names, (a, b)):
        if side.chosen_by in claims.TEST_TUNED:
            told.append(f"No claim, as of {name} {claims.TEST_TUNED[side.chosen_by]}.")
    pairs = pairs.rename(columns={"system_a": "first", "system_b": "second", "a − b": "first − second"})
    return [
        ("Settings that differ", "", differing(a.settings, b.settings, names)),
        ("Is one better", " ".join(told), pairs),
        ("Results", "Each on its own machines and clips; intervals in brackets.", results(a, b)),
        ("Made by", "Versions and recordings that differ.", differing(a.versions, b.versions, names)),
    ]


def text(a: Side, b: Side) -> str:
    """The comparison for a terminal."""
    lines = [" against ".join(titles(a, b))]
    for heading, sentence, table in compared(a, b):
        shown = table.map(lambda value: f"{value:.3g}" if isinstance(value, float) else _short(str(value)))
        lines += [
            "",
            f"{heading}. {sentence}".strip(),
            shown.to_string(index=False, justify="left") if len(table) else "  none",
        ]
    return "\n".join(lines)


def _short(words: str, most: int = 60) -> str:
    return words if len(words) <= most else words[: most - 1] + "…"


def page(a: Side, b: Side) -> str:
    """The comparison as one self-contained page."""
    parts = []
    for heading, sentence, table in compared(a, b):
        parts.append(
            f"<h2>{tables.escape(heading)}</h2><p>{tables.escape(sentence)}</p>{tables.styled(table)}"
        )
    return pages.page(" against ".join(titles(a, b)), "".join(parts))


def write_page(path: Path, a: Side, b: Side) -> None:
    """`page` into a file, whole or not at all; a folder that is not there, or not writable, is refused."""
    if not path.parent.is_dir():
        raise errors.InputError(
            f"{path}: the folder {path.parent} is not there; make it, or give another --html FILE"
        )
    try:
        io.write_text(path, page(a, b))
    except OSError as error:
        raise errors.InputError(
            f"{path}: not written ({error.strerror or error}); give another --html FILE"
        ) from error
