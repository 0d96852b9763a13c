"""asdlib: the instrument behind the notebooks. Each module is one stage of the line; see README.md."""

import sys

__version__ = "0.1.0"

# jsonschema, below nbformat, would spend a second of every process on a grammar of web addresses, which no notebook format needs.
sys.modules.setdefault("rfc3987_syntax", None)
