"""Export a fitted detector to a folder that scores recordings without the study.

    OUT/manifest.json        layout, study, machine, system, seed, threshold, settings, versions
    OUT/model_card.md        of this detector, followed by that of its study
    OUT/clips.parquet        clip table of the study, without paths and without data on test clips
    OUT/scores.parquet       leave-clip-out scores of the machine's training clips, for scales and threshold
    OUT/<detector>/          weights, references, settings
    OUT/accepted/            recordings accepted as normal, if any, with their samples
    OUT/DONE                 size and digest of every file, written last

A folder holds one machine and one system with all its detectors. Loading it gives the same `Scorer` as the
study; on the same kind of device scores are bit-identical, which `write` checks.

Source: METHOD 8.2.  Used by: `asd export`, `asd score`, `asdlib.load_detector`.
"""

from __future__ import annotations

import datetime
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.numpy import save_file

from asdlib import errors, io
from asdlib.data import index
from asdlib.data.store import Clips, Store, machine_rows, training_clips
from asdlib.detectors import DETECTORS
from asdlib.models import training
from asdlib.models.encoders import ENCODERS
from asdlib.settings import to_tree
from asdlib.studies import accepted, artifacts, config
from asdlib.studies.scorer import Scorer

LAYOUT = 1  # version of the folder layout; older ones can be read
SCALE, ENCODER = "standardization.safetensors", "encoder"  # files in addition to those a detector saves
NOT_SCORED_WITH = {"DONE", "manifest.json", "scores.parquet", "history.parquet"}
FOR_NOTEBOOKS = {"oevae": {"embeddings.safetensors"}}  # not needed for scoring


def write(run, ready: Scorer, out: str | Path) -> str:
    """Export the detectors of a scorer.

    run : run.Run.  ready : from `run.scorer`.  out : new or empty folder
    returns : text on contents, size and timings
    raises : errors.InputError if `out` is not empty, or its scores differ from the study's
    """
    out, start = Path(out), time.perf_counter()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise errors.InputError(f"{out}: exists and is not empty, expected a new folder; choose another")
    out.mkdir(parents=True, exist_ok=True)
    cfg = run.cfg.replace(data=run.cfg.data.replace(roots=()), include=())
    for name, detector in ready.detectors.items():
        (out / name).mkdir()
        scored = run.detector_path(name, ready.machine)[0]
        for folder in {run.trained_with(scored), scored}:
            for path in sorted(folder.iterdir()):
                if path.is_file() and path.name not in NOT_SCORED_WITH | FOR_NOTEBOOKS.get(name, set()):
                    shutil.copyfile(path, out / name / path.name)
        if scale := detector.standardization():
            save_file(scale, out / name / SCALE)
        if name == "pretrained":
            encoder = ENCODERS[run.cfg.pretrained.encoder].file(run.cfg.pretrained.weights)
            if encoder.is_file():
                shutil.copyfile(encoder, out / name / ENCODER)
    if len(ready.accepted):
        kept = accepted.of(run.study_folder, ready.machine, ready.section)
        accepted.keep(out, *kept, cfg.data.sample_rate)
    io.write_table(out / "clips.parquet", _without_test(run.clips))
    io.write_table(out / "scores.parquet", ready.train)
    manifest = {
        "layout": LAYOUT,
        "study": cfg.name,
        "machine": ready.machine,
        "section": ready.section,
        "system": ready.system,
        "seed": ready.seed,
        "threshold": ready.threshold._asdict(),
        "device": run.device.type,
        "detectors": {
            name: {
                "precision": run.precision_of(name),
                "machines": Clips(detector.store, detector.train_rows).machines,
                "code": io.code(DETECTORS[name].__module__),
            }
            for name, detector in ready.detectors.items()
        },
        "settings": to_tree(cfg),
    }
    io.write_text(out / "model_card.md", card(ready, run.reports / "model_card.md"))
    nested = [path for path in sorted(out.rglob("*")) if path.is_file() and path.parent != out]
    artifacts.commit(out, f"layout {LAYOUT}", manifest, nested)
    seconds, timing = time.perf_counter() - start, _check(run, ready, out)
    files = [path for path in out.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files) / 1e6
    return (
        f"{ready.about()}; detectors: {', '.join(ready.detectors)}\n{len(files)} files, {size:.1f} MB,"
        f" written in {seconds:.1f} s; {timing}"
    )


def card(ready: Scorer, of_study: Path) -> str:
    """Return the model card of an exported detector, followed by that of its study."""
    study = of_study.read_text(encoding="utf-8") if of_study.is_file() else "The study has no model card.\n"
    return (
        f"# Exported detector: {ready.system} of {ready.name}\n\n"
        f"Exported on {datetime.date.today().isoformat()} from study {ready.cfg.name}: {ready.about()}."
        f" Detectors: {', '.join(ready.detectors)}. Expects recordings of {ready.name}; other rates are"
        f" resampled to {ready.cfg.data.sample_rate} Hz, and channel {ready.cfg.data.channel} is used. A"
        " score above the threshold is called anomalous.\n\n"
        "Use: `asd score FOLDER FILE...`, or in Python `asdlib.load_detector(FOLDER)([FILE, ...])`. The"
        f" following describes the whole study.\n\n{study}"
    )


def load_detector(folder: str | Path, device: str = "auto") -> Scorer:
    """Load a detector written by `asd export`; call it with recordings for a table of scores and decisions.

    device : "auto" (a GPU if available), "cpu" or "cuda"
    raises : errors.InputError if the folder is not an exported detector, is damaged, or has a newer layout
    """
    folder = Path(folder)
    try:
        manifest = artifacts.read_manifest(folder)
        layout = int(manifest["layout"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise errors.InputError(
            f"{folder}: no manifest of an exported detector ({type(error).__name__}); copy or export it again"
        ) from error
    if layout > LAYOUT:
        raise errors.InputError(
            f"{folder}: has layout {layout}, this asdlib reads up to {LAYOUT}; install a newer asdlib"
        )
    if problems := artifacts.corrupt_files(folder):
        raise errors.InputError(f"{folder}: {', '.join(problems)}; copy or export it again")
    cfg, torch_device = config.StudySettings(**manifest["settings"]), training.pick_device(device)
    table = io.table(folder / "clips.parquet")
    count = torch.ones(len(table), dtype=torch.int64)  # placeholder sound, never read
    sound = torch.zeros(1, dtype=torch.int16), torch.zeros_like(count), count
    store = Store(
        table, index.problem_table([]), "", folder, *sound, torch.device("cpu"), cfg.data.sample_rate
    )
    detectors, notes = {}, []
    if torch_device.type != manifest["device"]:
        notes.append(f"computed on {manifest['device']}")
    for name, own in manifest["detectors"].items():
        settings = getattr(cfg, name)
        if (folder / name / ENCODER).is_file():
            settings = settings.replace(weights=str(folder / name / ENCODER))
        detector = DETECTORS[name](
            settings, seed=manifest["seed"], device=torch_device, precision=own["precision"]
        )
        detectors[name] = detector.restore(folder / name, training_clips(store, own["machines"])[0])
        if (folder / name / SCALE).is_file():
            detector.take_standardization(io.tensors(folder / name / SCALE, {}))
        if own["code"] != io.code(DETECTORS[name].__module__):
            notes.append(f"{name} was computed by other code")
    if notes:
        print(f"note: {folder}: {', '.join(notes)}; last digits of scores may differ", file=sys.stderr)
    spec = (manifest[key] for key in ("machine", "system", "seed", "section"))
    scorer = Scorer(cfg, detectors, io.scores(folder / "scores.parquet"), *spec)
    return scorer.accepting(*accepted.of(folder, scorer.machine, scorer.section))


def _without_test(clips: pd.DataFrame) -> pd.DataFrame:
    """Return the clip table without paths, and without names, labels, domains and digests of test clips.

    Rows of test clips are kept, because references are given by row; so are their sections.
    """
    out, test = clips.drop(columns="path"), (clips["split"] != "train").to_numpy()
    for name, value in {"clip": "", "label": "unlabeled", "domain": "unknown", "digest": ""}.items():
        out[name] = out[name].where(~test, value)
    return out


def _check(run, ready: Scorer, out: Path) -> str:
    """Check that the exported detector scores a clip as the study does; return a text on timings."""
    rows = [machine_rows(run.clips, ready.machine, split) for split in ("test", "train")]
    row = int(np.concatenate(rows)[0])
    store = ready.store(run.clips.iloc[[row]][["level_db", "digest"]], [run.store.int16(row)])
    start = time.perf_counter()
    exported = load_detector(out, run.local_device.type)
    loaded = time.perf_counter()
    scores, clip_s = exported.scores(store), len(run.store.int16(row)) / run.cfg.data.sample_rate
    scored = time.perf_counter()
    for part, values in ready.scores(store).items():
        if not np.array_equal(scores[part], values):
            raise errors.InputError(
                f"{out}: {'/'.join(part)} of {run.clips['clip'].iloc[row]} is {scores[part][0]!r}, but"
                f" {values[0]!r} in its study; do not use this export, and report the problem"
            )
    return (
        f"loads in {loaded - start:.1f} s and scores a clip of {clip_s:g} s in {scored - loaded:.2f} s,"
        " identically to its study"
    )
