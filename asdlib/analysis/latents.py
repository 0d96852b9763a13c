"""Latent space of the OEVAE: what z_d and z_c know of the condition v and of the domain, and whether the VAE
lives at all.

Conventions
-----------
Items are segments; z_d is the first `domain_latent` channels of z, z_c the others. A measure is taken on
*fresh* clips, normal ones that the network was not trained on (held-out training clips and normal test
clips), one vector per clip (the mean of its segments), and it stands beside what chance gives. What is fitted
to predict v is fitted on the training clips. None of this enters a score.

What z tells is asked of z drawn from its posterior: a channel that has collapsed to its prior tells nothing
then, while its μ may still move by a thousandth, which a regression on standardized channels would find. (α
is computed at z = μ, and such a thousandth is then all that it consists of.)

A channel is alive when its μ moves: variance over the items above 0.01 (Burda et al. 2016). The KL of a
channel of z_d says nothing about that, for a channel that ignores its input still pays for the distance to
the prior mean k·v.

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

TIED, LOOSE = 0.8, 0.3  # R² of v from z_d: from the first on it follows v, below the second it does not
SPACES = ("embedding", "z_d", "z_c")
PENALTIES = tuple(10.0 ** np.arange(-1, 5))
DRAWS = 4  # of z from its posterior, over which a classifier's accuracy is averaged
COLUMNS = ["space", "of", "measure", "value", "chance", "clips"]
SPENT = 0.01  # nats: a binary loss below this teaches the extractor nothing more


@dataclass(frozen=True, eq=False)
class Latents:
    """Embeddings and latents of all clips of one machine, as the detector wrote them.

    embedding float32 (n, dim), z_mean and z_logvar float32 (n, latent); clip int (n,): position of the item's
    clip in `clips`
    clips : clip table of the machine with v, prior (k·v, from its mean where `condition.center`) and trained
        (whether the network was trained on the clip)
    domain : channels of z_d.  refits : k_scale -> z_mean and z_logvar, float32 (n, latent), of the VAE
        refitted with it
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
        """A bool (clips,): normal clips that the network was not trained on."""
        return ((self.clips["label"] == "normal") & ~self.clips["trained"]).to_numpy()

    @property
    def trained(self) -> np.ndarray:
        """A bool (clips,): clips that the network was trained on."""
        return self.clips["trained"].to_numpy()

    def of_clips(self, items: np.ndarray) -> np.ndarray:
        """Mean over the items of each clip, (n, dim) to (clips, dim)."""
        return np.stack(
            [distances.to_clips(column, self.clip, len(self.clips)) for column in items.T.astype(float)],
            axis=1,
        )

    def draws(self, mean: np.ndarray, logvar: np.ndarray) -> list[np.ndarray]:
        """DRAWS times (clips, latent), z drawn from its posterior; always the same draws for a machine of
        this name.
        """
        rng = np.random.default_rng(zlib.crc32(self.machine.encode()))
        return [
            self.of_clips(mean + np.exp(0.5 * logvar) * rng.standard_normal(mean.shape)) for _ in range(DRAWS)
        ]

    @functools.cached_property
    def spaces(self) -> dict[str, list[np.ndarray]]:
        """SPACES -> draws of (clips, dim); a single one of the embedding, in which nothing is drawn."""
        drawn = self.draws(self.z_mean, self.z_logvar)
        parts = ([z[:, : self.domain] for z in drawn], [z[:, self.domain :] for z in drawn])
        return dict(zip(SPACES, ([self.of_clips(self.embedding)], *parts)))

    @functools.cached_property
    def questions(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Which clips v and domain are asked of, bool (clips,), and the classes of these: v of fresh source
        clips that have one; domain of fresh clips.
        """
        v, domain = self.clips["v"].to_numpy(float), self.clips["domain"].to_numpy().astype(str)
        of_v, of_domain = (
            self.fresh & np.isfinite(v) & (domain != "target"),
            self.fresh & (domain != "unknown"),
        )
        return {"v": (of_v, v[of_v].astype(str)), "domain": (of_domain, domain[of_domain])}


def load(folder: Path, table: pd.DataFrame, machine: str, domain: int) -> Latents:
    """What an OEVAE detector left in its folder.  Arguments: `arranged`  raises : errors.InputError where
    nothing was written yet
    """
    path = Path(folder) / f"{EMBEDDINGS}.safetensors"
    if not path.is_file():
        raise errors.InputError(f"{path}: not there; run stage 05_oevae of {machine} first")
    found = io.tensors(path, {"embedding": 2, "z_mean": 2, "z_logvar": 2, "rows": 1, "clip": 1})
    with io.refused(path, "the latents of these clips"):
        return arranged(found, table, machine, domain)


def arranged(tensors: dict[str, np.ndarray], table: pd.DataFrame, machine: str, domain: int) -> Latents:
    """A detector's `tensors` beside the clips they belong to.

    table : the store's clip table.  domain : channels of z_d
    tensors : arrays by name, as `OEVAEDetector.tensors` describes their shapes (segments, dim), (clips,)
    """
    facts = {"v": tensors["v"], "prior": tensors["prior"], "trained": tensors["trained"].astype(bool)}
    clips = table.iloc[tensors["rows"]].reset_index(drop=True).assign(**facts)
    position = np.searchsorted(tensors["rows"], tensors["clip"])
    scales = sorted(float(name.removeprefix("z_mean_k")) for name in tensors if name.startswith("z_mean_k"))
    refits = {scale: (tensors[f"z_mean_k{scale:g}"], tensors[f"z_logvar_k{scale:g}"]) for scale in scales}
    items = (tensors[name] for name in ("embedding", "z_mean", "z_logvar"))
    return Latents(machine, *items, position, clips, domain, refits)


def channels(latents: Latents) -> pd.DataFrame:
    """Each latent channel over the fresh normal clips that have a v.

    returns : channel, part (z_d or z_c), kl (nats, mean), variance (of μ), alive.  Notebook: 05_oevae
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
    """R² of v predicted from x by ridge regression on standardized x, fitted elsewhere; NaN where v does not
    vary.

    The penalty is chosen on the clips of the fit (leave-one-out), so that many channels of few clips are not
    learnt by heart.
    fit_x, fit_v : (m, dim), (m,), training clips.  x, v : (n, dim), (n,), fresh clips.  1 is perfect, 0 as
        good as the mean, below 0 worse
    """
    if len(fit_v) < 2 or len(v) < 2 or np.ptp(v) == 0 or np.ptp(fit_v) == 0:
        return float("nan")
    model = make_pipeline(StandardScaler(), RidgeCV(PENALTIES)).fit(fit_x, fit_v)
    return float(r2_score(v, model.predict(x)))


def classifier_accuracy(x: np.ndarray, classes: np.ndarray, seed: int = 0) -> float:
    """Balanced accuracy of a logistic regression, cross-validated (5 folds); chance is 1 / number of classes.

    x : (clips, dim), classes : (clips,).  NaN for one class only, or a class with fewer than 2 clips; with
        fewer than 5, so many folds
    """
    counts = np.unique(classes, return_counts=True)[1]
    if len(counts) < 2 or counts.min() < 2:
        return float("nan")
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=300))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        told = cross_val_predict(
            model, x, classes, cv=StratifiedKFold(min(5, int(counts.min())), shuffle=True, random_state=seed)
        )
    return float(balanced_accuracy_score(classes, told))


def mutual_information(x: np.ndarray, classes: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Mutual information (nats) of the channel that knows most, and the same with shuffled classes (mean of
    2).

    x : (clips, channels), of which the 16 of largest variance are asked.  classes : (clips,)
    By nearest neighbors (scikit-learn); of few clips it is rough, hence the control. NaN for one class, for
    fewer than 8 clips, and where every class has a single clip
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
    """What each space knows of v and of the domain, on fresh normal clips.

    returns : machine, space, of (v or domain), measure, value, chance, clips.  v is judged in the source
        domain alone, where it varies most and
        the domain cannot help.  Notebooks: 05_oevae, 07_latents
    """
    rows = []
    for space, draws in latents.spaces.items():
        for of, (chosen, classes) in latents.questions.items():
            found = np.mean([classifier_accuracy(x[chosen], classes, seed) for x in draws])
            rows.append(
                (
                    space,
                    of,
                    "balanced accuracy",
                    float(found),
                    1 / max(len(np.unique(classes)), 1),
                    len(classes),
                )
            )
        rows.append((space, "v", "R²", tie(latents, draws), 0.0, int(latents.questions["v"][0].sum())))
    return pd.DataFrame(rows, columns=COLUMNS).assign(machine=latents.machine)


def information(latents: Latents, seed: int = 0) -> pd.DataFrame:
    """`mutual_information` of z_d and z_c with v and with the domain, as further rows of `measures`.
    Notebook: 07_latents
    """
    rows = []
    for space, (of, (chosen, classes)) in itertools.product(("z_d", "z_c"), latents.questions.items()):
        found = mutual_information(latents.spaces[space][0][chosen], classes, seed)
        rows.append((space, of, "mutual information (nats)", *found, len(classes)))
    return pd.DataFrame(rows, columns=COLUMNS).assign(machine=latents.machine)


def value_of(table: pd.DataFrame, space: str, of: str, measure: str) -> tuple[float, float]:
    """(value, chance) of one row of `measures`."""
    row = table[(table["space"] == space) & (table["of"] == of) & (table["measure"] == measure)].iloc[0]
    return float(row["value"]), float(row["chance"])


def tie(latents: Latents, draws: Sequence[np.ndarray]) -> float:
    """R² of v on fresh source normals, fitted on the source clips trained on; mean over draws (clips, dim).
    Notebooks: 05_oevae, 07_latents
    """
    v, source = latents.clips["v"].to_numpy(float), (latents.clips["domain"] != "target").to_numpy()
    fit, fresh = (chosen & source & np.isfinite(v) for chosen in (latents.trained, latents.fresh))
    return float(np.mean([r_squared(x[fit], v[fit], x[fresh], v[fresh]) for x in draws]))


def refit_table(latents: Latents) -> pd.DataFrame:
    """R² of v from z_d (`tie`) for each refitted k_scale: k_scale, R², machine.  Notebooks: 07_latents,
    08_tuning
    """
    rows = [
        (scale, tie(latents, [z[:, : latents.domain] for z in latents.draws(*found)]))
        for scale, found in latents.refits.items()
    ]
    return pd.DataFrame(rows, columns=["k_scale", "R²"]).assign(machine=latents.machine)


def verdict(table: pd.DataFrame, alive: pd.DataFrame) -> str:
    """What the VAE of one machine is worth, in one line of words.  table : of `measures`, one machine.  alive
    : of `channels`
    """
    count = alive.groupby("part")["alive"].sum().reindex(["z_d", "z_c"], fill_value=0)
    tie = value_of(table, "z_d", "v", "R²")[0]
    of_c, chance = value_of(table, "z_c", "domain", "balanced accuracy")
    raw = value_of(table, "embedding", "domain", "balanced accuracy")[0]
    follows = "follows" if tie >= TIED else "partly follows" if tie >= LOOSE else "does not follow"
    words = ["z_d cannot be judged, v has one value" if np.isnan(tie) else f"z_d {follows} v (R² {tie:.2f})"]
    words.append(f"{count['z_c']} of {(alive['part'] == 'z_c').sum()} channels of z_c are alive")
    if not np.isnan(of_c):
        nearer = abs(of_c - chance) < abs(raw - chance)
        told = "less than" if nearer else "as much as" if of_c <= raw else "more than"
        words.append(
            f"z_c tells the domain {told} the embedding ({of_c:.2f} against {raw:.2f}, chance {chance:.2f})"
        )
    dead = count["z_c"] == 0 and not tie >= LOOSE
    half = " α is then nearly constant and tells nothing." if count["z_c"] == 0 else ""
    name = table["machine"].iloc[0]
    return f"{name}: {'this VAE is dead: ' if dead else ''}{'; '.join(words)}.{half}"


def why_alpha(table: pd.DataFrame, value: float, low: float, high: float) -> str:
    """Why α is below or above chance on one machine, in words: does it rank clips by the norm of h, and is
    h of anomalies longer?

    table : test clips with label, α and ‖h‖ (the mean norm of the clip's embeddings)
    value, low, high : harmonic mean of the AUCs of α with its interval, NaN without labels.  Notebook:
        05_oevae
    """
    follows = table["α"].corr(table["‖h‖"], "spearman")
    verb = "ranks" if abs(follows) > 0.7 else "does not rank"
    ranks = f"α {verb} clips by ‖h‖ (rank correlation {follows:+.2f})"
    labeled = table[table["label"] != "unlabeled"]
    if labeled["label"].nunique() < 2:
        return f"{ranks}; without labels of both kinds there is no more to say."
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
    """Whether the binary loss still taught the extractor something, in words.

    history : of the detector, with the column machine (binary cross-entropy, nats); empty: no epoch.  Source:
        METHOD 3.9.  Notebook: 05_oevae
    """
    if history.empty:
        return "Not trained: the extractor has its initial weights, and what it separates it owes to chance."
    low = history.loc[history["machine"] < SPENT, "epoch"]
    if low.empty:
        return (
            f"The binary loss ends at {history['machine'].iloc[-1]:.3f} nats: the pseudo-anomalies still"
            " teach the extractor something."
        )
    return (
        f"Saturated: the binary loss is below {SPENT} nats from epoch {low.iloc[0]} of"
        f" {history['epoch'].iloc[-1]} on and shapes the embedding no more; the pseudo-anomalies are too"
        " different. See oevae.mixup.outliers, attribute_weight, kl_warmup and near."
    )


def load_vae(folder: Path, settings: oevae.OEVAESettings) -> VAE:
    """The VAE of a finished detector, without its extractor; for traversals.

    raises : errors.InputError for weights that are missing, torn or of another shape
    """
    path = Path(folder) / "weights.safetensors"
    try:
        found = load_tensors(path)
        state = {name.removeprefix("vae."): value for name, value in found.items() if name.startswith("vae.")}
        vae = VAE(
            state["decoder.2.weight"].shape[0], settings.hidden, settings.latent, settings.domain_latent
        )
        vae.load_state_dict(state)
    except Exception as error:  # torch raises many kinds for torn and foreign files
        raise errors.InputError(
            f"{path}: does not hold the weights of this VAE ({type(error).__name__}); run stage 05_oevae"
            " again"
        ) from error
    return vae.eval()


@torch.inference_mode()
def traversal(latents: Latents, vae: VAE, steps: int = 9) -> pd.DataFrame:
    """Turn z_d of fresh source normals through the range of v, decode, and look up the nearest training
    clips.

    Every item keeps its z_c; all channels of z_d are set to the prior mean of a value of v between the
    smallest and largest of training. The decoder answers with an embedding; `found` is the v of its nearest
    training segment. A tied and disentangled latent finds what was set.
    returns : machine, set, found (mean over items), low, high (quartiles over items), moved: mean distance of
        the decoded embedding from the one
        decoded without turning.  Empty where v has one value.  Notebook: 07_latents
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
    neighbors, of = torch.from_numpy(latents.embedding[trained]), v[latents.clip[trained]]
    rows = []
    for value in np.linspace(v[latents.trained & source].min(), v[latents.trained & source].max(), steps):
        turned = z.clone()
        turned[:, : latents.domain] = float(slope * value + offset)
        decoded = vae.decoder(turned)
        found = of[torch.cdist(decoded, neighbors).argmin(1).numpy()]
        moved = np.linalg.norm(decoded.numpy() - before, axis=1).mean()
        rows.append((latents.machine, value, found.mean(), *np.quantile(found, [0.25, 0.75]), moved))
    return pd.DataFrame(rows, columns=columns)
