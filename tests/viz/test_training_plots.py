"""Figures of networks, training and latents: each draws, is labeled, repeats byte by byte, and copes with
what is missing.
"""

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.text import Text

from asdlib import errors
from asdlib.models import classifier, oevae
from asdlib.viz import latent_plots, network_plots, plots, training_plots

rng = np.random.default_rng(0)
EPOCHS = np.arange(1, 5)
HISTORY = pd.DataFrame(
    {
        "epoch": EPOCHS,
        "machine": 0.5 / EPOCHS**3,
        "kl_d": 100.0 / EPOCHS,
        "kl_c": 9.0 / EPOCHS,
        "recon": 50.0 / EPOCHS,
        "accuracy": 1 - 0.1 / EPOCHS,
        "held_out_accuracy": 1 - 0.2 / EPOCHS,
        "held_out_loss": 0.0,
        "alive_d": 3,
        "alive_c": [4, 2, 0, 1],
    }
)
CHANNELS = pd.DataFrame(
    {
        "channel": np.arange(1, 9),
        "part": ["z_d"] * 3 + ["z_c"] * 5,
        "kl": rng.uniform(0, 3, 8),
        "variance": 0.0,
        "alive": False,
    }
)
CLIPS = pd.DataFrame(
    {
        "machine": np.repeat(["fan", "valve"], 20),
        "v": np.tile([1.0, 2.0, np.nan, 4.0], 10),
        "domain": np.tile(["source", "target"], 20),
        "label": np.tile(["normal", "normal", "anomaly"], 14)[:40],
        "trained": np.arange(40) % 3 == 0,
        "score": rng.normal(size=40),
    }
)
CLIPS = CLIPS.assign(prior=5 * CLIPS["v"], z_d=4 * CLIPS["v"])
MEASURES = pd.DataFrame(
    [
        (m, s, of, "balanced accuracy", 0.8, 0.5)
        for m in ("fan", "valve")
        for s in latent_plots.SPACES
        for of in ("v", "domain")
    ],
    columns=["machine", "space", "of", "measure", "value", "chance"],
)
WALK = pd.DataFrame(
    {
        "machine": "fan",
        "set": np.arange(4.0),
        "found": np.arange(4.0),
        "low": np.arange(4.0) - 1,
        "high": np.arange(4.0) + 1,
    }
)
INPUTS = {
    training_plots.oevae_curves: (HISTORY, (3, 5)),
    latent_plots.kl_channels: (CHANNELS, "fan"),
    latent_plots.tie: (CLIPS,),
    latent_plots.knowledge: (MEASURES, "domain"),
    latent_plots.traversal: (WALK,),
    latent_plots.by_condition: (CLIPS,),
    training_plots.interpolation: (
        rng.normal(size=(9, 2)),
        np.array(["source"] * 6 + ["target"] * 3),
        rng.normal(size=(4, 2)),
    ),
    network_plots.network: (
        [network_plots.Box("X", "1 × 8", 0, 0, "input"), network_plots.Box("h", "4", 0, 1)],
        [(0, 1)],
        "",
    ),
    network_plots.exchange: (np.array([[0, 1], [1, 1]]), np.eye(2, 6), ["fft", "mel"]),
    training_plots.steps: (
        pd.DataFrame({"step": EPOCHS, "L_machine": 0.7 / EPOCHS, "L_vae1": 100.0 / EPOCHS}),
    ),
    latent_plots.priors: (),
    latent_plots.by_label: (CLIPS.assign(norm=CLIPS["score"] ** 2), "norm", "score"),
}
NO_AXES = {
    latent_plots.knowledge,
    network_plots.network,
    network_plots.exchange,
}  # whose axes count machines, boxes or clips


def words(figure):
    return " | ".join(text.get_text() for text in figure.findobj(Text) if text.get_text())


@pytest.mark.parametrize("draw", INPUTS, ids=lambda draw: draw.__name__)
def test_contract(draw):
    first, second = (draw(*INPUTS[draw]) for _ in range(2))
    assert plots.image(first, "svg") == plots.image(second, "svg")
    assert plots.image(first, "png").startswith(b"\x89PNG") and "mathdefault" not in words(first)
    assert first.alt or draw is network_plots.network
    assert draw in NO_AXES or any(axis.get_xlabel() for axis in first.axes)


def test_what_was_not_measured_is_left_out_or_said():
    bare = HISTORY[["epoch", "machine", "kl_d", "kl_c", "recon", "accuracy"]]
    assert "held-out clips" not in words(training_plots.oevae_curves(bare, (3, 5)))
    assert "not available" in words(latent_plots.knowledge(MEASURES.assign(value=np.nan), "v"))
    assert "no v" in words(latent_plots.tie(CLIPS.assign(v=np.nan)))
    training_plots.interpolation(np.zeros((3, 2)), np.array(["source"] * 3), np.zeros((0, 2)))


def test_sixteen_machines_stand_in_rows_of_four():
    many = pd.concat([CLIPS.assign(machine=f"machine{i}") for i in range(6)])
    figure = latent_plots.by_condition(many)
    assert len([axis for axis in figure.axes if axis.get_visible()]) == 6 and figure.get_figheight() > 5
    assert [axis.get_ylabel() for axis in figure.axes if axis.get_visible()] == [
        "α",
        "",
        "",
        "",
        "α",
        "",
    ]  # once in a row: it is the same for all


def test_a_diagram_has_the_shapes_of_its_network_and_leaves_it_as_it_was():
    net = oevae.OEVAE(oevae.OEVAESettings(width=4, hidden=12, latent=8, domain_latent=3)).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    told = words(network_plots.oevae_network(net, torch.zeros(2, 1, 32, 48)))
    for shape in ("1 × 32 × 48", "4 × 16 × 24", "32 × 1 × 2", "3 | 5", "2 × 8"):
        assert shape in told
    assert net.training and all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(part._forward_hooks for part in net.modules())


@pytest.mark.parametrize("branches", [("fft",), ("fft", "mel", "phase", "stft256")])
def test_a_diagram_of_the_classifier_names_its_branches(branches):
    settings = classifier.ClassifierSettings(
        branches=branches, clip_seconds=1.0, dim=6, subclusters=2, n_mels=32
    )
    net = classifier.Classifier(settings, 5)
    inputs = classifier.branch_inputs(torch.randn(2, 16000), settings)
    told = words(network_plots.classifier_network(net, inputs))
    assert all(f"e_{name}" in told for name in branches) and str(6 * len(branches)) in told
    assert "5 × 2" in told and ("FeatEx" in told) == (len(branches) > 1)


def test_neighboring_priors_share_what_the_normal_distribution_says():
    told = words(latent_plots.priors((1.0, 5.0)))
    assert "k = 1 / d_min: overlap 61.7 %" in told and "k = 5 / d_min: overlap 1.2 %" in told


def test_a_live_curve_keeps_every_step_and_one_output(monkeypatch):
    shown = []

    class Handle:
        def update(self, value):
            shown.append(value)

    monkeypatch.setattr("IPython.display.display", lambda value, display_id: shown.append(value) or Handle())
    live = training_plots.Live("first steps")
    for step in range(5):
        live(L=torch.tensor(1.0 / (step + 1), requires_grad=True))
    assert live.table["step"].tolist() == [1, 2, 3, 4, 5] and live.table["L"].iloc[-1] == pytest.approx(0.2)
    assert shown == []  # not within the first seconds
    live.draw()
    live.draw()
    assert len(shown) == 2 and '<div class="plot"' in shown[0]


def test_refusals():
    with pytest.raises(errors.InputError, match="traversal: empty table"):
        latent_plots.traversal(WALK.iloc[:0])


def test_words_on_color_stay_dark_in_a_dark_color_scheme():
    """On a pale ground the color of the page's text would be white on yellow."""
    diagram = network_plots.network(*INPUTS[network_plots.network])
    moved = network_plots.exchange(*INPUTS[network_plots.exchange])
    on_color = [text for text in moved.findobj(Text) if text.get_text() == "clip 1" and text.get_bbox_patch()]
    assert on_color and all(text.get_color() not in plots.SCHEME for text in on_color)
    assert all(text.get_color() not in plots.SCHEME for text in diagram.findobj(Text) if text.get_text())
