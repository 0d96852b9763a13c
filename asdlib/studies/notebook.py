"""Warm kernels: the notebooks of a study run in forks of one process that has made the imports, not in interpreters of their own.

    papermill.execute_notebook(..., kernel_manager_class=notebook.WarmKernelManager)

The forks are made by the standard library's fork server (multiprocessing), one for each process that runs notebooks. A kernel ends when
that process or its fork server ends, by whatever death. Where no fork server can be had, an ordinary kernel is started in its place. As
with everything of multiprocessing, a script that runs studies needs `if __name__ == "__main__":`.
Source: METHOD 8.3. Notebooks: all (through `perform`).
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import sys
import threading
import uuid
from collections.abc import Iterator
from multiprocessing import forkserver, resource_tracker
from pathlib import Path

from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning import LocalProvisioner

import asdlib

# One thread each: a fork copies no others, and spinning threads cost more than they bring. Arrow's own allocator would start one.
# The backend is what ipykernel sets before matplotlib is imported; here that comes first. The current folder is no place for modules.
ENVIRONMENT = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1") | {
    "JE_ARROW_MALLOC_CONF": "background_thread:false", "MPLBACKEND": "module://matplotlib_inline.backend_inline", "PYTHONSAFEPATH": "1",
}  # fmt: skip


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """What is started meanwhile, and what that starts again, finds ENVIRONMENT and does not hear Ctrl-C, which is the runner's alone."""
    before, mask = dict(os.environ), signal.pthread_sigmask(signal.SIG_BLOCK, set())
    resource_tracker.ensure_running()  # now: who starts it hears Ctrl-C again afterwards, and so would all that is started from there
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # one that comes meanwhile waits; threads and processes inherit the mask
    os.environ.update(ENVIRONMENT)
    try:
        yield
    finally:
        for name in ENVIRONMENT:
            os.environ.update({name: before[name]}) if name in before else os.environ.pop(name, None)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def warm() -> None:
    """Have this process's fork server, which makes its imports while this process goes on.  raises : OSError"""
    package = Path(asdlib.__file__).parent
    modules = [".".join(path.relative_to(package.parent).with_suffix("").parts) for path in sorted(package.rglob("[a-z]*.py"))]
    with apart():
        forkserver.set_forkserver_preload(["ipykernel.kernelapp", "torchvision.models.resnet", *modules])
        forkserver.ensure_running()


class Kernel(multiprocessing.get_context("forkserver").Process):
    """A kernel as a fork of the server, with as much of the face of `subprocess.Popen` as jupyter_client looks at."""

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
        threading.Thread(target=lambda: multiprocessing.parent_process().join() or os._exit(1), daemon=True).start()
        os.environ.clear()
        os.environ.update(self.env)
        os.chdir(self.cwd or ".")
        sys.argv = ["ipykernel_launcher", *self.words]
        IPKernelApp.launch_instance(argv=self.words, parent_handle=os.getppid())  # ends when it does not see the fork server any more

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


class WarmProvisioner(LocalProvisioner):
    """A kernel's process on this machine, forked where that can be done."""

    async def launch_kernel(self, cmd: list[str], **kwargs):
        """Fork, or start the command as usual."""
        kwargs["env"] = kwargs.get("env", os.environ) | ENVIRONMENT
        try:
            warm()
            multiprocessing.current_process().daemon = False  # Dask's workers are, and might start no process
            self.process = Kernel(cmd[cmd.index("-f") :], kwargs.get("cwd"), kwargs["env"])
            self.process.start()
            self.pid = self.pgid = self.process.pid  # it leads a session of its own
            return self.connection_info
        except (OSError, EOFError, ValueError):
            self.process = None
        return await super().launch_kernel(cmd, **kwargs)


class WarmKernelManager(AsyncKernelManager):
    """The manager that papermill is given, with sockets in Linux's abstract space: a free port may be taken before the kernel binds it."""

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.transport, self.ip = "ipc", f"@asdlib-{uuid.uuid4().hex}"
        self.provisioner = WarmProvisioner(kernel_id="", kernel_spec=self.kernel_spec, parent=self)
