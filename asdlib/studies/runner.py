"""Run a study: what is fresh left alone, the rest done side by side here or on workers, what broke said in
one sentence.

Each notebook is executed in a kernel of its own and saved in its stage's folder; DONE is written when it came
to its end. A job that is interrupted goes on from its checkpoints the next time. Before anything is computed,
the decoded recordings are read against their digests, and what killed writers left is swept away.
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
from collections.abc import Callable, Sequence
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

JOB_GB = 3.0  # of memory that a job may take
log = functools.partial(print, flush=True)  # a log file shows each line when it is said


def parameters(path: Path, *, study: str, overrides: list, home: str, seed: int, machine: str) -> dict:
    """The parameters that a notebook declares of these. A notebook that runs once has no `machine`, one that
    trains nothing no `seed`.

    raises : errors.InputError for one that is not known here, which papermill only prints a line about
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
    """What a run tells while it works: a line per job and per epoch, of which a terminal rewrites the last;
    in a notebook one table of all jobs that is rewritten.
    """

    def __init__(self, planned: Sequence[Job], say: Callable[[str], None]):
        self.say, self.began, self.total = say, time.perf_counter(), len(planned)
        self.ended = sum(job.state == "fresh" for job in planned)
        self.due, self.begun = self.total - self.ended, self.ended
        self.rows = {job.key: [job.label, job.state, "", "; ".join(job.why)] for job in planned}
        self.files = {job.folder / kernels.PROGRESS: (job.label, job.key) for job in planned if job.why}
        self.read: dict[Path, int] = {}  # signs of each file that were told
        self.over, self.lock = threading.Event(), threading.Lock()
        for path in self.files:
            path.unlink(missing_ok=True)
        self.handle = display(self._table(), display_id=True) if get_ipython() is not None else None

    def __enter__(self) -> Progress:
        """Tell of epochs meanwhile."""
        self.watcher = threading.Thread(target=self._watch, daemon=True)
        self.watcher.start()
        return self

    def __exit__(self, *_) -> None:
        """Come to an end."""
        self.over.set()
        self.watcher.join()

    def _watch(self) -> None:
        """Tell what the jobs' kernels say of their epochs."""
        while not self.over.wait(0.5):
            for path, (label, key) in self.files.items():
                with contextlib.suppress(OSError):
                    lines = path.read_text(encoding="utf-8").splitlines()
                    for line in lines[self.read.get(path, 0) :]:
                        self._epoch(key, f"    {label}: {line}")
                    self.read[path] = len(lines)

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

    def begins(self, order: JobSpec) -> None:
        """A job was taken up."""
        self.begun += 1
        self._tell(order, "at work", "", f"[{self.begun}/{self.total}] {order.label}")

    def ends(self, order: JobSpec, outcome: JobResult) -> None:
        """A job came to its end, good or bad."""
        self.ended += 1
        spent, left = time.perf_counter() - self.began, self.total - self.ended
        line = f"[{self.ended}/{self.total}] {order.label}: {outcome.seconds:.0f} s, {spent:.0f} s in all"
        if left:
            line += f", about {spent / (self.due - left) * left:.0f} s left"
        if outcome.refusal:
            line = f"[{self.ended}/{self.total}] {outcome.refusal}"
        self._tell(order, "refused" if outcome.refusal else "fresh", f"{outcome.seconds:.0f}", line)

    def _tell(self, order: JobSpec, state: str, seconds: str, line: str) -> None:
        with self.lock:
            self.rows[order.key][1:3] = [state, seconds]
            if self.handle is not None:
                self.handle.update(self._table())
            elif self.say is log and sys.stdout.isatty():
                print(f"\r\x1b[K{line}", flush=True)
            else:
                self.say(line)


@dataclasses.dataclass(frozen=True)
class Executor:
    """Where jobs are done; 0 workers and no scheduler: here, see `at_once`."""

    workers: int = 0
    scheduler: str = ""


def run_study(
    run: Run,
    study: str,
    overrides: Sequence[str],
    only: Sequence[str] = (),
    say: Callable[[str], None] = log,
    where: Executor = Executor(),
) -> int:
    """Bring a study, its seeds and its sweep up to date.

    study, overrides : as the notebooks are to open it again
    only : stages by name or number; none: all
    returns : how many notebooks were executed
    raises : errors.InputError, in a sentence, when a stage cannot be finished
    """
    with io.locked(run.study_folder), io.wrap_os_errors(run.study_folder), contextlib.ExitStack() as stack:
        _claim(run.study_folder, study, overrides)
        run.reports.mkdir(parents=True, exist_ok=True)
        for folder in (run.study_folder, run.reports):
            artifacts.remove_temp(folder)
        opened, client, gpu = sweeps.of(run), None, run.device.type == "cuda"
        if where.scheduler or where.workers:
            from asdlib.studies import dask  # here: it takes a second, which a run without it need not pay
        if where.scheduler:
            client = stack.enter_context(dask.existing(where.scheduler))
            gpu = _on_workers(client, list(opened.values()))
        planned = plan(opened, only)
        todo = [job for job in planned if job.why]
        _can_be_finished(planned, todo)
        if todo:
            if not where.workers and client is None:
                with contextlib.suppress(OSError):
                    forks.warm()  # its imports go on beside the following
            _whole_store({job.run.data_folder: job.run for job in todo}.values(), say)
            progress, orders = Progress(planned, say), [_order(job, study) for job in todo]
            stack.enter_context(progress)
            for job in todo:
                (job.folder / "DONE").unlink(missing_ok=True)
            if where.workers and client is None:
                gpus = torch.cuda.device_count() if gpu else 0
                client = stack.enter_context(dask.local(min(where.workers, len(orders)), gpus))
            if client is None:
                _side_by_side(orders, at_once(gpu), progress)
            else:
                say(f"{len(orders)} jobs on {len(client.scheduler_info(n_workers=-1)['workers'])} workers")
                dask.spread(client, orders, gpu, progress.ends)
            _came_true(todo)
        for job in planned:
            if not page_of(job.run, job.stage, job.seed, job.machine).is_file():
                export(_order(job, study))
        for folder in {job.run.reports for job in planned}:
            pages.link_series(folder, run.home / "reports" / "index.html")
        if not only:
            report.write_index(run.reports.parent)
    return len(todo)


def _on_workers(client, opened: Sequence[Run]) -> bool:
    """What the jobs of a study are meant for is the workers' device, whatever the runner has.  returns :
    whether they ask for the resource GPU
    """
    from asdlib.studies import dask

    chosen = opened[0].cfg.device
    device, offered = ("cpu", False) if chosen == "cpu" else dask.device_of(client)
    if chosen == "cuda" and device == "cpu":
        raise errors.InputError(
            "device cuda was asked for, but no worker of the cluster sees a GPU; use --device auto or cpu"
        )
    auto = dask.auto_of(client, device)
    for one in opened:
        one.device, one.auto = torch.device(device), auto
    return offered


def at_once(gpu: bool) -> int:
    """How many jobs are done at a time: one on a GPU, else one per core, fewer where memory is short."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    free_gb = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) / 2**20
    return 1 if gpu else max(1, min(training.cores(), int(free_gb / JOB_GB)))


def _side_by_side(orders: Sequence[JobSpec], most: int, progress: Progress) -> None:
    """Do jobs in kernels of this process, so many at a time, each after those it needs; in their order, where
    they can be.

    raises : errors.InputError of the first job that cannot be finished, when those at work have ended
    """
    left, working, refusal = list(orders), {}, ""
    with ThreadPoolExecutor(most) as pool:
        try:
            while working or (left and not refusal):
                open_keys = {order.key for order in (*left, *working.values())}
                for order in [] if refusal else [one for one in left if not open_keys & set(one.needs)]:
                    if len(working) < most:
                        left.remove(order)
                        progress.begins(order)
                        working[pool.submit(kernels.run_job, order)] = order
                for future in wait(working, return_when=FIRST_COMPLETED).done:
                    order = working.pop(future)
                    outcome = _outcome(future)
                    progress.ends(order, outcome)
                    refusal = refusal or outcome.refusal
        except BaseException:  # Ctrl-C among them
            while working:  # one may only now be starting its kernel
                kernels.kill_all()
                for future in wait(working, timeout=0.2).done:
                    del working[future]
            raise
    if refusal:
        raise errors.InputError(refusal)


def _outcome(future: Future) -> JobResult:
    try:
        return future.result()
    except KernelLostError as lost:
        return JobResult(0.0, str(lost))


def _came_true(done: Sequence[Job]) -> None:
    """What was computed is what was meant: a kernel that loaded other code, or a worker with another device,
    does not pass.
    """
    for job in done:
        state, why = job_state(job.run, job.stage, job.seed, job.machine)
        if state != "fresh":
            raise errors.InputError(
                f"{job.label}: came to its end, but not as it was meant ({'; '.join(why)}); give the same"
                " command again"
            )


def _can_be_finished(planned: Sequence[Job], todo: Sequence[Job]) -> None:
    """What cannot be finished is said before anything runs, and before anything that is there is cleared."""
    for run in {id(job.run): job.run for job in planned}.values():
        parts = [training_clips(run.store, [machine]) for machine in run.machines]
        for own, others in parts if any("oevae" in job.stage.detectors for job in planned) else ():
            check_machines(run.clips, own.rows, others.rows)
    coming = {(job.stage, job.seed, job.machine) for job in todo}
    for job in todo:
        used = {*job.stage.reads, *job.stage.shows} & {SYSTEMS[system] for system in job.run.cfg.systems}
        missing = job.run.missing(used, [job.seed] if job.stage.per_seed else job.run.cfg.seeds, coming)
        if missing:
            again = f"run `asd run {job.run.cfg.name}` with these settings first"
            raise errors.InputError(f"{job.label}: scores are missing of {', '.join(missing)}; {again}")


def _whole_store(opened: Sequence[Run], say: Callable[[str], None]) -> None:
    """Read the decoded recordings against their digests; damaged ones are decoded again."""
    for run in opened:
        try:
            run.store.verify()
        except errors.InputError as damage:
            say(f"{damage.args[0].split(';')[0]}; decoding again")
            run.decode_again()


def _claim(folder: Path, study: str, overrides: Sequence[str]) -> None:
    """A run folder belongs to one study file; another file of the same name is refused."""
    owner = folder / "study.txt"
    if not owner.is_file():
        io.write_text(owner, study)
    elif (held := owner.read_text(encoding="utf-8", errors="replace")) != study:
        if held.endswith(".toml") and not Path(held).exists():  # it was moved
            io.write_text(owner, study)
            return _claim(folder, study, overrides)
        raise errors.InputError(
            f"{folder} holds the study {held}, now {study} came; set another name in the study file"
        )
    given = folder / OVERRIDES
    if not given.is_file() or given.read_text(encoding="utf-8") != json.dumps(list(overrides)):
        io.write_text(given, json.dumps(list(overrides)))


def _order(job: Job, study: str) -> JobSpec:
    """A job as plain values."""
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
    """Where a notebook's page lies in the report."""
    name = "_".join(filter(None, [stage.notebook, machine, f"seed{seed}" if stage.per_seed else ""]))
    return run.reports / ("index.html" if stage.notebook == "09_report" else f"{name}.html")
