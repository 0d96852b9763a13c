"""File I/O: atomic writes, locks, validated reads of tables and tensors, and code digests.

Files are validated on reading as if untrusted: damaged or modified files raise an `errors.InputError`,
whatever the library below reports, and before claimed sizes are allocated. No file can execute code: tables
are parquet, tensors safetensors, neither of which stores Python objects.

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
MOST_ROWS, MOST_BYTES = 2**22, 2**30  # limits on the size a table claims
AGAIN = "delete the containing folder and run the same command again"


@contextlib.contextmanager
def refused(path: Path, what: str) -> Iterator[None]:
    """Convert any exception in the block into the error that `path` does not hold `what`.

    raises : errors.InputError
    """
    try:
        yield
    except errors.InputError:
        raise
    except Exception as error:  # parquet, safetensors and torch raise many types for bad files
        raise errors.InputError(
            f"{path}: does not contain {what} ({type(error).__name__}); {AGAIN}"
        ) from error


def table(path: Path, columns: Sequence[str] = ()) -> pd.DataFrame:
    """Read a parquet table that has at least these columns, each once.

    raises : errors.InputError for other files, or one that claims more than 4 million rows or 1 GB
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
                f"{path}: the header declares {rows} rows and {size} bytes, expected at most {MOST_ROWS} and"
                f" {MOST_BYTES}; {AGAIN}"
            )
        pyarrow.parquet.read_table(path).validate(full=True)  # pandas validates strings only on use
        found = pd.read_parquet(path)
        missing = [name for name in columns if name not in found.columns]
        if missing or not found.columns.is_unique:
            raise errors.InputError(
                f"{path}: lacks the columns {', '.join(missing) or 'under names of their own'}; {AGAIN}"
            )
    return found


def scores(path: Path) -> pd.DataFrame:
    """Read a score table (`schemas.score_table`)."""
    return schemas.score_table(table(path, schemas.SCORE_COLUMNS))


def tensors(path: Path, dimensions: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Read the tensors of a safetensors file.

    dimensions : required tensors and their number of dimensions; floating-point ones must be finite
    raises : errors.InputError for a file that does not contain them
    """
    with refused(path, "the tensors of this detector"):
        found = load_file(path)
        for name, number in dimensions.items():
            if found[name].ndim != number:
                raise errors.InputError(
                    f"{path}: tensor {name} has shape {found[name].shape}, expected {number} dimensions;"
                    f" {AGAIN}"
                )
            if found[name].dtype.kind == "f" and not np.isfinite(found[name]).all():
                raise errors.InputError(
                    f"{path}: tensor {name} contains NaN or infinite values, expected finite values; {AGAIN}"
                )
    return found


HOLDS = "ASDLIB_HOLDS"  # environment variable of a job's kernel: study folder locked by its runner


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary file that replaces `path` if the block succeeds and is removed otherwise."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a small text file atomically."""
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8")


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as parquet or csv (by the suffix of the path), atomically."""
    with atomic_write(path) as part:
        table.to_csv(part, index=False) if path.suffix == ".csv" else table.to_parquet(part, index=False)


@functools.cache
def _content(path: Path, size: int, modified: int) -> str:
    """Digest of a file's content, cached per process and file state."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]


def content(path: Path) -> list:
    """[size, content digest] of a file, as stored in DONE."""
    stat = path.stat()
    return [stat.st_size, _content(path, stat.st_size, stat.st_mtime_ns)]


@contextlib.contextmanager
def wrap_os_errors(folder: Path) -> Iterator[None]:
    """Convert OSErrors inside the block (disk full, permissions) into one sentence.

    raises : errors.InputError in place of an OSError
    """
    try:
        yield
    except OSError as error:
        what = f"{error.filename or folder}: {error.strerror or error}"
        raise errors.InputError(
            f"{what}; free up disk space or choose a writable folder with --home"
        ) from error


# without flock: some NFS, Lustre
NO_FLOCK = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@functools.cache
def _lock(folder: Path) -> filelock.BaseFileLock:
    """Lock of a folder, shared within this process; without flock an exclusive file, with a notice."""
    path = folder / ".lock"
    with open(path, "a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in NO_FLOCK:
                lock_file = path.with_suffix(".exclusive")
                print(
                    f"{folder}: this file system does not support flock ({error.strerror}); using the lock"
                    f" file {lock_file} instead",
                    file=sys.stderr,
                )
                return filelock.SoftFileLock(lock_file, thread_local=False, is_singleton=True)
    return filelock.FileLock(path, thread_local=False, is_singleton=True)


@contextlib.contextmanager
def locked(folder: Path, what: str = "run of this study", wait: bool = False) -> Iterator[None]:
    """Hold a folder's lock for this process and the kernels that it starts.

    wait : wait for the lock instead of raising
    raises : errors.InputError if another process holds it
    """
    if os.environ.get(HOLDS) == str(folder):
        yield
        return
    with wrap_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = _lock(folder)
        try:
            lock.acquire(timeout=-1 if wait else 0)  # reentrant within this process
        except filelock.Timeout as error:
            or_else = f", or delete {lock.lock_file} if none is running" * isinstance(
                lock, filelock.SoftFileLock
            )
            raise errors.InputError(
                f"{folder}: another {what} is in progress; wait for it or stop it{or_else}"
            ) from error
    try:
        yield
    finally:
        lock.release()


# ---------------------------------------------------------------- code

# Modules whose code does not affect results: file I/O, validation, display, execution. Finding and decoding
# recordings is covered by the sample digests and the clip table.
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
    """Digest of a module's syntax tree without docstrings, and the package modules it imports."""
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
    """Code digests of some modules and all their imports, except NEUTRAL, by module.

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
    """Digest of the package's code without docstrings and comments, to identify what produced a page."""
    files = sorted(PACKAGE.rglob("*.py"))
    names = [
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        for path in files
    ]
    every = [(name, _module(name)[0]) for name in names if name != "asdlib.cli"]
    return hashlib.sha256(repr(every).encode()).hexdigest()[:16]
