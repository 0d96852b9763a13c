"""The model card of a study: what was trained on what, for what it may be used, what it reached, and at what
cost.

Conventions
-----------
One page in Markdown, made of the study's own tables when its report is made (notebook 09_report), so that no
number stands in it that was not measured. What is not known is said ("not stated", "not available"), never
filled in.

The license of the recordings is, in this order: the setting `report.license`; the first line of a LICENSE
(or LICENCE) file in a data root or beside a machine's train folder (`asd import --license` writes one);
none for synthetic recordings; else "not stated", with the license that the challenge's recordings have if
all machines carry their names.

Source: METHOD 3.7, 3.8, 7.3, 7.5, 8.6.  Notebook: 09_report.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

from asdlib import io, settings
from asdlib.data import index
from asdlib.detectors import SYSTEMS
from asdlib.evaluation import comparison, metrics
from asdlib.evaluation.challenge import EVALUATION
from asdlib.models import precision
from asdlib.models.encoders import ENCODERS
from asdlib.scoring import fusion
from asdlib.studies import artifacts, report
from asdlib.viz import tables

DCASE = {*metrics.PAPER_TABLE1, *EVALUATION}


def license(roots: Sequence[Path], machines: Sequence[str], stated: str, synthetic: bool) -> str:
    """The license of the recordings in one sentence. stated : the setting report.license"""
    if stated:
        return f"{stated} (as the study's settings state)"
    if synthetic:
        return "none: the recordings were computed by this project's models of machines"
    found = []
    for folder in [place for root in roots for place in (root, *(root / machine for machine in machines))]:
        for path in sorted(folder.glob("LICEN[CS]E*")) if folder.is_dir() else []:
            lines = [
                line.strip()
                for line in path.read_text(encoding="utf-8", errors="replace").splitlines()
                if line.strip()
            ]
            found += [f"{lines[0]} ({folder.name}/{path.name})"] if lines else []
    if found:
        return "; ".join(dict.fromkeys(found))
    challenge = (
        "; recordings of DCASE 2024 Task 2, whose names these machines carry, are CC BY 4.0"
        if set(machines) <= DCASE
        else ""
    )
    return f"not stated{challenge}"


def hardware(device: torch.device) -> str:
    """Processor, cores, memory and GPU in one line."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(
            (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
            "processor not named",
        )
    except OSError:
        name = "processor not named"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    if device.type == "cuda" and not torch.cuda.is_available():
        return "a GPU of another machine"
    gpu = f", {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    return f"{name}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB{gpu}; computed on {device.type}"


def data_table(table: pd.DataFrame) -> pd.DataFrame:
    """Clips per machine as used. table : clip table of a store.  returns : machine, train source, train
    target, test …, seconds, attributes
    """
    rows = []
    for name, facts in index.summary(table, index.problem_table([]))["machines"].items():
        test, seconds = facts["test"], dict.fromkeys(f"{value:g}" for value in facts["seconds"])
        counts = {"train source": facts["train"]["source"], "train target": facts["train"]["target"]}
        counts |= {
            f"test {what}": test[f"source_{what}"] + test[f"target_{what}"] for what in ("normal", "anomaly")
        }
        rows.append(
            {
                "machine": name,
                **counts,
                "test unlabeled": test["unlabeled"],
                "seconds": " to ".join(seconds),
                "attributes": ", ".join(facts["attributes"]) or "none",
            }
        )
    return pd.DataFrame(rows)


def limits(run, found: report.Findings) -> list[str]:
    """What the results do not say, as far as the study's own data tell. run : run.Run"""
    counted = found.decisions[found.decisions["method"] == "empirical"].groupby("system")["machine"].nunique()
    place = "The results hold for these machines, microphones and places; another place is another sound."
    return [
        *(one.sentence for one in found.warnings),
        *([] if run.synthetic else [place]),
        *(
            f"{system}: the threshold of {count} machine{'s' * (count > 1)} is an empirical quantile, no"
            " gamma fits its training scores."
            for system, count in counted.items()
        ),
        *(
            f"{row.system}: share of false alarms on fresh normal clips {row.verdict}, nominal {row.nominal}."
            for row in found.alarms.itertuples()
            if "too" in row.verdict
        ),
        "Only normal sound was trained on: a score says how unlike it a recording is, not what is broken,"
        " nor how badly.",
    ]


def text(run, found: report.Findings) -> str:
    """The card. run : run.Run.  found : of `report.findings`"""
    cfg, share = run.cfg, 1 - run.cfg.metrics.decision_quantile
    changed = report.settings(cfg)
    changed = changed[
        (changed["value"] != changed["default"])
        & ~changed["setting"].isin(["about", "name", "systems", "seeds", "data.roots"])
    ]
    spent = run.timings()
    spent = (
        spent.groupby("stage", sort=False)
        .agg(jobs=("seconds", "size"), seconds=("seconds", "sum"))
        .reset_index()
    )
    spent["seconds"] = spent["seconds"].round(0).astype(int)
    kept = found.decisions[found.decisions["domain"] == "all"].drop(columns=["domain", "normal", "anomaly"])
    numbers = kept.select_dtypes("float").columns
    kept[numbers] = kept[numbers].map(lambda value: tables.number(value)).astype(str)
    trained = "".join(
        f", {name} trained in {run.precision_of(name)}"
        for name in precision.NETWORKS
        if name in map(SYSTEMS.get, cfg.systems)
    )
    roots = "synthetic recordings" if run.synthetic else ", ".join(map(str, run.roots))
    gone = int(run.problems["left_out"].sum())
    parts = [
        f"# Model card: {cfg.name}",
        f"**{tables.markdown(found.headline)}**",
        tables.markdown(cfg.about),
        "## Data",
        (
            f"{tables.markdown(roots)}; {len(run.clips)} clips at {cfg.data.sample_rate} Hz, channel"
            f" {cfg.data.channel}, fingerprint {run.store.fingerprint}. Left out: {gone}; the report lists"
            " them with their reasons."
        ),
        tables.markdown_table(data_table(run.clips)),
        (
            "License of the recordings:"
            f" {tables.markdown(license(run.roots, run.machines, cfg.report.license, run.synthetic))}."
        ),
        (
            f"License of the pretrained encoder: {ENCODERS[cfg.pretrained.encoder].license}."
            if "pretrained" in cfg.systems
            else ""
        ),
        "## Systems and settings",
        (
            f"Systems: {', '.join(fusion.with_composed(cfg.systems, cfg.fusion.views))}. Seeds:"
            f" {', '.join(map(str, cfg.seeds))}. Settings that differ from the defaults (digest"
            f" {settings.digest(cfg)}):"
        ),
        tables.markdown_table(changed) if len(changed) else "none",
        "## Intended use and limits",
        (
            f"To rank recordings of {', '.join(run.machines)} by how unlike normal sound they are, so that a"
            " person listens to the right ones first; and to compare detectors. Not for decisions on safety,"
            " and not for other machines."
        ),
        "\n".join(f"- {tables.markdown(line)}" for line in limits(run, found)),
        "## Results, with intervals",
        tables.markdown_table(tables.wide(found.table)),
        (
            f"In brackets: {cfg.metrics.confidence:.0%} bootstrap intervals over test clips; they say nothing"
            " of other machines or other trainings. Chance: 0.5."
        ),
        *(f"- {tables.markdown(line)}" for line in tables.reasons(found.table)),
        "## Controls and the reference without training",
        tables.markdown_table(found.claims.drop(columns="case")),
        (
            "control_level: the level of each clip as if it were a score. labels shuffled: what each system"
            f" reaches by luck. {comparison.REFERENCE}: needs no training; what is not above it, training did"
            " not earn (paired difference of Ω with its interval, corrected for all pairs of systems)."
        ),
        "## Thresholds and what they mean",
        (
            "A recording above the threshold is called anomalous. The threshold is the"
            f" {cfg.metrics.decision_quantile:g} quantile of a gamma distribution fitted to the scores of"
            " normal training clips, each scored by what was learnt without it, or raised to the level of"
            " held-out clips where a network saw it (method empirical: of the scores themselves): of"
            f" normal recordings like those, about {share:.0%} are expected above it,"
            " and that many false alarms. train_above: the share of training clips that lie above. It is one"
            " threshold for both domains."
        ),
        tables.markdown_table(kept),
        report.ALARM_NOTE,
        tables.markdown_table(found.alarms),
        "## Hardware and time",
        (
            f"{hardware(run.device)}{trained}; largest memory of a training "
            f"{max([int(peak or 0) for peak in run.timings()['peak_memory_mb']] or [0])} MB."
        ),
        tables.markdown_table(spent),
        "## Made by",
        ", ".join(f"{name} {version}" for name, version in artifacts.versions().items()),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def write(run, found: report.Findings) -> Path:
    """model_card.md beside the summary, in the study's report folder. Arguments as `text`.  Notebook:
    09_report
    """
    run.reports.mkdir(parents=True, exist_ok=True)
    io.write_text(run.reports / "model_card.md", text(run, found))
    return run.reports / "model_card.md"
