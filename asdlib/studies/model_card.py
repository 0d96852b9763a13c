"""The model card of a study: data, systems, intended use, limits, results, thresholds and cost.

Conventions
-----------
One Markdown page, generated from the study's tables by notebook 09_report. Unknown values appear as "not
stated" or "not available".

The license of the recordings is the setting `report.license`, else the first line of a LICENSE (or LICENCE)
file in a data root or a machine's folder (`asd import --license` writes one). Without either, synthetic
recordings have none, and others are "not stated", with a note on the license of the DCASE recordings if all
machines have their names.

Source: METHOD 3.7, 3.8, 7.3, 7.5, 8.6.  Notebook: 09_report.
"""

from __future__ import annotations

import contextlib
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
    """Return the license of the recordings as text.  stated : the setting report.license"""
    if stated:
        return f"{stated} (as the study's settings state)"
    if synthetic:
        return "none: the recordings were computed by this project's models of machines"
    found = []
    for folder in [folder for root in roots for folder in (root, *(root / name for name in machines))]:
        for path in sorted(folder.glob("LICEN[CS]E*")) if folder.is_dir() else []:
            text = path.read_text(encoding="utf-8", errors="replace").strip()
            found += [f"{text.splitlines()[0].strip()} ({folder.name}/{path.name})"] if text else []
    if found:
        return "; ".join(dict.fromkeys(found))
    challenge = (
        "; recordings of DCASE 2024 Task 2, whose names these machines carry, are CC BY 4.0"
        if set(machines) <= DCASE
        else ""
    )
    return f"not stated{challenge}"


def hardware(device: torch.device) -> str:
    """Return a line with processor, cores, memory and GPU."""
    name = "unknown processor"
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    if device.type == "cuda" and not torch.cuda.is_available():
        return "a GPU of another computer"
    gpu = f", {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    return f"{name}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB{gpu}; computed on {device.type}"


def data_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return the number of used clips per machine.

    table : clip table of a store
    returns : columns machine, train source, train target, test …, seconds, attributes
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
    """Return sentences on the limits of the results, from the study's data.  run : run.Run"""
    empirical = found.decisions[found.decisions["method"] == "empirical"]
    places = (
        "The results hold for these machines, microphones and places; elsewhere they may sound different."
    )
    return [
        *(warning.sentence for warning in found.warnings),
        *([] if run.synthetic else [places]),
        *(
            f"{system}: the threshold of {count} machine{'s' * (count > 1)} is an empirical quantile, because"
            " no gamma distribution fits the training scores."
            for system, count in empirical.groupby("system")["machine"].nunique().items()
        ),
        *(
            f"{row.system}: share of false alarms on fresh normal clips {row.verdict}, nominal {row.nominal}."
            for row in found.alarms.itertuples()
            if "too" in row.verdict
        ),
        "Training used normal sounds only: a score measures how much a recording differs from them, not which"
        " fault it has or how severe it is.",
    ]


def text(run, found: report.Findings) -> str:
    """Return the model card.  run : run.Run.  found : from `report.findings`"""
    cfg, share = run.cfg, 1 - run.cfg.metrics.decision_quantile
    changed = report.settings(cfg)
    changed = changed[
        (changed["value"] != changed["default"])
        & ~changed["setting"].isin(["about", "name", "systems", "seeds", "data.roots"])
    ]
    timings = run.timings()
    peak_mb = max([int(peak or 0) for peak in timings["peak_memory_mb"]] or [0])
    cost = timings.groupby("stage", sort=False)["seconds"].agg(jobs="size", seconds="sum").reset_index()
    cost["seconds"] = cost["seconds"].round(0).astype(int)
    limit_table = found.decisions[found.decisions["domain"] == "all"]
    limit_table = limit_table.drop(columns=["domain", "normal", "anomaly"])
    numbers = limit_table.select_dtypes("float").columns
    limit_table[numbers] = limit_table[numbers].map(lambda value: tables.number(value)).astype(str)
    trained = "".join(
        f", {name} trained in {run.precision_of(name)}"
        for name in precision.NETWORKS
        if name in map(SYSTEMS.get, cfg.systems)
    )
    roots = "synthetic recordings" if run.synthetic else ", ".join(map(str, run.roots))
    left_out = int(run.problems["left_out"].sum())
    parts = [
        f"# Model card: {cfg.name}",
        f"**{tables.markdown(found.headline)}**",
        tables.markdown(cfg.about),
        "## Data",
        (
            f"{tables.markdown(roots)}; {len(run.clips)} clips at {cfg.data.sample_rate} Hz, channel"
            f" {cfg.data.channel}, fingerprint {run.store.fingerprint}. Left out: {left_out}; the report"
            " lists them with reasons."
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
            f"To rank recordings of {', '.join(run.machines)} by how much they differ from normal sound, so"
            " that a person can listen to the most anomalous first, and to compare detectors. Not for safety"
            " decisions, and not for other machines."
        ),
        "\n".join(f"- {tables.markdown(line)}" for line in limits(run, found)),
        "## Results, with intervals",
        tables.markdown_table(tables.wide(found.table)),
        (
            f"In brackets: {cfg.metrics.confidence:.0%} bootstrap intervals over test clips; they do not"
            " cover the variation between machines or trainings. Chance: 0.5."
        ),
        *(f"- {tables.markdown(line)}" for line in tables.reasons(found.table)),
        "## Controls and the training-free reference",
        tables.markdown_table(found.claims.drop(columns="case")),
        (
            "control_level: the level of each clip used as its score. labels shuffled: what each system"
            f" reaches by chance. {comparison.REFERENCE}: needs no training; for a system that is not better,"
            " training brought no benefit (paired difference of Ω with its interval, corrected for all pairs"
            " of systems)."
        ),
        "## Thresholds and their meaning",
        (
            "A recording above the threshold is called anomalous. The threshold is the"
            f" {cfg.metrics.decision_quantile:g} quantile of a gamma distribution fitted to the scores of"
            " normal training clips (method empirical: of the scores themselves). Each clip is scored without"
            " itself; where a network was trained on it, its score is raised to the level of held-out clips."
            f" About {share:.0%} of normal recordings are expected above the threshold, as"
            " false alarms. train_above: share of training clips above it. Both domains share one threshold."
        ),
        tables.markdown_table(limit_table),
        report.ALARM_NOTE,
        tables.markdown_table(found.alarms),
        "## Hardware and time",
        (f"{hardware(run.device)}{trained}; peak memory of training {peak_mb} MB."),
        tables.markdown_table(cost),
        "## Made by",
        ", ".join(f"{name} {version}" for name, version in artifacts.versions().items()),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def write(run, found: report.Findings) -> Path:
    """Write model_card.md to the study's report folder; arguments as in `text`.  Notebook: 09_report"""
    run.reports.mkdir(parents=True, exist_ok=True)
    io.write_text(run.reports / "model_card.md", text(run, found))
    return run.reports / "model_card.md"
