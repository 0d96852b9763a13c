"""What an atlas shows without any script: sounds and pictures of a clip, maps as figures, lists with players, reasons of a score.

Conventions
-----------
Used by the live view (`widgets.atlas`) for its chosen clip and by reports for everything. All clips of a machine have one gain, so that levels can
be compared by ear; pictures have one scale from the loudest cell down. Everything that comes from data is escaped.
Source: METHOD 8.4.  Notebook: 06_embeddings
"""

from __future__ import annotations

import html
import math

import numpy as np
import torch

from asdlib import features
from asdlib.analysis import explain
from asdlib.data.store import Store
from asdlib.viz import audio, embedding_plots, pages, plots, tables
from asdlib.viz.widgets.embedding_map_model import WHY, Atlas, short

N_FFT, HOP, MELS, LOW_HZ = 1024, 256, 96, 50.0  # of the pictures: fine enough to see, small enough to follow a key
FLOOR_DB = 80.0  # below the loudest cell of a picture
FADE_DB = 50.0  # below it a phase is noise and fades
HEARD = 64  # clips, evenly spaced over a machine, that set its common gain


class Sounds:
    """Clips as they are heard and seen: one gain for all clips of a machine, log-mel and phase."""

    def __init__(self, store: Store, rate: int):
        self.store, self.rate, self._gains = store, rate, {}

    def gain(self, machine: str) -> float:
        """The gain of a machine's clips, from some of them, with 6 dB to spare for louder ones."""
        if machine not in self._gains:
            rows = np.flatnonzero(self.store.clips["machine"] == machine)
            some = rows[:: max(len(rows) // HEARD, 1)]
            self._gains[machine] = 0.5 * audio.common_gain([self.store.int16(row) / 32768.0 for row in some])
        return self._gains[machine]

    def uri(self, row: int) -> str:
        """The clip for an <audio>; only a clip that would be cut off at full scale is made softer."""
        wave, gain = self.store.int16(row) / 32768.0, self.gain(self.store.clips["machine"].iloc[row])
        return audio.vorbis(wave, self.rate, min(gain, audio.PEAK / max(float(np.abs(wave).max()), 1e-9)))

    def pictures(self, row: int) -> str:
        """Log-mel and phase of a clip as two inline SVGs."""
        wave = torch.from_numpy(self.store.int16(row) / np.float32(32768))[None]
        high_hz = 0.4875 * self.rate  # 7800 Hz of 16 kHz
        bands = {"n_fft": N_FFT, "low_hz": LOW_HZ, "high_hz": high_hz, "rate": self.rate}
        mel = features.log_mel(wave, n_mels=MELS, hop=HOP, **bands)[0, 0].numpy()
        top = float(mel.max())
        level = explain.Map(mel, features.band_hz(MELS, **bands), HOP / self.rate)
        shown = embedding_plots.picture(level, title="log-mel", unit="dB", colours="magma", limits=(top - FLOOR_DB, top))
        if wave.shape[1] < N_FFT:
            return shown
        turn = features.phase(wave, representation="if", n_fft=N_FFT, hop=HOP)[0, 0].numpy()
        loud = features.spectrogram(wave, n_fft=N_FFT, hop=HOP)[0, 0].numpy()
        weight = 1 + 20 * np.log10(np.maximum(loud / max(float(loud.max()), 1e-12), 1e-9)) / FADE_DB
        phase = explain.Map(turn, np.arange(len(turn)) * self.rate / N_FFT, HOP / self.rate)
        title = "phase: turn from frame to frame beyond that of the bin's centre; faint where it is soft"
        return shown + embedding_plots.picture(phase, title=title, unit="π rad", colours="twilight", limits=(-1.0, 1.0), weight=weight)


def static_maps(shown: Atlas) -> list[plots.Plot]:
    """The maps of all spaces, clip by clip, as figures: OEVAE a row for each machine, the classifier one for all."""
    atlas, out = shown.fresh(), []
    for system in dict.fromkeys(space.system for space in atlas.spaces.values()):
        whole = [view for view, (space, machine) in atlas.views.items() if atlas.spaces[space].system == system and not machine]
        rows = {}
        for view in whole:
            atlas.choose(view=view, items="clips")
            atlas.choose(projection=atlas.projections[0])
            names = ["domain", "label", f"score {system}"]
            names.insert(*((0, "machine") if "machine" in atlas.colours else (2, atlas.widest_attribute())))
            rows[view] = [_coloured(atlas, name) for name in names]
        out.append(embedding_plots.map_grid(rows, f"{system}, clips, {atlas.projection}"))
    return out


def _coloured(atlas: Atlas, colour: str) -> embedding_plots.Points | None:
    if colour not in atlas.colours:
        return None
    atlas.choose(colour=colour)
    return atlas.points()


def why_figure(atlas: Atlas, found: explain.Why) -> plots.Plot:
    """What explains one clip, with where the training clips of its machine lie."""
    machine = atlas.table["machine"].iloc[found.row]
    train = atlas.scores[(atlas.scores["machine"] == machine) & (atlas.scores["split"] == "train") & (atlas.scores["system"] == "oevae")]
    usual = {name: (part["score"].mean(), part["score"].std()) for name, part in train.groupby("component") if name in ("alpha", "beta")}
    return embedding_plots.why(found, usual, f"{machine}: {short(atlas.table['clip'].iloc[found.row])}")


def listing(atlas: Atlas, sounds: Sounds, players: int) -> tables.Html:
    """For each system with a map: the most anomalous, most missed and most falsely alarmed clips, with players, usable without any script.

    players : at most so many in all, shared evenly; a clip that stands in several lists has its player once.  Notebook: 06_embeddings
    """
    systems = list(dict.fromkeys(space.system for space in atlas.spaces.values()))
    n = max(players // (len(WHY) * len(systems)), 1)
    parts, heard = [], set()
    for system in systems:
        listed = atlas.listed(system, n)
        for why, rows in listed.groupby("why", sort=False):
            items = []
            for place in rows.itertuples():
                audio_part = '<p class="note">Its player stands further up.</p>'
                if place.row not in heard and len(heard) < players:
                    heard.add(place.row)
                    audio_part = pages.sound(sounds.uri(place.row), short(place.clip))
                elif place.row not in heard:
                    audio_part = ""
                near = _nearest(atlas, system, place.row)
                facts = f"{place.machine}, {place.domain}, {place.label}, {place.attributes}; {place.sd:+.1f} sd from the training mean, "
                facts += f"{place.above_threshold:+.1f} sd from the threshold" if math.isfinite(place.above_threshold) else "no threshold"
                words = f"<strong>{tables.breakable(short(place.clip))}</strong> ({tables.escape(tables.signed(facts))}). {tables.breakable(near)}"
                items.append(pages.clip(audio_part, words))
            parts.append(f"<h3>{html.escape(system)}: {why} ({WHY[why]})</h3><div class='clips'>{''.join(items)}</div>")
    return tables.Html(f'<div class="asd-atlas-clips">{"".join(parts)}</div>')


def _nearest(atlas: Atlas, system: str, row: int) -> str:
    """The training clip next to a clip, in words."""
    found = atlas.neighbours_of(system, row, 1)
    return "".join(f"Nearest training clip at distance {one.distance:.3g}: {short(one.clip)}, {one.attributes}." for one in found.itertuples())
