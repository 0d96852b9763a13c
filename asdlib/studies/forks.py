"""The fork server that kernels are made by; started early, it imports while the runner does.

This module imports nothing heavy. Source: METHOD 8.3. Notebooks: none (`notebook.WarmKernelManager`)
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from threading import Lock

import asdlib

# One thread each: a fork copies no others, and spinning threads cost more than they bring. Arrow's own
# allocator would start one.
# The backend is what ipykernel sets before matplotlib is imported; here that comes first. The current folder
# is no place for modules.
ENVIRONMENT = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1") | {
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "PYTHONSAFEPATH": "1",
}
# Of Python's own variables, those that say where modules are; the others (PYTHONWARNINGS, PYTHONSTARTUP, ...)
# would change what a notebook does or shows.
KEPT = {
    "PYTHONPATH",
    "PYTHONHOME",
    "PYTHONUSERBASE",
    "PYTHONNOUSERSITE",
    "PYTHONPYCACHEPREFIX",
    "PYTHONDONTWRITEBYTECODE",
}

_STARTING = Lock()  # `apart` alters the process's own environment


def without_own(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment without the user's choices for Python itself."""
    return {
        name: value for name, value in environment.items() if name in KEPT or not name.startswith("PYTHON")
    }


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """What is started meanwhile, and what that starts again, finds ENVIRONMENT and none of the user's options
    of Python, and does not hear Ctrl-C, which is the runner's alone.
    """
    before, mask = dict(os.environ), signal.pthread_sigmask(signal.SIG_BLOCK, set())
    options = sys.warnoptions[:]  # -W and PYTHONWARNINGS, which multiprocessing hands on
    sys.warnoptions.clear()
    for name in before.keys() - without_own(before).keys():
        del os.environ[name]
    # now: who starts it hears Ctrl-C again afterwards, and so would all that is started from there
    resource_tracker.ensure_running()
    signal.pthread_sigmask(
        signal.SIG_BLOCK, {signal.SIGINT}
    )  # one that comes meanwhile waits; threads and processes inherit the mask
    os.environ.update(ENVIRONMENT)
    try:
        yield
    finally:
        for name in ENVIRONMENT.keys() - before.keys():
            os.environ.pop(name, None)
        os.environ.update(before)
        sys.warnoptions[:] = options
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def warm() -> None:
    """Start this process's fork server, which imports in the background.  raises : OSError"""
    package = Path(asdlib.__file__).parent
    modules = [
        ".".join(path.relative_to(package.parent).with_suffix("").parts)
        for path in sorted(package.rglob("[a-z]*.py"))
        # the first may be the main module, `python -m asdlib.cli`; no kernel needs the second
        if path not in (package / "cli.py", package / "studies" / "dask.py")
    ]
    with _STARTING, apart():
        forkserver.set_forkserver_preload(
            ["asdlib.studies.warmup", "ipykernel.kernelapp", "torchvision.models.resnet", *modules]
        )
        forkserver.ensure_running()
