"""On the path of a process under test: kills it, without a chance to tidy up, at one chosen point of its work
with files.

FAULT holds JSON: who (runner | worker | kernel), at (a pattern of the path that a file is renamed to), how
(torn: the file beside is cut to half and the process killed before the rename, which is what a kill in the
middle of the write leaves; before; after: the rename), nth (of the renames that match, in this process), once
(a file that is made then; where it exists nothing happens any more).
"""

import json
import os
import re
import signal
import sys

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


def _guarded(plain):
    seen = []

    def rename(source, target, **rest):
        if not re.search(_fault["at"], str(target)) or os.path.exists(_fault["once"]):
            return plain(source, target, **rest)
        seen.append(target)
        if len(seen) < _fault["nth"]:
            return plain(source, target, **rest)
        open(_fault["once"], "x").close()
        if _fault["how"] == "after":
            plain(source, target, **rest)
        if _fault["how"] == "torn":
            os.truncate(source, os.path.getsize(source) // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    return rename


if _fault is not None and _fault["who"] == _who:
    os.replace, os.rename = _guarded(os.replace), _guarded(os.rename)
