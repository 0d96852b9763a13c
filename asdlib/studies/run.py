"""A study opened: where what it computes lies, what shapes it (its keys), and how it is computed or found.

    runs/artifacts/<detector>-<machine>-<seed>-trained-<key>   trained networks, shared by all studies
    runs/artifacts/<detector>-<machine>-<seed>-embeddings-<key>-<clips>   of some clips, a shard
    runs/artifacts/<detector>-<machine>-<seed>-scores-<key>    scores, and what they are made of
    runs/recordings/<digest>/store, data         decoded clips; synthetic recordings, where none were given
    runs/<study>/<stage>                         executed notebooks of stages that are the same for all seeds
    runs/<study>/seed<k>/<stage>[/<machine>]     executed notebooks of stages that train or read one seed
    runs/<study>/scores.parquet, metrics.csv     the study's scores and metrics; reports/<study>/index.html
    runs/<study>/sweep                           pages of variants (asdlib.studies.sweeps, or made by hand)
    runs/<study>/tuned.toml                      omega, eta and both k as 08 chose them, to be included
    runs/<study>/accepted                        recordings that a person called normal

A key is the digest of everything that shapes an artifact: settings, clips, code, device, precision, seed,
machines. `trained_by` and `detector_shaped_by` say what that is, by name; it stands in the manifest, so that
a job can say why it is stale (asdlib.studies.jobs). What is finished for its key is never computed again, and
nothing is written over.

Source: METHOD 8.2, 8.3. Notebooks: all (the `Run` of their second cell).
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.numpy import save_file

from asdlib import errors, io, schemas
from asdlib import settings as settings_tree
from asdlib.analysis import explain, projection
from asdlib.data import index, store, synthetic
from asdlib.data.store import machine_rows, training_clips
from asdlib.detectors import DETECTORS, SYSTEMS
from asdlib.detectors.base import Detector, score_all
from asdlib.evaluation import detectability, metrics
from asdlib.models import precision, training
from asdlib.scoring import fusion
from asdlib.settings import to_tree
from asdlib.studies import accepted, artifacts, config, housekeeping, scorer
from asdlib.studies.home import notebooks
from asdlib.studies.stages import OUTPUTS, STAGES, Stage, code_cells, jobs, stage_of

EMBEDDINGS = "embeddings.safetensors"  # of a shard: arrays (clips, ...) by name
_TOLD: set[Path] = set()  # folders of which it was said that their code has changed since


class Run:
    """A study opened: its settings, recordings, folders, keys, and what has been computed.

    Notebooks get one from `study.open_notebook`; scripts from `study.open_run`. Nothing is computed until it
    is asked for.
    """

    def __init__(
        self,
        cfg: config.StudySettings,
        home: Path,
        seed: int,
        stage: Stage | None = None,
        machine: str = "",
        variant: str = "",
        base: Run | None = None,
    ):
        """variant, base : its name, and the study that it varies, whose recordings and finished jobs it
        shares
        """
        self.cfg, self.home, self.seed, self.stage, self.machine = cfg, home, seed, stage, machine
        self.variant, self.base = variant, base
        place = Path("sweep", variant) if variant else Path()
        self.study_folder = home / "runs" / cfg.name  # one lock for all of it
        self.folder, self.reports = self.study_folder / place, home / "reports" / cfg.name / place
        self.synthetic = not cfg.data.roots
        if self.synthetic and not cfg.data.recorded:  # said before the recordings are made
            for name in cfg.data.machines:
                errors.check_choice("machine", name, sorted(cfg.synthetic.machines))
        made = settings_tree.digest(cfg.data, cfg.synthetic if self.synthetic else None)
        self.data_folder = (
            home / "runs" / housekeeping.RECORDINGS / made
        )  # of all studies of these recordings
        # of the artifacts that are meant; who reads them elsewhere computes on `local_device`
        self.device = training.pick_device(cfg.device)
        self.auto = ""  # what the precision `auto` is for these artifacts, where another machine decided it
        self.study_file: str | None = None  # as it was named
        self.overrides: list[str] = []  # that open it again
        self.changed: dict = {}  # settings of a variant made by hand, by name

    @property
    def local_device(self) -> torch.device:
        """Where this process computes: on the study's device if it has that, else on the CPU."""
        return self.device if self.device.type == "cpu" or torch.cuda.is_available() else torch.device("cpu")

    @property
    def roots(self) -> list[Path]:
        """Folders of recordings: the study's own, or the synthetic tree."""
        return [self.data_folder / "data"] if self.synthetic else [Path(root) for root in self.cfg.data.roots]

    def found_store(self) -> store.Store | None:
        """The decoded recordings where they are there for what the recordings are now; writes nothing.

        raises : errors.InputError for a study of recordings of which none were given
        """
        if self.synthetic and self.cfg.data.recorded:
            raise errors.InputError(
                f"study {self.cfg.name} is for recordings and none were given; add --data-root DIR"
            )
        if self.synthetic and not self.roots[0].is_dir():
            return None
        if io.HOLDS in os.environ:  # of a job, whose runner found the store whole: no need to index again
            return store.stored(self.data_folder / "store", self.cfg.data.sample_rate)
        table, problems = index.index(self.roots, self.cfg.data.machines, self.cfg.data.supplemental)
        return store.find_store(table, problems, self.data_folder / "store", self.cfg.data)

    @functools.cached_property
    def store(self) -> store.Store:
        """The recordings, decoded; made on first use and found again after."""
        if self.base is not None and self.data_folder == self.base.data_folder:
            return self.base.store
        found = self.found_store()
        if found is not None:
            return found
        with io.wrap_os_errors(self.data_folder), io.locked(self.data_folder, wait=True):
            artifacts.remove_temp(self.data_folder)
            if self.synthetic and not self.roots[0].is_dir():
                synthetic.write_tree(self.roots[0], self.cfg.synthetic, self.cfg.data.sample_rate)
            table, problems = index.index(self.roots, self.cfg.data.machines, self.cfg.data.supplemental)
            return store.open_store(table, problems, self.data_folder / "store", self.cfg.data)

    def decode_again(self) -> None:
        """Make the store anew from the recordings; only for who holds the study."""
        (self.data_folder / "store" / "DONE.json").unlink(missing_ok=True)
        for run in (self, self.base):
            if run is not None and run.data_folder == self.data_folder:
                run.__dict__.pop("store", None)

    @property
    def clips(self) -> pd.DataFrame:
        """Clip table; row i is item i of the store. A test clip that was accepted as normal has no label."""
        table = self.store.clips
        return _without_label(table, self.withdrawn) if self.withdrawn else table

    @functools.cached_property
    def withdrawn(self) -> list[str]:
        """Names of test clips that were accepted as normal: they count in no metric."""
        table = self.store.clips
        return table["clip"][accepted.among(self.study_folder, table)].tolist()

    @functools.cached_property
    def severities(self) -> pd.Series:
        """Severity of the fault of each clip, by its name; NaN where none is known. For reports only."""
        return detectability.severities(self.clips)

    @property
    def problems(self) -> pd.DataFrame:
        """What is wrong with the recordings: path, reason, left_out."""
        return self.store.problems

    @property
    def machines(self) -> list[str]:
        """Machines that have usable clips, in alphabetical order."""
        return sorted(self.clips["machine"].unique())

    def stage_folder(self, stage: Stage, seed: int, machine: str = "") -> Path:
        """Where a stage's artifacts lie; variants that train the same, or the same as their study, share a
        folder.
        """
        folder = self.study_folder
        if self.base is not None and self._settings(stage) != self.base._settings(stage):
            folder = folder / "sweep" / "jobs" / settings_tree.digest(self._settings(stage))[:8]
        folder = folder / f"seed{seed}" if stage.per_seed else folder
        return folder / stage.notebook / machine if stage.per_machine else folder / stage.notebook

    def _settings(self, stage: Stage) -> dict:
        """The settings that shape what a stage trains, and its recordings."""
        return {
            name: to_tree(self.cfg)[name]
            for name in (*(stage.detectors or stage.sections), "precision", "data", "synthetic")
        }

    def artifact(self, kind: str, name: str, seed: int, machine: str, key: str) -> Path:
        """Folder of what was computed: kind "trained" or "scores", shared by all studies of this home."""
        return self.home / "runs" / "artifacts" / f"{name}-{machine or 'all'}-{seed}-{kind}-{key}"

    def detector_folder(self, name: str, machine: str, seed: int) -> Path:
        """Where the scores of a detector and what they are made of lie.

        Where only code differs from what was computed last, that is used and said.
        raises : errors.InputError where nothing is finished for these settings and recordings, or files are
            damaged
        """
        folder = self.artifact("scores", name, seed, machine, self.detector_digest(name, seed, machine))
        if artifacts.is_whole(folder):
            return folder
        last = self.last_folder(name, seed, machine)
        damaged = (folder / "DONE").is_file()
        if last is not None and artifacts.is_whole(last) and not damaged:
            differ = artifacts.changes(last, self.detector_shaped_by(name, seed, machine))
            if differ and artifacts.only_code(differ):
                if last not in _TOLD:
                    _TOLD.add(last)
                    told = f"{name} of {machine or 'all machines'}: {'; '.join(differ)} since it was computed"
                    print(f"note: {told}; `asd run {self.cfg.name}` computes it again", file=sys.stderr)
                return last
        wrong = ", ".join(artifacts.corrupt_files(folder)) if damaged else ""
        what = f"{name} of {machine or 'all machines'} (seed {seed})"
        raise errors.InputError(
            f"{what} is {f'not whole: {wrong}' if wrong else 'not finished for these settings'}; run"
            f" `asd run {self.cfg.name}` with them first"
        )

    def has(self, name: str, machine: str, seed: int) -> bool:
        """Whether a detector is finished for these settings and recordings."""
        try:
            self.detector_folder(name, machine, seed)
        except errors.InputError:
            return False
        return True

    def last_folder(self, name: str, seed: int, machine: str) -> Path | None:
        """The folder that the study used last for a detector, by the manifest of its stage; None: none."""
        stage = next(stage for stage in STAGES if name in stage.detectors)
        manifest = self.stage_folder(stage, seed, machine if stage.per_machine else "") / "manifest.json"
        try:
            used = json.loads(manifest.read_text(encoding="utf-8"))["artifacts"][name]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return self.home / "runs" / "artifacts" / Path(used).name

    def notebook(self, stage: Stage) -> Path:
        """The notebook of a stage, see `asdlib.studies.home`."""
        return notebooks(self.home) / f"{stage.notebook}.ipynb"

    def shaped_by(self, stage: Stage, seed: int, machine: str = "") -> dict:
        """Everything that shapes a stage, by name: code, and what `given_to` says."""
        return self.given_to(stage, seed, machine) | {"code": artifacts.code_digest()}

    def given_to(self, stage: Stage, seed: int, machine: str = "") -> dict:
        """What shapes a stage beside code: settings, recordings, notebook, device, seed, machine."""
        cfg = self.cfg.model_dump()
        names = (*stage.sections, "precision")
        settings = {name: functools.reduce(dict.__getitem__, name.split("."), cfg) for name in names}
        if not stage.detectors:  # pages that list what is wrong with the recordings, or how severe faults are
            settings["problems"] = settings_tree.digest(self.problems.to_json(orient="values"))
            settings["severities"] = settings_tree.digest(self.severities.dropna().to_json())
        if stage is STAGES[-1] and self.study_file is not None:
            swept = config.read(self.study_file, self.overrides, self.home).get("sweep")
            settings |= {"sweep": swept} if swept else {}
        known = accepted.listed(self.study_folder)["digest"].tolist() if "systems" in stage.sections else []
        return {
            **({"accepted": known} if known else {}),
            "settings": settings,
            "recordings": self.store.fingerprint,
            "notebook": code_cells(self.notebook(stage)),
            "device": self.device.type,
            "seed": seed if stage.per_seed else None,
            "machine": machine if stage.per_machine else None,
        }

    def digest(self, stage: Stage, seed: int, machine: str = "") -> str:
        """Digest of everything that shapes a stage."""
        return settings_tree.digest(self.shaped_by(stage, seed, machine))

    def trained_by(self, name: str, seed: int, machine: str, settings=None) -> dict:
        """Everything that shapes a trained network, by name; `machine` "": of all machines.

        Settings that only scoring reads, test clips and the code of scoring are no part of it.
        """
        detector = DETECTORS[name](getattr(self.cfg, name) if settings is None else settings)
        machines = [machine] if machine else self.machines
        seen = (self.clips["split"] == "train") & (self.clips["label"] == "normal")
        if not detector.uses_others:
            seen &= self.clips["machine"].isin(machines)
        clips = {which: _clips_digest(rows) for which, rows in self.clips[seen].groupby("machine")}
        if detector.uses_others and len(self.store.supplemental):
            clips[schemas.SUPPLEMENTAL] = _clips_digest(self.store.supplemental)
        return {
            "settings": {name: detector.training_settings(), "precision": self.precision_of(name)},
            "clips": clips,
            "code": io.code(detector.training_module),
            "device": self.device.type,
            "seed": seed,
            "machines": machines,
        }

    def detector_shaped_by(self, name: str, seed: int, machine: str, settings=None) -> dict:
        """Everything that shapes a detector's scores, by name: what shapes its training, its other settings,
        the recordings and the code of scoring.
        """
        chosen = to_tree(getattr(self.cfg, name) if settings is None else settings)
        return {
            "settings": {name: chosen, "precision": self.precision_of(name)},
            "recordings": self.store.fingerprint,
            "code": io.code(DETECTORS[name].__module__),
            "device": self.device.type,
            "seed": seed,
            "machines": [machine] if machine else self.machines,
        }

    def detector_digest(self, name: str, seed: int, machine: str, settings=None) -> str:
        """Key of a detector's scores."""
        return settings_tree.digest(name, self.detector_shaped_by(name, seed, machine, settings))

    def precision_of(self, name: str) -> str:
        """Precision in which a detector's network is trained (`asdlib.models.precision`)."""
        return precision.of(name, self.cfg, self.device, self.auto)

    def scores_of(self, stage: Stage, seed: int, machine: str) -> dict[str, Path]:
        """Folders of the scores that a stage computes, by detector: of those that the systems need."""
        needed = {SYSTEMS[system] for system in self.cfg.systems}
        return {
            name: self.artifact("scores", name, seed, machine, self.detector_digest(name, seed, machine))
            for name in stage.detectors
            if name in needed
        }

    def trained_with(self, scores: Path) -> Path:
        """Folder of the trained network that scores were made with."""
        with io.refused(scores / "manifest.json", "a manifest"):
            name = json.loads((scores / "manifest.json").read_text(encoding="utf-8"))["trained"]
        return scores.parent / Path(name).name

    def outputs(self, stage: Stage) -> list[Path]:
        """Files that a stage leaves outside its folder and that belong to it."""
        return [self.folder / name for name in OUTPUTS.get(stage.notebook, ())]

    def finished(self, stage: Stage, seed: int, machine: str = "") -> bool:
        """True if a stage, its detectors and what it leaves elsewhere are there, whole, and made of what
        holds now.
        """
        shown = ("summary.md", "report.json", "model_card.md") if stage is STAGES[-1] else ()
        return (
            artifacts.finished(self.stage_folder(stage, seed, machine), self.digest(stage, seed, machine))
            and all(map(artifacts.is_whole, self.scores_of(stage, seed, machine).values()))
            and all((self.reports / name).is_file() for name in shown)
        )

    @property
    def by_hand(self) -> bool:
        """Whether this is a variant in a notebook that was opened by hand."""
        return bool(self.changed)

    @property
    def own_machine(self) -> str:
        """The machine of what this notebook makes, "" for one that runs for all machines."""
        return self.machine if self.stage.per_machine else ""

    @property
    def own_folder(self) -> Path:
        """The folder of this notebook's job: the one that its runner told, else that of the study."""
        told = os.environ.get(artifacts.FOLDER)
        return Path(told) if told else self.stage_folder(self.stage, self.seed, self.own_machine)

    @property
    def detectors(self) -> list[str]:
        """Detectors that this notebook is to compute: of those it can, the ones that the systems need."""
        return list(self.scores_of(self.stage, self.seed, self.own_machine))

    @functools.cached_property
    def _loaded(self) -> dict[Path, object]:
        """Finished detectors, by their folder."""
        return {}

    def fit_or_load(self, name: str, settings=None) -> tuple[Detector, pd.DataFrame, pd.DataFrame]:
        """A detector of this run's machine, its score table and its training history: computed, or loaded.

        settings : the detector's section of the settings in place of the study's
        What is finished for the same key is never computed again: a network is trained for its training key,
        and scores are made for theirs. What is not finished is computed on this machine's device, also where
        the study was read as computed on another.
        """
        machine = self.own_machine
        mine, ordered = training.pick_device(self.cfg.device), io.HOLDS in os.environ
        of = (name, self.seed, machine, settings)
        scored = self.artifact("scores", name, self.seed, machine, self.detector_digest(*of))
        if (self.device != mine or (self.auto and not ordered)) and not artifacts.is_whole(scored):
            with self._meant_for(mine):
                return self.fit_or_load(name, settings)
        inputs = self.trained_by(*of)  # a detector that trains nothing has an empty folder
        trained = self.artifact("trained", name, self.seed, machine, settings_tree.digest(name, inputs))
        if self.by_hand:
            housekeeping.record_variant(self.folder, self.changed, scored, self.data_folder)
        machines = [machine] if machine else self.machines
        clips, others = training_clips(self.store, machines)
        chosen = getattr(self.cfg, name) if settings is None else settings
        detector = self._detector(name, chosen, trained)
        about = {"detector": name, "machines": machines, "seed": self.seed, "device": self.device.type}
        about |= {"data": self.store.fingerprint}
        for folder in (trained, scored):
            folder.parent.mkdir(parents=True, exist_ok=True)
        with io.wrap_os_errors(trained), artifacts.only_one(trained):
            if artifacts.is_whole(trained):
                with io.refused(trained, f"a trained {name}"):
                    detector.restore_training(trained, clips)
            else:
                artifacts.start(trained, trained.name)
                began = time.perf_counter()
                named = f"{name} of {', '.join(machines[:3])}{' …' if len(machines) > 3 else ''}"
                with training.memory_in_words(named):
                    detector.train(clips, others)
                detector.save_training(trained)
                spent = {"seconds": time.perf_counter() - began, "peak_memory_mb": artifacts.peak_memory_mb()}
                artifacts.commit(trained, trained.name, about | spent | {"shaped_by": inputs})
        with io.wrap_os_errors(scored), artifacts.only_one(scored):
            if artifacts.is_whole(scored):
                with io.refused(scored, f"a {name} detector"):
                    detector.restore_scoring(scored)
                return detector, io.scores(scored / "scores.parquet"), detector.history
            artifacts.start(scored, scored.name)
            with training.memory_in_words(name):
                shards, began = self._embed(detector, trained, machines, about), time.perf_counter()
                scores = score_all(detector, self.store, machines)
            io.write_table(scored / "scores.parquet", scores)
            detector.save_scoring(scored)
            spent = {"seconds": time.perf_counter() - began, "peak_memory_mb": artifacts.peak_memory_mb()}
            facts = {"shaped_by": self.detector_shaped_by(*of), "trained": trained.name, "embeddings": shards}
            unseen = clips.table["clip"][detector.unseen].tolist()
            facts["unseen"] = None if detector.unseen.all() else unseen
            artifacts.commit(scored, scored.name, about | spent | facts)
        return detector, scores, detector.history

    def _embed(self, detector: Detector, trained: Path, machines: Sequence[str], about: dict) -> list[str]:
        """Give a trained detector the embeddings of its machines' clips; what no shard has is computed, and
        kept as one more.

        A shard holds the embeddings of some clips by one network, each clip named by its machine and content.
        returns : names of the shards' folders, none for a detector that embeds anew
        """
        inputs = detector.embedding_inputs()
        if inputs is None:
            return []
        test = (machine_rows(self.clips, machine, "test") for machine in machines)
        rows = np.concatenate([detector.train_rows, *test])
        part = np.where(np.isin(rows, detector.train_rows), "/train/", "/test/")
        clips = (self.clips["machine"].iloc[rows] + part + self.clips["digest"].iloc[rows]).to_numpy(str)
        head, _, key = trained.name.rpartition("-trained-")
        prefix = f"{head}-embeddings-{settings_tree.digest(key, inputs)}-"
        todo, used = np.full(len(rows), True), []
        for shard in sorted(one for one in trained.parent.iterdir() if one.name.startswith(prefix)):
            if artifacts.is_whole(shard):
                if (found := _take(shard, detector, rows, clips, todo)).any():
                    todo, used = todo & ~found, [*used, shard.name]
            elif (shard / "DONE").is_file():
                print(f"{shard.name}: {', '.join(artifacts.corrupt_files(shard))}; embedded again")
        if todo.any():
            named = pd.unique(clips[todo]).tolist()  # a recording that is there twice has one embedding
            shard = trained.parent / f"{prefix}{settings_tree.digest(named)[:8]}"
            with artifacts.only_one(shard):
                if not artifacts.is_whole(shard):
                    artifacts.start(shard, shard.name)
                    began = time.perf_counter()
                    first = rows[[clips.tolist().index(name) for name in named]]
                    save_file(detector.embedded(first), shard / EMBEDDINGS)
                    spent = {"seconds": time.perf_counter() - began}
                    facts = about | spent | {"trained": trained.name, "clips": named}
                    artifacts.commit(shard, shard.name, facts)
            _take(shard, detector, rows, clips, todo)
            used.append(shard.name)
        return used

    def _detector(self, name: str, settings, folder: Path | None = None) -> Detector:
        keywords = {
            "seed": self.seed,
            "device": self.local_device,
            "precision": self.precision_of(name),
            "checkpoints": folder,
        }
        return DETECTORS[name](settings, **keywords)

    @contextlib.contextmanager
    def _meant_for(self, device: torch.device):
        """Inside, artifacts are those of another device, as this machine trains there."""
        before = self.device, self.auto
        self.device, self.auto = device, ""
        try:
            yield
        finally:
            self.device, self.auto = before

    def detector_path(self, name: str, machine: str) -> tuple[Path, str]:
        """Folder of a finished detector and the machine it belongs to ("": all); see `detector_folder`."""
        stage = next(stage for stage in STAGES if name in stage.detectors)
        machine = machine if stage.per_machine else ""
        return self.detector_folder(name, machine, self.seed), machine

    def spaces(self) -> list[projection.Space]:
        """Embeddings and latents of the study's OEVAEs, machine by machine, embeddings of its classifier and
        of its pretrained encoder. Notebook: 06_embeddings
        """
        found = []
        if "oevae" in self.cfg.systems:
            domain = self.cfg.oevae.domain_latent
            for machine in self.machines:
                folder = self.detector_path("oevae", machine)[0]
                found += projection.oevae_spaces(folder, self.clips, machine, domain)
        if "classifier" in self.cfg.systems:
            found.append(projection.classifier_space(self.detector_path("classifier", "")[0]))
        if "pretrained" in self.cfg.systems:
            found += [
                projection.detector_space(self.detector("pretrained", machine), machine)
                for machine in self.machines
            ]
        return found

    def detector(self, name: str, machine: str) -> object:
        """A finished detector, loaded once and never trained. machine : any of those it was trained on"""
        folder, own = self.detector_path(name, machine)
        if folder not in self._loaded:
            clips = training_clips(self.store, [own] if own else self.machines)[0]
            trained = self.trained_with(folder)
            if not artifacts.is_whole(trained):
                wrong = ", ".join(artifacts.corrupt_files(trained))
                raise errors.InputError(
                    f"{name} of {own or 'all machines'} (seed {self.seed}) is not whole: {wrong}; run `asd"
                    f" run {self.cfg.name}` again"
                )
            detector = self._detector(name, getattr(self.cfg, name)).restore_training(trained, clips)
            self._loaded[folder] = detector.restore_scoring(folder)
        return self._loaded[folder]

    def explain(self, row: int, of: str = "beta") -> explain.Why:
        """Why a clip was scored so, by the detectors of the study's systems.  of : alpha or beta, see
        `explain.why`.  Notebook: 06_embeddings
        """
        machine, names = self.clips["machine"].iloc[row], {SYSTEMS[system] for system in self.cfg.systems}
        found = {
            name: self.detector(name, machine)
            for name in ("autoencoder", "oevae", "classifier")
            if name in names
        }
        return explain.why(self.store, int(row), self.cfg.oevae.features, **found, of=of)

    def collect(self) -> pd.DataFrame:
        """Scores of all systems, seeds and machines, and of what is composed of them, written to
        scores.parquet, and the clips that they are of to clips.parquet.
        """
        scores = schemas.score_table(
            fusion.seed_ensembles(self.load_scores(self.cfg.systems), self.cfg.fusion.normalize)
        )
        io.write_table(self.folder / "clips.parquet", self.clips)
        io.write_table(self.folder / "scores.parquet", scores)
        return scores

    def load_scores(self, systems: Sequence[str], seeds: Sequence[int] = ()) -> pd.DataFrame:
        """Scores of these systems of the study, all machines, these seeds (none: all), and of what
        `fusion.COMPOSED` makes of them.

        raises : errors.InputError that names every stage whose scores are missing.  Notebooks: 06, 08; 09
            (through `collect`)
        """
        wanted, chosen = {SYSTEMS[system] for system in systems}, seeds or self.cfg.seeds
        missing = (
            self.missing(wanted, chosen) if wanted and set(chosen) <= set(self.cfg.seeds) else ["every stage"]
        )
        if missing:
            raise errors.InputError(
                f"scores are missing of {', '.join(missing)}; run `asd run {self.cfg.name}` with these"
                " settings first"
            )
        folders = [
            self.detector_folder(name, machine, seed)
            for stage, seed, machine in jobs(self)
            if seed in chosen
            for name in stage.detectors
            if name in wanted
        ]
        tables = [io.scores(folder / "scores.parquet") for folder in folders]
        scores = fusion.systems(pd.concat(tables, ignore_index=True), self.cfg.fusion)
        scores = _without_label(scores, self.withdrawn)
        names = fusion.with_composed(systems, self.cfg.fusion.views)
        return schemas.score_table(scores[scores["system"].isin(names)].reset_index(drop=True))

    def missing(
        self, detectors: Iterable[str], seeds: Sequence[int], coming: Iterable[tuple[Stage, int, str]] = ()
    ) -> list[str]:
        """The stages that have not finished some of these detectors, in words. coming : jobs that are about
        to
        """
        found = []
        for stage, seed, machine in jobs(self):
            for name in stage.detectors if seed in seeds and (stage, seed, machine) not in coming else ():
                if name in detectors and not self.has(name, machine, seed):
                    found.append(f"{stage.notebook} of {machine or 'all machines'} (seed {seed})")
        return list(dict.fromkeys(found))

    def unseen(self, scores: pd.DataFrame) -> pd.Series:
        """Of each row of a score table, whether it is of a training clip that no network behind the system
        was trained on, bool.
        """
        out, views = scores["split"] == "train", self.cfg.fusion.views
        base = scores["system"].str.removesuffix(fusion.SEEDS)
        for stage, seed, machine in jobs(self):
            for name in self.scores_of(stage, seed, machine):
                path = self.detector_folder(name, machine, seed) / "manifest.json"
                facts = json.loads(path.read_text(encoding="utf-8"))
                unseen = facts.get("unseen", [])  # None: all
                if unseen is not None:
                    behind = [one for one in base.unique() if name in scorer.detectors_of(one, views=views)]
                    of = base.isin(behind) & scores["seed"].isin([seed, fusion.ALL_SEEDS])
                    of &= scores["machine"].isin(facts["machines"])
                    out &= ~of | scores["clip"].isin(unseen)
        return out

    def measure(self, scores: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Metrics and controls with intervals, written to metrics.csv and controls.csv."""
        stream = {fusion.ALL_SEEDS: self.seed}  # of the bootstrap
        tables = [
            metrics.table(part, self.cfg.metrics, stream.get(seed, seed))
            for seed, part in scores.groupby("seed")
        ]
        table, controls = (
            pd.concat(tables, ignore_index=True),
            metrics.controls(self.clips, scores, self.cfg.metrics, self.seed),
        )
        io.write_table(self.folder / "metrics.csv", table)
        io.write_table(self.folder / "controls.csv", controls)
        return table, controls

    def save_table(self, name: str, table: pd.DataFrame) -> None:
        """A table of this run's stage, beside its notebook. Only `asd run` writes it; a notebook opened by
        hand leaves what is there.
        """
        job, marker = (self.stage, self.seed, self.own_machine), self.own_folder / "BEGUN"
        if marker.is_file() and marker.read_text(encoding="utf-8") == self.digest(*job):
            io.write_table(marker.parent / name, table)

    def load_table(self, notebook: str, name: str) -> pd.DataFrame:
        """What a stage without machines kept, of all seeds, with the column seed; empty where the stage is
        not finished for these settings.
        """
        stage, found = stage_of(notebook), []
        for seed in self.cfg.seeds if stage.per_seed else self.cfg.seeds[:1]:
            path = self.stage_folder(stage, seed) / name
            if artifacts.finished(path.parent, self.digest(stage, seed)) and path.is_file():
                found.append(pd.read_csv(path).assign(seed=seed))
        return pd.concat(found, ignore_index=True) if found else pd.DataFrame()

    def scorer(self, machine: str = "", system: str = "") -> scorer.Scorer:
        """The trained detectors of one machine, for any recordings, see `scorer.of`; the run must be finished
        (`open`).
        """
        return scorer.of(self, jobs(self), machine, system)

    def score(self, paths: Sequence[str | Path], machine: str = "", system: str = "") -> pd.DataFrame:
        """Scores of recordings and folders of recordings: a row per file, see `scorer.Scorer`. For many calls
        keep one `scorer`.
        """
        return self.scorer(machine, system)(scorer.recordings(paths))

    def timings(self) -> pd.DataFrame:
        """Seconds of every finished job of this study: stage, machine, seed, seconds; and the peak memory of
        those that train.
        """
        rows = []
        for stage, seed, machine in jobs(self):
            folder = self.stage_folder(stage, seed, machine)
            if not artifacts.finished(folder, self.digest(stage, seed, machine)):
                continue
            facts = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
            peaks = [
                json.loads((one / "manifest.json").read_text(encoding="utf-8"))["peak_memory_mb"]
                for one in self.scores_of(stage, seed, machine).values()
                if (one / "manifest.json").is_file()
            ]
            which = (stage.notebook, machine, seed if stage.per_seed else "")
            rows.append((*which, facts["seconds"], str(max(peaks)) if peaks else ""))
        return pd.DataFrame(rows, columns=["stage", "machine", "seed", "seconds", "peak_memory_mb"])


def _without_label(table: pd.DataFrame, clips: Sequence[str]) -> pd.DataFrame:
    """A clip or score table in which these clips are unlabeled."""
    return table.assign(label=table["label"].mask(table["clip"].isin(clips), "unlabeled"))


def _clips_digest(clips: pd.DataFrame) -> str:
    """Digest of what a training sees of clips of one machine: names, labels, attributes and sounds, not where
    the files lie. Attributes that only other machines have do not count.
    """
    facts = clips.drop(columns=["path", "level_db"], errors="ignore").sort_index(axis=1)
    return settings_tree.digest(facts.loc[:, (facts.astype(str) != "").any()].to_csv(index=False))


def _take(
    shard: Path, detector: Detector, rows: np.ndarray, clips: np.ndarray, todo: np.ndarray
) -> np.ndarray:
    """Give a detector the embeddings that a shard has of clips to do.  returns : of which, bool (clips,)"""
    with io.refused(shard / EMBEDDINGS, "embeddings of these clips"):
        facts = json.loads((shard / "manifest.json").read_text(encoding="utf-8"))
        place = pd.Index(facts["clips"]).get_indexer(clips)
        found = todo & (place >= 0)
        if found.any():
            arrays = io.tensors(shard / EMBEDDINGS, {}).items()
            detector.take_embedded(rows[found], {name: values[place[found]] for name, values in arrays})
    return found
