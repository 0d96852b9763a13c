"""Tables and tensors read back: what stands in a file of ours is checked as if a stranger had written it.

Task
----
A file that a crash, a disk or a person changed is refused in one sentence, whatever the library below says of it, and before it takes the
memory that it asks for. Nothing here can run code: tables are parquet, tensors are safetensors, and neither holds objects of Python.

Source: METHOD 8.6 (integrity, hostile input). Notebooks: all (through `study`)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet
from safetensors.numpy import load_file

from asdlib import errors

MOST_ROWS, MOST_BYTES = 2**22, 2**30  # of a table, as it says of itself
AGAIN = "delete the folder it lies in and give the same command again"


@contextlib.contextmanager
def refused(path: Path, what: str) -> Iterator[None]:
    """Whatever goes wrong inside this block becomes the refusal that `path` does not hold `what`."""
    try:
        yield
    except errors.Refusal:
        raise
    except Exception as error:  # parquet, safetensors and torch raise many kinds for torn and foreign files
        raise errors.Refusal(f"{path}: does not hold {what} ({type(error).__name__}); {AGAIN}") from error


def table(path: Path, columns: Sequence[str] = ()) -> pd.DataFrame:
    """A parquet table that has at least these columns, each once.

    raises : errors.Refusal for a file that is no such table, or that claims more than 4 million rows or 1 GB
    """
    with refused(path, "a table"):
        with pyarrow.parquet.ParquetFile(path) as file:
            groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
            rows, size = max(file.metadata.num_rows, *(g.num_rows for g in groups), 0), sum(group.total_byte_size for group in groups)
        if not 0 <= rows <= MOST_ROWS or size > MOST_BYTES:
            raise errors.Refusal(f"{path}: claims {rows} rows and {size} bytes, expected at most {MOST_ROWS} and {MOST_BYTES}; {AGAIN}")
        pyarrow.parquet.read_table(path).validate(full=True)  # pandas would find texts that are none when they are used, and not here
        found = pd.read_parquet(path)
        missing = [name for name in columns if name not in found.columns]
        if missing or not found.columns.is_unique:
            raise errors.Refusal(f"{path}: lacks the columns {', '.join(missing) or 'under names of their own'}; {AGAIN}")
    return found


def scores(path: Path) -> pd.DataFrame:
    """A score table (`errors.score_table`)."""
    return errors.score_table(table(path, errors.SCORE_COLUMNS))


def tensors(path: Path, dimensions: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Tensors of a safetensors file.

    dimensions : the tensors that must be there, with their number of dimensions; those of numbers must be finite
    raises : errors.Refusal for a file that does not hold them
    """
    with refused(path, "the tensors of this detector"):
        found = load_file(path)
        for name, number in dimensions.items():
            if found[name].ndim != number:
                raise errors.Refusal(f"{path}: {name} has the shape {found[name].shape}, expected {number} dimensions; {AGAIN}")
            if found[name].dtype.kind == "f" and not np.isfinite(found[name]).all():
                raise errors.Refusal(f"{path}: {name} has NaN or infinite values, expected finite ones; {AGAIN}")
    return found
