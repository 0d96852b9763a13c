"""Jobs side by side: on workers of this machine, or on a Dask cluster that somebody started (SLURM, SSH,
Kubernetes).

Every worker has one thread and does one job at a time; papermill runs inside it, and its kernel ends with it.
The workers see the same folders as the runner (a shared file system) and map the same store. Keys are the
jobs' names and digests, so the same job is never sent twice. A worker that dies costs its own job, which is
done again, from its checkpoint, on another; three deaths of one job end the study in words. On a GPU a job
asks for one unit of the Dask resource GPU: `dask worker ADDRESS --nthreads 1 --resources GPU=1`.

Needs the extra `cluster` (distributed).
Sources: METHOD 8.3. Notebooks: none; all are run by it with `asd run STUDY --workers N` or `--scheduler
ADDRESS`.
"""

from __future__ import annotations

import collections
import contextlib
import importlib.util
import logging
import os
from asyncio import CancelledError
from collections.abc import Callable, Iterator, Sequence

import torch

from asdlib import errors
from asdlib.models import precision, training
from asdlib.studies import forks, notebook
from asdlib.studies.notebook import JobResult, JobSpec, KernelLostError

RETRIES = 2  # of a job whose kernel or worker was lost
PATIENCE_S = 120.0  # for the first worker of a cluster
UNWATCHED = {"distributed.worker.profile.enabled": False}  # sampling every 10 ms what nobody looks at
# a local cluster is seen by nobody else
LOOPBACK = {"host": "127.0.0.1", "dashboard": False, "dashboard_address": "127.0.0.1:0"}

if importlib.util.find_spec("distributed"):
    import dask
    from distributed import Client, KilledWorker, Nanny, Scheduler, SpecCluster, as_completed
else:
    Client = None


def needed() -> None:
    """Refuse where the extra is not installed."""
    if Client is None:
        raise errors.InputError(
            "--workers and --scheduler need the package distributed; install it: pip install"
            " 'asdlib[cluster]' -c constraints.txt"
        )


@contextlib.contextmanager
def local(workers: int, gpus: int = 0) -> Iterator[Client]:
    """Worker processes on this machine, reached over loopback only; fewer than 1 are refused. gpus : how many
    this process sees, one for a worker.
    """
    needed()
    if workers < 1:
        raise errors.InputError(f"--workers {workers}: expected 1 or more")
    spec, mine = {}, _visible_gpus(gpus)
    for number in range(min(workers, gpus) if gpus else workers):
        env = {"OMP_NUM_THREADS": "1"} | ({"CUDA_VISIBLE_DEVICES": mine[number]} if gpus else {})
        options = {
            "nthreads": 1,
            "env": env,
            "resources": {"GPU": 1} if gpus else {},
            "memory_limit": 0,
        }  # kernels hold the memory, not workers
        spec[number] = {"cls": Nanny, "options": options | {"silence_logs": logging.CRITICAL, **LOOPBACK}}
    scheduler = {"cls": Scheduler, "options": {"port": 0, **LOOPBACK}}
    with contextlib.ExitStack() as stack:
        with forks.apart(), dask.config.set(UNWATCHED):
            pool = stack.enter_context(SpecCluster(spec, scheduler, silence_logs=logging.CRITICAL))
        client = stack.enter_context(Client(pool))
        try:
            client.wait_for_workers(len(spec), timeout=PATIENCE_S)
        except TimeoutError as error:
            raise errors.InputError(
                f"--workers {workers}: no more than {len(pool.workers)} came up within {PATIENCE_S:.0f} s;"
                " use fewer"
            ) from error
        yield client


def _visible_gpus(count: int) -> list[str]:
    """Names of the GPUs that this process sees, as the next one is to be told: those it was told itself, in
    their order.
    """
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (
        [name.strip() for name in told.split(",")][:count]
        if told
        else [str(number) for number in range(count)]
    )


@contextlib.contextmanager
def existing(address: str) -> Iterator[Client]:
    """A cluster that runs already, by its scheduler's address (tcp://host:8786); one that does not answer is
    refused.
    """
    needed()
    try:
        client = Client(address, timeout=10)
    except (OSError, ValueError, TimeoutError) as error:
        raise errors.InputError(
            f"--scheduler {address}: nobody answers there ({type(error).__name__}); start one with `dask"
            " scheduler`"
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=PATIENCE_S)
        except TimeoutError as error:
            raise errors.InputError(
                f"--scheduler {address}: has no worker; start some with `dask worker {address} --nthreads 1`"
            ) from error
        yield client


def device_of(client: Client) -> tuple[str, bool]:
    """Where workers of a cluster compute with device "auto": "cpu" or "cuda", and whether a job has to ask
    for the resource GPU.

    raises : errors.InputError where some see a GPU and others none, and nobody offers one: a study is
        computed on one kind of device
    """
    if any(
        "GPU" in worker.get("resources", {})
        for worker in client.scheduler_info(n_workers=-1)["workers"].values()
    ):
        return "cuda", True
    seen = _asked(client, _picked)
    if not seen:
        raise errors.InputError(
            "the cluster's last worker has gone; start some with `dask worker ADDRESS --nthreads 1`"
        )
    if len(seen) > 1:
        advice = "start those that do with `--resources GPU=1`, or add --device cpu"
        raise errors.InputError(f"some workers of the cluster see a GPU and others none; {advice}")
    return seen.pop(), False


def _asked(client: Client, *question) -> set[str]:
    try:
        return set(client.run(*question).values())
    except Exception as error:  # of many kinds
        said = f"{type(error).__name__}: {str(error)[:200]}"
        raise errors.InputError(
            f"the workers of the cluster cannot say where they compute ({said}); install this asdlib where"
            " they run"
        ) from error


def _picked() -> str:
    return training.pick_device("auto").type


def auto_of(client: Client, device: str) -> str:
    """What the precision `auto` is on the workers of a cluster: bf16 if all that have such a device have
    units for it.
    """
    said = _asked(client, _auto, device) - {""}
    return "bf16" if said == {"bf16"} else "float32"


def _auto(device: str) -> str:
    return precision.auto(torch.device(device)) if device == "cpu" or torch.cuda.is_available() else ""


def spread(
    client: Client, orders: Sequence[JobSpec], gpu: bool, done: Callable[[JobSpec, JobResult], None]
) -> None:
    """Do jobs side by side, each after those it needs; `done` is told of each as it ends.

    Dask decides what runs where: a job depends on the futures of those it needs, those that most others wait
    for have priority, and a job whose kernel or worker was lost is tried again.
    orders : each after those it needs;  gpu : whether a job asks for the resource GPU
    raises : errors.InputError of the first job that cannot be finished, when those that do not need it have
        come to their end
    """
    needed = collections.Counter(key for order in orders for key in order.needs)
    futures, refusals = {}, []
    for order in orders:
        futures[order.key] = client.submit(
            _run_after,
            order,
            *(futures[key] for key in order.needs if key in futures),
            key=f"{order.folder}-{order.digest}",
            priority=needed[order.key],
            retries=RETRIES,
            pure=False,
            resources={"GPU": 1} if gpu else None,
        )
    of = {future: order for order, future in zip(orders, futures.values())}
    for future in as_completed(of):
        outcome = _outcome(of[future], future)
        done(of[future], outcome)
        refusals += [outcome.refusal] if outcome.refusal else []
    if refusals:
        raise errors.InputError(refusals[0])


def _run_after(order: JobSpec, *before: JobResult) -> JobResult:
    """Do a job on a worker, or hand on the refusal of one that it needs."""
    refusal = next((one.refusal for one in before if one.refusal), "")
    return JobResult(0.0, refusal) if refusal else notebook.run_job(order)


def _outcome(order: JobSpec, future) -> JobResult:
    """How a job ended, in words also where its kernel or workers were lost too often."""
    try:
        return future.result()
    except KilledWorker:
        return JobResult(
            0.0,
            f"{order.label}: the workers that ran it died, most likely for want of memory; use fewer"
            " --workers",
        )
    except KernelLostError as lost:
        return JobResult(0.0, str(lost))
    except (Exception, CancelledError) as error:  # of the cluster, whatever it is
        what = f"{order.label}: the cluster gave it up ({type(error).__name__}: {str(error)[:200]})"
        return JobResult(0.0, f"{what}; see the log of its workers, then give the same command again")
