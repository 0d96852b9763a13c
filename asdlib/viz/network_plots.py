"""Diagrams of the networks with output shapes, and of FeatEx.

Conventions as in `asdlib.viz.plots`.  Source: METHOD 3.4, 3.5.
Notebooks: 02_preprocessing, 04_classifier, 05_oevae.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from matplotlib.patches import FancyBboxPatch
from torch import Tensor, nn

from asdlib.models import branches, classifier, oevae
from asdlib.viz import plots
from asdlib.viz.plots import BLACK, BLUE, DARK, GRAY, ORANGE, STYLE, VERMILION, Plot


class Box(NamedTuple):
    """One box of a `network` diagram: two lines of text at a grid position; color from BOXES."""

    name: str
    shape: str
    row: float
    column: float
    kind: str = "layer"


BOXES = {"input": GRAY, "layer": BLUE, "latent": ORANGE, "loss": VERMILION}


@matplotlib.rc_context(STYLE)
def network(boxes: Sequence[Box], arrows: Sequence[tuple[int, int]], alt: str) -> Plot:
    """Draw boxes with their output shapes, connected by arrows.

    arrows : (from, to), indices of `boxes`.  Notebooks: 04_classifier, 05_oevae
    """
    rows, columns = (1 + max(box[i] for box in boxes) for i in (2, 3))
    figure, axes = plots.panels(1, 1, 0.3 + 0.78 * rows, alt)
    axis, half = axes[0, 0], (0.43, 0.3)
    axis.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
    axis.set_axis_off()
    for name, shape, row, column, kind in boxes:
        place, size = (column - half[0], row - half[1]), (2 * half[0], 2 * half[1])
        look = {"fc": plots.pale(BOXES[kind]), "ec": BOXES[kind], "lw": 1}
        axis.add_patch(FancyBboxPatch(place, *size, boxstyle="round,pad=0,rounding_size=0.06", **look))
        words = {"ha": "center", "va": "center", "fontsize": 7.5, "color": DARK}
        axis.text(column, row - 0.1, name, **words)
        axis.text(column, row + 0.13, shape, **words, weight="bold")
    for one, other in arrows:
        (y, x), (y_to, x_to) = boxes[one][2:4], boxes[other][2:4]
        across = x != x_to  # else straight down or up
        start = (x + np.sign(x_to - x) * half[0], y) if across else (x, y + np.sign(y_to - y) * half[1])
        stop = (
            (x_to - np.sign(x_to - x) * half[0], y_to) if across else (x, y_to - np.sign(y_to - y) * half[1])
        )
        axis.annotate("", stop, start, arrowprops={"arrowstyle": "->", "color": BLACK, "lw": 1})
    return figure


def shapes(net: nn.Module, names: Sequence[str], forward: Callable[[], object]) -> dict[str, str]:
    """Return the output shape of each named submodule without the batch axis, for example "16 × 32 × 32".

    forward : runs the network once; its state is restored.  Notebooks: 04_classifier, 05_oevae
    """
    found: dict[str, str] = {}

    def watch(name: str):
        def hook(_module, _inputs, out) -> None:
            found[name] = times(out.shape[1:])

        return net.get_submodule(name).register_forward_hook(hook)

    training, hooks = net.training, [watch(name) for name in names]
    with torch.no_grad():
        net.eval()
        forward()
    net.train(training)
    for hook in hooks:
        hook.remove()
    return found


def times(shape: Sequence[int]) -> str:
    """Format a shape: (16, 32, 32) as "16 × 32 × 32"."""
    return " × ".join(map(str, shape)) or "1"


def oevae_network(net: oevae.OEVAE, x: Tensor) -> Plot:
    """Draw f_FE, g_machine and VAE with the shapes of a network.

    x : log-mel segments (n, 1, mels, frames).  Notebook: 05_oevae
    """
    stages = ("conv1", "maxpool", *oevae.LAYERS, "avgpool")
    names = [*(f"extractor.{name}" for name in stages), "vae.encoder.0", "vae.encoder", "vae.decoder.0"]
    shape = shapes(net, names, lambda: net(x))
    z = f"{net.vae.domain} | {net.settings.latent - net.vae.domain}"
    top = [("X, log-mel", times(x.shape[1:]), "input"), ("conv 7 × 7 / 2", shape["extractor.conv1"], "layer")]
    top += [("max pool / 2", shape["extractor.maxpool"], "layer")]
    top += [(name, shape[f"extractor.{name}"], "layer") for name in oevae.LAYERS]
    top += [("mean: h", str(net.dim), "latent"), ("g_machine", "1", "layer")]
    low = [("encoder", shape["vae.encoder.0"], "layer"), ("μ, ln σ²", f"2 × {net.settings.latent}", "latent")]
    low += [("z_d | z_c", z, "latent"), ("decoder", shape["vae.decoder.0"], "layer")]
    low += [("ĥ", str(net.dim), "latent")]
    boxes = [Box(name, words, 0, i, kind) for i, (name, words, kind) in enumerate(top)]
    boxes += [Box(name, words, 1, 7 - i, kind) for i, (name, words, kind) in enumerate(low)]
    boxes += [Box("L_machine", "Eq. 2", 1, 8, "loss"), Box("L_vae1", "Eq. 3", 2, 6, "loss")]
    boxes += [Box("L_vae2", "Eq. 4", 2, 3, "loss")]
    chain = [(i, i + 1) for i in range(8)] + [(i, i + 1) for i in range(9, 13)]
    alt = f"f_FE from {times(x.shape[1:])} to {net.dim}, g_machine, VAE of {net.settings.latent} channels"
    return network(boxes, [*chain, (7, 9), (8, 14), (10, 15), (13, 16)], alt)


def classifier_network(net: classifier.Classifier, inputs: Mapping[str, Tensor]) -> Plot:
    """Draw the branches, the concatenated embedding and the heads with the shapes of a network.

    inputs : from `classifier.branch_inputs`, by branch (n, ...).  Notebook: 04_classifier
    """
    parts = {  # of a branch: label, last module
        branches.SpectrumBranch: (
            ("conv 256 / 64", "convolutions.2"),
            ("conv 64 / 32", "convolutions.5"),
            ("conv 16 / 4", "convolutions.8"),
            ("4 dense", "head.11"),
        ),
        branches.SpectrogramBranch: (
            ("stem", "stem"),
            *((f"stage {i + 1}", f"blocks.{2 * i + 1}") for i in range(4)),
        ),
    }
    rows = {name: parts[type(branch)] for name, branch in net.branches.items()}
    modules = [f"branches.{name}.{module}" for name, row in rows.items() for _, module in row]
    shape = shapes(net, [*modules, *(f"branches.{name}" for name in rows)], lambda: net(inputs))
    boxes, arrows, ends, last = [], [], [], 1 + max(map(len, rows.values()))
    for y, (name, row) in enumerate(rows.items()):
        boxes.append(Box(name, times(inputs[name].shape[1:]), y, 0, "input"))
        for x, (words, module) in enumerate(row):
            boxes.append(Box(words, shape[f"branches.{name}.{module}"], y, x + 1))
        boxes.append(Box("e_" + name, shape[f"branches.{name}"], y, last, "latent"))
        first = len(boxes) - len(row) - 2
        arrows += [(i, i + 1) for i in range(first, len(boxes) - 1)]
        ends.append(len(boxes) - 1)
    middle, joined = (len(rows) - 1) / 2, len(boxes)
    boxes.append(Box("e, concatenated", str(net.settings.dim * len(rows)), middle, last + 1, "latent"))
    arrows += [(end, joined) for end in ends]
    heads = [("plain", net.plain)] + [("FeatEx", net.featex)] * (net.featex is not None)
    for i, (name, head) in enumerate(heads):
        centers = f"{head.classes} × {head.subclusters}"
        boxes.append(Box(name, centers, middle + (i - (len(heads) - 1) / 2), last + 2, "loss"))
        arrows.append((joined, len(boxes) - 1))
    alt = f"branches {', '.join(rows)}, concatenated to {net.settings.dim * len(rows)}"
    return network(boxes, arrows, alt)


@matplotlib.rc_context(STYLE)
def exchange(origin: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> Plot:
    """Plot which clip each branch's embedding comes from after FeatEx, and the resulting soft labels.

    origin : int (n, branches).  labels : (n, (branches + 1) · C); the area of a mark is the class's weight
    names : of the branches.  Notebook: 04_classifier
    """
    count, n = len(names), len(origin)
    figure, axes = plots.panels(1, 2, 0.9 + 0.3 * n, f"branches of {n} clips and their labels after FeatEx")
    left, right = axes[0]
    moved = origin != np.arange(n)[:, None]
    for y, x in np.ndindex(origin.shape):
        other = {"weight": "bold", "color": DARK, "bbox": {"fc": plots.pale(ORANGE), "ec": ORANGE}}
        words = {"ha": "center", "va": "center", "fontsize": 9} | (other if moved[y, x] else {})
        left.text(x, y, f"clip {origin[y, x]}", **words)
    left.set(xlim=(-0.5, count - 0.5), ylim=(n - 0.5, -0.5))
    left.set(xticks=range(count), xticklabels=names, yticks=range(n), title="embedding comes from")
    left.set_yticklabels([f"clip {i}" for i in range(n)])
    row, column = np.nonzero(labels)
    right.scatter(column, row, 60 * labels[row, column], BLUE, marker="s", lw=0)  # area: weight of the class
    right.set(xlim=(-0.5, labels.shape[1] - 0.5), ylim=(n - 0.5, -0.5))
    width = labels.shape[1] / (count + 1)
    right.set_xticks(width * (np.arange(count + 1) + 0.5) - 0.5, ["kept", *names])
    right.vlines(width * np.arange(1, count + 1) - 0.5, -0.5, n - 0.5, color=BLACK, lw=0.8)
    right.set(yticks=[], title=f"label of {labels.shape[1]} classes, blocks of {width:g}")
    for axis in axes[0]:
        axis.grid(False)
    return figure
