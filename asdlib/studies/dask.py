"""Run jobs on Dask: on local workers, or on an existing cluster (SLURM, SSH, Kubernetes).

Each worker has one thread and runs papermill for one job at a time; its kernel ends with it. Workers need the
same folders as the runner (a shared file system). Futures are keyed by job and digest, so no job is submitted
twice. If a worker dies, its job resumes from its checkpoint on another; after RETRIES retries it fails. With
GPUs, a job requests one unit of the Dask resource GPU:
`dask worker ADDRESS --nthreads 1 --resources GPU=1`.

Needs the extra `cluster` (distributed). Source: METHOD 8.3.
Used by: `asd run STUDY --workers N` or `--scheduler ADDRESS`.
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
CONNECT_TIMEOUT_S = 120.0  # timeout for workers to connect
NO_PROFILER = {"distributed.worker.profile.enabled": False}  # it samples every 10 ms
# local clusters are not reachable from outside
LOOPBACK = {"host": "127.0.0.1", "dashboard": False, "dashboard_address": "127.0.0.1:0"}

if importlib.util.find_spec("distributed"):
    import dask
    from distributed import Client, KilledWorker, Nanny, Scheduler, SpecCluster, as_completed
else:
    Client = None


def needed() -> None:
    """Check for the extra `cluster`.  raises : errors.InputError if it is not installed"""
    if Client is None:
        raise errors.InputError(
            "--workers and --scheduler need the package distributed; install it: pip install"
            " 'asdlib[cluster]' -c constraints.txt"
        )


@contextlib.contextmanager
def local(workers: int, gpus: int = 0) -> Iterator[Client]:
    """Start worker processes on this machine, over loopback only.

    gpus : number of visible GPUs; each worker gets one
    raises : errors.InputError for fewer than 1 worker, or if workers do not start in time
    """
    needed()
    if workers < 1:
        raise errors.InputError(f"--workers {workers}: expected 1 or more")
    spec, names = {}, _visible_gpus(gpus)
    for number in range(min(workers, gpus) if gpus else workers):
        env = {"OMP_NUM_THREADS": "1"} | ({"CUDA_VISIBLE_DEVICES": names[number]} if gpus else {})
        options = {
            "nthreads": 1,
            "env": env,
            "resources": {"GPU": 1} if gpus else {},
            "memory_limit": 0,  # kernels hold the memory, not workers
        }
        spec[number] = {"cls": Nanny, "options": options | {"silence_logs": logging.CRITICAL, **LOOPBACK}}
    scheduler = {"cls": Scheduler, "options": {"port": 0, **LOOPBACK}}
    with contextlib.ExitStack() as stack:
        with forks.apart(), dask.config.set(NO_PROFILER):
            pool = stack.enter_context(SpecCluster(spec, scheduler, silence_logs=logging.CRITICAL))
        client = stack.enter_context(Client(pool))
        try:
            client.wait_for_workers(len(spec), timeout=CONNECT_TIMEOUT_S)
        except TimeoutError as error:
            raise errors.InputError(
                f"--workers {workers}: only {len(pool.workers)} started within {CONNECT_TIMEOUT_S:.0f} s; use"
                " fewer"
            ) from error
        yield client


def _visible_gpus(count: int) -> list[str]:
    """Return the names of this process's GPUs for CUDA_VISIBLE_DEVICES of its workers."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else map(str, range(count))
    return [name.strip() for name in names][:count]


@contextlib.contextmanager
def existing(address: str) -> Iterator[Client]:
    """Connect to an existing cluster by its scheduler's address (tcp://host:8786).

    raises : errors.InputError if the scheduler does not answer or has no workers
    """
    needed()
    try:
        client = Client(address, timeout=10)
    except (OSError, ValueError, TimeoutError) as error:
        raise errors.InputError(
            f"--scheduler {address}: no answer ({type(error).__name__}); start one with `dask scheduler`"
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=CONNECT_TIMEOUT_S)
        except TimeoutError as error:
            raise errors.InputError(
                f"--scheduler {address}: no workers; start some with `dask worker {address} --nthreads 1`"
            ) from error
        yield client


def device_of(client: Client) -> tuple[str, bool]:
    """Return the device of a cluster's workers for "auto", and whether jobs have to request the resource GPU.

    raises : errors.InputError if only some workers have a GPU and none offers the resource: a study is
        computed on one kind of device
    """
    if any(
        "GPU" in worker.get("resources", {})
        for worker in client.scheduler_info(n_workers=-1)["workers"].values()
    ):
        return "cuda", True
    devices = _run_on_workers(client, _auto_device)
    if not devices:
        raise errors.InputError(
            "the cluster has no workers left; start some with `dask worker ADDRESS --nthreads 1`"
        )
    if len(devices) > 1:
        raise errors.InputError(
            "only some workers of the cluster have a GPU; start those with `--resources GPU=1`, or add"
            " --device cpu"
        )
    return devices.pop(), False


def _run_on_workers(client: Client, *call) -> set[str]:
    """Call a function on every worker and return the distinct results."""
    try:
        return set(client.run(*call).values())
    except Exception as error:  # of many kinds
        raise errors.InputError(
            f"the workers of the cluster cannot report their device ({type(error).__name__}:"
            f" {str(error)[:200]}); install this version of asdlib on them"
        ) from error


def _auto_device() -> str:
    return training.pick_device("auto").type


def auto_of(client: Client, device: str) -> str:
    """Return the precision `auto` of a cluster: bf16 if all its workers with this device support it."""
    found = _run_on_workers(client, _auto, device) - {""}
    return "bf16" if found == {"bf16"} else "float32"


def _auto(device: str) -> str:
    return precision.auto(torch.device(device)) if device == "cpu" or torch.cuda.is_available() else ""


def spread(
    client: Client, specs: Sequence[JobSpec], gpu: bool, done: Callable[[JobSpec, JobResult], None]
) -> None:
    """Run jobs on a cluster, each after those it needs.

    Dask schedules them: a job depends on the futures of those it needs, jobs with more dependents have
    priority, and a job is retried if its kernel or worker was lost.

    specs : in an spec that respects `needs`.  gpu : whether a job requests the resource GPU
    done : called with every job and its result
    raises : errors.InputError of the first job that failed, once all jobs have ended
    """
    needed = collections.Counter(key for spec in specs for key in spec.needs)
    futures, failed = {}, []
    for spec in specs:
        futures[spec.key] = client.submit(
            _run_after,
            spec,
            *(futures[key] for key in spec.needs if key in futures),
            key=f"{spec.folder}-{spec.digest}",
            priority=needed[spec.key],
            retries=RETRIES,
            pure=False,
            resources={"GPU": 1} if gpu else None,
        )
    spec_of = {future: spec for spec, future in zip(specs, futures.values())}
    for future in as_completed(spec_of):
        result = _result(spec_of[future], future)
        done(spec_of[future], result)
        failed += [result.error] if result.error else []
    if failed:
        raise errors.InputError(failed[0])


def _run_after(spec: JobSpec, *before: JobResult) -> JobResult:
    """Run a job on a worker, or pass on the error of a job it needs."""
    error = next((result.error for result in before if result.error), "")
    return JobResult(0.0, error) if error else notebook.run_job(spec)


def _result(spec: JobSpec, future) -> JobResult:
    """Return the result of a job; exceptions become error messages."""
    try:
        return future.result()
    except KilledWorker:
        return JobResult(
            0.0,
            f"{spec.label}: the workers that ran it were killed, probably for lack of memory; use fewer"
            " --workers",
        )
    except KernelLostError as error:
        return JobResult(0.0, str(error))
    except (Exception, CancelledError) as error:  # anything from the cluster
        what = f"{spec.label}: the cluster gave up on it ({type(error).__name__}: {str(error)[:200]})"
        return JobResult(0.0, f"{what}; see the workers' logs, then run the same command again")
