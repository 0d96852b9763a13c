"""Training precision of the large networks: as set, or derived from the hardware.

Conventions
-----------
`float32` and `bf16` (bfloat16 autocast; weights, optimizer and scores stay float32) both use channels_last
(`python -m tests.bench layouts`). Networks not in NETWORKS are trained in float32.

`auto` means bf16 on devices with hardware bfloat16 matrix multiplication, else float32. The resolved value is
part of the digest of the trained result. A runner resolves it once for all its jobs, on any machine
(`Run.auto`).

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
    """`bf16` if the device has hardware support for it, else `float32`."""
    if device.type == "cuda":
        has = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        found = torch.cpu.get_capabilities()
        has = found.get("avx512_bf16") or found.get("amx_bf16")
    return "bf16" if has else "float32"


def of(name: str, cfg: config.StudySettings, device: torch.device, ordered: str = "") -> str:
    """`float32` or `bf16` for training detector `name`.

    ordered : value of `auto` as resolved on another machine; empty: resolve here.  Notebooks: 04_classifier,
        05_oevae
    """
    if name not in NETWORKS:
        return "float32"
    return cfg.precision if cfg.precision != "auto" else ordered or auto(device)
