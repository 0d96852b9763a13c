"""Imports that the fork server makes once for all kernels.  Used by: `forks.warm`"""

import sys

sys.modules.setdefault("rfc3987_syntax", None)  # as in `cli.command`

import torch._dynamo  # noqa: E402, F401  imported by the first optimizer; takes 2 s

from asdlib import io  # noqa: E402

io.code_digest()  # cached; parses every module, 2 s
