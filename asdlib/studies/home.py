"""The home folder: where notebooks and studies are read, and runs and reports are written.

The rule, for every command, notebook and call: home is `--home DIR` (the parameter `home`); else the current
folder or its nearest parent that holds notebooks/studies, as `asd init DIR` makes it; else the clone, where
the package runs from one (an editable install). An installed package has no clone: without a working folder
it says how to make one. A home given by name may be without notebooks/studies, as a place for runs and
reports only; notebooks and studies are then those of the folder that would be home without it.

Source: METHOD 8.2. Notebooks: all (through `study`)
"""

from __future__ import annotations

import getpass
import os
import shutil
from pathlib import Path

from asdlib import errors, io

SERIES = "ASDLIB_NOTEBOOKS"  # environment: the folder of notebooks that a job's own notebook lies in
CLONE = io.PACKAGE.parent  # of a wheel: site-packages, which holds no notebooks
NO_FOLDER = "no working folder here; make one with `asd init DIR`"
CACHE = ".cache"  # below runs/
CACHES = (  # where numba, torch, triton, matplotlib, fontconfig and Jupyter look for their folders
    "NUMBA_CACHE_DIR",
    "TORCHINDUCTOR_CACHE_DIR",
    "TRITON_CACHE_DIR",
    "MPLCONFIGDIR",
    "XDG_CACHE_HOME",
    "JUPYTER_RUNTIME_DIR",
    "JUPYTER_CONFIG_DIR",
    "JUPYTER_DATA_DIR",
)
PATTERNS = ("*.ipynb", "METHOD.md", "README.md", "studies/*.toml")  # of the series


def _holds_studies(folder: Path) -> bool:
    return os.path.isdir(folder / "notebooks" / "studies")


def _around() -> Path:
    """Home where none is given by name.  raises : errors.InputError where there is none."""
    try:
        here = Path.cwd()
    except OSError:  # the current folder was deleted
        here = CLONE
    found = [folder for folder in (here, *here.parents, CLONE) if _holds_studies(folder)]
    if not found:
        raise errors.InputError(NO_FOLDER)
    return found[0]


def home_folder(given: str | Path = "") -> Path:
    """The folder of runs/ and reports/, by the rule above.

    given : what `--home` or the parameter `home` says; "": nothing
    raises : errors.InputError where nothing is given and there is no working folder, or a file is given
    """
    if not str(given):
        return _around()
    folder = Path(given).resolve()
    if folder.exists() and not folder.is_dir():
        raise errors.InputError(f"home {folder}: a file, expected a folder for runs/ and reports/; name one")
    return folder


def notebooks(given: str | Path = "") -> Path:
    """The folder of the notebooks, which holds `studies`, by the rule above.

    given : a home, or "" as for `home_folder`
    raises : errors.InputError where there is no working folder
    """
    if str(given) and _holds_studies(Path(given)):
        return Path(given).resolve() / "notebooks"
    if os.environ.get(SERIES):
        return Path(os.environ[SERIES])
    return _around() / "notebooks"


def own_caches(given: str | Path = "") -> None:
    """Give libraries folders below runs/.cache where the user's own cannot be written: a read-only HOME, or a
    user id without a name (`docker run --user`). What the user set in the environment stays.

    given : as of `home_folder`, and its refusal
    """
    usual = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    there = next(folder for folder in (usual, *usual.parents) if os.path.exists(folder))
    try:
        named = bool(getpass.getuser())
    except (KeyError, OSError):
        named = False
    if named and usual.is_absolute() and os.access(there, os.W_OK):
        return
    folder = home_folder(given) / "runs" / CACHE
    if usual.is_absolute():  # weights in a read-only HOME are still found
        os.environ.setdefault("TORCH_HOME", str(usual / "torch"))
    for variable in CACHES:
        os.environ.setdefault(variable, str(folder / variable.removesuffix("_DIR").lower()))


def init(folder: str | Path) -> list[Path]:
    """Make a working folder: the notebooks, METHOD.md, README.md and the studies, as this package has them.

    folder : to fill; made where it is missing
    returns : the files that were written
    raises : errors.InputError where one of them exists (then nothing is written), or none can be written
    """
    inside = io.PACKAGE / "notebooks"  # of an installed package; those of a clone lie beside it
    source = inside if inside.is_dir() else CLONE / "notebooks"
    files = [path for pattern in PATTERNS for path in sorted(source.glob(pattern))]
    if not files:
        raise errors.InputError(f"this installation lacks its notebooks in {source}; install asdlib again")
    pairs = [(path, Path(folder) / "notebooks" / path.relative_to(source)) for path in files]
    try:
        for _, target in pairs:
            if os.path.lexists(target):
                raise errors.InputError(f"{target} exists and is never overwritten; name another folder")
        for path, target in pairs:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    except (OSError, ValueError) as error:
        if isinstance(error, errors.InputError):
            raise
        why = f"{getattr(error, 'filename', None) or folder}: {getattr(error, 'strerror', None) or error}"
        raise errors.InputError(f"{why}; name a folder that you may write") from error
    return [target for _, target in pairs]
