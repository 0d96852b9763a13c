"""The jobs of a study as a graph: what each needs, whether it is fresh, stale or missing, and why.

A job is one notebook for one seed and machine. It is `fresh` when its folder, its detectors and what it
leaves elsewhere are whole and made of the settings, recordings, code, notebook and device that hold now;
`missing` when it never came to its end; else `stale`, and the reasons say which setting, which file. The
manifest beside every artifact keeps what shaped it, which is what it is compared with.

Stages that train wait for nothing but the store; stages that read detectors wait for these; the last waits
for all. Source: METHOD 8.2, 8.3. Notebooks: all (run by asdlib.studies.runner); `asd run STUDY --dry-run`
prints it.
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

MOST = 4  # reasons that are printed for a job


@dataclass(frozen=True, eq=False)
class Job:
    """One notebook to run. needs : keys of the jobs it waits for; why : empty if it is fresh."""

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
        """Where its artifacts lie."""
        return self.run.stage_folder(self.stage, self.seed, self.machine)

    @property
    def label(self) -> str:
        """Its name for people."""
        seed = f"seed {self.seed}" if self.stage.per_seed and len(self.run.cfg.seeds) > 1 else ""
        return " ".join(filter(None, [self.stage.notebook, self.machine, seed, self.run.variant]))


def plan(opened: dict[str, Run], only: Sequence[str] = ()) -> list[Job]:
    """The jobs of a study and of its variants in an order in which they can run one after another.

    opened : of `sweeps.of`;  only : stages by name or number, none: all
    raises : errors.InputError for stages that the study has no use for
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
        needs = tuple(job.key for job in found.values() if _needs(stage, seed, job, run))
        state, why = job_state(run, stage, seed, machine)
        again = (
            [job.label for job in found.values() if job.key in needs and job.why]
            if stage is STAGES[-1]
            else []
        )
        if state == "fresh" and again:
            state, why = (
                "stale",
                [f"computed again: {', '.join(again[:MOST])}{' …' if len(again) > MOST else ''}"],
            )
        key = folder.relative_to(run.study_folder).as_posix()
        found[folder] = Job(key, run, stage, seed, machine, needs, state, tuple(why))
    return list(found.values())


def _level(stage: Stage) -> int:
    """0: waits for nothing, 1: reads what was trained, 2: gathers everything."""
    trains = [number for number, other in enumerate(STAGES) if other.detectors]
    return 2 if stage is STAGES[-1] else int(STAGES.index(stage) > trains[-1])


def _needs(stage: Stage, seed: int, other: Job, run: Run) -> bool:
    """Whether a stage of a run waits for another job."""
    if _level(other.stage) >= _level(stage) or (other.run.variant and _level(stage) == 1):
        return False
    reads = bool({*stage.reads, *stage.shows} & set(other.stage.detectors))
    return _level(stage) == 2 or (reads and (not stage.per_seed or other.seed == seed))


# ---------------------------------------------------------------- states


def job_state(run: Run, stage: Stage, seed: int, machine: str) -> tuple[str, list[str]]:
    """State of a job, and why it is not fresh: ("fresh" | "stale" | "missing", reasons)."""
    folder = run.stage_folder(stage, seed, machine)
    if not (folder / "DONE").is_file():
        if (folder / "failed.ipynb").is_file():
            return "missing", ["failed the last time"]
        with contextlib.suppress(OSError):
            if (folder / "BEGUN").read_text(encoding="utf-8") == run.digest(stage, seed, machine):
                return "missing", ["begun and not finished: it goes on"]
        return "missing", ["not computed yet"]
    why = []
    for name, scored in run.scores_of(stage, seed, machine).items():
        why += _detector_reasons(run, name, seed, machine, scored)
    told = _reasons(folder, run.digest(stage, seed, machine), run.shaped_by(stage, seed, machine))
    why += [reason for reason in told if not any(reason in other for other in why)]
    if not why and not run.finished(stage, seed, machine):
        why = ["summary.md, report.json or model_card.md of the report is missing"]
    return ("stale" if why else "fresh"), list(dict.fromkeys(why))


def _reasons(folder: Path, digest: str, shaped_by: dict) -> list[str]:
    found = artifacts.corrupt_files(folder)
    if artifacts.sealed_for(folder) != digest:
        found += artifacts.changes(folder, shaped_by) or (["made of something else"] if not found else [])
    return found


def _detector_reasons(run: Run, name: str, seed: int, machine: str, scored: Path) -> list[str]:
    """Why a detector of a stage is to be computed; nothing for one that is whole."""
    if artifacts.is_whole(scored):
        trained = run.trained_with(scored)
        wrong = [] if artifacts.is_whole(trained) else artifacts.corrupt_files(trained)
        return [f"{name}: {words}" for words in wrong]
    if (scored / "DONE").is_file():
        return [f"{name}: {words}" for words in artifacts.corrupt_files(scored)]
    last = run.last_folder(name, seed, machine)
    if last is None or not (last / "DONE").is_file():
        return [f"{name}: not finished"]
    key = digest(name, run.trained_by(name, seed, machine))
    is_trained = artifacts.is_whole(run.artifact("trained", name, seed, machine, key))
    differ = artifacts.changes(last, run.detector_shaped_by(name, seed, machine)) or ["not finished"]
    return [f"{name} {'scored' if is_trained else 'trained'} again: {words}" for words in differ]


def seconds(job: Job) -> float:
    """About how long a job takes, from what was measured in this home for the same machine: training and
    scoring where they are due, and the page; NaN where that was never done.
    """
    run, found = job.run, 0.0
    for name, scored in run.scores_of(job.stage, job.seed, job.machine).items():
        key = digest(name, run.trained_by(name, job.seed, job.machine))
        trained = run.artifact("trained", name, job.seed, job.machine, key)
        for kind, folder in {"trained": trained, "embeddings": trained, "scores": scored}.items():
            every = run.artifact(kind, name, job.seed, job.machine, "*")
            made = list(every.parent.glob(f"{every.name}/manifest.json"))
            if (made or kind != "embeddings") and not artifacts.is_whole(folder):  # some keep no embeddings
                found += _median(made)
    pages = (run.home / "runs").glob(f"*/**/{job.stage.notebook}/**/manifest.json")
    return found + _median(pages, min)


def _median(manifests: Iterable[Path], of: Callable[[list[float]], float] = statistics.median) -> float:
    """Of the seconds that manifests tell; NaN without any."""
    spent = []
    for path in manifests:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            spent.append(float(json.loads(path.read_text(encoding="utf-8"))["seconds"]))
    return of(spent) if spent else math.nan


def outline(run: Run, only: Sequence[str] = ()) -> str:
    """The jobs of a study whose recordings are not decoded as they are now: which of them are fresh is known
    only after that.
    """
    if run.synthetic:
        machines, there = sorted(run.cfg.data.machines or run.cfg.synthetic.machines), "modeled machines"
    else:
        table, _ = index.index(run.roots, run.cfg.data.machines)
        machines, there = sorted(table["machine"].unique()), f"{len(table)} recordings"
    what = f"made first: recordings of {there}" if run.synthetic else f"decoded first: {there}"
    lines = [f"to be {what} ({', '.join(machines)})"]
    view = types.SimpleNamespace(cfg=run.cfg, machines=machines)
    found = [
        " ".join(filter(None, [stage.notebook, machine, f"seed {seed}" if len(run.cfg.seeds) > 1 else ""]))
        for stage, seed, machine in jobs(view, only)
    ]
    known = (run.study_folder / "study.txt").is_file()
    lines += [f"{'unknown' if known else 'missing'}  {label}" for label in found]
    return "\n".join([*lines, f"{len(found)} jobs{', stale or fresh' if known else ' to do'}"])


def text(planned: Sequence[Job]) -> str:
    """The graph for a terminal: one line per job with its state, why, about how long it takes and what it
    waits for, and the sum.
    """
    lines, stages = [], {job.key: job.stage.notebook for job in planned}
    spent = {job.key: seconds(job) for job in planned if job.why}
    width = max((len(job.label) for job in planned), default=0)
    for job in planned:
        needs = sorted({stages[key] for key in job.needs})
        after = (
            "" if not needs else "(after all)" if job.stage is STAGES[-1] else f"(after {', '.join(needs)})"
        )
        why = "; ".join([*job.why[:MOST], *(["…"] if len(job.why) > MOST else [])])
        about = f"about {spent[job.key]:.0f} s" if spent.get(job.key, math.nan) > 0 else ""
        parts = [f"{job.state:7}", f"{job.label:{width}}", why, about, after]
        lines.append("  ".join(filter(None, parts)).rstrip())
    counts = {state: sum(job.state == state for job in planned) for state in ("fresh", "stale", "missing")}
    lines.append(f"{len(planned)} jobs: " + ", ".join(f"{count} {state}" for state, count in counts.items()))
    known = [value for value in spent.values() if not math.isnan(value)]
    if known:
        rest = (
            "" if len(known) == len(spent) else f", and {len(spent) - len(known)} of which nothing is known"
        )
        lines.append(f"about {sum(known):.0f} s by earlier timings{rest}")
    return "\n".join(lines)
