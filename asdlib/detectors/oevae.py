"""OEVAE as a detector: one joint network per target machine, its latent likelihood α and the
nearest-neighbour distance β.

Conventions
-----------
Components per clip, means over its segments, higher = more anomalous; the final `_score` is their fusion
(`fusion.systems`):

    alpha            the α of `oevae.alpha_mode`; alpha_nll, alpha_expected_nll, alpha_kl, alpha_recon,
    alpha_neg_elbo: all of them
    alpha_k<scale>   the same mode from a VAE that was refitted on the finished embeddings with that k_scale
    (`oevae.k_scales`)
    beta             mean distance to the k = `oevae.neighbours` nearest references; beta_k1, beta_k2,
    beta_k4: for k = 1, 2, 4

References of β are embeddings of the machine's normal training segments, of SMOTE items between them and of
mixtures of their waveforms. Training clips are scored leave-clip-out by β: a clip's own segments, and every
reference made with one of them, are left out. The network has seen them (all but `oevae.holdout`), and so
have the refitted VAEs: their α of every kind and their β are a little lower than those of new normal clips.

Sources: report 3.2, 4.2; METHOD 3.2-3.4, 3.9, 4, 6.2, 6.3.  Notebooks: 05_oevae, 06_embeddings, 07_latents,
08_tuning
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.numpy import save_file

from asdlib import augment, errors, io
from asdlib.data.condition import condition
from asdlib.detectors import exposure
from asdlib.detectors.base import Detector, Scores, clip_by_clip
from asdlib.models import losses, oevae, training
from asdlib.models.oevae import VAE, VAEBatch
from asdlib.scoring.distances import knn_distances, knn_score, to_clips

KEPT_K = (1, 2, 4)  # neighbours whose β is kept beside the chosen one (report 4.2)
NARROWEST_CHANNELS_LAST = 16  # channels of a vector register of AVX-512
EVAL_ITEMS = 256  # segments per forward pass when nothing is learnt
INIT, SPLIT, EVALUATE, MIX, REFIT = range(101, 106)  # purposes of random draws, beside the epochs


class ForwardPass(NamedTuple):
    """Segments through the network: h (n, dim), mu, logvar (n, latent), α mode -> (n,), all float32; clip int
    (n,), position in the rows.
    """

    h: np.ndarray
    mu: np.ndarray
    logvar: np.ndarray
    alpha: dict[str, np.ndarray]
    clip: np.ndarray


class MemoryBank(NamedTuple):
    """What β measures distances to: h float32 (n, dim); parents int64 (n, 2), store rows of the clips behind
    each; target bool (n,).
    """

    h: np.ndarray
    parents: np.ndarray
    target: np.ndarray


class OEVAE(Detector):
    """The joint outlier-exposed extractor and VAE of one target machine (METHOD 3.4)."""

    name, Settings, systems = "oevae", oevae.OEVAESettings, ("oevae",)

    def _fit(self, others: np.ndarray) -> None:
        """Train against clips of other machines, then fit the references and the VAEs of the other k_scales.

        raises : errors.InputError for clips of several machines, and without those of another one
        """
        s, clips, train_rows = self.settings, self.store.clips, self.train_rows
        exposure.check_machines(clips, train_rows, others)
        self._open()
        if told := exposure.same_segments(self.front):
            print(told)
        rng = np.random.default_rng([self.seed, SPLIT])
        kept = exposure.held_out(clips["domain"].to_numpy()[train_rows], s.holdout, rng)
        kept_others = exposure.held_out(clips["machine"].to_numpy()[others], s.holdout, rng)
        self.trained = ~kept
        names = sorted(set(clips["machine"].iloc[others]))
        near = (
            exposure.nearest_machines(self.store, self.device, s.features, self.machine, names)
            if s.near > 0
            else []
        )
        parts = []  # of the other machines: for training, and held out
        for rows in (others[~kept_others], others[kept_others]):
            items = self.front.items(rows) if len(rows) else None
            items = items and items[items.distinct()]
            machine = clips["machine"].to_numpy()[items.row.cpu().numpy()] if items else None
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
        self.references = self._made_references(target)
        self.reference_group = self._reference_groups()
        self.heads = {scale: self._refit(scale) for scale in s.k_scales}

    def _open(self) -> None:
        """What follows from the training clips alone: condition, features, classes of the attribute head."""
        s, clips, train_rows = self.settings, self.store.clips, self.train_rows
        self.machine = str(clips["machine"].iloc[train_rows[0]])
        choice = {"choice": s.condition.attribute, "missing": s.condition.missing, "bins": s.condition.bins}
        self.condition = condition(clips, **choice, seed=self.seed, machine=self.machine)
        v = self._v(train_rows)
        self.centre = float(v[np.isfinite(v)].mean()) if np.isfinite(v).any() else 0.0
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
        return exposure.prior_means(self._v(rows), self.condition.k(k_scale), self.centre)

    def _network(self) -> oevae.OEVAE:
        with training.seeded_init(self.seed, INIT):
            net = oevae.OEVAE(self.settings, self.labels.shape[1])
        # oneDNN's strided 1 x 1 convolution writes past its buffer where a channels_last input has fewer
        # channels than a vector register (its bug 6035)
        narrow = self.settings.width < NARROWEST_CHANNELS_LAST
        return net.to(self.device, memory_format=torch.contiguous_format if narrow else torch.channels_last)

    def _target(self, rows: np.ndarray) -> exposure.Target:
        """Training items of the target machine, with synthetic ones where SMOTE works on log-mels."""
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
        """SMOTE between the items of each domain (and section). One clip gets no items, few clips choose
        among as many as there are.
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
        """Domain and clip of each item."""
        rows = items.row.cpu().numpy()
        return self.store.clips["domain"].to_numpy()[rows], rows

    def _evaluation(
        self, kept: np.ndarray, others: exposure.Segments, weights: np.ndarray
    ) -> Callable[[], dict[str, float]]:
        """Measures separation on clips that are not trained on, and how many latent channels move over the
        normal ones.
        """
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
        """Clips through the network in float32, each computed once: one after the other (see `clip_by_clip`),
        on a GPU training clips in blocks.
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

    def _made_references(self, target: exposure.Target) -> MemoryBank:
        """Embeddings of the training segments, of SMOTE items between them and of mixtures of their
        waveforms.
        """
        s, device = self.settings, self.device
        items = self.front.items(self.train_rows)
        used = items.distinct()
        items, embedded = items[used], self._pass(self.train_rows).h[used.cpu().numpy()]
        domain, rows = self._groups(items)
        draws = training.generator_for(self.seed, MIX, device="cpu")
        mixed = augment.draw_mixup(len(items), prob=s.mixup.prob, beta=s.mixup.beta, generator=draws)
        some = mixed.weight < 1
        mixed = augment.MixPairs(mixed.first[some], mixed.second[some], mixed.weight[some])
        parts = [
            (embedded, np.stack([rows, rows], 1), domain == "target"),
            (self._of_mixtures(items, mixed), *self._parents(mixed, rows, domain)),
        ]
        if s.smote.space == "embed" and s.smote.ratio > 0:
            blend = self._smote(embedded, items)
            parts.append((blend.of(embedded), *self._parents(blend, rows, domain)))
        elif target.mels is not None:
            with torch.inference_mode():
                h = (
                    torch.cat([self.net.embed(part.to(device)) for part in target.mels.split(EVAL_ITEMS)])
                    .cpu()
                    .numpy()
                )
            clips = self.store.clips["domain"].to_numpy()
            parts.append((h, self.synthetic_parents, clips[self.synthetic_parents[:, 0]] == "target"))
        return MemoryBank(*(np.concatenate(values) for values in zip(*parts)))

    def _reference_groups(self) -> np.ndarray:
        """Group of each reference, str (references,); "" for a mixture of clips of two groups, which is a
        reference of none.
        """
        first, second = self.group[np.searchsorted(self.train_rows, self.references.parents)].T
        return np.where(first == second, first, "")

    @staticmethod
    def _parents(
        blend: augment.MixPairs, rows: np.ndarray, domain: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Both parents' rows, and whether the heavier parent is of the target domain."""
        heavier = np.where(blend.weight.numpy() >= 0.5, blend.first.numpy(), blend.second.numpy())
        return blend.parents(rows), domain[heavier] == "target"

    @torch.inference_mode()
    def _of_mixtures(self, items: exposure.Segments, blend: augment.MixPairs) -> np.ndarray:
        """Embeddings of mixed waveforms, float32 (mixtures, dim)."""
        device, out = items.row.device, [np.zeros((0, self.net.dim), np.float32)]
        for part in torch.arange(len(blend)).split(EVAL_ITEMS) if len(blend) else ():
            first, second = (
                self.front.waves(items[who[part].to(device)]) for who in (blend.first, blend.second)
            )
            wave = torch.lerp(second, first, blend.weight[part].to(device)[:, None])
            out.append(self.net.embed(self.front.log_mel(wave)).cpu().numpy())
        return np.concatenate(out)

    def _refit(self, k_scale: float) -> VAE:
        """A VAE for another k_scale, on the embeddings of the clips that the network was trained on."""
        found, count = self._pass(self.train_rows), self.settings.features.segments
        prior, conditioned = (
            np.repeat(values[self.trained], count) for values in self._prior(self.train_rows, k_scale)
        )
        h = found.h[np.repeat(self.trained, count)]
        h, prior, conditioned = (
            torch.as_tensor(values, device=self.device) for values in (h, prior, conditioned)
        )
        what = f"VAE of {self.machine}, k_scale {k_scale:g}"
        return refit(h, prior, conditioned, self.settings, seed=self.seed + REFIT, what=what)

    @torch.inference_mode()
    def _refitted(self, scale: float, h: np.ndarray) -> losses.VAEOutput:
        return self.heads[scale](torch.as_tensor(h, device=self.device))

    def _embed(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """f_FE of each segment: float32 (segments, 8 · width), and the position of its clip."""
        found = self._pass(rows)
        return found.h, found.clip

    @clip_by_clip
    def _scores(self, rows: np.ndarray) -> Scores:
        """Components of clips that are not training clips."""
        return self._components(rows, own_clips=False)

    def _training_scores(self) -> Scores:
        """Components of the training clips, leave-clip-out."""
        return self._components(self.train_rows, own_clips=True)

    def _components(self, rows: np.ndarray, own_clips: bool) -> Scores:
        clip, items = self._pass(rows).clip, self._items(rows, own_clips)
        return {
            ("oevae", name): to_clips(values.astype(float), clip, len(rows)) for name, values in items.items()
        }

    def segment_scores(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Every component of each segment, float64 (clips, segments): what `components` and
        `training_components` take the mean of.

        Notebook: 06_embeddings
        """
        return {
            name: values.astype(float).reshape(len(rows), -1)
            for name, values in self._items(rows, own_clips=True).items()
        }

    def _items(self, rows: np.ndarray, own_clips: bool) -> dict[str, np.ndarray]:
        """Every component of each segment, (segments,), clip by clip."""
        s, found = self.settings, self._pass(rows)
        items = {f"alpha_{mode}": values for mode, values in found.alpha.items()} | {
            "alpha": found.alpha[s.alpha_mode]
        }
        for scale in self.heads:
            values = losses.alpha_scores(self._refitted(scale, found.h), domain=s.domain_latent)[s.alpha_mode]
            items[f"alpha_k{scale:g}"] = values.cpu().numpy()
        group = self.group_of(self.store.clips.iloc[rows])[found.clip]
        beta = self._neighbours(found.h, group, rows[found.clip] if own_clips else None)
        return items | {f"beta_k{k}": beta[k] for k in KEPT_K} | {"beta": beta[s.neighbours]}

    def _neighbours(self, h: np.ndarray, group: np.ndarray, own: np.ndarray | None) -> dict[int, np.ndarray]:
        """β of each item for every k, from one sorted search per set of references.

        group : machine or section of each item.  own : store row of each item's clip, left out of its
            references; None for new clips
        """
        every = sorted({*KEPT_K, self.settings.neighbours})
        out = {k: np.empty(len(h)) for k in every}
        for name in np.unique(group):
            here, found = np.flatnonzero(group == name), []
            for chosen in self.groups(every[-1], name):
                parents = None if own is None else self.references.parents[chosen]
                clip = None if own is None else own[here]
                most = max(
                    self.settings.neighbours, min(every[-1], self._fewest(chosen))
                )  # few clips: the k kept beside are as large as can be
                found.append(
                    knn_distances(
                        h[here], self.references.h[chosen], k_max=most, test_clip=clip, train_clip=parents
                    )
                )
            for k in every:
                out[k][here] = np.min([knn_score(distances, k) for distances in found], axis=0)
        return out

    def groups(self, k: int, group: str) -> list[np.ndarray]:
        """Which references β is asked of, bool (references,): all of a machine or section, or those of each
        domain, if k of each remain for every clip.
        """
        own = self.reference_group == group
        if self.settings.neighbour_domains == "min":
            sides = (own & self.references.target, own & ~self.references.target)
            return [side for side in sides if self._fewest(side) >= k] or [own]
        return [own]

    def _fewest(self, group: np.ndarray) -> int:
        """References of a group that remain when the clip with most of them is left out."""
        parents = self.references.parents[group]
        counts = np.unique(
            np.concatenate([parents[:, 0], parents[parents[:, 0] != parents[:, 1], 1]]), return_counts=True
        )[1]
        return len(parents) - int(counts.max(initial=0))

    def tensors(self) -> dict[str, np.ndarray]:
        """What notebooks and the tuner read instead of a model, of all normal training and all test clips of
        the machine.

        embedding (n, dim), z_mean, z_logvar (n, latent), z_mean_k<scale>, z_logvar_k<scale>, clip (n,) store
        row of the segment's clip; rows (m,) of the machine's clips, rising, and for each v (NaN: unknown),
        prior (k·v) and trained (1: the network was trained on it).
        """
        table = self.store.clips
        test = np.flatnonzero((table["machine"] == self.machine) & (table["split"] == "test"))
        parts = [(rows, self._pass(rows)) for rows in (self.train_rows, test) if len(rows)]
        clip, rows = (
            np.concatenate([part[found.clip] for part, found in parts]),
            np.sort(np.concatenate([part for part, _ in parts])),
        )
        h, mu, logvar = (
            np.concatenate([getattr(found, name) for _, found in parts]) for name in ("h", "mu", "logvar")
        )
        trained = np.isin(rows, self.train_rows[self.trained]).astype(np.uint8)
        prior = self._prior(rows, self.settings.condition.k_scale)[0]
        out = {
            "embedding": h,
            "z_mean": mu,
            "z_logvar": logvar,
            "clip": clip,
            "rows": rows,
            "v": self._v(rows),
            "prior": prior,
            "trained": trained,
        }
        for scale in self.heads:
            found = self._refitted(scale, h)
            out |= {
                f"z_mean_k{scale:g}": found.mu.cpu().numpy(),
                f"z_logvar_k{scale:g}": found.logvar.cpu().numpy(),
            }
        return out

    def _save(self, folder: Path) -> None:
        """Weights, refitted VAEs, references, and embeddings.safetensors with `tensors`."""
        training.save_weights(self.net, folder / "weights.safetensors")
        heads = {
            f"{scale:g}/{name}": value.cpu().numpy()
            for scale, vae in self.heads.items()
            for name, value in vae.state_dict().items()
        }
        for name, content in (
            ("refits", heads),
            ("references", self.references._asdict()),
            (EMBEDDINGS, self.tensors()),
        ):
            whole = {
                key: np.ascontiguousarray(values) for key, values in content.items()
            }  # the writer takes no notice of strides
            save_file(whole, folder / f"{name}.safetensors")

    def _load(self, folder: Path) -> None:
        """What `save` wrote."""
        self._open()
        self.net = self._network()
        training.load_weights(self.net, folder / "weights.safetensors")
        found = io.tensors(folder / f"{EMBEDDINGS}.safetensors", {"rows": 1, "trained": 1})
        trained = dict(zip(found["rows"].tolist(), found["trained"].tolist()))
        self.trained = np.array([bool(trained[row]) for row in self.train_rows])
        self.references = MemoryBank(**io.tensors(folder / "references.safetensors", {}))
        self.reference_group = self._reference_groups()
        state, self.heads, s = io.tensors(folder / "refits.safetensors", {}), {}, self.settings
        for scale in s.k_scales:
            self.heads[scale] = VAE(self.net.dim, s.hidden, s.latent, s.domain_latent).to(self.device).eval()
            named = {
                name: torch.from_numpy(value)
                for name, value in state.items()
                if name.startswith(f"{scale:g}/")
            }
            try:
                self.heads[scale].load_state_dict(
                    {name.partition("/")[2]: value for name, value in named.items()}
                )
            except RuntimeError as error:
                raise errors.InputError(
                    f"{folder}: holds no VAE for k_scale {scale:g}; run stage 05_oevae again"
                ) from error

    def _moved(self, other: OEVAE) -> None:
        other.front, other._passes, other.train_rows = self.front.on(other.store), {}, np.empty(0, np.int64)
        parents = self.references.parents + len(other.store)  # none of the other store's clips is a parent
        other.references = self.references._replace(parents=parents)


ALIVE = 0.01  # variance of μ over items below which a channel carries nothing (Burda et al. 2016)
EMBEDDINGS = "embeddings"  # of the file with a detector's tensors


def refit(
    h: torch.Tensor,
    prior: torch.Tensor,
    conditioned: torch.Tensor,
    settings: oevae.OEVAESettings,
    *,
    seed: int,
    what: str = "VAE",
) -> VAE:
    """A new VAE on finished embeddings, to study other conditions or another k within seconds.

    h : float32 (n, dim), embeddings of normal training segments, on the device
    prior, conditioned : (n,) k·v, and whether there is a v
    settings : sizes, batch, lr, refit_epochs
    returns : the VAE in evaluation mode.  Source: report 4.2 (the choice of k).  Notebooks: 05_oevae,
        08_tuning
    """
    with training.seeded_init(seed):
        vae = VAE(h.shape[1], settings.hidden, settings.latent, settings.domain_latent).to(h.device)
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
