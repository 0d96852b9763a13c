"""The home folder: where notebooks and studies are read, and runs and reports are written.

Home is `--home DIR` (parameter `home`), else the current folder or its nearest parent with notebooks/studies
(created by `asd init DIR`), else the clone of an editable install. If a home is given without
notebooks/studies, only runs and reports go there; notebooks and studies come from the default home.

Source: METHOD 8.2. Notebooks: all (through `study`)
"""

from __future__ import annotations

import getpass
import os
import shutil
from pathlib import Path

from asdlib import errors, io

SERIES = "ASDLIB_NOTEBOOKS"  # environment variable of a job: the folder of its notebook
CLONE = io.PACKAGE.parent  # for an installed wheel this is site-packages
NO_FOLDER = "no working folder here; create one with `asd init DIR`"
CACHE = ".cache"  # in runs/
CACHES = (  # cache and config folders of numba, torch, triton, matplotlib, fontconfig and Jupyter
    "NUMBA_CACHE_DIR",
    "TORCHINDUCTOR_CACHE_DIR",
    "TRITON_CACHE_DIR",
    "MPLCONFIGDIR",
    "XDG_CACHE_HOME",
    "JUPYTER_RUNTIME_DIR",
    "JUPYTER_CONFIG_DIR",
    "JUPYTER_DATA_DIR",
)
PATTERNS = ("*.ipynb", "METHOD.md", "README.md", "studies/*.toml")  # files that `init` copies


def _holds_studies(folder: Path) -> bool:
    return os.path.isdir(folder / "notebooks" / "studies")


def _default_home() -> Path:
    """Return the home if none is given.  raises : errors.InputError if there is none"""
    try:
        cwd = Path.cwd()
    except OSError:  # the current folder does not exist any more
        cwd = CLONE
    found = [folder for folder in (cwd, *cwd.parents, CLONE) if _holds_studies(folder)]
    if not found:
        raise errors.InputError(NO_FOLDER)
    return found[0]


def home_folder(given: str | Path = "") -> Path:
    """Return the folder of runs/ and reports/, by the rule above.

    given : value of `--home` or the parameter `home`; "" for the default
    raises : errors.InputError if there is no default, or a file is given
    """
    if not str(given):
        return _default_home()
    folder = Path(given).resolve()
    if folder.exists() and not folder.is_dir():
        raise errors.InputError(f"home {folder} is a file, expected a folder for runs/ and reports/")
    return folder


def notebooks(given: str | Path = "") -> Path:
    """Return the folder of the notebooks and of studies/, by the rule above.

    given : as for `home_folder`
    raises : errors.InputError if there is no working folder
    """
    if str(given) and _holds_studies(Path(given)):
        return Path(given).resolve() / "notebooks"
    if os.environ.get(SERIES):
        return Path(os.environ[SERIES])
    return _default_home() / "notebooks"


def own_caches(given: str | Path = "") -> None:
    """Put the caches of libraries into runs/.cache if the user's cannot be written.

    This happens with a read-only HOME or a user id without a name (`docker run --user`). Variables that are
    already set are kept.

    given : as for `home_folder`, with the same errors
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    existing = next(folder for folder in (cache, *cache.parents) if os.path.exists(folder))
    try:
        has_name = bool(getpass.getuser())
    except (KeyError, OSError):
        has_name = False
    if has_name and cache.is_absolute() and os.access(existing, os.W_OK):
        return
    folder = home_folder(given) / "runs" / CACHE
    if cache.is_absolute():  # find weights in a read-only HOME
        os.environ.setdefault("TORCH_HOME", str(cache / "torch"))
    for variable in CACHES:
        os.environ.setdefault(variable, str(folder / variable.removesuffix("_DIR").lower()))


def init(folder: str | Path) -> list[Path]:
    """Create a working folder with the package's notebooks, METHOD.md, README.md and studies.

    folder : created if missing
    returns : the written files
    raises : errors.InputError if one of them exists (then nothing is written), or writing fails
    """
    packaged = io.PACKAGE / "notebooks"  # in a wheel; a clone has them next to the package
    source = packaged if packaged.is_dir() else CLONE / "notebooks"
    files = [path for pattern in PATTERNS for path in sorted(source.glob(pattern))]
    if not files:
        raise errors.InputError(f"this installation has no notebooks in {source}; reinstall asdlib")
    pairs = [(path, Path(folder) / "notebooks" / path.relative_to(source)) for path in files]
    try:
        for _, target in pairs:
            if os.path.lexists(target):
                raise errors.InputError(f"{target} exists and is never overwritten; choose another folder")
        for path, target in pairs:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    except (OSError, ValueError) as error:
        if isinstance(error, errors.InputError):
            raise
        why = f"{getattr(error, 'filename', None) or folder}: {getattr(error, 'strerror', None) or error}"
        raise errors.InputError(f"{why}; choose a writable folder") from error
    return [target for _, target in pairs]
