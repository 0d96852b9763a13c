"""Input features of two clips side by side, with the settings of a study.

A clip is compared with a normal training clip of its machine, if possible with the same domain and attribute
values. In JupyterLab, menus select machine, clip and feature; a report shows the first feature of one pair
per machine.

Source: METHOD 3.2, 6.1.  Notebook: 02_preprocessing
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import ipywidgets
import numpy as np
import pandas as pd

from asdlib import features
from asdlib.data.store import Store, standardize
from asdlib.models import classifier, oevae
from asdlib.viz import audio, pages, plots, tables
from asdlib.viz.widgets.controls import DualView


class Feature(NamedTuple):
    """One feature of a clip: values (bins, frames), or (bins,) for a whole-clip spectrum, and their axes."""

    values: np.ndarray
    hz: np.ndarray
    hop_s: float
    unit: str
    colors: plots.Colors


class FeatureMenu:
    """Pairs of clips and their features, with the settings of a study.

    store : decoded recordings.  log_mel, branches : settings of OEVAE's features and of the classifier
    severities : fault severity of each clip by name, NaN if unknown; the most severe come first
    """

    def __init__(
        self,
        store: Store,
        log_mel: oevae.OEVAEFeatureSettings,
        branches: classifier.ClassifierSettings,
        severities: pd.Series,
    ):
        self.store, self.log_mel, self.branches, self.severities = store, log_mel, branches, severities
        self.machines = sorted(store.clips["machine"].unique())
        self.names = ["log-mel", *branches.branches]
        self.names += [f"phase as {kind}" for kind in features.PHASE if kind != branches.phase_repr]

    def ranked(self, machine: str) -> np.ndarray:
        """Return store rows of a machine, int (clips,): anomalies by severity, other test clips, training."""
        table = self.store.clips.assign(severity=self.store.clips["clip"].map(self.severities))
        table = table[table["machine"] == machine]
        last = table.assign(train=table["split"] == "train", normal=table["label"] != "anomaly")
        order = last.sort_values(
            ["train", "normal", "severity"], ascending=[True, True, False], kind="stable"
        )
        return order.index.to_numpy()

    def partner(self, row: int) -> int:
        """Return the training clip of the machine that shares most attributes (including the domain)."""
        table = self.store.clips
        same = ["domain", *(name for name in table if name.startswith("attr_"))]
        rows = (table["machine"] == table["machine"].iloc[row]) & (table["split"] == "train")
        candidates = table[rows & (table.index != row)]
        return (
            int((candidates[same] == table[same].iloc[row]).sum(axis=1).idxmax()) if len(candidates) else row
        )

    def feature(self, row: int, name: str) -> Feature:
        """Return one feature of a clip, one of `names`; levels in dB."""
        s, b, rate = self.log_mel, self.branches, self.store.rate
        if name == "log-mel":
            shape = {"n_fft": s.n_fft, "n_mels": s.n_mels, "low_hz": s.low_hz, "high_hz": s.high_hz}
            wave = standardize(self.store.audio([row]))
            values = features.log_mel(wave, **shape, win=s.win_length, hop=s.hop_length, rate=rate)[0, 0]
            return Feature(
                values.numpy(), features.band_hz(**shape, rate=rate), s.hop_length / rate, "dB", "magma"
            )
        if name.startswith("phase as "):
            b, name = b.replace(phase_repr=name.removeprefix("phase as ")), "phase"
        wave = standardize(self.store.audio([row], length=round(b.clip_seconds * rate)))
        alone = b.replace(branches=(name,), layers=("embedding",))  # fft has no inner stages
        x = classifier.branch_inputs(wave, alone, rate)[name][0, 0].numpy()
        if name == "fft":
            return Feature(x, np.arange(len(x)) * rate / wave.shape[1], 0.0, "", "magma")
        n_fft = int(name[4:]) if name.startswith("stft") else b.n_fft
        hop_s = (n_fft // 2 if name.startswith("stft") else b.hop_length) / rate
        hz = np.arange(n_fft // 2 + 1) * rate / n_fft
        if name == "phase":
            cyclic = b.phase_repr in ("angle", "if")
            unit = {"gd": "half windows", "cossin": "weighted cosine"}.get(b.phase_repr, "rad")
            return Feature(x * (np.pi if cyclic else 1), hz, hop_s, unit, "twilight" if cyclic else "PuOr")
        if name == "mel":
            hz = features.band_hz(b.n_mels, n_fft=n_fft, low_hz=0.0, high_hz=rate / 2, rate=rate)
        return Feature(20 * np.log10(x + 1e-5), hz, hop_s, "dB", "magma")

    def figure(self, row: int, name: str) -> plots.Plot:
        """Plot a feature of the partner, of the clip, and their difference."""
        rows = [self.partner(row), row]
        both = {self.words(one): self.feature(one, name) for one in rows}
        if len(both) == 1:  # a machine of a single clip
            both = {"the clip": self.feature(row, name), "itself": self.feature(row, name)}
        values, one = {title: found.values for title, found in both.items()}, next(iter(both.values()))
        if name == "fft":
            return plots.spectra(values, one.hz[1])
        return plots.side_by_side(values, one.hz, one.hop_s, unit=one.unit, colors=one.colors)

    def words(self, row: int) -> str:
        """Describe a clip by label, domain, fault severity and number."""
        clip = self.store.clips.iloc[row]
        severity = self.severities.get(clip["clip"], np.nan)
        fault = f", severity {severity:g}" if severity > 0 else ""
        return f"{clip['label']}, {clip['domain']}{fault}, {clip['split']} clip {row}"

    def players(self, row: int) -> tables.Html:
        """Return players of both clips of a pair, with one gain."""
        rows = [self.partner(row), row]
        waves = [self.store.int16(one) / 32768.0 for one in rows]
        gain = audio.common_gain(waves)
        shown = [pages.player(wave, self.store.rate, self.words(one), gain) for wave, one in zip(waves, rows)]
        return tables.Html(f'<div class="clips">{"".join(shown)}</div>')

    def view(self) -> DualView:
        """Return menus for machine, clip and feature; in a report, the first feature of each pair."""
        machine = ipywidgets.Dropdown(options=self.machines, description="machine")
        clip = ipywidgets.Dropdown(description="clip", layout={"width": "30rem"})
        feature = ipywidgets.Dropdown(options=self.names, description="feature")
        shown = ipywidgets.HTML()

        def draw(_: Mapping | None = None) -> None:
            if clip.value is not None:
                shown.value = self.players(clip.value) + self.figure(clip.value, feature.value)._repr_html_()

        def list_clips(_: Mapping | None = None) -> None:
            clip.options = [(self.words(row), int(row)) for row in self.ranked(machine.value)]
            clip.index = 0  # new options clear the selection

        machine.observe(list_clips, "value")
        for control in (clip, feature):
            control.observe(draw, "value")
        list_clips()
        controls = ipywidgets.HBox([machine, clip, feature], layout={"flex_flow": "row wrap"})
        return DualView(ipywidgets.VBox([controls, shown]), self._static)

    def _static(self) -> str:
        parts = []
        for machine in self.machines:
            row = int(self.ranked(machine)[0])
            figure = self.figure(row, self.names[0])._repr_html_()
            parts.append(f"<h3>{tables.escape(machine)}</h3>{self.players(row)}{figure}")
        return "".join(parts)
