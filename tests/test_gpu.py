"""What a GPU would refuse or wait for, seen without one.

First an epoch of each network on torch's fake tensors, which have a device and no values. Two devices in one
operation are an error, and so is every question for a value (`.item()`, `bool(…)`, a mask as index): on a GPU
that is where the host waits. Copies between the host and the GPU by `.to` and its kin, which wait too, are
counted. The optimiser gets gradients of zero, as the engine that goes backwards asks for the GPU itself.

Then detectors, and a whole study with a file scored by it, on a GPU that is pretended (`pretended`): values
are computed, devices are kept apart. `test_oevae` and `test_audio` hold what needs a real one.
"""

import ast
import copy
import dataclasses
import functools
import importlib
import json
import os
import subprocess
import sys
import types
from concurrent.futures import Future
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pretended
import pytest
import soundfile
import torch
from pretended import GPU, Draws
from sizes import bound, detector_of
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
from asdlib.data.store import Store
from asdlib.detectors import DETECTORS, autoencoder_training, exposure, oevae_training
from asdlib.detectors.base import detect, machine_rows
from asdlib.detectors.classifier import Classifier
from asdlib.models import oevae, precision, training
from asdlib.models.autoencoder import Autoencoder, Vectors
from asdlib.studies import jobs, model_card, notebook, runner, study

PACKAGE = Path(cli.__file__).parent


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
        optimiser = torch.optim.Adam(net.train().parameters(), lr=1e-3, fused=True)
        for _ in range(2):  # windows are made in the first
            made, copies, batch = batches(Draws()), [], True
            while batch is not None:
                with Copies() as counted:
                    if (batch := next(made, None)) is not None:
                        terms = training.step(net, batch, optimiser, Draws(), precision.DTYPES[kind])
                        assert {value.device for value in terms.values()} == {GPU}
                        copies.append(counted.seen)
    assert len(copies) > 2
    return copies


@pytest.mark.parametrize(
    "name, kind",
    [(name, kind) for name in EPOCHS for kind in ("float32", *["bf16"] * (name in precision.NETWORKS))],
)
def test_between_the_steps_of_an_epoch_nothing_waits(context, gpu, monkeypatch, name, kind):
    copies = copies_of_an_epoch(context, gpu, monkeypatch, name, "on the GPU", kind)
    assert not any(copies[1:]), (
        copies
    )  # the first step comes with what is drawn and laid out for the whole epoch


@pytest.mark.parametrize("name", ["oevae", "classifier"])
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
UNREPEATABLE = {
    "_adaptive_avg_pool2d_backward",
    "_adaptive_avg_pool3d_backward",
    "_ctc_loss_backward",
    "_embedding_bag",
    "adaptive_max_pool2d_backward",
    "avg_pool3d_backward",
    "bincount",
    "cumsum",
    "fractional_max_pool2d_backward",
    "fractional_max_pool3d_backward",
    "grid_sampler_2d_backward",
    "grid_sampler_3d_backward",
    "histc",
    "max_pool3d_with_indices_backward",
    "max_unpool2d",
    "max_unpool3d",
    "median",
    "nll_loss2d_forward",
    "nll_loss2d_backward",
    "nll_loss_forward",
    "nll_loss_backward",
    "put_",
    "reflection_pad1d_backward",
    "reflection_pad2d_backward",
    "reflection_pad3d_backward",
    "scatter_reduce",
    "upsample_linear1d_backward",
    "upsample_bilinear2d_backward",
    "upsample_bicubic2d_backward",
    "upsample_trilinear3d_backward",
}


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


# ---------------------------------------------------------------- a GPU that is not there (`pretended`)


def test_the_pretended_gpu_refuses_what_a_gpu_refuses():
    with pretended.gpu():
        x, host = torch.rand(3, device="cuda", generator=torch.Generator("cuda")), torch.rand(3)
        for mixed in (
            lambda: x + host,
            lambda: torch.cat([x, host]),
            lambda: host[x.long()],
            lambda: torch.where(x > 0, x, host),
        ):
            with pytest.raises(RuntimeError, match="at least two devices"):
                mixed()
        for array in (x.numpy, lambda: np.asarray(x)):
            with pytest.raises(TypeError, match="to copy the tensor to host memory first"):
                array()
        net = nn.Linear(3, 2).to(GPU)
        with pytest.raises(RuntimeError, match="at least two devices"):
            net(host)
        net(x).sum().backward()
        assert {p.device for p in net.parameters()} == {p.grad.device for p in net.parameters()} == {GPU}
        assert (x.cpu() + host.to(x).cpu()).device.type == "cpu" and float(
            x[host.argmax()]
        ) >= 0  # a GPU takes indices of the host


@pytest.fixture
def there(monkeypatch, context):
    """Brings the pretended GPU into being, with so many bytes free."""

    def begin(free=1e12):
        monkeypatch.setattr(autoencoder_training, "ThreadPoolExecutor", Inline)
        return pretended.gpu(free)

    def clear():  # of what was kept for a device of this name
        features._mel_bank.cache_clear()
        features._window.cache_clear()
        context.store._elsewhere.clear()

    clear()
    yield begin
    clear()


# the baselines keep their recordings on the host wherever there is room
PLACES = {
    f"{name}-{where}": (name, free)
    for name in DETECTORS
    for where, free in {"on the GPU": 1e12, "on the host": 0.0}.items()
    if free or name in precision.NETWORKS
}


@pytest.mark.parametrize("name, free", PLACES.values(), ids=list(PLACES))
def test_a_detector_trains_and_scores_on_a_gpu(context, there, monkeypatch, name, free):
    machines = ["pump", "saw"] if name == "classifier" else ["pump"]
    monkeypatch.setattr(features, "CHUNK", 2**40)  # as on a GPU, spectra are made at once: sums in one order
    expected = detect(detector_of(DETECTORS[name], context), context.store, machines)
    with there(free):
        moved = dataclasses.replace(context, device=training.pick_device("auto"))
        found = detect(detector_of(DETECTORS[name], moved), moved.store, machines)
        assert moved.store.to(GPU).samples.device.type == ("cuda" if free else "cpu")
    # gradients of OEVAE differ in their last bits, which its training makes much of: 4 % of a score at most
    # were seen
    pd.testing.assert_frame_equal(found, expected, rtol=0.1 if name == "oevae" else 1e-4)


def test_detectors_share_one_copy_of_the_recordings(context, there):
    with there():
        moved = dataclasses.replace(context, device=training.pick_device("auto"))
        train = [machine_rows(context.store.clips, machine, "train") for machine in ("pump", "saw")]
        fronts = [
            exposure.SegmentFeatures(moved.store, moved.device, moved.cfg.oevae.features, rows)
            for rows in train
        ]
        classifier = bound(detector_of(Classifier, moved), moved.store, np.concatenate(train))
        classifier._open()
        stores = [front.store for front in fronts] + [classifier.resident, fronts[0].on(context.store).store]
        assert {store.samples.device for store in stores} == {GPU} and all(
            store is stores[0] for store in stores
        )


def test_training_clips_go_through_the_network_in_blocks_and_others_alone(context, there, monkeypatch):
    monkeypatch.setattr(oevae_training, "EVAL_ITEMS", 4 * context.cfg.oevae.features.segments)
    train, test = (machine_rows(context.store.clips, "pump", split) for split in ("train", "test"))
    sizes, waves = [], exposure.SegmentFeatures.waves

    def passes(place):
        detector = detector_of(DETECTORS["oevae"], place)
        bound(detector, context.store, train)._open()
        detector.net = detector._network().eval()
        with monkeypatch.context() as patch:
            patch.setattr(
                exposure.SegmentFeatures,
                "waves",
                lambda front, items: sizes.append(len(items)) or waves(front, items),
            )
            return detector._pass(np.concatenate([test[:2], train]))

    expected = passes(context)
    assert sizes == (len(train) + 2) * [context.cfg.oevae.features.segments]
    sizes.clear()
    with there():
        found = passes(dataclasses.replace(context, device=training.pick_device("auto")))
    assert len(train) == 13 and sizes == [
        context.cfg.oevae.features.segments * clips for clips in (4, 4, 4, 1, 1, 1)
    ]
    for one, other in zip(
        *([made.h, made.mu, made.logvar, *made.alpha.values()] for made in (found, expected))
    ):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(found.clip, expected.clip)


def test_a_gpu_that_is_picked_computes_what_it_computed_before(there):
    with there():
        assert training.pick_device("cpu").type == "cpu" and not torch.are_deterministic_algorithms_enabled()
        assert training.pick_device("auto") == torch.device("cuda")
        assert (
            torch.are_deterministic_algorithms_enabled()
            and torch.is_deterministic_algorithms_warn_only_enabled()
        )
        assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert not torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.allow_tf32


class Drawing(nn.Module):
    """A small network that draws."""

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(3, 1)

    def loss(self, batch, generator):
        noise = 0.01 * torch.randn(len(batch), 1, generator=generator, device=generator.device)
        return {"loss": (self.line(batch) + noise - batch.sum(1, keepdim=True)).square().mean()}


@pytest.mark.parametrize(
    "kind",
    [torch.optim.Adamax, functools.partial(torch.optim.Adam, fused=True)],
    ids=["Adamax", "fused Adam"],
)
def test_a_training_on_a_gpu_goes_on_from_its_checkpoint(there, tmp_path, capsys, kind):
    def trained(epochs, path):
        with training.seeded_init(0):
            net = Drawing().to(GPU)
        optimiser = kind(net.parameters(), lr=0.05)
        x = torch.rand(20, 3, device=GPU, generator=training.generator_for(0, device=GPU))
        training.fit(
            net,
            lambda draws: iter(x.split(5)),
            optimiser,
            epochs=epochs,
            seed=0,
            what="line",
            checkpoint=tmp_path / path,
        )
        return net.line.weight.cpu(), {state["step"].device.type for state in optimiser.state.values()}

    with there():
        whole, counts = trained(4, "whole.pt")
        trained(2, "broken.pt")
        resumed, counted = trained(4, "broken.pt")
        assert torch.equal(whole, resumed) and counts == counted == {
            "cpu" if kind is torch.optim.Adamax else "cuda"
        }
    assert not capsys.readouterr().err  # where a checkpoint cannot be read it says so, and begins again


FULL = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 14.56 GiB of which 1.10"
    " GiB is free"
)


class Full(nn.Module):
    """Its training does not fit."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def loss(self, batch, generator):
        raise torch.OutOfMemoryError(f"{FULL}. Process 3 has more.")


def test_a_gpu_that_is_too_small_is_said_with_what_to_change(there, tmp_path, monkeypatch):
    monkeypatch.setattr(exposure.oevae.OEVAE, "loss", Full.loss)
    with there():
        run = study.open_run("smoke", [], str(tmp_path))
        run.stage, run.machine = study.stage_of("05_oevae"), "fan"
        advice = "use a smaller oevae.batch, classifier.batch or autoencoder.batch, or --device cpu"
        words = rf"^oevae of fan: the GPU has too little memory \({FULL}\); {advice}$"
        with pytest.raises(errors.InputError, match=words):
            run.fit_or_load("oevae")


def test_a_gpu_that_is_full_is_said_by_asd_score(monkeypatch, tmp_path, capsys):
    full = types.SimpleNamespace(scorer=lambda machine, system: Full().loss(None, None))
    monkeypatch.setattr(study, "open", lambda *words: full)
    assert cli.main(["score", "smoke", str(tmp_path / "x.wav")]) == 2
    advice = "free some, or hide the GPU: CUDA_VISIBLE_DEVICES= asd score ..."
    assert capsys.readouterr().err == f"asd: scoring: the GPU has too little memory ({FULL}); {advice}\n"


def in_this_process(order):
    """In place of papermill: a notebook's cells, one after the other."""
    book = nbformat.read(order.notebook, 4)
    first, *others = [cell.source for cell in book.cells if cell.cell_type == "code"]
    names = {"__name__": "__main__"}
    exec(compile(first, order.notebook, "exec"), names)
    names.update(order.parameters)
    for source in others:
        exec(compile(source, order.notebook, "exec"), names)
    plt.close("all")
    nbformat.write(book, Path(order.folder) / "notebook.ipynb")


AUTO = ["precision='auto'"]


def test_a_study_on_a_gpu(there, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(notebook, "_execute", in_this_process)
    with there():
        assert runner.run_study(study.open_run("smoke", AUTO, str(tmp_path)), "smoke", AUTO) == 11
        score = [
            "score",
            "smoke",
            "--machine",
            "fan",
            "--home",
            str(tmp_path),
            "--explain",
            str(tmp_path / "why"),
            str(tmp_path / "x.wav"),
        ]
        soundfile.write(tmp_path / "x.wav", np.random.default_rng(0).normal(0, 0.1, 40000), 16000)
        capsys.readouterr()
        args = cli.parser().parse_args(score)
        assert args.action(args) == 0
    said = capsys.readouterr()
    assert (
        len(said.out.splitlines()) == 2
        and said.err.startswith("ensemble of fan")
        and list((tmp_path / "why").glob("*.html"))
    )
    assert "computed on cuda, oevae trained in bf16" in (
        tmp_path / "reports" / "smoke" / "model_card.md"
    ).read_text(encoding="utf-8")
    monkeypatch.setattr(
        torch.cpu, "get_capabilities", dict
    )  # it computed in bf16, for which the other machine has no units
    read_on_a_machine_without_one(tmp_path, said.out, capsys)


def read_on_a_machine_without_one(home, said, capsys):
    """What the GPU computed is read, scored and explained; what is asked of it that is not there yet is
    computed here, as this machine's.
    """
    file, *numbers = said.splitlines()[1].split(",")
    table = study.open("smoke", str(home)).score([file], machine="fan")
    np.testing.assert_allclose(
        table[["score", "threshold"]].to_numpy(float)[0], [float(value) for value in numbers[:2]], rtol=1e-3
    )
    run = study.open_notebook(
        "05_oevae", study="smoke", overrides=AUTO, home=str(home), seed=0, machine="fan"
    )
    assert (run.device.type, run.local_device.type, run.auto) == ("cuda", "cpu", "bf16") and len(
        run.spaces()
    ) == 3
    run.fit_or_load("oevae")
    assert run.device.type == "cuda"  # read, not trained
    assert {"fresh"} == {job.state for job in jobs.plan({"": (run, [])})}
    strict = study.open_run("smoke", AUTO, str(home))
    assert all(
        any("device was cuda, is cpu" in reason for reason in job.why)
        for job in jobs.plan({"": (strict, [])})
        if job.stage is not study.STAGES[-1]
    )
    times = []
    for _ in range(2):  # trained here; then found
        run.fit_or_load("oevae", run.cfg.oevae.replace(epochs=1))
        run.fit_or_load("oevae")
        made = sorted(home.glob("runs/artifacts/oevae-fan-0-trained-*/DONE"))
        facts = [json.loads((path.parent / "manifest.json").read_text(encoding="utf-8")) for path in made]
        found = {(one["device"], one["shaped_by"]["settings"]["precision"]) for one in facts}
        assert run.device.type == "cuda" and run.detector("oevae", "gearbox")
        assert ("cpu", "float32") in found and ("cuda", "bf16") in found
        times.append([path.stat().st_mtime_ns for path in made])
    assert times[0] == times[1]
    assert model_card.hardware(torch.device("cuda")) == "a GPU of another machine"


# ---------------------------------------------------------------- a GPU that is there (pytest -m gpu)


@pytest.mark.gpu
@pytest.mark.parametrize("name", list(DETECTORS))
def test_the_same_seed_gives_the_same_scores_on_a_real_gpu(context, name):
    moved = dataclasses.replace(context, device=training.pick_device("cuda"))
    machines = ["pump", "saw"] if name == "classifier" else ["pump"]
    first, again = (detect(detector_of(DETECTORS[name], moved), moved.store, machines) for _ in range(2))
    pd.testing.assert_frame_equal(first, again, check_exact=True)


@pytest.mark.gpu
def test_a_study_on_a_real_gpu(tmp_path):
    code = "import sys; from asdlib.cli import command; sys.exit(command())"
    words = [sys.executable, "-c", code, "run", "smoke", "--device", "cuda", "--home", str(tmp_path)]
    for said in ("report ", "nothing to do: everything is up to date"):
        result = subprocess.run(words, capture_output=True, text=True)
        assert result.returncode == 0 and said in result.stdout, result.stdout + result.stderr
    assert "computed on cuda" in (tmp_path / "reports" / "smoke" / "model_card.md").read_text(
        encoding="utf-8"
    )


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
