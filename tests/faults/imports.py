"""What forks of the fault tests share: imported, and read, once."""

import importlib
import pkgutil

import commands  # noqa: F401

import asdlib
from asdlib import io

for _module in pkgutil.walk_packages(asdlib.__path__, "asdlib."):
    importlib.import_module(_module.name)
io.code_digest()
