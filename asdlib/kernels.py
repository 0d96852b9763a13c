"""Warm kernels: the notebooks of a study run in forks of one process that has made the imports, not in interpreters of their own.

    papermill.execute_notebook(..., kernel_manager_class=kernels.WarmKernelManager)

A kernel is still a process of its own that ends with its notebook, and is started, interrupted, killed and watched as any other;
only its start is a fork (`asdlib.zygote` says why that is safe). One zygote serves this process as long as it lives; workers on the
runner's machine get theirs as a fork of the runner's, so that the imports are made once. Wherever a fork cannot be had (no zygote, not
this Python, an old system) an ordinary kernel is started in its place.

Source: DESIGN 4; UX (papermill). Notebooks: all (through `execute`).
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import uuid

from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning import LocalProvisioner

START_S = 120.0  # for the imports; an ordinary kernel is waited for as long
LAUNCHER = ["-m", "ipykernel_launcher"]
# One thread each: a fork copies no others, and spinning threads cost more than they bring. Arrow's own allocator starts one.
# The backend is what ipykernel sets before matplotlib is imported; here that comes first.
ENVIRONMENT = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1") | {"JE_ARROW_MALLOC_CONF": "background_thread:false"}
DOOR = "zygote"  # name of the socket
ADDRESS = "ASDLIB_ZYGOTE"  # in a local worker's environment: the runner's zygote, from which it gets one of its own
BACKEND = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}


class Zygote:
    """A process that forks kernels, seen from the one that asks for them. Ends when this object is closed or this process is gone.

    process : of the zygote, where this process started it.  door : folder of the socket that workers may come in by
    """

    def __init__(self, link: socket.socket, process: subprocess.Popen | None = None, door: str = ""):
        link.settimeout(START_S)
        self.link, self.lines, self.process, self.door, self.waited = link, link.makefile("r", encoding="utf-8"), process, door, False

    @classmethod
    def start(cls, shared: bool = False) -> Zygote:
        """A new one, which makes its imports while this process goes on.  shared : with a door for workers, by its `address`"""
        with contextlib.ExitStack() as others:  # what is not ours once the zygote has it, or when it cannot be started
            here, there = socket.socketpair()
            others.enter_context(there)
            door, given = "", [there]
            try:
                if shared:
                    door = tempfile.mkdtemp(prefix="asdlib-")  # nobody else may enter that folder
                    given.append(others.enter_context(socket.socket(socket.AF_UNIX)))
                    given[1].bind(os.path.join(door, DOOR))
                    given[1].listen()
                numbers = [end.fileno() for end in given]
                command = [sys.executable, "-P", "-m", "asdlib.zygote", *map(str, numbers)]
                env = BACKEND | os.environ | ENVIRONMENT
                process = subprocess.Popen(command, env=env, pass_fds=numbers, stdin=subprocess.DEVNULL, start_new_session=True)
            except OSError:
                here.close()
                shutil.rmtree(door, ignore_errors=True)
                raise
        return cls(here, process, door)

    @classmethod
    def join(cls, address: str) -> Zygote:
        """One of this process's own, from the zygote of the runner.  raises : OSError where that is gone"""
        link = socket.socket(socket.AF_UNIX)
        link.connect(address)
        return cls(link)

    def alive(self) -> bool:
        """Whether the process is there, as far as this one can know."""
        return self.process is None or self.process.poll() is None

    def ready(self) -> None:
        """Wait for the imports.  raises : OSError or ValueError where it cannot fork"""
        if not self.waited and not self._answer()["ready"]:
            raise OSError("the zygote has threads")
        self.waited = True

    def fork(self, argv: list[str], cwd: str | None, env: dict[str, str]) -> int:
        """Number of a new process that runs `argv` as a kernel.  raises : OSError or ValueError when none came to be"""
        self.ready()
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
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        if self.door:
            shutil.rmtree(self.door, ignore_errors=True)


class _Shared:
    """The one zygote of this process: made on first use, made anew when it died, given up when it cannot be made."""

    def __init__(self):
        self.lock, self.zygote, self.owner, self.impossible = threading.Lock(), None, 0, False

    def there(self) -> bool:
        """Whether this process has one, and it lives."""
        return self.zygote is not None and self.owner == os.getpid() and self.zygote.alive()

    def made(self, shared: bool = False) -> Zygote:
        """One that may still be at its imports.  raises : OSError"""
        if not self.there():
            self.zygote, self.owner = _new(shared), os.getpid()
        return self.zygote

    def fork(self, argv: list[str], cwd: str | None, env: dict[str, str]) -> int:
        """See `Zygote.fork`; one that died is replaced."""
        with self.lock:  # workers may be threads
            if self.impossible:
                raise OSError("no zygote")
            try:
                self.impossible = not (self.there() and self.zygote.waited)  # until a new one has shown that it can
                self.made().ready()
                self.impossible = False
                return self.zygote.fork(argv, cwd, env)
            except (OSError, ValueError):
                self.close()
                raise

    def close(self) -> None:
        """End the zygote, if this process made one."""
        if self.zygote is not None and self.owner == os.getpid():
            self.zygote.close()
        self.zygote = None


def _new(shared: bool) -> Zygote:
    """From the runner's where this process is one of its workers, else started."""
    with contextlib.suppress(KeyError, OSError, ValueError):
        zygote = Zygote.join(os.environ[ADDRESS])
        zygote.ready()
        return zygote
    return Zygote.start(shared)


_shared = _Shared()
atexit.register(lambda: _shared.close())


def warm(shared: bool = False) -> None:
    """Start the imports of this process's zygote now, to be over when the first kernel is wanted.  shared : workers may use it too"""
    with contextlib.suppress(OSError), _shared.lock:
        _shared.made(shared)


def address() -> dict[str, str]:
    """What to add to the environment of workers on this machine, so that they need no imports for their kernels."""
    door = _shared.zygote.door if _shared.there() else ""
    return {ADDRESS: os.path.join(door, DOOR)} if door else {}


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
                self.process = Forked(_shared.fork(cmd[2:], kwargs.get("cwd") or os.getcwd(), kwargs.get("env") or dict(os.environ)))
                self.pid = self.pgid = self.process.pid  # it leads a session of its own
                return self.connection_info
            except (OSError, ValueError):
                self.process = None
        return await super().launch_kernel(cmd, **kwargs)


class WarmKernelManager(AsyncKernelManager):
    """The manager that papermill is given; all but the launch and the sockets' names is jupyter_client's.

    Free ports of TCP are found, let go and bound again by the kernel, and another process may take one in between. Names in Linux's
    abstract space of sockets are drawn so that nobody has them, and leave no file.
    """

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.transport, self.ip = "ipc", f"@asdlib-{uuid.uuid4().hex}"
        self.provisioner = WarmProvisioner(kernel_id="", kernel_spec=self.kernel_spec, parent=self)
