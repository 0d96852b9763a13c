"""Figures of networks: how they are built, how training goes, whether the VAE lives, what is recognized.

Same rules as `asdlib.viz.plots`: plain tables in, one `Plot` out, nothing kept; no color carries meaning
alone; units on every axis. Metrics of branches, back-ends and ablations are drawn by `plots.metric_dots` from
`as_systems`.

Sources: METHOD 3.4, 3.5, 3.9.  Notebooks: 02_preprocessing, 04_classifier, 05_oevae, 07_latents.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
import pandas as pd
import torch
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch, Patch
from matplotlib.ticker import NullFormatter
from scipy import stats
from torch import Tensor, nn

from asdlib import errors
from asdlib.models import branches, classifier, oevae
from asdlib.viz import plots, tables
from asdlib.viz.plots import (
    BELOW,
    BLACK,
    BLUE,
    CHANCE,
    DOMAIN_COLORS,
    GRAY,
    GREEN,
    KINDS,
    ORANGE,
    PURPLE,
    SKY,
    STYLE,
    VERMILION,
    Plot,
)

MARKERS = ("o", "s", "^", "D", "P", "v", "X", "*")
PARTS = {"z_d": (ORANGE, "////"), "z_c": (SKY, "")}
SPACES = {"embedding": (GRAY, ".."), "z_d": PARTS["z_d"], "z_c": PARTS["z_c"]}


def _integer_epochs(axes) -> None:
    for axis in axes:
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)


def _grid(machines: list[str], height: float, label: str, alt: str, vector: bool = True):
    """A figure and one axis per machine, at most four side by side; `label` of the y axes stands once in each
    row.
    """
    columns = min(len(machines), 4)
    rows = -(-len(machines) // columns)
    figure, axes = plots.panels(rows, columns, 0.5 + (height - 0.5) * rows, alt, vector=vector)
    for spare in axes.ravel()[len(machines) :]:
        spare.set_visible(False)
    for first in axes[:, 0]:
        first.set_ylabel(label)
    return figure, axes.ravel()[: len(machines)]


def _log(axis, **words) -> None:
    axis.set(yscale="log", **words)
    axis.yaxis.set(major_formatter="{x:g}", minor_formatter=NullFormatter())


@matplotlib.rc_context(STYLE)
def training_curves(history: pd.DataFrame, channels: tuple[int, int]) -> Plot:
    """How one OEVAE trained: losses, separation accuracy, latent channels that move.

    history : of `training.fit`: epoch, machine, kl_d, kl_c, recon, accuracy and, where clips were held out,
        held_out_loss,
        held_out_accuracy, alive_d, alive_c.  channels : number of channels of z_d and z_c.  Notebook:
            05_oevae
    """
    table = plots.some(history, "training history")
    figure, axes = plots.panels(
        1,
        3,
        3.8,
        "losses, separation accuracy and moving latent channels over epochs; the numbers are printed",
    )
    looks = {
        "machine": (VERMILION, "-", "o", "binary (Eq. 2)"),
        "held_out_loss": (VERMILION, ":", "s", "binary, held out"),
        "kl_d": (ORANGE, "--", "^", "KL of z_d"),
        "kl_c": (BLUE, "-.", "v", "KL of z_c"),
        "recon": (GREEN, (0, (6, 2)), "D", "reconstruction"),
        "attribute": (PURPLE, (0, (1, 1)), "P", "attribute head"),
    }
    for name, (color, line, marker, label) in looks.items():
        if name in table:
            axes[0, 0].plot(
                table["epoch"], table[name].clip(lower=1e-6), marker, color=color, ls=line, ms=4, label=label
            )
    _log(axes[0, 0], title="losses (nats; squared units)")
    for name, line, marker, label in (
        ("accuracy", "-", "o", "training batches"),
        ("held_out_accuracy", ":", "s", "held-out clips"),
    ):
        if name in table:
            axes[0, 1].plot(table["epoch"], table[name], marker, color=BLUE, ls=line, ms=4, label=label)
    axes[0, 1].axhline(0.5, **CHANCE)
    axes[0, 1].set(title="separation accuracy", ylim=(0.4, 1.03))
    for name, total, part in (("alive_d", channels[0], "z_d"), ("alive_c", channels[1], "z_c")):
        if name in table:
            color, marker = PARTS[part][0], {"z_d": "^", "z_c": "v"}[part]
            axes[0, 2].plot(
                table["epoch"],
                table[name] / total,
                marker,
                color=color,
                ls="-",
                ms=4,
                label=f"{part}, of {total}",
            )
    axes[0, 2].set(title="share of channels that move", ylim=(-0.03, 1.03))
    _integer_epochs(axes[0])
    for axis in axes[0]:
        if axis.get_legend_handles_labels()[0]:
            axis.legend(
                fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=2
            )  # below: curves may be anywhere above
    return figure


@matplotlib.rc_context(STYLE)
def kl_channels(channels: pd.DataFrame, title: str = "") -> Plot:
    """KL of every latent channel, and below how much its mean moves; dashed: the limit under which a channel
    is dead.

    channels : channel, part, kl (nats), variance, alive.  Notebook: 05_oevae
    """
    plots.some(channels, "latent channels")
    alt = (
        f"KL and variance of {len(channels)} latent channels {title}; {int(channels['alive'].sum())} are"
        " alive"
    )
    figure, axes = plots.panels(2, 1, 3.8, alt, share="x")
    for part, rows in channels.groupby("part", sort=False):
        color, hatch = PARTS[part]
        for axis, column in zip(axes[:, 0], ("kl", "variance"), strict=True):
            axis.bar(
                rows["channel"],
                np.maximum(rows[column], 1e-7),
                color=color,
                hatch=hatch,
                ec=BLACK,
                lw=0.3,
                label=part,
            )
    _log(axes[0, 0], ylabel="KL (nats)", title=title)
    _log(axes[1, 0], ylabel="variance of μ", xlabel="latent channel")
    axes[1, 0].axhline(0.01, color=BLACK, ls="--", lw=1)
    figure.legend(handles=[Patch(fc=c, hatch=h, ec=BLACK, label=p) for p, (c, h) in PARTS.items()], **BELOW)
    return figure


@matplotlib.rc_context(STYLE)
def tie(latents: pd.DataFrame) -> Plot:
    """z_d against the condition: each normal clip's mean over the channels of z_d, beside the prior mean that
    it was tied to.

    latents : machine, v, prior, z_d (mean over channels), domain, trained.  Notebook: 07_latents
    """
    machines = list(plots.some(latents, "latents")["machine"].unique())
    figure, axes = _grid(
        machines,
        3.2,
        "z_d, mean over its channels",
        f"z_d over the condition v of {', '.join(machines)}; R² is in the table",
    )
    for axis, machine in zip(axes, machines, strict=True):
        part = latents[(latents["machine"] == machine) & latents["v"].notna()]
        line = part[["v", "prior"]].drop_duplicates().sort_values("v")
        axis.plot(line["v"], line["prior"], color=BLACK, lw=1, ls="--")
        for (domain, trained), rows in part.groupby(["domain", "trained"]):
            look = {
                "marker": {"source": "o", "target": "s"}.get(domain, "D"),
                "s": 16,
                "alpha": 0.6,
                "lw": 0.8,
            }
            fill = "none" if trained else DOMAIN_COLORS[domain]
            axis.scatter(rows["v"], rows["z_d"], facecolors=fill, edgecolors=DOMAIN_COLORS[domain], **look)
        axis.set(title=machine, xlabel="condition v")
        if part.empty:
            plots.note(axis, 0.5, 0.5, "no v", axis.transAxes, ha="center")
    looks = [
        (f"{domain}, {kind}", marker, DOMAIN_COLORS[domain], fill)
        for domain, marker in (("source", "o"), ("target", "s"))
        for kind, fill in (("new", DOMAIN_COLORS[domain]), ("trained on", "none"))
    ]
    handles = [
        Line2D([], [], ls="", marker=m, mfc=fill, mec=color, label=label) for label, m, color, fill in looks
    ]
    figure.legend(handles=[*handles, Line2D([], [], color=BLACK, ls="--", label="prior mean k·v")], **BELOW)
    return figure


@matplotlib.rc_context(STYLE)
def knowledge(measures: pd.DataFrame, of: str) -> Plot:
    """How well a classifier reads v or the domain from each space, against chance (a line per group).

    measures : machine, space, of, measure, value, chance.  of : "v" or "domain".  Notebook: 07_latents
    """
    table = plots.some(
        measures[(measures["of"] == of) & (measures["measure"] == "balanced accuracy")], "measures"
    )
    machines = list(table["machine"].unique())
    figure, axes = plots.panels(
        1,
        1,
        2.9,
        f"balanced accuracy of reading {of} from {', '.join(SPACES)}; the numbers are in the table",
        7.0,
    )
    for i, (space, (color, hatch)) in enumerate(SPACES.items()):
        rows = table[table["space"] == space].set_index("machine").reindex(machines)
        place = np.arange(len(machines)) + 0.26 * (i - 1)
        axes[0, 0].bar(place, rows["value"].fillna(0), 0.24, color=color, hatch=hatch, ec=BLACK, lw=0.4)
    for x, machine in enumerate(machines):
        rows = table[table["machine"] == machine]
        axes[0, 0].plot([x - 0.42, x + 0.42], [rows["chance"].iloc[0]] * 2, **CHANCE)
        if rows["value"].isna().all():
            plots.note(axes[0, 0], x, 0.5, "not available", axes[0, 0].transData, ha="center")
    slanted = {"rotation": 30, "ha": "right"} if len(machines) > 6 else {}
    axes[0, 0].set_xticks(range(len(machines)), machines, **slanted)
    axes[0, 0].set(ylim=(0, 1.03), ylabel=f"balanced accuracy, {of}")
    handles = [Patch(fc=c, hatch=h, ec=BLACK, label=s) for s, (c, h) in SPACES.items()]
    figure.legend(handles=[*handles, Line2D([], [], label="chance", **CHANCE)], **BELOW)
    return figure


@matplotlib.rc_context(STYLE)
def traversal(table: pd.DataFrame) -> Plot:
    """Where the decoder lands when z_d is turned through v: the v of the nearest training segments, with
    quartiles.

    table : machine, set, found, low, high (all in units of v).  Notebook: 07_latents
    """
    machines = list(plots.some(table, "traversal")["machine"].unique())
    figure, axes = _grid(
        machines,
        3.1,
        "v of the nearest training segment",
        f"condition found over condition set of {', '.join(machines)}",
    )
    for axis, machine in zip(axes, machines, strict=True):
        rows = table[table["machine"] == machine].sort_values("set")
        ends = [rows["set"].min(), rows["set"].max()]
        axis.plot(ends, ends, **CHANCE)
        axis.fill_between(rows["set"], rows["low"], rows["high"], color=BLUE, alpha=0.2, lw=0)
        axis.plot(rows["set"], rows["found"], "o-", color=BLUE, ms=4)
        axis.set(title=machine, xlabel="v set in z_d")
    handles = [
        Line2D([], [], color=BLUE, marker="o", ms=4, label="found, with quartiles"),
        Line2D([], [], label="as set", **CHANCE),
    ]
    figure.legend(handles=handles, **BELOW)
    return figure


@matplotlib.rc_context(STYLE)
def by_condition(scores: pd.DataFrame, label: str = "α") -> Plot:
    """A score of each test clip over its condition, by label: a detector that is free of the condition has
    level normals.

    scores : machine, v, score, label, domain.  label : of the score, with its unit.  Notebook: 07_latents
    """
    machines = list(plots.some(scores, "scores")["machine"].unique())
    figure, axes = _grid(
        machines, 3.2, label, f"{label} over the condition of {', '.join(machines)}", vector=False
    )
    rng = np.random.default_rng(0)  # only moves points apart
    for axis, machine in zip(axes, machines, strict=True):
        part = scores[(scores["machine"] == machine) & scores["v"].notna()]
        values = np.unique(part["v"])
        apart = 0.12 * (np.diff(values).min() if len(values) > 1 else 1.0)
        for kind, rows in part.groupby("label", sort=False):
            color, _, marker = KINDS[kind]
            axis.scatter(
                rows["v"] + rng.uniform(-apart, apart, len(rows)),
                rows["score"],
                s=15,
                c=color,
                marker=marker,
                alpha=0.5,
                lw=0,
                label=kind,
            )
        middle = part[part["label"] == "normal"].groupby("v")["score"].median()
        axis.plot(middle.index, middle, "_", color=BLACK, ms=14, mew=2)
        axis.set(title=machine, xlabel="condition v")
    handles = [
        Line2D([], [], ls="", marker=KINDS[k][2], color=KINDS[k][0], label=k)
        for k in dict.fromkeys(scores["label"])
    ]
    figure.legend(
        handles=[
            *handles,
            Line2D([], [], ls="", marker="_", ms=12, mew=2, color=BLACK, label="median of normals"),
        ],
        **BELOW,
    )
    return figure


@matplotlib.rc_context(STYLE)
def interpolation(points: np.ndarray, domain: np.ndarray, new: np.ndarray, title: str = "") -> Plot:
    """Items in two dimensions by domain, and the synthetic ones among them.

    points : float (n, 2); domain : (n,); new : float (m, 2), synthetic items in the same two dimensions.
        Notebook: 02_preprocessing
    raises : errors.InputError for other shapes
    """
    if points.ndim != 2 or points.shape[1] != 2 or new.shape[1:] != (2,):
        raise errors.InputError(
            f"points of shapes {points.shape} and {new.shape} came, expected (n, 2) and (m, 2)"
        )
    figure, axes = plots.panels(1, 1, 3.6, f"{len(points)} items and {len(new)} synthetic ones {title}", 6.4)
    for name, marker in (("source", "o"), ("target", "s"), ("unknown", "D")):
        rows = points[domain == name]
        if len(rows):
            axes[0, 0].scatter(
                *rows.T, s=22, c=DOMAIN_COLORS[name], marker=marker, alpha=0.6, lw=0, label=name
            )
    axes[0, 0].scatter(*new.T, s=34, c=VERMILION, marker="x", lw=1.2, label="SMOTE")
    axes[0, 0].set(title=title, xlabel="first principal component", ylabel="second")
    axes[0, 0].legend()
    return figure


# ---------------------------------------------------------------- networks


class Box(NamedTuple):
    """One box of a `network` diagram: two lines of text at a place of the grid; color as in BOXES."""

    name: str
    shape: str
    row: float
    column: float
    kind: str = "layer"


BOXES = {"input": GRAY, "layer": BLUE, "latent": ORANGE, "loss": VERMILION}


@matplotlib.rc_context(STYLE)
def network(boxes: Sequence[Box], arrows: Sequence[tuple[int, int]], alt: str) -> Plot:
    """Boxes with the shape of what leaves them, joined by arrows.  arrows : (from, to), positions in `boxes`.
    Notebooks: 04_classifier, 05_oevae
    """
    rows, columns = (1 + max(box[i] for box in boxes) for i in (2, 3))
    figure, axes = plots.panels(1, 1, 0.3 + 0.78 * rows, alt)
    axis, half = axes[0, 0], (0.43, 0.3)
    axis.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
    axis.set_axis_off()
    for name, shape, row, column, kind in boxes:
        place, size = (column - half[0], row - half[1]), (2 * half[0], 2 * half[1])
        look = {
            "boxstyle": "round,pad=0,rounding_size=0.06",
            "fc": plots.pale(BOXES[kind]),
            "ec": BOXES[kind],
        }
        axis.add_patch(FancyBboxPatch(place, *size, **look, lw=1))
        axis.text(column, row - 0.1, name, ha="center", va="center", fontsize=7.5)
        axis.text(column, row + 0.13, shape, ha="center", va="center", fontsize=7.5, weight="bold")
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
    """Shape of what leaves each named part of a network, "16 × 32 × 32", as `forward` runs it once.

    The batch axis is left out. The network is as it was afterwards.  Notebooks: 04_classifier, 05_oevae
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
    """A shape in words: (16, 32, 32) is "16 × 32 × 32"."""
    return " × ".join(map(str, shape)) or "1"


def oevae_network(net: oevae.OEVAE, x: Tensor) -> Plot:
    """f_FE, g_machine and VAE with the shapes of this very network.  x : log-mel segments (n, 1, mels,
    frames).  Notebook: 05_oevae
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
    """Every branch, the joined embedding and the heads, with the shapes of this very network.

    inputs : of `classifier.branch_inputs`, by branch (n, ...).  Notebook: 04_classifier
    """
    parts = {  # of a branch: what it is called, the module that ends it
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
    boxes.append(Box("e, joined", str(net.settings.dim * len(rows)), middle, last + 1, "latent"))
    arrows += [(end, joined) for end in ends]
    heads = [("plain", net.plain)] + [("FeatEx", net.featex)] * (net.featex is not None)
    for i, (name, head) in enumerate(heads):
        centers = f"{head.classes} × {head.subclusters}"
        boxes.append(Box(name, centers, middle + (i - (len(heads) - 1) / 2), last + 2, "loss"))
        arrows.append((joined, len(boxes) - 1))
    return network(
        boxes, arrows, f"branches {', '.join(rows)}, joined to {times([net.settings.dim * len(rows)])}"
    )


@matplotlib.rc_context(STYLE)
def exchange(origin: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> Plot:
    """What FeatEx makes of some clips: which clip each branch's embedding comes from, and the new soft label.

    origin : int (n, branches).  labels : (n, (branches + 1) · C).  names : of the branches.  Notebook:
        04_classifier
    """
    count, n = len(names), len(origin)
    figure, axes = plots.panels(1, 2, 0.9 + 0.3 * n, f"branches of {n} clips and their labels after FeatEx")
    left, right = axes[0]
    moved = origin != np.arange(n)[:, None]
    left.imshow(np.where(moved, 0.5, 0.0), cmap="Oranges", vmin=0, vmax=1, aspect="auto")
    for y, x in np.ndindex(origin.shape):
        words = f"clip {origin[y, x]}"
        left.text(
            x, y, words, ha="center", va="center", fontsize=9, weight="bold" if moved[y, x] else "normal"
        )
    left.set(xticks=range(count), xticklabels=names, yticks=range(n), title="embedding comes from")
    left.set_yticklabels([f"clip {i}" for i in range(n)])
    row, column = np.nonzero(labels)
    right.scatter(column, row, c=labels[row, column], cmap="Blues", vmin=-0.3, vmax=1, marker="s", s=30, lw=0)
    right.set(xlim=(-0.5, labels.shape[1] - 0.5), ylim=(n - 0.5, -0.5))
    width = labels.shape[1] / (count + 1)
    right.set_xticks(width * (np.arange(count + 1) + 0.5) - 0.5, ["kept", *names])
    right.vlines(width * np.arange(1, count + 1) - 0.5, -0.5, n - 0.5, color=BLACK, lw=0.8)
    right.set(yticks=[], title=f"label of {labels.shape[1]} classes, blocks of {width:g}")
    for axis in axes[0]:
        axis.grid(False)
    return figure


class Live:
    """Curves that grow while a loop runs: one output, drawn anew by `draw`, and now and then by itself: at
    most every two seconds, and for at most a tenth of the time.

    >>> live = Live("first steps")
    >>> for batch in batches:
    ...     live(L_machine=loss)
    >>> live.draw()

    `table` has a row per step. Notebooks: 04_classifier, 05_oevae
    """

    def __init__(self, title: str):
        self.title, self.rows, self.handle, self.next = title, [], None, time.monotonic() + 2.0

    @property
    def table(self) -> pd.DataFrame:
        """A row per step: step (from 1) and the values, float."""
        return pd.DataFrame(self.rows)

    def __call__(self, **values: float | Tensor) -> None:
        """Note the values of one step."""
        numbers = {name: torch.as_tensor(value).detach().item() for name, value in values.items()}
        self.rows.append({"step": len(self.rows) + 1} | numbers)
        if time.monotonic() > self.next:
            self.draw()

    def draw(self) -> None:
        """Draw all steps so far in place of what was drawn before."""
        from IPython.display import display  # here: only a notebook has a display

        began = time.monotonic()
        shown = tables.Html(steps(self.table, self.title)._repr_html_())
        self.next = time.monotonic() + max(2.0, 10 * (time.monotonic() - began))
        if self.handle is None:
            self.handle = display(shown, display_id=True)
        else:
            self.handle.update(shown)


@matplotlib.rc_context(STYLE)
def steps(table: pd.DataFrame, title: str = "") -> Plot:
    """Values over training steps, on a logarithmic scale where they span much.

    table : step, and a column for each curve.  Notebooks: 04_classifier, 05_oevae
    """
    names = [name for name in plots.some(table, "training steps") if name != "step"]
    figure, axes = plots.panels(1, 1, 2.8, f"{', '.join(names)} over {len(table)} steps", 6.8)
    looks = zip(names, (VERMILION, ORANGE, GREEN, BLUE, PURPLE), ("-", "--", "-.", ":", (0, (6, 2))))
    for name, color, line in looks:
        axes[0, 0].plot(table["step"], table[name].clip(lower=1e-6), color=color, ls=line, label=name)
    axes[0, 0].set(xlabel="step", title=title)
    if table[names].max(axis=None) > 20 * table[names].clip(lower=1e-6).min(axis=None):
        _log(axes[0, 0])
    axes[0, 0].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


@matplotlib.rc_context(STYLE)
def priors(scales: Sequence[float] = (1.0, 2.5, 5.0)) -> Plot:
    """Priors of two neighboring conditions, d_min apart, for k = scale / d_min, and the mass that they share.
    Notebook: 05_oevae
    """
    figure, axes = plots.panels(
        1, len(scales), 2.3, f"priors of neighboring conditions for {scales}", share="y"
    )
    for axis, scale in zip(axes[0], scales):
        z = np.linspace(-3, scale + 3, 200)
        both = [stats.norm.pdf(z, mean) for mean in (0, scale)]
        for density, color, line, label in zip(both, (BLUE, ORANGE), ("-", "--"), ("v", "v + d_min")):
            axis.plot(z, density, color=color, ls=line, label=label)
        axis.fill_between(z, np.minimum(*both), color=GRAY, alpha=0.4)
        shared = f"{2 * stats.norm.cdf(-scale / 2):.1%}".replace("%", " %")
        axis.set(title=f"k = {scale:g} / d_min: {shared} shared", xlabel="z_d less k·v", yticks=[])
    axes[0, 0].legend(fontsize=8)
    return figure


@matplotlib.rc_context(STYLE)
def by_label(table: pd.DataFrame, x: str, y: str) -> Plot:
    """Two numbers of each clip by label.  table : label and the columns `x` and `y`, whose names are those
    of the axes.  Notebook: 05_oevae
    """
    figure, axes = plots.panels(1, 1, 3.2, f"{y} over {x} of {len(table)} clips by label", 6.4, vector=False)
    for kind, rows in plots.some(table, "clips").groupby("label", sort=False):
        color, _, marker = KINDS[kind]
        axes[0, 0].scatter(rows[x], rows[y], s=22, c=color, marker=marker, alpha=0.6, lw=0, label=kind)
    axes[0, 0].set(xlabel=x, ylabel=y)
    axes[0, 0].legend()
    return figure


MODEL_PLOTS = {
    "training_curves": training_curves,
    "kl_channels": kl_channels,
    "tie": tie,
    "knowledge": knowledge,
    "traversal": traversal,
    "by_condition": by_condition,
    "interpolation": interpolation,
    "network": network,
    "exchange": exchange,
    "steps": steps,
    "priors": priors,
    "by_label": by_label,
}
NAMES = {"plain": "plain head", "featex": "FeatEx head"}


def as_systems(metrics: pd.DataFrame, names: Mapping[str, str]) -> pd.DataFrame:
    """Components of one system as if they were systems, for `plots.metric_dots`.

    metrics : METRIC_COLUMNS;  names : component -> its name in the figure, in the order shown
    returns : METRIC_COLUMNS with system = name and component = score
    raises : errors.InputError for a component that is not in the table
    """
    for name in names:
        errors.check_choice("component", name, list(dict.fromkeys(metrics["component"])))
    parts = [
        metrics[metrics["component"] == name].assign(system=shown, component="score")
        for name, shown in names.items()
    ]
    return pd.concat(parts, ignore_index=True)


@matplotlib.rc_context(STYLE)
def classifier_curves(history: pd.DataFrame, machines: int) -> Plot:
    """Losses of both heads, accuracy on held-out clips, the mean largest cosine, and the scale, over epochs.

    history : epoch, plain, max_cosine, scale, and where there are such: featex, machine_accuracy,
        class_accuracy
    machines : how many; guessing names the right machine with about 1 / machines.  Notebook: 04_classifier
    raises : errors.InputError for a history without epochs
    """
    plots.some(history, "training history")
    figure, axes = plots.panels(2, 2, 4.6, f"loss, accuracy, cosine and scale over {len(history)} epochs")
    panels = (
        ("loss of the heads (nats)", ("plain", "featex")),
        ("accuracy on held-out clips", ("machine_accuracy", "class_accuracy")),
        ("mean largest cosine to a center", ("max_cosine",)),
        ("scale s of the plain head", ("scale",)),
    )
    looks = ((BLUE, "o", "-"), (VERMILION, "s", "--"))
    for axis, (title, columns) in zip(axes.flat, panels, strict=True):
        axis.set(title=title, xlabel="epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        there = [name for name in columns if name in history]
        for name, (color, marker, line) in zip(there, looks):
            axis.plot(
                history["epoch"],
                history[name],
                marker,
                color=color,
                ls=line,
                ms=4,
                label=NAMES.get(name, name.replace("_", " ")),
            )
        if not there:
            axis.text(0.5, 0.5, "no clip was held out", transform=axis.transAxes, ha="center", style="italic")
        elif len(columns) > 1:
            axis.legend()
    axes[0, 1].axhline(1 / machines, **CHANCE)
    axes[0, 1].set_ylim(-0.02, 1.05)
    axes[1, 0].set_ylim(0, 1)
    return figure


@matplotlib.rc_context(STYLE)
def accuracy_dots(accuracy: pd.DataFrame, confidence: float = 0.95) -> Plot:
    """Accuracy of machine and class per machine on held-out training clips, with Wilson intervals.

    accuracy : machine, clips, machine_accuracy, class_accuracy (`ClassifierDetector.accuracy`).  Notebook:
        04_classifier
    raises : errors.InputError for an empty table
    """
    names = [f"{row.machine} ({row.clips} clips)" for row in plots.some(accuracy, "accuracy").itertuples()]
    figure, axes = plots.panels(
        1, 2, 1.0 + 0.32 * len(names), f"accuracy on held-out clips of {', '.join(accuracy['machine'])}"
    )
    for axis, column, title in zip(
        axes[0], ("machine_accuracy", "class_accuracy"), ("the right machine", "the right class")
    ):
        for y, (share, n) in enumerate(zip(accuracy[column], accuracy["clips"])):
            interval = stats.binomtest(round(share * n), int(n)).proportion_ci(confidence, "wilson")
            axis.plot([interval.low, interval.high], [y, y], color=BLUE, lw=2)
            axis.plot(share, y, "o", color=BLUE, ms=6)
        axis.set(
            title=title,
            xlabel="share of clips",
            xlim=(-0.02, 1.02),
            yticks=range(len(names)),
            yticklabels=names,
            ylim=(len(names) - 0.5, -0.5),
        )
        axis.label_outer()
    return figure


@matplotlib.rc_context(STYLE)
def seen_and_unseen(table: pd.DataFrame, groups: Sequence[str]) -> Plot:
    """Scores of normal clips the network saw, of held-out ones, and of test ones: every clip, and the median
    as a bar.

    table : machine, group, score;  groups : those shown, in order.  Notebook: 04_classifier
    raises : errors.InputError for an empty table
    """
    machines = list(plots.some(table, "scores")["machine"].unique())
    alt = f"scores of normal clips of {', '.join(machines)}: {', '.join(groups)}"
    figure, axes = _grid(machines, 2.6, "score; bar: median", alt, vector=False)
    generator = np.random.default_rng(0)  # only moves points apart; the picture is the same every time
    for axis, machine in zip(axes, machines):
        for x, group in enumerate(groups):
            values = table.loc[(table["machine"] == machine) & (table["group"] == group), "score"]
            axis.scatter(
                x + generator.uniform(-0.25, 0.25, len(values)), values, s=12, color=BLUE, alpha=0.45, lw=0
            )
            if len(values):
                axis.plot([x - 0.36, x + 0.36], [values.median()] * 2, color=BLACK, lw=2)
        axis.set(title=machine, xticks=range(len(groups)), xlim=(-0.6, len(groups) - 0.4))
        axis.set_xticklabels(groups, rotation=30, ha="right")
    return figure


CLASSIFIER_PLOTS = {
    "training_curves": classifier_curves,
    "accuracy_dots": accuracy_dots,
    "seen_and_unseen": seen_and_unseen,
}
