"""OEVAE detector: one joint network per target machine, latent likelihood α and nearest-neighbor distance β.

Conventions
-----------
Components per clip, averaged over its segments, higher = more anomalous; the final `_score` is their fusion
(`fusion.systems`):

    alpha            the α of `oevae.alpha_mode`, or 0 if `alpha_fault` finds it uninformative and
                     `oevae.drop_alpha` is on; from the VAE selected by `oevae.alpha_vae`
    alpha_nll, ...   every mode, from the VAE trained with the extractor
    alpha_k<scale>   the same mode from a VAE refitted on the final embeddings with that k_scale
    beta             mean distance to the k = `oevae.neighbors` nearest references, or the local density of
                     `oevae.backend`
    beta_k<k>        the mean distance for k = 1, 2, 4

β uses the extractor's output, or outputs of its inner stages, pooled over frequency and time (`oevae.layers`,
`oevae.pooling`). These settings do not affect training.

References of β are the vectors of the machine's normal training segments, of SMOTE items between them and of
waveform mixtures. With `oevae.backend = "local_density"` they are the training clips' mean vectors, without
synthetic items (`density_scores`); all segments of a clip then share its score. Training clips are scored
leave-clip-out by β: a clip's segments and every reference derived from them are excluded. As network and
refitted VAEs were trained on these clips (except `oevae.holdout`), their α and β are corrected to the level
of held-out clips (`thresholds.as_unseen`).

Sources: report 3.2, 4.2; METHOD 3.2-3.4, 3.9, 3.10, 4, 6.2, 6.3.  Notebooks: 05_oevae, 06_embeddings,
07_latents, 08_tuning
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.numpy import save_file

from asdlib import augment, io
from asdlib.detectors import exposure
from asdlib.detectors.base import Detector, Scores, clip_by_clip
from asdlib.detectors.oevae_training import EVAL_ITEMS, MIX, ForwardPass, OEVAETraining
from asdlib.models import losses, oevae, training
from asdlib.scoring import pooling
from asdlib.scoring.distances import (
    density_references,
    density_scores,
    density_scores_left_out,
    knn_distances,
    knn_score,
    to_clips,
)

NO_ROW = -(2**31)  # parent index of references that are not clips of the store
KEPT_K = (1, 2, 4)  # additional k for which β is stored (report 4.2)


class MemoryBank(NamedTuple):
    """References of β: h float32 (n, dim), parents int64 (n, 2) store rows, target bool (n,).

    h comes from `OEVAE.vectors`.
    """

    h: np.ndarray
    parents: np.ndarray
    target: np.ndarray


class OEVAE(OEVAETraining, Detector):
    """Joint outlier-exposed extractor and VAE of one target machine (METHOD 3.4)."""

    name, Settings, systems = "oevae", oevae.OEVAESettings, ("oevae",)
    training_module = "asdlib.detectors.oevae_training"
    uses_others = True
    scoring_settings = (
        "alpha_mode",
        "alpha_vae",
        "drop_alpha",
        "layers",
        "pooling",
        "backend",
        "neighbors",
        "neighbor_domains",
        "ablation",
    )

    def training_settings(self) -> dict:
        """Settings that affect training; SMOTE on embeddings only affects references."""
        chosen = super().training_settings()
        return chosen if chosen["smote"]["space"] == "logmel" else chosen | {"smote": {"space": "embed"}}

    def _open(self) -> None:
        super()._open()
        self._inner: dict[int, np.ndarray] = {}

    def embedding_inputs(self) -> dict:
        """Layers, pooling and code behind β's vectors; empty if they are the network's output."""
        s = self.settings
        if self._is_last:
            return {}
        return {"layers": s.layers, "pooling": s.pooling, "code": io.code(type(self).__module__)}

    def embedded(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Forward pass per segment (`ForwardPass`), (clips, segments, ...); `inner` if β does not use h."""
        found = self._pass(rows)
        arrays = {"h": found.h, "mu": found.mu, "logvar": found.logvar}
        arrays |= {f"alpha_{mode}": values for mode, values in found.alpha.items()}
        arrays |= {} if self._is_last else {"inner": self._vectors(rows)}
        return {name: values.reshape(len(rows), -1, *values.shape[1:]) for name, values in arrays.items()}

    def take_embedded(self, rows: np.ndarray, arrays: dict[str, np.ndarray]) -> None:
        """Set forward passes from `embedded`."""
        modes = [name for name in arrays if name.startswith("alpha_")]
        for i, row in enumerate(rows.tolist()):
            alpha = {mode.removeprefix("alpha_"): arrays[mode][i] for mode in modes}
            h, mu, logvar = (arrays[name][i] for name in ("h", "mu", "logvar"))
            self._passes[row] = ForwardPass(h, mu, logvar, alpha, np.zeros(len(h), int))
            if "inner" in arrays:
                self._inner[row] = arrays["inner"][i]

    def _prepare(self) -> None:
        """Build the references of β."""
        self.references = self._made_references()
        self.reference_group = self._reference_groups()
        if self.settings.backend == "local_density":
            self._refer(self._profiles(self._vectors(self.train_rows)))
        if self._own_vae:
            scale = self.settings.condition.k_scale
            self.alpha_vae = self._refit(scale, self._vectors(self.train_rows), standardized=True)
            self.held_out_alpha = self._held_out_alpha(self._alpha_pass)

    @property
    def _own_vae(self) -> bool:
        """Whether α comes from a separate VAE (`alpha_vae`) on β's vectors."""
        return self.settings.alpha_vae == "vectors"

    def latent(self, x: torch.Tensor) -> losses.VAEOutput:
        """VAE output from which α is computed, differentiable.  x : log-mel, float32 (n, 1, mels, frames)"""
        return self.alpha_vae(self.vectors(x)) if self._own_vae else self.net.vae(self.net.embed(x))

    @torch.inference_mode()
    def _alpha_pass(self, rows: np.ndarray) -> ForwardPass:
        """`_pass` with μ, ln σ² and α of the VAE selected by `oevae.alpha_vae`."""
        found = self._pass(rows)
        if not self._own_vae:
            return found
        out = self.alpha_vae(torch.as_tensor(self._vectors(rows), device=self.device))
        alpha = losses.alpha_scores(out, domain=self.settings.domain_latent)
        alpha = {mode: values.cpu().numpy() for mode, values in alpha.items()}
        return found._replace(mu=out.mu.cpu().numpy(), logvar=out.logvar.cpu().numpy(), alpha=alpha)

    def _refer(self, profiles: np.ndarray) -> None:
        """Build local-density references per machine or section.  profiles : float32 (training clips, dim)"""
        self.profiles, self._left_out = profiles, {}
        self.densities = {
            name: density_references(profiles[self.group == name]) for name in np.unique(self.group)
        }

    def _accept(self) -> None:
        for group, h in self.accepted.items():
            new, bank = np.unique(h, axis=0), self.references  # segments of a short clip are identical
            parents, target = np.full((len(new), 2), NO_ROW), np.full(len(new), False)
            self.references = MemoryBank(
                *(np.concatenate(pair) for pair in zip(bank, (new, parents, target), strict=True))
            )
            self.reference_group = np.concatenate([self.reference_group, np.full(len(new), group)])
            if self.settings.backend == "local_density":
                train = np.concatenate([self.profiles[self.group == group], self._profiles(h)])
                self.densities = self.densities | {group: density_references(train)}

    def vectors(self, x: torch.Tensor) -> torch.Tensor:
        """Vectors of β, float32 (n, dim), differentiable: extractor `layers` pooled by `pooling`.

        x : log-mel of segments, float32 (n, 1, mels, frames).  dim : channels of the layers times 1 (mean), 3
            (mean_std) or up to 16 (bands).  Source: METHOD 3.10, 4.14
        """
        s = self.settings
        if self._is_last:
            return self.net.embed(x)
        stages = self.net.stages(x)
        return pooling.pool([stages[name] for name in s.layers], s.pooling)

    def untrained(self) -> oevae.OEVAE:
        """Network before training, in evaluation mode; as with `epochs = 0`.

        Seeded weights, initial BatchNorm statistics.  Notebook: 05_oevae
        """
        return self._network().eval()

    @property
    def _is_last(self) -> bool:
        """Whether β uses the extractor's output, as in the report."""
        return self.settings.layers == oevae.LAYERS[-1:] and self.settings.pooling == "mean"

    @training.one_thread()
    @torch.inference_mode()
    def _vectors(self, rows: np.ndarray) -> np.ndarray:
        """Vectors of the segments of clips, float32 (segments, dim), computed clip by clip and cached."""
        if self._is_last:
            return self._pass(rows).h
        for row in rows:
            if int(row) not in self._inner:
                x = self.front.log_mel(self.front.waves(self.front.items(np.array([row]))))
                self._inner[int(row)] = self.vectors(x).cpu().numpy()
        return np.concatenate([self._inner[int(row)] for row in rows])

    def _profiles(self, vectors: np.ndarray) -> np.ndarray:
        """Mean over each clip's segments, (segments, dim) → float32 (clips, dim)."""
        each = vectors.reshape(-1, self.settings.features.segments, vectors.shape[1])
        return each.mean(1, dtype=np.float64).astype(np.float32)

    def _made_references(self) -> MemoryBank:
        """Vectors of the training segments, of SMOTE items between them and of waveform mixtures."""
        s, device = self.settings, self.device
        items = self.front.items(self.train_rows)
        used = items.distinct()
        items, embedded = items[used], self._vectors(self.train_rows)[used.cpu().numpy()]
        domain, rows = self._groups(items)
        draws = training.generator_for(self.seed, MIX, device="cpu")
        mixed = augment.draw_mixup(len(items), prob=s.mixup.prob, beta=s.mixup.beta, generator=draws)
        some = mixed.weight < 1
        mixed = augment.MixPairs(mixed.first[some], mixed.second[some], mixed.weight[some])
        parts = [
            (embedded, np.stack([rows, rows], 1), domain == "target"),
            (self._of_mixtures(items, mixed, embedded.shape[1]), *self._parents(mixed, rows, domain)),
        ]
        if s.smote.space == "embed" and s.smote.ratio > 0:
            blend = self._smote(embedded, items)
            parts.append((blend.of(embedded), *self._parents(blend, rows, domain)))
        elif (
            s.smote.space == "logmel"
            and (target := self._target(self.train_rows[self.trained])).mels is not None
        ):
            with torch.inference_mode():
                h = (
                    torch.cat([self.vectors(part.to(device)) for part in target.mels.split(EVAL_ITEMS)])
                    .cpu()
                    .numpy()
                )
            clips = self.store.clips["domain"].to_numpy()
            parts.append((h, self.synthetic_parents, clips[self.synthetic_parents[:, 0]] == "target"))
        return MemoryBank(*(np.concatenate(values) for values in zip(*parts)))

    def _reference_groups(self) -> np.ndarray:
        """Group of each reference, str (references,); "" (unused) for mixtures across groups."""
        first, second = self.group[np.searchsorted(self.train_rows, self.references.parents)].T
        return np.where(first == second, first, "")

    @staticmethod
    def _parents(
        blend: augment.MixPairs, rows: np.ndarray, domain: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Store rows of both parents, and whether the heavier parent is of the target domain."""
        heavier = np.where(blend.weight.numpy() >= 0.5, blend.first.numpy(), blend.second.numpy())
        return blend.parents(rows), domain[heavier] == "target"

    @torch.inference_mode()
    def _of_mixtures(self, items: exposure.Segments, blend: augment.MixPairs, dim: int) -> np.ndarray:
        """Vectors of mixed waveforms, float32 (mixtures, dim)."""
        device, out = items.row.device, [np.zeros((0, dim), np.float32)]
        for part in torch.arange(len(blend)).split(EVAL_ITEMS) if len(blend) else ():
            first, second = (
                self.front.waves(items[who[part].to(device)]) for who in (blend.first, blend.second)
            )
            wave = torch.lerp(second, first, blend.weight[part].to(device)[:, None])
            out.append(self.vectors(self.front.log_mel(wave)).cpu().numpy())
        return np.concatenate(out)

    @torch.inference_mode()
    def _refitted(self, scale: float, h: np.ndarray) -> losses.VAEOutput:
        return self.heads[scale](torch.as_tensor(h, device=self.device))

    def _embed(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Segment vectors, float32 (segments, dim), and clip positions."""
        return self._vectors(rows), np.repeat(np.arange(len(rows)), self.settings.features.segments)

    @clip_by_clip
    def _scores(self, rows: np.ndarray) -> Scores:
        """Components of new clips."""
        return self._components(rows, own_clips=False)

    @property
    def unseen(self) -> np.ndarray:
        """Held-out training clips."""
        return ~self.trained

    def _training_scores(self) -> Scores:
        """Leave-clip-out components of the training clips."""
        return self._components(self.train_rows, own_clips=True)

    def _components(self, rows: np.ndarray, own_clips: bool) -> Scores:
        clip, items = self._pass(rows).clip, self._items(rows, own_clips)
        return {
            ("oevae", name): to_clips(values.astype(float), clip, len(rows)) for name, values in items.items()
        }

    def segment_scores(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Every component per segment, float64 (clips, segments).

        Their means over segments are `components` and `training_components(as_seen=True)`.  Notebook:
        06_embeddings
        """
        return {
            name: values.astype(float).reshape(len(rows), -1)
            for name, values in self._items(rows, own_clips=True).items()
        }

    def _items(self, rows: np.ndarray, own_clips: bool) -> dict[str, np.ndarray]:
        """Every component per segment, (segments,), clip by clip."""
        s, found = self.settings, self._pass(rows)
        items = {f"alpha_{mode}": values for mode, values in found.alpha.items()}
        dropped = s.drop_alpha and self.alpha_fault
        items["alpha"] = np.zeros(len(found.clip)) if dropped else self._alpha_pass(rows).alpha[s.alpha_mode]
        for scale in self.heads:
            values = losses.alpha_scores(self._refitted(scale, found.h), domain=s.domain_latent)[s.alpha_mode]
            items[f"alpha_k{scale:g}"] = values.cpu().numpy()
        group, vectors = self.group_of(self.store.clips.iloc[rows]), self._vectors(rows)
        by_k = self._neighbors(vectors, group[found.clip], rows[found.clip] if own_clips else None)
        beta = by_k[s.neighbors]
        if s.backend == "local_density":
            beta = self._densities(self._profiles(vectors), group, rows if own_clips else None)[found.clip]
        return items | {f"beta_k{k}": by_k[k] for k in KEPT_K} | {"beta": beta}

    def _densities(self, profiles: np.ndarray, group: np.ndarray, own: np.ndarray | None) -> np.ndarray:
        """Local density of each clip among the training clips of its machine or section, (clips,).

        profiles : float32 (clips, dim).  own : store rows, excluded if trained on; None for new clips
        """
        out = np.empty(len(profiles))
        for name in np.unique(group):
            for i in np.flatnonzero(group == name):
                place = -1 if own is None else self.place(own[i], name)
                out[i] = (
                    density_scores(profiles[i : i + 1], self.densities[name])[0]
                    if place < 0
                    else self._of_training(name)[place]
                )
        return out

    def _of_training(self, group: str) -> np.ndarray:
        """Leave-clip-out local density of the training clips of a machine or section, (clips,), cached."""
        if group not in self._left_out:
            self._left_out[group] = density_scores_left_out(self.profiles[self.group == group])
        return self._left_out[group]

    def place(self, row: int, group: str) -> int:
        """Index of a store row among the training clips of a machine or section, or -1.

        row : store row.  group : machine or section
        """
        (found,) = np.nonzero(self.train_rows[self.group == group] == row) if len(self.train_rows) else ([],)
        return int(found[0]) if len(found) else -1

    def _neighbors(self, h: np.ndarray, group: np.ndarray, own: np.ndarray | None) -> dict[int, np.ndarray]:
        """β of each item for every k, with one search per set of references.

        group : machine or section of each item.  own : store row of each item's clip, excluded from its
            references; None for new clips
        """
        every = sorted({*KEPT_K, self.settings.neighbors})
        out = {k: np.empty(len(h)) for k in every}
        for name in np.unique(group):
            here, found = np.flatnonzero(group == name), []
            for chosen in self.groups(every[-1], name):
                parents = None if own is None else self.references.parents[chosen]
                clip = None if own is None else own[here]
                # cap the additional k if clips are few
                most = max(self.settings.neighbors, min(every[-1], self._fewest(chosen)))
                found.append(
                    knn_distances(
                        h[here], self.references.h[chosen], k_max=most, test_clip=clip, train_clip=parents
                    )
                )
            for k in every:
                out[k][here] = np.min([knn_score(distances, k) for distances in found], axis=0)
        return out

    def groups(self, k: int, group: str) -> list[np.ndarray]:
        """Reference masks for β, bool (references,): all of a machine or section, or one per domain.

        Domains are separate if configured and at least k references of each remain for every clip.
        """
        own = self.reference_group == group
        if self.settings.neighbor_domains == "min":
            sides = (own & self.references.target, own & ~self.references.target)
            return [side for side in sides if self._fewest(side) >= k] or [own]
        return [own]

    def _fewest(self, group: np.ndarray) -> int:
        """Smallest number of references of a group that remains when a clip is left out."""
        parents = self.references.parents[group]
        counts = np.unique(
            np.concatenate([parents[:, 0], parents[parents[:, 0] != parents[:, 1], 1]]), return_counts=True
        )[1]
        return len(parents) - int(counts.max(initial=0))

    def tensors(self) -> dict[str, np.ndarray]:
        """Tensors of all normal training and all test clips of the machine, for notebooks and the tuner.

        embedding (n, dim), z_mean, z_logvar (n, latent), z_mean_k<scale>, z_logvar_k<scale>, clip (n,) store
        row per segment; per clip, ascending: rows (m,), v (NaN: unknown), prior (k·v) and trained (0 or 1).
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
        """Save references, and embeddings.safetensors with `tensors`."""
        for name, content in (("references", self.references._asdict()), (EMBEDDINGS, self.tensors())):
            # save_file ignores strides
            whole = {key: np.ascontiguousarray(values) for key, values in content.items()}
            save_file(whole, folder / f"{name}.safetensors")
        if self.settings.backend == "local_density":
            save_file({"profiles": self.profiles}, folder / PROFILES)
        if self._own_vae:
            state = {name: value.cpu().numpy() for name, value in self.alpha_vae.state_dict().items()}
            save_file(state | self._alpha_facts(), folder / ALPHA_VAE)

    def _load(self, folder: Path) -> None:
        """Load what `_save` wrote."""
        self.references = MemoryBank(**io.tensors(folder / "references.safetensors", {}))
        self.reference_group = self._reference_groups()
        if self.settings.backend == "local_density":
            self._refer(io.tensors(folder / PROFILES, {"profiles": 2})["profiles"])
        if self._own_vae:
            state, s = io.tensors(folder / ALPHA_VAE, {"mean": 1}), self.settings
            self._take_alpha_facts(state)
            weights = {name: torch.from_numpy(state[name]) for name in state if not name.startswith("alpha/")}
            sizes = (len(state["mean"]), s.hidden, s.latent, s.domain_latent)
            self.alpha_vae = oevae.StandardizedVAE(*sizes).to(self.device).eval()
            with io.refused(folder / ALPHA_VAE, "the VAE of α"):
                self.alpha_vae.load_state_dict(weights)

    def standardization(self) -> dict[str, np.ndarray]:
        """`fixed` float64 (2,): mean and standard deviation of the machine; {} for wave_norm "clip"."""
        return {} if self.front.fixed is None else {"fixed": np.array(self.front.fixed)}

    def take_standardization(self, arrays: dict[str, np.ndarray]) -> None:
        """Set statistics from `standardization`."""
        self.front.fixed = tuple(arrays["fixed"].tolist())

    def _moved(self, other: OEVAE) -> None:
        other.front, other._passes, other._inner = self.front.on(other.store), {}, {}
        other.train_rows = np.empty(0, np.int64)
        parents = self.references.parents + len(other.store)  # so that no clip of the other store is a parent
        other.references = self.references._replace(parents=parents)


EMBEDDINGS = "embeddings"  # name of the file with `OEVAE.tensors`
ALPHA_VAE = "alpha_vae.safetensors"  # for `oevae.alpha_vae = "vectors"`
PROFILES = "profiles.safetensors"  # training clip vectors for local density
