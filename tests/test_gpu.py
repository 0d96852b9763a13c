"""What a GPU would refuse or wait for, seen without one.

First an epoch of each network on torch's fake tensors, which have a device and no values. Two devices in one
operation are an error, and so is every question for a value (`.item()`, `bool(…)`, a mask as index): on a GPU
that is where the host waits. Copies between the host and the GPU by `.to` and its kin, which wait too, are
counted. The optimizer gets gradients of zero, as the engine that goes backwards asks for the GPU itself.

Then what a real GPU alone can show (pytest -m gpu); `test_oevae` and `test_store` hold more of it.
"""

import ast
import copy
import dataclasses
import functools
import gc
import importlib
import json
import subprocess
import sys
import types
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sizes import bound, detector_of, fit
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from asdlib import cli, errors, features
from asdlib.data.store import Clips, Store
from asdlib.detectors import DETECTORS, autoencoder_training, exposure
from asdlib.detectors.base import detect, machine_rows
from asdlib.detectors.classifier import Classifier
from asdlib.models import oevae, precision, training
from asdlib.models.autoencoder import Autoencoder, Vectors
from asdlib.studies import stages, study
from asdlib.studies.run import Run

PACKAGE = Path(cli.__file__).parent
GPU = torch.device("cuda", 0)


class Draws(torch.Generator):
    """A generator of the host that says it is the GPU's; it draws as one of the host does."""

    device = GPU


class Copies(TorchDispatchMode):
    """Counts what crosses between the host and the GPU: copies, and operations on tensors (not numbers) of
    both.
    """

    def __init__(self):
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given, made = (
            [x for x in tree_flatten(values)[0] if isinstance(x, torch.Tensor)]
            for values in ((args, kwargs), out)
        )
        if func is torch.ops.aten._to_copy.default and args[0].device != out.device:
            self.seen.append(f"{tuple(out.shape)} from {args[0].device} to {out.device}")
        elif len({x.device for x in given + made if x.ndim}) > 1:
            self.seen.append(f"{func} of both")
        return out


@pytest.fixture
def gpu(monkeypatch):
    """The mode under which tensors have no values, where autocast is possible; filter banks, which torchaudio
    looks at, are made outside of it.
    """
    mode, make = FakeTensorMode(), features._mel_bank

    @functools.cache
    def bank(*shape):
        with unset_fake_temporarily():
            made = make(*shape[:-1], torch.device("cpu"))
        return on_gpu(made, mode) if shape[-1] == GPU else made

    monkeypatch.setattr(features, "_mel_bank", bank)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    yield mode
    features._window.cache_clear()


def on_gpu(value, mode):
    """The same object with every tensor on the GPU."""
    if isinstance(value, torch.Tensor):
        with mode, torch.no_grad():
            moved = mode.from_tensor(value).to(GPU).detach()
        return nn.Parameter(moved) if isinstance(value, nn.Parameter) else moved
    if isinstance(value, torch.device):
        return GPU
    if isinstance(value, dict):
        return {name: on_gpu(part, mode) for name, part in value.items()}
    if isinstance(value, nn.Module) or type(value).__module__.startswith("asdlib."):
        other = copy.copy(value)
        vars(other).update(on_gpu(vars(value), mode))
        return other
    return value


def oevae_epoch(context, mode, home):
    """A network and its batches, from a function of draws."""
    rows = machine_rows(context.store.clips, "pump", "train")
    front = exposure.SegmentFeatures(context.store, context.device, context.cfg.oevae.features, rows)
    others = front.items(machine_rows(context.store.clips, "saw", "train"))
    labels = np.eye(2, dtype=np.float32)[np.arange(len(rows)) % 2]
    target = exposure.target_items(
        front, rows, np.arange(len(rows), dtype=np.float32), np.arange(len(rows)) % 4 != 0, labels
    )
    settings = context.cfg.oevae.replace(attribute_weight=1.0)
    made = on_gpu(
        exposure.OutlierExposureBatches(front, settings, target, others, np.ones(len(others))), mode
    )
    made.front.store = stored(context.store, mode, home)
    net = on_gpu(oevae.OEVAE(settings, 2), mode)
    return net, lambda draws: made.batches(draws, lambda: (net.steps / 5).clamp(max=1.0))


def classifier_epoch(context, mode, home):
    """As `oevae_epoch`."""
    detector = detector_of(Classifier, context)
    rows = np.concatenate(
        [machine_rows(context.store.clips, machine, "train") for machine in ("pump", "saw")]
    )
    bound(detector, context.store, rows)._open()
    other = copy.copy(detector)
    other.device, other.resident = GPU, stored(context.store, mode, home)
    other.net, other.mean, other.std = (
        on_gpu(value, mode) for value in (detector.net, detector.mean, detector.std)
    )
    return other.net, other._batches


def autoencoder_epoch(context, mode, home):
    """As `oevae_epoch`; its input is made once and lies on the GPU."""
    s = context.cfg.autoencoder
    vectors = on_gpu(Vectors(torch.rand(400, s.n_mels), [100, 300], s.frames), mode)
    net = on_gpu(Autoencoder(s), mode)
    return net, lambda draws: (
        vectors[index] for index in training.shuffled_batches(len(vectors), 64, draws, GPU)
    )


def stored(store, mode, home):
    """The recordings for a GPU, where they lie on it, or do not fit and stay on the host."""
    place = GPU if home == "on the GPU" else torch.device("cpu")
    with mode:
        parts = {
            name: mode.from_tensor(getattr(store, name)).to(place) for name in ("samples", "offset", "count")
        }
    return dataclasses.replace(store, device=GPU, **parts)


EPOCHS = {"oevae": oevae_epoch, "classifier": classifier_epoch, "autoencoder": autoencoder_epoch}


def copies_of_an_epoch(context, mode, monkeypatch, name, home, kind):
    """Copies between host and GPU of each step of the second epoch; an operation that a GPU would refuse, or
    wait for, is raised.
    """
    net, batches = EPOCHS[name](context, mode, home)
    monkeypatch.setattr(
        torch.Tensor,
        "backward",
        lambda loss: [setattr(p, "grad", torch.zeros_like(p)) for p in net.train().parameters()],
    )
    with mode:
        optimizer = torch.optim.Adam(net.train().parameters(), lr=1e-3, fused=True)
        for _ in range(2):  # windows are made in the first
            made, copies, batch = batches(Draws()), [], True
            while batch is not None:
                with Copies() as counted:
                    if (batch := next(made, None)) is not None:
                        terms = training.step(net, batch, optimizer, Draws(), precision.DTYPES[kind])
                        assert {value.device for value in terms.values()} == {GPU}
                        copies.append(counted.seen)
    assert len(copies) > 2
    return copies


@pytest.mark.parametrize(
    "name, kind",
    [
        ("oevae", "bf16"),
        ("classifier", "bf16"),
        ("autoencoder", "float32"),
        pytest.param("oevae", "float32", marks=pytest.mark.exhaustive),
        pytest.param("classifier", "float32", marks=pytest.mark.exhaustive),
    ],
)
def test_between_the_steps_of_an_epoch_nothing_waits(context, gpu, monkeypatch, name, kind):
    copies = copies_of_an_epoch(context, gpu, monkeypatch, name, "on the GPU", kind)
    assert not any(copies[1:]), (
        copies
    )  # the first step comes with what is drawn and laid out for the whole epoch


@pytest.mark.parametrize("name", ["oevae", pytest.param("classifier", marks=pytest.mark.exhaustive)])
def test_recordings_that_stay_on_the_host_are_moved_batch_by_batch(context, gpu, monkeypatch, name):
    # whether all segments lie within their clips is asked of tensors on the host, which here have no values
    # either
    monkeypatch.setattr(Store, "segments", functools.partialmethod(Store.segments, whole=False))
    copies = copies_of_an_epoch(context, gpu, monkeypatch, name, "on the host", "bf16")
    assert all(any("to cuda:0" in copy for copy in step) for step in copies), copies


def test_the_oracle_itself_refuses(gpu):
    with gpu:
        x = torch.rand(3, generator=Draws(), device=GPU)
        for waits in (lambda: bool(x.sum() > 0), lambda: x.sum().item()):
            with pytest.raises(DataDependentOutputException):
                waits()
        with pytest.raises(DynamicOutputShapeException):
            x[x > 0.5]
        with pytest.raises(RuntimeError, match="two different devices"):
            x + torch.rand(3)
        with Copies() as counted:
            x.cpu().to(GPU)
            x.copy_(torch.rand(3))
            x[torch.arange(2)]
            x * torch.tensor(2.0)
        both = [f"aten.{name} of both" for name in ("copy_.default", "index.Tensor")]
        assert counted.seen == ["(3,) from cuda:0 to cpu", "(3,) from cpu to cuda:0", *both]


class Inline:
    """In place of a pool of threads: modes belong to the one that sets them."""

    def __init__(self, workers):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def submit(self, work, *args):
        job = Future()
        job.set_result(work(*args))
        return job


# ---------------------------------------------------------------- operations whose sums a GPU adds in any
# order

# By torch's own list (`torch.use_deterministic_algorithms`) those that have no other form on a GPU; cumsum of
# integers and bincount without
# weights have.
UNREPEATABLE = set(
    """
    _adaptive_avg_pool2d_backward _adaptive_avg_pool3d_backward _ctc_loss_backward _embedding_bag
    adaptive_max_pool2d_backward avg_pool3d_backward bincount cumsum fractional_max_pool2d_backward
    fractional_max_pool3d_backward grid_sampler_2d_backward grid_sampler_3d_backward histc
    max_pool3d_with_indices_backward max_unpool2d max_unpool3d median nll_loss2d_forward
    nll_loss2d_backward nll_loss_forward nll_loss_backward put_ reflection_pad1d_backward
    reflection_pad2d_backward reflection_pad3d_backward scatter_reduce upsample_linear1d_backward
    upsample_bilinear2d_backward upsample_bicubic2d_backward upsample_trilinear3d_backward
    """.split()
)


class Operations(TorchDispatchMode):
    """The names of all operations, those of the way back among them; of cumsum on floats and bincount with
    weights only.
    """

    def __init__(self):
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        weights = args[1] if len(args) > 1 else (kwargs or {}).get("weights")
        exact = (name == "cumsum" and not args[0].is_floating_point()) or (
            name == "bincount" and weights is None
        )
        self.seen |= set() if exact else {name}
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", list(DETECTORS))
def test_a_detector_asks_for_nothing_that_a_gpu_cannot_repeat(context, monkeypatch, name):
    monkeypatch.setattr(autoencoder_training, "ThreadPoolExecutor", Inline)  # the mode belongs to this thread
    trains = {
        "oevae": "convolution_backward",
        "classifier": "convolution_backward",
        "autoencoder": "native_batch_norm_backward",
    }
    cfg = context.cfg.replace(oevae=context.cfg.oevae.replace(attribute_weight=1.0))
    with Operations() as operations:
        context = dataclasses.replace(context, cfg=cfg)
        detect(
            detector_of(DETECTORS[name], context),
            context.store,
            ["pump", "saw"] if name == "classifier" else ["pump"],
        )
    assert {
        "_fft_r2c",
        trains.get(name, "_fft_r2c"),
    } <= operations.seen and not operations.seen & UNREPEATABLE


def test_that_oracle_sees_the_way_back():
    with Operations() as operations:
        x = torch.rand(1, 1, 8, 8, requires_grad=True)
        torch.nn.functional.interpolate(x, scale_factor=2, mode="bilinear").sum().backward()
        torch.ones(3, dtype=torch.int64).cumsum(0).bincount()
    assert operations.seen & UNREPEATABLE == {"upsample_bilinear2d_backward"}


# ---------------------------------------------------------------- a GPU that is full, in words


FULL = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 14.56 GiB of which 1.10"
    " GiB is free"
)


def full(*_):
    raise torch.OutOfMemoryError(f"{FULL}. Process 3 has more.")


def test_a_gpu_that_is_too_small_is_said_with_what_to_change(context, tmp_path, monkeypatch):
    monkeypatch.setattr(oevae.OEVAE, "loss", full)
    run = Run(context.cfg, tmp_path, 0, stages.stage_of("05"), "pump")
    run.__dict__["store"] = context.store
    advice = "use a smaller oevae.batch, classifier.batch or autoencoder.batch, or --device cpu"
    words = rf"^oevae of pump: out of GPU memory \({FULL}\); {advice}$"
    with pytest.raises(errors.InputError, match=words):
        run.fit_or_load("oevae")


def test_a_gpu_that_is_full_is_said_by_asd_score(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(study, "open", lambda *words: types.SimpleNamespace(scorer=full))
    assert cli.main(["score", "smoke", str(tmp_path / "x.wav")]) == 2
    advice = "free some, or hide the GPU: CUDA_VISIBLE_DEVICES= asd score ..."
    assert capsys.readouterr().err == f"asd: scoring: out of GPU memory ({FULL}); {advice}\n"


# ---------------------------------------------------------------- a GPU that is there (pytest -m gpu)


def fitted(context, name, device, **changed):
    """A detector of machine pump, or the classifier of both, trained on a device with some settings changed."""
    cfg = context.cfg.replace(**{name: getattr(context.cfg, name).replace(**changed)})
    detector = detector_of(DETECTORS[name], dataclasses.replace(context, cfg=cfg, device=device))
    machines = ["pump", "saw"] if name == "classifier" else ["pump"]
    rows = [machine_rows(context.store.clips, machine, "train") for machine in machines]
    return fit(detector, context.store, np.concatenate(rows))


@pytest.mark.gpu
@pytest.mark.parametrize("name", list(DETECTORS))
def test_the_same_seed_gives_the_same_scores_on_a_real_gpu(context, name):
    moved = dataclasses.replace(context, device=training.pick_device("cuda"))
    machines = ["pump", "saw"] if name == "classifier" else ["pump"]
    first, again = (detect(detector_of(DETECTORS[name], moved), moved.store, machines) for _ in range(2))
    pd.testing.assert_frame_equal(first, again, check_exact=True)


@pytest.mark.gpu
@pytest.mark.parametrize("name", list(DETECTORS))
def test_a_gpu_scores_as_the_cpu_does(context, tmp_path, name):
    """The same weights on both: within a thousandth of the scores' standard deviation."""
    trained = fitted(context, name, torch.device("cpu"))
    trained.save(tmp_path)
    clips = Clips(context.store, trained.train_rows)
    tests = Clips(context.store, machine_rows(context.store.clips, "pump", "test"))
    expected = trained.decision_function(tests)
    found = DETECTORS[name].load(tmp_path, clips, device="cuda").decision_function(tests)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3 * expected.std())


@pytest.mark.gpu
@pytest.mark.parametrize("name", precision.NETWORKS)
def test_bf16_on_a_gpu_learns_as_float32_does_and_scores_in_float32(context, name):
    cuda = training.pick_device("cuda")
    bf16 = fitted(dataclasses.replace(context, cfg=context.cfg.replace(precision="bf16")), name, cuda)
    losses = [detector.history["loss"].iloc[-1] for detector in (bf16, fitted(context, name, cuda))]
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.1)
    assert {value.dtype for value in bf16.net.parameters()} == {torch.float32}
    assert bf16._embed(bf16.train_rows)[0].dtype == np.float32


@pytest.mark.gpu
def test_more_epochs_and_another_training_take_no_more_memory(context):
    def peak(epochs):
        torch.cuda.reset_peak_memory_stats()
        fitted(context, "oevae", cuda, epochs=epochs)
        gc.collect()
        return torch.cuda.max_memory_allocated(), torch.cuda.memory_allocated()

    cuda = training.pick_device("cuda")
    peak(2)  # filter banks, windows and workspaces stay
    (short, left), (long, left_again) = peak(2), peak(6)
    assert long <= 1.05 * short and left_again <= 1.05 * left


@pytest.mark.gpu
def test_every_job_of_a_study_is_computed_on_the_gpu(tmp_path):
    code = "import sys; from asdlib.cli import command; sys.exit(command())"
    words = [sys.executable, "-c", code, "run", "smoke", "--device", "cuda", "--home", str(tmp_path)]
    for said in ("report ", "nothing to do: everything is up to date"):
        result = subprocess.run(words, capture_output=True, text=True)
        assert result.returncode == 0 and said in result.stdout, result.stdout + result.stderr
    card = (tmp_path / "reports" / "smoke" / "model_card.md").read_text(encoding="utf-8")
    assert "computed on cuda" in card
    made = [json.loads(path.read_text(encoding="utf-8")) for path in tmp_path.rglob("manifest.json")]
    assert len(made) > 20 and {facts["device"] for facts in made} == {"cuda"}


# ---------------------------------------------------------------- names


def library_names(path):
    """(name, line) of every attribute chain that starts at an imported module, such as
    torch.cuda.get_device_name.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    roots = {
        alias.asname or alias.name: alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    roots = {name: module for name, module in roots.items() if "." not in name}
    for node in ast.walk(tree):
        chain, inner = [], node
        while isinstance(inner, ast.Attribute):
            chain.insert(0, inner.attr)
            inner = inner.value
        if chain and isinstance(inner, ast.Name) and inner.id in roots:
            yield roots[inner.id], chain, node.lineno


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix()
)
def test_what_is_asked_of_a_library_exists(path):
    for module, chain, line in library_names(path):
        found = importlib.import_module(module)
        for depth, name in enumerate(chain):
            if not isinstance(found, types.ModuleType):
                break  # an object's own attributes are seen when the line runs
            assert hasattr(found, name), f"{path.name}:{line}: {module}.{'.'.join(chain[: depth + 1])}"
            found = getattr(found, name)
