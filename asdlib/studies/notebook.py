"""Run one job of a study: execute its notebook by papermill in a warm kernel, commit its folder, export it.

A warm kernel is a fork of a process that has imported everything already (multiprocessing's fork server, one
per process that runs notebooks). A kernel exits when that process or the fork server exits. Without a fork
server, an ordinary kernel is started. As always with multiprocessing, a script that runs studies needs
`if __name__ == "__main__":`.

A `JobSpec` holds plain values and can be sent to another process or machine with the same folders. Errors
that a user can fix are returned in the `JobResult`; `KernelLostError` (the kernel was killed) is raised, so
that a cluster retries the job. Source: METHOD 8.2, 8.3. Used by: asdlib.studies.runner, asdlib.studies.dask.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
import typing
import uuid
from dataclasses import dataclass
from pathlib import Path

import papermill
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning import LocalProvisioner
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from asdlib import errors, io
from asdlib.models import training
from asdlib.studies import artifacts, forks, home, report


class Kernel(multiprocessing.get_context("forkserver").Process):
    """A kernel forked from the server, with the part of `subprocess.Popen` that jupyter_client uses."""

    stdin = stdout = stderr = None

    def __init__(self, argv: list[str], cwd: str | None, env: dict[str, str]):
        super().__init__(daemon=True)
        self.argv, self.cwd, self.env = argv, cwd, env

    def run(self) -> None:
        """Run the kernel application, in the fork."""
        from ipykernel.kernelapp import IPKernelApp  # only here: the runner does not need it

        gc.freeze()  # keeps pages shared with the server
        os.setsid()  # no signals of the runner's process group
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # ipykernel's own setting between cells
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        multiprocessing.current_process().daemon = False  # a notebook may start processes
        threading.Thread(
            target=lambda: multiprocessing.parent_process().join() or os._exit(1), daemon=True
        ).start()
        os.environ.clear()
        os.environ.update(self.env)
        os.chdir(self.cwd or ".")
        sys.argv = ["ipykernel_launcher", *self.argv]
        # exits when its parent, the fork server, is gone
        IPKernelApp.launch_instance(argv=self.argv, parent_handle=os.getppid())

    def poll(self) -> int | None:
        """Return the exit code, or None while running."""
        return self.exitcode

    def wait(self) -> int | None:
        """Wait for the end and return the exit code."""
        self.join()
        return self.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal if running; used when the kernel is not a group leader."""
        if self.is_alive():
            os.kill(self.pid, number)


def kill_all() -> None:
    """Kill all kernels of this process."""
    for child in multiprocessing.active_children():
        if isinstance(child, Kernel):
            child.kill()


class WarmProvisioner(LocalProvisioner):
    """Provisioner that forks kernels if possible."""

    async def launch_kernel(self, cmd: list[str], **kwargs):
        """Fork the kernel, or else start the command."""
        kwargs["env"] = forks.without_own(kwargs.get("env", os.environ)) | forks.ENVIRONMENT | self.parent.job
        kwargs["cwd"] = self.parent.job.get(artifacts.FOLDER) or kwargs.get("cwd")
        argv = cmd[cmd.index("-f") :]  # without the interpreter of the kernel spec, which may be another
        try:
            forks.warm()
            multiprocessing.current_process().daemon = False  # Dask workers are daemons, which cannot fork
            self.process = Kernel(argv, kwargs.get("cwd"), kwargs["env"])
            self.process.start()
            self.pid = self.pgid = self.process.pid  # session leader, see `Kernel.run`
            return self.connection_info
        except (OSError, EOFError, ValueError):
            self.process = None
        return await super().launch_kernel([sys.executable, "-m", "ipykernel_launcher", *argv], **kwargs)


class WarmKernelManager(AsyncKernelManager):
    """Kernel manager for papermill's `kernel_manager_class`.

    Uses Linux abstract sockets, because a free TCP port may be taken before the kernel binds it.
    """

    job: typing.ClassVar[dict[str, str]] = {}  # environment variables of the job

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.transport, self.ip = "ipc", f"@asdlib-{uuid.uuid4().hex}"
        self.provisioner = WarmProvisioner(kernel_id="", kernel_spec=self.kernel_spec, parent=self)


KERNEL_CONFIG = Config(
    {
        "KernelManager": {"transport_encryption": "auto"},  # no warning about plain TCP
        "NotebookClient": {  # do not log the interrupt at shutdown; keep no history
            "extra_arguments": ["--log-level=50", "--HistoryManager.enabled=False"]
        },
    }
)


PROGRESS = ".progress"  # file in a running job's folder: a line per epoch


class KernelLostError(RuntimeError):
    """The kernel was killed; a retry may succeed."""


@dataclass(frozen=True)
class JobSpec:
    """A job as plain values.

    key : unique within the study.  label : shown to users.  needs : keys of the jobs it depends on
    study : folder locked by the runner.  notebook, folder, page : paths.  outputs : files written elsewhere
    digest : of all inputs.  parameters : of the notebook.  facts : for the manifest.  footer : of the page
    """

    key: str
    label: str
    needs: tuple[str, ...]
    study: str
    notebook: str
    folder: str
    page: str
    outputs: tuple[str, ...]
    digest: str
    parameters: dict
    facts: dict
    footer: dict


@dataclass(frozen=True)
class JobResult:
    """Duration of a job in seconds, and its error message or ""."""

    seconds: float
    error: str = ""


def run_job(spec: JobSpec) -> JobResult:
    """Run one job unless it is finished already; called by the runner or by a worker.

    raises : KernelLostError if the kernel was killed
    """
    start, folder = time.perf_counter(), Path(spec.folder)
    home.own_caches(spec.parameters["home"])  # also on a worker's machine
    try:
        with io.wrap_os_errors(folder):
            artifacts.lock_dir(
                folder
            )  # wait for the kernel of a killed worker, which may live a second longer
            artifacts.unlock_dir(folder)
            if not artifacts.finished(folder, spec.digest):
                artifacts.start(folder, spec.digest)
                Path(spec.page).unlink(missing_ok=True)
                _execute(spec)
                io.write_text(folder / "params.json", json.dumps(spec.parameters, indent=1))
                facts = spec.facts | {"seconds": round(time.perf_counter() - start, 2)}
                artifacts.commit(folder, spec.digest, facts, [Path(path) for path in spec.outputs])
            export(spec)
    except errors.InputError as error:
        return JobResult(time.perf_counter() - start, str(error))
    return JobResult(time.perf_counter() - start)


def _execute(spec: JobSpec) -> None:
    """Execute the notebook; saved as notebook.ipynb if it succeeds, else as failed.ipynb."""
    folder = Path(spec.folder)
    failed = folder / "failed.ipynb"
    profile = Path(spec.parameters["home"], "runs", home.CACHE, "ipython")  # ignore the user's profile
    profile.mkdir(parents=True, exist_ok=True)
    job = {
        io.HOLDS: spec.study,
        artifacts.FOLDER: spec.folder,
        artifacts.DEVICE: spec.facts["device"],
        artifacts.PRECISION: spec.facts["auto"],
        home.SERIES: str(Path(spec.notebook).parent),
        "IPYTHONDIR": str(profile),
        training.PROGRESS: str(folder / PROGRESS),
    }
    try:
        papermill.execute_notebook(
            spec.notebook,
            str(failed),
            parameters=spec.parameters,
            kernel_name="python3",
            progress_bar=False,
            request_save_on_cell_execute=False,  # else the file is rewritten before and after each cell
            config=KERNEL_CONFIG,
            kernel_manager_class=type("JobKernelManager", (WarmKernelManager,), {"job": job}),
        )
    except PapermillExecutionError as error:
        if error.ename == "InputError":
            raise errors.InputError(f"{spec.label}: {error.evalue}") from error
        raise errors.InputError(
            f"{spec.label} failed with {error.ename}: {error.evalue}; see {failed}"
        ) from error
    except RuntimeError as error:  # the kernel died or did not start
        raise KernelLostError(
            f"{spec.label}: its kernel was killed ({type(error).__name__}), probably for lack of memory; free"
            " some, or use fewer or shorter clips, then run the same command again"
        ) from error
    os.replace(failed, folder / "notebook.ipynb")


def export(spec: JobSpec) -> None:
    """Export the executed notebook as a page of the report, unless the page exists."""
    folder, page = Path(spec.folder), Path(spec.page)
    if page.is_file():
        return
    page.parent.mkdir(parents=True, exist_ok=True)
    manifest = artifacts.read_manifest(folder)
    footer = spec.footer | {"device": manifest["device"], **manifest["versions"]}
    report.html(folder / "notebook.ipynb", page, footer)
