"""Warm kernels: the notebooks of a study run in forks of one process that has made the imports, not in
interpreters of their own.

    papermill.execute_notebook(..., kernel_manager_class=notebook.WarmKernelManager)

The forks are made by the standard library's fork server (multiprocessing), one for each process that runs
notebooks. A kernel ends when that process or its fork server ends, by whatever death. Where no fork server
can be had, an ordinary kernel is started in its place. As with everything of multiprocessing, a script that
runs studies needs `if __name__ == "__main__":`. Source: METHOD 8.3. Notebooks: all (through `notebook`).

One job of a study, by itself: a notebook executed by papermill, its folder sealed, its page written.

An `JobSpec` holds plain values, so that it can cross to another process or machine that sees the same
folders. What a user can mend comes back as a sentence in the `JobResult`; only what another try may mend (a
kernel that was killed) is raised, for a cluster to try again. Sources: METHOD 8.2, 8.3. Notebooks: all (by
asdlib.studies.runner and asdlib.studies.dask).
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
    """A kernel as a fork of the server, with as much of the face of `subprocess.Popen` as jupyter_client
    looks at.
    """

    stdin = stdout = stderr = None

    def __init__(self, words: list[str], cwd: str | None, env: dict[str, str]):
        super().__init__(daemon=True)
        self.words, self.cwd, self.env = words, cwd, env

    def run(self) -> None:
        """Be the kernel. In the fork."""
        from ipykernel.kernelapp import IPKernelApp  # here: the runner has no use for it

        gc.freeze()  # the collector leaves what is shared alone, so that it stays shared
        os.setsid()  # what is sent to the runner's group is not for the kernel
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # as ipykernel has it between cells
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        multiprocessing.current_process().daemon = False  # a notebook may start processes
        threading.Thread(
            target=lambda: multiprocessing.parent_process().join() or os._exit(1), daemon=True
        ).start()
        os.environ.clear()
        os.environ.update(self.env)
        os.chdir(self.cwd or ".")
        sys.argv = ["ipykernel_launcher", *self.words]
        IPKernelApp.launch_instance(
            argv=self.words, parent_handle=os.getppid()
        )  # ends when it does not see the fork server any more

    def poll(self) -> int | None:
        """None while it runs."""
        return self.exitcode

    def wait(self) -> int | None:
        """Until it has ended."""
        self.join()
        return self.exitcode

    def send_signal(self, number: int) -> None:
        """Where it leads no group yet, or no more."""
        if self.is_alive():
            os.kill(self.pid, number)


def kill_all() -> None:
    """End the kernels of this process at once; whoever runs a notebook in one finds it dead."""
    for child in multiprocessing.active_children():
        if isinstance(child, Kernel):
            child.kill()


class WarmProvisioner(LocalProvisioner):
    """A kernel's process on this machine, forked where that can be done."""

    async def launch_kernel(self, cmd: list[str], **kwargs):
        """Fork, or start the command as usual."""
        kwargs["env"] = forks.without_own(kwargs.get("env", os.environ)) | forks.ENVIRONMENT | self.parent.job
        kwargs["cwd"] = self.parent.job.get(artifacts.FOLDER) or kwargs.get("cwd")
        words = cmd[cmd.index("-f") :]  # before it stands the Python of a kernel spec, maybe another one
        try:
            forks.warm()
            multiprocessing.current_process().daemon = False  # Dask's workers are, and might start no process
            self.process = Kernel(words, kwargs.get("cwd"), kwargs["env"])
            self.process.start()
            self.pid = self.pgid = self.process.pid  # it leads a session of its own
            return self.connection_info
        except (OSError, EOFError, ValueError):
            self.process = None
        return await super().launch_kernel([sys.executable, "-m", "ipykernel_launcher", *words], **kwargs)


class WarmKernelManager(AsyncKernelManager):
    """The manager that papermill is given, with sockets in Linux's abstract space: a free port may be taken
    before the kernel binds it.
    """

    job: typing.ClassVar[dict[str, str]] = {}  # environment that tells the kernel what job it does

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.transport, self.ip = "ipc", f"@asdlib-{uuid.uuid4().hex}"
        self.provisioner = WarmProvisioner(kernel_id="", kernel_spec=self.kernel_spec, parent=self)


KERNEL_CONFIG = Config(
    {
        "KernelManager": {"transport_encryption": "auto"},  # no warning about plain TCP
        "NotebookClient": {  # an interrupt at shutdown is no error; nobody looks for these cells in a history
            "extra_arguments": ["--log-level=50", "--HistoryManager.enabled=False"]
        },
    }
)


PROGRESS = ".progress"  # in a job's folder while it runs: a line for each epoch


class KernelLostError(RuntimeError):
    """The kernel ended from outside; the same job may succeed the next time."""


@dataclass(frozen=True)
class JobSpec:
    """A job as plain values.

    key : its name within the study;  label : its name for people;  needs : keys of jobs that come before it
    study : the folder whose lock its runner holds;  notebook, folder, page : paths;  outputs : files
        elsewhere that belong to it
    digest : of everything that shapes it;  parameters : of the notebook;  facts : for the manifest;  footer :
        of the page
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
    """How a job ended: seconds, and the refusal in a sentence or ""."""

    seconds: float
    refusal: str = ""


def run_job(order: JobSpec) -> JobResult:
    """Do one job, or nothing if it is finished already. Runs in the runner's process or in a worker's.

    raises : KernelLostError
    """
    began, folder = time.perf_counter(), Path(order.folder)
    home.own_caches(order.parameters["home"])  # on a worker's machine too
    try:
        with io.wrap_os_errors(folder):
            artifacts.lock_dir(folder)  # a kernel whose worker was killed may live for another second
            artifacts.unlock_dir(folder)
            if not artifacts.finished(folder, order.digest):
                artifacts.start(folder, order.digest)
                Path(order.page).unlink(missing_ok=True)
                _execute(order)
                io.write_text(folder / "params.json", json.dumps(order.parameters, indent=1))
                facts = order.facts | {"seconds": round(time.perf_counter() - began, 2)}
                artifacts.commit(folder, order.digest, facts, [Path(path) for path in order.outputs])
            export(order)
    except errors.InputError as refusal:
        return JobResult(time.perf_counter() - began, str(refusal))
    return JobResult(time.perf_counter() - began)


def _execute(order: JobSpec) -> None:
    """Run one notebook to its end; the executed copy is put in place only then, a broken one stays as
    failed.ipynb.
    """
    folder = Path(order.folder)
    failed = folder / "failed.ipynb"
    profile = Path(order.parameters["home"], "runs", home.CACHE, "ipython")  # not the user's, nor its startup
    profile.mkdir(parents=True, exist_ok=True)
    job = {  # the kernel belongs to the runner that holds the study
        io.HOLDS: order.study,
        artifacts.FOLDER: order.folder,
        artifacts.DEVICE: order.facts["device"],
        artifacts.PRECISION: order.facts["auto"],
        home.SERIES: str(Path(order.notebook).parent),
        "IPYTHONDIR": str(profile),
        training.PROGRESS: str(folder / PROGRESS),
    }
    try:
        papermill.execute_notebook(
            order.notebook,
            str(failed),
            parameters=order.parameters,
            kernel_name="python3",
            progress_bar=False,
            request_save_on_cell_execute=False,  # else all of it is written anew before and after each cell
            config=KERNEL_CONFIG,
            kernel_manager_class=type("JobKernelManager", (WarmKernelManager,), {"job": job}),
        )
    except PapermillExecutionError as error:
        if error.ename == "InputError":
            raise errors.InputError(f"{order.label}: {error.evalue}") from error
        raise errors.InputError(
            f"{order.label} failed with {error.ename}: {error.evalue}; see {failed}"
        ) from error
    except RuntimeError as error:  # the kernel died or never came up
        advice = (
            "most likely for want of memory; free some or use fewer or shorter clips, then give the same"
            " command again"
        )
        raise KernelLostError(
            f"{order.label}: its kernel ended from outside ({type(error).__name__}), {advice}"
        ) from error
    os.replace(failed, folder / "notebook.ipynb")


def export(order: JobSpec) -> None:
    """The executed notebook as a page of the report, if that is not there."""
    folder, page = Path(order.folder), Path(order.page)
    if page.is_file():
        return
    page.parent.mkdir(parents=True, exist_ok=True)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    footer = order.footer | {"device": manifest["device"], **manifest["versions"]}
    report.html(folder / "notebook.ipynb", page, footer)
