"""Run a study: its notebooks one after another by papermill, what is fresh left alone, what broke said in one sentence.

Each notebook is executed in a kernel of its own and saved in its stage's folder; DONE is written when it came to its
end. A job that is interrupted goes on from its checkpoints the next time.
Sources: DESIGN 3, 4; UX (papermill). Notebooks: all.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import nbformat
import papermill
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from asdlib import artefacts, checks, config, kernels, report
from asdlib.detectors import training_rows
from asdlib.detectors.exposure import checked_machine
from asdlib.study import NOTEBOOKS, Run, Stage, jobs

KERNEL_CONFIG = Config(
    {
        "KernelManager": {"transport_encryption": "auto"},  # no warning about plain TCP
        "NotebookClient": {"extra_arguments": ["--log-level=50"]},  # an interrupt at shutdown is no error
    }
)


@dataclasses.dataclass(frozen=True)
class Parameters:
    """What a notebook may be given; a notebook that runs once has no `machine`, one that trains nothing no `seed`."""

    study: str
    overrides: list
    home: str
    seed: int
    machine: str

    def for_notebook(self, path: Path) -> dict:
        """The parameters that a notebook declares, as plain JSON values; one that it does not know is an error here, not a printed line."""
        declared = set(papermill.inspect_notebook(str(path)))
        values = dataclasses.asdict(self)
        unknown = declared - set(values)
        if unknown or not {"study", "overrides", "home"} <= declared:
            raise checks.Refusal(f"{path.name}: declares the parameters {', '.join(sorted(declared))}, expected some of {', '.join(values)}")
        return json.loads(json.dumps({name: value for name, value in values.items() if name in declared}))


def run_study(run: Run, study: str, overrides: Sequence[str], only: Sequence[str] = (), say: Callable[[str], None] = print) -> int:
    """Bring a study up to date.

    study, overrides : as the notebooks are to open it again
    only : stages by name or number; none: all
    returns : how many notebooks were executed
    raises : checks.Refusal, in a sentence, when a stage cannot be finished
    """
    with artefacts.locked(run.folder), artefacts.guarded(run.folder):
        _claim(run.folder, study)
        run.reports.mkdir(parents=True, exist_ok=True)
        started, todo = time.perf_counter(), jobs(run, only)
        rows = [training_rows(run.clips, machine) for machine in run.machines]  # what cannot be finished is said before anything runs
        if any("oevae" in stage.detectors for stage, *_ in todo):
            for of_machine in rows:
                checked_machine(run.clips, of_machine)
        executed, upstream_changed = 0, False
        for number, (stage, seed, machine) in enumerate(todo, 1):
            folder, digest = run.stage_folder(stage, seed, machine), run.digest(stage, seed, machine)
            label = " ".join(filter(None, [stage.notebook, machine, f"seed {seed}" if stage.per_seed and len(run.cfg.seeds) > 1 else ""]))
            gathers = stage is jobs(run)[-1][0]
            if run.finished(stage, seed, machine) and not (gathers and upstream_changed):
                continue
            say(f"[{number}/{len(todo)}] {label}")
            began = time.perf_counter()
            parameters = Parameters(study, list(overrides), str(run.home), seed, machine).for_notebook(NOTEBOOKS / f"{stage.notebook}.ipynb")
            artefacts.begin(folder, digest)
            _execute(stage, folder, parameters, label)
            artefacts.write_text(folder / "params.json", json.dumps(parameters, indent=1))
            facts = {"stage": stage.notebook, "machine": machine, "seed": seed, "seconds": round(time.perf_counter() - began, 2)}
            facts |= {"device": run.device.type, "data": run.store.fingerprint, "settings": config.to_tree(run.cfg)}
            artefacts.seal(folder, digest, facts)
            executed, upstream_changed = executed + 1, True
            say(f"[{number}/{len(todo)}] {label}: {facts['seconds']:.0f} s, {time.perf_counter() - started:.0f} s in all")
        for stage, seed, machine in todo:
            if executed or not page_of(run, stage, seed, machine).is_file():
                export(run, stage, seed, machine)
    return executed


def _claim(folder: Path, study: str) -> None:
    """A run folder belongs to one study file; another file of the same name is refused."""
    owner = folder / "study.txt"
    if not owner.is_file():
        artefacts.write_text(owner, study)
    elif (held := owner.read_text(encoding="utf-8", errors="replace")) != study:
        raise checks.Refusal(f"{folder} holds the study {held}, now {study} came; set another name in the study file")


def _execute(stage: Stage, folder: Path, parameters: dict, label: str) -> None:
    """Run one notebook to its end; the executed copy is put in place only then, a broken one stays as failed.ipynb."""
    beside, out = folder / "failed.ipynb", folder / "notebook.ipynb"
    try:
        papermill.execute_notebook(
            str(NOTEBOOKS / f"{stage.notebook}.ipynb"),
            str(beside),
            parameters=parameters,
            kernel_name="python3",
            progress_bar=False,
            cwd=str(folder),
            config=KERNEL_CONFIG,
            kernel_manager_class=kernels.WarmKernelManager,
        )
    except PapermillExecutionError as error:
        if error.ename == "Refusal":
            raise checks.Refusal(f"{label}: {error.evalue}") from error
        raise checks.Refusal(f"{label} failed with {error.ename}: {error.evalue}; see {beside}") from error
    except RuntimeError as error:  # the kernel died or never came up
        advice = "most likely for want of memory; free some or use fewer or shorter clips, then give the same command again"
        raise checks.Refusal(f"{label}: its kernel ended from outside ({type(error).__name__}), {advice}") from error
    os.replace(beside, out)


def page_of(run: Run, stage: Stage, seed: int, machine: str) -> Path:
    """Where a notebook's page lies in the report."""
    name = "_".join(filter(None, [stage.notebook, machine, f"seed{seed}" if stage.per_seed else ""]))
    return run.reports / ("index.html" if stage.notebook == "09_report" else f"{name}.html")


def export(run: Run, stage: Stage, seed: int, machine: str) -> Path:
    """The executed notebook as a page of the report: the last stage as index.html, the others beside it."""
    folder = run.stage_folder(stage, seed, machine)
    page = page_of(run, stage, seed, machine)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    title = nbformat.read(folder / "notebook.ipynb", 4).cells[0].source.splitlines()[0].lstrip("# ")
    footer = {"study": run.cfg.name, "seed": seed, "machine": machine or "all", "device": manifest["device"]}
    footer |= {"settings": config.digest(run.cfg), **manifest["versions"]}
    return report.html(folder / "notebook.ipynb", page, footer, title)
