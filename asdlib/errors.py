"""What each stage may assume. Every refusal is worded here or raised as a `InputError`: what came, what was
expected, what to do. The command line prints a `InputError` as one sentence and exits with 2; it is never a
traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class InputError(ValueError):
    """Bad input, in one sentence a user can act on."""


def closest(word: str, known: Iterable[str]) -> str | None:
    """The known word nearest to a misspelt one, or None."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return found[0] if found else None


def suggest(word: str, known: Sequence[str]) -> str:
    """'; did you mean X?' or '; known: A, B' for the end of a refusal."""
    close = closest(word, known)
    return f"; did you mean {close}?" if close else f"; known: {', '.join(known) or 'none'}"


def check_choice(what: str, word: str, known: Sequence[str]) -> str:
    """The word itself, if it is one of the known ones; otherwise a refusal that suggests the nearest."""
    if word not in known:
        raise InputError(f"unknown {what} {word!r}{suggest(word, known)}")
    return word
