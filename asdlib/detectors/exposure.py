"""Outlier exposure: batches of target segments and as many segments of other machines.

Conventions
-----------
An epoch visits every target segment (and every synthetic one) once, in batches of half target, half
pseudo-anomalous segments. Pseudo-anomalies are normal training clips of all other machines of the store: a
machine is drawn uniformly, then one of its segments; with `near` a share comes from the machines that sound
most similar to the target. Supplemental clips (`data.supplemental`) count as one more machine: noise of any
machine, and clean sound of other machines. All draws of an epoch are made at its start from the epoch's
generator. Batches are then gathered by index, mixed, transformed to log-mels and labeled on the device
without host synchronization.

t is 1 for target segments and mixtures of them, 0 for pseudo-anomalies, and in between for a mixture of both
(`mixup.outliers`), which has no v and is excluded from the VAE terms.

Sources: report 4.2; METHOD 3.2, 3.4, 3.9, 4.3, 4.8, 4.9, 4.21, 6.3.  Notebook: 05_oevae
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from asdlib import augment, errors, features, schemas
from asdlib.data.index import attribute_keys
from asdlib.data.store import BATCH_SAMPLES, Store, machine_statistics, segment_starts, standardize
from asdlib.models import oevae

NEAREST = 0.25  # share of the other machines that count as near, at least one
LISTEN = 32  # clips per machine compared to find the nearest machines


@dataclass(frozen=True)
class Segments:
    """Segments of clips as tensors (n,) on the device: store row, first sample, standardization mean and std.

    whole : whether every segment lies within its clip
    """

    row: Tensor
    start: Tensor
    mean: Tensor
    std: Tensor
    whole: bool

    def __len__(self) -> int:
        """Number of segments."""
        return len(self.row)

    def __getitem__(self, index: Tensor) -> Segments:
        """Select segments by index (n,)."""
        return Segments(self.row[index], self.start[index], self.mean[index], self.std[index], self.whole)

    def distinct(self) -> Tensor:
        """Indices of segments that differ from their predecessor (short clips repeat the same segment)."""
        new = (self.row.diff() != 0) | (self.start.diff() != 0)
        return torch.cat([new.new_ones(1), new]).nonzero()[:, 0]

    def joined(self, other: Segments) -> Segments:
        """Concatenation with other segments."""
        pairs = [
            torch.cat([getattr(self, name), getattr(other, name)]) for name in ("row", "start", "mean", "std")
        ]
        return Segments(*pairs, self.whole and other.whole)


class SegmentFeatures:
    """Segments of store rows, and their log-mels as network input (OEVAEFeatures).

    train_rows : training clips of the target machine; with wave_norm = "machine" their mean and std
        standardize all segments, including pseudo-anomalies (METHOD 6.3)
    """

    def __init__(self, store: Store, device: torch.device, settings, train_rows: np.ndarray):
        self.settings, self.rate = settings, store.rate
        self.store = store.to(device)
        self.length = round(self.settings.segment_s * self.rate)
        self.fixed = machine_statistics(store, train_rows) if self.settings.wave_norm == "machine" else None

    def on(self, store: Store) -> SegmentFeatures:
        """Same features for another store, with unchanged standardization."""
        other = copy.copy(self)
        other.store = store.to(self.store.device)
        return other

    def items(self, rows: np.ndarray) -> Segments:
        """All segments of some clips, clip by clip."""
        samples, count = self.store.every["samples"].to_numpy()[rows], self.settings.segments
        starts = {size: segment_starts(size, count, self.length) for size in np.unique(samples)}
        start = np.concatenate([starts[size] for size in samples])
        mean, std = (
            torch.from_numpy(values).to(self.store.device).repeat_interleave(count)
            for values in self._statistics(rows, samples)
        )
        row, start = (
            torch.as_tensor(values, device=self.store.device) for values in (np.repeat(rows, count), start)
        )
        return Segments(row, start, mean, std, bool((samples >= self.length).all()))

    def _statistics(self, rows: np.ndarray, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and std of each clip, or of the machine."""
        mean, std = (np.full(len(rows), value, np.float32) for value in self.fixed or (0.0, 1.0))
        for size in np.unique(samples) if self.fixed is None else []:
            where = np.flatnonzero(samples == size)
            for part in np.array_split(where, -(-len(where) * int(size) // BATCH_SAMPLES)):
                found = torch.std_mean(self.store.audio(rows[part]), dim=1, correction=0)
                std[part], mean[part] = (values.cpu().numpy() for values in found)
        return mean, std

    def waves(self, items: Segments) -> Tensor:
        """Standardized waveforms, float32 (n, samples)."""
        return standardize(
            self.store.segments(items.row, items.start, self.length, whole=items.whole), items.mean, items.std
        )

    def log_mel(self, waves: Tensor) -> Tensor:
        """Log-mels of waveforms (n, samples), float32 (n, 1, mels, frames), dB."""
        s = self.settings
        shape = {
            "n_fft": s.n_fft,
            "win": s.win_length,
            "hop": s.hop_length,
            "n_mels": s.n_mels,
            "low_hz": s.low_hz,
            "high_hz": s.high_hz,
        }
        return features.log_mel(waves, **shape, rate=self.rate)

    @torch.inference_mode()
    def all_log_mels(self, items: Segments) -> Tensor:
        """Log-mels of many segments, computed in blocks."""
        step = max(1, BATCH_SAMPLES // self.length)
        return torch.cat(
            [
                self.log_mel(self.waves(items[part]))
                for part in torch.arange(len(items), device=items.row.device).split(step)
            ]
        )


def attribute_labels(table: pd.DataFrame, v: np.ndarray) -> np.ndarray:
    """Labels of the attribute head, float32 (clips, classes): 1 for each attribute value of a clip.

    table : rows of the target machine's training clips.  v : (clips,) their condition
    Columns are (attribute key, value) pairs; without attributes, the sections; with a single section, the
    values of v as a substitute (report 4.1).  Source: L_section, METHOD 6.3, 3.9
    """
    keys = attribute_keys(table)
    named = (
        pd.concat(
            [table[f"attr_{key}"].where(table[f"attr_{key}"] != "").rename(key) for key in keys], axis=1
        )
        if keys
        else None
    )
    for facts in (named, table[["section"]], pd.DataFrame({"v": v}, index=table.index).astype(str)):
        if facts is not None:
            columns = pd.get_dummies(facts, dtype=np.float32)
            if columns.shape[1] > 1:
                return columns.to_numpy()
    return np.zeros((len(table), 0), np.float32)


def nearest_machines(
    store: Store, device: torch.device, settings, machine: str, others: list[str]
) -> list[str]:
    """Machines with the mean log-mel (first training clips) closest to the target's, nearest first."""
    table = store.clips
    normal = (table["split"] == "train") & (table["label"] == "normal")
    centers = {}
    for name in [machine, *others]:
        rows = np.flatnonzero(normal & (table["machine"] == name))[:LISTEN]
        front = SegmentFeatures(store, device, settings, rows)
        centers[name] = front.all_log_mels(front.items(rows)).mean((0, 1, 3))
    gap = {name: float((centers[name] - centers[machine]).square().sum()) for name in others}
    return sorted(others, key=gap.get)[: max(1, round(NEAREST * len(others)))]


def draw_weights(machine: np.ndarray, near: list[str], share: float) -> np.ndarray:
    """Sampling probability of each pseudo-anomalous item, (n,): uniform over machines, then over their items.

    machine : (n,) machine of each item.  near, share : probability mass reserved for the near machines
    """
    names, code, counts = np.unique(machine, return_inverse=True, return_counts=True)
    is_near = np.isin(names, near)
    of_machine = (1 - share) / len(names) + share * is_near / max(is_near.sum(), 1)
    return of_machine[code] / counts[code]


@dataclass(frozen=True)
class Target:
    """Training items of the target machine, tensors (n,) on the device; synthetic items last.

    prior : float, k·v; conditioned : bool; labels : float (n, A); mels : synthetic log-mels or None
    """

    items: Segments
    prior: Tensor
    conditioned: Tensor
    labels: Tensor
    mels: Tensor | None = None

    def __len__(self) -> int:
        """Number of items, real and synthetic."""
        return len(self.items)

    def with_synthetic(self, blend: augment.MixPairs, mels: Tensor) -> Target:
        """Copy with items interpolated between pairs added (SMOTE in log-mel space)."""
        same = torch.zeros(len(self), dtype=torch.int64, device=self.prior.device)
        prior, conditioned = blend.condition(self.prior, self.conditioned, same)
        # provides store rows for the new items; its audio is not used
        parents = self.items[blend.first.to(same.device)]
        new = (
            torch.cat([self.prior, prior]),
            torch.cat([self.conditioned, conditioned]),
            torch.cat([self.labels, blend.of(self.labels)]),
        )
        return Target(self.items.joined(parents), *new, mels)


def same_segments(front: SegmentFeatures) -> str:
    """Notice for a store without clips longer than a segment, else ""."""
    s = front.settings
    if s.segments == 1 or front.store.clips["samples"].max() > front.length:
        return ""
    return (
        f"no clip is longer than a segment ({s.segment_s:g} s): its {s.segments} segments are identical, so"
        " only one is used"
    )


class OutlierExposureBatches:
    """Training batches of one target machine.

    others, weights : items of the other machines and their probabilities, float64 (m,)
    """

    def __init__(
        self, front: SegmentFeatures, settings, target: Target, others: Segments, weights: np.ndarray
    ):
        self.front, self.settings, self.target = front, settings, target
        self.others, n, device = others, len(target), target.prior.device
        self.items = target.items.joined(others)
        self.cumulative = torch.as_tensor(np.cumsum(weights / weights.sum()), device=device)
        pad = torch.zeros(len(others), device=device)
        self.t = torch.cat([torch.ones(n, device=device), pad])
        self.prior, self.conditioned = (
            torch.cat([target.prior, pad]),
            torch.cat([target.conditioned, pad.bool()]),
        )
        self.labels = torch.cat(
            [target.labels, torch.zeros(len(others), target.labels.shape[1], device=device)]
        )
        self.made = torch.zeros(len(self.items), dtype=torch.bool, device=device)
        if target.mels is not None:
            self.made[n - len(target.mels) : n] = True

    @property
    def half(self) -> int:
        """Target segments per batch."""
        return self.settings.batch // 2

    @property
    def steps(self) -> int:
        """Batches per epoch."""
        return -(-len(self.target) // self.half)

    def draw_others(self, n: int, generator: torch.Generator) -> Tensor:
        """Indices into `others` of n pseudo-anomalies, int64 (n,)."""
        dice = torch.rand(n, generator=generator, dtype=torch.float64, device=generator.device)
        return torch.searchsorted(self.cumulative, dice).clamp_(max=len(self.others) - 1)

    def plan(self, generator: torch.Generator) -> tuple[Tensor, augment.MixPairs]:
        """Item indices of one epoch (2n,) in batch order, target first in each batch, and their mixup pairs.

        Partners come from the same batch; without `mixup.outliers` targets mix only with targets.
        """
        n, device, mix = len(self.target), self.t.device, self.settings.mixup
        order = torch.randperm(n, generator=generator, device=device)
        drawn = n + self.draw_others(n, generator)
        batch = (torch.arange(n, device=device) // self.half).repeat(2)
        side = 2 * batch + (torch.arange(2 * n, device=device) >= n)
        place = torch.argsort(side, stable=True)
        index, groups = torch.cat([order, drawn])[place], (batch if mix.outliers else side)[place]
        blend = augment.draw_mixup(2 * n, prob=mix.prob, beta=mix.beta, generator=generator, groups=groups)
        # synthetic items have no waveform to mix
        plain = self.made[index[blend.first]] | self.made[index[blend.second]]
        return index, dataclasses.replace(blend, weight=torch.where(plain, 1.0, blend.weight))

    def batches(self, generator: torch.Generator, kl_weight=lambda: 1.0) -> Iterator[oevae.Batch]:
        """Batches of one epoch.  kl_weight : returns the KL weight of the next step"""
        index, blend = self.plan(generator)
        for low in range(0, len(index), 2 * self.half):
            part = slice(low, min(low + 2 * self.half, len(index)))
            mixed = augment.MixPairs(blend.first[part] - low, blend.second[part] - low, blend.weight[part])
            yield self.batch(index[part], mixed, kl_weight())

    def batch(self, index: Tensor, blend: augment.MixPairs, kl_weight=1.0) -> oevae.Batch:
        """Batch of items by index, with waveforms, t, prior and labels mixed consistently."""
        x = self.front.log_mel(blend.of(self.front.waves(self.items[index])))
        if self.target.mels is not None:
            first = len(self.target) - len(self.target.mels)
            synthetic = self.target.mels[(index - first).clamp(0, len(self.target.mels) - 1)]
            x = torch.where(self.made[index].reshape(-1, 1, 1, 1), synthetic, x)
        prior, conditioned = blend.condition(
            self.prior[index], self.conditioned[index], (self.t[index] == 0).long()
        )
        labels = blend.of(self.labels[index]) if self.labels.shape[1] else None
        return oevae.Batch(x, blend.of(self.t[index]), prior, conditioned, labels, kl_weight)


def target_items(
    front: SegmentFeatures, rows: np.ndarray, prior: np.ndarray, conditioned: np.ndarray, labels: np.ndarray
) -> Target:
    """Items of training clips of the target machine.

    prior, conditioned : (clips,) from `prior_means`.  labels : float32 (clips, A) from `attribute_labels`
    """
    items, count = front.items(rows), front.settings.segments
    spread = (
        torch.as_tensor(values, device=items.row.device).repeat_interleave(count, 0)
        for values in (prior, conditioned, labels)
    )
    used = items.distinct()
    return Target(items[used], *(values[used] for values in spread))


def prior_means(v: np.ndarray, k: float, center: float) -> tuple[np.ndarray, np.ndarray]:
    """Prior means k·(v − center), float32 (n,), and whether v is known, bool (n,).

    v : (n,), NaN where unknown.  center : 0 as printed, or the mean of v over the training clips
        (`condition.center`, METHOD 4.5)
    """
    known = np.isfinite(v)
    return np.where(known, k * (np.nan_to_num(v) - center), 0).astype(np.float32), known


def held_out(groups: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Held-out mask, bool (clips,): `share` of each group, at least one clip of two or more.

    groups : (clips,) domain or machine
    """
    out = np.zeros(len(groups), bool)
    for name in np.unique(groups) if share > 0 else []:
        where = np.flatnonzero(groups == name)
        out[rng.permutation(where)[: min(max(round(share * len(where)), 1), len(where) - 1)]] = True
    return out


def with_supplemental(store: Store, machine: str, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Store rows of all pseudo-anomalies of a machine, int (n,), and the machine each counts as, str (n,).

    others : int (clips,), rows of clips of other machines; supplemental clips are appended
    """
    table = store.supplemental
    rows = table.index[(table["content"] == "noise") | (table["machine"] != machine)] if len(table) else []
    names = [*store.clips["machine"].iloc[others], *[schemas.SUPPLEMENTAL] * len(rows)]
    return np.concatenate([others, rows]).astype(np.int64), np.array(names, dtype=object)


def check_machines(table: pd.DataFrame, rows: np.ndarray, others: np.ndarray) -> None:
    """Check that training clips are of one machine and pseudo-anomalies are normal clips of others.

    rows, others : int (clips,) of the store.  raises : errors.InputError
    """
    machine = table["machine"].iloc[rows].unique()
    if len(machine) != 1:
        raise errors.InputError(
            f"oevae: got training clips of {', '.join(machine)}, expected a single machine; train one model"
            " per machine"
        )
    if len(others) == 0:
        raise errors.InputError(
            f"oevae: {machine[0]} is the only machine with training clips, expected others as"
            " pseudo-anomalies; add recordings of other machines, or remove oevae from systems"
        )
    if (table["machine"].iloc[others] == machine[0]).any() or (table["label"].iloc[others] != "normal").any():
        raise errors.InputError(
            f"oevae: others contains clips of {machine[0]} or clips that are not normal; use"
            f" clips.train(without={machine[0]!r})"
        )
