"""What forks of the fault tests share: imported, read and made once."""

import importlib
import pkgutil
import tempfile
from pathlib import Path

import commands  # noqa: F401
import nbformat
import torch._dynamo  # noqa: F401  # which torch imports with the first optimizer

import asdlib
from asdlib import io
from asdlib.studies import report

for _module in pkgutil.walk_packages(asdlib.__path__, "asdlib."):
    importlib.import_module(_module.name)
io.code_digest()
with tempfile.TemporaryDirectory() as _folder:  # templates are compiled with the first page
    _book = Path(_folder) / "empty.ipynb"
    nbformat.write(nbformat.v4.new_notebook(), _book)
    report.html(_book, _book.with_suffix(".html"), {}, "empty")
