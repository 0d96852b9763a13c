"""A process that has imported everything a notebook may use, and becomes a kernel by forking.

Task
----
Imports cost a notebook's kernel five seconds of CPU time, the same in each of a study's dozens. This process pays them once
(`python -P -m asdlib.zygote FD [FD]`, started by `asdlib.kernels`), then reads requests from the first socket, one JSON object per line
(argv, cwd, env), and answers each with the process number of a fork of itself that runs the kernel. The second socket, where there is
one, is a door for workers on this machine: who comes in is served by a fork of this process, which ends with its caller, as this one
does with the runner.

Why a fork is safe here: it is made by the only thread (checked before each), no pool of OpenMP, BLAS or Arrow has been started,
no GPU has been touched, and no study has been opened: only modules are loaded. The kernel is a process of its own, with its own
session, working directory and environment; its memory goes with it. When the runner ends, by whatever death, the socket closes and
this process ends; the kernels see their parent go, as kernels do, and end too.

Source: DESIGN 4; UX (papermill). Notebooks: all (through `execute`).
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import pkgutil
import select
import shutil
import signal
import socket
import sys
import warnings

import torch
from ipykernel.kernelapp import IPKernelApp

import asdlib

ENTRIES = ("zygote", "cli")  # modules that are run, not imported
LATER = ("torchvision.models.resnet", "sklearn.metrics")  # that the package loads on first use


def load() -> None:
    """Import all of the package, and with it the libraries that it stands on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in pkgutil.walk_packages(asdlib.__path__, "asdlib."):
            if module.name.removeprefix("asdlib.") not in ENTRIES:
                importlib.import_module(module.name)
        for name in LATER:
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # the collector leaves what is shared alone, so that it stays shared


def forkable() -> bool:
    """Whether this process has one thread and no GPU: a fork copies neither."""
    return len(os.listdir("/proc/self/task")) == 1 and not torch.cuda.is_initialized()


def serve(link: socket.socket, door: socket.socket | None = None) -> dict:
    """Answer requests until the other side is gone.  returns : in a fork, the request that it is to fulfil; else never"""
    lines, me = link.makefile("r", encoding="utf-8"), os.getpid()
    with contextlib.suppress(OSError):  # of a link whose other side is gone
        answer(link, {"ready": forkable()})
        while True:
            came, _, _ = select.select([link] if door is None else [link, door], [], [])
            reap()
            caller = door.accept()[0] if door in came else None
            line = "" if caller else lines.readline()
            if not caller and not line:
                break
            pid = os.fork() if forkable() else 0
            if os.getpid() != me:
                os.setsid()  # before anything may be sent to the group
                lines.close()
                link.close()
                if door is not None:
                    door.close()
                return serve(caller) if caller else json.loads(line) | {"parent": me}
            if caller:
                caller.close()  # where no fork could be made, the caller is told so by this
            else:
                answer(link, {"pid": pid})
    if door is not None:
        shutil.rmtree(os.path.dirname(door.getsockname()), ignore_errors=True)
    sys.exit(0)


def reap() -> None:
    """Let go of forks that have ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def answer(link: socket.socket, words: dict) -> None:
    """One line of JSON."""
    link.sendall(json.dumps(words).encode() + b"\n")


def main() -> None:
    """Serve, and in a fork be the kernel."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    load()
    request = serve(*(socket.socket(fileno=int(number)) for number in sys.argv[1:]))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(request["env"])
    if request["cwd"]:
        os.chdir(request["cwd"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv = request["argv"]
    IPKernelApp.launch_instance(argv=sys.argv[1:], parent_handle=request["parent"])  # ends when it does not see this parent any more


if __name__ == "__main__":
    main()
