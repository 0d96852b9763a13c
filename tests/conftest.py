"""Recordings that several test files share: made once per session."""

import fcntl
import hashlib
import os
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from commands import asd
from sizes import BASELINE, SMALL, TINY, Context, RandomYAMNet, detector_of

from asdlib import detectors
from asdlib.data import index
from asdlib.data.store import open_store
from asdlib.detectors.base import detect
from asdlib.io import code_digest
from asdlib.models import encoders, training
from asdlib.scoring import fusion
from asdlib.studies.config import StudySettings

signal.signal(
    signal.SIGINT, signal.default_int_handler
)  # a suite in the background of a shell ignores it, and so would all it starts
torch.set_num_threads(1)  # as notebooks compute: the same figures on any number of cores

ROOT = Path(__file__).resolve().parent.parent
FLAGS = (  # that picking a GPU sets for the whole process
    (torch.backends.cudnn, "allow_tf32"),
    (torch.backends.cuda.matmul, "allow_tf32"),
    (torch.utils.deterministic, "fill_uninitialized_memory"),
)
# Half a minute or more each, so begun first: what is left for the end is then short.
LONG = (
    "test_cli.py",
    "test_dask.py",
    "test_classifier.py",
    "test_sweeps.py",
    "test_notebook.py",
    "test_home.py",
    "test_oevae.py",
    "test_tuning.py",
    "test_hostile.py",
    "test_gpu.py",
)


def pytest_xdist_auto_num_workers(config):
    """The plain suite runs two files at a time; chosen files, tests or marks run in this process, where they
    begin and can be debugged at once.
    """
    plain = (
        config.args_source != pytest.Config.ArgsSource.ARGS
        and not config.option.keyword
        and "not faults" in config.option.markexpr
    )
    return min(2, training.cores()) if plain else 0


def pytest_configure(config):
    if "gpu" not in config.option.markexpr.replace("not gpu", ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = (
            ""  # the tests, and what they start, see none: the same figures on any machine
        )


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no GPU here")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.fixture(autouse=True)
def as_a_study_computes(request, monkeypatch):
    """A test on a real GPU computes as a study there does, and leaves the process as it was."""
    if not request.node.get_closest_marker("gpu"):
        yield
        return
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    for place, flag in FLAGS:
        monkeypatch.setattr(place, flag, getattr(place, flag))
    training.pick_device("cuda")
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True, scope="session")
def random_encoder():
    """Detectors find an encoder of random weights; `encoders.YAMNet` itself stays as it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(encoders.ENCODERS, "yamnet", RandomYAMNet)
        yield


@pytest.fixture(scope="session")
def smoke(tmp_path_factory):
    """A home with the study smoke, run to its end once by `asd run smoke`, and what was said, in said.txt. Who
    alters it copies it. All workers of pytest-xdist share it; ASDLIB_SMOKE names a folder in which it stays for
    the next call of pytest.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = Path(os.environ.get("ASDLIB_SMOKE") or shared / "smoke").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".made", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)  # the first makes it, the others wait
        told, series = folder / "said.txt", ROOT / "notebooks"
        sources = b"".join(
            path.read_bytes() for path in sorted([*series.glob("*.ipynb"), *series.glob("*/smoke.toml")])
        )
        code = f"code {code_digest()} {hashlib.sha256(sources).hexdigest()}\n"
        if not told.is_file() or not told.read_text().startswith(code):
            done = asd("run", "smoke", "--home", folder)
            assert done.returncode == 0, done.stdout + done.stderr
            told.write_text(code + done.stdout)
    return folder


@pytest.fixture(scope="session")
def context(tmp_path_factory):
    """Two machines of short noisy tones, one clip longer than the others; anomalies are higher tones."""
    root = tmp_path_factory.mktemp("tones")
    rng = np.random.default_rng(0)
    for machine, base in (("pump", 400.0), ("saw", 900.0)):
        plan = [("train", "source", "normal", 10), ("train", "target", "normal", 3)]
        plan += [
            ("test", domain, label, 4) for domain in ("source", "target") for label in ("normal", "anomaly")
        ]
        for split, domain, label, count in plan:
            for i in range(count):
                t = np.arange(16000 + (4000 if i == 2 else 0)) / 16000
                hz = base * (1.5 if label == "anomaly" else 1.0) * (1.02 if domain == "target" else 1.0)
                wave = 0.1 * np.sin(2 * np.pi * hz * t + rng.uniform(0, 6)) + 0.01 * rng.normal(size=len(t))
                path = root / machine / split / f"section_00_{domain}_{split}_{label}_{i:04}_noAttribute.wav"
                path.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(path, wave, 16000)
    cfg = StudySettings(autoencoder=BASELINE, oevae=TINY, classifier=SMALL, precision="float32")
    store = open_store(*index.index([root]), tmp_path_factory.mktemp("store"), cfg.data)
    return Context(cfg, store, torch.device("cpu"))


@pytest.fixture(scope="session")
def trained(context, tmp_path_factory):
    """Folders of every detector trained on both machines (or one), and the study's score table."""
    folders, tables = {}, []
    for name in detectors.DETECTORS:
        folders[name] = tmp_path_factory.mktemp(name)
        machines = ["pump", "saw"] if name == "classifier" else ["pump"]
        detector = detector_of(detectors.DETECTORS[name], context)
        tables.append(detect(detector, context.store, machines))
        detector.save(folders[name])
    return folders, fusion.systems(
        pd.concat(tables, ignore_index=True).query("machine == 'pump'"), context.cfg.fusion
    )
