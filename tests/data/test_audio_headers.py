"""audio_headers: what a header names against what the file holds, for every container and every kind of
disagreement.
"""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asdlib.data import audio_headers, decode, importer
from asdlib.data.decode import DataSettings

RATE = 16000
SOUND = np.random.default_rng(0).normal(0, 3000, RATE).astype(np.int16)
BYTES = 2 * len(SOUND)
# container: a word before the size of its audio, bytes from there to the size, its struct format, what it
# counts beside the audio
SIZES = {
    "WAV": (b"data", 4, "<I", 0),
    "WAVEX": (b"data", 4, "<I", 0),
    "RIFX": (b"data", 4, ">I", 0),
    "RF64": (b"ds64", 16, "<Q", 0),
    "BW64": (b"ds64", 16, "<Q", 0),
    "W64": (b"data\xf3", 16, "<Q", 24),
    "AIFF": (b"SSND", 4, ">I", 8),
    "SVX": (b"BODY", 4, ">I", 0),
    "CAF": (b"data", 4, ">q", 4),
    "AU": (b".snd", 8, ">I", 0),
    "AUL": (b"dns.", 8, "<I", 0),
}
PIPES = (0, 0x7F000000, 0x7FFFF000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF - 100, 0xFFFFFFFF)
OPEN = "the header does not state the length, read to the end of the file"


def whole(name: str, subtype: str = "PCM_16") -> bytes:
    """A second of noise in a container."""
    known, endian = {"RIFX": ("WAV", "BIG"), "AUL": ("AU", "LITTLE"), "BW64": ("RF64", "FILE")}.get(
        name, (name, "FILE")
    )
    out = io.BytesIO()
    soundfile.write(out, SOUND, RATE, format=known, subtype=subtype, endian=endian)
    return b"BW64" + out.getvalue()[4:] if name == "BW64" else out.getvalue()


def naming(name: str, size: int, raw: bytes | None = None) -> bytes:
    """A container whose header names `size` bytes, whatever it holds."""
    raw = bytearray(raw or whole(name))
    word, skip, kind, _ = SIZES[name]
    struct.pack_into(kind, raw, raw.index(word) + skip, size)
    return bytes(raw)


def heard(path: Path, raw: bytes) -> tuple[np.ndarray, str]:
    path.write_bytes(raw)
    with audio_headers.opened(path) as (file, remark):
        assert file.samplerate == RATE and file.channels == 1
        return file.read(file.frames, dtype="int16"), remark


@pytest.mark.parametrize("name", [*SIZES, "NIST", "FLAC", "AVR"])
def test_a_whole_file_is_read_without_a_word(tmp_path, name):
    samples, remark = heard(tmp_path / "x", whole(name))
    assert np.array_equal(samples, SOUND) and remark == ""


@pytest.mark.parametrize("name", SIZES)
def test_an_open_length_is_read_to_the_end_to_the_bit(tmp_path, name):
    _, _, kind, more = SIZES[name]
    wide = {"<Q": [2**63 - 1, 2**64 - 1], ">q": [-1, 2**63 - 1]}.get(kind, [])
    for size in (*PIPES, more, *wide):
        samples, remark = heard(tmp_path / "x", naming(name, size))
        assert np.array_equal(samples, SOUND) and remark == OPEN, hex(size)


@pytest.mark.parametrize("name", [*SIZES, "NIST"])
def test_a_torn_file_is_refused_with_both_numbers(tmp_path, name):
    raw = whole(name)
    path = tmp_path / "x.wav"
    path.write_bytes(raw[: len(raw) - 20001])
    refused = decode.decode(path, DataSettings()).refused
    assert (
        refused == f"truncated, {BYTES - 20001} of {BYTES} bytes of audio present; copy or download it again"
    )
    with pytest.raises(ValueError, match="truncated, 11999 of 32000 bytes"):
        decode.shape(path)


@pytest.mark.parametrize("name", SIZES)
def test_a_header_that_names_too_little_is_told(tmp_path, name):
    samples, remark = heard(tmp_path / "x", naming(name, 20000 + SIZES[name][3]))
    assert np.array_equal(samples, SOUND[:10000])
    assert (
        remark == "the header states 20000 bytes of audio, ignored 12000 bytes after them; repair the header"
        " if these are audio"
    )
    samples, remark = heard(tmp_path / "x", whole(name) + b"\xde\xad\xbe\xef" * 100)
    assert np.array_equal(samples, SOUND) and "states 32000 bytes of audio, ignored 400 bytes" in remark


@pytest.mark.parametrize(
    "name, chunk",
    [
        ("WAV", b"LIST\x03\0\0\0abc\0"),
        ("RF64", b"id3 \x04\0\0\0abcd"),
        ("AIFF", b"ANNO\0\0\0\x04abcd"),
        ("RIFX", b"LIST\0\0\0\x04abcd"),
        ("CAF", b"free" + struct.pack(">q", 3) + b"abc"),
        ("W64", b"junk" + bytes(12) + struct.pack("<Q", 25) + bytes(8)),
    ],
)
def test_chunks_behind_the_audio_are_neither_told_nor_read_as_sound(tmp_path, name, chunk):
    samples, remark = heard(tmp_path / "x", whole(name) + 2 * chunk)
    assert np.array_equal(samples, SOUND) and remark == ""


def test_nist_counts_samples(tmp_path):
    raw = whole("NIST")
    for said, frames, words in (
        (b"0    ", RATE, OPEN),
        (b"10000", 10000, "states 20000 bytes of audio, ignored 12000 bytes"),
    ):
        samples, remark = heard(
            tmp_path / "x", raw.replace(b"sample_count -i 16000", b"sample_count -i " + said)
        )
        assert np.array_equal(samples, SOUND[:frames]) and words in remark


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_24", "FLOAT", "ULAW", "IMA_ADPCM", "MS_ADPCM"])
def test_other_encodings_are_read_to_the_end_as_well(tmp_path, subtype):
    raw = whole("WAV", subtype)
    samples, remark = heard(tmp_path / "x", raw)
    again, told = heard(tmp_path / "x", naming("WAV", 0, raw))
    assert np.array_equal(again, samples) and remark == "" and told == OPEN


def test_a_flac_stream_without_its_length_is_counted(tmp_path):
    raw = bytearray(whole("FLAC"))
    raw[21] &= 0xF0
    raw[22:26] = bytes(4)
    samples, remark = heard(tmp_path / "x", bytes(raw))
    assert np.array_equal(samples, SOUND) and remark == OPEN
    part = decode.decode(tmp_path / "x", DataSettings(), (9000, 5000))
    assert np.array_equal(part.samples, SOUND[9000:14000]) and part.remarks == ()


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_ogg_ends_with_its_last_page(tmp_path, subtype):
    raw = whole("OGG", subtype)
    assert heard(tmp_path / "x", raw)[1] == ""
    for cut in (raw[:-1], raw[: len(raw) // 2], raw[: raw.rindex(b"OggS") + 20]):
        with pytest.raises(ValueError, match="truncated, the last page is incomplete"):
            heard(tmp_path / "x", cut)
    assert heard(tmp_path / "x", raw + b"junk")[1] == "ignored 4 bytes after the last page"
    if subtype == "VORBIS":
        samples, remark = heard(tmp_path / "x", raw[: raw.rindex(b"OggS")])
        assert len(samples) > 8000 and remark.startswith("no end-of-stream page")


@pytest.fixture
def beyond(tmp_path) -> tuple[Path, np.ndarray]:
    """Eight channels, 4 GiB and 20 s of them, in a sparse file under a header that counts modulo 4 GiB; the
    last second is noise.
    """
    frames = 2**32 // 16 + 20 * RATE
    last = np.random.default_rng(1).normal(0, 3000, (RATE, 8)).astype("<i2")
    head = (
        b"WAVEfmt "
        + struct.pack("<IHHIIHH", 16, 1, 8, RATE, RATE * 16, 16, 16)
        + b"data"
        + struct.pack("<I", frames * 16 % 2**32)
    )
    path = tmp_path / "in" / "normal" / "night.wav"
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.write(b"RIFF" + struct.pack("<I", (36 + frames * 16) % 2**32) + head)
        file.seek(44 + frames * 16 - last.nbytes)
        file.write(last.tobytes())
    return path, last


@pytest.mark.parametrize("behind", [b"", b"LIST\x04\0\0\0abcd"])
def test_audio_beyond_4_gib_is_all_there(beyond, behind):
    path, last = beyond
    with path.open("ab") as file:
        file.write(behind)
    frames, rate, channels = decode.shape(path)
    assert (frames, rate, channels) == (2**28 + 20 * RATE, RATE, 8)
    found = decode.decode(path, DataSettings(channel=5), (frames - RATE, RATE))
    np.testing.assert_array_equal(found.samples, last[:, 5])
    first = decode.decode(path, DataSettings(channel=5), (0, RATE))
    told = "the header is limited to 4 GiB and states 5120000 bytes of audio, read all 4300087296"
    assert first.remarks == (told, "silent (-120 dB re full scale)") and found.remarks == ()
    refused = decode.decode(path, DataSettings()).refused
    assert refused.startswith(
        "too long (16797 s of 8 channels), expected at most 33554432 samples; cut it into clips"
    )


def test_an_open_length_beyond_4_gib_is_read_to_the_end(beyond):
    path, last = beyond
    for size in PIPES:
        with path.open("r+b") as file:
            file.seek(40)
            file.write(struct.pack("<I", size))
        frames, _, _ = decode.shape(path)
        assert frames == 2**28 + 20 * RATE
        np.testing.assert_array_equal(
            decode.decode(path, DataSettings(channel=7), (frames - 4000, 4000)).samples, last[-4000:, 7]
        )


def test_an_import_cuts_all_of_what_its_header_hides(beyond):
    spans, whole_file = importer._spans(beyond[0], 10.0)
    assert (
        len(spans) == 1680 and not whole_file and sum(count for _, count, _, _ in spans) == 2**28 + 20 * RATE
    )


def test_an_import_reads_what_a_recorder_without_power_left(tmp_path):
    (tmp_path / "in" / "normal").mkdir(parents=True)
    (tmp_path / "in" / "normal" / "a.wav").write_bytes(naming("WAV", 0))
    (tmp_path / "in" / "normal" / "b.aiff").write_bytes(whole("AIFF")[:-4000])
    (tmp_path / "in" / "normal" / "c.wav").write_bytes(naming("WAV", 16000))
    done = importer.import_machine([tmp_path / "in"], tmp_path / "root", "m")
    assert done.clips["seconds"].tolist() == [1.0]
    told = {Path(row.path).name: row.reason for row in done.problems.itertuples()}
    assert told["a.wav"].startswith(OPEN) and told["b.aiff"].startswith("truncated, 28000 of 32000 bytes")
    assert told["c.wav"].startswith(
        "too short: 0.5 s, expected at least 1 s (the header states 16000 bytes of audio, ignored 16000"
        " bytes after them"
    )
