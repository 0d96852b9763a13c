"""The fork server of the notebook kernels; started early, it imports in parallel to the runner.

Nothing heavy may be imported here. Source: METHOD 8.3. Used by: `notebook.WarmKernelManager`.
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

# One thread per kernel: a fork copies only one, and spinning threads slow down parallel jobs; Arrow's
# allocator would also start one. The matplotlib backend has to be set before matplotlib is imported.
# No modules are imported from the current folder.
ENVIRONMENT = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1") | {
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "PYTHONSAFEPATH": "1",
}
# Python's variables for finding modules; others (PYTHONWARNINGS, PYTHONSTARTUP, ...) would change results.
KEPT = {
    "PYTHONPATH",
    "PYTHONHOME",
    "PYTHONUSERBASE",
    "PYTHONNOUSERSITE",
    "PYTHONPYCACHEPREFIX",
    "PYTHONDONTWRITEBYTECODE",
}

_STARTING = Lock()  # `apart` changes os.environ


def without_own(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without the user's options for Python, except those in KEPT."""
    return {
        name: value for name, value in environment.items() if name in KEPT or not name.startswith("PYTHON")
    }


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Start child processes inside this block with ENVIRONMENT, without the user's Python options, and with
    SIGINT blocked: only the runner handles Ctrl-C.
    """
    before, mask = dict(os.environ), signal.pthread_sigmask(signal.SIG_BLOCK, set())
    options = sys.warnoptions[:]  # from -W and PYTHONWARNINGS; multiprocessing passes them on
    sys.warnoptions.clear()
    for name in before.keys() - without_own(before).keys():
        del os.environ[name]
    resource_tracker.ensure_running()  # before the mask is set, as starting it unblocks SIGINT
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited by threads and processes
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
    """Start the fork server of this process, which imports in the background.  raises : OSError"""
    package = Path(asdlib.__file__).parent
    modules = [
        ".".join(path.relative_to(package.parent).with_suffix("").parts)
        for path in sorted(package.rglob("[a-z]*.py"))
        # cli may be the main module (`python -m asdlib.cli`); kernels do not need dask
        if path not in (package / "cli.py", package / "studies" / "dask.py")
    ]
    with _STARTING, apart():
        forkserver.set_forkserver_preload(
            ["asdlib.studies.warmup", "ipykernel.kernelapp", "torchvision.models.resnet", *modules]
        )
        forkserver.ensure_running()
