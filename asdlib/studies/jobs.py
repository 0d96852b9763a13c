"""The job graph of a study: dependencies of each job, its state, and the reasons for it.

A job is one notebook for one seed and machine. It is `fresh` if its folder, detectors and outputs are intact
and were made with the current settings, recordings, code, notebook and device; `missing` if it never
finished; else `stale`. The reasons come from comparing the current inputs with those in the manifests.

Stages that train depend only on the store, stages that read detectors depend on their training, the last
stage depends on all. Source: METHOD 8.2, 8.3. `asd run STUDY --dry-run` prints the graph.
"""

from __future__ import annotations

import contextlib
import json
import math
import statistics
import types
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from asdlib.data import index
from asdlib.settings import digest
from asdlib.studies import artifacts
from asdlib.studies.run import Run
from asdlib.studies.stages import STAGES, Stage, jobs

MAX_REASONS = 4  # reasons printed per job


@dataclass(frozen=True, eq=False)
class Job:
    """A notebook to run for one seed and machine.

    needs : keys of the jobs it depends on.  state : "fresh", "stale" or "missing".  why : empty if fresh
    """

    key: str
    run: Run
    stage: Stage
    seed: int
    machine: str
    needs: tuple[str, ...]
    state: str
    why: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """Folder of the executed notebook."""
        return self.run.stage_folder(self.stage, self.seed, self.machine)

    @property
    def label(self) -> str:
        """Name shown to users."""
        seed = f"seed {self.seed}" if self.stage.per_seed and len(self.run.cfg.seeds) > 1 else ""
        return " ".join(filter(None, [self.stage.notebook, self.machine, seed, self.run.variant]))


def plan(opened: dict[str, Run], only: Sequence[str] = ()) -> list[Job]:
    """Return the jobs of a study and its variants, each after those it depends on.

    opened : from `sweeps.of`.  only : see `stages.jobs`, which also says what raises errors.InputError
    """
    found: dict[Path, Job] = {}
    wanted = []
    for variant, run in opened.items():
        wanted += [(run, *job) for job in jobs(run, only) if not variant or job[0].detectors]
    wanted.sort(key=lambda job: _level(job[1]))
    for run, stage, seed, machine in wanted:
        folder = run.stage_folder(stage, seed, machine)
        if folder in found:  # shared with the study or another variant
            continue
        needs = [job for job in found.values() if _needs(stage, seed, job, run)]
        state, why = job_state(run, stage, seed, machine)
        recomputed = [job.label for job in needs if job.why]
        if stage is STAGES[-1] and state == "fresh" and recomputed:
            more = " …" if len(recomputed) > MAX_REASONS else ""
            state, why = "stale", [f"depends on recomputed {', '.join(recomputed[:MAX_REASONS])}{more}"]
        key = folder.relative_to(run.study_folder).as_posix()
        found[folder] = Job(
            key, run, stage, seed, machine, tuple(job.key for job in needs), state, tuple(why)
        )
    return list(found.values())


def _level(stage: Stage) -> int:
    """Return 0 for stages without dependencies, 1 for those that read detectors, 2 for the last."""
    trains = [number for number, other in enumerate(STAGES) if other.detectors]
    return 2 if stage is STAGES[-1] else int(STAGES.index(stage) > trains[-1])


def _needs(stage: Stage, seed: int, other: Job, run: Run) -> bool:
    """Return True if a stage of a run depends on another job."""
    if _level(other.stage) >= _level(stage) or (other.run.variant and _level(stage) == 1):
        return False
    reads = bool({*stage.reads, *stage.shows} & set(other.stage.detectors))
    return _level(stage) == 2 or (reads and (not stage.per_seed or other.seed == seed))


# ---------------------------------------------------------------- states


def job_state(run: Run, stage: Stage, seed: int, machine: str) -> tuple[str, list[str]]:
    """Return "fresh", "stale" or "missing", and the reasons if not fresh."""
    folder = run.stage_folder(stage, seed, machine)
    if not (folder / "DONE").is_file():
        if (folder / "failed.ipynb").is_file():
            return "missing", ["failed in the last run"]
        with contextlib.suppress(OSError):
            if (folder / "BEGUN").read_text(encoding="utf-8") == run.digest(stage, seed, machine):
                return "missing", ["interrupted, will resume"]
        return "missing", ["not computed yet"]
    why = []
    for name, scored in run.scores_of(stage, seed, machine).items():
        why += _detector_reasons(run, name, seed, machine, scored)
    own = _job_reasons(folder, run.digest(stage, seed, machine), run.shaped_by(stage, seed, machine))
    why += [reason for reason in own if not any(reason in other for other in why)]
    if not why and not run.finished(stage, seed, machine):
        why = ["summary.md, report.json or model_card.md of the report is missing"]
    return ("stale" if why else "fresh"), list(dict.fromkeys(why))


def _job_reasons(folder: Path, digest: str, shaped_by: dict) -> list[str]:
    """Return why a finished job is stale, apart from its detectors."""
    reasons = artifacts.corrupt_files(folder)
    if artifacts.sealed_for(folder) != digest:
        reasons += artifacts.changes(folder, shaped_by) or ([] if reasons else ["computed from other inputs"])
    return reasons


def _detector_reasons(run: Run, name: str, seed: int, machine: str, scored: Path) -> list[str]:
    """Return why a detector has to be recomputed; empty if it is up to date."""
    if artifacts.is_whole(scored):
        trained = run.trained_with(scored)
        problems = [] if artifacts.is_whole(trained) else artifacts.corrupt_files(trained)
        return [f"{name}: {problem}" for problem in problems]
    if (scored / "DONE").is_file():
        return [f"{name}: {problem}" for problem in artifacts.corrupt_files(scored)]
    last = run.last_folder(name, seed, machine)
    if last is None or not (last / "DONE").is_file():
        return [f"{name}: not finished"]
    key = digest(name, run.trained_by(name, seed, machine))
    is_trained = artifacts.is_whole(run.artifact("trained", name, seed, machine, key))
    changes = artifacts.changes(last, run.detector_shaped_by(name, seed, machine)) or ["not finished"]
    return [f"{name} {'scored' if is_trained else 'trained'} again: {change}" for change in changes]


def seconds(job: Job) -> float:
    """Estimate the duration of a job from earlier jobs of the same machine in this home; NaN if unknown."""
    run, found = job.run, 0.0
    for name, scored in run.scores_of(job.stage, job.seed, job.machine).items():
        key = digest(name, run.trained_by(name, job.seed, job.machine))
        trained = run.artifact("trained", name, job.seed, job.machine, key)
        for kind, folder in {"trained": trained, "embeddings": trained, "scores": scored}.items():
            pattern = run.artifact(kind, name, job.seed, job.machine, "*")
            manifests = list(pattern.parent.glob(f"{pattern.name}/manifest.json"))
            # detectors that store no embeddings have no such manifests
            if (manifests or kind != "embeddings") and not artifacts.is_whole(folder):
                found += _reduce_seconds(manifests, statistics.median)
    pages = (run.home / "runs").glob(f"*/**/{job.stage.notebook}/**/manifest.json")
    return found + _reduce_seconds(pages, min)


def _reduce_seconds(manifests: Iterable[Path], reduce: Callable[[list[float]], float]) -> float:
    """Apply `reduce` to the seconds recorded in manifests; NaN if there are none."""
    measured = []
    for path in manifests:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            measured.append(float(json.loads(path.read_text(encoding="utf-8"))["seconds"]))
    return reduce(measured) if measured else math.nan


def outline(run: Run, only: Sequence[str] = ()) -> str:
    """List the jobs of a study whose recordings are not decoded yet, so that job states are unknown."""
    if run.synthetic:
        machines = sorted(run.cfg.data.machines or run.cfg.synthetic.machines)
        first = "recordings of modeled machines to synthesize first"
    else:
        table, _ = index.index(run.roots, run.cfg.data.machines)
        machines = sorted(table["machine"].unique())
        first = f"{len(table)} recordings to decode first"
    lines = [f"{first} ({', '.join(machines)})"]
    view = types.SimpleNamespace(cfg=run.cfg, machines=machines)
    labels = [
        " ".join(filter(None, [stage.notebook, machine, f"seed {seed}" if len(run.cfg.seeds) > 1 else ""]))
        for stage, seed, machine in jobs(view, only)
    ]
    known = (run.study_folder / "study.txt").is_file()
    lines += [f"{'unknown' if known else 'missing'}  {label}" for label in labels]
    return "\n".join([*lines, f"{len(labels)} jobs{', stale or fresh' if known else ' to run'}"])


def text(planned: Sequence[Job]) -> str:
    """Format the jobs for a terminal: state, reasons, estimated time and dependencies, and totals."""
    lines, stages = [], {job.key: job.stage.notebook for job in planned}
    estimates = {job.key: seconds(job) for job in planned if job.why}
    width = max((len(job.label) for job in planned), default=0)
    for job in planned:
        needs = sorted({stages[key] for key in job.needs})
        after = (
            "" if not needs else "(after all)" if job.stage is STAGES[-1] else f"(after {', '.join(needs)})"
        )
        why = "; ".join([*job.why[:MAX_REASONS], *(["…"] if len(job.why) > MAX_REASONS else [])])
        about = f"about {estimates[job.key]:.0f} s" if estimates.get(job.key, math.nan) > 0 else ""
        parts = [f"{job.state:7}", f"{job.label:{width}}", why, about, after]
        lines.append("  ".join(filter(None, parts)).rstrip())
    counts = {state: sum(job.state == state for job in planned) for state in ("fresh", "stale", "missing")}
    lines.append(f"{len(planned)} jobs: " + ", ".join(f"{count} {state}" for state, count in counts.items()))
    known = [value for value in estimates.values() if not math.isnan(value)]
    if known:
        unknown = len(estimates) - len(known)
        rest = f", and {unknown} of unknown duration" if unknown else ""
        lines.append(f"about {sum(known):.0f} s by earlier timings{rest}")
    return "\n".join(lines)
