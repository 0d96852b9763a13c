"""What is computed again after a change: trainings and scores are counted, on the detectors of a small store."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from sizes import TINY

from asdlib import errors, io
from asdlib.data.decode import sample_digest
from asdlib.data.store import in_memory
from asdlib.detectors import DETECTORS
from asdlib.models import classifier, oevae
from asdlib.studies import run as studies_run
from asdlib.studies import stages
from asdlib.studies.run import EMBEDDINGS, Run


@pytest.fixture
def count(monkeypatch):
    """Trainings, scorings, and clips through a finished network since the last look, by detector."""
    found = {"trained": [], "scored": [], "embedded": []}
    for name, detector in DETECTORS.items():
        for kind, method in (("trained", "_train"), ("scored", "_prepare")):
            whole = getattr(detector, method)

            def counted(self, *args, _whole=whole, _name=name, _kind=kind):
                found[_kind].append(_name)
                return _whole(self, *args)

            monkeypatch.setattr(detector, method, counted)
    for name, network in (("classifier", classifier.Classifier), ("oevae", oevae.OEVAE)):
        forward = network.forward

        def passed(self, x, *rest, _forward=forward, _name=name, **named):
            if not self.training:
                items = len(next(iter(x.values()))) if isinstance(x, dict) else len(x)
                found["embedded"] += [_name] * (items // (TINY.features.segments if _name == "oevae" else 1))
            return _forward(self, x, *rest, **named)

        monkeypatch.setattr(network, "forward", passed)
    clip = DETECTORS["pretrained"]._clip
    monkeypatch.setattr(
        DETECTORS["pretrained"],
        "_clip",
        lambda self, row: found["embedded"].append("pretrained") or clip(self, row),
    )

    def look():
        seen = {kind: sorted(names) for kind, names in found.items()}
        for names in found.values():
            names.clear()
        return seen

    return look


STAGE_OF = dict.fromkeys(("baseline_knn", "multires", "pretrained", "autoencoder"), "03") | {
    "classifier": "04",
    "oevae": "05",
}


def compute(context, home, name, store=None, **settings):
    """A detector of the pump through the store by key; settings of its section, or nested as dicts."""
    cfg = context.cfg.replace(**{name: settings})
    run = Run(cfg, home, 0, stages.stage_of(STAGE_OF[name]), "pump")
    run.__dict__["store"] = context.store if store is None else store
    return run.fit_or_load(name)


SCORING_ONLY = [
    ("baseline_knn", {"k": 3}),
    ("multires", {"neighbors": 4}),
    ("multires", {"k": 1}),
    ("pretrained", {"neighbors": 2}),
    ("autoencoder", {"mahala": "per_frame"}),
    ("classifier", {"backend": "knn"}),
    ("classifier", {"smote": {"ratio": 0.5}}),
    ("classifier", {"density_neighbors": 2}),
    ("oevae", {"neighbors": 2}),
    ("oevae", {"alpha_mode": "kl"}),
    ("oevae", {"neighbor_domains": "min"}),
    ("oevae", {"smote": {"ratio": 0.5}}),
    ("oevae", {"layers": ("layer1",)}),
    ("oevae", {"layers": ("layer1",), "pooling": "bands"}),
    ("oevae", {"layers": ("layer2", "layer3"), "pooling": "mean_std", "backend": "local_density"}),
    ("oevae", {"backend": "local_density"}),
]


@pytest.fixture(scope="module")
def made(context, tmp_path_factory):
    """A home in which every detector of the pump is finished, and their scores; who changes it copies it."""
    home = tmp_path_factory.mktemp("made")
    return home, {name: compute(context, home, name)[1] for name in STAGE_OF}


@pytest.fixture
def used(made, tmp_path):
    """A home of its own with all detectors finished."""
    shutil.copytree(made[0], tmp_path / "used")
    return tmp_path / "used"


@pytest.mark.parametrize(("name", "change"), SCORING_ONLY, ids=lambda value: str(value))
def test_a_setting_of_scoring_trains_nothing_and_changing_back_computes_nothing(
    context, made, used, count, name, change
):
    first = made[1][name]
    _, second, _ = compute(context, used, name, **change)
    seen = count()
    assert seen["trained"] == [] and seen["scored"].count(name) == 1
    assert bool(seen["embedded"]) == ("layers" in change)
    final = [part[part["component"] == "score"]["score"].to_numpy() for part in (first, second)]
    if "score" in set(first["component"]):
        assert name == "classifier" or not np.array_equal(*final)
    _, back, _ = compute(context, used, name)
    assert count()["trained"] == [] and back.equals(first)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        *dict(SCORING_ONLY[::-1]).items(),
        ("oevae", {"layers": ("layer1",), "pooling": "bands", "backend": "local_density"}),
    ],
)
def test_scores_after_a_change_are_those_of_a_fresh_computation(context, tmp_path, used, count, name, change):
    _, again, _ = compute(context, used, name, **change)
    assert count()["trained"] == []
    _, fresh, _ = compute(context, tmp_path / "new", name, **change)
    assert count()["trained"] == [name]
    pd.testing.assert_frame_equal(again, fresh, check_exact=True)


def test_what_beta_measures_moves_the_key_of_scores_and_not_that_of_training(context, tmp_path):
    run = Run(context.cfg, tmp_path, 0, stages.stage_of("05"), "pump")
    run.__dict__["store"] = context.store
    base, keys = context.cfg.oevae, set()
    changes = ({"layers": ("layer1",)}, {"pooling": "bands"}, {"backend": "local_density"})
    for change in ({}, *changes):
        settings = base.replace(**change)
        assert run.trained_by("oevae", 0, "pump", settings) == run.trained_by("oevae", 0, "pump", base)
        keys.add(run.detector_digest("oevae", 0, "pump", settings))
    assert len(keys) == 4
    untrained = run.trained_by("oevae", 0, "pump", base.replace(epochs=0))
    assert untrained != run.trained_by("oevae", 0, "pump", base)


def test_a_setting_of_training_trains_that_detector_and_leaves_the_first(context, used, count):
    before = {path: path.read_bytes() for path in used.rglob("*") if path.is_file()}
    compute(context, used, "oevae", epochs=1)
    assert count()["trained"] == ["oevae"]
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("name", ["classifier", "oevae", "pretrained"])
def test_of_a_changed_test_clip_that_clip_alone_is_embedded(context, tmp_path, made, used, count, name):
    other = changed(context.store, "pump", "test")
    _, now, _ = compute(context, used, name, other)
    assert count() == {"trained": [], "scored": [name], "embedded": [name]}
    assert (now["score"] != made[1][name]["score"]).any()
    _, fresh, _ = compute(context, tmp_path / "new", name, other)
    assert len(count()["embedded"]) > 1
    pd.testing.assert_frame_equal(now, fresh, check_exact=True)
    compute(context, used, name, other, **dict(SCORING_ONLY)[name])  # from both shards
    assert count()["embedded"] == []


def test_damaged_embeddings_are_made_again_and_that_is_said(context, used, count, capsys):
    (shard,) = used.glob("runs/artifacts/classifier-*-embeddings-*")
    content = (shard / EMBEDDINGS).read_bytes()
    (shard / EMBEDDINGS).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    compute(context, used, "classifier", backend="knn")
    seen = count()
    assert seen["trained"] == [] and 0 < len(seen["embedded"]) <= len(context.store)
    assert f"{EMBEDDINGS} is damaged; recomputing embeddings" in capsys.readouterr().out
    assert (shard / EMBEDDINGS).read_bytes() == content


def test_embeddings_that_were_cut_short_are_made_again(context, tmp_path, made, count, monkeypatch):
    def torn(arrays, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(studies_run, "save_file", torn)
        compute(context, tmp_path, "classifier")
    count()
    _, scores, _ = compute(context, tmp_path, "classifier")
    seen = count()
    assert seen["trained"] == [] and seen["embedded"]
    pd.testing.assert_frame_equal(scores, made[1]["classifier"], check_exact=True)


def test_the_same_recording_twice_is_embedded_once(context, tmp_path, count):
    store = context.store
    row = np.flatnonzero((store.clips["machine"] == "pump") & (store.clips["split"] == "test"))[0]
    rows = [*range(len(store)), row]
    table = store.clips.drop(columns="samples").iloc[rows].reset_index(drop=True)
    table.loc[len(store), "clip"] += " again"
    twice = in_memory(table, [store.int16(i) for i in rows], store.rate)
    compute(context, tmp_path, "oevae")
    every = count()["embedded"]
    _, scores, _ = compute(context, tmp_path / "twice", "oevae", twice)
    assert count()["embedded"] == every
    first, second = (scores[scores["clip"] == table["clip"][i]]["score"] for i in (row, len(store)))
    np.testing.assert_array_equal(first, second)


def changed(store, machine, split):
    """The same recordings, one clip of a machine and split a little quieter."""
    table = store.clips
    (row, *_) = np.flatnonzero((table["machine"] == machine) & (table["split"] == split))
    samples = [store.int16(i) // 2 if i == row else store.int16(i) for i in range(len(table))]
    facts = table.drop(columns="samples").assign(digest=[sample_digest(one) for one in samples])
    return in_memory(facts, samples, store.rate)


@pytest.mark.parametrize(
    ("name", "machine", "split", "trains"),
    [
        ("oevae", "pump", "test", False),
        ("classifier", "pump", "test", False),
        ("autoencoder", "pump", "train", True),
        ("autoencoder", "saw", "train", False),
        ("oevae", "saw", "train", True),
        ("classifier", "saw", "train", True),
    ],
)
def test_clips_train_again_only_what_trains_on_them(context, used, count, name, machine, split, trains):
    compute(context, used, name, changed(context.store, machine, split))
    assert count()["trained"] == [name] * trains


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the package's source, whose code counts in place of the real one."""
    copy = tmp_path / "asdlib"
    shutil.copytree(io.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(io, "PACKAGE", copy)

    def forget():
        for function in (io._module, io.code, io.code_digest):
            function.cache_clear()

    forget()
    yield copy, forget
    monkeypatch.undo()
    forget()


TRAINING = {name: f"asdlib.detectors.{name}_training" for name in ("autoencoder", "classifier", "oevae")}


@pytest.mark.parametrize(
    ("file", "old", "new", "stale"),
    [
        ("models/losses.py", '"""', '"""Other words. ', set()),
        ("models/losses.py", "import torch\n", "import torch  # as always\n", set()),
        ("viz/plots.py", "import numpy as np\n", "import numpy as np\n\nOTHER = 1\n", set()),
        ("scoring/distances.py", "import numpy as np\n", "import numpy as np\n\nOTHER = 1\n", set()),
        ("scoring/backends.py", "import numpy as np\n", "import numpy as np\n\nOTHER = 1\n", set()),
        ("io.py", "import hashlib\n", "import hashlib\n\nOTHER = 1\n", set()),
        ("models/losses.py", "import torch\n", "import torch\n\nOTHER = 1\n", {"classifier", "oevae"}),
        ("models/autoencoder.py", "import itertools\n", "import itertools\n\nOTHER = 1\n", {"autoencoder"}),
        ("detectors/exposure.py", "import copy\n", "import copy\n\nOTHER = 1\n", {"oevae"}),
    ],
)
def test_code_counts_where_it_shapes_a_training(package, file, old, new, stale):
    folder, forget = package
    before = {name: io.code(module) for name, module in TRAINING.items()}
    text = (folder / file).read_text(encoding="utf-8")
    assert old in text
    (folder / file).write_text(text.replace(old, new, 1), encoding="utf-8")
    forget()
    assert {name for name, module in TRAINING.items() if io.code(module) != before[name]} == stale


def test_training_never_imports_scoring():
    for module in TRAINING.values():
        behind = io.code(module)
        assert not [name for name in behind if name.startswith(("asdlib.scoring", "asdlib.evaluation"))]


def test_outputs_counts_and_kernels_of_a_notebook_do_not_count(tmp_path):
    book = {
        "cells": [
            {"cell_type": "code", "source": ["x = 1"], "outputs": [], "execution_count": None, "metadata": {}}
        ],
        "metadata": {"kernelspec": {"name": "python3"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    path = tmp_path / "a.ipynb"
    path.write_text(json.dumps(book))
    first = stages.code_cells(path)
    book["cells"][0] |= {
        "outputs": [{"output_type": "stream", "name": "stdout", "text": "1"}],
        "execution_count": 3,
    }
    book["metadata"] = {"kernelspec": {"name": "other"}, "widgets": {}}
    path.write_text(json.dumps(book, indent=4))
    assert stages.code_cells(path) == first
    book["cells"][0]["source"] = ["x = 2"]
    path.write_text(json.dumps(book))
    assert stages.code_cells(path) != first


def test_a_damaged_network_is_trained_again(context, used, count):
    for path in used.glob("runs/artifacts/autoencoder-*/weights0.safetensors"):
        path.write_bytes(b"torn")
    for path in used.glob("runs/artifacts/autoencoder-*-scores-*/scores.parquet"):
        path.write_bytes(b"torn")
    compute(context, used, "autoencoder")
    assert count()["trained"] == ["autoencoder"]


def test_scores_of_other_code_are_used_with_a_note(context, tmp_path, package, capsys):
    compute(context, tmp_path / "home", "baseline_knn")
    run = Run(context.cfg, tmp_path / "home", 0, stages.stage_of("03"), "pump")
    run.__dict__["store"] = context.store
    made = run.detector_folder("baseline_knn", "pump", 0)
    stage = run.stage_folder(run.stage, 0, "pump")
    stage.mkdir(parents=True)
    (stage / "manifest.json").write_text(json.dumps({"artifacts": {"baseline_knn": made.name}}))
    folder, forget = package
    path = folder / "scoring" / "distances.py"
    path.write_text(path.read_text(encoding="utf-8") + "\nOTHER = 1\n", encoding="utf-8")
    forget()
    assert run.detector_folder("baseline_knn", "pump", 0) == made
    assert "code of asdlib.scoring.distances changed" in capsys.readouterr().err
    with pytest.raises(errors.InputError, match="is not finished for these settings"):
        run.detector_folder("baseline_knn", "saw", 0)
