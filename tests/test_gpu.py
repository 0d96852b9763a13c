"""What a GPU would refuse or wait for, seen without one.

First an epoch of each network on torch's fake tensors, which have a device and no values. Two devices in one operation are an error, and
so is every question for a value (`.item()`, `bool(…)`, a mask as index): on a GPU that is where the host waits. Copies between the host and
the GPU by `.to` and its kin, which wait too, are counted. The optimiser gets gradients of zero, as the engine that goes backwards asks for
the GPU itself.

Then detectors, and a whole study with a file scored by it, on a GPU that is pretended (`pretended`): values are computed, devices are kept
apart. `test_oevae` and `test_audio` hold what needs a real one.
"""

import ast
import copy
import dataclasses
import functools
import importlib
import json
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
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

from asdlib import audio, checks, cli, execute, features, perform, precision, study, training
from asdlib.detectors import DETECTORS, ClassifierDetector, baseline, detect, exposure, machine_rows
from asdlib.models import oevae
from asdlib.models.autoencoder import Autoencoder, Vectors

PACKAGE = Path(precision.__file__).parent


class Copies(TorchDispatchMode):
    """Counts copies between the host and the GPU that make a new tensor."""

    def __init__(self):
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and args[0].device != out.device:
            self.seen.append(f"{tuple(out.shape)} from {args[0].device} to {out.device}")
        return out


@pytest.fixture
def gpu(monkeypatch):
    """The mode under which tensors have no values, where autocast is possible; filter banks, which torchaudio looks at, are made outside of it."""
    mode, make = FakeTensorMode(), features._mel_bank

    @functools.cache
    def bank(*shape):
        with unset_fake_temporarily():
            made = make(*shape[:-1], torch.device("cpu"))
        return on_gpu(made, mode) if shape[-1] == GPU else made

    monkeypatch.setattr(features, "_mel_bank", bank)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
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
    """A network and its batches, from a function of draws; the recordings are at home on the host or the GPU."""
    rows = machine_rows(context.store.clips, "pump", "train")
    front = exposure.Front(context, rows)
    others = front.items(exposure.checked_machine(context.store.clips, rows)[1])
    labels = np.eye(2, dtype=np.float32)[np.arange(len(rows)) % 2]
    target = exposure.target_items(front, rows, np.arange(len(rows), dtype=np.float32), np.arange(len(rows)) % 4 != 0, labels)
    settings = dataclasses.replace(context.cfg.oevae, attribute_weight=1.0)
    made = on_gpu(exposure.Exposure(front, settings, target, others, np.ones(len(others))), mode)
    made.front.store = stored(context.store, mode, home)
    net = on_gpu(oevae.OEVAE(settings, 2), mode)
    return net, lambda draws: made.batches(draws, lambda: (net.steps / 5).clamp(max=1.0))


def classifier_epoch(context, mode, home):
    """As `oevae_epoch`."""
    detector = ClassifierDetector(context)
    detector._prepare(np.concatenate([machine_rows(context.store.clips, machine, "train") for machine in ("pump", "saw")]))
    other = copy.copy(detector)
    other.context, other.store = dataclasses.replace(context, device=GPU), stored(context.store, mode, home)
    other.net, other.mean, other.std = (on_gpu(value, mode) for value in (detector.net, detector.mean, detector.std))
    return other.net, other._batches


def autoencoder_epoch(context, mode, home):
    """As `oevae_epoch`; its input is made once and lies on the GPU."""
    s = context.cfg.autoencoder
    vectors = on_gpu(Vectors(torch.rand(400, s.n_mels), [100, 300], s.frames), mode)
    net = on_gpu(Autoencoder(s), mode)
    return net, lambda draws: (vectors[index] for index in training.shuffled_batches(len(vectors), 64, draws, GPU))


def stored(store, mode, home):
    """The recordings for a GPU, where they lie on it, or do not fit and stay on the host."""
    place = GPU if home == "on the GPU" else torch.device("cpu")
    with mode:
        parts = {name: mode.from_tensor(getattr(store, name)).to(place) for name in ("samples", "offset", "count")}
    return dataclasses.replace(store, device=GPU, **parts)


EPOCHS = {"oevae": oevae_epoch, "classifier": classifier_epoch, "autoencoder": autoencoder_epoch}


def copies_of_an_epoch(context, mode, monkeypatch, name, home, kind):
    """Copies between host and GPU of each step of the second epoch; an operation that a GPU would refuse, or wait for, is raised."""
    net, batches = EPOCHS[name](context, mode, home)
    monkeypatch.setattr(torch.Tensor, "backward", lambda loss: [setattr(p, "grad", torch.zeros_like(p)) for p in net.train().parameters()])
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


@pytest.mark.parametrize("name, kind", [(name, kind) for name in EPOCHS for kind in ("float32", *["bf16"] * (name in precision.PROBES))])
def test_between_the_steps_of_an_epoch_nothing_waits(context, gpu, monkeypatch, name, kind):
    copies = copies_of_an_epoch(context, gpu, monkeypatch, name, "on the GPU", kind)
    assert not any(copies[1:]), copies  # the first step comes with what is drawn and laid out for the whole epoch


@pytest.mark.parametrize("name", ["oevae", "classifier"])
def test_recordings_that_stay_on_the_host_are_moved_batch_by_batch(context, gpu, monkeypatch, name):
    # whether all segments lie within their clips is asked of tensors on the host, which here have no values either
    monkeypatch.setattr(audio.Store, "segments", functools.partialmethod(audio.Store.segments, whole=False))
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
        assert counted.seen == ["(3,) from cuda:0 to cpu", "(3,) from cpu to cuda:0"]


# ---------------------------------------------------------------- a GPU that is not there (`pretended`)


class Inline:
    """In place of a pool of one thread: what is pretended belongs to this one."""

    def __init__(self, workers):
        assert workers == 1

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def submit(self, work, *args):
        job = Future()
        job.set_result(work(*args))
        return job


def test_the_pretended_gpu_refuses_what_a_gpu_refuses():
    with pretended.gpu():
        x, host = torch.rand(3, device="cuda", generator=torch.Generator("cuda")), torch.rand(3)
        for mixed in (lambda: x + host, lambda: torch.cat([x, host]), lambda: host[x.long()], lambda: torch.where(x > 0, x, host)):
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
        assert (x.cpu() + host.to(x).cpu()).device.type == "cpu" and float(x[host.argmax()]) >= 0  # a GPU takes indices of the host


@pytest.fixture
def there(monkeypatch):
    """Brings the pretended GPU into being, with so many bytes free."""

    def begin(free=1e9):
        monkeypatch.setattr(baseline, "ThreadPoolExecutor", Inline)
        return pretended.gpu(free)

    yield begin
    for cached in (features._mel_bank, features._window):
        cached.cache_clear()


@pytest.mark.parametrize("free", [1e9, 0.0], ids=["on the GPU", "on the host"])
@pytest.mark.parametrize("name", list(DETECTORS))
def test_a_detector_trains_and_scores_on_a_gpu(context, there, monkeypatch, name, free):
    machines = ["pump", "saw"] if name == "classifier" else ["pump"]
    monkeypatch.setattr(features, "CHUNK", 2**40)  # as on a GPU, spectra are made at once: sums in one order
    expected = detect(DETECTORS[name](context), context, machines)
    with there(free):
        moved = dataclasses.replace(context, device=training.pick_device("auto"))
        found = detect(DETECTORS[name](moved), moved, machines)
    # gradients of OEVAE differ in their last bits, which its training makes much of: 4 % of a score at most were seen
    pd.testing.assert_frame_equal(found, expected, rtol=0.1 if name == "oevae" else 1e-4)


@pytest.mark.parametrize("name", list(precision.PROBES))
def test_precision_is_tried_on_a_gpu(context, there, tmp_path, name):
    cfg = dataclasses.replace(context.cfg, precision="auto")
    with there():
        kind = precision.settled(name, cfg, GPU, tmp_path)
    facts = json.loads((tmp_path / f"precision_{name}_cuda.json").read_text(encoding="utf-8"))
    assert facts["precision"] == kind and facts["device"] == "pretended"


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


def test_a_study_on_a_gpu(there, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(perform, "_execute", in_this_process)
    with there():
        assert execute.run_study(study.open_run("smoke", [], str(tmp_path)), "smoke", []) == 11
        score = ["score", "smoke", "--machine", "fan", "--home", str(tmp_path), "--explain", str(tmp_path / "why"), str(tmp_path / "x.wav")]
        soundfile.write(tmp_path / "x.wav", np.random.default_rng(0).normal(0, 0.1, 40000), 16000)
        capsys.readouterr()
        args = cli.parser("score").parse_args(score)
        assert args.action(args) == 0
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 2 and said.err.startswith("ensemble of fan") and list((tmp_path / "why").glob("*.html"))
    assert "computed on cuda" in (tmp_path / "reports" / "smoke" / "model_card.md").read_text(encoding="utf-8")
    with pytest.raises(checks.Refusal, match=r"04_classifier of all machines, 05_oevae of fan.* recordings, code or device"):
        study.open("smoke", str(tmp_path)).scorer("fan")


# ---------------------------------------------------------------- names


def library_names(path):
    """(name, line) of every attribute chain that starts at an imported module, such as torch.cuda.get_device_name."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    roots = {alias.asname or alias.name: alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    roots = {name: module for name, module in roots.items() if "." not in name}
    for node in ast.walk(tree):
        chain, inner = [], node
        while isinstance(inner, ast.Attribute):
            chain.insert(0, inner.attr)
            inner = inner.value
        if chain and isinstance(inner, ast.Name) and inner.id in roots:
            yield roots[inner.id], chain, node.lineno


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_what_is_asked_of_a_library_exists(path):
    for module, chain, line in library_names(path):
        found = importlib.import_module(module)
        for depth, name in enumerate(chain):
            if not isinstance(found, types.ModuleType):
                break  # an object's own attributes are seen when the line runs
            assert hasattr(found, name), f"{path.name}:{line}: {module}.{'.'.join(chain[: depth + 1])}"
            found = getattr(found, name)
