"""Sound models of fans, gearboxes, valves, slide rails and bearings, healthy and with a fault.

Conventions
-----------
A model is a function of a `Take` (one machine, its condition, the random streams of one clip). It returns two
arrays: the healthy sound, and the contribution of the fault at depth 1. `take.constants` and `take.make`
belong to the individual machine, `take.rng` to the clip, `take.flaw` to the fault; so a fault never changes
the healthy sound and vanishes at depth 0.

Rotating parts share one angle, so blade passes, teeth, bearing strikes and sidebands keep their orders while
the speed varies. Impacts are impulses that excite body resonances. A new kind of machine is one function and
one entry in MACHINES. `asdlib.data.synthetic` adds rooms and writes the files.

Units: s, Hz, revolutions, mm; amplitudes are arbitrary, scaled later to the RMS of the healthy sound.
Source: METHOD 8.1; attribute keys after METHOD 7.1. Notebook: 01_data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import fft

TABLE = 1 << 16  # samples per revolution in a wave table


@dataclass(frozen=True)
class Take:
    """Input of a model: one machine, its condition, and the random streams of one clip."""

    n: int  # samples
    rate: int  # Hz
    domain: str
    attributes: dict[str, str]
    constants: dict  # constants of the individual machine
    make: np.random.Generator  # stream for further machine constants, equal in every clip
    rng: np.random.Generator  # this clip
    flaw: np.random.Generator  # this clip's fault, separate from `rng`
    fault: str = ""  # name of the fault, or "" for none
    depth: float = 0.0  # fault strength: severity times the fault's scale
    roughness: float = 0.5  # 0 to 1: strength of the noise components

    @property
    def f(self) -> np.ndarray:
        """Frequencies of the rfft bins, see `bins`."""
        return bins(self.n, self.rate)


def bins(n: int, rate: int) -> np.ndarray:
    """Frequencies of the rfft bins in Hz, (n // 2 + 1,); the first is 1 Hz instead of 0, for logarithms."""
    return np.maximum(fft.rfftfreq(n, 1 / rate), 1.0)


@dataclass(frozen=True)
class Kind:
    """Kind of machine: sound model, ranges of its constants, attribute values, faults."""

    sound: Callable[[Take], tuple[np.ndarray, np.ndarray]]  # -> healthy (n,), fault contribution (n,)
    constants: dict[str, tuple]  # (low, high) of ints or floats, or several such pairs
    attributes: dict[str, dict[str, tuple[str, ...]]]  # domain -> key -> values; empty: noAttribute
    faults: dict[str, float]  # name -> amplitude at severity 1
    snr_db: float  # SNR of the healthy machine over background
    # domain shift of microphone, room and noise, in units of asdlib.data.synthetic
    shift: float


def stream(*key) -> np.random.Generator:
    """Random generator for a key of plain values, platform-independent."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:16]))


def constants(kind: str, name: str, seed: int) -> dict:
    """Constants of one individual machine, for example {"blades": 7, "speed_hz": 24.1, ...}.

    kind : key of MACHINES; name : machine name in the tree; seed : seed of the study
    returns : a number, or an array of numbers, per entry of the kind's `constants`; names contain the units
    """
    rng = stream(seed, name, "constants")

    def draw(low, high):
        return int(rng.integers(low, high + 1)) if isinstance(low, int) else float(rng.uniform(low, high))

    return {
        key: np.array([draw(*pair) for pair in span]) if isinstance(span[0], tuple) else draw(*span)
        for key, span in MACHINES[kind].constants.items()
    }


# ---- building blocks
# -----------------------------------------------------------------------------------
def drift(take: Take, per_s: float = 2.0) -> np.ndarray:
    """Slow random curve, (n,), std near 1: `per_s` random knots per second, linearly interpolated."""
    knots = int(np.ceil(take.n / take.rate * per_s)) + 2
    at = np.arange(take.n) * per_s / take.rate + take.rng.uniform()
    return 1.2 * np.interp(at, np.arange(knots), take.rng.standard_normal(knots))


def turn(take: Take, speed: float, wander: float) -> np.ndarray:
    """Angle in revolutions, (n,), of a shaft at `speed` rev/s with relative standard deviation `wander`."""
    return take.rng.uniform() + np.cumsum(speed * (1 + wander * drift(take))) / take.rate


def cycle(turns: np.ndarray, orders: np.ndarray, amplitudes: np.ndarray, phases: np.ndarray) -> np.ndarray:
    """Sum of cosines at integer orders of an angle `turns` (n,), from a one-revolution wave table.

    orders, amplitudes, phases : (lines,), phases in revolutions
    """
    spectrum = np.zeros(TABLE // 2 + 1, complex)
    np.add.at(spectrum, np.asarray(orders, int), amplitudes * np.exp(2j * np.pi * phases) * TABLE / 2)
    return fft.irfft(spectrum, TABLE)[(turns * TABLE).astype(np.int64) & (TABLE - 1)]


def resonances(f: np.ndarray, centers: np.ndarray, q: float, floor: float = 0.0) -> np.ndarray:
    """Causal transfer function of resonances (peak 1) over a flat `floor`, complex (bins,).

    f : (bins,), Hz.  centers : resonance frequencies, Hz
    """
    ratio = f[None] / np.asarray(centers, float)[:, None]
    damped = 1j * ratio / q
    return floor + (damped / (1 - ratio**2 + damped)).sum(0)


def hump(f: np.ndarray, center: float, octaves: float) -> np.ndarray:
    """Gaussian band in log-frequency around `center`, magnitude (bins,) at f (bins,) Hz; std `octaves`."""
    return np.exp(-0.5 * (np.log2(f / center) / octaves) ** 2)


def through(x: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Filter the wave x (n,) by `response` (n // 2 + 1,)."""
    return fft.irfft(fft.rfft(x) * response, len(x))


def colored(rng: np.random.Generator, response: np.ndarray, n: int) -> np.ndarray:
    """Gaussian noise (n,) of RMS 1 with magnitude spectrum |response|."""
    spectrum = rng.standard_normal((2, len(response)), dtype=np.float32)
    noise = fft.irfft((spectrum[0] + 1j * spectrum[1]) * response, n)
    return noise / rms(noise)


def rms(x: np.ndarray) -> float:
    """Root mean square of x (n,), never 0."""
    return float(np.sqrt(np.mean(np.square(x)))) + 1e-12


def passes(turns: np.ndarray) -> np.ndarray:
    """Samples at which an angle `turns` (n,) completes a revolution."""
    return np.flatnonzero(np.diff(np.floor(turns))) + 1


def impulses(n: int, at: np.ndarray, force: np.ndarray | float) -> np.ndarray:
    """Impulse train (n,) with impulses at samples `at`; those outside the clip are dropped."""
    at, force = np.broadcast_arrays(np.asarray(at, int), force)
    inside = (at >= 0) & (at < n)
    return np.bincount(at[inside], np.asarray(force, float)[inside], minlength=n)


def bearing_strikes(take: Take, turns: np.ndarray, order: float, response: np.ndarray) -> np.ndarray:
    """Strikes of balls on a pitted race, RMS 1, (n,), with slight slip and more force in the loaded zone."""
    at = passes(turns * order)
    at = at + take.flaw.normal(0, 0.03 * take.n / max(len(at), 1), len(at)).astype(int)
    force = take.flaw.uniform(0.6, 1.4, len(at)) * (
        1 + 0.6 * np.cos(2 * np.pi * turns[np.clip(at, 0, take.n - 1)])
    )
    ringing = through(impulses(take.n, at, force), response)
    return ringing / rms(ringing)


# ---- the machines
# ------------------------------------------------------
def fan(take: Take) -> tuple[np.ndarray, np.ndarray]:
    """Axial fan: blade-pass harmonics of uneven blades, and turbulence modulated by the blades.

    Speed varies in discrete steps that are not recorded as an attribute.
    """
    c, f, blades = take.constants, take.f, take.constants["blades"]
    turns = turn(take, c["speed_hz"] * take.rng.choice(FAN_STEPS[take.domain]), 0.004)
    orders = np.arange(1, 6 * blades + 1)
    uneven = 0.08 * take.make.rayleigh(1.0, len(orders))
    pressure = np.where(orders % blades == 0, (orders / blades) ** -1.1, uneven * (orders / blades) ** -0.8)
    blade_tones = cycle(turns, orders, pressure, take.make.uniform(size=len(orders))) * (
        1 + 0.12 * drift(take, 6.0)
    )
    air = colored(
        take.rng, hump(f, c["turbulence_hz"], 1.6) * (0.6 + np.abs(resonances(f, c["body_hz"], 6.0))), take.n
    )
    swish = 1 + 0.25 * np.cos(2 * np.pi * blades * turns)
    healthy = blade_tones + c["air"] * (0.85 + 0.3 * take.roughness) * swish * air
    fault = np.zeros(take.n)
    # a heavy blade modulates all sound once per turn
    if take.fault == "imbalance":
        fault = np.cos(2 * np.pi * (turns + take.flaw.uniform())) * healthy
    elif take.fault == "rubbing":  # one blade touches the shroud during a tenth of a turn
        touch = np.maximum(np.cos(2 * np.pi * (turns + take.flaw.uniform())), 0.0) ** 12
        fault = touch * colored(take.flaw, hump(f, take.flaw.uniform(2200, 3800), 0.7), take.n)
    elif take.fault == "bearing":
        fault = bearing_strikes(take, turns, 3.57, resonances(f, c["body_hz"][-2:], 12.0))
    return healthy, fault


def gearbox(take: Take) -> tuple[np.ndarray, np.ndarray]:
    """Gear pair: mesh harmonics with sidebands from uneven teeth.

    Attributes: `spd` shaft speed (rev/s), `load` tooth load (%)
    """
    c, f, teeth = take.constants, take.f, take.constants["teeth"]
    load = float(take.attributes["load"]) / 100
    turns = turn(take, float(take.attributes["spd"]) * (1 - 0.01 * load), 0.002)
    harmonics, side = np.arange(1, 6)[:, None], np.arange(-3, 4)[None]
    weight = harmonics**-0.7 * np.where(side == 0, 1.0, take.make.uniform(0.05, 0.3, (5, 7))) * (0.5 + load)
    orders = (harmonics * teeth + side).ravel()
    mesh = cycle(turns, orders, weight.ravel(), take.make.uniform(size=orders.size))
    wheel = turns * teeth / c["wheel_teeth"]
    mesh = mesh * (1 + 0.2 * np.cos(2 * np.pi * wheel)) * (1 + 0.08 * drift(take, 6.0))
    shaft = cycle(turns, np.array([1, 2, 3]), np.array([0.5, 0.3, 0.15]), take.make.uniform(size=3))
    rolling = colored(take.rng, hump(f, c["rolling_hz"], 1.5), take.n) * (
        1 + 0.3 * np.cos(2 * np.pi * teeth * turns)
    )
    body = resonances(f, c["body_hz"], 5.0, floor=0.25)
    healthy = through(mesh + shaft + c["rolling"] * (0.85 + 0.3 * take.roughness) * rolling, body)
    fault = np.zeros(take.n)
    if take.fault == "broken tooth":  # a bang once per turn
        at = passes(turns + take.flaw.uniform())
        bang = through(impulses(take.n, at, take.flaw.uniform(0.7, 1.3, len(at))), body)
        fault = bang / rms(bang)
    elif take.fault == "eccentric":  # an off-center wheel modulates the mesh once per wheel turn
        fault = through(mesh * np.cos(2 * np.pi * (wheel + take.flaw.uniform())), body)
    elif take.fault == "bearing":
        fault = bearing_strikes(take, turns, 4.43, resonances(f, c["body_hz"][-2:], 12.0))
    return healthy, fault


def valve(take: Take) -> tuple[np.ndarray, np.ndarray]:
    """Solenoid valve: clicks excite the body, openings release air.

    Attribute: `pat` open/shut pattern of a cycle
    """
    c, f = take.constants, take.f
    period = c["cycle_s"] * take.rate
    steps = np.array(PATTERNS[take.attributes["pat"]])
    events = (np.arange(int(take.n / period) + 2)[:, None] - take.rng.uniform() + steps[None]) * period
    at = (events + take.rng.normal(0, 0.004 * take.rate, events.shape)).astype(int)
    force = np.where(np.arange(len(steps)) % 2 == 0, 1.0, c["shut"])[None] * take.rng.uniform(
        0.8, 1.2, events.shape
    )
    pressure = 0.6 + 0.8 * take.roughness
    ring = resonances(f, c["body_hz"], 18.0)
    second = at + int(c["bounce_s"] * take.rate)  # one bounce of the armature
    decay = np.exp(-np.arange(take.n) / (0.06 * take.rate))
    hiss = colored(take.rng, hump(f, c["hiss_hz"], 0.8), take.n)

    def puff(strength):  # air released after each opening
        return through(impulses(take.n, at[:, ::2], strength[:, ::2]), fft.rfft(decay))

    def clicks(strength):
        strikes = impulses(take.n, at, strength) + impulses(take.n, second, 0.4 * strength)
        return through(strikes, 30.0 * ring) + c["puff"] * pressure * puff(strength) * hiss

    healthy = clicks(force)
    fault = np.zeros(take.n)
    if take.fault == "missing click":  # some strokes fail: the armature sticks and hums
        inside = (at >= 0) & (at < take.n)
        turn_to_fail = np.argsort(np.argsort(take.flaw.uniform(size=at.size) + ~inside.ravel())).reshape(
            at.shape
        )
        # depth is the share of failing strokes
        stuck = force * np.clip(take.depth * inside.sum() - turn_to_fail, 0.0, 1.0)
        hum = cycle(
            100 / take.rate * np.arange(take.n),
            np.arange(1, 13),
            np.arange(1, 13) ** -0.5,
            take.flaw.uniform(size=12),
        )
        fault = (0.4 * hum * puff(stuck) - clicks(stuck)) / max(take.depth, 1e-9)
    elif take.fault == "leak":  # continuous air flow; depends on seat wear
        fault = colored(take.flaw, hump(f, take.flaw.uniform(0.8, 1.25) * c["hiss_hz"], 0.6), take.n)
    elif take.fault == "chatter":  # repeated strikes before the armature rests
        lag = (np.cumsum(take.flaw.uniform(0.010, 0.035, (*at.shape, 6)), -1) * take.rate).astype(int)
        fault = 40.0 * through(
            impulses(take.n, at[..., None] + lag, force[..., None] * 0.8 ** np.arange(6)), ring
        )
    return healthy, fault


def stroke(vel: float, ac: float, length_mm: float) -> tuple[float, float]:
    """Top speed in mm/s and duration in s of a stroke with acceleration, cruise and braking.

    vel : target speed, mm/s; ac : acceleration in units of 9.81 m/s2; length_mm : length of the rail
    """
    top = min(vel, float(np.sqrt(ac * 9810 * length_mm)))
    return top, length_mm / top + top / (ac * 9810)


def slider(take: Take) -> tuple[np.ndarray, np.ndarray]:
    """Slide rail: a carriage accelerates at `ac`, cruises at `vel` (mm/s), brakes, rests and returns.

    Sound of motor, balls and friction.
    """
    c, f = take.constants, take.f
    vel, ac = float(take.attributes["vel"]), float(take.attributes["ac"])
    top, lasts = stroke(vel, ac, c["rail_mm"])
    period = lasts + c["rest_s"]
    clock = np.arange(take.n) / take.rate * (1 + take.rng.normal(0, 0.004)) + take.rng.uniform() * 2 * period
    within = clock % period
    speed = np.clip(np.minimum(within, lasts - within) * ac * 9810, 0.0, top)  # mm/s, (n,)
    path = np.cumsum(speed) / take.rate + take.rng.uniform() * c["rail_mm"]  # mm
    rel = speed / 600.0
    motor = cycle(
        path / c["lead_mm"],
        np.arange(1, 25),
        c["motor"] * take.make.rayleigh(0.5, 24),
        take.make.uniform(size=24),
    )
    balls = cycle(path / c["ball_mm"], np.arange(1, 9), np.arange(1, 9) ** -0.5, take.make.uniform(size=8))
    friction = colored(take.rng, hump(f, c["friction_hz"], 1.3), take.n) * (0.85 + 0.3 * take.roughness)
    ends = np.concatenate([passes(clock / period), passes((clock - lasts) / period)])
    body = resonances(f, c["body_hz"], 8.0, floor=0.3)
    knocks = impulses(take.n, ends, 40.0 * ac**0.5 * take.rng.uniform(0.8, 1.2, len(ends)))
    healthy = through(
        (motor + 0.5 * balls) * np.minimum(rel, 1.0) ** 0.5 + 1.5 * friction * rel + knocks, body
    )
    fault = np.zeros(take.n)
    if take.fault == "dry rail":  # stick-slip without oil: a squeal at high speed
        squeal = colored(take.flaw, resonances(f, take.flaw.uniform(1800, 4200, 2), 40.0), take.n)
        fault = squeal * rel * (1 + np.cos(2 * np.pi * path / (3 * c["ball_mm"])))
    elif take.fault == "pitted rail":  # strikes when the carriage passes a pit
        where = c["rail_mm"] * np.sort(take.flaw.uniform(0.1, 0.9, 8))
        at = np.concatenate([passes((path - offset) / c["rail_mm"]) for offset in where])
        fault = through(impulses(take.n, at, take.flaw.uniform(0.5, 1.0, len(at)) * 40.0 * rel[at]), body)
    elif take.fault == "loose carriage":  # play: rattling at start and stop
        lag = (np.cumsum(take.flaw.uniform(0.008, 0.03, (len(ends), 5)), 1) * take.rate).astype(int)
        fault = through(impulses(take.n, ends[:, None] + lag, 40.0 * 0.8 ** np.arange(5)[None]), body)
    return healthy, fault


def bearing(take: Take) -> tuple[np.ndarray, np.ndarray]:
    """Ball bearing on a motor: shaft lines, cage and rolling noise.

    Attributes: `vel` shaft speed (rev/s), `loc` microphone position
    """
    c, f = take.constants, take.f
    vel = float(take.attributes["vel"])
    turns = turn(take, vel, 0.003)
    lines = cycle(
        turns,
        np.arange(1, 41),
        take.make.rayleigh(0.3, 40) * np.arange(1, 41) ** -0.3,
        take.make.uniform(size=40),
    )
    rolling = colored(take.rng, hump(f, c["rolling_hz"] * (vel / 10) ** 0.3, 1.4), take.n)
    rolling = rolling * (0.85 + 0.3 * take.roughness) * (1 + 0.3 * np.cos(2 * np.pi * 0.4 * turns))
    place = resonances(f, 500 * 2.0 ** (3 * stream(take.attributes["loc"]).uniform(size=3)), 2.0, floor=0.7)
    body = resonances(f, c["body_hz"], 7.0, floor=0.3) * place
    healthy = through(lines + rolling, body)
    fault = np.zeros(take.n)
    if take.fault in ("inner race", "outer race"):
        order = c["balls"] * (0.6 if take.fault == "inner race" else 0.4)
        fault = bearing_strikes(take, turns, order, resonances(f, c["body_hz"][-2:], 12.0) * place)
    elif take.fault == "dry":  # metal on metal, modulated by the cage
        grind = colored(take.flaw, hump(f, take.flaw.uniform(3000, 5000), 0.5), take.n)
        fault = through(grind * (1 + np.cos(2 * np.pi * 0.4 * turns)), place)
    return healthy, fault


FAN_STEPS = {"source": (0.9, 1.0, 1.1), "target": (0.95,)}  # factors of the rated speed
PATTERNS = {  # times of opening, shutting, opening, ... within a cycle
    "00": (0.0, 0.5),
    "01": (0.0, 0.25, 0.5, 0.75),
    "02": (0.0, 0.15, 0.3, 0.7),  # source
    "03": (0.0, 0.35),
    "04": (0.0, 0.2, 0.55, 0.85),  # target
}
MACHINES = {
    "fan": Kind(
        fan,
        {
            "blades": (5, 9),
            "speed_hz": (22.0, 28.0),
            "air": (0.8, 1.2),
            "turbulence_hz": (500.0, 900.0),
            "body_hz": ((250.0, 500.0), (900.0, 1500.0), (2200.0, 3600.0)),
        },
        {},
        {"imbalance": 0.17, "rubbing": 0.62, "bearing": 0.25},
        snr_db=6.0,
        shift=0.45,
    ),
    "gearbox": Kind(
        gearbox,
        {
            "teeth": (17, 29),
            "wheel_teeth": (41, 59),
            "rolling": (0.5, 0.8),
            "rolling_hz": (900.0, 1600.0),
            "body_hz": ((350.0, 600.0), (900.0, 1500.0), (2000.0, 2800.0), (3500.0, 5000.0)),
        },
        {
            "source": {"spd": ("20", "25", "30", "35"), "load": ("20", "80")},
            "target": {"spd": ("22", "33"), "load": ("50",)},
        },
        {"broken tooth": 0.19, "eccentric": 0.27, "bearing": 0.19},
        snr_db=8.0,
        shift=0.75,
    ),
    "valve": Kind(
        valve,
        {
            "cycle_s": (0.9, 1.2),
            "shut": (0.5, 0.8),
            "bounce_s": (0.012, 0.02),
            "puff": (0.3, 0.6),
            "hiss_hz": (2500.0, 4500.0),
            "body_hz": ((500.0, 900.0), (1300.0, 2200.0), (3000.0, 5500.0)),
        },
        {"source": {"pat": ("00", "01", "02")}, "target": {"pat": ("03", "04")}},
        {"missing click": 0.055, "leak": 0.008, "chatter": 0.05},
        snr_db=10.0,
        shift=0.3,
    ),
    "slider": Kind(
        slider,
        {
            "rail_mm": (260.0, 340.0),
            "rest_s": (0.1, 0.25),
            "lead_mm": (9.0, 12.0),
            "ball_mm": (3.0, 5.0),
            "motor": (0.8, 1.2),
            "friction_hz": (1200.0, 2500.0),
            "body_hz": ((300.0, 600.0), (900.0, 1800.0), (2500.0, 4500.0)),
        },
        {
            "source": {"vel": ("300", "450", "600", "900"), "ac": ("0.10", "0.30")},
            "target": {"vel": ("380", "750"), "ac": ("0.20",)},
        },
        {"dry rail": 0.21, "pitted rail": 0.6, "loose carriage": 0.38},
        snr_db=8.0,
        shift=0.15,
    ),
    "bearing": Kind(
        bearing,
        {
            "balls": (7, 11),
            "rolling_hz": (900.0, 1600.0),
            "body_hz": ((300.0, 700.0), (1200.0, 2200.0), (3000.0, 5000.0)),
        },
        {
            "source": {"vel": ("4", "8", "12", "16"), "loc": ("A", "B")},
            "target": {"vel": ("6", "14"), "loc": ("E",)},
        },
        {"inner race": 0.25, "outer race": 0.25, "dry": 0.2},
        snr_db=8.0,
        shift=0.5,
    ),
}
