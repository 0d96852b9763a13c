"""Every number a study can turn, with its unit and its source.

A study is a small TOML file in `notebooks/studies` that says only what differs from the defaults below. Names and
types are checked on arrival: an unknown name is refused with a suggestion, a wrong type with what was expected.
Nothing is read from anywhere else; `digest` of the resolved settings stands beside every artefact.

    cfg = load("demo", overrides=["autoencoder.epochs=5"])

A study may include other TOML files, for example the `tuned.toml` of a study's run folder: `include = ["../../runs/demo/tuned.toml"]`, relative to
the file that says it. The default is overruled by what is included (the last file wins), that by the study's own values, those by `overrides`.

Sources: report and Eq. with a number are those of the technical report, METHOD those of notebooks/METHOD.md. Notebooks: all of them (second cell).
"""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from asdlib import errors
from asdlib.settings import from_tree, merged, parse, put, shown

STUDIES = Path(__file__).resolve().parents[2] / "notebooks" / "studies"


def setting(default, doc: str, low: float | None = None, high: float | None = None):
    """A field with its explanation and, for numbers, the closed range of values it may take."""
    return field(default=default, metadata={"doc": doc, "low": low, "high": high})


@dataclass(frozen=True)
class Data:
    """Which recordings, and how they are decoded."""

    roots: tuple[str, ...] = setting((), "folders that hold <machine>/train and <machine>/test; none: the [synthetic] machines are made")
    recorded: bool = setting(False, "refuse to run without data roots instead of making synthetic recordings")
    machines: tuple[str, ...] = setting((), "machines to use; none: all that are found")
    sample_rate: int = setting(16000, "Hz (report 4.2)", 1000, 192000)
    resample: bool = setting(False, "resample other rates on load; otherwise such clips are left out and reported")
    channel: int = setting(0, "which channel of a multi-channel recording", 0, 63)


@dataclass(frozen=True)
class Synthetic:
    """Machines made from physics, for studies without recordings."""

    machines: tuple[str, ...] = setting(("fan", "gearbox", "valve", "slider"), "which of the modelled machines; NAME:KIND gives one another name")
    train_source: int = setting(90, "normal training clips per machine, source domain", 0, 100000)
    train_target: int = setting(10, "normal training clips per machine, target domain", 0, 100000)
    test: int = setting(25, "test clips per machine, domain and label", 0, 100000)
    seconds: float = setting(10.0, "s, length of a clip", 1.0, 600.0)
    severity: tuple[float, ...] = setting(
        (1.0,), "fault severity, 0 inaudible, 1 as hard as recorded machines, 3 blatant; several: spread over the anomalies", 0.0, 10.0
    )
    seed: int = setting(0, "seed of the machines", 0, 2**31 - 1)


@dataclass(frozen=True)
class BaselineKNN:
    """Training-free nearest neighbour on the mean and standard deviation over time of a log-mel (METHOD 3.6)."""

    n_mels: int = setting(128, "mel bands", 16, 512)
    k: int = setting(2, "neighbours whose distance is averaged (METHOD 3.6)", 1, 100)


@dataclass(frozen=True)
class Autoencoder:
    """The official autoencoder baseline (METHOD 7.5)."""

    n_mels: int = setting(128, "mel bands (METHOD 7.5)", 8, 512)
    n_fft: int = setting(1024, "samples (METHOD 7.5)", 64, 65536)
    hop_length: int = setting(512, "samples (METHOD 7.5)", 16, 65536)
    frames: int = setting(5, "consecutive frames per input vector (METHOD 7.5)", 1, 64)
    hidden: int = setting(128, "units of each hidden layer (METHOD 7.5)", 1, 8192)
    bottleneck: int = setting(8, "units of the latent layer (METHOD 7.5)", 1, 8192)
    epochs: int = setting(100, "passes over all training vectors (METHOD 7.5)", 1, 100000)
    batch: int = setting(256, "vectors per step (METHOD 7.5)", 2, 65536)
    lr: float = setting(1e-3, "Adam step size (METHOD 7.5)", 0.0, 1.0)
    holdout: float = setting(0.1, "share of the vectors kept out of training, for the logged error only (METHOD 7.5)", 0.0, 0.9)
    mahala: Literal["mean_residual", "per_frame"] = setting(
        "mean_residual", "selective Mahalanobis: of the clip's mean residual (official, METHOD 7.5), or the mean over frames"
    )
    folds: int = setting(2, "training clips are scored by networks that never saw them: this many folds", 2, 20)


@dataclass(frozen=True)
class Condition:
    """The condition v that the latent space is tied to (METHOD 3.3)."""

    attribute: str = setting(
        "random", "attribute: random (by the seed, report 4.1), most_values (the numeric one with most values, METHOD 3.3), or its name"
    )
    missing: Literal["power", "zero"] = setting("power", "v of machines without attributes: power of the raw clip (report 4.1), or 0 (METHOD 4.7)")
    bins: int = setting(4, "quantile bins of the power (METHOD 4.5)", 2, 1000)
    k_scale: float = setting(5.0, "k = k_scale / smallest difference between two values of v (report 4.2)", 0.0, 1000.0)


@dataclass(frozen=True)
class Smote:
    """Synthetic items of the smaller domain, interpolated between clips (report 2.2; METHOD 4.13)."""

    space: Literal["embed", "logmel"] = setting("embed", "embed: before the nearest neighbours; logmel: in training (METHOD 3.2)")
    ratio: float = setting(0.2, "the target domain is brought to this part of the source domain's size; 0: off (METHOD 4.13)", 0.0, 1.0)
    k: int = setting(2, "neighbours to choose from, in other clips (METHOD 4.13)", 1, 100)


@dataclass(frozen=True)
class OEVAEFeatures:
    """What OEVAE sees of a clip (report 4.2)."""

    segments: int = setting(8, "equally spaced segments per clip (report 4.2)", 1, 1000)
    segment_s: float = setting(2.0, "s (report 4.2)", 0.05, 60.0)
    wave_norm: Literal["clip", "machine"] = setting("clip", "mean 0, variance 1 of each clip (report 4.2), or one mean and std per machine")
    n_fft: int = setting(1024, "samples; 2048 makes the mel bank full rank (METHOD 4.10)", 64, 65536)
    win_length: int = setting(1024, "samples, 64 ms (report 4.2)", 64, 65536)
    hop_length: int = setting(256, "samples, 16 ms (report 4.2)", 16, 65536)
    n_mels: int = setting(224, "mel bands (report 4.2)", 8, 512)
    low_hz: float = setting(50.0, "Hz (report 4.2)", 0.0, 96000.0)
    high_hz: float = setting(7800.0, "Hz (report 4.2)", 1.0, 96000.0)


@dataclass(frozen=True)
class OEVAEMixup:
    """Waveform mixup of segments (report 2.1)."""

    prob: float = setting(0.5, "probability per segment (METHOD 5.5)", 0.0, 1.0)
    beta: float = setting(1.0, "weights from Beta(beta, beta); 1 is uniform (METHOD 5.5), 0.2 stays near one parent (METHOD 6.3)", 0.01, 100.0)
    outliers: bool = setting(False, "mix target with pseudo-anomalous segments too, t and attributes become soft (METHOD 3.9)")


@dataclass(frozen=True)
class OEVAE:
    """Outlier-exposed extractor with a domain-invariant VAE (report 3.2; METHOD 3.4)."""

    features: OEVAEFeatures = field(default_factory=OEVAEFeatures)
    condition: Condition = field(default_factory=Condition)
    mixup: OEVAEMixup = field(default_factory=OEVAEMixup)
    smote: Smote = field(default_factory=Smote)
    width: int = setting(64, "channels of the first stage; 64 is ResNet-18 (report 4.2), less a narrower network for demos", 4, 256)
    pretrained: bool = setting(False, "start from ImageNet weights that are on disk; nothing is downloaded (METHOD 4.19)")
    pretrained_file: str = setting("", "file of these weights; empty: where torch.hub keeps them")
    hidden: int = setting(256, "units of the VAE's hidden layers (METHOD 4.14)", 2, 8192)
    latent: int = setting(64, "latent channels (report 4.2)", 2, 4096)
    domain_latent: int = setting(8, "of these, channels of z_d (report 4.2)", 1, 4095)
    lambda_vae: float = setting(1e-7, "λ of Eq. 1 (report 4.2)", 0.0, 1000.0)
    vae_grad: Literal["split", "literal"] = setting(
        "split", "λ scales the gradient from VAE to extractor (METHOD 3.4), or the VAE's loss (report Eq. 1)"
    )
    kl_warmup: float = setting(0.0, "epochs over which the weight of the KL terms rises from 0 to 1 (METHOD 3.9)", 0.0, 10000.0)
    attribute_weight: float = setting(0.0, "weight of the attribute head's loss; 10 as L_section (METHOD 6.3); 0: no such head (report)", 0.0, 1000.0)
    near: float = setting(0.0, "part of the pseudo-anomalies drawn from the machines nearest to the target; 0: uniform (METHOD 3.4)", 0.0, 1.0)
    batch: int = setting(128, "segments per step, half target, half pseudo-anomalous (report 4.2)", 2, 65536)
    epochs: int = setting(20, "passes over all target segments (report 4.2)", 1, 100000)
    lr: float = setting(1e-3, "Adam step size (report 4.2)", 0.0, 1.0)
    holdout: float = setting(0.1, "share of each domain's training clips kept out of training, to measure separation on (METHOD 6.3)", 0.0, 0.9)
    k_scales: tuple[float, ...] = setting((1.0, 2.5, 5.0, 10.0), "k_scale of VAEs refitted on the finished embeddings, for 08", 0.0, 1000.0)
    refit_epochs: int = setting(50, "passes over the training embeddings for each of them", 1, 100000)
    ablation: int = setting(0, "epochs of each row of the ablation in 05_oevae, on the first machine; 0: no ablation", 0, 1000)
    alpha_mode: Literal["nll", "expected_nll", "kl", "recon", "neg_elbo"] = setting("nll", "α of the score (report 3.2; METHOD 3.4); all are kept")
    neighbours: int = setting(1, "k of the kNN score β; 1, 2 and 4 are all kept (report 4.2)", 1, 100)
    neighbour_domains: Literal["pooled", "min"] = setting("pooled", "source and target together (METHOD 4.18), or the nearer of the two")


@dataclass(frozen=True)
class Classifier:
    """Classification-based model with three branches (report 3.1; METHOD 3.5)."""

    branches: tuple[str, ...] = setting(("fft", "mel", "phase"), "fft, mel, phase, stft<n_fft>; FeatEx leaves the first in place (report 3.1)")
    clip_seconds: float = setting(12.0, "s; clips are tiled or cropped to it (METHOD 5.1)", 0.1, 600.0)
    wave_norm: Literal["clip", "machine", "none"] = setting(
        "clip", "mean 0, variance 1 of each clip (report 4.2; METHOD 3.2), one mean and std per machine, or none as in the cited code (METHOD 5.1)"
    )
    n_fft: int = setting(1024, "samples, of mel and phase (METHOD 5.3)", 64, 65536)
    hop_length: int = setting(512, "samples, of mel and phase; stft<n> hops n/2 (METHOD 5.3)", 16, 65536)
    n_mels: int = setting(128, "bands of the mel branch", 8, 512)
    phase_repr: Literal["angle", "cossin", "if", "gd"] = setting("angle", "representation of the phase (METHOD 3.2)")
    dim: int = setting(128, "width of each branch's embedding (METHOD 5.2)", 2, 4096)
    subclusters: int = setting(16, "S of sub-cluster AdaCos (METHOD 5.7)", 1, 1024)
    scale: Literal["fixed", "adaptive"] = setting("fixed", "scale of sub-cluster AdaCos (METHOD 3.5, 5.7)")
    train_centres: bool = setting(False, "whether the plain head's centres learn (METHOD 5.6)")
    train_featex_centres: bool = setting(True, "whether the FeatEx head's centres learn (METHOD 5.6)")
    mixup_prob: float = setting(0.5, "probability of waveform mixup per clip (METHOD 5.5)", 0.0, 1.0)
    mixup_beta: float = setting(1.0, "weights from Beta(beta, beta); 1 is uniform (METHOD 5.5)", 0.01, 100.0)
    featex_prob: float = setting(0.5, "probability of an exchange per clip (METHOD 5.6)", 0.0, 1.0)
    featex_weight: float = setting(1.0, "weight of the FeatEx loss; 0: no FeatEx head (METHOD 5.6)", 0.0, 1000.0)
    l2: float = setting(1e-5, "weight of the squared kernels in the loss (METHOD 5.2)", 0.0, 1.0)
    batch: int = setting(64, "clips per step (METHOD 5.4)", 2, 65536)
    epochs: int = setting(10, "passes over all training clips (METHOD 5.4)", 1, 100000)
    lr: float = setting(1e-3, "Adamax step size (METHOD 3.5)", 0.0, 1.0)
    holdout: float = setting(0.1, "share of each class's training clips kept out of training, for the logged accuracy only", 0.0, 0.9)
    ablation: int = setting(0, "epochs of the trainings without mixup and without FeatEx that notebook 04 compares; 0: none", 0, 100000)
    kmeans: int = setting(16, "clusters of the source embeddings (METHOD 5.8)", 1, 1000)
    backend: Literal["kmeans", "knn", "smote_knn", "local_density"] = setting("kmeans", "back-end of the score (METHOD 5.8); all are kept")
    density_neighbours: int = setting(4, "K of local-density rescaling (METHOD 5.8)", 1, 100)
    smote: Smote = field(default_factory=Smote)


@dataclass(frozen=True)
class Fusion:
    """How scores become comparable and are combined (METHOD 3.7)."""

    normalise: Literal["zscore", "none", "rank", "gamma"] = setting("zscore", "scale from normal training scores (METHOD 3.7)")
    omega: float = setting(0.5, "weight of alpha in OEVAE (report Eq. 6)", 0.0, 1.0)
    eta: float = setting(0.5, "weight of OEVAE in the ensemble (METHOD 3.7)", 0.0, 1.0)


@dataclass(frozen=True)
class Metrics:
    """Official metrics, intervals, decisions (METHOD 3.8)."""

    max_fpr: float = setting(0.1, "largest false positive rate of the partial AUC (METHOD 7.3)", 0.001, 1.0)
    bootstrap: int = setting(2000, "stratified resamples behind every interval", 20, 1000000)
    confidence: float = setting(0.95, "two-sided coverage of the intervals", 0.5, 0.999)
    decision_quantile: float = setting(0.9, "quantile of the gamma fit to training scores (METHOD 7.5)", 0.5, 0.9999)
    shuffles: int = setting(200, "label shuffles of the control", 10, 100000)


@dataclass(frozen=True)
class Maps:
    """Maps of the embeddings in 06_embeddings (METHOD 8.5); PCA is always there."""

    umap: Literal["none", "clips", "segments"] = setting("segments", "UMAP of nothing, of the clips, or of clips and every segment")
    neighbours: int = setting(15, "neighbours that UMAP keeps together; more show the coarse order, fewer the fine one", 2, 200)
    min_dist: float = setting(0.1, "how close UMAP may bring items", 0.0, 0.99)
    epochs: int = setting(200, "of UMAP's layout", 10, 5000)


@dataclass(frozen=True)
class Report:
    """What the report shows."""

    players: int = setting(24, "clips with a player; 30 keep the file small", 0, 30)
    licence: str = setting("", "licence of the recordings, for the model card; empty: what a LICENCE file beside them says, else not stated")


@dataclass(frozen=True)
class Study:
    """All settings of one study. The name is the file's name."""

    name: str = setting("unnamed", "name of the study: letters, digits, _ and -")
    about: str = setting("", "one sentence for the report: what this study is for and what it simplifies")
    include: tuple[str, ...] = setting((), "TOML files whose settings hold where the study's file says nothing, relative to that file")
    seeds: tuple[int, ...] = setting((0,), "one run per seed", 0, 2**31 - 1)
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "where tensors live; auto takes a GPU where there is one")
    precision: Literal["auto", "float32", "bf16"] = setting(
        "auto", "of training steps of the large networks; auto: bf16 where the device has units for it; scores are always float32"
    )
    systems: tuple[str, ...] = setting(("baseline_knn", "baseline_mse", "baseline_mahala", "oevae", "classifier"), "systems to run")
    data: Data = field(default_factory=Data)
    synthetic: Synthetic = field(default_factory=Synthetic)
    baseline_knn: BaselineKNN = field(default_factory=BaselineKNN)
    autoencoder: Autoencoder = field(default_factory=Autoencoder)
    oevae: OEVAE = field(default_factory=OEVAE)
    classifier: Classifier = field(default_factory=Classifier)
    fusion: Fusion = field(default_factory=Fusion)
    metrics: Metrics = field(default_factory=Metrics)
    maps: Maps = field(default_factory=Maps)
    report: Report = field(default_factory=Report)


def study_names() -> list[str]:
    """Names of the studies that the project knows."""
    return sorted(path.stem for path in STUDIES.glob("*.toml"))


def load(name: str, overrides: typing.Sequence[str] = ()) -> Study:
    """Settings of a study: its file in notebooks/studies (or a path to a .toml) over the defaults, then `a.b=value`.

    name : name of a study, or the path of a TOML file
    overrides : strings like "autoencoder.epochs=5"; the right side is TOML, or else taken as a string
    returns : the settings; `include` holds whole paths
    raises : errors.Refusal for unknown studies, names, types and values out of range, and for an included file that is missing
    """
    tree = read(name, overrides)
    tree.pop("sweep", None)
    cfg = from_tree(Study, tree)
    for root in cfg.data.roots:
        if "\0" in root or not Path(root).is_absolute():
            raise errors.Refusal(f"setting data.roots: {root!r} is relative; give the whole path, or --data-root DIR on the command line")
    if not cfg.name.replace("_", "").replace("-", "").isalnum():
        raise errors.Refusal(f"setting name: got {cfg.name!r}, expected letters, digits, _ and - only; rename the study")
    return cfg


def read(name: str, overrides: typing.Sequence[str] = ()) -> dict:
    """What a study's file and the overrides say, as nested dicts; a table `sweep` belongs to asdlib.studies.sweeps.

    Arguments and refusals as of `load`.
    """
    path = Path(name) if name.endswith(".toml") else STUDIES / f"{name}.toml"
    if not _there(path):
        raise errors.Refusal(f"unknown study {shown(name)}" + errors.did_you_mean(name, study_names()))
    tree = _read(path)
    for text in overrides:
        put(tree, text)
    if "include" in tree:
        given = from_tree(Study, {"include": tree["include"]}).include
        try:
            tree["include"] = [str((path.parent / Path(file).expanduser()).resolve()) for file in given]
        except (OSError, ValueError, RuntimeError) as error:  # no user of that name, or no path at all
            raise errors.Refusal(f"setting include: {shown(list(given))} are no paths ({error}), expected TOML files") from error
        under: dict = {}
        for file in tree["include"]:
            under = merged(under, _included(Path(file), path))
        tree = merged(under, tree)
    tree.setdefault("name", path.stem)
    return tree


def _there(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long for a name, or with signs that no name has
        return False


def _read(path: Path) -> dict:
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise errors.Refusal(f"{path}: not readable as TOML ({error}); correct the file") from error


def _included(file: Path, study: Path) -> dict:
    """Settings of an included file; name and about stay the study's own."""
    if not _there(file):
        raise errors.Refusal(f"{study.name} includes {file}, and there is no such file; run the study that writes it, or take it out of include")
    tree = _read(file)
    if "include" in tree:
        raise errors.Refusal(f"{file} is included by {study.name} and has an include of its own; name all files in {study.name}")
    try:
        from_tree(Study, tree)
    except errors.Refusal as refusal:
        raise errors.Refusal(f"{file}: {refusal}") from refusal
    return {key: value for key, value in tree.items() if key not in ("name", "about")}


def describe(cls: type = Study, where: str = "") -> list[tuple[str, object, str]]:
    """(name, default, explanation) of every setting, for `asd settings`."""
    rows = []
    for item in dataclasses.fields(cls):
        if item.default_factory is not dataclasses.MISSING:
            rows += describe(item.default_factory, f"{where}{item.name}.")
        else:
            rows.append((f"{where}{item.name}", item.default, item.metadata["doc"]))
    return rows
