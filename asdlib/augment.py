"""Augmentation: mixup, SMOTE and feature exchange.

Conventions
-----------
A `MixPairs` holds pairs of items and their weights. Everything that belongs to the items (waveform, feature,
soft label, condition v) is mixed by the same `MixPairs`, so labels stay consistent with the audio. Soft
labels are float (n, classes) with rows that sum to 1. Random numbers come from the generator passed in
(preferably on the CPU, as only a few numbers per item are drawn); mixing runs on the device of the data.

mixup : Zhang et al. 2018; waveforms of one batch, per item with a probability (report 2.1; METHOD 5.5, 6.3)
SMOTE : Chawla et al. 2002; items of one class, never two of one clip (report 2.2; METHOD 4.13)
FeatEx: Wilkinghoff 2024; branch embeddings exchanged between items (report 3.1; METHOD 5.6)

Notebook: 02_preprocessing (demonstrated), 04_classifier and 05_oevae (used).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy import special
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from asdlib import errors
from asdlib.settings import Settings, setting


class SmoteSettings(Settings):
    """Synthetic items of small domains and classes, interpolated between clips (report 2.2; METHOD 4.13)."""

    space: Literal["embed", "logmel"] = setting(
        "embed",
        "space of the neighbor search. embed: synthesizes references only; logmel: synthesizes training"
        " items and, for OEVAE, references from them (METHOD 3.2, 4.13)",
    )
    ratio: float = setting(
        0.2,
        "oversample the target domain to this fraction of the source domain's size (classifier: each class"
        " to this fraction of the machine's largest class); 0: off (METHOD 4.13)",
        0.0,
        1.0,
    )
    k: int = setting(2, "nearest neighbors to sample from, in other clips (METHOD 4.13)", 1, 100)


@dataclass(frozen=True)
class MixPairs:
    """New items as weighted pairs: weight · item[first] + (1 − weight) · item[second].

    first, second : int64 (m,), indices of the two parents
    weight : float32 (m,) in [0, 1]; exactly 1 for unmixed items
    """

    first: Tensor
    second: Tensor
    weight: Tensor

    def __len__(self) -> int:
        """Number of new items."""
        return len(self.first)

    def of(self, values):
        """Values of the new items, interpolated from those of their parents.

        values : Tensor or float ndarray (n, ...); returns : same type, (m, ...), on the same device
        """
        items = torch.as_tensor(values)
        first, second = self.first.to(items.device), self.second.to(items.device)
        weight = self.weight.to(items.device, items.dtype).reshape(-1, *[1] * (items.ndim - 1))
        mixed = torch.lerp(items[second], items[first], weight)  # exact for equal parents
        return mixed.numpy() if isinstance(values, np.ndarray) else mixed

    def condition(self, v: Tensor, valid: Tensor, machine: Tensor) -> tuple[Tensor, Tensor]:
        """Conditions v of the new items, valid only if both parents have one and belong to the same machine.

        v : float (n,); valid : bool (n,), whether the item has a v; machine : int (n,) machine codes
        returns : v (m,), 0 if not valid, and valid (m,).  Source: METHOD 4.3, 4.8
        """
        first, second = self.first.to(v.device), self.second.to(v.device)
        alone = self.weight.to(v.device) == 1
        both = valid[first] & valid[second] & (machine[first] == machine[second])
        valid_new = torch.where(alone, valid[first], both)
        return torch.where(valid_new, self.of(torch.where(valid, v, 0)), 0), valid_new

    def parents(self, clips: np.ndarray) -> np.ndarray:
        """Clips of both parents of each new item, (m, 2), for leave-clip-out exclusion."""
        clips = np.asarray(clips)
        return np.stack([clips[self.first.cpu().numpy()], clips[self.second.cpu().numpy()]], axis=1)


def draw_mixup(
    n: int,
    *,
    prob: float,
    generator: torch.Generator,
    beta: float = 1.0,
    partners: str = "permutation",
    groups: Tensor | None = None,
) -> MixPairs:
    """Draw mixup pairs: per item, with probability `prob`, a partner and a weight from Beta(beta, beta).

    n : items in the batch
    beta : 1 is the uniform distribution (METHOD 5.5); 0.2 keeps most mixtures near one parent (METHOD 6.3)
    partners : "permutation" (random; may be the item itself) or "reversed" (item i with n − 1 − i, as in the
        cited code)
    groups : int (n,); partners come from the same group, for example target segments or pseudo-anomalies
    raises : errors.InputError for values out of range
    """
    if not 0 <= prob <= 1 or not beta > 0:
        raise errors.InputError(
            f"mixup: got prob = {prob} and beta = {beta}, expected prob in [0, 1] and beta > 0"
        )
    device = generator.device
    chosen = torch.rand(n, generator=generator, device=device) < prob
    weight = torch.rand(n, generator=generator, device=device)
    if beta != 1:  # inverse transform sampling, since torch's Beta takes no generator
        weight = torch.from_numpy(special.betaincinv(beta, beta, weight.double().cpu().numpy())).to(weight)
    first = torch.arange(n, device=device)
    if errors.check_choice("choice of mixup partners", partners, ("permutation", "reversed")) == "reversed":
        if groups is not None:
            raise errors.InputError(
                "mixup: partners 'reversed' does not support groups; use partners 'permutation'"
            )
        second = first.flip(0)
    else:
        group = (
            torch.zeros(n, dtype=torch.int64, device=device)
            if groups is None
            else groups.to(device, torch.int64)
        )
        shuffled = torch.argsort(
            group + torch.rand(n, generator=generator, device=device, dtype=torch.float64)
        )
        second = torch.empty_like(first)
        second[torch.argsort(group, stable=True)] = shuffled  # pairs sorted and shuffled items group by group
    return MixPairs(first, torch.where(chosen, second, first), torch.where(chosen, weight, 1.0))


def mixup(
    x: Tensor, y: Tensor, *, prob: float, generator: torch.Generator, beta: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Mixup of a batch and its soft labels, with pairs from `draw_mixup`.

    x : float (n, ...), waveforms or features; y : float (n, classes)
    returns : both, same shapes.  Source: METHOD 5.5.  For conditions v use `draw_mixup` and
        `MixPairs.condition`.
    raises : errors.InputError for x and y of different lengths, or values out of range
    """
    if len(x) != len(y):
        raise errors.InputError(f"mixup: got {len(x)} items and {len(y)} labels, expected one label per item")
    blend = draw_mixup(len(x), prob=prob, generator=generator, beta=beta)
    return blend.of(x), blend.of(y)


def featex(
    branches: Sequence[Tensor], y: Tensor, *, prob: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Feature exchange: with probability `prob` an item takes all branches but the first from other items.

    branches : B >= 2 embeddings (n, dim_b) of the same items; the first is kept (cited code: spectrum)
    y : float (n, C), soft labels
    returns : concatenated embedding (n, sum of dim_b) and labels (n, (B + 1)·C), where row i is
        kept      [y_i, 0, ..., 0]
        exchanged [0, y_i/B, y_perm2(i)/B, ..., y_permB(i)/B], with a new permutation per branch

    Source: METHOD 5.6 (general form).  Notebook: 04_classifier
    raises : errors.InputError for fewer than two branches, or y of another length
    """
    if len(branches) < 2:
        raise errors.InputError(
            f"FeatEx needs at least 2 branches, got {len(branches)}; add a branch or set"
            " classifier.featex_prob = 0"
        )
    n, count = len(y), len(branches)
    device = generator.device
    exchanged = (torch.rand(n, generator=generator, device=device) < prob).to(y.device).unsqueeze(1)
    embedding, labels = [branches[0]], [torch.where(exchanged, 0, y), torch.where(exchanged, y / count, 0)]
    for branch in branches[1:]:
        order = torch.randperm(n, generator=generator, device=device).to(y.device)
        embedding.append(torch.where(exchanged, branch[order], branch))
        labels.append(torch.where(exchanged, y[order] / count, 0))
    return torch.cat(embedding, 1), torch.cat(labels, 1)


def smote(x, classes: Sequence, clips: Sequence, *, ratio: float, k: int, seed: int) -> MixPairs:
    """SMOTE between different clips: oversample every class to ratio × the size of the largest class.

    x : Tensor or ndarray (n, ...), space of the neighbor search (embedding or log-mel; flattened)
    classes : (n,) class of each item, usually its domain, so that the target domain grows
    clips : (n,) clip of each item; two segments of one clip are never interpolated
    ratio : for example, 0.2 extends 10 target items next to 990 source items to 198; 0 adds nothing
    k : number of nearest neighbors to choose from, in other clips of the same class
    returns : MixPairs of the new items only; `MixPairs.of(x)` gives their vectors
    raises : errors.InputError if such a class has a single clip, or fewer than k items in other clips

    The parent with the larger weight comes first. Draws follow imbalanced-learn: with one item per clip the
    result equals that library's on x.  Source: METHOD 4.13, 5.8.
    """
    classes, clips = np.asarray(classes), np.asarray(clips)
    flat = torch.as_tensor(x).flatten(1).cpu().numpy()
    if not len(flat) == len(classes) == len(clips):
        raise errors.InputError(
            f"SMOTE: got {len(flat)} items, {len(classes)} class labels and {len(clips)} clip names,"
            " expected equal lengths"
        )
    if not 0 <= ratio <= 1 or k < 1:
        raise errors.InputError(
            f"SMOTE: got ratio = {ratio} and k = {k}, expected ratio in [0, 1] and k >= 1"
        )
    names, code, counts = np.unique(classes, return_inverse=True, return_counts=True)
    wanted = np.maximum(counts, (ratio * counts.max(initial=0)).astype(int))
    first, second, weight = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, np.float32)]
    for c in np.flatnonzero(wanted > counts):
        items, draws, count = np.flatnonzero(code == c), np.random.RandomState(seed), wanted[c] - counts[c]
        near = items[_other_clips(flat[items], clips[items], k, names[c])]
        row, column = np.divmod(draws.randint(near.size, size=count), k)
        one, other, step = items[row], near[row, column], draws.uniform(size=count)
        first.append(np.where(step > 0.5, other, one))
        second.append(np.where(step > 0.5, one, other))
        weight.append(np.maximum(step, 1 - step).astype(np.float32))
    return MixPairs(*(torch.from_numpy(np.concatenate(parts)) for parts in (first, second, weight)))


def _other_clips(x: np.ndarray, clips: np.ndarray, k: int, name) -> np.ndarray:
    """Indices of each item's k nearest items of other clips, nearest first, (n, k)."""
    _, code, sizes = np.unique(clips, return_inverse=True, return_counts=True)
    if len(sizes) < 2:
        raise errors.InputError(
            f"SMOTE of {name}: all {len(x)} items are from one clip, expected at least 2 clips; set"
            " smote.ratio = 0"
        )
    most = len(x) - int(sizes.max())
    if k > most:
        raise errors.InputError(
            f"SMOTE of {name}: got k = {k}, but an item has only {most} neighbors in other clips; set"
            f" smote.k to at most {most}"
        )
    # holds k items of other clips even if all of the own clip come first
    reach = min(len(x), k + int(sizes.max()))
    found = NearestNeighbors(n_neighbors=reach).fit(x).kneighbors(x, return_distance=False)
    strange = code[found] != code[:, None]
    order = np.argsort(~strange, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(found, order, axis=1)
