"""Tolerant reading of csv lists saved from text editors, Excel or programs.

Accepts UTF-8 (with or without BOM) or UTF-16 with BOM; comma, semicolon or tab as separator, the most
frequent in the header or as declared by a first line `sep=;`; any line endings. Cells are stripped text.

Source: METHOD 8.6.  Used by: `asdlib.data.index`, `asdlib.data.importer`.
"""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

MOST_BYTES, LONGEST_HEADER = 2**26, 2**16  # limits for a list


def read(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Header and rows of a list, without blank lines.

    Returns
    -------
    (header cells; line number and cells of every row)

    Raises
    ------
    OSError, or ValueError with the reason
    """
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(
            f"{path.stat().st_size} bytes, expected a list of at most {MOST_BYTES} bytes; replace or remove"
            " it"
        )
    rows = _rows(_text(path.read_bytes()))
    if not rows:
        raise ValueError("empty, expected a header and a row per recording")
    return rows[0][1], rows[1:]


def columns(path: Path) -> set[str]:
    """Lower-case column names of a possible list; empty if it cannot be read."""
    try:
        with open(path, "rb") as file:
            lines = _text(file.read(LONGEST_HEADER), "ignore").split("\n")[:3]
        return {name.lower() for name in _rows("\n".join(lines))[0][1]}
    except (OSError, ValueError, IndexError):
        return set()


def _rows(text: str) -> list[tuple[int, list[str]]]:
    first = next((line for line in text.split("\n") if line.strip()), "")
    named = re.fullmatch(r'"?sep=(.)"?', first)  # written by Excel
    if named:
        first = text.partition(first)[2].lstrip("\n").partition("\n")[0]
    reader = csv.reader(
        io.StringIO(text),
        delimiter=named[1] if named else max(",;\t", key=first.count),
        skipinitialspace=True,
    )
    try:
        rows = [
            (reader.line_num, [cell.strip() for cell in cells])
            for cells in reader
            if any(cell.strip() for cell in cells)
        ]
    except csv.Error as error:
        raise ValueError(f"{error}, expected a table of short strings; fix it") from error
    open_quote = next((number for number, cells in rows if any("\n" in cell for cell in cells)), None)
    if open_quote is not None:
        raise ValueError(
            f"a quotation mark opened before line {open_quote} is not closed on the same line; fix or remove"
            " it"
        )
    return rows[bool(named) :]


def _text(raw: bytes, errors: str = "strict") -> str:
    try:
        text = raw.decode("utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig", errors)
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise ValueError("not a valid UTF-8 text file; save it again as UTF-8")
    return re.sub(r"\r\n?", "\n", text)
