"""A fitted detector as one folder, which scores recordings without its study, its recordings or a notebook.

    OUT/manifest.json        layout, study, machine, system, seed, threshold, settings, versions
    OUT/model_card.md        of this detector, followed by that of its study
    OUT/clips.parquet        the study's clip table by store row, without paths; of test clips no label
    OUT/scores.parquet       leave-clip-out scores of the machine's training clips: scales and threshold
    OUT/<detector>/          weights, references, settings
    OUT/accepted/            recordings that were accepted as normal, where there are any, with their sound
    OUT/DONE                 size and digest of every file, written last

The folder is of one machine and one system: all detectors behind the system, the ensemble for example, are in
it. On the same kind of device a recording has the score that its study gives it, bit for bit: loaded is the
same `Scorer` over the same detectors. `write` checks that before it ends.

Source: METHOD 8.2.  Used by: `asd export`, `asd score`, `asdlib.load_detector`.
"""

from __future__ import annotations

import datetime
import json
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

LAYOUT = 1  # of the folder; a reader takes its own and earlier ones
SCALE, ENCODER = "standardization.safetensors", "encoder"  # files beside those that a detector saves
NOT_SCORED_WITH = {"DONE", "manifest.json", "scores.parquet", "history.parquet"}
FOR_NOTEBOOKS = {"oevae": {"embeddings.safetensors"}}  # that scoring does not read


def write(run, ready: Scorer, out: str | Path) -> str:
    """Export the detectors of a scorer.

    run : run.Run.  ready : of `run.scorer`.  out : folder to make, or an empty one
    returns : in words what lies there, its size, and the seconds that exporting and scoring took
    raises : errors.InputError where `out` holds something, and where the folder would not score as the study
    """
    out, began = Path(out), time.perf_counter()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise errors.InputError(f"{out}: exists and is not empty, expected a new folder; name another one")
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
    facts = {
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
    inside = [path for path in sorted(out.rglob("*")) if path.is_file() and path.parent != out]
    artifacts.commit(out, f"layout {LAYOUT}", facts, inside)
    spent, took = time.perf_counter() - began, _check(run, ready, out)
    files = [path for path in out.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files) / 1e6
    return (
        f"{ready.about()}; detectors: {', '.join(ready.detectors)}\n{len(files)} files, {size:.1f} MB,"
        f" written in {spent:.1f} s; {took}"
    )


def card(ready: Scorer, of_study: Path) -> str:
    """Model card of an exported detector, with that of its study below."""
    kept = of_study.read_text(encoding="utf-8") if of_study.is_file() else "The study has no model card.\n"
    made = datetime.date.today().isoformat()
    return (
        f"# Exported detector: {ready.system} of {ready.name}\n\n"
        f"Exported on {made} from study {ready.cfg.name}: {ready.about()}. Detectors:"
        f" {', '.join(ready.detectors)}. Expects recordings of {ready.name}; other rates are resampled to"
        f" {ready.cfg.data.sample_rate} Hz, channel {ready.cfg.data.channel} is taken. A score above the"
        " threshold is called anomalous.\n\n"
        "Use: `asd score FOLDER FILE...`, or in Python `asdlib.load_detector(FOLDER)([FILE, ...])`. What"
        f" follows is of the whole study.\n\n{kept}"
    )


def load_detector(folder: str | Path, device: str = "auto") -> Scorer:
    """A detector that `asd export` wrote: call it with recordings for a table of scores and decisions.

    folder : what was exported.  device : "auto" (a GPU where there is one), "cpu" or "cuda"
    raises : errors.InputError for a folder that is none, is damaged, or is of a newer layout
    """
    folder = Path(folder)
    with io.refused(folder / "manifest.json", "the facts of an exported detector"):
        facts = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        layout = int(facts["layout"])
    if layout > LAYOUT:
        raise errors.InputError(
            f"{folder}: is of layout {layout}, this asdlib reads up to {LAYOUT}; install a newer asdlib"
        )
    if wrong := artifacts.corrupt_files(folder):
        raise errors.InputError(f"{folder}: {', '.join(wrong)}; copy it again or export it again")
    cfg, place = config.StudySettings(**facts["settings"]), training.pick_device(device)
    table = io.table(folder / "clips.parquet")
    count = torch.ones(len(table), dtype=torch.int64)  # all clips are the same silent sample: none is read
    sound = torch.zeros(1, dtype=torch.int16), torch.zeros_like(count), count
    store = Store(
        table, index.problem_table([]), "", folder, *sound, torch.device("cpu"), cfg.data.sample_rate
    )
    found, odd = {}, [] if place.type == facts["device"] else [f"computed on {facts['device']}"]
    for name, own in facts["detectors"].items():
        settings = getattr(cfg, name)
        if (folder / name / ENCODER).is_file():
            settings = settings.replace(weights=str(folder / name / ENCODER))
        detector = DETECTORS[name](settings, seed=facts["seed"], device=place, precision=own["precision"])
        found[name] = detector.restore(folder / name, training_clips(store, own["machines"])[0])
        if (folder / name / SCALE).is_file():
            detector.take_standardization(io.tensors(folder / name / SCALE, {}))
        odd += [f"{name} was made by other code"] * (own["code"] != io.code(DETECTORS[name].__module__))
    if odd:
        print(f"note: {folder}: {', '.join(odd)}; last digits of scores may differ", file=sys.stderr)
    which = facts["machine"], facts["system"], facts["seed"], facts["section"]
    one = Scorer(cfg, found, io.scores(folder / "scores.parquet"), *which)
    return one.accepting(*accepted.of(folder, one.machine, one.section))


def _without_test(clips: pd.DataFrame) -> pd.DataFrame:
    """The clip table, every clip in its row, without paths; of test clips no name, label, domain or digest.

    Their rows stay, for references are named by row, and their sections, which say what is judged apart.
    """
    out, test = clips.drop(columns="path"), (clips["split"] != "train").to_numpy()
    for name, value in {"clip": "", "label": "unlabeled", "domain": "unknown", "digest": ""}.items():
        out[name] = out[name].where(~test, value)
    return out


def _check(run, ready: Scorer, out: Path) -> str:
    """Score a clip of the study by the folder and by the study; in words how long that took."""
    rows = [machine_rows(run.clips, ready.machine, split) for split in ("test", "train")]
    row = int(np.concatenate(rows)[0])
    store = ready.store(run.clips.iloc[[row]][["level_db", "digest"]], [run.store.int16(row)])
    began = time.perf_counter()
    one = load_detector(out, run.local_device.type)
    loaded = time.perf_counter()
    found, seconds = one.scores(store), len(run.store.int16(row)) / run.cfg.data.sample_rate
    took = time.perf_counter() - loaded
    for part, values in ready.scores(store).items():
        if not np.array_equal(found[part], values):
            name = run.clips["clip"].iloc[row]
            raise errors.InputError(
                f"{out}: scores {name} {found[part][0]!r} by {'/'.join(part)} and its study {values[0]!r};"
                " do not use it, and report this"
            )
    return f"loads in {loaded - began:.1f} s and scores a clip of {seconds:g} s in {took:.2f} s, as its study"
