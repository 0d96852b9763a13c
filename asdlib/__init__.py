"""asdlib: the instrument behind the notebooks. Each module is one stage of the line; see README.md."""

__version__ = "0.1.0"
