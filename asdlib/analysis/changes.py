"""Description of how a clip differs from normal clips: kind of change, frequencies, times, how unusual.

Conventions
-----------
A clip is compared with the few most similar normal training clips of its machine, and the difference with
those among the training clips (each compared with the clips most similar to it). The result describes the
sound, not the computation of any system, and is the same for every system. Neither labels of test clips nor
other test clips are used.

Levels are in dB of the clip with mean 0 and variance 1, except `level`, in dB re full scale. Frequencies in
Hz, times in s. The strength of a change is 1 if 5 % of the training clips reach it; changes of at least
MIN_STRENGTH are reported.
Source: METHOD 8.8.  Notebooks: 06_embeddings, 09_report
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage

from asdlib import errors, features
from asdlib.analysis.explain import Map
from asdlib.data import store as stores

BANDS, GROUPS, RATES = 96, 16, 32  # mel bands of the spectrum, of the envelopes; bins of the modulation rate
NEIGHBORS = 4  # number of normal clips that a clip is compared with
GAP_DB = 6.0  # a beat that is softer than the others by this much is missing
FASTEST_HZ = 45.0  # of a fluctuation of the loudness; anything faster counts as impacts
MIN_STRENGTH = (
    1.2  # strength; new normal clips reach 1 more often than those from which the limits are computed
)
MAX_CLIPS = 100  # maximum number of training clips, evenly spaced in each domain
KINDS = ("none", "tone", "band", "broadband", "impacts", "missing", "rhythm", "level")
# measures, and sign of the change to detect: increase or decrease
SIGNS = [(name, 1) for name in ("mean", "low", "half", "impulse", "modulation", "gap", "level")]
SIGNS += [(name, -1) for name in ("mean", "level")]
# lower limit of the spread between training clips, dB
SPREAD_DB = {
    "mean": 0.4,
    "low": 0.4,
    "quiet": 0.4,
    "half": 0.4,
    "loud": 0.4,
    "impulse": 0.2,
    "modulation": 0.8,
    "gap": 1.0,
    "level": 0.5,
}


class Change(NamedTuple):
    """How a clip differs from normal clips.

    kind : one of KINDS.  hz, low_hz, high_hz : center and limits, NaN if the change has no frequency
    rate_hz : impacts or fluctuations per second, NaN for other kinds.  amount_db : signed difference from the
        normal clips
    share : share of training clips that differ less at these frequencies, 0..1.  normals : number of these
        clips
    like : store row of the most similar normal clip
    moments : up to three intervals (start, end) in s where the band is louder than in any normal clip,
        loudest first; none if that is nearly always or never so
    difference : level relative to the usual level of each band, dB.  course : its mean over the changed band,
        (frames,), dB
    """

    kind: str
    hz: float
    low_hz: float
    high_hz: float
    rate_hz: float
    amount_db: float
    share: float
    normals: int
    like: int
    moments: tuple[tuple[float, float], ...]
    difference: Map
    course: np.ndarray

    @property
    def words(self) -> str:
        """Description of the change in one or two sentences."""
        if self.kind == "none":
            return (
                "Level, spectrum, impacts and rhythm differ no more from normal than those of"
                f" {self.normals} normal training clips differ among themselves."
            )
        span = f"{_hz(self.low_hz)} to {_hz(self.high_hz)}"
        place, amount = f"around {_hz(self.hz)}", f"{max(abs(self.amount_db), 1):.0f} dB"
        louder = "louder" if self.amount_db > 0 else "softer"
        rate = f"about {float(f'{self.rate_hz:.2g}'):g} times a second"
        like = "than in the most similar normal clips"
        text = {
            "tone": f"A tone {place} is {amount} {louder} {like}",
            "band": f"A band {place} ({span}) is {amount} {louder} {like}",
            "broadband": f"All frequencies from {span} are louder, by up to {amount}, {like}",
            "impacts": f"Impacts or bursts {place}, {rate}, are {amount} more prominent {like}",
            "missing": f"A component {place} is missing: it is {amount} softer {like}",
            "rhythm": f"The loudness fluctuates {rate}, by {amount} more {like}, most strongly {place}",
            "level": f"The recording is {amount} {louder} than most normal training clips",
        }[self.kind]
        if self.kind == "missing" and math.isnan(self.hz):
            at = f"at {self.moments[0][0]:.1f} s it is {amount} softer than at the same point"
            text = f"A beat of the rhythm is missing: {at} of the other periods"
        times = [f"{a:.1f} s" if b - a < 0.2 else f"{a:.1f} to {b:.1f} s" for a, b in sorted(self.moments)]
        when = f" It is loudest there at {', '.join(times)}." if times and not math.isnan(self.hz) else ""
        usual = f"{100 * self.share:.0f} % of {self.normals} normal training clips differ less"
        usual = f"none of {self.normals} normal training clips differs as much" if self.share == 1 else usual
        return f"{text}; {usual}.{when}"


def _hz(hz: float) -> str:
    return f"{hz / 1000:.2g} kHz" if hz >= 1000 else f"{hz:.2g} Hz" if hz < 100 else f"{round(hz, -1):.0f} Hz"


def _windows(rate: int) -> tuple[int, int]:
    """Return the window lengths of spectrum and envelopes in samples, about 128 and 8 ms."""
    slow, fast = (1 << round(math.log2(seconds * rate)) for seconds in (0.128, 0.008))
    return slow, fast


def _log_mel(wave: torch.Tensor, window: int, hop: int, bands: int, rate: int) -> np.ndarray:
    found = features.log_mel(
        wave, n_fft=window, win=window, hop=hop, n_mels=bands, low_hz=50.0, high_hz=rate / 2, rate=rate
    )
    return found[0, 0].numpy()


def measure(wave: np.ndarray, rate: int) -> tuple[dict[str, np.ndarray], np.ndarray, float]:
    """Compute the measures that are compared between clips.

    wave : (samples,), full scale 1.  rate : Hz
    returns : dB, by the names of SPREAD_DB; the log-mel (BANDS, frames), dB; time of the deepest gap, s.
        mean, low (BANDS,): mean power over time and 10th percentile of the level in windows of 128 ms
        quiet, half, loud (GROUPS,): 5th, 50th and 97th percentile of the level in windows of 16 ms
        impulse (GROUPS,): spectral kurtosis 10·log10(E P² / (E P)²) of the power in windows of 8 ms relative
            to its mean within 100 ms
        modulation (GROUPS, RATES): `features.modulation_spectrum` of these windows
        gap, level (1,): the deepest missing beat, see `_gap`, and the level re full scale
    """
    short = np.resize(wave, max(len(wave), rate)) if len(wave) else np.zeros(rate)  # windows need some length
    x = torch.as_tensor(short, dtype=torch.float64)[None]
    level = 10 * math.log10(float(x.square().mean()) + 1e-12)
    x, (slow, fast) = stores.standardize(x), _windows(rate)
    mel = _log_mel(x, slow, slow // 2, BANDS, rate)
    quick, frame_hz = _log_mel(x, fast, fast // 4, GROUPS, rate), rate / (fast // 4)
    power = 10 ** (quick / 10)
    power = power / ndimage.uniform_filter1d(power, int(0.1 * frame_hz), axis=1, mode="nearest")
    modulation = features.modulation_spectrum(
        torch.from_numpy(quick)[None], frame_hz=frame_hz, groups=GROUPS, bins=RATES
    )
    quiet, half, loud = _levels(quick)
    gap, at_s = _gap(quick.mean(0), frame_hz)
    found = {
        "mean": 10 * np.log10((10 ** (mel / 10)).mean(1)),
        "low": np.percentile(mel, 10, axis=1),
        "quiet": quiet,
        "half": half,
        "loud": loud,
        "impulse": 10 * np.log10((power**2).mean(1) / power.mean(1) ** 2),
        "modulation": modulation.numpy().reshape(GROUPS, RATES),
        "gap": np.array([gap]),
        "level": np.array([level]),
    }
    return found, mel, at_s


def _levels(quick: np.ndarray) -> np.ndarray:
    """Return the 5th, 50th and 97th percentile of the level over time, (3, bands), dB.

    quick : (bands, frames), dB, frames of 8 ms every 2 ms
    """
    power = ndimage.uniform_filter1d(10 ** (quick / 10), 5, axis=1, mode="nearest")
    return np.percentile(10 * np.log10(power), [5, 50, 97], axis=1)


def _gap(level: np.ndarray, frame_hz: float) -> tuple[float, float]:
    """Return the depth (dB) and time (s) of the deepest missing beat of a periodic level.

    The level is compared with that at the same point of the other periods, where these are loud; beats may
    come 75 ms early or late.

    level : dB, (frames,)
    returns : depth 0 below GAP_DB, or without a period between 0.3 and 3 s
    """
    step = max(round(frame_hz / 100), 1)
    level, frame_hz = level[: len(level) // step * step].reshape(-1, step).max(1), frame_hz / step
    n, first, last = len(level), int(0.3 * frame_hz), min(int(3 * frame_hz), len(level) // 3)
    if last <= first:
        return 0.0, math.nan
    wide = ndimage.maximum_filter1d(level, 7)
    spectrum = np.abs(np.fft.rfft(wide - wide.mean(), 2 * n)) ** 2
    autocorrelation = np.fft.irfft(spectrum)[:n] / (n - np.arange(n))
    period = first + int(autocorrelation[first:last].argmax())
    if autocorrelation[period] <= 0.4 * autocorrelation[0]:
        return 0.0, math.nan
    beat, maximum = ndimage.maximum_filter1d(level, 5), ndimage.maximum_filter1d(level, 15)
    beats = np.full((-(-n // period), period), np.nan)  # a row for each period
    beats.ravel()[:n] = beat
    others = [np.nanmedian(np.delete(beats, row, axis=0), axis=0) for row in range(len(beats))]
    usual = np.concatenate(others)[:n]
    fall = np.where(usual > np.percentile(wide, 75), usual - maximum, 0.0)[7:-7]  # the ends hold half a beat
    if fall.max() < GAP_DB:
        return 0.0, math.nan
    return float(fall.max()), (7 + int(fall.argmax())) / frame_hz


def _unchanged_offset(values: np.ndarray) -> float:
    """Return the mean of the narrowest interval with half of the values, the offset of unchanged bands."""
    ordered = np.sort(values.ravel())
    half = len(ordered) // 2
    first = (ordered[half:] - ordered[: len(ordered) - half]).argmin()
    return float(ordered[first : first + half + 1].mean())


class Normals:
    """Measures of normal training clips, and differences of each from the clips most similar to it.

    store : decoded recordings.  rows : int (n,), rows of the normal training clips of one machine
    raises : errors.InputError for fewer than two clips
    """

    def __init__(self, store: stores.Store, rows: np.ndarray):
        if len(rows) < 2:
            raise errors.InputError(
                f"describing a change needs at least 2 normal training clips, got {len(rows)}; add recordings"
            )
        self.rows, rate = np.asarray(rows), store.rate
        self.rate, (slow, fast) = rate, _windows(rate)
        ends = {"low_hz": 50.0, "high_hz": rate / 2, "rate": rate}
        self.hz = features.band_hz(BANDS, n_fft=slow, **ends)
        self.group_hz = features.band_hz(GROUPS, n_fft=fast, **ends)
        edges = np.geomspace(features.SLOWEST_HZ, rate / (fast // 4) / 2, RATES + 1)
        self.rate_hz = np.sqrt(edges[1:] * edges[:-1])
        found = [measure(store.int16(row) / 32768.0, rate) for row in rows]
        self.loudest = np.stack([np.percentile(mel, 97, axis=1) for _, mel, _ in found])
        self.train = {name: np.stack([one[0][name] for one in found]) for name in SPREAD_DB}
        residuals = [self._residual(one[0])[0] for one in found]
        self.residuals = {name: np.stack([one[name] for one in residuals]) for name in SPREAD_DB}
        self.spread = {
            name: np.maximum(np.sqrt((self.residuals[name] ** 2).mean(0)), SPREAD_DB[name])
            for name in SPREAD_DB
        }
        self.limits = dict.fromkeys(SIGNS, 1.0)
        for keys in (*([key] for key in SIGNS), SIGNS):  # corrects for the number of bands, then of measures
            most = [max(self._strength(one, key).max() for key in keys) for one in residuals]
            for key in keys:
                self.limits[key] *= max(float(np.quantile(most, 0.95)), 1.0)

    @classmethod
    def of(cls, store: stores.Store, machine: str) -> Normals:
        """Measure up to MOST normal training clips of a machine, from the smaller domain first.

        raises : errors.InputError for a machine with fewer than two clips
        """
        rows = stores.training_rows(store.clips, machine)
        domain = store.clips["domain"].to_numpy()[rows]
        domains = [rows[domain == name] for name in np.unique(domain)]
        chosen, left = [], MAX_CLIPS
        for number, part in enumerate(sorted(domains, key=len)):
            take = min(len(part), left // (len(domains) - number))
            chosen, left = [*chosen, *part[np.linspace(0, len(part) - 1, take).astype(int)]], left - take
        return cls(store, np.sort(chosen))

    def _strength(self, residual: dict[str, np.ndarray], key: tuple[str, int]) -> np.ndarray:
        name, sign = key
        return sign * residual[name] / self.spread[name] / self.limits[key]

    def _residual(self, found: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Return differences from the median of the ALIKE most similar other training clips, and these."""
        distances = np.zeros(len(self.loudest))
        for name in ("mean", "low", "quiet"):  # a fault must not decide: without the worst quarter of bands
            square = np.sort((self.train[name] - found[name]) ** 2, axis=1)
            distances += square[:, : 3 * square.shape[1] // 4].mean(1)
        distances[distances < 1e-12] = np.inf
        near = np.argsort(distances, kind="stable")[: min(NEIGHBORS, len(distances) - 1)]
        residual = {name: found[name] - np.median(self.train[name][near], 0) for name in SPREAD_DB}
        residual["level"] = found["level"] - np.median(self.train["level"], 0)  # of all clips
        for name in ("mean", "low"):
            residual[name] = residual[name] - _unchanged_offset(residual[name])
            residual[name] = ndimage.uniform_filter1d(residual[name], 3, mode="nearest")
        return residual, near

    def _find(self, residual: dict[str, np.ndarray]) -> tuple[str, str, int, tuple[int, ...]]:
        """Return the strongest change: kind ("" if `_width` decides), measure, sign, index in the measure.

        Added sound appears in the spectrum; its width distinguishes a tone from a band. Added sound that is
        absent at the quietest times is an impact or burst, and so is a band that becomes more impulsive,
        unless the loudness fluctuates slowly, downward as far as upward: then it is a change of rhythm.
        """
        strength = {key: self._strength(residual, key) for key in self.limits}
        top = {key: float(values.max()) for key, values in strength.items()}
        spectrum = max(("mean", "low"), key=lambda name: top[name, 1])
        added, lost, gap, often = top[spectrum, 1], top["mean", -1], top["gap", 1], top["half", 1]
        level = max((1, -1), key=lambda sign: top["level", sign])
        fluctuation = "modulation" if top["modulation", 1] > top["impulse", 1] and added < 1.2 else "impulse"
        best = max(added, lost, gap, often, top["level", level], top[fluctuation, 1])
        if best < MIN_STRENGTH:
            return "none", "level", 1, (0,)
        if gap >= min(best, max(2.0, 0.4 * best)):
            return "missing", "gap", 1, (0,)
        if top["level", level] == best:
            return "level", "level", level, (0,)
        if top[fluctuation, 1] == best:
            group = int(np.argmax(strength[fluctuation, 1].reshape(GROUPS, -1).max(1)))
            rate = int(strength["modulation", 1][group].argmax())
            up, down = residual["loud"] - residual["half"], residual["half"] - residual["quiet"]
            if self.rate_hz[rate] < FASTEST_HZ and down.max() >= 0.65 * up.max():
                return "rhythm", "modulation", 1, (group, rate)
            return "impacts", fluctuation, 1, (group, rate)[: residual[fluctuation].ndim]
        if lost == best:
            return "missing", "mean", -1, (int(strength["mean", -1].argmax()),)
        name = "half" if often == best else spectrum
        at = int(strength[name, 1].argmax())
        if name != "mean" and residual["quiet"][self._group(name, at)] < 0.4 * residual[name][at]:
            return "impacts", name, 1, (at,)
        return "", spectrum, 1, (int(strength[spectrum, 1].argmax()),)

    def _group(self, name: str, at: int) -> int:
        """Return the group of envelope bands that contains index `at` of a measure."""
        return int(np.abs(self.group_hz - self.hz[at]).argmin()) if len(self.train[name][0]) == BANDS else at

    def _width(self, level: np.ndarray, residual: np.ndarray, at: int) -> str:
        """Return tone, band or broadband, by the distribution of the power added around band `at`.

        level : dB, of the clip.  residual : dB above the normal clips
        """
        added = np.maximum(10 ** (level / 10) - 10 ** ((level - residual) / 10), 0.0)
        peak = max(at - 3, 0) + int(added[max(at - 3, 0) : at + 4].argmax())
        neighbors = added[[max(peak - 2, 0), min(peak + 2, BANDS - 1)]].mean()
        if neighbors < 0.45 * added[peak] and residual[at] > 3:
            return "tone"
        low, high = _run(residual, at)
        return "broadband" if np.log2(self.hz[high] / self.hz[low]) > 1.4 else "band"

    def describe(self, wave: np.ndarray) -> Change:
        """Describe the change.  wave : (samples,), full scale 1, at the sample rate of the training clips

        Source: METHOD 8.8.  Notebook: 06_embeddings
        """
        found, mel, gap_s = measure(wave, self.rate)
        residual, near = self._residual(found)
        kind, name, sign, at = self._find(residual)
        kind = kind or self._width(found[name], residual[name], at[0])
        amount, rate, hz, low, high = residual[name][at], math.nan, math.nan, math.nan, math.nan
        if kind in ("impacts", "rhythm"):
            group = self._group(name, at[0])
            rate = self.rate_hz[self._strength(residual, ("modulation", 1))[group].argmax()]
        if kind not in ("none", "level") and name != "gap":
            values, axis, middle = residual[name], self.hz, at[0]
            if kind == "impacts" and self._strength(residual, ("mean", 1)).max() >= 1:
                values = residual["mean"]  # has a finer frequency resolution than the envelopes
                middle = int(self._strength(residual, ("mean", 1)).argmax())
            elif name in ("impulse", "modulation", "half"):
                values, axis = values.reshape(GROUPS, -1).max(1), self.group_hz
            hz, (low, high) = axis[middle], axis[list(_run(sign * values, middle))]
        bands = (self.hz >= low) & (self.hz <= high)
        bands = bands if bands.any() else np.argsort(np.abs(self.hz - hz))[: BANDS if math.isnan(hz) else 1]
        usual = np.median(self.train["mean"][near], 0)
        usual = usual + _unchanged_offset(found["mean"] - usual)
        difference = Map(mel - usual[:, None], self.hz, _windows(self.rate)[0] // 2 / self.rate)
        course, moments = difference.values[bands].mean(0), ((gap_s, gap_s),) * (name == "gap")
        if sign > 0 and not math.isnan(hz):
            loudest = (np.median(self.loudest[near], 0) - usual)[bands].mean()
            moments = _moments(course - loudest, difference.hop_s)
        differ = sign * self.residuals[name][(slice(None), *at)] < sign * amount
        share = float(differ.mean())
        return Change(
            kind,
            *map(float, (hz, low, high, rate, amount, share)),
            len(self.loudest),
            int(self.rows[near[0]]),
            moments,
            difference,
            course,
        )


def _run(values: np.ndarray, at: int) -> tuple[int, int]:
    """Return the first and last index of the run around `at` with values of at least half its value."""
    numbers, _ = ndimage.label(values >= values[at] / 2)
    inside = np.flatnonzero(numbers == numbers[at])
    return int(inside[0]), int(inside[-1])


def _moments(above: np.ndarray, hop_s: float) -> tuple[tuple[float, float], ...]:
    """Return the up to three intervals, start and end in s, with the highest positive values.

    Empty if more than 40 % of the values are positive, none, or those of more than 5 separate intervals.
    """
    numbers, count = ndimage.label(above > 0)
    if not 1 <= count <= 5 or (above > 0).mean() > 0.4:
        return ()
    ends = [np.flatnonzero(numbers == number)[[0, -1]] for number in range(1, count + 1)]
    ends.sort(key=lambda pair: -above[pair[0] : pair[1] + 1].max())
    return tuple((float(first * hop_s), float(last * hop_s)) for first, last in ends[:3])
