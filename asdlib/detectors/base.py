"""The contract of detectors, and the pieces that several of them share.

Conventions
-----------
A detector is fitted to normal training clips and scores any clips. The names are PyOD's: `fit`,
`decision_function`, `decision_scores_`, `threshold_`, `predict`, `get_params`. Higher is more anomalous
(scikit-learn's `score_samples` has the opposite sign). Everything is by (machine, section): references,
scales and thresholds are those of the clip's machine, or of its section where a machine has several.

    detector = OEVAE(epochs=20, seed=0).fit(clips.train("fan"), others=clips.train(without="fan"))
    detector.embed(clips.test("fan"))               # vectors, and the clip of each
    detector.components(clips.test("fan"))          # {(system, component): one number per clip}
    detector.score(clips.test("fan"))               # score table: components and the fused score
    detector.decision_function(clips.test("fan"))   # the fused score alone

Fit, embed and score are three steps: `fit` trains, `embed` runs the network, and what follows needs
embeddings only. A score of one clip never depends on another clip that is scored. Training clips are scored
leave-clip-out: they are none of their own references. Where the network saw them (classifier, OEVAE) their
scores are somewhat low all the same; they are raised to the level of held-out clips (`as_unseen` of
`asdlib.scoring.thresholds`).
"""

from __future__ import annotations

import abc
import copy
import dataclasses
import functools
import inspect
import json
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
from asdlib.settings import Settings, to_tree

Scores = dict[tuple[str, str], np.ndarray]  # (system, component): one value per clip, higher = more anomalous

SETTINGS_FILE, TRAINING_FILE, HISTORY_FILE = "detector.json", "training_scores.parquet", "history.parquet"


class Detector(abc.ABC):
    """What every detector answers to.

    Parameters
    ----------
    settings : of the detector's own class of settings; None takes the defaults
    seed : of everything random
    device : "auto" (a GPU where there is one), "cpu" or "cuda"
    precision : of training: "auto" (bf16 where the device has matrix units for it), "float32" or "bf16";
        scores are always float32
    contamination : share of normal clips that the threshold lets through as false alarms, in (0, 1)
    system : whose score `decision_function` gives, one of `systems`; "" is the last of them
    checkpoints : folder for the state after each epoch, so that a training that was cut short goes on; None
        keeps none
    fields : single fields of the settings, by name; a nested group may be given as a dict

    Raises
    ------
    errors.InputError for an unknown name, with a suggestion, and for values out of range
    """

    name: ClassVar[str]
    Settings: ClassVar[type[Settings]]
    systems: ClassVar[tuple[str, ...]]  # whose scores it makes
    scoring_settings: ClassVar[tuple[str, ...]] = ()  # read by scoring alone: changing one trains nothing
    training_module: ClassVar[str]  # whose code shapes what is learned
    uses_others: ClassVar[bool] = False  # whether clips of other machines take part in training
    accepted: Mapping[str, np.ndarray] = {}  # items (n, dim) of accepted clips by machine or section
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
        if not 0 < contamination < 1:
            raise errors.InputError(f"contamination: got {contamination}, expected a share between 0 and 1")
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
        clips : of the machine, or of all machines for a detector that shares one network
        others : normal clips of other machines, from the same store, for a detector that needs them

        Raises
        ------
        errors.InputError for no clip, clips that are not normal ones, and for what the detector itself needs
        """
        self.train(clips, others)
        self._prepare()
        return self

    def train(self, clips: Clips, others: Clips | None = None) -> Self:
        """The first half of `fit`: the network alone, without what scoring needs beside it."""
        _check_training(clips)
        self._bind(clips)
        self._train(np.empty(0, np.int64) if others is None else _of_store(others, clips.store))
        return self

    def embed(self, clips: Clips) -> tuple[np.ndarray, np.ndarray]:
        """Vectors of the items of each clip, float32 (items, dim), and the position of each item's clip, int
        (items,).
        """
        return self.at(clips.store)._embed(clips.rows)

    def embedding_inputs(self) -> dict | None:
        """What shapes the embeddings beside the trained network, by name; None for a detector that embeds
        clips anew whenever it scores, such as one of plain features.
        """
        return None

    def embedded(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """All that scoring reads of the network's pass over clips, by name, (clips, ...); the network runs
        only where that was not done yet.  rows : int (clips,), of the store
        """
        raise NotImplementedError

    def take_embedded(self, rows: np.ndarray, arrays: dict[str, np.ndarray]) -> None:
        """Take over what `embedded` gave for the same clips, so that the network runs on them no more."""
        raise NotImplementedError

    @classmethod
    def check(cls, settings: Settings) -> None:
        """Refuse settings that name what only the detector's own modules know, such as a back-end."""
        return

    def components(self, clips: Clips) -> Scores:
        """Every score of clips, float64 (clips,) by (system, component); training clips are scored as new
        ones here.
        """
        return self.at(clips.store)._scores(clips.rows)

    @property
    def unseen(self) -> np.ndarray:
        """Which training clips are scored by nothing that was trained on them, bool (training clips,): all,
        but for a network that saw them.
        """
        return np.ones(len(self.train_rows), bool)

    def training_components(self, *, as_seen: bool = False) -> Scores:
        """Every score of the training clips, leave-clip-out; those that the network saw are raised to the
        level of unseen ones.

        as_seen : leave them where the network puts them
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
        """A copy that has further normal clips, of another store, among its references. Nothing is trained.

        Each of them is scored once as a training clip is, by the training clips and the others that are
        accepted; these scores join `training_table_`, in which the training clips keep theirs. A detector
        without references, such as the autoencoder, counts these scores and nothing else.

        raises : errors.InputError for a detector that has accepted clips: accept all of them at once
        """
        self._fitted()
        if self.accepted:
            raise errors.InputError(f"{self.name} has accepted clips already; accept all of them at once")
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
        for name in ("decision_scores_", "thresholds_"):
            out.__dict__.pop(name, None)
        out.__dict__["training_table_"] = pd.concat([self.training_table_, table], ignore_index=True)
        return out

    # ---------------------------------------------------------------- PyOD's names

    def score(self, clips: Clips) -> pd.DataFrame:
        """Score table of clips (schemas.SCORE_COLUMNS): the components, and the fused score of each system.

        A clip that the detector was trained on has its leave-clip-out score.
        """
        self._fitted()
        own = (
            np.isin(clips.rows, self.train_rows) if clips.store is self.store else np.zeros(len(clips), bool)
        )
        new = clips.where(~own)
        tables = [self.training_table_]
        if len(new):
            tables.append(score_table(clips.store.clips, new.rows, self.components(new), self.seed))
        fused = fusion.systems(pd.concat(tables, ignore_index=True), fusion.FusionSettings())
        return fused[fused["clip"].isin(clips.table["clip"])].reset_index(drop=True)

    def decision_function(self, clips: Clips) -> np.ndarray:
        """Fused score of each clip, float64 (clips,), higher = more anomalous; one clip moves no other."""
        return self._final(self.score(clips), clips.table["clip"])

    def predict(self, clips: Clips) -> np.ndarray:
        """1 for clips above the threshold of their machine and section, else 0: int (clips,)."""
        limits = {name: limit.value for name, limit in self.thresholds_.items()}
        group = self.group_of(clips.table)
        return (self.decision_function(clips) > np.array([limits[name] for name in group])).astype(int)

    @functools.cached_property
    def training_table_(self) -> pd.DataFrame:
        """Score table of the training clips, leave-clip-out."""
        self._fitted()
        return score_table(self.store.clips, self.train_rows, self.training_components(), self.seed)

    @functools.cached_property
    def decision_scores_(self) -> np.ndarray:
        """Fused score of each training clip, leave-clip-out, float64 (training clips,)."""
        return self._final(
            fusion.systems(self.training_table_, fusion.FusionSettings()),
            self.store.clips["clip"].iloc[self.train_rows],
        )

    @functools.cached_property
    def thresholds_(self) -> dict[str, thresholds.Threshold]:
        """Threshold by machine, or by <machine>_<section> where a machine has several: see
        `thresholds.gamma_threshold`.
        """
        scores = self.decision_scores_
        return {
            name: thresholds.gamma_threshold(scores[self.group == name], 1 - self.contamination)
            for name in np.unique(self.group)
        }

    @property
    def threshold_(self) -> float:
        """The threshold, where the detector was fitted to one machine and section; else see `thresholds_`."""
        if len(self.thresholds_) > 1:
            raise errors.InputError(
                f"{self.name} was fitted to {', '.join(self.thresholds_)}, each with its own threshold; see"
                " thresholds_"
            )
        return next(iter(self.thresholds_.values())).value

    def get_params(self, deep: bool = True) -> dict:
        """The settings and keywords that make an equal detector, by name."""
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
        """Change settings and keywords by name; the detector is to be fitted anew."""
        self.__dict__ = type(self)(**(self.get_params() | params)).__dict__
        return self

    def __sklearn_clone__(self) -> Self:
        """An unfitted detector of the same settings, for scikit-learn's `clone`."""
        return type(self)(**self.get_params())

    def __repr__(self) -> str:
        """The class with the settings that differ from its defaults."""
        keywords = inspect.signature(Detector.__init__).parameters
        default = dict(self.Settings()) | {name: one.default for name, one in keywords.items()}
        changed = [f"{name}={value!r}" for name, value in self.get_params().items() if value != default[name]]
        return f"{type(self).__name__}({', '.join(changed)})"

    # ---------------------------------------------------------------- files

    def save(self, folder: str | Path) -> None:
        """Write a fitted detector into a folder, made where it is missing: settings as JSON, arrays as
        safetensors.
        """
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.save_training(folder)
        self.save_scoring(folder)

    def save_training(self, folder: str | Path) -> None:
        """Write what was learned, and the training history, into a folder that exists."""
        self._fitted()
        if len(self.history):
            io.write_table(Path(folder) / HISTORY_FILE, self.history)
        self._save_training(Path(folder))

    def save_scoring(self, folder: str | Path) -> None:
        """Write settings, scores of the training clips, and what scoring needs beside the network."""
        self._fitted()
        folder = Path(folder)
        facts = {
            "detector": self.name,
            "settings": to_tree(self.settings),
            "seed": self.seed,
            "precision": self.precision,
            "contamination": self.contamination,
            "system": self.system,
        }
        io.write_text(folder / SETTINGS_FILE, json.dumps(facts, indent=1))
        io.write_table(folder / TRAINING_FILE, self.training_table_)
        self._save(folder)

    def restore(self, folder: str | Path, clips: Clips) -> Self:
        """Take over what `save` wrote, for the very training clips that it was fitted to.

        Raises
        ------
        errors.InputError for a file that is missing, damaged or of another detector
        """
        return self.restore_training(folder, clips).restore_scoring(folder)

    def restore_training(self, folder: str | Path, clips: Clips) -> Self:
        """Take over what `save_training` wrote, for the training clips that it was trained on."""
        _check_training(clips)
        self._bind(clips)
        self._load_training(Path(folder))
        path = Path(folder) / HISTORY_FILE
        self.history = io.table(path, ["epoch"]) if path.is_file() else pd.DataFrame()
        return self

    def restore_scoring(self, folder: str | Path) -> Self:
        """Take over what `save_scoring` wrote; the training is there already."""
        self._load(Path(folder))
        self.__dict__["training_table_"] = io.scores(Path(folder) / TRAINING_FILE)
        return self

    @classmethod
    def load(cls, folder: str | Path, clips: Clips, device: str = "auto") -> Self:
        """A fitted detector from a folder of `save`.

        Parameters
        ----------
        folder : what `save` wrote
        clips : the training clips that it was fitted to
        """
        path = Path(folder) / SETTINGS_FILE
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            if facts["detector"] != cls.name:
                raise errors.InputError(f"{path}: is a {facts['detector']}, expected a {cls.name}")
            settings = cls.Settings(**facts["settings"])
            rest = {name: facts[name] for name in ("seed", "precision", "contamination", "system")}
        except errors.InputError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise errors.InputError(
                f"{path}: does not hold a detector ({type(error).__name__}); save it again"
            ) from error
        return cls(settings, device=device, **rest).restore(folder, clips)

    def standardization(self) -> dict[str, np.ndarray]:
        """What waveforms are standardized by that was measured on the sound of training clips, by name; {}
        where each clip is standardized by itself. No file of `save` holds it.
        """
        return {}

    def take_standardization(self, arrays: dict[str, np.ndarray]) -> None:
        """Take over what `standardization` gave, where the training clips have no sound to measure."""
        raise NotImplementedError

    # ---------------------------------------------------------------- what a detector fills in

    def _train(self, others: np.ndarray) -> None:  # noqa: B027
        """Train on `self.train_rows` of `self.store`; others : rows of other machines' normal clips."""

    def _prepare(self) -> None:  # noqa: B027
        """After training: make what scoring needs beside the network, such as references."""

    def compared(self, rows: np.ndarray) -> np.ndarray:
        """What is compared with references, of clips: (items, dim)."""
        return self._embed(rows)[0]

    def _accept(self) -> None:  # noqa: B027
        """Make the references of this copy anew, with the items of `accepted` among them."""

    @abc.abstractmethod
    def _embed(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...

    @abc.abstractmethod
    def _scores(self, rows: np.ndarray) -> Scores: ...

    @abc.abstractmethod
    def _training_scores(self) -> Scores: ...

    def _save_training(self, folder: Path) -> None:  # noqa: B027
        """Write what `_train` learned."""

    def _load_training(self, folder: Path) -> None:  # noqa: B027
        """Read what `_save_training` wrote."""

    def _save(self, folder: Path) -> None:  # noqa: B027
        """Write what `_prepare` made, where making it again takes long."""

    def _load(self, folder: Path) -> None:
        """Read what `_save` wrote."""
        self._prepare()

    def training_settings(self) -> dict:
        """The settings that shape the trained network and the embeddings, by name."""
        return {
            name: value for name, value in to_tree(self.settings).items() if name not in self.scoring_settings
        }

    @property
    def training_dtype(self) -> torch.dtype:
        """Precision of training steps."""
        kind = auto(self.device) if self.precision == "auto" else self.precision
        return DTYPES[kind if self.name in NETWORKS else "float32"]

    def _moved(self, other: Self) -> None:  # noqa: B027 — most detectors have nothing to adapt
        """Adapt a copy of this detector to its other store: what depends on store rows."""

    def at(self, store: Store) -> Self:
        """The detector for the clips of a store: itself, or a copy that shares what was learnt and reads the
        other store's clips.

        Its `home` is the detector on the store it was trained on, whose training clips the other store lacks.
        """
        self._fitted()
        if store is self.store:
            return self
        if store.rate != self.store.rate:
            raise errors.InputError(
                f"clips at {store.rate} Hz came to a detector fitted at {self.store.rate} Hz; load them at"
                " its rate"
            )
        other = copy.copy(self)
        other.home, other.store = self, store
        self._moved(other)
        return other

    def _bind(self, clips: Clips) -> None:
        for name in ("training_table_", "decision_scores_", "thresholds_"):
            self.__dict__.pop(name, None)
        self.store, self.train_rows = clips.store, np.asarray(clips.rows, np.int64)
        self.group, self.group_of = reference_groups(self.store.clips, self.train_rows)

    def _fitted(self) -> None:
        if not hasattr(self, "store"):
            raise errors.InputError(f"this {type(self).__name__} is not fitted; call fit first")

    def _final(self, table: pd.DataFrame, clips: pd.Series) -> np.ndarray:
        own = table[(table["system"] == (self.system or self.systems[-1])) & (table["component"] == "score")]
        return own.set_index("clip")["score"].reindex(clips).to_numpy(float)


def configured(cls: type[Settings], settings: Settings | None, fields: dict) -> Settings:
    """Settings of a class with some fields replaced, checked: unknown names, types and ranges are refused."""
    base = cls() if settings is None else settings
    if not isinstance(base, cls):
        raise errors.InputError(f"settings: got {type(base).__name__}, expected {cls.__name__}")
    return base.replace(**fields)


def _check_training(clips: Clips) -> None:
    if not isinstance(clips, Clips):
        raise errors.InputError(
            f"{type(clips).__name__} came, expected Clips; make them with load_dcase or from_arrays"
        )
    if not len(clips):
        raise errors.InputError(
            "no training clip came, expected at least one normal clip; is there a train folder?"
        )
    odd = clips.table[clips.table["label"] != "normal"]
    if len(odd):
        raise errors.InputError(
            f"{odd['clip'].iloc[0]} is {odd['label'].iloc[0]}, expected normal clips to fit; take"
            " clips.train(...)"
        )


def _of_store(others: Clips, store: Store) -> np.ndarray:
    if others.store is not store:
        raise errors.InputError(
            "clips of other machines came from another store, expected the store of the training clips; load"
            " them together"
        )
    return np.asarray(others.rows, np.int64)


def clip_by_clip(scores: Callable[[object, np.ndarray], Scores]) -> Callable[[object, np.ndarray], Scores]:
    """A detector's `_scores(rows)` that takes one clip after the other, on one thread.

    Matrix products and convolutions of another shape may differ in the last bit. One clip at a time, a clip
    has the same score to the bit whatever stands beside it: in its study, in a later `asd score`, alone or
    among others.
    """

    @functools.wraps(scores)
    def each(self, rows: np.ndarray) -> Scores:
        with training.one_thread():
            parts = [scores(self, rows[i : i + 1]) for i in range(len(rows))]
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    return each


def score_table(clips: pd.DataFrame, rows: np.ndarray, scores: Scores, seed: int) -> pd.DataFrame:
    """Scores of the clips at `rows` as a score table (schemas.SCORE_COLUMNS).

    rows : int (clips,).  scores : (system, component) -> float (clips,).  raises : errors.InputError for
        scores that are not finite
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
    """Scores of clips that stand in for anomalies of a machine: training clips of other machines, as if they
    were its own.

    What `fusion.view_weights` learns from; they are rows to add to the detector's score table. No test clip
    and no label is read. OEVAE and the classifier saw these clips in training, as other machines.

    Parameters
    ----------
    detector : fitted to the machine, or to several
    store : clips of the machine and of others
    machine : whose anomalies they stand in for
    most : clips, drawn by `seed`; all detectors get the same ones

    Returns
    -------
    Score table: split stand-in, label anomaly, machine, section and domain of the machine, clip "<machine>:
    <clip>"
    raises : errors.InputError where the store has no other machine
    """
    table, own = store.clips, training_rows(store.clips, machine)
    others = np.flatnonzero(
        (table["machine"] != machine) & (table["split"] == "train") & (table["label"] == "normal")
    )
    if not len(others):
        raise errors.InputError(
            f"{machine} is the only machine, expected clips of others to stand in for its anomalies"
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
    """Fit a detector to the training clips of the machines (one, or all that share a network) and score all
    their clips.

    returns : score table of the components; test rows as a clip alone would be scored, train rows
        leave-clip-out
    raises : errors.InputError for a machine without training clips
    """
    detector.train(*training_clips(store, machines))
    return score_all(detector, store, machines)


def score_all(detector: Detector, store: Store, machines: Sequence[str]) -> pd.DataFrame:
    """Scores of all clips of some machines by a detector that is trained; see `detect`."""
    detector._prepare()
    test = np.concatenate([machine_rows(store.clips, machine, "test") for machine in machines])
    tables = [detector.training_table_]
    if len(test):
        tables.append(score_table(store.clips, test, detector.components(Clips(store, test)), detector.seed))
    return pd.concat(tables, ignore_index=True)
