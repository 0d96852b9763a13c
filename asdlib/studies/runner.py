"""Run a study: execute the jobs that are not fresh, in parallel, in this process or on Dask workers.

Each notebook runs in its own kernel and is saved in its stage's folder; DONE is written when it has finished.
An interrupted job resumes from its checkpoints. Before computing, the decoded recordings are verified and
temporary files of killed writers are removed.
Sources: METHOD 8.2, 8.3. Notebooks: all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

import pandas as pd
import papermill
import torch
from IPython import get_ipython
from IPython.display import display

from asdlib import errors, io, settings
from asdlib.data.store import training_clips
from asdlib.detectors import SYSTEMS
from asdlib.detectors.exposure import check_machines
from asdlib.models import precision, training
from asdlib.studies import artifacts, forks, report, sweeps
from asdlib.studies import notebook as kernels
from asdlib.studies.jobs import Job, job_state, plan
from asdlib.studies.notebook import JobResult, JobSpec, KernelLostError, export
from asdlib.studies.run import Run
from asdlib.studies.stages import Stage
from asdlib.studies.study import OVERRIDES
from asdlib.viz import pages, tables

JOB_GB = 3.0  # memory of one job
log = functools.partial(print, flush=True)  # a log file shows each line at once


def parameters(path: Path, *, study: str, overrides: list, home: str, seed: int, machine: str) -> dict:
    """Return those of these parameters that a notebook declares; `seed` and `machine` are optional.

    raises : errors.InputError for a missing or unknown parameter, which papermill would ignore
    """
    values = {"study": study, "overrides": overrides, "home": home, "seed": seed, "machine": machine}
    declared = set(papermill.inspect_notebook(str(path)))
    if declared - set(values) or not {"study", "overrides", "home"} <= declared:
        raise errors.InputError(
            f"{path.name}: declares the parameters {', '.join(sorted(declared))}, expected some of"
            f" {', '.join(values)}"
        )
    return {name: value for name, value in values.items() if name in declared}


class Progress:
    """Progress display of a run: lines per job and epoch, or in a notebook one live table of all jobs.

    On a terminal the line of the latest epoch is overwritten.
    """

    def __init__(self, planned: Sequence[Job], say: Callable[[str], None]):
        self.say, self.start, self.total = say, time.perf_counter(), len(planned)
        self.ended = sum(job.state == "fresh" for job in planned)
        self.due, self.started = self.total - self.ended, self.ended
        self.rows = {job.key: [job.label, job.state, "", "; ".join(job.why)] for job in planned}
        self.files = {job.folder / kernels.PROGRESS: (job.label, job.key) for job in planned if job.why}
        self.lines_read: dict[Path, int] = {}
        self.stop, self.lock = threading.Event(), threading.Lock()
        for path in self.files:
            path.unlink(missing_ok=True)
        self.handle = display(self._table(), display_id=True) if get_ipython() is not None else None

    def __enter__(self) -> Progress:
        """Start watching the epochs of running jobs."""
        self.watcher = threading.Thread(target=self._watch, daemon=True)
        self.watcher.start()
        return self

    def __exit__(self, *_) -> None:
        """Stop watching."""
        self.stop.set()
        self.watcher.join()

    def _watch(self) -> None:
        """Report lines that kernels append to their progress files."""
        while not self.stop.wait(0.5):
            for path, (label, key) in self.files.items():
                with contextlib.suppress(OSError):
                    lines = path.read_text(encoding="utf-8").splitlines()
                    for line in lines[self.lines_read.get(path, 0) :]:
                        self._epoch(key, f"    {label}: {line}")
                    self.lines_read[path] = len(lines)

    def _epoch(self, key: str, line: str) -> None:
        with self.lock:
            if self.handle is not None:
                self.rows[key][3] = line.strip()
                self.handle.update(self._table())
            elif self.say is log and sys.stdout.isatty():
                print(f"\r\x1b[K{line[: shutil.get_terminal_size().columns - 1]}", end="", flush=True)
            else:
                self.say(line)

    def _table(self) -> tables.Html:
        return tables.styled(
            pd.DataFrame(list(self.rows.values()), columns=["job", "state", "seconds", "why"])
        )

    def job_started(self, spec: JobSpec) -> None:
        """Report that a job is running."""
        self.started += 1
        self._update(spec, "running", "", f"[{self.started}/{self.total}] {spec.label}")

    def job_ended(self, spec: JobSpec, result: JobResult) -> None:
        """Report the result of a job."""
        self.ended += 1
        elapsed, left = time.perf_counter() - self.start, self.total - self.ended
        line = f"[{self.ended}/{self.total}] {spec.label}: {result.seconds:.0f} s, {elapsed:.0f} s in total"
        if left:
            line += f", about {elapsed / (self.due - left) * left:.0f} s left"
        if result.error:
            line = f"[{self.ended}/{self.total}] {result.error}"
        self._update(spec, "failed" if result.error else "fresh", f"{result.seconds:.0f}", line)

    def _update(self, spec: JobSpec, state: str, seconds: str, line: str) -> None:
        with self.lock:
            self.rows[spec.key][1:3] = [state, seconds]
            if self.handle is not None:
                self.handle.update(self._table())
            elif self.say is log and sys.stdout.isatty():
                print(f"\r\x1b[K{line}", flush=True)
            else:
                self.say(line)


@dataclasses.dataclass(frozen=True)
class Executor:
    """Where jobs run: local Dask workers, a Dask cluster, or by default in this process (see `at_once`)."""

    workers: int = 0
    scheduler: str = ""


def run_study(
    run: Run,
    study: str,
    overrides: Sequence[str],
    only: Sequence[str] = (),
    say: Callable[[str], None] = log,
    executor: Executor = Executor(),
) -> int:
    """Bring a study, its seeds and its sweep up to date.

    study, overrides : passed to the notebooks, which open the study again
    only : stages by name or number; default: all
    returns : number of executed notebooks
    raises : errors.InputError if a stage cannot be finished
    """
    with io.locked(run.study_folder), io.wrap_os_errors(run.study_folder), contextlib.ExitStack() as stack:
        _claim(run.study_folder, study, overrides)
        run.reports.mkdir(parents=True, exist_ok=True)
        for folder in (run.study_folder, run.reports):
            artifacts.remove_temp(folder)
        opened, client, gpu = sweeps.of(run), None, run.device.type == "cuda"
        if executor.scheduler or executor.workers:
            from asdlib.studies import dask  # only here: the import takes a second
        if executor.scheduler:
            client = stack.enter_context(dask.existing(executor.scheduler))
            gpu = _use_workers_device(client, list(opened.values()))
        planned = plan(opened, only)
        todo = [job for job in planned if job.why]
        _check_inputs(planned, todo)
        if todo:
            if not executor.workers and client is None:
                with contextlib.suppress(OSError):
                    forks.warm()  # imports in the background during the following steps
            _verify_stores({job.run.data_folder: job.run for job in todo}.values(), say)
            progress, specs = Progress(planned, say), [_job_spec(job, study) for job in todo]
            stack.enter_context(progress)
            for job in todo:
                (job.folder / "DONE").unlink(missing_ok=True)
            if executor.workers and client is None:
                gpus = torch.cuda.device_count() if gpu else 0
                client = stack.enter_context(dask.local(min(executor.workers, len(specs)), gpus))
            if client is None:
                _run_parallel(specs, at_once(gpu), progress)
            else:
                say(f"{len(specs)} jobs on {len(client.scheduler_info(n_workers=-1)['workers'])} workers")
                dask.spread(client, specs, gpu, progress.job_ended)
            _check_results(todo)
        for job in planned:
            if not page_of(job.run, job.stage, job.seed, job.machine).is_file():
                export(_job_spec(job, study))
        for folder in {job.run.reports for job in planned}:
            pages.link_series(folder, run.home / "reports" / "index.html")
        if not only:
            report.write_index(run.reports.parent)
    return len(todo)


def _use_workers_device(client, opened: Sequence[Run]) -> bool:
    """Set device and precision of a study's runs to those of the cluster's workers.

    returns : True if jobs have to request the Dask resource GPU
    """
    from asdlib.studies import dask

    chosen = opened[0].cfg.device
    device, gpu_resource = ("cpu", False) if chosen == "cpu" else dask.device_of(client)
    if chosen == "cuda" and device == "cpu":
        raise errors.InputError(
            "device cuda requested, but no worker of the cluster has a GPU; use --device auto or cpu"
        )
    auto = dask.auto_of(client, device)
    for run in opened:
        run.device, run.auto = torch.device(device), auto
    return gpu_resource


def at_once(gpu: bool) -> int:
    """Return the number of parallel jobs: one on a GPU, else one per core, limited by free memory."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    free_gb = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) / 2**20
    return 1 if gpu else max(1, min(training.cores(), int(free_gb / JOB_GB)))


def _run_parallel(specs: Sequence[JobSpec], limit: int, progress: Progress) -> None:
    """Run jobs in kernels of this process, at most `limit` at a time, each after those it needs.

    raises : errors.InputError of the first job that failed, once all running jobs have ended
    """
    waiting, running, error = list(specs), {}, ""
    with ThreadPoolExecutor(limit) as pool:
        try:
            while running or (waiting and not error):
                unfinished = {spec.key for spec in (*waiting, *running.values())}
                ready = [spec for spec in waiting if not unfinished & set(spec.needs)]
                for spec in [] if error else ready[: limit - len(running)]:
                    waiting.remove(spec)
                    progress.job_started(spec)
                    running[pool.submit(kernels.run_job, spec)] = spec
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    spec = running.pop(future)
                    result = _result(future)
                    progress.job_ended(spec, result)
                    error = error or result.error
        except BaseException:  # including Ctrl-C
            while running:  # repeated, because a kernel may just be starting
                kernels.kill_all()
                for future in wait(running, timeout=0.2).done:
                    del running[future]
            raise
    if error:
        raise errors.InputError(error)


def _result(future: Future) -> JobResult:
    try:
        return future.result()
    except KernelLostError as error:
        return JobResult(0.0, str(error))


def _check_results(todo: Sequence[Job]) -> None:
    """Raise InputError if a job is not fresh after it ran, as with a worker that has other code."""
    for job in todo:
        state, why = job_state(job.run, job.stage, job.seed, job.machine)
        if state != "fresh":
            raise errors.InputError(
                f"{job.label}: finished, but is not up to date ({'; '.join(why)}); run the same command again"
            )


def _check_inputs(planned: Sequence[Job], todo: Sequence[Job]) -> None:
    """Raise InputError for jobs that cannot finish, before anything runs or is deleted."""
    for run in {id(job.run): job.run for job in planned}.values():
        parts = [training_clips(run.store, [machine]) for machine in run.machines]
        for own, others in parts if any("oevae" in job.stage.detectors for job in planned) else ():
            check_machines(run.clips, own.rows, others.rows)
    to_run = {(job.stage, job.seed, job.machine) for job in todo}
    for job in todo:
        used = {*job.stage.reads, *job.stage.shows} & {SYSTEMS[system] for system in job.run.cfg.systems}
        missing = job.run.missing(used, [job.seed] if job.stage.per_seed else job.run.cfg.seeds, to_run)
        if missing:
            raise errors.InputError(
                f"{job.label}: missing scores: {', '.join(missing)}; run `asd run {job.run.cfg.name}` with"
                " these settings first"
            )


def _verify_stores(opened: Iterable[Run], say: Callable[[str], None]) -> None:
    """Check the decoded recordings against their digests; decode damaged stores again."""
    for run in opened:
        try:
            run.store.verify()
        except errors.InputError as error:
            say(f"{error.args[0].split(';')[0]}; decoding again")
            run.decode_again()


def _claim(folder: Path, study: str, overrides: Sequence[str]) -> None:
    """Record a study's file and overrides in its run folder; raise InputError if it is another study's."""
    owner = folder / "study.txt"
    previous = owner.read_text(encoding="utf-8", errors="replace") if owner.is_file() else ""
    moved = previous.endswith(".toml") and not Path(previous).exists()
    if previous not in ("", study) and not moved:
        raise errors.InputError(
            f"{folder} belongs to the study {previous}, not to {study}; set another name in the study file"
        )
    for path, text in ((owner, study), (folder / OVERRIDES, json.dumps(list(overrides)))):
        if not path.is_file() or path.read_text(encoding="utf-8", errors="replace") != text:
            io.write_text(path, text)


def _job_spec(job: Job, study: str) -> JobSpec:
    """Convert a job to plain values."""
    run, stage, seed, machine = job.run, job.stage, job.seed, job.machine
    facts = {
        "stage": stage.notebook,
        "machine": machine,
        "seed": seed,
        "device": run.device.type,
        "data": run.store.fingerprint,
        "auto": run.auto or precision.auto(run.device),
        "settings": settings.to_tree(run.cfg),
        "shaped_by": run.shaped_by(stage, seed, machine),
        "recordings": run.data_folder.name,
        "artifacts": {name: folder.name for name, folder in run.scores_of(stage, seed, machine).items()},
    }
    footer = {"study": run.cfg.name} | ({"variant": run.variant} if run.variant else {})
    given = {"overrides": run.overrides, "home": str(run.home), "seed": seed, "machine": machine}
    return JobSpec(
        key=job.key,
        label=job.label,
        needs=job.needs,
        study=str(run.study_folder),
        notebook=str(run.notebook(stage)),
        folder=str(job.folder),
        page=str(page_of(run, stage, seed, machine)),
        outputs=tuple(map(str, run.outputs(stage))),
        digest=run.digest(stage, seed, machine),
        parameters=parameters(run.notebook(stage), study=study, **given),
        facts=facts,
        footer=footer | {"seed": seed, "machine": machine or "all", "settings": settings.digest(run.cfg)},
    )


def page_of(run: Run, stage: Stage, seed: int, machine: str) -> Path:
    """Return the path of a job's page in the report."""
    name = "_".join(filter(None, [stage.notebook, machine, f"seed{seed}" if stage.per_seed else ""]))
    return run.reports / ("index.html" if stage.notebook == "09_report" else f"{name}.html")
