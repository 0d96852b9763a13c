"""Errors for bad input, and helpers that word them.

An `InputError` states what was found, what was expected and what to do. The command line prints it as one
sentence, without a traceback, and exits with status 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class InputError(ValueError):
    """Bad input, described in one actionable sentence."""


def closest(word: str, known: Iterable[str]) -> str | None:
    """Known word closest to a misspelled one, or None."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return found[0] if found else None


def suggest(word: str, known: Sequence[str]) -> str:
    """'; did you mean X?' or '; known: A, B', to end an error message."""
    close = closest(word, known)
    return f"; did you mean {close}?" if close else f"; known: {', '.join(known) or 'none'}"


def check_choice(what: str, word: str, known: Sequence[str]) -> str:
    """Return `word` if it is known.

    raises : InputError with the closest known word
    """
    if word not in known:
        raise InputError(f"unknown {what} {word!r}{suggest(word, known)}")
    return word
