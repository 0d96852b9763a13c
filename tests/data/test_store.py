"""audio: the store on disk (whole, torn, stale, refused), gathers, segments, standardization."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

from asdlib import errors
from asdlib.data import decode as data_decode
from asdlib.data import index
from asdlib.data import store as stores
from asdlib.data.decode import DataSettings

RATE = 16000
LENGTHS = (16000, 16000, 12345, 2500)  # two equal, one shorter, one shorter than any segment


@pytest.fixture
def tree(tmp_path) -> tuple[pd.DataFrame, pd.DataFrame, list[np.ndarray]]:
    """Index of four training clips and the samples that they were written from."""
    rng = np.random.default_rng(0)
    truth = [rng.integers(-3000, 3000, length, dtype=np.int16) for length in LENGTHS]
    folder = tmp_path / "data/fan/train"
    folder.mkdir(parents=True)
    for number, samples in enumerate(truth):
        soundfile.write(
            folder / f"section_00_source_train_normal_{number:04d}_vel_{number}.wav", samples, RATE
        )
    return *index.index([tmp_path / "data"]), truth


def opened(tree, tmp_path, data: DataSettings | None = None) -> stores.Store:
    return stores.open_store(tree[0], tree[1], tmp_path / "store", data or DataSettings(), threads=2)


def test_store_holds_what_was_recorded(tree, tmp_path):
    store = opened(tree, tmp_path)
    for row, samples in enumerate(tree[2]):
        np.testing.assert_array_equal(store.int16(row), samples)
    assert store.clips["samples"].tolist() == list(LENGTHS) and len(store) == 4
    assert store.clips["attr_vel"].tolist() == ["0", "1", "2", "3"]
    assert store.problems.empty
    store.verify()


def test_segments_equal_slices_and_tile_short_clips(tree, tmp_path):
    store = opened(tree, tmp_path)
    rng = np.random.default_rng(1)
    for rows, length in (
        (rng.integers(0, 2, 50), 4000),
        (rng.integers(0, 4, 50), 5000),
        (np.array([3]), 32000),
    ):
        counts = np.array(LENGTHS)[rows]
        starts = rng.integers(0, np.maximum(counts - (length if counts.min() > length else 0), 1))
        found = store.segments(torch.from_numpy(rows), torch.from_numpy(starts), length)
        assert found.dtype == torch.float32 and found.shape == (len(rows), length)
        for got, row, start in zip(found.numpy(), rows, starts, strict=True):
            expected = (
                np.take(tree[2][row], np.arange(start, start + length), mode="wrap").astype(np.float32)
                / 32768
            )
            np.testing.assert_array_equal(got, expected)


def test_the_last_segment_of_the_last_clip_is_within_the_store(tree, tmp_path):
    store = opened(tree, tmp_path)
    np.testing.assert_array_equal(store.segments([3], [0], 2500).numpy()[0] * 32768, tree[2][3])
    with pytest.raises(IndexError):
        store.segments([4], [0], 10)


def test_whole_clips(tree, tmp_path):
    store = opened(tree, tmp_path)
    np.testing.assert_array_equal(store.audio([1, 0]).numpy() * 32768, np.stack([tree[2][1], tree[2][0]]))
    tiled = store.audio(np.array([3, 2]), length=1500, start=100, device="cpu").numpy() * 32768
    np.testing.assert_array_equal(tiled[0], np.resize(tree[2][3], 1600)[100:])
    np.testing.assert_array_equal(tiled[1], tree[2][2][100:1600])
    with pytest.raises(
        errors.InputError, match="clips have \\[12345, 16000\\] samples, expected equal lengths; pass length"
    ):
        store.audio([0, 2])


def test_samples_are_mapped_and_the_file_is_never_written(tree, tmp_path):
    store = opened(tree, tmp_path)
    path = next((tmp_path / "store").glob("samples-*.i16"))
    before = path.read_bytes()
    assert len(before) == 2 * sum(LENGTHS) and str(path) in Path("/proc/self/maps").read_text()
    store.samples[:100] = 7  # copy-on-write: ours alone
    assert path.read_bytes() == before


def test_exchanged_recordings_of_one_size_and_time_are_decoded_again(tmp_path):
    rng, root = np.random.default_rng(0), tmp_path / "raw"
    (root / "pump" / "train").mkdir(parents=True)
    one, other = (root / f"pump/train/section_00_source_train_normal_000{i}_noAttribute.wav" for i in (0, 1))
    for path in (one, other):
        soundfile.write(path, rng.integers(-9, 9, RATE).astype(np.int16), RATE)
        os.utime(path, (1, 1))  # as unpacked from an archive
    first = stores.open_store(*index.index([root]), tmp_path / "store", DataSettings())
    before = [first.int16(row).copy() for row in (0, 1)]
    one.rename(root / "aside")
    other.rename(one)
    (root / "aside").rename(other)
    again = stores.open_store(*index.index([root]), tmp_path / "store", DataSettings())
    np.testing.assert_array_equal([again.int16(row) for row in (1, 0)], before)


def test_reopened_without_decoding_and_rebuilt_when_anything_changed(tree, tmp_path, monkeypatch):
    first = opened(tree, tmp_path)
    calls = []
    decode = data_decode.inspect
    monkeypatch.setattr(data_decode, "inspect", lambda *a, **k: calls.append(1) or decode(*a, **k))
    second = opened(tree, tmp_path)
    assert not calls and second.fingerprint == first.fingerprint
    pd.testing.assert_frame_equal(second.clips, first.clips)
    pd.testing.assert_frame_equal(second.problems, first.problems)
    path, one, decoded = Path(tree[0]["path"][0]), data_decode.decode, []
    monkeypatch.setattr(data_decode, "decode", lambda path, data: decoded.append(path) or one(path, data))
    odd = set(first.problems["path"]) & set(tree[0]["path"])  # what is said of these comes from decoding
    os.utime(path, (1, 1))  # touched only: it alone is decoded again, to the same content
    assert opened(tree, tmp_path).fingerprint == first.fingerprint and len(calls) == 1
    assert set(decoded) == {str(path)} | odd != set(tree[0]["path"])
    soundfile.write(path, tree[2][0][::-1], RATE)
    third = opened(tree, tmp_path)
    assert decoded.count(str(path)) == 2
    third.verify()
    assert stores.stored(tmp_path / "store", RATE).fingerprint == third.fingerprint
    os.utime(path, (1, 1))
    assert stores.stored(tmp_path / "store", RATE).fingerprint == third.fingerprint  # it does not look
    assert stores.stored(tmp_path, RATE) is None
    assert len(calls) == 2 and third.fingerprint != first.fingerprint
    np.testing.assert_array_equal(first.int16(0), tree[2][0])  # an open store keeps what it mapped
    assert len(list((tmp_path / "store").glob("samples-*.i16"))) == 1
    opened(tree, tmp_path, DataSettings(resample=True))
    stores.open_store(tree[0].assign(attr_vel="x"), tree[1], tmp_path / "store", DataSettings())
    assert len(calls) == 4


def free(monkeypatch, size):
    monkeypatch.setattr(stores, "_free_bytes", lambda device: size)


@pytest.mark.parametrize(
    "beyond, left, fits", [(1, 0, True), (-1, 0, False), (None, 10, True), (None, 9, False)]
)
def test_a_store_that_leaves_no_room_to_train_stays_where_it_is_and_says_so(
    tree, tmp_path, monkeypatch, capsys, beyond, left, fits
):
    store = opened(tree, tmp_path)
    size = store.samples.nbytes
    free(monkeypatch, left * size if beyond is None else size + stores.TRAINING_BYTES + beyond)
    monkeypatch.setattr(stores, "SMALL", 0.1 if beyond is None else 0.0)
    moved = store.to("meta")  # a device that keeps shapes only: what reaches it can be seen
    said = capsys.readouterr().out
    assert (
        moved.samples.device.type == moved.offset.device.type == ("meta" if fits else "cpu")
        and moved.device.type == "meta"
    )
    expected = "free on meta; keeping them on the cpu and moving batches"
    assert (
        not said
        if fits
        else said.startswith("the recordings (0.0 GB) plus 12 GB for training do not fit in the ")
        and expected in said
    )
    assert (
        fits or moved.segments([0, 1], [0, 5], 100).device.type == moved.audio([0, 1]).device.type == "meta"
    )


def test_who_asks_for_a_store_on_a_device_gets_the_one_that_is_there(tree, tmp_path, monkeypatch, capsys):
    store = opened(tree, tmp_path)
    assert store.to("cpu") is store
    free(monkeypatch, 0.0)
    moved = store.to("meta")
    assert store.to(torch.device("meta", 0)) is moved and moved.to("meta") is moved
    assert capsys.readouterr().out.count("keeping them on the cpu") == 1


def test_what_torch_holds_and_does_not_use_is_free(monkeypatch):
    for name, size in {"mem_get_info": (3, 16), "memory_reserved": 10, "memory_allocated": 6}.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, size=size: size)
    assert stores._free_bytes(torch.device("cuda")) == 7 and stores._free_bytes(torch.device("cpu")) == float(
        "inf"
    )


HARM = (
    "shorter",
    "longer",
    "no samples",
    "no table",
    "torn table",
    "torn mark",
    "empty mark",
    "other table",
    "no mark",
)


@pytest.mark.parametrize("harm", HARM)
def test_a_torn_store_is_never_taken_for_whole(tree, tmp_path, harm):
    first = opened(tree, tmp_path)
    folder = tmp_path / "store"
    samples, table, done = (
        folder / f"samples-{first.fingerprint}.i16",
        folder / "clips.parquet",
        folder / "DONE.json",
    )
    if harm in ("shorter", "torn table", "torn mark"):
        path = {"shorter": samples, "torn table": table, "torn mark": done}[harm]
        path.write_bytes(path.read_bytes()[:-10])
    elif harm == "longer":
        samples.write_bytes(samples.read_bytes() + b"\0\0")
    elif harm == "empty mark":
        done.write_text(json.dumps([]))
    elif harm == "other table":
        first.clips.iloc[::-1].to_parquet(table)
    else:
        {"no samples": samples, "no table": table, "no mark": done}[harm].unlink()
    again = opened(tree, tmp_path)
    assert again.fingerprint == first.fingerprint
    again.verify()


def test_damaged_samples_are_found_by_verify(tree, tmp_path):
    store = opened(tree, tmp_path)
    with next((tmp_path / "store").glob("samples-*.i16")).open("r+b") as file:
        file.seek(40000)
        file.write(b"\x55\xaa")
    with pytest.raises(
        errors.InputError,
        match=r"samples of fan/train/section_00_source_train_normal_0001_vel_1.wav are corrupted; delete",
    ):
        opened(tree, tmp_path).verify()
    assert len(store) == 4


def test_bad_clips_are_left_out_and_told(tree, tmp_path):
    Path(tree[0]["path"][1]).write_bytes(b"")
    store = opened(tree, tmp_path)
    assert len(store) == 3 and store.problems["left_out"].tolist() == [True]
    np.testing.assert_array_equal(store.int16(1), tree[2][2])
    for path in tree[0]["path"]:
        Path(path).write_bytes(b"")
    with pytest.raises(
        errors.InputError,
        match=r"none of 4 clips is usable, expected at least one; the last one is .*empty file",
    ):
        opened(tree, tmp_path)
    assert not list((tmp_path / "store").glob(".decoding*"))


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tree, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (20000, hard)
    )  # no file may grow beyond 20 kB, as on a full disk
    try:
        with pytest.raises(
            errors.InputError,
            match=r"store: cannot write decoded clips .*; free up disk space or choose another folder",
        ):
            opened(tree, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "store").iterdir()) == []
    assert len(opened(tree, tmp_path)) == 4


def test_a_folder_that_cannot_be_made_is_refused(tree, tmp_path):
    (tmp_path / "store").write_text("a file stands here")
    with pytest.raises(
        errors.InputError,
        match=r"store: cannot write decoded clips .File exists.; free up disk space or choose another folder",
    ):
        opened(tree, tmp_path)


def test_segment_starts():
    assert stores.segment_starts(160000).tolist() == [0, 18285, 36570, 54855, 73140, 91425, 109710, 128000]
    twelve = stores.segment_starts(192000)
    assert twelve[1] == 22857 and twelve[-1] == 160000
    assert stores.segment_starts(96000)[1] == 9142
    assert stores.segment_starts(32000).tolist() == stores.segment_starts(500).tolist() == [0] * 8
    assert stores.segment_starts(50000, 1).tolist() == [0]


def test_standardize():
    generator = torch.Generator().manual_seed(0)
    waves = torch.randn(4, 5000, generator=generator) * 0.01 + 0.3
    waves[2] = 0
    found = stores.standardize(waves)
    for row in (0, 1, 3):
        assert found[row].mean().abs() < 1e-4
        assert found[row].var(correction=0) == pytest.approx(1, abs=1e-4)
    assert torch.equal(found[2], torch.zeros(5000))
    torch.testing.assert_close(stores.standardize(waves, 0.3, 0.01), (waves - 0.3) / 0.01)
    per_row = stores.standardize(waves, torch.arange(4.0), torch.ones(4))
    torch.testing.assert_close(per_row[3], waves[3] - 3)
    with pytest.raises(errors.InputError, match="got only one of mean and std, expected both or neither"):
        stores.standardize(waves, mean=0.1)
    with pytest.raises(errors.InputError, match=r"expected \(n, samples\)"):
        stores.standardize(waves[0])


def test_machine_statistics_are_exact(tree, tmp_path):
    store = opened(tree, tmp_path)
    together = np.concatenate([tree[2][0], tree[2][2], tree[2][3]]).astype(np.float64) / 32768
    mean, std = stores.machine_statistics(store, [0, 2, 3])
    assert mean == pytest.approx(together.mean(), rel=1e-12) and std == pytest.approx(
        together.std(), rel=1e-12
    )
    waves = stores.standardize(store.audio([0, 1]), *stores.machine_statistics(store, [0, 1]))
    assert waves.mean().abs() < 1e-5 and waves.var(correction=0) == pytest.approx(1, abs=1e-5)
    with pytest.raises(errors.InputError, match="no clips given"):
        stores.machine_statistics(store, [])


@pytest.mark.gpu
@pytest.mark.parametrize("room", [1e12, 0.0])
def test_on_a_gpu(tree, tmp_path, monkeypatch, room):
    store = opened(tree, tmp_path)
    free(monkeypatch, room)  # 0: the samples do not fit, batches move instead
    moved = store.to("cuda")
    assert moved.samples.is_cuda == (room > 0)
    for starts, length in (([0, 100, 7], 5000), ([5, 5, 600], 30000)):
        found = moved.segments([0, 1, 3] if length > 5000 else [0, 1, 2], starts, length)
        assert found.is_cuda
        torch.testing.assert_close(
            found.cpu(), store.segments([0, 1, 3] if length > 5000 else [0, 1, 2], starts, length)
        )
    np.testing.assert_array_equal(moved.int16(2), tree[2][2])
