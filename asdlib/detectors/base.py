"""Detector interface and shared helpers.

Conventions
-----------
A detector is fitted to normal training clips and scores any clips. The interface is PyOD's: `fit`,
`decision_function`, `decision_scores_`, `threshold_`, `predict`, `get_params`. Higher is more anomalous
(scikit-learn's `score_samples` has the opposite sign). References, scales and thresholds are per machine, or
per section if a machine has several.

    detector = OEVAE(epochs=20, seed=0).fit(clips.train("fan"), others=clips.train(without="fan"))
    detector.embed(clips.test("fan"))               # vectors, and the clip of each
    detector.components(clips.test("fan"))          # {(system, component): one number per clip}
    detector.score(clips.test("fan"))               # score table: components and the fused score
    detector.decision_function(clips.test("fan"))   # the fused score alone

Fit, embed and score are separate steps: `fit` trains, `embed` runs the network, and scoring needs embeddings
only. A clip's score never depends on other scored clips. Training clips are scored leave-clip-out: they are
not among their own references. If the network was trained on them (classifier, OEVAE), their scores are still
too low and are raised to the level of held-out clips (`as_unseen` of `asdlib.scoring.thresholds`).
"""

from __future__ import annotations

import abc
import copy
import dataclasses
import functools
import inspect
import json
import numbers
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import pandas as pd
import torch

from asdlib import errors, io, schemas
from asdlib.data.store import Clips, Store, machine_rows, reference_groups, training_clips, training_rows
from asdlib.models import training
from asdlib.models.precision import DTYPES, NETWORKS, auto
from asdlib.scoring import fusion, thresholds
from asdlib.settings import Settings, digest, to_tree

Scores = dict[tuple[str, str], np.ndarray]  # (system, component): one value per clip, higher = more anomalous

SETTINGS_FILE, TRAINING_FILE, HISTORY_FILE = "detector.json", "training_scores.parquet", "history.parquet"


class Detector(abc.ABC):
    """Base class of all detectors.

    Parameters
    ----------
    settings : instance of the detector's settings class; None for the defaults
    seed : seed of all randomness, an integer >= 0
    device : "auto" (GPU if available), "cpu" or "cuda"
    precision : of training, "auto" (bf16 with hardware support), "float32" or "bf16"; scores are float32
    contamination : expected false positive rate at the threshold, in (0, 1)
    system : system scored by `decision_function`, one of `systems`; "" for the last of them
    checkpoints : folder for per-epoch checkpoints, to resume an interrupted training; None for no checkpoints
    fields : individual settings by name; a nested group may be given as a dict

    Raises
    ------
    errors.InputError for unknown names, with a suggestion, and values out of range
    """

    name: ClassVar[str]
    Settings: ClassVar[type[Settings]]
    systems: ClassVar[tuple[str, ...]]  # systems that it scores
    # used in scoring only: changing them needs no retraining
    scoring_settings: ClassVar[tuple[str, ...]] = ()
    training_module: ClassVar[str]  # code that determines the training result
    uses_others: ClassVar[bool] = False  # whether training uses clips of other machines
    accepted: Mapping[str, np.ndarray] = {}  # machine or section -> items (n, dim) of accepted clips
    history: pd.DataFrame

    def __init__(
        self,
        settings=None,
        *,
        seed: int = 0,
        device: str | torch.device = "auto",
        precision: str = "auto",
        contamination: float = 0.1,
        system: str = "",
        checkpoints: str | Path | None = None,
        **fields,
    ):
        self.settings = configured(self.Settings, settings, fields)
        self.check(self.settings)
        if not (isinstance(contamination, numbers.Real) and 0 < contamination < 1):
            raise errors.InputError(
                f"contamination: got {contamination!r}, expected a fraction between 0 and 1"
            )
        if not (isinstance(seed, numbers.Integral) and 0 <= seed < 2**63):
            raise errors.InputError(f"seed: got {seed!r}, expected an integer >= 0")
        errors.check_choice("precision", precision, ["auto", "float32", "bf16"])
        self.system = errors.check_choice("system", system, list(self.systems)) if system else ""
        self.seed, self.device_name, self.precision, self.contamination = (
            seed,
            device,
            precision,
            contamination,
        )
        self.device = device if isinstance(device, torch.device) else training.pick_device(device)
        self.checkpoints = Path(checkpoints) if checkpoints is not None else None
        self.history = pd.DataFrame()

    # ---------------------------------------------------------------- three steps

    def fit(self, clips: Clips, others: Clips | None = None) -> Self:
        """Train on normal training clips.

        Parameters
        ----------
        clips : training clips of one machine, or of all machines for a detector with a shared network
        others : normal clips of other machines from the same store, if the detector needs them

        Raises
        ------
        errors.InputError for no clips, clips twice, test clips or clips that are not normal, and unmet
            requirements of the detector
        """
        self.train(clips, others)
        self._prepare()
        return self

    def train(self, clips: Clips, others: Clips | None = None) -> Self:
        """First half of `fit`: train the network only, without preparing scoring."""
        _check_training(clips)
        self._bind(clips)
        self._train(np.empty(0, np.int64) if others is None else _of_store(others, clips.store))
        return self

    def embed(self, clips: Clips) -> tuple[np.ndarray, np.ndarray]:
        """Item embeddings float32 (items, dim), and the clip position of each item, int (items,)."""
        return self.at(_clips(clips).store)._embed(clips.rows)

    def embedding_inputs(self) -> dict | None:
        """Everything besides the trained network that determines the embeddings, by name.

        None for detectors that recompute embeddings whenever they score (plain features).
        """
        return None

    def embedded(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Network outputs that scoring uses, name -> (clips, ...), computed once per clip.

        rows : int (clips,), store rows
        """
        raise NotImplementedError

    def take_embedded(self, rows: np.ndarray, arrays: dict[str, np.ndarray]) -> None:
        """Set cached results of `embedded`, so that the network does not run on these clips again."""
        raise NotImplementedError

    @classmethod
    def check(cls, settings: Settings) -> None:
        """Validate settings against registries outside the settings class, such as back-ends."""
        return

    def components(self, clips: Clips) -> Scores:
        """All scores of clips, (system, component) -> float64 (clips,); training clips count as new ones.

        raises : errors.InputError for clips of a machine that the detector was not fitted to
        """
        there = self.at(_clips(clips).store)
        self._check_groups(clips)
        return there._scores(clips.rows)

    @property
    def unseen(self) -> np.ndarray:
        """Mask of training clips on which no network was trained, bool (training clips,)."""
        return np.ones(len(self.train_rows), bool)

    def training_components(self, *, as_seen: bool = False) -> Scores:
        """All leave-clip-out scores of the training clips, raised to the level of unseen clips.

        as_seen : return the scores without that correction
        """
        scores, unseen = self._training_scores(), self.unseen
        if as_seen or unseen.all():
            return scores
        domain = self.store.clips["domain"].to_numpy(str)[self.train_rows]
        out = {part: np.empty(len(unseen)) for part in scores}
        for part, values in scores.items():
            for name in np.unique(self.group):
                own = self.group == name
                out[part][own] = thresholds.as_unseen(values[own], unseen[own], domain[own])
        return out

    def accept(self, clips: Clips) -> Self:
        """Copy with additional normal clips of another store among the references; nothing is retrained.

        Each accepted clip is scored against the training clips and the other accepted clips; its score is
        added to `training_table_`, where training clips keep their scores. Detectors without references, such
        as the autoencoder, only gain these scores.

        raises : errors.InputError if clips were accepted before (accept all of them at once), and for no
            clips, anomalies, or clips of the training clips' store, which would be scored against themselves
        """
        self._fitted()
        if self.accepted:
            raise errors.InputError(f"{self.name} has already accepted clips; accept all of them at once")
        self._check_accepted(clips)
        there, every, group = self.at(clips.store), np.arange(len(clips)), self.group_of(clips.table)
        items = [there.compared(clips.rows[[i]]) for i in every]

        def among(chosen: np.ndarray) -> Self:
            other, names = copy.copy(self), pd.unique(group[chosen])
            other.accepted = {
                name: np.concatenate([items[i] for i in chosen if group[i] == name]) for name in names
            }
            other._accept()
            return other

        parts = [among(every[every != i]).components(Clips(clips.store, clips.rows[[i]])) for i in every]
        scores = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        table, out = score_table(clips.store.clips, clips.rows, scores, self.seed), among(every)
        taken = table["clip"].isin(self.training_table_["clip"])
        table["clip"] = table["clip"].where(~taken, "accepted/" + table["clip"])
        for name in ("decision_scores_", "thresholds_"):
            out.__dict__.pop(name, None)
        out.__dict__["training_table_"] = pd.concat([self.training_table_, table], ignore_index=True)
        return out

    # ---------------------------------------------------------------- PyOD's names

    def score(self, clips: Clips) -> pd.DataFrame:
        """Score table of clips (schemas.SCORE_COLUMNS): components, and the fused score of each system.

        Training clips of the detector get their leave-clip-out scores.
        """
        self._fitted()
        _clips(clips)
        own = (
            np.isin(clips.rows, self.train_rows) if clips.store is self.store else np.zeros(len(clips), bool)
        )
        new, training = clips.where(~own), self.training_table_
        tables = [training.assign(clip="0" + training["clip"])]
        if len(new):
            # as test clips of their own names, whatever their store says: scales are of training clips only
            scores = score_table(clips.store.clips, new.rows, self.components(new), self.seed)
            tables.append(scores.assign(clip="1" + scores["clip"], split="test"))
        fused = fusion.systems(pd.concat(tables, ignore_index=True), fusion.FusionSettings())
        given = clips.table.set_index(np.where(own, "0", "1") + clips.table["clip"])
        fused = fused[fused["clip"].isin(given.index)].reset_index(drop=True)
        split = given["split"].loc[fused["clip"]].to_numpy()
        return fused.assign(clip=fused["clip"].str[1:], split=split)

    def decision_function(self, clips: Clips) -> np.ndarray:
        """Fused score of each clip, float64 (clips,), higher = more anomalous, independent of other clips."""
        return self._final(self.score(clips), clips.table["clip"])

    def predict(self, clips: Clips) -> np.ndarray:
        """Labels, int (clips,): 1 above the threshold of the clip's machine and section, else 0."""
        scores, limits = self.decision_function(clips), self.thresholds_
        group = self.group_of(clips.table)
        return (scores > np.array([limits[name].value for name in group])).astype(int)

    @functools.cached_property
    def training_table_(self) -> pd.DataFrame:
        """Leave-clip-out score table of the training clips."""
        self._fitted()
        return score_table(self.store.clips, self.train_rows, self.training_components(), self.seed)

    @functools.cached_property
    def decision_scores_(self) -> np.ndarray:
        """Fused leave-clip-out scores, float64 (training clips,), in the order given to `fit`."""
        return self._final(
            fusion.systems(self.training_table_, fusion.FusionSettings()),
            self.store.clips["clip"].iloc[self.given_rows],
        )

    @functools.cached_property
    def thresholds_(self) -> dict[str, thresholds.Threshold]:
        """Threshold per machine, or per <machine>_<section>; see `thresholds.gamma_threshold`."""
        scores, group = self.decision_scores_, self.group[np.searchsorted(self.train_rows, self.given_rows)]
        return {
            name: thresholds.gamma_threshold(scores[group == name], 1 - self.contamination)
            for name in np.unique(group)
        }

    @property
    def threshold_(self) -> float:
        """Threshold of a detector fitted to a single machine and section; otherwise use `thresholds_`."""
        if len(self.thresholds_) > 1:
            raise errors.InputError(
                f"{self.name} was fitted to {', '.join(self.thresholds_)}, each with its own threshold; see"
                " thresholds_"
            )
        return next(iter(self.thresholds_.values())).value

    def get_params(self, deep: bool = True) -> dict:
        """Settings and constructor keywords by name, as in scikit-learn."""
        rest = {
            "seed": self.seed,
            "device": self.device_name,
            "precision": self.precision,
            "contamination": self.contamination,
        }
        return dict(self.settings) | rest | {"system": self.system, "checkpoints": self.checkpoints}

    @classmethod
    def _get_param_names(cls) -> list[str]:
        own = [
            name
            for name, item in inspect.signature(cls.__init__).parameters.items()
            if item.kind is item.KEYWORD_ONLY
        ]
        return sorted([*own, *cls.Settings.model_fields])

    def set_params(self, **params) -> Self:
        """Set settings and keywords by name, as in scikit-learn; requires a new fit."""
        self.__dict__ = type(self)(**(self.get_params() | params)).__dict__
        return self

    def __sklearn_clone__(self) -> Self:
        """Unfitted copy, for scikit-learn's `clone`."""
        return type(self)(**self.get_params())

    def __repr__(self) -> str:
        """Class name with non-default settings."""
        keywords = inspect.signature(Detector.__init__).parameters
        default = dict(self.Settings()) | {name: one.default for name, one in keywords.items()}
        changed = [f"{name}={value!r}" for name, value in self.get_params().items() if value != default[name]]
        return f"{type(self).__name__}({', '.join(changed)})"

    # ---------------------------------------------------------------- files

    def save(self, folder: str | Path) -> None:
        """Save a fitted detector to a folder, created if missing: settings as JSON, arrays as safetensors.

        raises : errors.InputError for a detector with accepted clips: save it before, accept after loading
        """
        self._fitted()
        if self.accepted:
            raise errors.InputError(
                f"{self.name} has accepted clips, which are not saved; save it without them, and accept"
                " them again after loading"
            )
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.save_training(folder)
        self.save_scoring(folder)

    def save_training(self, folder: str | Path) -> None:
        """Save the trained state and training history to an existing folder."""
        self._fitted()
        if len(self.history):
            io.write_table(Path(folder) / HISTORY_FILE, self.history)
        self._save_training(Path(folder))

    def save_scoring(self, folder: str | Path) -> None:
        """Save settings, training scores, and the scoring state."""
        self._fitted()
        folder = Path(folder)
        facts = {
            "detector": self.name,
            "settings": to_tree(self.settings),
            "seed": self.seed,
            "precision": self.precision,
            "contamination": self.contamination,
            "system": self.system,
            "training_clips": _contents(self.store.clips.iloc[self.train_rows]),
            "store": _contents(self.store.clips),
        }
        io.write_text(folder / SETTINGS_FILE, json.dumps(facts, indent=1))
        io.write_table(folder / TRAINING_FILE, self.training_table_)
        self._save(folder)

    def restore(self, folder: str | Path, clips: Clips) -> Self:
        """Load what `save` wrote, for the same training clips.

        Raises
        ------
        errors.InputError for a file that is missing, damaged or of another detector
        """
        return self.restore_training(folder, clips).restore_scoring(folder)

    def restore_training(self, folder: str | Path, clips: Clips) -> Self:
        """Load what `save_training` wrote, for the same training clips."""
        _check_training(clips)
        self._bind(clips)
        self._load_training(Path(folder))
        path = Path(folder) / HISTORY_FILE
        self.history = io.table(path, ["epoch"]) if path.is_file() else pd.DataFrame()
        return self

    def restore_scoring(self, folder: str | Path) -> Self:
        """Load what `save_scoring` wrote, after `restore_training`."""
        self._load(Path(folder))
        self.__dict__["training_table_"] = io.scores(Path(folder) / TRAINING_FILE)
        return self

    @classmethod
    def load(cls, folder: str | Path, clips: Clips, device: str = "auto") -> Self:
        """Load a fitted detector.

        Parameters
        ----------
        folder : folder written by `save`
        clips : the training clips it was fitted to; other clips of their store are irrelevant

        Raises
        ------
        errors.InputError for a file that is missing, damaged or of another detector, and for other clips
        """
        path = Path(folder) / SETTINGS_FILE
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            if facts["detector"] != cls.name:
                raise errors.InputError(f"{path}: is a {facts['detector']}, expected a {cls.name}")
            settings = cls.Settings(**facts["settings"])
            rest = {name: facts[name] for name in ("seed", "precision", "contamination", "system")}
            trained_on, store = facts["training_clips"], facts["store"]
        except errors.InputError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise errors.InputError(
                f"{path}: does not contain a detector ({type(error).__name__}); save it again"
            ) from error
        _check_training(clips)
        if _contents(clips.store.clips.iloc[np.sort(clips.rows)]) != trained_on:
            raise errors.InputError(
                f"{folder}: was fitted to other training clips than the {len(clips)} given, or to these in"
                " another order; load the recordings as they were loaded for fit"
            )
        detector = cls(settings, device=device, **rest).restore_training(folder, clips)
        if _contents(clips.store.clips) == store:
            return detector.restore_scoring(folder)
        # saved references name store rows, which mean other clips in this store
        detector._prepare()
        detector.__dict__["training_table_"] = io.scores(Path(folder) / TRAINING_FILE)
        return detector

    def standardization(self) -> dict[str, np.ndarray]:
        """Waveform statistics measured on training audio, by name; {} if each clip is standardized by itself.

        Not stored by `save`.
        """
        return {}

    def take_standardization(self, arrays: dict[str, np.ndarray]) -> None:
        """Set the result of `standardization`, for use without training audio."""
        raise NotImplementedError

    # ---------------------------------------------------------------- what a detector fills in

    def _train(self, others: np.ndarray) -> None:  # noqa: B027
        """Train on `self.train_rows` of `self.store`; others : rows of normal clips of other machines."""

    def _prepare(self) -> None:  # noqa: B027
        """Build the scoring state, such as references, after training."""

    def compared(self, rows: np.ndarray) -> np.ndarray:
        """Items of clips that are compared with the references, (items, dim)."""
        return self._embed(rows)[0]

    def _accept(self) -> None:  # noqa: B027
        """Rebuild the references of this copy, including `accepted`."""

    @abc.abstractmethod
    def _embed(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...

    @abc.abstractmethod
    def _scores(self, rows: np.ndarray) -> Scores: ...

    @abc.abstractmethod
    def _training_scores(self) -> Scores: ...

    def _save_training(self, folder: Path) -> None:  # noqa: B027
        """Save the state learned by `_train`."""

    def _load_training(self, folder: Path) -> None:  # noqa: B027
        """Load what `_save_training` wrote."""

    def _save(self, folder: Path) -> None:  # noqa: B027
        """Save what `_prepare` built, if rebuilding is slow."""

    def _load(self, folder: Path) -> None:
        """Load what `_save` wrote."""
        self._prepare()

    def training_settings(self) -> dict:
        """Settings that determine the trained network and the embeddings, by name."""
        return {
            name: value for name, value in to_tree(self.settings).items() if name not in self.scoring_settings
        }

    @property
    def training_dtype(self) -> torch.dtype:
        """Dtype of the training steps."""
        kind = auto(self.device) if self.precision == "auto" else self.precision
        return DTYPES[kind if self.name in NETWORKS else "float32"]

    def _moved(self, other: Self) -> None:  # noqa: B027 — most detectors have nothing to adapt
        """Adapt a copy of this detector, and its state that depends on store rows, to another store."""

    def at(self, store: Store) -> Self:
        """Detector for the clips of a store: itself, or a copy that shares the learned state.

        The copy's `home` is the detector on its training store.
        raises : errors.InputError for another sample rate
        """
        self._fitted()
        if store is self.store:
            return self
        if store.rate != self.store.rate:
            raise errors.InputError(
                f"clips have {store.rate} Hz, but the detector was fitted at {self.store.rate} Hz; load them"
                " at that rate"
            )
        other = copy.copy(self)
        other.home, other.store = self, store
        self._moved(other)
        return other

    def _bind(self, clips: Clips) -> None:
        for name in ("training_table_", "decision_scores_", "thresholds_"):
            self.__dict__.pop(name, None)
        # results do not depend on the order of clips
        self.store, self.given_rows = clips.store, np.asarray(clips.rows, np.int64)
        self.train_rows = np.sort(self.given_rows)
        self.group, self.group_of = reference_groups(self.store.clips, self.train_rows)

    def _fitted(self) -> None:
        if not hasattr(self, "store"):
            raise errors.InputError(f"this {type(self).__name__} instance is not fitted yet; call fit first")

    def _check_groups(self, clips: Clips) -> None:
        unknown = sorted(set(self.group_of(clips.table)) - set(self.group))
        if unknown:
            raise errors.InputError(
                f"got clips of {', '.join(unknown)}, but the detector was fitted to"
                f" {', '.join(np.unique(self.group))}; choose the clips with clips.test(machine)"
            )

    def _check_accepted(self, clips: Clips) -> None:
        if not len(_clips(clips)):
            raise errors.InputError("no clips to accept given, expected at least one normal clip")
        if clips.store is self.store:
            raise errors.InputError(
                "clips to accept are of the store of the training clips, whose other clips would be scored"
                " against them; load them separately with load_dcase or from_arrays"
            )
        anomalies = clips.table["clip"][clips.table["label"] == "anomaly"]
        if len(anomalies):
            raise errors.InputError(
                f"{anomalies.iloc[0]} is an anomaly, expected only normal clips in accept"
            )
        self._check_groups(clips)

    def _final(self, table: pd.DataFrame, clips: pd.Series) -> np.ndarray:
        own = table[(table["system"] == (self.system or self.systems[-1])) & (table["component"] == "score")]
        return own.set_index("clip")["score"].reindex(clips).to_numpy(float)


def configured(cls: type[Settings], settings: Settings | None, fields: dict) -> Settings:
    """Settings of a class with some fields replaced, validated.

    raises : errors.InputError for another class, unknown names, wrong types and values out of range
    """
    base = cls() if settings is None else settings
    if not isinstance(base, cls):
        raise errors.InputError(f"settings: got {type(base).__name__}, expected {cls.__name__}")
    return base.replace(**fields)


def _clips(clips: Clips) -> Clips:
    if not isinstance(clips, Clips):
        raise errors.InputError(
            f"got {type(clips).__name__}, expected Clips; create them with load_dcase or from_arrays"
        )
    return clips


def _contents(table: pd.DataFrame) -> str:
    """Digest of the names and samples of clips, in their order."""
    return digest(table.reindex(columns=["clip", "digest"]).to_numpy().tolist())


def _check_training(clips: Clips) -> None:
    if not len(_clips(clips)):
        raise errors.InputError(
            "no training clips given, expected at least one normal clip; is there a train folder?"
        )
    invalid = clips.table[clips.table["label"] != "normal"]
    if len(invalid):
        raise errors.InputError(
            f"{invalid['clip'].iloc[0]} is {invalid['label'].iloc[0]}, expected only normal clips in fit;"
            " use clips.train(...)"
        )
    tests = clips.table["clip"][clips.table["split"] == "test"]
    if len(tests):
        raise errors.InputError(
            f"{tests.iloc[0]} is a test clip, expected only training clips in fit; use clips.train(...)"
        )
    if len(np.unique(clips.rows)) < len(clips):
        twice = clips.table["clip"][clips.table["clip"].duplicated()].iloc[0]
        raise errors.InputError(f"{twice} is given more than once, expected different training clips")


def _of_store(others: Clips, store: Store) -> np.ndarray:
    if others.store is not store:
        raise errors.InputError(
            "clips of other machines are in another store than the training clips; load all clips together"
        )
    return np.asarray(others.rows, np.int64)


def clip_by_clip(scores: Callable[[object, np.ndarray], Scores]) -> Callable[[object, np.ndarray], Scores]:
    """Decorator for `_scores(rows)` that scores one clip at a time on one thread.

    Matrix products and convolutions may differ in the last bit for other batch shapes; this makes a clip's
    score bit-identical in its study, in a later `asd score`, alone or among others.
    """

    @functools.wraps(scores)
    def each(self, rows: np.ndarray) -> Scores:
        with training.one_thread():
            parts = [scores(self, rows[i : i + 1]) for i in range(len(rows))]
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    return each


def score_table(clips: pd.DataFrame, rows: np.ndarray, scores: Scores, seed: int) -> pd.DataFrame:
    """Scores of the clips at `rows` as a score table (schemas.SCORE_COLUMNS).

    rows : int (clips,).  scores : (system, component) -> float (clips,)
    raises : errors.InputError for non-finite scores
    """
    facts = clips.iloc[rows][["machine", "section", "split", "domain", "label", "clip"]]
    parts = [
        facts.assign(system=system, component=component, score=values, seed=seed)
        for (system, component), values in scores.items()
    ]
    return schemas.score_table(pd.concat(parts, ignore_index=True)[list(schemas.SCORE_COLUMNS)])


def stand_ins(
    detector: Detector, store: Store, machine: str, *, most: int = 200, seed: int = 0
) -> pd.DataFrame:
    """Scores of pseudo-anomalies of a machine: training clips of other machines, treated as its own.

    `fusion.view_weights` learns from these rows of the score table. No test clip and no label is used. OEVAE
    and the classifier were trained on these clips, as other machines.

    Parameters
    ----------
    detector : fitted to the machine, or to several
    store : clips of the machine and of others
    machine : machine whose anomalies are imitated
    most : maximum number of clips, drawn by `seed`; the same for all detectors

    Returns
    -------
    Score table with split stand-in, label anomaly, machine, section and domain of the machine, clip
    "<machine>: <clip>"

    Raises
    ------
    errors.InputError if the store has no other machine
    """
    table, own = store.clips, training_rows(store.clips, machine)
    others = np.flatnonzero(
        (table["machine"] != machine) & (table["split"] == "train") & (table["label"] == "normal")
    )
    if not len(others):
        raise errors.InputError(
            f"{machine} is the only machine, expected clips of other machines as stand-ins for its anomalies"
        )
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(others, min(most, len(others)), replace=False))
    facts = {name: np.resize(table[name].to_numpy()[own], len(table)) for name in ("section", "domain")}
    named = table.assign(
        machine=machine, split=fusion.STAND_IN, label="anomaly", clip=machine + ": " + table["clip"], **facts
    )
    scores = detector.components(Clips(dataclasses.replace(store, clips=named), rows))
    return score_table(named, rows, scores, detector.seed)


def detect(detector: Detector, store: Store, machines: Sequence[str]) -> pd.DataFrame:
    """Fit a detector to the training clips of some machines and score all their clips.

    machines : one machine, or several that share a network
    returns : score table; test clips are scored independently, training clips leave-clip-out
    raises : errors.InputError for a machine without training clips
    """
    detector.train(*training_clips(store, machines))
    return score_all(detector, store, machines)


def score_all(detector: Detector, store: Store, machines: Sequence[str]) -> pd.DataFrame:
    """Scores of all clips of some machines by a trained detector; see `detect`."""
    detector._prepare()
    test = np.concatenate([machine_rows(store.clips, machine, "test") for machine in machines])
    tables = [detector.training_table_]
    if len(test):
        tables.append(score_table(store.clips, test, detector.components(Clips(store, test)), detector.seed))
    return pd.concat(tables, ignore_index=True)
