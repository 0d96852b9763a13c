"""Synthetic recordings of modeled machines in the DCASE 2024 layout, with known attributes and faults.

Each machine is a sound model (`asdlib.data.machines`) with a room, a microphone and colored background noise.
As no recorded sound is used, results on these machines show what a method can do, not how it performs on real
ones.

Conventions
-----------
A clip is determined by (seed, machine, split, domain, label, number), independent of other clips. The
constants of a machine (blade count, teeth, resonances) are determined by (seed, name): `ToyCar:gearbox` is a
gearbox model under the name ToyCar, another individual. The target domain has its own attribute values,
microphone, room and noise color.

A fault is an addition to the healthy sound from a separate random stream, proportional to `severity`: at
severity 0 it vanishes, so anomalies are draws from the normal distribution. Severity 1 is about as hard for
the official autoencoder as faults of recorded machines, severity 3 is blatant. As most detectors score normal
target clips higher than source clips, at severity 0 the AUC within each domain and overall is 0.5, while the
official AUC_source and AUC_target (anomalies of both domains) lie slightly above and below it. Clip-level
variation (noise level, placement, roughness, level) uses Latin hypercubes of 25 clips, for small test sets.

The level of each clip is drawn after adding the fault, independently of label, domain and attributes.

Units: s, Hz, revolutions; amplitudes relative to the RMS of the healthy machine. Source: METHOD 7, 7.1, 8.1.2
(names, csv form). Notebooks: 01_data, and the others on the demo study.
"""

from __future__ import annotations

import functools
import io
import itertools
import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import numpy as np
import soundfile
from pydantic import Field, field_validator
from scipy import fft, special
from scipy.stats import qmc

from asdlib import errors, schemas
from asdlib.data.machines import MACHINES, Take, bins, colored, constants, rms, stream, through
from asdlib.settings import Many, Settings, setting


class SyntheticSettings(Settings):
    """Synthetic machines, for studies without recordings."""

    machines: Many[str] = setting(
        ("fan", "gearbox", "valve", "slider"), "modeled machines to generate; NAME:KIND renames one"
    )
    train_source: int = setting(90, "normal training clips per machine, source domain", 0, 100000)
    train_target: int = setting(10, "normal training clips per machine, target domain", 0, 100000)
    test: int = setting(25, "test clips per machine, domain and label", 0, 100000)
    seconds: float = setting(10.0, "clip length in s", 1.0, 600.0)
    severity: Many[Annotated[float, Field(ge=0.0, le=10.0)]] = setting(
        (1.0,),
        "fault severity: 0 inaudible, 1 as hard as recorded machines, 3 obvious; several: distributed over"
        " the anomalies",
    )
    seed: int = setting(0, "random seed", 0, 2**31 - 1)

    @field_validator("machines")
    @classmethod
    def _can_be_made(cls, machines: tuple[str, ...]) -> tuple[str, ...]:
        _machines(machines)
        return machines

    @field_validator("severity")
    @classmethod
    def _some(cls, severity: tuple[float, ...]) -> tuple[float, ...]:
        if not severity:
            raise errors.InputError(
                "setting synthetic.severity: no values given, expected at least one, for example 1.0"
            )
        return severity


# RMS of a clip re full scale, drawn uniformly; at least 34 dB of headroom
LEVEL_DB = (-42.0, -34.0)
LEAD_S = 0.15  # rendered before the clip and cut off, to let rooms and resonances build up
# standard deviations at octave-spaced knots: microphone, target shift, placement
MIC_DB, TARGET_DB, PLACE_DB = (2.0, 1.0, 0.7)
TARGET_COLOR = 0.12  # additional slope, times 20 dB per decade
SNR_SPREAD_DB = 1.5  # standard deviation between clips


def _luck(seed: int, name: str, where: tuple) -> np.ndarray:
    """Uniform numbers (12,) for clip-level variation; each block of 25 clips is a Latin hypercube."""
    block, place = divmod(where[-1], 25)
    return qmc.LatinHypercube(12, rng=stream(seed, name, *where[:-1], "luck", block)).random(25)[place]


@functools.lru_cache(maxsize=4)
def _room(
    name: str, domain: str, seed: int, shift: float, samples: int, rate: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Acoustics of one machine in one domain, shared by its clips.

    returns : microphone response in dB at octave-spaced knots; room response and noise magnitude per rfft bin
    """
    own, rng, f = (
        stream(seed, name, "surroundings"),
        stream(seed, name, domain, "surroundings"),
        bins(samples, rate),
    )
    moved = shift if domain == "target" else 0.0
    knots = own.normal(0, MIC_DB, 9) + moved * rng.normal(0, TARGET_DB, 9)
    delays = own.uniform(0.003, 0.04, 8)
    echoes = (0.2 * own.standard_normal(8) + 0.1 * moved * rng.standard_normal(8)) * np.exp(-delays / 0.02)
    room = 1 + (echoes[:, None] * np.exp(-2j * np.pi * f[None] * delays[:, None])).sum(0)
    color = own.uniform(0.4, 0.5) + moved * TARGET_COLOR
    return knots, room, np.maximum(f / 40, 1.0) ** -color


def _surroundings(
    take: Take, name: str, seed: int, shift: float, placing: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Response of room and microphone, and magnitude of the background noise, per rfft bin of a clip."""
    knots, room, color = _room(name, take.domain, seed, shift, take.n, take.rate)
    microphone = np.interp(np.log2(take.f), np.arange(5, 14), knots + PLACE_DB * placing)
    return 10 ** (microphone / 20) * room, color


def render(
    kind: str,
    name: str,
    *,
    seed: int,
    where: tuple,
    domain: str,
    attributes: dict,
    severity: float | None,
    samples: int,
    rate: int,
    fault: str | None = None,
) -> np.ndarray:
    """Render one clip.

    kind, name : key of MACHINES, and machine name in the tree
    where : identifies the clip, for example ("test", "source", "anomaly", 7); the number comes last
    severity : fault severity, >= 0; None for a normal clip. fault : its name; None to draw one
    returns : float64 (samples,), RMS within LEVEL_DB of full scale.  Notebook: 01_data
    """
    model, flaw = MACHINES[kind], stream(seed, name, *where, "fault")
    drawn = str(flaw.choice(list(model.faults)))
    fault = "" if severity is None else fault or drawn
    depth = (severity or 0.0) * model.faults.get(fault, 0.0) * float(np.exp(0.2 * flaw.standard_normal()))
    rng, n = stream(seed, name, *where, "clip"), fft.next_fast_len(samples + int(LEAD_S * rate))
    luck, make = _luck(seed, name, where), stream(seed, name, "make")
    take = Take(
        n, rate, domain, attributes, constants(kind, name, seed), make, rng, flaw, fault, depth, luck[11]
    )
    healthy, added = model.sound(take)
    heard, noise = _surroundings(take, name, seed, model.shift, special.ndtri(luck[:9]))
    snr_db = model.snr_db + SNR_SPREAD_DB * special.ndtri(luck[9])
    sound = (healthy + depth * added) / rms(healthy) + 10 ** (-snr_db / 20) * colored(rng, noise, n)
    clip = through(sound, heard)[n - samples :]
    clip *= 10 ** (np.interp(luck[10], (0, 1), LEVEL_DB) / 20) / rms(clip)
    return clip * min(1.0, 0.99 / np.abs(clip).max())


def _machines(entries: tuple[str, ...]) -> dict[str, str]:
    """Machine name -> kind for entries such as "fan" or "ToyCar:gearbox".

    raises : errors.InputError for invalid entries
    """
    found = {}
    for entry in entries:
        name, _, kind = entry.partition(":")
        kind = errors.check_choice("kind of synthetic machine", kind or name, list(MACHINES))
        if not re.fullmatch("[A-Za-z0-9]+", name):
            raise errors.InputError(
                f"machine name {name!r}: expected letters and digits only, as in fan or ToyCar:gearbox"
            )
        if name in found:
            raise errors.InputError(
                f"duplicate machine name {name!r}, expected unique names; rename one of them"
            )
        found[name] = kind
    if not found:
        raise errors.InputError(f"no machines given, expected some of {', '.join(MACHINES)}")
    return found


def _plan(
    name: str, kind: str, settings: SyntheticSettings
) -> Iterator[tuple[str, tuple, dict[str, str], float | None]]:
    """(file name, where, attributes, severity or None) per clip of a machine; conditions are balanced."""
    cells = [
        ("train", "source", "normal", settings.train_source),
        ("train", "target", "normal", settings.train_target),
    ]
    cells += [
        ("test", domain, label, settings.test)
        for domain in ("source", "target")
        for label in ("normal", "anomaly")
    ]
    for split, domain, label, count in cells:
        values = MACHINES[kind].attributes.get(domain, {})
        conditions = [
            dict(zip(values, choice, strict=True)) for choice in itertools.product(*values.values())
        ]
        for index in range(count):
            turn, place = divmod(index, len(conditions))
            order = stream(settings.seed, name, split, domain, label, "conditions", turn).permutation(
                len(conditions)
            )
            attributes = conditions[order[place]]
            tail = "_".join(f"{key}_{value}" for key, value in attributes.items()) or "noAttribute"
            file_name = f"{name}/{split}/section_00_{domain}_{split}_{label}_{index:04d}_{tail}.wav"
            severity = settings.severity[index % len(settings.severity)] if label == "anomaly" else None
            yield file_name, (split, domain, label, index), attributes, severity


def _write_machine(root: Path, name: str, kind: str, settings: SyntheticSettings, rate: int) -> None:
    plan = list(_plan(name, kind, settings))
    samples = round(settings.seconds * rate)

    def write(item):
        file_name, where, attributes, severity = item
        clip = render(
            kind,
            name,
            seed=settings.seed,
            where=where,
            domain=where[1],
            attributes=attributes,
            severity=severity,
            samples=samples,
            rate=rate,
        )
        memory = io.BytesIO()  # soundfile masks the error of a full disk
        soundfile.write(memory, clip, rate, subtype="PCM_16", format="WAV")
        (root / file_name).write_bytes(memory.getvalue())

    for split in schemas.SPLITS:
        (root / name / split).mkdir(parents=True)
    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        list(pool.map(write, plan))
    keys = max(len(MACHINES[kind].attributes.get("source", {})), 1)
    header = ",".join(["file_name", *(f"d{i}{part}" for i in range(1, keys + 1) for part in "pv")])
    rows = [
        ",".join([file_name, *(itertools.chain(*attributes.items()) if attributes else ("noAttribute", ""))])
        for file_name, _, attributes, _ in plan
    ]
    (root / name / "attributes_00.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    rows = [f"{file_name},{severity:g}" for file_name, _, _, severity in plan if severity is not None]
    (root / name / "severity.csv").write_text(
        "\n".join(["file_name,severity", *rows]) + "\n", encoding="utf-8"
    )


def write_tree(out: Path, settings: SyntheticSettings, sample_rate: int = 16000) -> None:
    """Write synthetic machines as a DCASE 2024 tree, with attributes_00.csv and severity.csv per machine.

    out : new or empty folder; it is renamed into place when complete
    sample_rate : Hz; mono, 16 bit
    raises : errors.InputError for a non-empty folder, or a disk that is full or not writable
    """
    machines, out = _machines(settings.machines), Path(out).absolute()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise errors.InputError(
            f"{out}: already exists and is not an empty folder, expected a new one; remove it or choose"
            " another name"
        )
    part = out.with_name(f".{out.name}.part{os.getpid()}")
    try:
        part.mkdir(parents=True)
        for name, kind in machines.items():
            _write_machine(part, name, kind, settings, sample_rate)
        part.rename(out)
    except OSError as error:
        raise errors.InputError(
            f"{out}: cannot be written ({error.strerror or error}); free up disk space or choose a writable"
            " folder"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
