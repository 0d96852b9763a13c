"""Every number a study can turn, with its unit and its source.

A study is a small TOML file in `notebooks/studies` that says only what differs from the defaults below. Names and
types are checked on arrival: an unknown name is refused with a suggestion, a wrong type with what was expected.
Nothing is read from anywhere else; `digest` of the resolved settings stands beside every artefact.

    cfg = load("demo", overrides=["autoencoder.epochs=5"])

Sources: R = the technical report (with section), S = the project's system decisions, F = the facts gathered from
cited works. Notebooks: all of them (second cell).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tomllib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from asdlib import checks

STUDIES = Path(__file__).resolve().parent.parent / "notebooks" / "studies"


def setting(default, doc: str, low: float | None = None, high: float | None = None):
    """A field with its explanation and, for numbers, the closed range of values it may take."""
    return field(default=default, metadata={"doc": doc, "low": low, "high": high})


@dataclass(frozen=True)
class Data:
    """Which recordings, and how they are decoded."""

    roots: tuple[str, ...] = setting((), "folders that hold <machine>/train and <machine>/test; none: the [synthetic] machines are made")
    recorded: bool = setting(False, "refuse to run without data roots instead of making synthetic recordings")
    machines: tuple[str, ...] = setting((), "machines to use; none: all that are found")
    sample_rate: int = setting(16000, "Hz (R 4.2)", 1000, 192000)
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
    """Training-free nearest neighbour on the mean and standard deviation over time of a log-mel (S 6)."""

    n_mels: int = setting(128, "mel bands", 16, 512)
    k: int = setting(2, "neighbours whose distance is averaged (S 6)", 1, 100)


@dataclass(frozen=True)
class Autoencoder:
    """The official autoencoder baseline (F5)."""

    n_mels: int = setting(128, "mel bands (F5)", 8, 512)
    n_fft: int = setting(1024, "samples (F5)", 64, 65536)
    hop_length: int = setting(512, "samples (F5)", 16, 65536)
    frames: int = setting(5, "consecutive frames per input vector (F5)", 1, 64)
    hidden: int = setting(128, "units of each hidden layer (F5)", 1, 8192)
    bottleneck: int = setting(8, "units of the latent layer (F5)", 1, 8192)
    epochs: int = setting(100, "passes over all training vectors (F5)", 1, 100000)
    batch: int = setting(256, "vectors per step (F5)", 2, 65536)
    lr: float = setting(1e-3, "Adam step size (F5)", 0.0, 1.0)
    holdout: float = setting(0.1, "share of the vectors kept out of training, for the logged error only (F5)", 0.0, 0.9)
    mahala: Literal["mean_residual", "per_frame"] = setting(
        "mean_residual", "selective Mahalanobis: of the clip's mean residual (official, F5), or the mean over frames"
    )
    folds: int = setting(2, "training clips are scored by networks that never saw them: this many folds", 2, 20)


@dataclass(frozen=True)
class Fusion:
    """How scores become comparable and are combined (S 7)."""

    normalise: Literal["zscore", "none", "rank", "gamma"] = setting("zscore", "scale from normal training scores (S 7)")
    omega: float = setting(0.5, "weight of alpha in OEVAE (R Eq. 6)", 0.0, 1.0)
    eta: float = setting(0.5, "weight of OEVAE in the ensemble (S 7)", 0.0, 1.0)


@dataclass(frozen=True)
class Metrics:
    """Official metrics, intervals, decisions (S 8)."""

    max_fpr: float = setting(0.1, "largest false positive rate of the partial AUC (F3)", 0.001, 1.0)
    bootstrap: int = setting(2000, "stratified resamples behind every interval", 20, 1000000)
    confidence: float = setting(0.95, "two-sided coverage of the intervals", 0.5, 0.999)
    decision_quantile: float = setting(0.9, "quantile of the gamma fit to training scores (F5)", 0.5, 0.9999)
    shuffles: int = setting(200, "label shuffles of the control", 10, 100000)


@dataclass(frozen=True)
class Report:
    """What the report shows."""

    players: int = setting(24, "clips with a player; 30 keep the file small", 0, 30)


@dataclass(frozen=True)
class Study:
    """All settings of one study. The name is the file's name."""

    name: str = setting("unnamed", "name of the study: letters, digits, _ and -")
    about: str = setting("", "one sentence for the report: what this study is for and what it simplifies")
    seeds: tuple[int, ...] = setting((0,), "one run per seed", 0, 2**31 - 1)
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "where tensors live; auto takes a GPU where there is one")
    systems: tuple[str, ...] = setting(("baseline_knn", "baseline_mse", "baseline_mahala"), "systems to run")
    data: Data = field(default_factory=Data)
    synthetic: Synthetic = field(default_factory=Synthetic)
    baseline_knn: BaselineKNN = field(default_factory=BaselineKNN)
    autoencoder: Autoencoder = field(default_factory=Autoencoder)
    fusion: Fusion = field(default_factory=Fusion)
    metrics: Metrics = field(default_factory=Metrics)
    report: Report = field(default_factory=Report)


def study_names() -> list[str]:
    """Names of the studies that the project knows."""
    return sorted(path.stem for path in STUDIES.glob("*.toml"))


def load(name: str, overrides: typing.Sequence[str] = ()) -> Study:
    """Settings of a study: its file in notebooks/studies (or a path to a .toml) over the defaults, then `a.b=value`.

    name : name of a study, or the path of a TOML file
    overrides : strings like "autoencoder.epochs=5"; the right side is TOML, or else taken as a string
    raises : checks.Refusal for unknown studies, names, types and values out of range
    """
    path = Path(name) if name.endswith(".toml") else STUDIES / f"{name}.toml"
    if not path.is_file():
        raise checks.Refusal(f"unknown study {name!r}" + checks.did_you_mean(name, study_names()))
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise checks.Refusal(f"{path}: not readable as TOML ({error}); correct the file") from error
    for text in overrides:
        _put(tree, text)
    tree.setdefault("name", path.stem)
    cfg = from_tree(Study, tree)
    for root in cfg.data.roots:
        if not Path(root).is_absolute():
            raise checks.Refusal(f"setting data.roots: {root!r} is relative; give the whole path, or --data-root DIR on the command line")
    if not cfg.name.replace("_", "").replace("-", "").isalnum():
        raise checks.Refusal(f"setting name: got {cfg.name!r}, expected letters, digits, _ and - only; rename the study")
    return cfg


def _put(tree: dict, text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise checks.Refusal(f"--set {text!r}: expected name=value, for example autoencoder.epochs=5")
    try:
        parsed = tomllib.loads(f"x = {value}")["x"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    *sections, last = key.strip().split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise checks.Refusal(f"--set {text!r}: {section} is a value, not a section")
    tree[last] = parsed


def from_tree(cls: type, tree: dict, where: str = ""):
    """A settings dataclass from nested dicts; unknown names, wrong types and values out of range are refused."""
    hints = typing.get_type_hints(cls)
    values = {}
    for key, value in tree.items():
        name = f"{where}{key}"
        if key not in hints:
            close = checks.closest(key, list(hints))
            hint = f"; did you mean {where}{close}?" if close else f"; known here: {', '.join(hints)}"
            raise checks.Refusal(f"unknown setting {name}{hint}")
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, dict):
                raise checks.Refusal(f"setting {name}: got {value!r}, expected a section [{name}]")
            values[key] = from_tree(hints[key], value, f"{name}.")
        else:
            meta = next(f.metadata for f in dataclasses.fields(cls) if f.name == key)
            values[key] = _convert(hints[key], value, name, meta)
    return cls(**values)


def _convert(hint, value, name: str, meta: typing.Mapping):
    origin = typing.get_origin(hint)
    if origin is tuple:
        inner = typing.get_args(hint)[0]
        if not isinstance(value, (list, tuple)):
            value = [value]
        return tuple(_convert(inner, item, name, meta) for item in value)
    if origin is Literal:
        if value not in typing.get_args(hint):
            raise checks.Refusal(f"setting {name}: got {value!r}, expected one of {', '.join(map(repr, typing.get_args(hint)))}")
        return value
    if isinstance(hint, types.UnionType):
        raise TypeError(f"{name}: settings have one type each")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not hint:
        raise checks.Refusal(f"setting {name}: got {value!r} ({type(value).__name__}), expected {hint.__name__}")
    if hint in (int, float):
        low, high = meta.get("low"), meta.get("high")
        if value != value or (low is not None and value < low) or (high is not None and value > high):
            raise checks.Refusal(f"setting {name}: got {value!r}, expected a number from {low} to {high}")
    return value


def to_tree(settings) -> dict:
    """Nested dict of a settings dataclass, ready for JSON."""
    return json.loads(json.dumps(dataclasses.asdict(settings)))


def digest(*parts) -> str:
    """Hexadecimal digest (16 digits) of settings dataclasses and JSON-able values: equal content, equal digest."""
    plain = [to_tree(part) if dataclasses.is_dataclass(part) else part for part in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def describe(cls: type = Study, where: str = "") -> list[tuple[str, object, str]]:
    """(name, default, explanation) of every setting, for `asd settings`."""
    rows = []
    for item in dataclasses.fields(cls):
        if item.default_factory is not dataclasses.MISSING:
            rows += describe(item.default_factory, f"{where}{item.name}.")
        else:
            rows.append((f"{where}{item.name}", item.default, item.metadata["doc"]))
    return rows
