"""Challenge submissions: written, validated and scored as by the official evaluator.

Conventions
-----------
    anomaly_score_<machine>_section_<NN>_test.csv     file.wav,score       one line per test clip, no header
    decision_result_<machine>_section_<NN>_test.csv   file.wav,0|1         1: anomalous
    TRUTH/ground_truth_data/ground_truth_<machine>_section_<NN>_test.csv        file.wav,0|1    1: anomalous
    TRUTH/ground_truth_domain/...                     file.wav,0|1         1: target
    TRUTH/ground_truth_attributes/...                 file.wav,name with attributes

The official evaluator sorts lines by name and matches them by position. It silently accepts wrong names,
skips the whole system with exit code 0 if a file is missing, and crashes on a header, a short file or NaN.
`faults` reports all of these beforehand.

The official score is Ω of `asdlib.evaluation.metrics`: the harmonic mean of AUC source, AUC target and pAUC
over all machines. Precision, recall and F1 of a domain use only its clips. The evaluator's ci95 is wrong
(METHOD 7.3); intervals here are bootstrap intervals over test clips.

Source: METHOD 7.3 (official evaluator, README).  Used by: `asd submit`, `asd evaluate`.
"""

from __future__ import annotations

import csv
import math
import os
import re
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from asdlib import errors, schemas
from asdlib.evaluation import metrics, roc

EVALUATION = (
    "3DPrinter",
    "AirCompressor",
    "BrushlessMotor",
    "HairDryer",
    "HoveringDrone",
    "RoboticArm",
    "Scanner",
    "ToothBrush",
    "ToyCircuit",
)
KINDS = ("anomaly_score", "decision_result")
RESULT_COLUMNS = ("machine", "section", "domain", "precision", "recall", "f1")
FILE = re.compile(r"(anomaly_score|decision_result|ground_truth)_(.+)_section_(\d+)_test\.csv")
Key = tuple[str, str]  # machine, section


def _path(folder: Path, kind: str, key: Key) -> Path:
    return folder / f"{kind}_{key[0]}_section_{key[1]}_test.csv"


def _refuse(what: str, listed: list[str]) -> None:
    if listed:
        lines = "".join(f"\n  {line}" for line in listed)
        raise errors.InputError(f"{what}; fix these problems:{lines}")


# ---------------------------------------------------------------- writing


def write(
    folder: str | Path,
    clips: pd.DataFrame,
    problems: pd.DataFrame,
    scores: pd.DataFrame,
    settings: metrics.MetricsSettings,
    system: str,
    seed: int,
) -> list[Path]:
    """Write validated score and decision files for every machine of a study, all or none.

    folder : new or empty
    clips, problems : from the store; excluded recordings in test folders raise an error
    scores : score table with test rows and train rows (for thresholds) of `system`, component score, `seed`
    returns : the files
    raises : errors.InputError listing everything the official evaluator would skip, misread or crash on
    """
    folder, test = Path(folder), clips[clips["split"] == "test"]
    own = scores[(scores["system"] == system) & (scores["component"] == "score") & (scores["seed"] == seed)]
    _refuse(f"{system} cannot be submitted", _gaps(clips, problems, own))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise errors.InputError(
            f"{folder} exists and is not empty, expected a new folder; existing files are not overwritten,"
            " choose another folder"
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
            temp_folder = Path(scratch) / "out"
            temp_folder.mkdir()
            thresholds = metrics.decisions(own, settings).groupby("machine")["threshold"].first()
            judged = schemas.by_section(own).set_index("clip")["machine"]
            for key, rows in test.assign(name=[os.path.basename(clip) for clip in test["clip"]]).groupby(
                ["machine", "section"]
            ):
                threshold = thresholds[judged[rows["clip"].iloc[0]]]
                found = own.set_index("clip")["score"].reindex(rows["clip"]).to_numpy(float)
                for kind, values in zip(KINDS, (found, (found > threshold).astype(int)), strict=True):
                    lines = sorted(
                        f"{name},{value!r}\n"
                        for name, value in zip(rows["name"], values.tolist(), strict=True)
                    )
                    _path(temp_folder, kind, key).write_text("".join(lines), encoding="utf-8")
            _refuse(f"{system} cannot be submitted", faults(temp_folder, expected_names(clips)))
            if folder.is_dir():
                folder.rmdir()
            os.rename(temp_folder, folder)
    except OSError as error:
        raise errors.InputError(
            f"{error.filename or folder}: {error.strerror or error}; free up disk space or choose another"
            " folder"
        ) from error
    return sorted(folder.glob("*.csv"))


def _gaps(clips: pd.DataFrame, problems: pd.DataFrame, own: pd.DataFrame) -> list[str]:
    """Problems found before writing: missing or non-finite scores, excluded recordings, absent machines."""
    test, out = clips[clips["split"] == "test"], []
    for machine in sorted(set(clips["machine"]) - set(test["machine"])):
        out.append(f"{machine}: no test clips; run the study without it (--machines)")
    for row in problems[problems["left_out"].astype(bool)].itertuples():
        if Path(row.path).parent.name in ("test", "test_rename", "source_test", "target_test"):
            out.append(
                f"{row.path}: excluded from the study ({row.reason}); the submission would lack its row"
            )
    missing = set(test["clip"]) - set(own["clip"])
    out += [f"{clip}: no score" for clip in sorted(missing)]
    out += [
        f"{row.clip}: score is {row.score}, expected a finite number"
        for row in own[~np.isfinite(own["score"].to_numpy(float))].itertuples()
    ]
    present = sorted(set(test["machine"]) & set(EVALUATION))
    if present:
        absent = [name for name in EVALUATION if name not in present]
        out += [
            f"{name}: machine of the evaluation set has no test clips; the evaluator would skip the whole"
            " system"
            for name in absent
        ]
    return out


def expected_names(clips: pd.DataFrame) -> dict[Key, set[str]]:
    """(machine, section) -> file names of its test clips, from a clip table."""
    test = clips[clips["split"] == "test"]
    return {
        key: {os.path.basename(clip) for clip in rows["clip"]}
        for key, rows in test.groupby(["machine", "section"])
    }


# ---------------------------------------------------------------- reading


def faults(folder: str | Path, expected: Mapping[Key, Collection[str]]) -> list[str]:
    """Everything the official evaluator would skip, misread or crash on, one sentence each; empty if none.

    folder : submission folder.  expected : (machine, section) -> accepted names of its test clips
    """
    folder, out = Path(folder), []
    if not folder.is_dir():
        return [f"{folder}: no such folder"]
    for key, names in expected.items():
        for kind in KINDS:
            path = _path(folder, kind, key)
            if not path.is_file():
                out.append(f"{path.name}: missing; the evaluator skips the whole system without an error")
            else:
                out += [f"{path.name}: {fault}" for fault in _faults_of(path, kind, set(names))]
    known = {_path(folder, kind, key).name for key in expected for kind in KINDS}
    for path in sorted(folder.glob("*.csv")):
        if FILE.fullmatch(path.name) and path.name not in known:
            out.append(f"{path.name}: unexpected machine or section; the evaluator would ignore the file")
    return out


def _faults_of(path: Path, kind: str, names: set[str]) -> list[str]:
    try:
        lines = _lines(path)
    except (OSError, ValueError, csv.Error) as error:
        return [f"cannot be read ({error})"]
    out, found = [], [line[0] for line in lines if line]
    if lines and (len(lines[0]) < 2 or (lines[0][0] not in names and not _number(lines[0][1]))):
        out.append(
            "starts with a header or a non-numeric row, expected data rows only; the evaluator crashes on it"
        )
    for number, line in enumerate(lines, 1):
        if len(line) != 2:
            out.append(f"line {number} has {len(line)} fields, expected name,value")
        elif number > 1 or line[0] in names:
            if not _number(line[1]) or not math.isfinite(float(line[1])):
                out.append(f"line {number}: {line[0]} has {line[1]!r}, expected a finite number")
            elif kind == "decision_result" and float(line[1]) not in (0.0, 1.0):
                out.append(f"line {number}: {line[0]} has {line[1]!r}, expected 0 or 1")
    unknown = sorted(set(found) - names)
    if unknown:
        out.append(
            f"{len(unknown)} names are not test clips (first: {unknown[0]!r}); the evaluator would assign"
            " their values to other clips"
        )
    missing, repeated = sorted(names - set(found)), sorted({name for name in found if found.count(name) > 1})
    out += [f"{len(missing)} test clips are missing (first: {missing[0]})"] if missing else []
    return out + ([f"{len(repeated)} duplicate names (first: {repeated[0]})"] if repeated else [])


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _lines(path: Path) -> list[list[str]]:
    """CSV fields per line; raises ValueError if not UTF-8."""
    text = path.read_bytes().decode("utf-8-sig")
    return [line for line in csv.reader(text.splitlines())]


def _by_name(path: Path) -> dict[str, str]:
    """Second field of each line, by the first; raises ValueError for other lines and duplicate names."""
    found: dict[str, str] = {}
    for number, line in enumerate(_lines(path), 1):
        where = f"{path.parent.name}, line {number}"
        if len(line) != 2:
            raise ValueError(f"{where} has {len(line)} fields, expected name,value")
        if line[0] in found:
            raise ValueError(f"{where}: {line[0]} occurs a second time, expected every clip once")
        found[line[0]] = line[1].strip()
    return found


def _values(path: Path, full: Mapping[str, str]) -> dict[str, float]:
    return {full.get(line[0], line[0]): float(line[1]) for line in _lines(path)}


def ground_truth(folder: str | Path) -> pd.DataFrame:
    """Labels and domains of all test clips, from the evaluator's folders.

    folder : contains ground_truth_data and ground_truth_domain, optionally ground_truth_attributes
    returns : machine, section, name, label (normal, anomaly), domain (source, target), full (with attributes)
    raises : errors.InputError listing missing or inconsistent files
    """
    folder, tables, wrong = Path(folder), [], []
    for path in sorted((folder / "ground_truth_data").glob("ground_truth_*_test.csv")):
        parsed = FILE.fullmatch(path.name)
        companions = [folder / f"ground_truth_{what}" / path.name for what in ("domain", "attributes")]
        try:
            labels, domains = (_by_name(one) for one in (path, companions[0]))
            full = (
                {name: f"{text}.wav" for name, text in _by_name(companions[1]).items()}
                if companions[1].is_file()
                else {}
            )
        except (OSError, ValueError, csv.Error) as error:
            wrong.append(f"{path.name}: {error}")
            continue
        if set(labels) != set(domains) or not parsed:
            wrong.append(f"{path.name}: ground_truth_data and ground_truth_domain list different clips")
            continue
        if not set(labels.values()) | set(domains.values()) <= {"0", "1"}:
            wrong.append(f"{path.name}: values other than 0 and 1")
            continue
        if len({full.get(name, name) for name in labels}) < len(labels):
            wrong.append(f"{path.name}: ground_truth_attributes gives two clips the same name")
            continue
        rows = [
            (
                parsed[2],
                parsed[3],
                name,
                ("normal", "anomaly")[int(label)],
                ("source", "target")[int(domains[name])],
                full.get(name, name),
            )
            for name, label in labels.items()
        ]
        tables.append(pd.DataFrame(rows, columns=["machine", "section", "name", "label", "domain", "full"]))
    _refuse(f"{folder}: inconsistent ground truth", wrong)
    if not tables:
        raise errors.InputError(
            f"{folder}: no ground_truth_data/ground_truth_<machine>_section_<NN>_test.csv found; expected"
            " the folders of the official evaluator"
        )
    return pd.concat(tables, ignore_index=True)


# ---------------------------------------------------------------- the official result


def evaluate(
    folder: str | Path, truth: str | Path, settings: metrics.MetricsSettings, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Official result of a submission.

    folder : submission of any system.  truth : ground-truth folder.  seed : of the bootstrap
    returns : (metric table, quality table). The system is named after the folder; machine "all" with metric
        omega is the official score. The quality table has RESULT_COLUMNS with domain source or target; its
        machine "all" holds harmonic means over machines. Sections appear as <machine>_<section>
    raises : errors.InputError listing all faults
    """
    folder, clips = Path(folder), ground_truth(truth)
    expected, full = {}, {}
    for key, rows in clips.groupby(["machine", "section"]):
        full[key] = dict(zip(rows["full"], rows["name"], strict=True))
        given = {
            line[0]
            for kind in KINDS[:1]
            if _path(folder, kind, key).is_file()
            for line in _safe_lines(_path(folder, kind, key))
            if line
        }
        expected[key] = (
            set(rows["full"]) if given & (set(rows["full"]) - set(rows["name"])) else set(rows["name"])
        )
    _refuse(f"{folder} cannot be evaluated", faults(folder, expected))
    section_names = schemas.by_section(clips.assign(split="test", clip=clips["name"]))["machine"]
    tables, quality = [], []
    for key, rows in clips.groupby(["machine", "section"]):
        named = section_names[rows.index[0]]
        scores, decisions = (rows["name"].map(_values(_path(folder, kind, key), full[key])) for kind in KINDS)
        facts = rows[["section", "domain", "label"]].assign(
            system=folder.name, component="score", split="test", seed=0, machine=key[0], score=scores
        )
        tables.append(facts.assign(clip=key[0] + "/test/" + rows["name"])[list(schemas.SCORE_COLUMNS)])
        for domain in ("source", "target"):
            mask = (rows["domain"] == domain).to_numpy()
            quality.append(
                (
                    named,
                    key[1],
                    domain,
                    *_quality(decisions[mask].to_numpy() == 1, (rows["label"] == "anomaly")[mask].to_numpy()),
                )
            )
    table = pd.DataFrame(quality, columns=list(RESULT_COLUMNS))
    for domain, rows in table.groupby("domain"):
        means = [float(roc.harmonic(rows[name].to_numpy())) for name in RESULT_COLUMNS[3:]]
        table.loc[len(table)] = ["all", "", domain, *means]
    return metrics.table(pd.concat(tables, ignore_index=True), settings, seed), table


def _safe_lines(path: Path) -> list[list[str]]:
    try:
        return _lines(path)
    except (OSError, ValueError, csv.Error):
        return []  # reported by `faults`


def _quality(flagged: np.ndarray, anomalous: np.ndarray) -> tuple[float, float, float]:
    """Precision, recall and F1; 0 if undefined (METHOD 7.3).  flagged, anomalous : bool (n,)"""
    hits, predicted, true = float((flagged & anomalous).sum()), float(flagged.sum()), float(anomalous.sum())
    precision, recall = hits / max(predicted, 1.0), hits / max(true, 1.0)
    return precision, recall, 2 * precision * recall / max(precision + recall, np.finfo(float).eps)


def result_text(table: pd.DataFrame, quality: pd.DataFrame) -> str:
    """Official result formatted for the terminal, in percent with intervals in brackets."""
    values = table.set_index(["machine", "metric"])[["value", "low", "high"]] * 100
    lines = [
        f"{'machine':20} {'AUC source':>22} {'AUC target':>22} {'pAUC':>22}   P / R / F1 source     P / R /"
        " F1 target"
    ]
    for machine in dict.fromkeys(table["machine"]):
        cells = [values.loc[(machine, name)] for name in roc.THREE]
        shown = [f"{cell['value']:.2f} [{cell['low']:.1f}, {cell['high']:.1f}]" for cell in cells]
        rows = quality[quality["machine"] == machine].set_index("domain")[["precision", "recall", "f1"]] * 100
        parts = ["  ".join(f"{value:5.1f}" for value in rows.loc[domain]) for domain in ("source", "target")]
        lines.append(f"{machine:20} " + " ".join(f"{cell:>22}" for cell in shown) + "   " + "   ".join(parts))
    omega = values.loc[("all", "omega")]
    lines.append(
        f"official score (Ω, harmonic mean): {omega['value']:.4f} [{omega['low']:.2f}, {omega['high']:.2f}]"
    )
    return "\n".join(lines)
