"""Warm kernels: the notebooks of a study run in forks of one process that has made the imports, not in interpreters of their own.

    papermill.execute_notebook(..., kernel_manager_class=kernels.WarmKernelManager)

A kernel is still a process of its own that ends with its notebook, and is started, interrupted, killed and watched as any other;
only its start is a fork (`asdlib.zygote` says why that is safe). One zygote serves this process as long as it lives. Wherever a
fork cannot be had (no zygote, not this Python, an old system) an ordinary kernel is started in its place.

Source: DESIGN 4; UX (papermill). Notebooks: all (through `execute`).
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading

from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning import LocalProvisioner

START_S = 120.0  # for the imports; an ordinary kernel is waited for as long
LAUNCHER = ["-m", "ipykernel_launcher"]
# One thread each: a fork copies no others, and spinning threads cost more than they bring. Arrow's own allocator starts one.
# The backend is what ipykernel sets before matplotlib is imported; here that comes first.
ENVIRONMENT = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1") | {"JE_ARROW_MALLOC_CONF": "background_thread:false"}
BACKEND = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}


class Zygote:
    """The process that forks, seen from the runner. Ends when this object is closed or this process is gone."""

    def __init__(self):
        here, there = socket.socketpair()
        with there:
            command = [sys.executable, "-P", "-m", "asdlib.zygote", str(there.fileno())]
            environment = BACKEND | os.environ | ENVIRONMENT
            self.process = subprocess.Popen(
                command, env=environment, pass_fds=[there.fileno()], stdin=subprocess.DEVNULL, start_new_session=True
            )
        here.settimeout(START_S)
        self.link, self.lines = here, here.makefile("r", encoding="utf-8")
        try:
            if not self._answer()["ready"]:
                raise OSError("the zygote has threads")
        except (OSError, ValueError):
            self.close()
            raise

    def fork(self, argv: list[str], cwd: str | None, env: dict[str, str]) -> int:
        """Number of a new process that runs `argv` as a kernel.  raises : OSError or ValueError when none came to be"""
        self.link.sendall(json.dumps({"argv": argv, "cwd": cwd, "env": env}).encode() + b"\n")
        pid = self._answer()["pid"]
        if not pid:
            raise OSError("the zygote could not fork")
        return pid

    def _answer(self) -> dict:
        return json.loads(self.lines.readline())  # nothing, when it is gone: a ValueError

    def close(self) -> None:
        """End the zygote; kernels that still run see their parent go."""
        self.lines.close()
        self.link.close()
        self.process.kill()
        self.process.wait()


class _Shared:
    """The one zygote of this process: made on first use, made anew when it died, given up when it cannot be made."""

    def __init__(self):
        self.lock, self.zygote, self.owner, self.impossible = threading.Lock(), None, 0, False

    def fork(self, argv: list[str], cwd: str | None, env: dict[str, str]) -> int:
        with self.lock:  # workers may be threads
            if self.impossible:
                raise OSError("no zygote")
            if self.zygote is None or self.owner != os.getpid() or self.zygote.process.poll() is not None:
                self.impossible = True
                self.zygote, self.owner = Zygote(), os.getpid()
                self.impossible = False
            try:
                return self.zygote.fork(argv, cwd, env)
            except (OSError, ValueError):
                self.close()
                raise

    def close(self) -> None:
        """End the zygote, if this process made one."""
        if self.zygote is not None and self.owner == os.getpid():
            self.zygote.close()
        self.zygote = None


_shared = _Shared()
atexit.register(lambda: _shared.close())


class Forked:
    """A process that is not our child, with the face of `subprocess.Popen`. Its exit code is not known to us, only that it ended."""

    stdin = stdout = stderr = None

    def __init__(self, pid: int):
        self.pid, self._watch = pid, select.poll()
        self._handle = os.pidfd_open(pid)
        self._watch.register(self._handle, select.POLLIN)

    def poll(self) -> int | None:
        """None while it runs."""
        return 0 if self._watch.poll(0) else None

    def wait(self, timeout: float | None = None) -> int:
        """Until it has ended."""
        if not self._watch.poll(None if timeout is None else 1000 * timeout):
            raise subprocess.TimeoutExpired("kernel", timeout)
        return 0

    def send_signal(self, number: int) -> None:
        """To this very process: its number may have been given away."""
        if self.poll() is None:
            signal.pidfd_send_signal(self._handle, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)

    def __del__(self):
        if hasattr(self, "_handle"):
            os.close(self._handle)


class WarmProvisioner(LocalProvisioner):
    """A kernel's process on this machine, forked where that can be done."""

    async def launch_kernel(self, cmd: list[str], **kwargs):
        """Fork, or start the command as usual."""
        if cmd[1:3] == LAUNCHER and os.path.realpath(cmd[0]) == os.path.realpath(sys.executable):
            try:
                self.process = Forked(_shared.fork(cmd[2:], kwargs.get("cwd"), kwargs.get("env") or dict(os.environ)))
                self.pid = self.pgid = self.process.pid  # it leads a session of its own
                return self.connection_info
            except (OSError, ValueError):
                self.process = None
        return await super().launch_kernel(cmd, **kwargs)


class WarmKernelManager(AsyncKernelManager):
    """The manager that papermill is given; all but the launch is jupyter_client's."""

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.provisioner = WarmProvisioner(kernel_id="", kernel_spec=self.kernel_spec, parent=self)
