"""Training of OEVAE: outlier-exposed network, VAEs refitted for other k_scales, and the forward pass.

Scores are added by `oevae.OEVAE`.

Sources: report 3.2, 4.2; METHOD 3.2-3.4, 3.9, 4, 6.2, 6.3.  Notebook: 05_oevae
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from safetensors.numpy import save_file

from asdlib import augment, errors, io
from asdlib.data.condition import condition
from asdlib.data.store import Store
from asdlib.detectors import exposure
from asdlib.models import losses, oevae, training
from asdlib.models.oevae import VAE, VAEBatch

# oneDNN's strided 1 x 1 convolution writes past its buffer if a channels_last input has fewer channels
# than a vector register (oneDNN bug 6035): 16 for AVX-512
NARROWEST_CHANNELS_LAST = 16
EVAL_ITEMS = 256  # segments per inference pass
FOLLOWS = 0.95  # correlation of α with the norm of h above which α is redundant
ALIVE = 0.01  # variance of μ over items below which a channel is inactive (Burda et al. 2016)
INIT, SPLIT, EVALUATE, MIX, REFIT = range(101, 106)  # random streams besides the epochs


class ForwardPass(NamedTuple):
    """Network outputs: h (n, dim), mu, logvar (n, latent), α mode -> (n,), all float32.

    clip : int (n,), position of each segment's clip in the rows
    """

    h: np.ndarray
    mu: np.ndarray
    logvar: np.ndarray
    alpha: dict[str, np.ndarray]
    clip: np.ndarray


class OEVAETraining:
    """State learned by OEVAE: `net`, `heads` (k_scale -> VAE), `trained`, `held_out_alpha` and `history`.

    `trained` is bool (training clips,). The annotated attributes belong to `base.Detector`.
    """

    settings: oevae.OEVAESettings
    seed: int
    device: torch.device
    checkpoints: Path | None
    training_dtype: torch.dtype
    store: Store
    train_rows: np.ndarray
    group: np.ndarray
    history: pd.DataFrame

    def _train(self, others: np.ndarray) -> None:
        """Train against clips of other machines, then fit the VAEs of the other k_scales.

        raises : errors.InputError for clips of several machines, or no clips of another one
        """
        s, clips, train_rows = self.settings, self.store.clips, self.train_rows
        exposure.check_machines(clips, train_rows, others)
        self._open()
        names = sorted(set(clips["machine"].iloc[others]))
        others, pool = exposure.with_supplemental(self.store, self.machine, others)
        if note := exposure.same_segments(self.front):
            print(note)
        rng = np.random.default_rng([self.seed, SPLIT])
        kept = exposure.held_out(clips["domain"].to_numpy()[train_rows], s.holdout, rng)
        kept_others = exposure.held_out(pool, s.holdout, rng)
        self.trained = ~kept
        near = (
            exposure.nearest_machines(self.store, self.device, s.features, self.machine, names)
            if s.near > 0
            else []
        )
        parts, pool_of = [], dict(zip(others.tolist(), pool))  # items for training, and held-out ones
        for rows in (others[~kept_others], others[kept_others]):
            items = self.front.items(rows) if len(rows) else None
            items = items and items[items.distinct()]
            machine = np.array([pool_of[row] for row in items.row.tolist()]) if items else None
            parts.append((items, exposure.draw_weights(machine, near, s.near)) if items else None)
        target = self._target(train_rows[~kept])
        outliers = exposure.OutlierExposureBatches(self.front, s, target, *parts[0])
        self.net = self._network()
        warm = max(s.kl_warmup * outliers.steps, 1.0)
        self.history = training.fit(
            self.net,
            lambda draws: outliers.batches(
                draws, lambda: (self.net.steps / warm).clamp(max=1.0) if s.kl_warmup else 1.0
            ),
            torch.optim.Adam(self.net.parameters(), lr=s.lr, fused=True),
            epochs=s.epochs,
            seed=self.seed,
            what=f"oevae {self.machine}",
            checkpoint=self.checkpoints and self.checkpoints / "checkpoint0.pt",
            evaluate=self._evaluation(train_rows[kept], *parts[1]) if kept.any() and parts[1] else None,
            precision=self.training_dtype,
        )
        self.heads = {scale: self._refit(scale, self._pass(train_rows).h) for scale in s.k_scales}
        self.held_out_alpha = self._held_out_alpha(self._pass)

    def _held_out_alpha(self, read: Callable[[np.ndarray], ForwardPass]) -> dict[str, float]:
        """Diagnostics on held-out clips: active z_c channels (`alive`), correlation of α and the norm of h.

        The correlation is given per alpha mode, 0 for a constant α; empty without held-out clips.
        read : forward pass of the VAE from which α is computed
        """
        kept = self.train_rows[~self.trained]
        if not len(kept):
            return {}
        found = read(kept)
        norm = np.linalg.norm(found.h, axis=1)
        alive = (found.mu[:, self.settings.domain_latent :].var(0) > ALIVE).sum()
        follows = {
            mode: float(np.corrcoef(values, norm)[0, 1]) if values.std() > 0 and norm.std() > 0 else 0.0
            for mode, values in found.alpha.items()
        }
        return {"alive": float(alive)} | follows

    @property
    def alpha_fault(self) -> str:
        """Reason why α is uninformative on held-out clips; "" if it is not, or without held-out clips."""
        found, mode = self.held_out_alpha, self.settings.alpha_mode
        if not found:
            return ""
        if found["alive"] == 0 and mode in ("nll", "expected_nll", "kl"):
            return "no channel of z_c is active on held-out clips"
        if abs(found[mode]) > FOLLOWS:
            return f"its correlation with the norm of the embedding is {found[mode]:.3f} on held-out clips"
        return ""

    def _open(self) -> None:
        """Derive condition, features and attribute classes from the training clips."""
        s, clips, train_rows = self.settings, self.store.clips, self.train_rows
        self.machine = str(clips["machine"].iloc[train_rows[0]])
        choice = {"choice": s.condition.attribute, "missing": s.condition.missing, "bins": s.condition.bins}
        self.condition = condition(clips, **choice, seed=self.seed, machine=self.machine)
        v = self._v(train_rows)
        self.center = float(v[np.isfinite(v)].mean()) if s.condition.center and np.isfinite(v).any() else 0.0
        self.front = exposure.SegmentFeatures(self.store, self.device, s.features, train_rows)
        self.labels = (
            exposure.attribute_labels(clips.iloc[train_rows], v)
            if s.attribute_weight > 0
            else np.zeros((len(train_rows), 0), np.float32)
        )
        self._passes: dict[int, ForwardPass] = {}

    def _v(self, rows: np.ndarray) -> np.ndarray:
        return self.condition.v.reindex(self.store.clips.index[rows]).to_numpy(float)

    def _prior(self, rows: np.ndarray, k_scale: float) -> tuple[np.ndarray, np.ndarray]:
        return exposure.prior_means(self._v(rows), self.condition.k(k_scale), self.center)

    def _network(self) -> oevae.OEVAE:
        with training.seeded_init(self.seed, INIT):
            net = oevae.OEVAE(self.settings, self.labels.shape[1])
        narrow = self.settings.width < NARROWEST_CHANNELS_LAST
        return net.to(self.device, memory_format=torch.contiguous_format if narrow else torch.channels_last)

    def _target(self, rows: np.ndarray) -> exposure.Target:
        """Training items of the target machine, with synthetic ones for SMOTE on log-mels."""
        s, smote = self.settings, self.settings.smote
        labels = self.labels[np.searchsorted(self.train_rows, rows)]
        target = exposure.target_items(self.front, rows, *self._prior(rows, s.condition.k_scale), labels)
        if smote.space == "logmel" and smote.ratio > 0:
            mels = self.front.all_log_mels(target.items).cpu()
            blend = self._smote(mels, target.items)
            target = target.with_synthetic(blend, blend.of(mels).to(self.device)) if len(blend) else target
            self.synthetic_parents = blend.parents(target.items.row.cpu().numpy())
        return target

    def _smote(self, x: np.ndarray | torch.Tensor, items: exposure.Segments) -> augment.MixPairs:
        """SMOTE between the items of each domain (and section).

        A single clip yields no items; k is capped if there are few clips.
        """
        smote, (domain, rows) = self.settings.smote, self._groups(items)
        domain = domain.astype(object) + self.group[np.searchsorted(self.train_rows, rows)]
        clips = {name: len(np.unique(rows[domain == name])) for name in np.unique(domain)}
        several = np.flatnonzero([clips[name] > 1 for name in domain])
        per_clip = int(np.unique(rows, return_counts=True)[1].min())
        most = (min((count for count in clips.values() if count > 1), default=2) - 1) * per_clip
        blend = augment.smote(
            x[several],
            domain[several],
            rows[several],
            ratio=smote.ratio,
            k=min(smote.k, most),
            seed=self.seed,
        )
        place = torch.from_numpy(several)
        return augment.MixPairs(place[blend.first], place[blend.second], blend.weight)

    def _groups(self, items: exposure.Segments) -> tuple[np.ndarray, np.ndarray]:
        """Domain and store row of each item."""
        rows = items.row.cpu().numpy()
        return self.store.clips["domain"].to_numpy()[rows], rows

    def _evaluation(
        self, kept: np.ndarray, others: exposure.Segments, weights: np.ndarray
    ) -> Callable[[], dict[str, float]]:
        """Function that measures held-out separation and active latent channels on normal clips."""
        items = self.front.items(kept)
        labels = torch.zeros(len(items), 0, device=self.device)
        normal = exposure.Target(
            items, labels.new_zeros(len(items)), labels.new_zeros(len(items)).bool(), labels
        )
        draws = training.generator_for(self.seed, EVALUATE, device=self.device)
        drawn = exposure.OutlierExposureBatches(
            self.front, self.settings, normal, others, weights
        ).draw_others(len(items), draws)
        x = self.front.all_log_mels(items.joined(others[drawn]))
        n, domain = len(items), self.settings.domain_latent

        def measure() -> dict[str, float]:
            out = [self.net(part) for part in x.split(EVAL_ITEMS)]
            logit = torch.cat([part.logit for part in out])
            t = (torch.arange(2 * n, device=logit.device) < n).float()
            alive = torch.cat([part.vae.mu for part in out])[:n].var(0, correction=0) > ALIVE
            accuracy = ((logit > 0) == (t > 0)).float().mean()
            return {
                "held_out_accuracy": float(accuracy),
                "held_out_loss": float(losses.machine_loss(logit, t)),
                "alive_d": int(alive[:domain].sum()),
                "alive_c": int(alive[domain:].sum()),
            }

        return measure

    @training.one_thread()
    @torch.inference_mode()
    def _pass(self, rows: np.ndarray) -> ForwardPass:
        """Forward pass in float32, cached per clip.

        Computed clip by clip (see `clip_by_clip`); on a GPU training clips in blocks.
        """
        count, new = self.settings.features.segments, rows[~np.isin(rows, list(self._passes))]
        own, size = (
            np.isin(new, self.train_rows),
            (max(1, EVAL_ITEMS // count) if self.device.type == "cuda" else 1),
        )
        blocks = np.split(new[own], range(size, own.sum(), size)) if own.any() else []
        for block in [*blocks, *new[~own, None]]:
            out = self.net(self.front.log_mel(self.front.waves(self.front.items(block))))
            alpha = losses.alpha_scores(out.vae, domain=self.net.vae.domain)
            parts = [
                np.split(values.cpu().numpy(), len(block))
                for values in (out.h, out.vae.mu, out.vae.logvar, *alpha.values())
            ]
            for row, *of_clip in zip(block, *parts):
                self._passes[int(row)] = ForwardPass(
                    *of_clip[:3], dict(zip(alpha, of_clip[3:])), np.zeros(count, int)
                )
        found = [self._passes[int(row)] for row in rows]
        h, mu, logvar = (
            np.concatenate([getattr(part, name) for part in found]) for name in ("h", "mu", "logvar")
        )
        alpha = {mode: np.concatenate([part.alpha[mode] for part in found]) for mode in found[0].alpha}
        return ForwardPass(
            h, mu, logvar, alpha, np.repeat(np.arange(len(rows)), self.settings.features.segments)
        )

    def _refit(self, k_scale: float, h: np.ndarray, *, standardized: bool = False) -> VAE:
        """VAE for a k_scale, fitted to segments of the clips used in training.

        h : float32 (segments, dim), vectors of all training clips.  standardized : see `refit`
        """
        count = self.settings.features.segments
        prior, conditioned = (
            np.repeat(values[self.trained], count) for values in self._prior(self.train_rows, k_scale)
        )
        h = h[np.repeat(self.trained, count)]
        h, prior, conditioned = (
            torch.as_tensor(values, device=self.device) for values in (h, prior, conditioned)
        )
        what = f"VAE of {self.machine}, k_scale {k_scale:g}"
        how = {"seed": self.seed + REFIT, "what": what, "standardized": standardized}
        return refit(h, prior, conditioned, self.settings, **how)

    def _save_training(self, folder: Path) -> None:
        """Save weights, refitted VAEs, and the training mask."""
        training.save_weights(self.net, folder / "weights.safetensors")
        heads = {
            f"{scale:g}/{name}": np.ascontiguousarray(value.cpu().numpy())
            for scale, vae in self.heads.items()
            for name, value in vae.state_dict().items()
        }
        save_file(
            heads | self._alpha_facts() | {"trained": self.trained.astype(np.uint8)},
            folder / "refits.safetensors",
        )

    def _alpha_facts(self) -> dict[str, np.ndarray]:
        """`held_out_alpha` as tensors for saving."""
        return {f"alpha/{name}": np.array([value]) for name, value in self.held_out_alpha.items()}

    def _take_alpha_facts(self, state: dict[str, np.ndarray]) -> None:
        """Restore `held_out_alpha` from saved tensors."""
        facts = {name: float(value[0]) for name, value in state.items() if name.startswith("alpha/")}
        self.held_out_alpha = {name.removeprefix("alpha/"): value for name, value in facts.items()}

    def _load_training(self, folder: Path) -> None:
        """Load what `_save_training` wrote."""
        self._open()
        self.net = self._network()
        training.load_weights(self.net, folder / "weights.safetensors")
        state, self.heads, s = io.tensors(folder / "refits.safetensors", {"trained": 1}), {}, self.settings
        self.trained = state["trained"].astype(bool)
        if len(self.trained) != len(self.train_rows):
            count = len(self.trained)
            raise errors.InputError(f"{folder}: was fitted to {count} other training clips; {io.AGAIN}")
        self._take_alpha_facts(state)
        for scale in s.k_scales:
            self.heads[scale] = VAE(self.net.dim, s.hidden, s.latent, s.domain_latent).to(self.device).eval()
            own = {name: value for name, value in state.items() if name.startswith(f"{scale:g}/")}
            try:
                self.heads[scale].load_state_dict(
                    {name.partition("/")[2]: torch.from_numpy(value) for name, value in own.items()}
                )
            except RuntimeError as error:
                raise errors.InputError(
                    f"{folder}: contains no VAE for k_scale {scale:g}; run stage 05_oevae again"
                ) from error


def refit(
    h: torch.Tensor,
    prior: torch.Tensor,
    conditioned: torch.Tensor,
    settings: oevae.OEVAESettings,
    *,
    seed: int,
    what: str = "VAE",
    standardized: bool = False,
) -> VAE:
    """Fit a new VAE to fixed embeddings, to study other conditions or k within seconds.

    h : float32 (n, dim), embeddings of normal training segments, on the device
    prior, conditioned : (n,) k·v, and whether v is known
    settings : sizes, batch, lr, refit_epochs
    standardized : whether to standardize each dimension of h first
    returns : the VAE in evaluation mode.  Source: report 4.2 (choice of k).  Notebooks: 05_oevae, 08_tuning
    """
    with training.seeded_init(seed):
        kind = oevae.StandardizedVAE if standardized else VAE
        vae = kind(h.shape[1], settings.hidden, settings.latent, settings.domain_latent).to(h.device)
    if standardized:
        vae.fit_scale(h)
    n, size = len(h), settings.batch
    training.fit(
        vae,
        lambda draws: (
            VAEBatch(h[part], prior[part], conditioned[part])
            for part in training.shuffled_batches(n, size, draws, h.device)
        ),
        torch.optim.Adam(vae.parameters(), lr=settings.lr, fused=True),
        epochs=settings.refit_epochs,
        seed=seed,
        what=what,
    )
    return vae
