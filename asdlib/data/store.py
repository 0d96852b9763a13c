"""Resident store: all decoded clips in one int16 array, with waveforms gathered by index.

Conventions
-----------
Row i of `Store.clips` is item i of the store; supplemental clips follow, in a table of their own. Waveforms
are float32 in [-1, 1), samples / 32768. A batch is one gather on the device, without Python code per clip.

On disk a store consists of samples-<fingerprint>.i16, clips.parquet, problems.parquet, files.json and
DONE.json, which is written last and atomically. A store is valid only if DONE matches the recordings (path,
size, modification time, inode), table and settings, and the tables and sample size match DONE.
`Store.verify` checks all samples against their digests; a study does so before computing. Changed recordings
are decoded again.

Source: METHOD 3.2, 4.9, 8.2. Notebooks: 01_data, 02_preprocessing
"""

from __future__ import annotations

import dataclasses
import json
import math
import numbers
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from asdlib import errors, io, schemas
from asdlib.data import decode, index
from asdlib.data.decode import FULL_SCALE, SHORTEST_S, DataSettings, Decoded, levels, reason, sample_digest
from asdlib.settings import digest

TABLES = {
    "clips": (*schemas.CLIP_COLUMNS, "samples", "level_db", "digest"),
    "problems": index.PROBLEM_COLUMNS,
}
FILES = "files.json"  # decoding settings, and size, modification time and inode of every recording
# GPU memory reserved for training: 64 clips of 12 s in five branches in float32 take 10.5 GB of
# activations
TRAINING_BYTES = 12e9
SMALL = 0.1  # a store below this share of the free memory is always moved


@dataclass(frozen=True, eq=False)
class Store:
    """Decoded clips: tables, and all samples in one memory-mapped int16 array. Created by `open_store`."""

    clips: pd.DataFrame
    problems: pd.DataFrame
    fingerprint: str
    folder: Path
    samples: torch.Tensor  # int16 (all samples,), memory-mapped on the CPU or on the device
    offset: torch.Tensor  # int64 (clips,): first sample per clip
    count: torch.Tensor  # int64 (clips,): samples per clip
    device: torch.device
    rate: int = 16000  # Hz
    supplemental: pd.DataFrame = dataclasses.field(default_factory=pd.DataFrame)  # rows after `clips`
    _elsewhere: dict[str, Store] = dataclasses.field(default_factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        """Number of clips."""
        return len(self.clips)

    @property
    def every(self) -> pd.DataFrame:
        """`clips` followed by `supplemental`, a row per item of the store."""
        return pd.concat([self.clips, self.supplemental]) if len(self.supplemental) else self.clips

    def to(self, device: torch.device | str) -> Store:
        """Store on a device, cached per device.

        Moves the samples if that leaves enough memory for training, else each batch (with a notice).
        """
        device = torch.device(device)
        if device.type == self.device.type:  # cuda and cuda:0 are the same: a process uses one GPU
            return self
        if device.type not in self._elsewhere:
            size, free = self.samples.nbytes, _free_bytes(device)
            fits = size <= max(free - TRAINING_BYTES, SMALL * free)
            if not fits:
                print(
                    f"the recordings ({size / 1e9:.1f} GB) plus {TRAINING_BYTES / 1e9:.0f} GB for training"
                    f" do not fit in the {free / 1e9:.1f} GB free on {device}; keeping them on the"
                    f" {self.samples.device} and moving batches"
                )
            home = device if fits else self.samples.device
            moved = {name: getattr(self, name).to(home) for name in ("samples", "offset", "count")}
            self._elsewhere[device.type] = dataclasses.replace(self, device=device, **moved)
        return self._elsewhere[device.type]

    def segments(self, rows, starts, length: int, *, whole: bool | None = None) -> torch.Tensor:
        """Gather segments by index on the device; a segment that exceeds its clip wraps around to the start.

        rows, starts : int (n,) tensors, arrays or lists: row of `clips`, first sample
        whole : whether all segments lie within their clips; None checks it on a CPU only (no GPU sync)
        returns : float32 (n, length) on the store's device, in [-1, 1). Source: METHOD 3.2. Notebook:
            02_preprocessing
        """
        home = self.samples.device
        rows = torch.as_tensor(rows, dtype=torch.int64, device=home)
        starts = torch.as_tensor(starts, dtype=torch.int64, device=home)
        offset, count = self.offset[rows], self.count[rows]
        if whole is None:  # avoids a GPU synchronization
            whole = home.type == "cpu" and bool((starts + length <= count).all())
        if whole:  # rows of a sliding view: faster than an index table
            batch = self.samples.unfold(0, length, 1)[offset + starts]
        else:
            within = (starts[:, None] + torch.arange(length, device=home)) % count[:, None]
            batch = self.samples[offset[:, None] + within]
        return batch.to(self.device).to(torch.float32).mul_(1 / FULL_SCALE)

    def audio(
        self, rows, *, device: torch.device | str | None = None, length: int | None = None, start: int = 0
    ) -> torch.Tensor:
        """Whole clips, float32 (n, samples) in [-1, 1); with `length`, tiled or cropped from sample `start`.

        raises : errors.InputError for clips of different lengths without `length`. Notebook: 02_preprocessing
        """
        rows = torch.as_tensor(rows, dtype=torch.int64, device=self.samples.device)
        if length is None:
            found = self.count[rows].unique().tolist()
            if len(found) != 1:
                raise errors.InputError(
                    f"clips have {found} samples, expected equal lengths; pass length to tile or crop them"
                )
            length = int(found[0])
        batch = self.segments(rows, torch.full_like(rows, start), length)
        return batch if device is None else batch.to(device)

    def int16(self, row: int) -> np.ndarray:
        """Decoded samples of one clip, int16 (n,), on the CPU."""
        first, count = int(self.offset[row]), int(self.count[row])
        return self.samples[first : first + count].cpu().numpy()

    def verify(self) -> None:
        """Check all samples against their digests.  raises : errors.InputError for a mismatch"""
        for row, (clip, expected) in enumerate(self.every[["clip", "digest"]].to_numpy()):
            if sample_digest(self.int16(row)) != expected:
                raise errors.InputError(
                    f"{self.folder}: samples of {clip} are corrupted; delete the folder to decode again"
                )


def _free_bytes(device: torch.device) -> float:
    """Free GPU memory including torch's unused cache; infinite on other devices."""
    if device.type != "cuda":
        return math.inf
    return (
        torch.cuda.mem_get_info(device)[0]
        + torch.cuda.memory_reserved(device)
        - torch.cuda.memory_allocated(device)
    )


def find_store(
    table: pd.DataFrame, problems: pd.DataFrame, folder: str | Path, data: DataSettings
) -> Store | None:
    """Existing store of a clip table in `folder` if valid for these recordings, else None. Read-only.

    Notebook: 01_data
    """
    return _open(Path(folder), _source(table, problems, data), data.sample_rate)


def stored(folder: str | Path, rate: int) -> Store | None:
    """Store in a folder without checking its recordings; None if it is not valid."""
    return _open(Path(folder), None, rate)


def open_store(
    table: pd.DataFrame,
    problems: pd.DataFrame,
    folder: str | Path,
    data: DataSettings,
    threads: int | None = None,
) -> Store:
    """Store of a clip table in `folder`, opened if valid, else decoded. Notebook: 01_data

    threads : number of decoder threads; None for one per core
    raises : errors.InputError if no clip is usable or the folder is not writable; leaves no partial store
    """
    folder = Path(folder)
    store = find_store(table, problems, folder, data)
    if store is not None:
        return store
    source = _source(table, problems, data)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".decoding-", dir=folder) as scratch:
            _build(table, problems, folder, Path(scratch), source, data, threads)
    except OSError as error:
        raise errors.InputError(
            f"{folder}: cannot write decoded clips ({reason(error)}); free up disk space or choose another"
            " folder"
        ) from error
    store = _open(folder, source, data.sample_rate)
    if store is None:
        raise errors.InputError(
            f"{folder}: another run changed the decoded clips in the meantime; run the command again"
        )
    return store


def _none_usable(table: pd.DataFrame, problems: pd.DataFrame) -> str:
    worst = problems[problems["left_out"]].iloc[-1]
    return (
        f"none of {len(table)} clips is usable, expected at least one; the last one is {worst['path']}:"
        f" {worst['reason']}"
    )


def _build(
    table, problems, folder: Path, scratch: Path, source: str, data: DataSettings, threads: int | None
) -> None:
    files = _stats(table)
    decoder = _decoder(folder, data)
    with (scratch / "samples").open("wb") as file:
        decoded, problems = decode.inspect(
            table, problems, data, threads, lambda samples: file.write(samples.data), decoder
        )
    if decoded.empty:
        raise errors.InputError(_none_usable(table, problems))
    decoded.to_parquet(scratch / "clips.parquet")
    problems.to_parquet(scratch / "problems.parquet")
    (scratch / FILES).write_text(json.dumps([_settings(data), files]), encoding="utf-8")
    fingerprint = _fingerprint(decoded)
    names = ("clips.parquet", "problems.parquet", FILES)
    tables = {name: io.content(scratch / name) for name in names}
    done = {"source": source, "fingerprint": fingerprint, "tables": tables}
    (scratch / "DONE.json").write_text(json.dumps(done), encoding="utf-8")
    (folder / "DONE.json").unlink(missing_ok=True)
    os.replace(scratch / "samples", folder / f"samples-{fingerprint}.i16")
    for name in (*names, "DONE.json"):
        os.replace(scratch / name, folder / name)
    for old in folder.glob("samples-*.i16"):
        if old.name != f"samples-{fingerprint}.i16":
            old.unlink(missing_ok=True)


def _source(table: pd.DataFrame, problems: pd.DataFrame, data: DataSettings) -> str:
    """Digest of what determines a store: recordings (path, size, time), table, problems, settings."""
    stats = list(_stats(table).values())
    return digest(stats, _settings(data), table.to_csv(index=False), problems.to_csv(index=False))


def _stats(table: pd.DataFrame) -> dict[str, list[int]]:
    """Size, modification time and inode of each recording, by path.

    Two recordings unpacked from one archive may have equal sizes and times; the inode tells that they were
    exchanged.
    """
    stats = {}
    for path in table["path"]:
        try:
            stat = os.stat(path)
            stats[path] = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
        except OSError:  # the decoder reports a recording that vanished
            stats[path] = []
    return stats


def _settings(data: DataSettings) -> list:
    """Settings that affect decoded samples."""
    return [data.sample_rate, data.resample, data.channel, *[data.subtract] * (data.subtract >= 0)]


def _decoder(folder: Path, data: DataSettings) -> Callable[[str], Decoded]:
    """Decode function that reuses samples of the existing store.

    Samples are reused if the file's size, time and inode are unchanged, it had no problems, and the digests
    match.
    """
    rows: dict[str, int] = {}
    try:
        settings, files = json.loads((folder / FILES).read_text(encoding="utf-8"))
        old = stored(folder, data.sample_rate) if settings == _settings(data) else None
        if old is not None:
            same = _stats(old.every)
            plain = ~old.every["path"].isin(old.problems["path"]).to_numpy()
            rows = {path: row for row, path in enumerate(old.every["path"]) if same[path] == files.get(path)}
            rows = {path: row for path, row in rows.items() if plain[row]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # decode everything

    def decoder(path: str) -> Decoded:
        if (row := rows.get(path)) is not None:
            facts, samples = old.every.iloc[row], old.int16(row)
            if sample_digest(samples) == facts["digest"]:
                return Decoded(samples, level_db=float(facts["level_db"]), digest=facts["digest"])
        return decode.decode(path, data)

    return decoder


def _fingerprint(decoded: pd.DataFrame) -> str:
    """Content digest: clips with the digests of their samples, independent of file locations."""
    return digest(decoded.drop(columns="path").to_csv(index=False))


def _open(folder: Path, source: str | None, rate: int) -> Store | None:
    """Store in a folder, or None if it is of other recordings (source None: any), damaged or missing."""
    try:
        done = json.loads((folder / "DONE.json").read_text(encoding="utf-8"))
        if source not in (None, done["source"]):
            return None
        if any(io.content(folder / name) != found for name, found in done["tables"].items()):
            return None
        table, problems = (io.table(folder / f"{name}.parquet", columns) for name, columns in TABLES.items())
        samples = folder / f"samples-{done['fingerprint']}.i16"
        if _fingerprint(table) != done["fingerprint"] or samples.stat().st_size != 2 * int(
            table["samples"].sum()
        ):
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    # copy-on-write avoids torch's warning about read-only memory
    mapped = torch.from_numpy(np.memmap(samples, dtype=np.int16, mode="c"))
    count = torch.tensor(table["samples"].to_numpy(), dtype=torch.int64)
    beside = table["split"] == schemas.SUPPLEMENTAL  # supplemental rows come last
    return Store(
        table[~beside].drop(columns="content", errors="ignore"),
        problems,
        done["fingerprint"],
        folder,
        mapped,
        torch.cumsum(count, 0) - count,
        count,
        mapped.device,
        rate,
        table[beside],
    )


def in_memory(
    table: pd.DataFrame, samples: Sequence[np.ndarray], rate: int, problems: pd.DataFrame | None = None
) -> Store:
    """Store of decoded clips without a folder, as used by `asd score`.

    table : clip table.  samples : int16 (n,) per clip.  rate : Hz.  problems : problems of the recordings
    """
    count = torch.tensor([len(part) for part in samples], dtype=torch.int64)
    joined = torch.from_numpy(np.concatenate(samples))
    table, offset = table.assign(samples=count.numpy()), torch.cumsum(count, 0) - count
    problems = index.problem_table([]) if problems is None else problems
    return Store(table, problems, "", Path(), joined, offset, count, joined.device, rate)


@dataclass(frozen=True, eq=False)
class Clips:
    """Selection of clips of a store, to fit a detector, embed and score.

    Parameters
    ----------
    store : decoded recordings and their clip table
    rows : int (n,), store rows; order is preserved

    Raises
    ------
    errors.InputError for rows that are no integers or not in the store
    """

    store: Store
    rows: np.ndarray

    def __post_init__(self) -> None:
        """Check the rows."""
        rows = np.asarray(self.rows)
        rows = rows.astype(np.int64) if not rows.size else rows
        if rows.ndim != 1 or rows.dtype.kind not in "iu":
            raise errors.InputError(
                f"rows: got {rows.dtype} of shape {rows.shape}, expected store rows, integers (n,); for a"
                " boolean mask use where"
            )
        if rows.size and not 0 <= rows.min() <= rows.max() < len(self.store):
            raise errors.InputError(
                f"rows: got {rows.min()} to {rows.max()}, expected 0 to {len(self.store) - 1}"
            )
        object.__setattr__(self, "rows", rows)

    def __len__(self) -> int:
        """Number of selected clips."""
        return len(self.rows)

    def __repr__(self) -> str:
        """Number of clips, machines and sample rate."""
        return (
            f"Clips({len(self)} clips of {', '.join(self.machines) or 'no machine'} at {self.store.rate} Hz)"
        )

    @property
    def table(self) -> pd.DataFrame:
        """Clip table, a row per clip."""
        return self.store.clips.iloc[self.rows]

    @property
    def problems(self) -> pd.DataFrame:
        """Problems of the store's recordings: path, reason, left_out."""
        return self.store.problems

    @property
    def machines(self) -> list[str]:
        """Machines of these clips, sorted."""
        return sorted(self.table["machine"].unique())

    def where(self, mask) -> Clips:
        """Clips selected by a boolean mask (n,).  raises : errors.InputError for another shape or type"""
        mask = np.asarray(mask)
        zeros_and_ones = mask.dtype.kind in "iuf" and np.isin(mask, (0, 1)).all()
        if mask.shape != (len(self),) or not (mask.dtype == bool or zeros_and_ones):
            raise errors.InputError(
                f"where: got {mask.dtype} of shape {mask.shape}, expected a boolean mask of {len(self)} clips"
            )
        return Clips(self.store, self.rows[mask.astype(bool)])

    def train(self, machine: str = "", *, without: str = "") -> Clips:
        """Normal training clips of one machine ("": all), or of all machines but one.

        Raises
        ------
        errors.InputError for an unknown machine
        """
        own = self._of(machine, without)
        return own.where((own.table["split"] == "train") & (own.table["label"] == "normal"))

    def test(self, machine: str = "") -> Clips:
        """Test clips of one machine ("": all).  raises : errors.InputError for an unknown machine"""
        own = self._of(machine)
        return own.where(own.table["split"] == "test")

    def _of(self, machine: str, without: str = "") -> Clips:
        for name in (machine, without):
            if name:
                errors.check_choice("machine", name, self.machines)
        keep = np.ones(len(self), bool)
        if machine:
            keep &= (self.table["machine"] == machine).to_numpy()
        if without:
            keep &= (self.table["machine"] != without).to_numpy()
        return self.where(keep)


def load_dcase(
    roots: str | Path | Sequence[str | Path],
    machines: Sequence[str] = (),
    *,
    sample_rate: int = 16000,
    resample: bool = False,
    channel: int = 0,
    subtract: int = -1,
    cache: str | Path | None = None,
) -> Clips:
    """Load and decode recordings in the layout of DCASE Task 2 (2020 on).

    Parameters
    ----------
    roots : folder or folders that contain <machine>/train and <machine>/test at any depth
    machines : names to keep; empty for all
    sample_rate : Hz
    resample : resample other rates; otherwise such clips are left out
    channel : channel of multi-channel recordings
    subtract : channel of the far microphone, see `decode.subtracted`; -1 for none
    cache : folder for a memory-mapped store, reused by later calls; None keeps samples in memory

    Returns
    -------
    Clips; `Clips.problems` lists anomalies of the files and clips left out, with reasons

    Raises
    ------
    errors.InputError if no clip is usable
    """
    data = DataSettings(sample_rate=sample_rate, resample=resample, channel=channel, subtract=subtract)
    table, problems = index.index([roots] if isinstance(roots, (str, Path)) else list(roots), list(machines))
    if cache is not None:
        store = open_store(table, problems, cache, data)
    else:
        samples: list[np.ndarray] = []
        decoded, problems = decode.inspect(table, problems, data, keep=samples.append)
        if decoded.empty:
            raise errors.InputError(_none_usable(table, problems))
        store = in_memory(decoded, samples, sample_rate, problems)
    return Clips(store, np.arange(len(store)))


def from_arrays(
    waves: Sequence[np.ndarray],
    table: pd.DataFrame | None = None,
    *,
    sample_rate: int = 16000,
    channel: int = 0,
) -> Clips:
    """Clips from waveform arrays.

    Parameters
    ----------
    waves : one per clip, (samples,) or (channels, samples); int16, or float in [-1, 1] (stored as 16 bits)
    table : a row per wave, with any of clip, machine, section, split, domain, label and attr_<key>; defaults:
        machine "machine", section "00", split "train", domain "source", label "normal" for training and
        "unlabeled" for test clips
    sample_rate : Hz
    channel : channel of multi-channel waves

    Raises
    ------
    errors.InputError for no waves, wrong shapes or lengths, or non-finite or out-of-range values
    """
    try:
        waves = list(waves)
    except TypeError as error:
        raise errors.InputError(f"waves: got {type(waves).__name__}, expected one array per clip") from error
    if not isinstance(channel, numbers.Integral):
        raise errors.InputError(f"channel: got {channel!r}, expected an integer")
    if not (isinstance(sample_rate, numbers.Real) and 1000 <= sample_rate <= 192000 and sample_rate % 1 == 0):
        raise errors.InputError(f"sample_rate: got {sample_rate!r}, expected whole Hz from 1000 to 192000")
    if table is None:
        table = pd.DataFrame(index=range(len(waves)))
    if (
        not isinstance(table, pd.DataFrame)
        or not table.columns.is_unique
        or not all(isinstance(name, str) for name in table.columns)
    ):
        raise errors.InputError(
            f"table: got {type(table).__name__}, expected a DataFrame with unique column names and"
            " a row per waveform"
        )
    given = table.reset_index(drop=True)
    given = given.astype(dict.fromkeys(given.select_dtypes("category"), "str"))
    if not len(waves) or len(given) != len(waves):
        raise errors.InputError(
            f"got {len(waves)} waveforms and a table of {len(given)} rows, expected one row per waveform and"
            " at least one"
        )
    samples = [_as_int16(wave, f"waveform {i}", sample_rate, channel) for i, wave in enumerate(waves)]
    default = {"machine": "machine", "section": "00", "split": "train", "domain": "source"}
    full = given.assign(**{name: value for name, value in default.items() if name not in given})
    if "label" not in full:
        full = full.assign(label=np.where(full["split"] == "train", "normal", "unlabeled"))
    if "clip" not in full:
        full = full.assign(
            clip=[f"{row.machine}/{row.split}/{i:06d}" for i, row in enumerate(full.itertuples())]
        )
    if "path" not in full:
        full = full.assign(path=full["clip"])
    facts = {
        "seconds": [len(part) / sample_rate for part in samples],
        "level_db": [levels(part)[0] for part in samples],
    }
    full = full.assign(**facts, digest=[sample_digest(part) for part in samples])
    attributes = [name for name in full.columns if name.startswith("attr_")]
    schemas.texts(full, attributes, 'clip table (attributes are texts, "" if unknown)')
    store = in_memory(schemas.clip_table(full), samples, sample_rate)
    return Clips(store, np.arange(len(store)))


def _as_int16(wave: np.ndarray, name: str, rate: int, channel: int) -> np.ndarray:
    try:
        x = np.asarray(wave)
    except (TypeError, ValueError, RuntimeError) as error:
        raise errors.InputError(f"{name}: not an array of numbers ({error}); convert it to numpy") from error
    if x.ndim == 2 and x.shape[0] <= 64:
        if not 0 <= channel < x.shape[0]:
            raise errors.InputError(f"{name}: got channel {channel}, expected 0 to {x.shape[0] - 1}")
        x = x[channel]
    if x.ndim != 1:
        what = "; did you give (samples, channels)?" if x.ndim == 2 else ""
        raise errors.InputError(
            f"{name}: shape {np.shape(wave)}, expected (samples,) or (channels, samples){what}"
        )
    if len(x) < SHORTEST_S * rate:
        raise errors.InputError(
            f"{name}: {len(x)} samples, expected at least {SHORTEST_S:g} s ({math.ceil(SHORTEST_S * rate)}"
            " samples)"
        )
    if x.dtype.newbyteorder("=") == np.int16:
        return np.ascontiguousarray(x, np.int16)
    if x.dtype.kind != "f":
        raise errors.InputError(f"{name}: {x.dtype} array, expected int16, or floats in [-1, 1]")
    x = x.astype(np.float64) if x.dtype.itemsize < 4 else x  # 32767 is no float16
    if np.ma.is_masked(wave) or not np.isfinite(x).all():
        raise errors.InputError(f"{name}: masked, NaN or infinite values, expected finite floats in [-1, 1]")
    if np.abs(x).max(initial=0) > 1:
        raise errors.InputError(
            f"{name}: values up to {np.abs(x).max():g}, expected floats in [-1, 1]; did you mean int16?"
        )
    return np.clip(np.rint(x * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)


def segment_starts(n_samples: int, n_segments: int = 8, length: int = 32000) -> np.ndarray:
    """First samples of equally spaced segments, the last flush right; all 0 for clips that must be tiled.

    returns : int64 (n_segments,), hop = (n_samples - length) // (n_segments - 1). Source: METHOD 3.2, 4.9
    """
    starts = np.zeros(n_segments, dtype=np.int64)
    if n_samples > length and n_segments > 1:
        starts[:] = np.arange(n_segments) * ((n_samples - length) // (n_segments - 1))
        starts[-1] = n_samples - length
    return starts


def standardize(
    waves: torch.Tensor, mean: float | torch.Tensor | None = None, std: float | torch.Tensor | None = None
) -> torch.Tensor:
    """Standardize waveforms to mean 0 and variance 1, per row or by given statistics (METHOD 3.2, wave_norm).

    waves : float32 (n, samples); mean, std : a number, or (n,) per row; both or neither
    returns : float32 (n, samples); silent rows become zeros. Notebook: 02_preprocessing
    raises : errors.InputError for a wrong shape, or only one of mean and std
    """
    schemas.waves(waves)
    if (mean is None) != (std is None):
        raise errors.InputError("standardize: got only one of mean and std, expected both or neither")
    if mean is None:
        std, mean = torch.std_mean(waves, dim=1, correction=0)
    mean, std = (
        torch.as_tensor(value, dtype=waves.dtype, device=waves.device).reshape(-1, 1) for value in (mean, std)
    )
    return (waves - mean) / std.clamp_min(1e-6)  # 1/30 of the least significant bit


def machine_statistics(store: Store, rows: Sequence[int]) -> tuple[float, float]:
    """Mean and std over all samples of the given clips (training clips of a machine), in waveform units.

    Exact integer sums per clip. Source: METHOD 3.2, wave_norm = machine. Notebook: 02_preprocessing
    raises : errors.InputError without clips
    """
    total = squares = number = 0
    for row in rows:
        # float64 sums are exact for clips up to 2^23 samples
        samples = store.int16(int(row)).astype(np.float64)
        total += int(samples.sum())
        squares += int(samples @ samples)
        number += len(samples)
    if not number:
        raise errors.InputError(
            "machine_statistics: no clips given, expected the rows of a machine's training clips"
        )
    return total / number / FULL_SCALE, math.sqrt(squares * number - total * total) / number / FULL_SCALE


# waveform samples per feature batch: 6 MB, ten clips of 10 s, about 50 MB of spectra
BATCH_SAMPLES = 1_600_000


def frames_of(
    store: Store, device: torch.device, rows: np.ndarray, feature: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[torch.Tensor, list[int]]:
    """Frame-major feature of clips of any lengths, concatenated.

    feature : waveforms (n, samples) → (n, frames, bands)
    returns : float32 (frames of all clips, bands) on the device, and the number of frames per clip
    """
    if len(rows) == 1:
        made = feature(store.audio(rows, device=device))[0]
        return made, [len(made)]
    samples = store.clips["samples"].to_numpy()[rows]
    sizes, which = np.unique(samples, return_inverse=True)
    shapes = [feature(torch.zeros(1, int(size), device=device)).shape[1:] for size in sizes]
    lengths = np.array([shape[0] for shape in shapes])[which]
    ends = np.cumsum(lengths)
    # filled in place to avoid a second copy
    out = torch.empty(int(ends[-1]), shapes[0][1], device=device)
    for number, size in enumerate(sizes):
        where = np.flatnonzero(which == number)
        for part in np.array_split(where, math.ceil(len(where) * int(size) / BATCH_SAMPLES)):
            for clip, made in zip(part, feature(store.audio(rows[part], device=device))):
                out[ends[clip] - lengths[clip] : ends[clip]] = made
    return out, lengths.tolist()


def machine_rows(clips: pd.DataFrame, machine: str, split: str) -> np.ndarray:
    """Store rows of a machine's training (normal only) or test clips.

    returns : int (clips,), ascending
    """
    keep = (clips["machine"] == machine) & (clips["split"] == split)
    if split == "train":
        keep &= clips["label"] == "normal"
    return np.flatnonzero(keep)


def training_rows(clips: pd.DataFrame, machine: str) -> np.ndarray:
    """Store rows of a machine's normal training clips.

    returns : int (clips,), ascending
    raises : errors.InputError for a machine without any, or with test clips of a section without any if its
        other sections are scored separately (`schemas.by_references`)
    """
    rows = machine_rows(clips, machine, "train")
    if len(rows) == 0:
        raise errors.InputError(
            f"machine {machine} has no usable training clips; add recordings or exclude it with --machines"
        )
    own = clips[clips["machine"] == machine]
    sections = own["section"].iloc[np.isin(np.flatnonzero(clips["machine"] == machine), rows)]
    bare = sorted(set(own["section"][own["split"] == "test"]) - set(sections))
    if bare and (schemas.by_references(own)["machine"] != machine).any():
        raise errors.InputError(
            f"machine {machine} has test clips of section {', '.join(bare)}, but training clips only of"
            f" sections {', '.join(sorted(set(sections)))}, which are scored separately; add training clips"
            " of that section or leave its test clips out"
        )
    return rows


def training_clips(store: Store, machines: Sequence[str]) -> tuple[Clips, Clips]:
    """Normal training clips of some machines, and of all other machines of the store.

    raises : errors.InputError for a machine without training clips
    """
    own = np.concatenate([training_rows(store.clips, machine) for machine in machines])
    normal = (store.clips["split"] == "train") & (store.clips["label"] == "normal")
    return Clips(store, own), Clips(store, np.flatnonzero(normal & ~store.clips["machine"].isin(machines)))


def reference_groups(
    clips: pd.DataFrame, train_rows: np.ndarray
) -> tuple[np.ndarray, Callable[[pd.DataFrame], np.ndarray]]:
    """Reference group of clips: the machine, or the section (`schemas.by_references`).

    clips : clip table of the training clips' store.  train_rows : int (n,)
    returns : group of each training clip, str (n,), and a function from a clip table to its groups
    """
    train = schemas.by_references(clips)["machine"].to_numpy()[train_rows]
    machine = clips["machine"].to_numpy()[train_rows]
    apart, groups = set(machine[train != machine]), set(train)  # a machine may be named as another's section

    def of(table: pd.DataFrame) -> np.ndarray:
        sections = (table["machine"] + "_" + table["section"]).to_numpy()
        own = table["machine"].isin(apart).to_numpy() & np.isin(sections, list(groups))
        return np.where(own, sections, table["machine"].to_numpy())

    return train, of
