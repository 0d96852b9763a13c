"""In which precision the large networks are trained: as set, or as a rule says from what the machine has.

Conventions
-----------
`float32` and `bf16` (bfloat16 autocast; weights, optimizer and all scores stay float32) are both computed
channels_last (`python -m tests.bench layouts`). Networks that are not in NETWORKS are trained in float32.

`auto` is bf16 where the device multiplies bfloat16 matrices in hardware, else float32: the same machine
always trains alike. What it comes to is part of the digest of what was trained with it. A runner decides it
for all its jobs, on whatever machine they run (`Run.auto`).

Source: METHOD 8.2. Notebooks: 04_classifier, 05_oevae.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from asdlib.studies import config

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asdlib.studies import config

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
NETWORKS = ("oevae", "classifier")


def auto(device: torch.device) -> str:
    """`bf16` if a device of this machine has units for it, else `float32`."""
    if device.type == "cuda":
        has = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        found = torch.cpu.get_capabilities()
        has = found.get("avx512_bf16") or found.get("amx_bf16")
    return "bf16" if has else "float32"


def of(name: str, cfg: config.StudySettings, device: torch.device, ordered: str = "") -> str:
    """`float32` or `bf16` for the training of detector `name`.

    ordered : what `auto` is where another machine decided it; empty: what it is on this one.  Notebooks:
        04_classifier, 05_oevae
    """
    if name not in NETWORKS:
        return "float32"
    return cfg.precision if cfg.precision != "auto" else ordered or auto(device)
