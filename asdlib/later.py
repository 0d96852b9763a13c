"""Modules that are loaded when something of them is used: a command pays for what it needs, not for all that others need.

Loading torch, matplotlib and the notebook tools takes longer than most commands take to answer.
Used by: `asdlib.cli`, `asdlib.commands`, and wherever a library is heavy and seldom needed.
"""

from __future__ import annotations

import importlib


class OnFirstUse:
    """Stands for a module, by its whole name; its functions and classes are there as attributes, submodules are not."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str):
        return getattr(importlib.import_module(self._name), attribute)
