"""Pooling of network feature maps into one vector per item.

Conventions
-----------
A feature map is (channels, frequency, time). Standard deviations are population ones (divisor n), hence 0 for
a single frame or bin.

| name       | vector                                                             | length          |
|------------|--------------------------------------------------------------------|-----------------|
| `mean`     | mean over frequency and time                                       | channels        |
| `mean_std` | mean; std over time of the frequency mean; std over frequency of the time mean | 3 · channels |
| `bands`    | mean and std over time of the mean over each of 8 frequency bands  | 2 · 8 · channels |

Source: METHOD 3.10. Notebook: 05_oevae
"""

from __future__ import annotations

import torch
from torch import Tensor

from asdlib import errors

BANDS = 8  # at most; maps with fewer bins get one band per bin


def mean(maps: Tensor) -> Tensor:
    """Mean over frequency and time, (n, channels).  maps : float (n, channels, frequency, time)"""
    return maps.mean((2, 3))


def mean_std(maps: Tensor) -> Tensor:
    """Mean, std over time and std over frequency, (n, 3 · channels).

    maps : float (n, channels, frequency, time). Each std is that of the mean over the other axis.
    """
    over_time, over_frequency = maps.mean(2), maps.mean(3)
    return torch.cat(
        [maps.mean((2, 3)), over_time.std(2, correction=0), over_frequency.std(2, correction=0)], 1
    )


def bands(maps: Tensor) -> Tensor:
    """Mean and std over time per frequency band, (n, 2 · bands · channels).

    maps : float (n, channels, frequency, time), split into min(8, frequency) bands of nearly equal width
    """
    parts = maps.tensor_split(min(BANDS, maps.shape[2]), 2)
    course = torch.cat([part.mean(2) for part in parts], 1)  # (n, bands · channels, time)
    return torch.cat([course.mean(2), course.std(2, correction=0)], 1)


POOLING = {"mean": mean, "mean_std": mean_std, "bands": bands}


def pool(maps: list[Tensor], name: str) -> Tensor:
    """Pooled vectors of one or several layers, concatenated, float (n, dim).

    Parameters
    ----------
    maps : per layer, float (n, channels, frequency, time)
    name : one of POOLING

    Raises
    ------
    errors.InputError for an unknown name or a map that is not 4-dimensional
    """
    pooled = POOLING[errors.check_choice("pooling", name, list(POOLING))]
    for one in maps:
        if one.ndim != 4:
            raise errors.InputError(
                f"feature map has shape {tuple(one.shape)}, expected (n, channels, frequency, time)"
            )
    return torch.cat([pooled(one) for one in maps], 1)
