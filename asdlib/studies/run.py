"""An opened study: its folders, the keys of its artifacts, and computing or loading them.

    runs/artifacts/<detector>-<machine>-<seed>-trained-<key>   trained networks, shared by all studies
    runs/artifacts/<detector>-<machine>-<seed>-embeddings-<key>-<clips>   embeddings of some clips (a shard)
    runs/artifacts/<detector>-<machine>-<seed>-scores-<key>    scores and the state needed to score
    runs/recordings/<digest>/store, data         decoded clips; synthetic recordings if none were given
    runs/<study>/<stage>                         executed notebooks of stages that run once
    runs/<study>/seed<k>/<stage>[/<machine>]     executed notebooks of stages that run per seed
    runs/<study>/scores.parquet, metrics.csv     scores and metrics of the study; reports/<study>/index.html
    runs/<study>/sweep                           pages of variants (asdlib.studies.sweeps, or interactive)
    runs/<study>/tuned.toml                      omega, eta and both k chosen by 08_tuning, for `include`
    runs/<study>/accepted                        recordings that a person accepted as normal

The key of an artifact is the digest of all its inputs: settings, clips, code, device, precision, seed and
machines. `trained_by` and `detector_shaped_by` list these inputs by name; the manifest keeps them, so that a
job can tell why it is stale (asdlib.studies.jobs). Finished artifacts are never recomputed or overwritten.

Source: METHOD 8.2, 8.3. Notebooks: all (the `Run` of their second cell).
"""

from __future__ import annotations

import contextlib
import functools
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

EMBEDDINGS = "embeddings.safetensors"  # in a shard: arrays (clips, ...) by name
_WARNED: set[Path] = set()  # folders already reported as computed by other code


class Run:
    """An opened study: settings, recordings, folders, keys and results.

    Created by `study.open_notebook` in notebooks and by `study.open_run` in scripts. Everything is computed
    or loaded on first use.
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
        """Set up folders and device without reading anything.

        variant, base : name of a variant, and the study it varies; they share recordings and finished jobs
        """
        self.cfg, self.home, self.seed, self.stage, self.machine = cfg, home, seed, stage, machine
        self.variant, self.base = variant, base
        subfolder = Path("sweep", variant) if variant else Path()
        self.study_folder = home / "runs" / cfg.name  # locked as a whole
        self.folder, self.reports = self.study_folder / subfolder, home / "reports" / cfg.name / subfolder
        self.synthetic = not cfg.data.roots
        if self.synthetic and not cfg.data.recorded:  # fail before recordings are synthesized
            for name in cfg.data.machines:
                errors.check_choice("machine", name, sorted(cfg.synthetic.machines))
        recordings = settings_tree.digest(cfg.data, cfg.synthetic if self.synthetic else None)
        self.data_folder = home / "runs" / housekeeping.RECORDINGS / recordings  # shared between studies
        # device in the artifacts' keys; computation uses `local_device`
        self.device = training.pick_device(cfg.device)
        self.auto = ""  # what precision "auto" resolved to, if another machine decided it
        self.study_file: str | None = None  # name or path it was opened by
        self.overrides: list[str] = []  # `name=value`, to open it again
        self.changed: dict = {}  # changed settings of an interactive variant, by name

    @property
    def local_device(self) -> torch.device:
        """Device of this process: the study's if available, else the CPU."""
        return self.device if self.device.type == "cpu" or torch.cuda.is_available() else torch.device("cpu")

    @property
    def roots(self) -> list[Path]:
        """Folders of the recordings, given or synthetic."""
        return [self.data_folder / "data"] if self.synthetic else [Path(root) for root in self.cfg.data.roots]

    def found_store(self) -> store.Store | None:
        """Return the store if it is decoded and matches the current recordings, else None; writes nothing.

        raises : errors.InputError if the study needs recordings and has none
        """
        if self.synthetic and self.cfg.data.recorded:
            raise errors.InputError(
                f"study {self.cfg.name} needs recordings, but no folder was given; add --data-root DIR"
            )
        if self.synthetic and not self.roots[0].is_dir():
            return None
        if io.HOLDS in os.environ:  # in a job, whose runner has verified the store: no need to index again
            return store.stored(self.data_folder / "store", self.cfg.data.sample_rate)
        table, problems = index.index(self.roots, self.cfg.data.machines, self.cfg.data.supplemental)
        return store.find_store(table, problems, self.data_folder / "store", self.cfg.data)

    @functools.cached_property
    def store(self) -> store.Store:
        """Decoded recordings; decoded on first use."""
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
        """Discard the store, so that it is decoded again; the caller must hold the study's lock."""
        (self.data_folder / "store" / "DONE.json").unlink(missing_ok=True)
        for run in (self, self.base):
            if run is not None and run.data_folder == self.data_folder:
                run.__dict__.pop("store", None)

    @property
    def clips(self) -> pd.DataFrame:
        """Clip table; row i is item i of the store. Test clips accepted as normal are unlabeled."""
        table = self.store.clips
        return _without_label(table, self.withdrawn) if self.withdrawn else table

    @functools.cached_property
    def withdrawn(self) -> list[str]:
        """Names of test clips accepted as normal; they count in no metric."""
        table = self.store.clips
        return table["clip"][accepted.among(self.study_folder, table)].tolist()

    @functools.cached_property
    def severities(self) -> pd.Series:
        """Fault severity by clip name, NaN if unknown; for reports only."""
        return detectability.severities(self.clips)

    @property
    def problems(self) -> pd.DataFrame:
        """Problems of the recordings: columns path, reason, left_out."""
        return self.store.problems

    @property
    def machines(self) -> list[str]:
        """Machines with usable clips, sorted."""
        return sorted(self.clips["machine"].unique())

    def stage_folder(self, stage: Stage, seed: int, machine: str = "") -> Path:
        """Return the folder of a job; variants with the same training settings share it."""
        folder = self.study_folder
        if self.base is not None and self._settings(stage) != self.base._settings(stage):
            folder = folder / "sweep" / "jobs" / settings_tree.digest(self._settings(stage))[:8]
        folder = folder / f"seed{seed}" if stage.per_seed else folder
        return folder / stage.notebook / machine if stage.per_machine else folder / stage.notebook

    def _settings(self, stage: Stage) -> dict:
        """Settings that a stage's training and recordings depend on."""
        return {
            name: to_tree(self.cfg)[name]
            for name in (*(stage.detectors or stage.sections), "precision", "data", "synthetic")
        }

    def artifact(self, kind: str, name: str, seed: int, machine: str, key: str) -> Path:
        """Return the folder of an artifact of a kind: "trained", "embeddings" or "scores"."""
        return self.home / "runs" / "artifacts" / f"{name}-{machine or 'all'}-{seed}-{kind}-{key}"

    def detector_folder(self, name: str, machine: str, seed: int) -> Path:
        """Return the folder of a detector's scores.

        If only code has changed since they were computed, the old scores are used with a note on stderr.
        raises : errors.InputError if they are not finished for these settings and recordings, or damaged
        """
        folder = self.artifact("scores", name, seed, machine, self.detector_digest(name, seed, machine))
        if artifacts.is_whole(folder):
            return folder
        last = self.last_folder(name, seed, machine)
        damaged = (folder / "DONE").is_file()
        if last is not None and artifacts.is_whole(last) and not damaged:
            changes = artifacts.changes(last, self.detector_shaped_by(name, seed, machine))
            if changes and artifacts.only_code(changes):
                if last not in _WARNED:
                    _WARNED.add(last)
                    what = f"{name} of {machine or 'all machines'}"
                    print(
                        f"note: {what}: {'; '.join(changes)} since it was computed; `asd run {self.cfg.name}`"
                        " recomputes it",
                        file=sys.stderr,
                    )
                return last
        corrupt = ", ".join(artifacts.corrupt_files(folder)) if damaged else ""
        raise errors.InputError(
            f"{name} of {machine or 'all machines'} (seed {seed}) is"
            f" {f'damaged: {corrupt}' if corrupt else 'not finished for these settings'}; run"
            f" `asd run {self.cfg.name}` with these settings first"
        )

    def has(self, name: str, machine: str, seed: int) -> bool:
        """Return True if a detector is finished for these settings and recordings."""
        try:
            self.detector_folder(name, machine, seed)
        except errors.InputError:
            return False
        return True

    def last_folder(self, name: str, seed: int, machine: str) -> Path | None:
        """Return the folder of a detector's scores that its stage used last, by its manifest, or None."""
        stage = next(stage for stage in STAGES if name in stage.detectors)
        folder = self.stage_folder(stage, seed, machine if stage.per_machine else "")
        try:
            last = artifacts.read_manifest(folder)["artifacts"][name]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return self.home / "runs" / "artifacts" / Path(last).name

    def notebook(self, stage: Stage) -> Path:
        """Return the path of a stage's notebook, see `asdlib.studies.home`."""
        return notebooks(self.home) / f"{stage.notebook}.ipynb"

    def shaped_by(self, stage: Stage, seed: int, machine: str = "") -> dict:
        """Return all inputs of a job by name: those of `given_to`, and code."""
        return self.given_to(stage, seed, machine) | {"code": artifacts.code_digest()}

    def given_to(self, stage: Stage, seed: int, machine: str = "") -> dict:
        """Return the inputs of a job except code: settings, recordings, notebook, device, seed, machine."""
        cfg = self.cfg.model_dump()
        names = (*stage.sections, "precision")
        settings = {name: functools.reduce(dict.__getitem__, name.split("."), cfg) for name in names}
        if not stage.detectors:  # these pages show problems of the recordings and severities of faults
            settings["problems"] = settings_tree.digest(self.problems.to_json(orient="values"))
            settings["severities"] = settings_tree.digest(self.severities.dropna().to_json())
        if stage is STAGES[-1] and self.study_file is not None:
            sweep = config.read(self.study_file, self.overrides, self.home).get("sweep")
            settings |= {"sweep": sweep} if sweep else {}
        digests = accepted.listed(self.study_folder)["digest"].tolist() if "systems" in stage.sections else []
        return {
            **({"accepted": digests} if digests else {}),
            "settings": settings,
            "recordings": self.store.fingerprint,
            "notebook": code_cells(self.notebook(stage)),
            "device": self.device.type,
            "seed": seed if stage.per_seed else None,
            "machine": machine if stage.per_machine else None,
        }

    def digest(self, stage: Stage, seed: int, machine: str = "") -> str:
        """Return the digest of all inputs of a job."""
        return settings_tree.digest(self.shaped_by(stage, seed, machine))

    def trained_by(self, name: str, seed: int, machine: str, settings=None) -> dict:
        """Return all inputs of a trained network by name, excluding what only scoring depends on.

        machine : "" for a detector of all machines
        """
        detector = DETECTORS[name](getattr(self.cfg, name) if settings is None else settings)
        machines = [machine] if machine else self.machines
        seen = (self.clips["split"] == "train") & (self.clips["label"] == "normal")
        if not detector.uses_others:
            seen &= self.clips["machine"].isin(machines)
        clips = {trained_on: _clips_digest(rows) for trained_on, rows in self.clips[seen].groupby("machine")}
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
        """Return all inputs of a detector's scores by name."""
        settings = to_tree(getattr(self.cfg, name) if settings is None else settings)
        return {
            "settings": {name: settings, "precision": self.precision_of(name)},
            "recordings": self.store.fingerprint,
            "code": io.code(DETECTORS[name].__module__),
            "device": self.device.type,
            "seed": seed,
            "machines": [machine] if machine else self.machines,
        }

    def detector_digest(self, name: str, seed: int, machine: str, settings=None) -> str:
        """Return the key of a detector's scores."""
        return settings_tree.digest(name, self.detector_shaped_by(name, seed, machine, settings))

    def precision_of(self, name: str) -> str:
        """Return the precision a detector is trained in (`asdlib.models.precision`)."""
        return precision.of(name, self.cfg, self.device, self.auto)

    def scores_of(self, stage: Stage, seed: int, machine: str) -> dict[str, Path]:
        """Return the score folders of a stage's detectors, by name; only detectors that the systems need."""
        needed = {SYSTEMS[system] for system in self.cfg.systems}
        return {
            name: self.artifact("scores", name, seed, machine, self.detector_digest(name, seed, machine))
            for name in stage.detectors
            if name in needed
        }

    def trained_with(self, scores: Path) -> Path:
        """Return the folder of the trained network behind a folder of scores."""
        with io.refused(scores / "manifest.json", "a manifest"):
            name = artifacts.read_manifest(scores)["trained"]
        return scores.parent / Path(name).name

    def outputs(self, stage: Stage) -> list[Path]:
        """Return the files that a stage writes outside its folder."""
        return [self.folder / name for name in OUTPUTS.get(stage.notebook, ())]

    def finished(self, stage: Stage, seed: int, machine: str = "") -> bool:
        """Return True if a job, its detectors and its outputs are complete and up to date."""
        reported = ("summary.md", "report.json", "model_card.md") if stage is STAGES[-1] else ()
        return (
            artifacts.finished(self.stage_folder(stage, seed, machine), self.digest(stage, seed, machine))
            and all(map(artifacts.is_whole, self.scores_of(stage, seed, machine).values()))
            and all((self.reports / name).is_file() for name in reported)
        )

    @property
    def by_hand(self) -> bool:
        """True for a variant made by changing settings in an interactive notebook."""
        return bool(self.changed)

    @property
    def own_machine(self) -> str:
        """Machine of this notebook's job, "" if it runs once for all machines."""
        return self.machine if self.stage.per_machine else ""

    @property
    def own_folder(self) -> Path:
        """Folder of this notebook's job: the one set by the runner, else the study's."""
        folder = os.environ.get(artifacts.FOLDER)
        return Path(folder) if folder else self.stage_folder(self.stage, self.seed, self.own_machine)

    @property
    def detectors(self) -> list[str]:
        """Names of the detectors that this notebook computes for the study's systems."""
        return list(self.scores_of(self.stage, self.seed, self.own_machine))

    @functools.cached_property
    def _loaded(self) -> dict[Path, object]:
        """Loaded detectors by folder."""
        return {}

    def fit_or_load(self, name: str, settings=None) -> tuple[Detector, pd.DataFrame, pd.DataFrame]:
        """Return a detector of this run's machine, its score table and its training history.

        Training and scoring are each loaded if finished for their key, else computed on this machine's
        device, even if the study was computed on another.

        settings : the detector's settings; default: the study's
        """
        machine = self.own_machine
        device, in_job = training.pick_device(self.cfg.device), io.HOLDS in os.environ
        spec = (name, self.seed, machine, settings)
        scored = self.artifact("scores", name, self.seed, machine, self.detector_digest(*spec))
        if (self.device != device or (self.auto and not in_job)) and not artifacts.is_whole(scored):
            with self._on_device(device):
                return self.fit_or_load(name, settings)
        inputs = self.trained_by(*spec)  # a detector without training has an empty folder
        trained = self.artifact("trained", name, self.seed, machine, settings_tree.digest(name, inputs))
        if self.by_hand:
            housekeeping.record_variant(self.folder, self.changed, scored, self.data_folder)
        machines = [machine] if machine else self.machines
        clips, others = training_clips(self.store, machines)
        detector = self._detector(name, getattr(self.cfg, name) if settings is None else settings, trained)
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
                start = time.perf_counter()
                with training.memory_in_words(
                    f"{name} of {', '.join(machines[:3])}{' …' if len(machines) > 3 else ''}"
                ):
                    detector.train(clips, others)
                detector.save_training(trained)
                usage = {"seconds": time.perf_counter() - start, "peak_memory_mb": artifacts.peak_memory_mb()}
                artifacts.commit(trained, trained.name, about | usage | {"shaped_by": inputs})
        with io.wrap_os_errors(scored), artifacts.only_one(scored):
            if artifacts.is_whole(scored):
                with io.refused(scored, f"a {name} detector"):
                    detector.restore_scoring(scored)
                return detector, io.scores(scored / "scores.parquet"), detector.history
            artifacts.start(scored, scored.name)
            with training.memory_in_words(name):
                shards, start = self._embed(detector, trained, machines, about), time.perf_counter()
                scores = score_all(detector, self.store, machines)
            io.write_table(scored / "scores.parquet", scores)
            detector.save_scoring(scored)
            usage = {"seconds": time.perf_counter() - start, "peak_memory_mb": artifacts.peak_memory_mb()}
            inputs = {"shaped_by": self.detector_shaped_by(*spec), "trained": trained.name}
            unseen = clips.table["clip"][detector.unseen].tolist()
            unseen = {"unseen": None if detector.unseen.all() else unseen}
            artifacts.commit(scored, scored.name, about | usage | inputs | {"embeddings": shards} | unseen)
        return detector, scores, detector.history

    def _embed(self, detector: Detector, trained: Path, machines: Sequence[str], about: dict) -> list[str]:
        """Give a trained detector the embeddings of its machines' clips, from shards where they exist.

        A shard holds the embeddings of some clips by one network; clips are identified by machine, split and
        content. Missing embeddings are computed and saved as a new shard.
        returns : folder names of the shards; empty if the detector stores no embeddings
        """
        inputs = detector.embedding_inputs()
        if inputs is None:
            return []
        test = (machine_rows(self.clips, machine, "test") for machine in machines)
        rows = np.concatenate([detector.train_rows, *test])
        split = np.where(np.isin(rows, detector.train_rows), "/train/", "/test/")
        clips = (self.clips["machine"].iloc[rows] + split + self.clips["digest"].iloc[rows]).to_numpy(str)
        head, _, key = trained.name.rpartition("-trained-")
        prefix = f"{head}-embeddings-{settings_tree.digest(key, inputs)}-"
        todo, used = np.full(len(rows), True), []
        for shard in sorted(path for path in trained.parent.iterdir() if path.name.startswith(prefix)):
            if artifacts.is_whole(shard):
                if (found := _load_shard(shard, detector, rows, clips, todo)).any():
                    todo, used = todo & ~found, [*used, shard.name]
            elif (shard / "DONE").is_file():
                print(f"{shard.name}: {', '.join(artifacts.corrupt_files(shard))}; recomputing embeddings")
        if todo.any():
            missing = pd.unique(clips[todo]).tolist()  # identical recordings share an embedding
            shard = trained.parent / f"{prefix}{settings_tree.digest(missing)[:8]}"
            with artifacts.only_one(shard):
                if not artifacts.is_whole(shard):
                    artifacts.start(shard, shard.name)
                    start = time.perf_counter()
                    first = rows[[clips.tolist().index(name) for name in missing]]
                    save_file(detector.embedded(first), shard / EMBEDDINGS)
                    facts = {"seconds": time.perf_counter() - start, "trained": trained.name}
                    artifacts.commit(shard, shard.name, about | facts | {"clips": missing})
            _load_shard(shard, detector, rows, clips, todo)
            used.append(shard.name)
        return used

    def _detector(self, name: str, settings, folder: Path | None = None) -> Detector:
        return DETECTORS[name](
            settings,
            seed=self.seed,
            device=self.local_device,
            precision=self.precision_of(name),
            checkpoints=folder,
        )

    @contextlib.contextmanager
    def _on_device(self, device: torch.device):
        """Use the artifacts of another device, and this machine's precision, inside the block."""
        before = self.device, self.auto
        self.device, self.auto = device, ""
        try:
            yield
        finally:
            self.device, self.auto = before

    def detector_path(self, name: str, machine: str) -> tuple[Path, str]:
        """Return the folder of a finished detector (see `detector_folder`) and its machine ("": all)."""
        stage = next(stage for stage in STAGES if name in stage.detectors)
        machine = machine if stage.per_machine else ""
        return self.detector_folder(name, machine, self.seed), machine

    def spaces(self) -> list[projection.Space]:
        """Return the embeddings and latents of the study's OEVAEs, classifier and pretrained encoder.

        Notebook: 06_embeddings
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
        """Return a finished detector, loaded once and cached.  machine : any machine it was trained on"""
        folder, own = self.detector_path(name, machine)
        if folder not in self._loaded:
            clips = training_clips(self.store, [own] if own else self.machines)[0]
            trained = self.trained_with(folder)
            if not artifacts.is_whole(trained):
                corrupt = ", ".join(artifacts.corrupt_files(trained))
                raise errors.InputError(
                    f"{name} of {own or 'all machines'} (seed {self.seed}) is damaged: {corrupt}; run"
                    f" `asd run {self.cfg.name}` again"
                )
            detector = self._detector(name, getattr(self.cfg, name)).restore_training(trained, clips)
            self._loaded[folder] = detector.restore_scoring(folder)
        return self._loaded[folder]

    def explain(self, row: int, of: str = "beta") -> explain.Why:
        """Explain a clip's score by the detectors of the study's systems.  Notebook: 06_embeddings

        row : of the clip table.  of : "alpha" or "beta", see `explain.why`
        """
        machine, names = self.clips["machine"].iloc[row], {SYSTEMS[system] for system in self.cfg.systems}
        found = {
            name: self.detector(name, machine)
            for name in ("autoencoder", "oevae", "classifier")
            if name in names
        }
        return explain.why(self.store, int(row), self.cfg.oevae.features, **found, of=of)

    def collect(self) -> pd.DataFrame:
        """Return the scores of all systems, also composed ones; write scores.parquet and clips.parquet."""
        scores = schemas.score_table(
            fusion.seed_ensembles(self.load_scores(self.cfg.systems), self.cfg.fusion.normalize)
        )
        io.write_table(self.folder / "clips.parquet", self.clips)
        io.write_table(self.folder / "scores.parquet", scores)
        return scores

    def load_scores(self, systems: Sequence[str], seeds: Sequence[int] = ()) -> pd.DataFrame:
        """Return the scores of systems on all machines, and of the systems composed of them.

        seeds : default: all seeds of the study
        raises : errors.InputError with the stages whose scores are missing.  Notebooks: 06, 08; 09 (through
            `collect`)
        """
        wanted, seeds = {SYSTEMS[system] for system in systems}, seeds or self.cfg.seeds
        missing = ["every stage"]
        if wanted and set(seeds) <= set(self.cfg.seeds):
            missing = self.missing(wanted, seeds)
        if missing:
            raise errors.InputError(
                f"missing scores: {', '.join(missing)}; run `asd run {self.cfg.name}` with these settings"
                " first"
            )
        folders = [
            self.detector_folder(name, machine, seed)
            for stage, seed, machine in jobs(self)
            if seed in seeds
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
        """Describe the jobs that have not finished some of these detectors.

        coming : jobs about to run, which do not count as missing
        """
        found = []
        for stage, seed, machine in jobs(self):
            for name in stage.detectors if seed in seeds and (stage, seed, machine) not in coming else ():
                if name in detectors and not self.has(name, machine, seed):
                    found.append(f"{stage.notebook} of {machine or 'all machines'} (seed {seed})")
        return list(dict.fromkeys(found))

    def unseen(self, scores: pd.DataFrame) -> pd.Series:
        """Return a bool mask of score rows of training clips that no network of the system was trained on."""
        out, views = scores["split"] == "train", self.cfg.fusion.views
        base = scores["system"].str.removesuffix(fusion.SEEDS)
        for stage, seed, machine in jobs(self):
            for name in self.scores_of(stage, seed, machine):
                manifest = artifacts.read_manifest(self.detector_folder(name, machine, seed))
                unseen = manifest.get("unseen", [])  # None: all
                if unseen is not None:
                    using = [
                        system for system in base.unique() if name in scorer.detectors_of(system, views=views)
                    ]
                    affected = base.isin(using) & scores["seed"].isin([seed, fusion.ALL_SEEDS])
                    affected &= scores["machine"].isin(manifest["machines"])
                    out &= ~affected | scores["clip"].isin(unseen)
        return out

    def measure(self, scores: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return metrics and controls with intervals; write metrics.csv and controls.csv."""
        tables = [
            metrics.table(part, self.cfg.metrics, self.seed if seed == fusion.ALL_SEEDS else seed)
            for seed, part in scores.groupby("seed")
        ]
        table = pd.concat(tables, ignore_index=True)
        controls = metrics.controls(self.clips, scores, self.cfg.metrics, self.seed)
        io.write_table(self.folder / "metrics.csv", table)
        io.write_table(self.folder / "controls.csv", controls)
        return table, controls

    def save_table(self, name: str, table: pd.DataFrame) -> None:
        """Save a table next to the executed notebook; does nothing in an interactive notebook."""
        job, marker = (self.stage, self.seed, self.own_machine), self.own_folder / "BEGUN"
        if marker.is_file() and marker.read_text(encoding="utf-8") == self.digest(*job):
            io.write_table(marker.parent / name, table)

    def load_table(self, notebook: str, name: str) -> pd.DataFrame:
        """Return a table saved by a stage that runs once or per seed, with a column seed.

        Empty if the stage is not finished for these settings.
        """
        stage, found = stage_of(notebook), []
        for seed in self.cfg.seeds if stage.per_seed else self.cfg.seeds[:1]:
            path = self.stage_folder(stage, seed) / name
            if artifacts.finished(path.parent, self.digest(stage, seed)) and path.is_file():
                found.append(pd.read_csv(path).assign(seed=seed))
        return pd.concat(found, ignore_index=True) if found else pd.DataFrame()

    def scorer(self, machine: str = "", system: str = "") -> scorer.Scorer:
        """Return a scorer of new recordings for one machine, see `scorer.of`; the run must be finished."""
        return scorer.of(self, jobs(self), machine, system)

    def score(self, paths: Sequence[str | Path], machine: str = "", system: str = "") -> pd.DataFrame:
        """Score recordings and folders of recordings, a row per file; see `scorer.Scorer`.

        For repeated calls, keep a `scorer`.
        """
        return self.scorer(machine, system)(scorer.recordings(paths))

    def timings(self) -> pd.DataFrame:
        """Return seconds and, for training jobs, peak memory of every finished job.

        returns : columns stage, machine, seed, seconds, peak_memory_mb
        """
        rows = []
        for stage, seed, machine in jobs(self):
            folder = self.stage_folder(stage, seed, machine)
            if not artifacts.finished(folder, self.digest(stage, seed, machine)):
                continue
            manifest = artifacts.read_manifest(folder)
            peaks = [
                artifacts.read_manifest(scored)["peak_memory_mb"]
                for scored in self.scores_of(stage, seed, machine).values()
                if (scored / "manifest.json").is_file()
            ]
            job = (stage.notebook, machine, seed if stage.per_seed else "")
            rows.append((*job, manifest["seconds"], str(max(peaks)) if peaks else ""))
        return pd.DataFrame(rows, columns=["stage", "machine", "seed", "seconds", "peak_memory_mb"])


def _without_label(table: pd.DataFrame, clips: Sequence[str]) -> pd.DataFrame:
    """Return a clip or score table with these clips unlabeled."""
    return table.assign(label=table["label"].mask(table["clip"].isin(clips), "unlabeled"))


def _clips_digest(clips: pd.DataFrame) -> str:
    """Digest of what training sees of one machine's clips: names, labels, attributes and sounds, not paths.

    Columns that are empty for this machine do not count.
    """
    seen = clips.drop(columns=["path", "level_db"], errors="ignore").sort_index(axis=1)
    return settings_tree.digest(seen.loc[:, (seen.astype(str) != "").any()].to_csv(index=False))


def _load_shard(
    shard: Path, detector: Detector, rows: np.ndarray, clips: np.ndarray, todo: np.ndarray
) -> np.ndarray:
    """Give a detector the embeddings in a shard.  returns : which clips of `todo` it had, bool (clips,)"""
    with io.refused(shard / EMBEDDINGS, "embeddings of these clips"):
        manifest = artifacts.read_manifest(shard)
        index_in_shard = pd.Index(manifest["clips"]).get_indexer(clips)
        found = todo & (index_in_shard >= 0)
        if found.any():
            arrays = io.tensors(shard / EMBEDDINGS, {}).items()
            detector.take_embedded(
                rows[found], {name: values[index_in_shard[found]] for name, values in arrays}
            )
    return found
