"""The loop: an interrupted training ends where an unbroken one does; seeds reach every draw."""

from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from torch import nn

from asdlib import errors
from asdlib.models import training


class Toy(nn.Module):
    """A line through noisy points; its loss draws from the generator as real models do."""

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(3, 1)

    def loss(self, batch, generator):
        noise = 0.01 * torch.randn(len(batch), 1, generator=generator)
        return {
            "loss": (self.line(batch) + noise - batch.sum(1, keepdim=True)).square().mean(),
            "size": torch.tensor(float(len(batch))),
        }


X = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))


def batches(generator):
    return (X[index] for index in training.shuffled_batches(len(X), 8, generator, torch.device("cpu")))


def trained(epochs, checkpoint=None, seed=0, **more):
    with training.seeded_init(seed):
        model = Toy()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    history = training.fit(
        model, batches, optimizer, epochs=epochs, seed=seed, what="toy", checkpoint=checkpoint, **more
    )
    return model, history


def test_it_learns_and_logs_every_term():
    model, history = trained(30)
    assert list(history.columns) == ["epoch", "loss", "size", "seconds"] and len(history) == 30
    assert history["loss"].iloc[-1] < 0.02 * history["loss"].iloc[0]
    assert (
        history["size"].iloc[0] == pytest.approx(50 / 7) and not model.training
    )  # 50 = 6 batches of 8 and one of 2


def test_same_seed_same_weights_other_seed_others():
    a, b, c = trained(3)[0], trained(3)[0], trained(3, seed=1)[0]
    assert torch.equal(a.line.weight, b.line.weight) and not torch.equal(a.line.weight, c.line.weight)


def test_training_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    trained(2)
    assert torch.equal(torch.rand(1), expected)


def test_an_interrupted_training_ends_where_an_unbroken_one_does(tmp_path):
    unbroken, full = trained(6)
    trained(3, tmp_path / "checkpoint.pt")
    resumed, history = trained(6, tmp_path / "checkpoint.pt")
    assert torch.equal(unbroken.line.weight, resumed.line.weight)
    pd.testing.assert_frame_equal(full.drop(columns="seconds"), history.drop(columns="seconds"))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_torn_checkpoint_means_starting_again_not_a_wrong_state(tmp_path, capsys):
    path = tmp_path / "checkpoint.pt"
    trained(3, path)
    path.write_bytes(path.read_bytes()[:-200])
    again, _ = trained(6, path)
    assert torch.equal(again.line.weight, trained(6)[0].line.weight)
    assert "cannot be read as a checkpoint" in capsys.readouterr().err


def test_divergence_is_refused_in_words():
    class Broken(Toy):
        def loss(self, batch, generator):
            return {"loss": super().loss(batch, generator)["loss"] * float("nan")}

    model = Broken()
    with pytest.raises(
        errors.InputError, match="toy: the loss became nan in epoch 1; use a smaller learning rate"
    ):
        training.fit(
            model, batches, torch.optim.SGD(model.parameters(), lr=1.0), epochs=2, seed=0, what="toy"
        )


def test_batches_visit_every_item_once_and_leave_no_single_item():
    generator = torch.Generator().manual_seed(0)
    parts = list(training.shuffled_batches(17, 8, generator, torch.device("cpu")))
    assert sorted(torch.cat(parts).tolist()) == list(range(17))
    assert [len(part) for part in parts] == [8, 9]  # BatchNorm needs two
    assert [len(part) for part in training.shuffled_batches(1, 8, generator, torch.device("cpu"))] == [1]


def test_what_is_measured_after_an_epoch_joins_the_history():
    _, history = trained(2, evaluate=lambda: {"held_out": 1.5})
    assert history["held_out"].tolist() == [1.5, 1.5]


def test_weights_survive_a_round_trip_and_a_torn_file_is_refused(tmp_path):
    model, _ = trained(2)
    training.save_weights(model, tmp_path / "w.safetensors")
    other = Toy()
    training.load_weights(other, tmp_path / "w.safetensors")
    assert torch.equal(model.line.weight, other.line.weight)
    (tmp_path / "w.safetensors").write_bytes(b"torn")
    with pytest.raises(
        errors.InputError, match=r"w\.safetensors: does not contain the weights of this model"
    ):
        training.load_weights(other, tmp_path / "w.safetensors")


def test_generators_of_different_purposes_differ():
    draws = {
        torch.rand(1, generator=training.generator_for(*path)).item()
        for path in [(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0)]
    }
    assert len(draws) == 6


def test_a_missing_gpu_is_refused():
    assert training.pick_device("auto").type == "cpu"
    with pytest.raises(errors.InputError, match="device cuda requested, but torch finds no GPU"):
        training.pick_device("cuda")


def test_each_epoch_is_told_in_the_file_that_the_environment_names(tmp_path, monkeypatch):
    monkeypatch.setenv(training.PROGRESS, str(tmp_path / "told"))
    progress = training.Progress("net", 4, done=2)
    progress.update(3, 0.5)
    progress.update(4, 0.25)
    first, last = (tmp_path / "told").read_text().splitlines()
    assert first.startswith("net: 3/4, loss 0.5, ") and first.endswith(" s left")
    assert last.startswith("net: 4/4, loss 0.25, ") and not last.endswith("left")


def test_a_loss_curve_grows_in_a_notebook(monkeypatch):
    monkeypatch.delenv(training.PROGRESS, raising=False)
    shown = []
    progress = training.Progress("net", 2)
    progress._handle = SimpleNamespace(update=lambda data, raw: shown.append(data))
    for number in range(5):
        progress.step(0, torch.tensor(2.0 - number / 10))
    progress.update(1, 1.5)
    assert len(shown) == 2  # a step at once, and no other within a second; then the epoch
    assert "net: epoch 1 of 2" in shown[0]["text/plain"] and "net: 1/2, loss 1.5" in shown[1]["text/html"]
    assert shown[1]["text/html"].count(",") > 2 and "<polyline" in shown[1]["text/html"]
