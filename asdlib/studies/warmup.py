"""What the fork server of kernels does once, so that no kernel has to. Notebooks: none (`forks.warm`)"""

import torch._dynamo  # noqa: F401  which torch imports with the first optimizer, 2 s

from asdlib import io

io.code_digest()  # parses every module, 2 s
