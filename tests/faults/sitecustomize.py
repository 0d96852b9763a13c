"""On the path of a process under test: kills it at the point that FAULT names, as JSON (see `killing`), if it is
the one that is meant: who (runner | worker | kernel).
"""

import json
import os
import sys

import killing

_fault = json.loads(os.environ.get("FAULT", "null"))
_words = " ".join(sys.orig_argv)
_kernel = (
    "ipykernel_launcher" in _words or "multiprocessing.forkserver" in _words
)  # which forks kernels and renames nothing itself
_who = (
    "kernel"
    if _kernel
    else "worker"
    if "spawn_main" in _words
    else "runner"
    if "asdlib.cli" in _words
    else ""
)
if _fault is not None and _fault["who"] == _who:
    killing.arm(_fault)
