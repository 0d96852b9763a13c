"""Tables and tensors read back: what stands in a file of ours is checked as if a stranger had written it.

Task
----
A file that a crash, a disk or a person changed is refused in one sentence, whatever the library below says of
it, and before it takes the memory that it asks for. Nothing here can run code: tables are parquet, tensors
are safetensors, and neither holds objects of Python.

Source: METHOD 8.6 (integrity, hostile input). Notebooks: all (through `study`)
"""

from __future__ import annotations

import ast
import contextlib
import errno
import fcntl
import functools
import hashlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import filelock
import numpy as np
import pandas as pd
import pyarrow.parquet
from safetensors.numpy import load_file

from asdlib import errors, schemas

PACKAGE = Path(__file__).resolve().parent
MOST_ROWS, MOST_BYTES = 2**22, 2**30  # of a table, as it says of itself
AGAIN = "delete the folder it lies in and give the same command again"


@contextlib.contextmanager
def refused(path: Path, what: str) -> Iterator[None]:
    """Whatever goes wrong inside this block becomes the refusal that `path` does not hold `what`."""
    try:
        yield
    except errors.InputError:
        raise
    except Exception as error:  # parquet, safetensors and torch raise many kinds for torn and foreign files
        raise errors.InputError(f"{path}: does not hold {what} ({type(error).__name__}); {AGAIN}") from error


def table(path: Path, columns: Sequence[str] = ()) -> pd.DataFrame:
    """A parquet table that has at least these columns, each once.

    raises : errors.InputError for a file that is no such table, or that claims more than 4 million rows or 1
        GB
    """
    with refused(path, "a table"):
        with pyarrow.parquet.ParquetFile(path) as file:
            groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
            rows, size = (
                max(file.metadata.num_rows, *(g.num_rows for g in groups), 0),
                sum(group.total_byte_size for group in groups),
            )
        if not 0 <= rows <= MOST_ROWS or size > MOST_BYTES:
            raise errors.InputError(
                f"{path}: claims {rows} rows and {size} bytes, expected at most {MOST_ROWS} and {MOST_BYTES};"
                f" {AGAIN}"
            )
        pyarrow.parquet.read_table(path).validate(
            full=True
        )  # pandas would find texts that are none when they are used, and not here
        found = pd.read_parquet(path)
        missing = [name for name in columns if name not in found.columns]
        if missing or not found.columns.is_unique:
            raise errors.InputError(
                f"{path}: lacks the columns {', '.join(missing) or 'under names of their own'}; {AGAIN}"
            )
    return found


def scores(path: Path) -> pd.DataFrame:
    """A score table (`schemas.score_table`)."""
    return schemas.score_table(table(path, schemas.SCORE_COLUMNS))


def tensors(path: Path, dimensions: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Tensors of a safetensors file.

    dimensions : the tensors that must be there, with their number of dimensions; those of numbers must be
        finite
    raises : errors.InputError for a file that does not hold them
    """
    with refused(path, "the tensors of this detector"):
        found = load_file(path)
        for name, number in dimensions.items():
            if found[name].ndim != number:
                raise errors.InputError(
                    f"{path}: {name} has the shape {found[name].shape}, expected {number} dimensions; {AGAIN}"
                )
            if found[name].dtype.kind == "f" and not np.isfinite(found[name]).all():
                raise errors.InputError(
                    f"{path}: {name} has NaN or infinite values, expected finite ones; {AGAIN}"
                )
    return found


HOLDS = "ASDLIB_HOLDS"  # environment of a job's kernel: the study folder that its runner has locked


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A file to write that becomes `path` when the block ends well, and is gone when it does not: `path` is
    never half there.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a small file by rename."""
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8")


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as parquet or csv (by the path's ending), by rename."""
    with atomic_write(path) as part:
        table.to_csv(part, index=False) if path.suffix == ".csv" else table.to_parquet(part, index=False)


@functools.cache
def _content(path: Path, size: int, modified: int) -> str:
    """Digest of a file's content; read once per process and state of the file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]


def content(path: Path) -> list:
    """[size, digest of the content] of a file, as DONE keeps them."""
    stat = path.stat()
    return [stat.st_size, _content(path, stat.st_size, stat.st_mtime_ns)]


@contextlib.contextmanager
def wrap_os_errors(folder: Path) -> Iterator[None]:
    """Disk full and missing permissions inside this block become one sentence.  raises : errors.InputError in
    place of an OSError
    """
    try:
        yield
    except OSError as error:
        what = f"{error.filename or folder}: {error.strerror or error}"
        raise errors.InputError(f"{what}; free space or choose a folder you may write with --home") from error


NO_FLOCK = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # of file systems without flock: some NFS, Lustre


@functools.cache
def _lock(folder: Path) -> filelock.BaseFileLock:
    """The lock of a folder, one for all who ask in this process; a file made exclusively where there is no
    flock, and a line says so.
    """
    path = folder / ".lock"
    with open(path, "a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in NO_FLOCK:
                soft = path.with_suffix(".exclusive")
                print(f"{folder}: no flock here ({error.strerror}); {soft} keeps others out", file=sys.stderr)
                return filelock.SoftFileLock(soft, thread_local=False, is_singleton=True)
    return filelock.FileLock(path, thread_local=False, is_singleton=True)


@contextlib.contextmanager
def locked(folder: Path, what: str = "run of this study", wait: bool = False) -> Iterator[None]:
    """Hold a study for one process and the kernels that it starts; another process is told so instead of
    writing there too.

    wait : until whoever holds it has done, instead of a refusal
    raises : errors.InputError where another process holds it
    """
    if os.environ.get(HOLDS) == str(folder):
        yield
        return
    with wrap_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = _lock(folder)
        try:
            lock.acquire(timeout=-1 if wait else 0)  # once more where this process holds it already
        except filelock.Timeout as error:
            or_else = f", or delete {lock.lock_file} where none is" * isinstance(lock, filelock.SoftFileLock)
            raise errors.InputError(
                f"{folder}: another {what} is at work; wait for it or stop it{or_else}"
            ) from error
    try:
        yield
    finally:
        lock.release()


# ---------------------------------------------------------------- code

# Modules whose code shapes no result: how files are written, checked, shown and run, and how recordings are
# found and decoded, which the digests of their samples and the clip table stand for.
NEUTRAL = (
    "errors",
    "io",
    "schemas",
    "viz",
    "studies",
    "cli",
    *(f"data.{name}" for name in ("audio_headers", "decode", "folders", "lists", "name_words", "sources")),
)


@functools.cache
def _module(name: str) -> tuple[str, frozenset[str]]:
    """Digest of a module's syntax tree without docstrings, and the modules of the package that it imports."""
    path = PACKAGE.parent.joinpath(*name.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    tree, imports = ast.parse(path.read_bytes()), set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and body:
            first = body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = body[1:]
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "asdlib":
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                inside = PACKAGE.parent.joinpath(*full.split("."))
                imports.add(full if inside.is_dir() or inside.with_suffix(".py").is_file() else node.module)
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16], frozenset(imports)


@functools.cache
def code(*modules: str) -> dict[str, str]:
    """Digests of the code behind some modules, by module: their own and of all that they import, less
    NEUTRAL.

    Docstrings, comments and layout do not count.
    """
    found: dict[str, str] = {}
    todo = list(modules)
    while todo:
        name = todo.pop()
        inside = name.removeprefix("asdlib").lstrip(".")
        if name in found or not inside or any(f"{inside}.".startswith(f"{one}.") for one in NEUTRAL):
            continue
        found[name], imports = _module(name)
        todo += imports
    return dict(sorted(found.items()))


@functools.cache
def code_digest() -> str:
    """Digest of the code of the whole package, docstrings and comments aside: what pages are made by."""
    files = sorted(PACKAGE.rglob("*.py"))
    names = [
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        for path in files
    ]
    every = [(name, _module(name)[0]) for name in names if name != "asdlib.cli"]
    return hashlib.sha256(repr(every).encode()).hexdigest()[:16]
