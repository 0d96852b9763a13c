"""Latent space of the OEVAE: information on condition v and domain in z_d and z_c, and collapsed channels.

Conventions
-----------
Items are segments; z_d is the first `domain_latent` channels of z, z_c the rest. Measures use *fresh* clips,
normal clips that the network was not trained on (held-out training clips and normal test clips), with one
vector per clip (the mean of its segments), and are reported with their value at chance. Regressions on v are
fitted on the training clips. Nothing here enters a score.

Measures use samples of z from its posterior. A channel that has collapsed to its prior then carries no
information, whereas its μ may still vary by a thousandth, which a regression on standardized channels would
pick up. (α is computed at z = μ, and consists of nothing else in that case.)

A channel is active (`alive`) if the variance of its μ over the items is above 0.01 (Burda et al. 2016). The
KL of a z_d channel does not show this: a channel that ignores its input still has a KL from the mean k·v.

Sources: METHOD 3.4, 3.9, 6.2; report 3.2.  Notebooks: 05_oevae, 07_latents, 08_tuning (refit)
"""

from __future__ import annotations

import functools
import itertools
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file as load_tensors
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_selection import mutual_info_classif
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import balanced_accuracy_score, r2_score, roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from asdlib import errors, io
from asdlib.detectors.oevae import EMBEDDINGS
from asdlib.detectors.oevae_training import ALIVE
from asdlib.models import oevae
from asdlib.models.oevae import VAE
from asdlib.scoring import distances

TIED, LOOSE = 0.8, 0.3  # R² of v from z_d: z_d follows v from the first on, and does not below the second
SPACES = ("embedding", "z_d", "z_c")
PENALTIES = tuple(10.0 ** np.arange(-1, 5))
DRAWS = 4  # samples of z from its posterior to average over
COLUMNS = ["space", "of", "measure", "value", "chance", "clips"]
SATURATED = 0.01  # nats; below this the binary loss does not train the extractor any more


@dataclass(frozen=True, eq=False)
class Latents:
    """Embeddings and latents of all clips of one machine, as written by the detector.

    embedding : float32 (n, dim).  z_mean, z_logvar : float32 (n, latent)
    clip : int (n,), position of each item's clip in `clips`
    clips : clip table with v, prior (k·v, relative to its mean if `condition.center`) and trained (bool)
    domain : number of z_d channels
    refits : k_scale -> z_mean and z_logvar, float32 (n, latent), of the VAE refitted with it
    """

    machine: str
    embedding: np.ndarray
    z_mean: np.ndarray
    z_logvar: np.ndarray
    clip: np.ndarray
    clips: pd.DataFrame
    domain: int
    refits: dict[float, tuple[np.ndarray, np.ndarray]]

    @property
    def fresh(self) -> np.ndarray:
        """Mask of normal clips that the network was not trained on, bool (clips,)."""
        return ((self.clips["label"] == "normal") & ~self.clips["trained"]).to_numpy()

    @property
    def trained(self) -> np.ndarray:
        """Mask of clips that the network was trained on, bool (clips,)."""
        return self.clips["trained"].to_numpy()

    def of_clips(self, items: np.ndarray) -> np.ndarray:
        """Average items by clip: (n, dim) to (clips, dim)."""
        return np.stack(
            [distances.to_clips(column, self.clip, len(self.clips)) for column in items.T.astype(float)],
            axis=1,
        )

    def draws(self, mean: np.ndarray, logvar: np.ndarray) -> list[np.ndarray]:
        """Return DRAWS posterior samples of z, each (clips, latent); seeded by the machine's name."""
        rng = np.random.default_rng(zlib.crc32(self.machine.encode()))
        return [
            self.of_clips(mean + np.exp(0.5 * logvar) * rng.standard_normal(mean.shape)) for _ in range(DRAWS)
        ]

    @functools.cached_property
    def spaces(self) -> dict[str, list[np.ndarray]]:
        """Samples (clips, dim) of each of SPACES; the embedding is deterministic and has one."""
        drawn = self.draws(self.z_mean, self.z_logvar)
        parts = ([z[:, : self.domain] for z in drawn], [z[:, self.domain :] for z in drawn])
        return dict(zip(SPACES, ([self.of_clips(self.embedding)], *parts)))

    @functools.cached_property
    def questions(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Clips and classes for each property: mask bool (clips,), classes of the masked clips.

        v uses fresh source clips with known v, domain uses fresh clips with known domain.
        """
        v, domain = self.clips["v"].to_numpy(float), self.clips["domain"].to_numpy().astype(str)
        has_v = self.fresh & np.isfinite(v) & (domain != "target")
        has_domain = self.fresh & (domain != "unknown")
        return {"v": (has_v, v[has_v].astype(str)), "domain": (has_domain, domain[has_domain])}


def load(folder: Path, table: pd.DataFrame, machine: str, domain: int) -> Latents:
    """Load the latents from the folder of an OEVAE detector.

    folder : of the detector.  Other arguments: see `arranged`
    raises : errors.InputError if there are none
    """
    path = Path(folder) / f"{EMBEDDINGS}.safetensors"
    if not path.is_file():
        raise errors.InputError(f"{path} does not exist; run stage 05_oevae of {machine} first")
    found = io.tensors(path, {"embedding": 2, "z_mean": 2, "z_logvar": 2, "rows": 1, "clip": 1})
    with io.refused(path, "the latents of these clips"):
        return arranged(found, table, machine, domain)


def arranged(tensors: dict[str, np.ndarray], table: pd.DataFrame, machine: str, domain: int) -> Latents:
    """Combine a detector's tensors with the clip table.

    tensors : arrays by name, (segments, dim) and (clips,), see `OEVAE.tensors`
    table : clip table of the store.  domain : number of z_d channels
    """
    columns = {"v": tensors["v"], "prior": tensors["prior"], "trained": tensors["trained"].astype(bool)}
    clips = table.iloc[tensors["rows"]].reset_index(drop=True).assign(**columns)
    position = np.searchsorted(tensors["rows"], tensors["clip"])
    scales = sorted(float(name.removeprefix("z_mean_k")) for name in tensors if name.startswith("z_mean_k"))
    refits = {scale: (tensors[f"z_mean_k{scale:g}"], tensors[f"z_logvar_k{scale:g}"]) for scale in scales}
    items = (tensors[name] for name in ("embedding", "z_mean", "z_logvar"))
    return Latents(machine, *items, position, clips, domain, refits)


def channels(latents: Latents) -> pd.DataFrame:
    """Return statistics of each latent channel over fresh clips with known v.

    returns : columns channel, part (z_d or z_c), kl (mean, nats), variance (of μ), alive.  Notebook: 05_oevae
    """
    known = latents.fresh & latents.clips["v"].notna().to_numpy()
    chosen = known[latents.clip]
    mu, logvar = latents.z_mean[chosen].astype(float), latents.z_logvar[chosen].astype(float)
    prior = np.zeros_like(mu)
    prior[:, : latents.domain] = latents.clips["prior"].to_numpy()[latents.clip][chosen][:, None]
    kl = 0.5 * (np.exp(logvar) + (mu - prior) ** 2 - 1 - logvar)
    number = np.arange(mu.shape[1])
    variance = mu.var(0) if len(mu) else np.zeros(len(number))
    parts = np.where(number < latents.domain, "z_d", "z_c")
    mean = kl.mean(0) if len(kl) else np.full(len(number), np.nan)
    return pd.DataFrame(
        {"channel": number + 1, "part": parts, "kl": mean, "variance": variance, "alive": variance > ALIVE}
    )


def r_squared(fit_x: np.ndarray, fit_v: np.ndarray, x: np.ndarray, v: np.ndarray) -> float:
    """Return R² of v predicted by ridge regression on standardized x, fitted on other clips.

    The penalty is selected by leave-one-out on the fitted clips, against overfitting of few clips.

    fit_x, fit_v : (m, dim) and (m,), training clips.  x, v : (n, dim) and (n,), fresh clips
    returns : 1 is perfect, 0 is as good as the mean; NaN if v is constant
    """
    if len(fit_v) < 2 or len(v) < 2 or np.ptp(v) == 0 or np.ptp(fit_v) == 0:
        return float("nan")
    model = make_pipeline(StandardScaler(), RidgeCV(PENALTIES)).fit(fit_x, fit_v)
    return float(r2_score(v, model.predict(x)))


def classifier_accuracy(x: np.ndarray, classes: np.ndarray, seed: int = 0) -> float:
    """Return the balanced accuracy of a logistic regression in 5-fold cross-validation.

    x : (clips, dim).  classes : (clips,); a class with fewer than 5 clips reduces the number of folds
    returns : chance is 1 / number of classes; NaN for a single class, or a class with a single clip
    """
    counts = np.unique(classes, return_counts=True)[1]
    if len(counts) < 2 or counts.min() < 2:
        return float("nan")
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=300))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        predicted = cross_val_predict(
            model, x, classes, cv=StratifiedKFold(min(5, int(counts.min())), shuffle=True, random_state=seed)
        )
    return float(balanced_accuracy_score(classes, predicted))


def mutual_information(x: np.ndarray, classes: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Return the largest mutual information of a channel with the classes, and the same for shuffled classes.

    Estimated by nearest neighbors (scikit-learn), which is rough for few clips; hence the control, a mean
    over 2 shuffles.

    x : (clips, channels); the 16 with the largest variance are used.  classes : (clips,)
    returns : nats; NaN for a single class, fewer than 8 clips, or one clip per class
    """
    if len(classes) < 8 or not 2 <= len(np.unique(classes)) < len(classes):
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    x = x[:, np.argsort(x.var(0))[-16:]]
    found = [
        mutual_info_classif(x, order, random_state=seed).max()
        for order in (classes, rng.permutation(classes), rng.permutation(classes))
    ]
    return float(found[0]), float(np.mean(found[1:]))


def measures(latents: Latents, seed: int = 0) -> pd.DataFrame:
    """Measure the information on v and domain in each space, on fresh clips.

    For v only source clips are used, where it varies most and does not depend on the domain.

    returns : COLUMNS and machine; `of` is v or domain.  Notebooks: 05_oevae, 07_latents
    """
    rows = []
    for space, draws in latents.spaces.items():
        for of, (chosen, classes) in latents.questions.items():
            accuracy = float(np.mean([classifier_accuracy(x[chosen], classes, seed) for x in draws]))
            chance = 1 / max(len(np.unique(classes)), 1)
            rows.append((space, of, "balanced accuracy", accuracy, chance, len(classes)))
        rows.append((space, "v", "R²", tie(latents, draws), 0.0, int(latents.questions["v"][0].sum())))
    return pd.DataFrame(rows, columns=COLUMNS).assign(machine=latents.machine)


def information(latents: Latents, seed: int = 0) -> pd.DataFrame:
    """Return `mutual_information` of z_d and z_c with v and domain, in the format of `measures`.

    Notebook: 07_latents
    """
    rows = []
    for space, (of, (chosen, classes)) in itertools.product(("z_d", "z_c"), latents.questions.items()):
        found = mutual_information(latents.spaces[space][0][chosen], classes, seed)
        rows.append((space, of, "mutual information (nats)", *found, len(classes)))
    return pd.DataFrame(rows, columns=COLUMNS).assign(machine=latents.machine)


def value_of(table: pd.DataFrame, space: str, of: str, measure: str) -> tuple[float, float]:
    """Return (value, chance) of one row of `measures`."""
    row = table[(table["space"] == space) & (table["of"] == of) & (table["measure"] == measure)].iloc[0]
    return float(row["value"]), float(row["chance"])


def tie(latents: Latents, draws: Sequence[np.ndarray]) -> float:
    """Return R² of v on fresh source clips, fitted on trained source clips; mean over draws (clips, dim).

    Notebooks: 05_oevae, 07_latents
    """
    v, source = latents.clips["v"].to_numpy(float), (latents.clips["domain"] != "target").to_numpy()
    fit, fresh = (chosen & source & np.isfinite(v) for chosen in (latents.trained, latents.fresh))
    return float(np.mean([r_squared(x[fit], v[fit], x[fresh], v[fresh]) for x in draws]))


def refit_table(latents: Latents) -> pd.DataFrame:
    """Return R² of v from z_d (`tie`) for each refitted k_scale: columns k_scale, R², machine.

    Notebooks: 07_latents, 08_tuning
    """
    rows = [
        (scale, tie(latents, [z[:, : latents.domain] for z in latents.draws(*found)]))
        for scale, found in latents.refits.items()
    ]
    return pd.DataFrame(rows, columns=["k_scale", "R²"]).assign(machine=latents.machine)


def verdict(table: pd.DataFrame, alive: pd.DataFrame) -> str:
    """Summarize the VAE of one machine in a sentence.

    table : from `measures`, one machine.  alive : from `channels`
    """
    count = alive.groupby("part")["alive"].sum().reindex(["z_d", "z_c"], fill_value=0)
    tie = value_of(table, "z_d", "v", "R²")[0]
    of_c, chance = value_of(table, "z_c", "domain", "balanced accuracy")
    raw = value_of(table, "embedding", "domain", "balanced accuracy")[0]
    follows = "follows" if tie >= TIED else "partly follows" if tie >= LOOSE else "does not follow"
    parts = ["z_d cannot be judged, v is constant" if np.isnan(tie) else f"z_d {follows} v (R² {tie:.2f})"]
    parts.append(f"{count['z_c']} of {(alive['part'] == 'z_c').sum()} channels of z_c are active")
    if not np.isnan(of_c):
        nearer = abs(of_c - chance) < abs(raw - chance)
        relation = "less than" if nearer else "as much as" if of_c <= raw else "more than"
        parts.append(
            f"z_c reveals the domain {relation} the embedding ({of_c:.2f} vs. {raw:.2f}, chance {chance:.2f})"
        )
    dead = count["z_c"] == 0 and not tie >= LOOSE
    note = " α is then nearly constant and uninformative." if count["z_c"] == 0 else ""
    name = table["machine"].iloc[0]
    return f"{name}: {'this VAE is dead: ' if dead else ''}{'; '.join(parts)}.{note}"


def why_alpha(table: pd.DataFrame, value: float, low: float, high: float) -> str:
    """Explain in words why α is below or above chance on one machine, by the norm of h.

    table : test clips with label, α and ‖h‖ (mean norm of the clip's embeddings)
    value, low, high : harmonic mean of the AUCs of α with its interval, NaN without labels
    Notebook: 05_oevae
    """
    correlation = table["α"].corr(table["‖h‖"], "spearman")
    verb = "ranks" if abs(correlation) > 0.7 else "does not rank"
    ranks = f"α {verb} clips by ‖h‖ (rank correlation {correlation:+.2f})"
    labeled = table[table["label"] != "unlabeled"]
    if labeled["label"].nunique() < 2:
        return f"{ranks}; an AUC needs labeled test clips of both kinds."
    side = (
        "below chance" if high < 0.5 else "above chance" if low > 0.5 else "not distinguishable from chance"
    )
    auc = roc_auc_score(labeled["label"] == "anomaly", labeled["‖h‖"])
    length = "shorter than" if auc < 0.45 else "longer than" if auc > 0.55 else "about as long as"
    return (
        f"α is {side} ({value:.2f} [{low:.2f}, {high:.2f}]). {ranks}; h of anomalies is {length} h of normal"
        f" clips (AUC of ‖h‖ {auc:.2f})."
    )


def saturation(history: pd.DataFrame) -> str:
    """Describe whether the binary loss still trained the extractor.

    history : of the detector, with column machine (binary cross-entropy, nats); empty without training
    Source: METHOD 3.9.  Notebook: 05_oevae
    """
    if history.empty:
        return "Not trained: the extractor has its initial, random weights."
    low = history.loc[history["machine"] < SATURATED, "epoch"]
    if low.empty:
        return (
            f"The binary loss ends at {history['machine'].iloc[-1]:.3f} nats: the extractor still learns from"
            " the pseudo-anomalies."
        )
    return (
        f"Saturated: the binary loss is below {SATURATED} nats from epoch {low.iloc[0]} of"
        f" {history['epoch'].iloc[-1]} on and does not shape the embedding any more; the pseudo-anomalies are"
        " too easy to tell apart. See oevae.mixup.outliers, attribute_weight, kl_warmup and near."
    )


def load_vae(folder: Path, settings: oevae.OEVAESettings) -> VAE:
    """Load the VAE of a finished detector without its extractor.

    raises : errors.InputError if the weights are missing, damaged or of another shape
    """
    path = Path(folder) / "weights.safetensors"
    try:
        found = load_tensors(path)
        state = {name.removeprefix("vae."): value for name, value in found.items() if name.startswith("vae.")}
        vae = VAE(
            state["decoder.2.weight"].shape[0], settings.hidden, settings.latent, settings.domain_latent
        )
        vae.load_state_dict(state)
    except Exception as error:  # of many kinds, for damaged and foreign files
        raise errors.InputError(
            f"{path}: does not hold the weights of this VAE ({type(error).__name__}); run stage 05_oevae"
            " again"
        ) from error
    return vae.eval()


@torch.inference_mode()
def traversal(latents: Latents, vae: VAE, steps: int = 9) -> pd.DataFrame:
    """Set z_d of fresh source clips to values over the range of v and decode them.

    z_c is kept; all z_d channels are set to the prior mean of a value of v within the range of training.
    `found` is the v of the training segment whose embedding is nearest to the decoded one; with a tied and
    disentangled latent it equals the value that was set.

    returns : columns machine, set, found (mean over items), low, high (quartiles over items), moved (mean
        distance between embeddings decoded with and without the change); empty if v is constant.
        Notebook: 07_latents
    """
    clips = latents.clips
    v, prior = clips["v"].to_numpy(float), clips["prior"].to_numpy(float)
    source = (clips["domain"] != "target").to_numpy() & np.isfinite(v)
    trained, fresh = (latents.trained & source)[latents.clip], (latents.fresh & source)[latents.clip]
    columns = ["machine", "set", "found", "low", "high", "moved"]
    if not fresh.any() or not trained.any() or np.ptp(v[latents.trained & source]) == 0:
        return pd.DataFrame(columns=columns)
    slope, offset = np.polyfit(v[latents.trained & source], prior[latents.trained & source], 1)
    z = torch.from_numpy(latents.z_mean[fresh])
    before = vae.decoder(z).numpy()
    neighbors, neighbor_v = torch.from_numpy(latents.embedding[trained]), v[latents.clip[trained]]
    rows = []
    for value in np.linspace(v[latents.trained & source].min(), v[latents.trained & source].max(), steps):
        changed = z.clone()
        changed[:, : latents.domain] = float(slope * value + offset)
        decoded = vae.decoder(changed)
        found = neighbor_v[torch.cdist(decoded, neighbors).argmin(1).numpy()]
        moved = np.linalg.norm(decoded.numpy() - before, axis=1).mean()
        rows.append((latents.machine, value, found.mean(), *np.quantile(found, [0.25, 0.75]), moved))
    return pd.DataFrame(rows, columns=columns)
