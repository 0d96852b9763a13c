"""Open a study: by name for `asd run`, as it was computed for scoring and reading, or from a notebook.

    run = open_run("demo", ["oevae.epochs=2"])      to be computed, with settings of one's own
    run = open("demo")                              as its last `asd run` computed it
    run = open_notebook("05_oevae", study=..., ...)  the second cell of every notebook

A notebook opened by hand works on the study itself, or, with other settings, on a variant beside it.
Source: METHOD 8.2, 8.3. Notebooks: all (second cell).
"""

from __future__ import annotations

import json
import os
import re
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

OVERRIDES = "overrides.json"  # in a study's folder: what it was run with, beside study.txt
LONGEST, CHANGED = 80, "--"  # signs of a name made of settings; what stands before them


def open_run(
    study: str, overrides: Sequence[str] = (), home: str | Path = "", seed: int | None = None
) -> Run:
    """Open a study by name (see notebooks/studies) or TOML path.

    home : holds runs/ and reports/; default as of `asdlib.studies.home`
    overrides : `name=value`
    raises : errors.InputError for an unknown study, setting or system, and for seeds or systems that stand
        there twice
    """
    study, overrides = origin(study, overrides, home)
    cfg = load(study, overrides, home)
    run = Run(cfg, home_folder(home), cfg.seeds[0] if seed is None else seed)
    run.study_file, run.overrides = study, overrides
    return run


def load(study: str, overrides: Sequence[str] = (), home: str | Path = "") -> config.StudySettings:
    """Settings of a study (config.load) whose systems are known and whose seeds and systems stand there once;
    others are refused.
    """
    cfg = config.load(*origin(study, overrides, home), home)
    for system in cfg.systems:
        if system in (*fusion.COMPOSED, fusion.FUSED) and system not in SYSTEMS:
            parts = " and ".join(name for name, _ in fusion.parts(system)) or "the systems of fusion.views"
            raise errors.InputError(
                f"setting systems: {system} is made wherever {parts} are among the systems; name those and"
                " leave it out"
            )
        name = SYSTEMS[errors.check_choice("system", system, list(SYSTEMS))]
        DETECTORS[name].check(getattr(cfg, name))
    for system, _ in fusion.parts(fusion.FUSED, cfg.fusion.views):
        errors.check_choice("system in fusion.views", system, list(fusion.with_composed(cfg.systems)))
    return cfg


def origin(study: str, overrides: Sequence[str], home: str | Path) -> tuple[str, list[str]]:
    """The file and the overrides behind a study's name.

    A study that was run with overrides has no file: its name stands for the study and the overrides that it
    was run with. Those that come now follow them.
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
    """Name of a study that is run with other settings: `demo--epochs-3` for oevae.epochs=3."""
    parts = []
    for text in sorted(overrides):
        key, _, value = text.partition("=")
        parts.append(f"{key.strip().rsplit('.', 1)[-1]}-{value.strip()}")
    label = re.sub(r"[^A-Za-z0-9_-]+", "_", "--".join(parts)).replace("-_", "-").strip("_")
    if len(name) + len(label) > LONGEST:
        label = settings_tree.digest(sorted(overrides))[:8]
    return f"{name}{CHANGED}{label}"


def open(study: str, home: str | Path = "", seed: int | None = None, roots: Sequence[str | Path] = ()) -> Run:
    """A study that was run to its end, with the settings it was run with: `open("demo").score(["clip.wav"],
    machine="fan")`.

    study : name or TOML path
    home : holds runs/ and reports/; default as of `asdlib.studies.home`
    seed : one of the study's, none: the first
    roots : where the recordings are now, if they were moved; none: where the last run read them
    raises : errors.InputError where it was never run to its end; what is out of date is told when it is asked
        for (`Run.scorer`)
    """
    home, name = home_folder(home), load(study, (), home).name
    try:
        came = json.loads((home / "runs" / name / "09_report" / "params.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise errors.InputError(
            f"study {name} was not run to its end in {home}; run `asd run {name}` first, or name its folder"
            " by --home"
        ) from error
    file = study if study.endswith(".toml") and not os.path.exists(came["study"]) else came["study"]
    overrides = [*came["overrides"], *_roots(home / "runs" / name, roots), 'device="auto"']
    return _of_its_seeds(_as_computed(open_run(file, overrides, home, seed)))


def _roots(folder: Path, given: Sequence[str | Path]) -> list[str]:
    """The override that says where a study's recordings are now; none where its last run had none."""
    if given:
        return [f"data.roots={json.dumps([str(Path(root).resolve()) for root in given])}"]
    try:
        last = json.loads((folder / OVERRIDES).read_text(encoding="utf-8"))
        return [text for text in map(str, last) if text.startswith("data.roots=")][-1:]
    except (OSError, ValueError, TypeError):
        return []


def _as_computed(run: Run) -> Run:
    """The run, meant for the device that the study was computed on and in its precision, whatever this
    machine has: it is read, and computes `here` what is new.
    """
    for job in reversed(jobs(run)):
        try:
            facts = json.loads((run.stage_folder(*job) / "manifest.json").read_text(encoding="utf-8"))
            run.device, run.auto = (
                torch.device({"cpu": "cpu", "cuda": "cuda"}[facts["device"]]),
                str(facts["auto"]),
            )
        except (OSError, ValueError, KeyError, TypeError):
            continue
        break
    return run


def _by_hand(run: Run) -> Run:
    """A run for a notebook that was opened by hand: the study itself, or, where its settings are others than
    those the study was run with, a variant beside it, which says so. Nothing of the study is written over
    either way.
    """
    job = (run.stage, run.seed, run.machine)
    try:
        base = open(run.cfg.name if run.study_file is None else run.study_file, run.home)
    except errors.InputError:  # never run to its end
        return _as_computed(run) if run.cfg.device == "auto" else run
    was, now = (settings_tree.flat(to_tree(one.cfg)) for one in (base, run))
    differ = {name: value for name, value in now.items() if was.get(name) != value}
    differ.pop("device", None)
    if differ:
        words = "; ".join(f"{name} = {value} (the study: {was.get(name)})" for name, value in differ.items())
        print(f"your change to {run.cfg.name}: {words}. What is computed lies beside the study, which stays.")
        name = f"change-{settings_tree.digest(run.cfg)[:8]}"
        again = run.study_file, run.overrides
        run = Run(run.cfg, run.home, run.seed, variant=name, base=base)
        run.study_file, run.overrides = again
        if run.cfg.device == "auto":
            run.device, run.auto = base.device, base.auto
        run.changed = differ
    elif run.cfg.device == "auto":
        run = _as_computed(run)
    run.stage, run.seed, run.machine = job
    return run


def _of_its_seeds(run: Run) -> Run:
    """The run, or a refusal if the study does not have its seed."""
    if run.seed not in run.cfg.seeds:
        raise errors.InputError(
            f"seed {run.seed} came, the study has {', '.join(map(str, run.cfg.seeds))}; take one of them"
        )
    return run


def open_notebook(
    notebook: str, *, study: str, overrides: list, home: str, seed: int = 0, machine: str = ""
) -> Run:
    """The second cell of every notebook: check the parameters' names and types, then open the study.

    machine : "" takes the first machine of the study
    raises : errors.InputError for a wrong type, an unknown machine, or a seed of which there is nothing to
        read
    """
    came = {"study": study, "overrides": overrides, "home": home, "seed": seed, "machine": machine}
    for (name, value), kind in zip(came.items(), (str, list, str, int, str), strict=True):
        if type(value) is not kind:
            raise errors.InputError(
                f"parameter {name}: got {value!r} ({type(value).__name__}), expected {kind.__name__}"
            )
    run = open_run(study, overrides, home, seed)
    run.stage = stage_of(notebook)
    if run.stage.per_seed and run.stage.reads:
        _of_its_seeds(run)
    run.machine = errors.check_choice("machine", machine, run.machines) if machine else run.machines[0]
    if io.HOLDS in os.environ:
        if run.device.type != (ordered := os.environ.get(artifacts.DEVICE, run.device.type)):
            here = f"the job is meant for {ordered} and came to a worker that computes on {run.device.type}"
            raise errors.InputError(f"{here}; start workers of one kind, or add --device cpu")
        run.auto = os.environ.get(artifacts.PRECISION, "")
        artifacts.lock_dir(run.own_folder)
    else:
        run = _by_hand(run)
    torch.set_num_threads(1)  # two spinning threads on two busy cores are ten times slower than one
    threadpoolctl.threadpool_limits(1)  # numpy's too: by hand is computed what a study computes
    return run
