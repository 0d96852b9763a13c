"""Kills the process that it is in, without a chance to tidy up, at one chosen point of its work with files."""

import os
import re
import signal


def arm(fault: dict) -> None:
    """fault: at (a pattern of the path that a file is renamed to), how (torn: the file beside is cut to half and
    the process killed before the rename, which is what a kill in the middle of the write leaves; before; after:
    the rename), nth (of the renames that match, in this process), once (a file that is made then; where it
    exists nothing happens any more).
    """
    os.replace, os.rename = _guarded(os.replace, fault), _guarded(os.rename, fault)


def _guarded(plain, fault):
    seen = []

    def rename(source, target, **rest):
        if not re.search(fault["at"], str(target)) or os.path.exists(fault["once"]):
            return plain(source, target, **rest)
        seen.append(target)
        if len(seen) < fault["nth"]:
            return plain(source, target, **rest)
        open(fault["once"], "x").close()
        if fault["how"] == "after":
            plain(source, target, **rest)
        if fault["how"] == "torn":
            os.truncate(source, os.path.getsize(source) // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    return rename
