"""Open a study: to compute it, to read its results, or from a notebook.

    run = open_run("demo", ["oevae.epochs=2"])       to compute it, with these settings changed
    run = open("demo")                               finished, as its last `asd run` computed it
    run = open_notebook("05_oevae", study=..., ...)  the second cell of every notebook

A notebook run interactively works on the study itself or, with changed settings, on a variant of it.
Source: METHOD 8.2, 8.3. Notebooks: all (second cell).
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import threadpoolctl
import torch

from asdlib import errors, io
from asdlib import settings as settings_tree
from asdlib.detectors import DETECTORS, SYSTEMS
from asdlib.scoring import fusion
from asdlib.settings import to_tree
from asdlib.studies import artifacts, config
from asdlib.studies.home import home_folder
from asdlib.studies.run import Run
from asdlib.studies.stages import jobs, stage_of

OVERRIDES = "overrides.json"  # in a study's folder: the overrides it was run with; study.txt names the study
_REPORTED: set[str] = set()  # studies whose missing systems were reported
MAX_NAME, CHANGED = 80, "--"  # most characters of a derived name; separates the study's name from its changes


def open_run(
    study: str, overrides: Sequence[str] = (), home: str | Path = "", seed: int | None = None
) -> Run:
    """Open a study by name (see notebooks/studies) or TOML path.

    overrides : `name=value`
    home : folder with runs/ and reports/; default: see `asdlib.studies.home`
    seed : default: the study's first
    raises : errors.InputError for an unknown study, setting or system, and for duplicate seeds or systems
    """
    study, overrides = origin(study, overrides, home)
    cfg = load(study, overrides, home)
    run = Run(cfg, home_folder(home), cfg.seeds[0] if seed is None else seed)
    run.study_file, run.overrides = study, overrides
    return run


def load(study: str, overrides: Sequence[str] = (), home: str | Path = "") -> config.StudySettings:
    """Load the settings of a study (`config.load`) and check its systems.

    raises : errors.InputError as in `open_run`
    """
    cfg = _installed(config.load(*origin(study, overrides, home), home))
    for system in cfg.systems:
        if system in (*fusion.COMPOSED, fusion.FUSED) and system not in SYSTEMS:
            parts = " and ".join(name for name, _ in fusion.parts(system)) or "the systems of fusion.views"
            raise errors.InputError(
                f"setting systems: {system} is computed automatically from {parts}; list those systems and"
                " leave it out"
            )
        name = SYSTEMS[errors.check_choice("system", system, list(SYSTEMS))]
        DETECTORS[name].check(getattr(cfg, name))
    for system, _ in fusion.parts(fusion.FUSED, cfg.fusion.views):
        errors.check_choice("system in fusion.views", system, list(fusion.with_composed(cfg.systems)))
    return cfg


def _installed(cfg: config.StudySettings) -> config.StudySettings:
    """Return the settings without optional systems whose weights are missing, and without their views."""
    for system in cfg.optional:
        name = SYSTEMS[errors.check_choice("system in optional", system, list(SYSTEMS))]
        if system not in cfg.systems:
            continue
        try:
            DETECTORS[name].check(getattr(cfg, name))
        except errors.InputError as missing:
            if cfg.name not in _REPORTED:
                _REPORTED.add(cfg.name)
                print(f"note: study {cfg.name} runs without {system}: {missing}", file=sys.stderr)
            views = [view for view in cfg.fusion.views if fusion.view_part(view)[0] != system]
            weights = [w for view, w in zip(cfg.fusion.views, cfg.fusion.weights) if view in views]
            cfg = cfg.replace(
                systems=tuple(one for one in cfg.systems if one != system),
                optional=tuple(one for one in cfg.optional if one != system),
                fusion=cfg.fusion.replace(views=views, weights=weights),
            )
    return cfg


def origin(study: str, overrides: Sequence[str], home: str | Path) -> tuple[str, list[str]]:
    """Return the study file and the overrides that a study's name stands for.

    A study that was run with overrides has no file of its own: its name stands for the original study and
    those overrides, followed by the given ones.
    """
    if study.endswith(".toml") or study in config.study_names(home):
        return study, list(overrides)
    folder = home_folder(home) / "runs" / study
    try:
        given = json.loads((folder / OVERRIDES).read_text(encoding="utf-8"))
        return (folder / "study.txt").read_text(encoding="utf-8"), [*map(str, given), *overrides]
    except (OSError, ValueError, TypeError):
        return study, list(overrides)


def change_name(name: str, overrides: Sequence[str]) -> str:
    """Return the name of a study run with overrides: `demo--epochs-3` for oevae.epochs=3."""
    parts = []
    for text in sorted(overrides):
        key, _, value = text.partition("=")
        parts.append(f"{key.strip().rsplit('.', 1)[-1]}-{value.strip()}")
    label = re.sub(r"[^A-Za-z0-9_-]+", "_", "--".join(parts)).replace("-_", "-").strip("_")
    if len(name) + len(label) > MAX_NAME:
        label = settings_tree.digest(sorted(overrides))[:8]
    return f"{name}{CHANGED}{label}"


def open(study: str, home: str | Path = "", seed: int | None = None, roots: Sequence[str | Path] = ()) -> Run:
    """Open a finished study with the settings of its last run.

        open("demo").score(["clip.wav"], machine="fan")

    study : name or TOML path
    home : folder with runs/ and reports/; default: see `asdlib.studies.home`
    seed : one of the study's seeds; default: the first
    roots : folders of the recordings, if they were moved since the last run
    raises : errors.InputError if the study never finished. Outdated results are reported when they are used
        (`Run.scorer`)
    """
    home, name = home_folder(home), load(study, (), home).name
    try:
        params = json.loads((home / "runs" / name / "09_report" / "params.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise errors.InputError(
            f"study {name} is not finished in {home}; run `asd run {name}` first, or give its folder with"
            " --home"
        ) from error
    file = study if study.endswith(".toml") and not os.path.exists(params["study"]) else params["study"]
    overrides = [*params["overrides"], *_roots(home / "runs" / name, roots), 'device="auto"']
    return _check_seed(_with_recorded_device(open_run(file, overrides, home, seed)))


def _roots(folder: Path, given: Sequence[str | Path]) -> list[str]:
    """Return the override of data.roots: the given folders, else that of the last run, else none."""
    if given:
        return [f"data.roots={json.dumps([str(Path(root).resolve()) for root in given])}"]
    try:
        overrides = json.loads((folder / OVERRIDES).read_text(encoding="utf-8"))
        return [text for text in map(str, overrides) if text.startswith("data.roots=")][-1:]
    except (OSError, ValueError, TypeError):
        return []


def _with_recorded_device(run: Run) -> Run:
    """Set the device and precision that the study was computed with, so that its stored keys are found.

    New results are computed on `Run.local_device`.
    """
    for job in reversed(jobs(run)):
        try:
            manifest = artifacts.read_manifest(run.stage_folder(*job))
            device = torch.device({"cpu": "cpu", "cuda": "cuda"}[manifest["device"]])
            run.device, run.auto = device, str(manifest["auto"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        break
    return run


def _interactive(run: Run) -> Run:
    """Return the run for a notebook opened interactively.

    With the settings of the finished study this is the study itself, else a variant, and the differences are
    printed. Results of the study are never overwritten.
    """
    job = (run.stage, run.seed, run.machine)
    try:
        base = open(run.cfg.name if run.study_file is None else run.study_file, run.home)
    except errors.InputError:  # never finished
        return _with_recorded_device(run) if run.cfg.device == "auto" else run
    before, after = (settings_tree.flat(to_tree(each.cfg)) for each in (base, run))
    changed = {name: value for name, value in after.items() if before.get(name) != value}
    changed.pop("device", None)
    if changed:
        text = "; ".join(f"{name} = {value} (study: {before.get(name)})" for name, value in changed.items())
        print(f"your change to {run.cfg.name}: {text}. Results go to a variant; the study stays as it is.")
        name = f"change-{settings_tree.digest(run.cfg)[:8]}"
        source = run.study_file, run.overrides
        run = Run(run.cfg, run.home, run.seed, variant=name, base=base)
        run.study_file, run.overrides = source
        if run.cfg.device == "auto":
            run.device, run.auto = base.device, base.auto
        run.changed = changed
    elif run.cfg.device == "auto":
        run = _with_recorded_device(run)
    run.stage, run.seed, run.machine = job
    return run


def _check_seed(run: Run) -> Run:
    """Return the run if its seed is one of the study's, else raise InputError."""
    if run.seed not in run.cfg.seeds:
        raise errors.InputError(
            f"unknown seed {run.seed}; study {run.cfg.name} has {', '.join(map(str, run.cfg.seeds))}"
        )
    return run


def open_notebook(
    notebook: str, *, study: str, overrides: list, home: str, seed: int = 0, machine: str = ""
) -> Run:
    """Validate the parameters of a notebook and open its study; the second cell of every notebook.

    machine : default: the first machine of the study
    raises : errors.InputError for a wrong type, an unknown machine, or a seed without results to read
    """
    params = {"study": study, "overrides": overrides, "home": home, "seed": seed, "machine": machine}
    for (name, value), expected in zip(params.items(), (str, list, str, int, str), strict=True):
        if type(value) is not expected:
            raise errors.InputError(
                f"parameter {name}: got {value!r} ({type(value).__name__}), expected {expected.__name__}"
            )
    run = open_run(study, overrides, home, seed)
    run.stage = stage_of(notebook)
    if run.stage.per_seed and run.stage.reads:
        _check_seed(run)
    run.machine = errors.check_choice("machine", machine, run.machines) if machine else run.machines[0]
    if io.HOLDS in os.environ:
        wanted = os.environ.get(artifacts.DEVICE, run.device.type)
        if run.device.type != wanted:
            raise errors.InputError(
                f"the job is for {wanted}, but this worker computes on {run.device.type}; use workers with"
                " the same kind of device, or add --device cpu"
            )
        run.auto = os.environ.get(artifacts.PRECISION, "")
        artifacts.lock_dir(run.own_folder)
    else:
        run = _interactive(run)
    torch.set_num_threads(1)  # two spinning threads on two busy cores are ten times slower than one
    threadpoolctl.threadpool_limits(1)  # numpy too; interactively as well, so that results equal the study's
    return run
