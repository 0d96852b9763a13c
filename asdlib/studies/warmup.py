"""What the fork server of kernels does once, so that no kernel has to. Notebooks: none (`forks.warm`)"""

import sys

sys.modules.setdefault("rfc3987_syntax", None)  # as `cli.command` does

import torch._dynamo  # noqa: E402, F401  which torch imports with the first optimizer, 2 s

from asdlib import io  # noqa: E402

io.code_digest()  # parses every module, 2 s
