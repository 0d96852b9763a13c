"""Explanations of a clip's score: contributions over time, frequency and classifier branches.

Conventions
-----------
Every function takes a trained or loaded detector and store rows, and returns arrays; `embedding_plots.why`
draws them. Higher scores are more anomalous, and so are all values here, except that a gradient (`slope`) may
have either sign. Time in s, levels in dB.

| function         | detector    | returns                                                           |
|------------------|-------------|-------------------------------------------------------------------|
| `segment_scores` | OEVAE       | α and β of each segment                                           |
| `slope`          | OEVAE       | gradient of α or β with respect to the log-mel, per dB            |
| `residual_map`   | autoencoder | squared residual over time and frequency                          |
| `branch_shares`  | classifier  | share of each branch in the distance to the nearest reference     |

These are not causes: a gradient gives the effect of a small change, a residual shows where the reconstruction
failed. A training clip is compared with other clips only, but the networks were trained on it.

Sources: METHOD 3.4-3.6; report 3.1, 3.2.  Notebook: 06_embeddings
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch

from asdlib import errors, features
from asdlib.data import store as stores
from asdlib.detectors.autoencoder import Autoencoder
from asdlib.detectors.classifier import Classifier
from asdlib.detectors.oevae import OEVAE
from asdlib.models import losses
from asdlib.models.autoencoder import Vectors
from asdlib.models.oevae import OEVAEFeatureSettings
from asdlib.scoring.distances import density_references

USUAL_CLIPS = 64  # evenly spaced training clips whose mean is the usual level of a band


class Slope(NamedTuple):
    """Gradient of a score with respect to the log-mel; axes (clips, segments, mels, frames), float32.

    log_mel : dB, of the standardized waveform.  per_db : change of the segment's score per dB in that cell
    usual : (mels,) mean level of each band over training clips, dB
    """

    log_mel: np.ndarray
    per_db: np.ndarray
    usual: np.ndarray

    @property
    def raised(self) -> np.ndarray:
        """First-order contribution of each cell to the segment's score, gradient · (level − usual level)."""
        return self.per_db * (self.log_mel - self.usual[:, None])


class Map(NamedTuple):
    """Values over frequency and time: (bands, frames).  hz : (bands,).  hop_s : s between frames, from 0 s"""

    values: np.ndarray
    hz: np.ndarray
    hop_s: float


class Why(NamedTuple):
    """Explanation of one clip; parts whose detector is missing are None.

    level : log-mel of the whole clip, dB.  residual : of the autoencoder, dB².  raised : first-order
        contribution of each cell to `of` (alpha or beta)
    starts_s, segment_s, segments : start of each segment, their length, and their α and β
    branches : name -> share of the squared distance
    """

    row: int
    seconds: float
    level: Map
    residual: Map | None
    raised: Map | None
    of: str
    starts_s: np.ndarray | None
    segment_s: float
    segments: dict[str, np.ndarray] | None
    branches: dict[str, float] | None


def _rows(rows) -> np.ndarray:
    rows = np.atleast_1d(np.asarray(rows, dtype=np.int64))
    if not len(rows):
        raise errors.InputError("no clip to explain was given; expected at least one store row")
    return rows


def segment_starts(detector: OEVAE, row: int) -> np.ndarray:
    """Return the start of each segment of a clip, s, (segments,)."""
    front = detector.front
    return (
        stores.segment_starts(
            int(front.store.clips["samples"].iloc[row]), front.settings.segments, front.length
        )
        / front.rate
    )


def segment_scores(detector: OEVAE, rows) -> dict[str, np.ndarray]:
    """Return `alpha` and `beta` of each segment, float64 (clips, segments); row means are the components.

    Source: report 4.2.  Notebook: 06_embeddings
    """
    found = detector.segment_scores(_rows(rows))
    return {name: found[name] for name in ("alpha", "beta")}


def slope(detector: OEVAE, rows, of: Literal["alpha", "beta"] = "beta") -> Slope:
    """Return the gradient of the segment scores α (in the detector's alpha_mode) or β.

    It is taken with respect to the log-mel input of the network. The references of β are fixed; those made
    from the clip itself are excluded.  Source: report 3.2, Eq. 5.  Notebook: 06_embeddings
    raises : errors.InputError if `of` is neither alpha nor beta
    """
    errors.check_choice("component of a slope", of, ["alpha", "beta"])
    rows, front, net = _rows(rows), detector.front, detector.net
    items, parts = front.items(rows), []
    net.eval()
    for part in torch.arange(len(items)).split(front.settings.segments):
        x = front.log_mel(front.waves(items[part.to(items.row.device)])).detach().clone().requires_grad_(True)
        if of == "alpha":
            vae = detector.latent(x)  # not net(x), which scales this gradient by λ for training
            score = losses.alpha_scores(vae, domain=net.vae.domain)[detector.settings.alpha_mode]
        else:
            row = items.row[part.to(items.row.device)].cpu().numpy()  # of one clip
            [group] = detector.group_of(detector.store.clips.iloc[row[:1]])
            score = _beta(detector, detector.vectors(x), row, group)
        (gradient,) = torch.autograd.grad(score.sum(), x)  # a segment's score depends only on its own cells
        parts.append((x.detach()[:, 0].cpu().numpy(), gradient[:, 0].cpu().numpy()))
    shape = (len(rows), front.settings.segments)
    log_mel, per_db = (np.concatenate(values).reshape(*shape, *values[0].shape[1:]) for values in zip(*parts))
    return Slope(log_mel, per_db, _usual(getattr(detector, "home", detector)))


def _beta(detector: OEVAE, h: torch.Tensor, own: np.ndarray, group: str) -> torch.Tensor:
    """Return β of each segment of one clip, differentiable; local density gives all segments the same value.

    h : (n, dim), vectors of the segments.  own : (n,) store row of their clip.  group : its machine or
        section
    """
    if detector.settings.backend == "local_density":
        near, place = detector.densities[group], detector.place(own[0], group)
        if place >= 0:
            near = density_references(np.delete(detector.profiles[detector.group == group], place, 0))
        x, deviation, density = (torch.as_tensor(values, device=h.device) for values in near)
        ratio = (h.double().mean(0) / deviation - x).square().sum(1).clamp_min(1e-12).sqrt() / density
        return ratio.topk(2, largest=False).values.mean().expand(len(h))
    k, found = detector.settings.neighbors, []
    for chosen in detector.groups(k, group):
        references = torch.as_tensor(detector.references.h[chosen], device=h.device)
        excluded = (detector.references.parents[chosen][None] == own[:, None, None]).any(2)
        square = (h[:, None, :] - references[None]).square().sum(2)
        square = square.masked_fill(torch.as_tensor(excluded, device=h.device), torch.inf)
        found.append(square.topk(k, largest=False).values.clamp_min(1e-12).sqrt().mean(1))
    return torch.stack(found).amin(0)


@torch.inference_mode()
def _usual(detector: OEVAE) -> np.ndarray:
    """Return the mean level of each band over training clips, dB, (mels,)."""
    rows = detector.train_rows[:: max(len(detector.train_rows) // USUAL_CLIPS, 1)]
    return detector.front.all_log_mels(detector.front.items(rows)).mean((0, 1, 3)).cpu().numpy()


def along_clip(maps: np.ndarray, starts_s: np.ndarray, hop_s: float, seconds: float) -> np.ndarray:
    """Overlap-add the maps of a clip's segments and divide by their number, as the score is their mean.

    maps : (segments, mels, frames).  starts_s : (segments,).  hop_s : between frames.  seconds : of the clip
    returns : (mels, frames of the clip); its sum equals the mean of the sums over segments
    """
    out = np.zeros((maps.shape[1], max(int(np.ceil(seconds / hop_s)) + 1, maps.shape[2])))
    for one, start in zip(maps, np.rint(np.asarray(starts_s) / hop_s).astype(int)):
        start = min(start, out.shape[1] - maps.shape[2])
        out[:, start : start + maps.shape[2]] += one / len(maps)
    return out


@torch.inference_mode()
def residual_map(detector: Autoencoder, rows) -> list[np.ndarray]:
    """Return the squared residual of each clip over frequency and time, dB².

    The value of a frame is the mean over the (up to 5) input vectors that contain it.

    returns : float32 (n_mels, frames) of each clip. Its mean, weighted with `vectors_per_frame`, is the score
        `baseline_mse`.
        Source: METHOD 7.5.  Notebook: 06_embeddings
    """
    s, out = detector.settings, []
    for row in _rows(rows):
        mel, lengths = detector.log_mel(np.array([row]))
        vectors = Vectors(mel, lengths, s.frames)
        x = vectors[torch.arange(len(vectors), device=mel.device)]
        square = (x - detector.net(x)).square().view(len(x), s.frames, s.n_mels)
        total = torch.zeros_like(mel)
        for number in range(s.frames):
            total[number : number + len(x)] += square[:, number]
        count = torch.as_tensor(vectors_per_frame(len(mel), s.frames), device=mel.device)
        out.append((total / count[:, None]).T.cpu().numpy().astype(np.float32))
    return out


def vectors_per_frame(frames: int, width: int) -> np.ndarray:
    """Return the number of input vectors of `width` frames that contain each frame, float64 (frames,)."""
    return np.convolve(np.ones(frames - width + 1), np.ones(width))


def branch_shares(detector: Classifier, rows) -> np.ndarray:
    """Return each branch's share of the squared distance to the reference that determined the score.

    returns : float64 (clips, branches); rows sum to 1, or are zero if the distance is 0
    Source: METHOD 3.5.  Notebook: 06_embeddings
    """
    parts = detector.branch_parts(_rows(rows))
    whole = parts.sum(1, keepdims=True)
    return np.divide(parts, whole, out=np.zeros_like(parts), where=whole > 1e-12)


def why(
    store: stores.Store,
    row: int,
    shape: OEVAEFeatureSettings,
    *,
    autoencoder: Autoencoder | None = None,
    oevae: OEVAE | None = None,
    classifier: Classifier | None = None,
    of: Literal["alpha", "beta"] = "beta",
) -> Why:
    """Explain one clip with the given detectors; those of a single machine must be of the clip's machine.

    shape : of the log-mel shown.  of : component whose gradient is shown.  Notebook: 06_embeddings
    """
    clip, rate = store.clips.iloc[row], store.rate
    seconds = float(clip["samples"]) / rate
    bands = {"n_fft": shape.n_fft, "low_hz": shape.low_hz, "high_hz": shape.high_hz, "rate": rate}
    hz, hop_s = features.band_hz(shape.n_mels, **bands), shape.hop_length / rate
    wave = stores.standardize(store.audio([row]))
    level = (
        features.log_mel(wave, n_mels=shape.n_mels, win=shape.win_length, hop=shape.hop_length, **bands)[0, 0]
        .cpu()
        .numpy()
    )
    residual = raised = starts = segments = branches = None
    if autoencoder is not None:
        s = autoencoder.settings
        places = features.band_hz(
            s.n_mels, n_fft=s.n_fft, low_hz=0.0, high_hz=rate / 2, rate=rate, slaney=True
        )
        residual = Map(residual_map(autoencoder, [row])[0], places, s.hop_length / rate)
    if oevae is not None:
        starts = segment_starts(oevae, row)
        segments = {name: values[0] for name, values in segment_scores(oevae, [row]).items()}
        raised = Map(along_clip(slope(oevae, [row], of).raised[0], starts, hop_s, seconds), hz, hop_s)
    if classifier is not None:
        branches = dict(zip(classifier.settings.branches, branch_shares(classifier, [row])[0].tolist()))
    return Why(
        row, seconds, Map(level, hz, hop_s), residual, raised, of, starts, shape.segment_s, segments, branches
    )
