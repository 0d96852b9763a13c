"""Open recordings with exactly the audio in the file, and report headers that disagree with it.

libsndfile silently reads a truncated file to its end, and stops early if the header states too short a
length; headers of streams, of recorders that lost power and of files beyond 4 GiB are taken literally.
Therefore the length in the header (RIFF, RIFX, RF64, BW64, W64, AIFF, 8SVX, CAF, AU, NIST; last page of Ogg)
is first compared with the file:

    length in the header                               action
    -------------------------------------------------  ---------------------------------------------
    the audio present, with or without other chunks    read
    0, -1, or a placeholder written to pipes           read to the end of the file, with a remark
    more than present                                  rejected as truncated, with both numbers
    less by a multiple of 4 GiB                        read to the true length, with a remark
    less, and no chunk follows                         read as far as stated, with a remark

FLAC and MP3 are checked by libsndfile; a FLAC stream without length is counted. Other formats are left to
libsndfile.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import soundfile

MOST_CHUNKS = 1000  # limit before and after the audio
# [from, below): placeholders of sox, arecord, ffmpeg and others
OPEN_LENGTHS = ((2**31 - 2**24 - 2**6, 2**31 + 2**12), (2**32 - 2**16, 2**32), (2**62, 2**64))
WRAP, SLACK = 2**32, 2**20  # bytes; SLACK: chunks after audio beyond 4 GiB
MOST_NAMED = 2**31 - 1  # bytes: some of libsndfile's readers use signed 32-bit sizes
OGG_TAIL = 2**17  # bytes: two pages of maximum size
RAW_BYTES = {
    "PCM_S8": 1,
    "PCM_U8": 1,
    "PCM_16": 2,
    "PCM_24": 3,
    "PCM_32": 4,
    "FLOAT": 4,
    "DOUBLE": 8,
    "ULAW": 1,
    "ALAW": 1,
}


class Chunks(NamedTuple):
    """Chunk layout of a format.

    Size format, bytes of a name, offset of the first chunk, alignment, whether sizes include the header.
    """

    size: str
    name: int
    first: int
    align: int
    counted: bool = False


RIFF = Chunks("<I", 4, 12, 2)
CHUNKED = {
    b"RIFF": RIFF,
    b"RF64": RIFF,
    b"BW64": RIFF,
    b"RIFX": Chunks(">I", 4, 12, 2),
    b"FORM": Chunks(">I", 4, 12, 2),
    b"caff": Chunks(">q", 4, 8, 1),
    b"riff": Chunks("<Q", 16, 40, 8, counted=True),
}
OPEN = "the header does not state the length, read to the end of the file"
AUDIO = (b"data", b"SSND", b"BODY")  # names of the audio chunk; in W64 the first four bytes


class Found(NamedTuple):
    """Audio data of a file.

    Offset, length in the header, whether only chunks follow, and the size field: (offset, struct format,
    bytes it counts besides the audio).
    """

    start: int
    named: int
    clean: bool
    field: tuple[int, str, int] | None


class _Part:
    """File object for `length` bytes from `start`, some replaced (`changed`: position -> bytes)."""

    def __init__(self, file: BinaryIO, start: int, length: int, changed: dict[int, bytes]):
        self.file, self.start, self.length, self.changed, self.at = file, start, length, changed, 0

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = 0) -> int:
        self.at = min(max(offset + (0, self.at, self.length)[whence], 0), self.length)
        return self.at

    def read(self, count: int = -1) -> bytes:
        left = self.length - self.at
        self.file.seek(self.start + self.at)
        out = bytearray(self.file.read(left if count < 0 else min(count, left)))
        for place, new in self.changed.items():
            for i, value in enumerate(new, place - self.at):
                if 0 <= i < len(out):
                    out[i] = value
        self.at += len(out)
        return bytes(out)


class _Forward(soundfile.SoundFile):
    """Non-seekable sound file: FLAC streams of unknown length cannot seek to their end."""

    def seekable(self) -> bool:
        return False


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[soundfile.SoundFile, str]]:
    """Open a recording with exactly its audio; also yield a remark on its header, or "".

    raises : ValueError for an empty or truncated file; OSError, soundfile.LibsndfileError if unreadable
    """
    stat = path.stat()
    if stat.st_size == 0:
        raise ValueError("empty file, expected audio; record or download it again")
    with path.open("rb") as file, contextlib.ExitStack() as stack:
        magic = file.read(4)
        changed = {0: b"RF64"} if magic == b"BW64" else {}  # libsndfile does not know BW64
        start, length, remark, found = 0, stat.st_size, "", _found(file, magic, stat.st_size)
        if found is not None:
            start = found.start
            length, remark = _length(found, max(stat.st_size - start, 0))
        elif magic == b"OggS":
            length, remark = _ogg(file, stat.st_size)
        elif magic == b"fLaC":
            other, samples = _flac_total(file)
            if samples == 0:
                changed[21], remark = (
                    (other + _counted(os.fsencode(path), stat.st_size, stat.st_mtime_ns)).to_bytes(5, "big"),
                    OPEN,
                )
        if start + length >= stat.st_size and not remark and not changed:
            yield stack.enter_context(soundfile.SoundFile(os.fsencode(path))), ""
            return
        named = length
        # present the file up to the end of its audio, with a matching header
        if found and found.field:
            at, kind, more = found.field
            named = min(length, MOST_NAMED - more) if struct.calcsize(kind) == 4 else length
            changed[at] = struct.pack(kind, named + more)
        sound = stack.enter_context(soundfile.SoundFile(_Part(file, 0, start + named, changed)))
        yield sound if named == length else stack.enter_context(_raw(sound, file, start, length)), remark


def _raw(head: soundfile.SoundFile, file: BinaryIO, start: int, length: int) -> soundfile.SoundFile:
    """Open audio larger than its header's size field as raw samples of the format in the header."""
    if head.subtype not in RAW_BYTES:
        raise ValueError(
            f"{length} bytes of {head.subtype} audio, more than the header can express; convert it to WAV or"
            " RF64"
        )
    endian = (
        head.endian if head.endian != "FILE" else "BIG" if head.format in ("AIFF", "AU", "SVX") else "LITTLE"
    )
    frame = RAW_BYTES[head.subtype] * head.channels
    how = {
        "samplerate": head.samplerate,
        "channels": head.channels,
        "format": "RAW",
        "subtype": head.subtype,
        "endian": endian,
    }
    return soundfile.SoundFile(_Part(file, start, length // frame * frame, {}), **how)


def _length(found: Found, there: int) -> tuple[int, str]:
    """Number of audio bytes to read, and a remark.

    there : bytes from the start of the audio to the end of the file
    """
    named = found.named
    if 0 <= named <= there and found.clean:
        return named, ""
    if named <= 0 or any(first <= named < end for first, end in OPEN_LENGTHS):
        return there, OPEN
    if named > there:
        raise ValueError(f"truncated, {there} of {named} bytes of audio present; copy or download it again")
    wrapped, rest = divmod(there - named, WRAP)
    if wrapped and rest <= SLACK:
        return (
            there - rest,
            f"the header is limited to 4 GiB and states {named} bytes of audio, read all {there - rest}",
        )
    return (
        named,
        (
            f"the header states {named} bytes of audio, ignored {there - named} bytes after them; repair the"
            " header if these are audio"
        ),
    )


def _found(file: BinaryIO, magic: bytes, size: int) -> Found | None:
    """Audio position and length in the header; None for formats left to libsndfile."""
    if magic in CHUNKED:
        return _chunked(file, CHUNKED[magic], size)
    if magic in (b".snd", b"dns."):
        kind = ">I" if magic == b".snd" else "<I"
        start, named = _number(file, 4, kind), _number(file, 8, kind)
        return Found(start, named, start + named == size, (8, kind, 0))
    if magic == b"NIST":
        file.seek(0)
        text = file.read(1024)
        words = (b"NIST_1A", b"sample_count -i", b"channel_count -i", b"sample_n_bytes -i")
        told = [re.search(rb"%s\s+(\d{1,15})\b" % word, text) for word in words]
        if all(told) and b"embedded" not in text:  # not for compressed audio
            start, named = int(told[0][1]), math.prod(int(one[1]) for one in told[1:])
            return Found(start, named, start + named == size, None)
    return None


def _chunked(file: BinaryIO, layout: Chunks, size: int) -> Found | None:
    wide = None  # offset of the 64-bit size of RF64
    for number, (name, start, length) in enumerate(_walk(file, layout, layout.first)):
        if number == MOST_CHUNKS:
            raise ValueError(f"no data chunk among the first {MOST_CHUNKS} chunks; copy or download it again")
        if name == b"ds64":
            wide = start + 8
        elif name[:4] in AUDIO:
            field, end = (start - struct.calcsize(layout.size), layout.size), start + length
            if wide and length == WRAP - 1:
                length = _number(file, wide, "<Q")
                field, end = (wide, "<Q"), start + length
            skipped = 8 + _number(file, start, ">I") if name == b"SSND" else 4 if layout.size == ">q" else 0
            clean = end <= size and _only_chunks(file, layout, end + -length % layout.align, size)
            more = skipped + (struct.calcsize(layout.size) + layout.name) * layout.counted
            return Found(start + skipped, length - skipped, clean, (*field, more))
    return None


def _walk(file: BinaryIO, layout: Chunks, at: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield (name, content offset, content length) per chunk; negative length for invalid sizes."""
    head = layout.name + struct.calcsize(layout.size)
    while True:
        file.seek(at)
        if len(raw := file.read(head)) < head:
            return
        length = struct.unpack(layout.size, raw[layout.name :])[0] - head * layout.counted
        yield raw[: layout.name], at + head, length
        at += head + length + -length % layout.align
        if length < 0 or at >= 2**62:
            return


def _only_chunks(file: BinaryIO, layout: Chunks, at: int, size: int) -> bool:
    """Whether only complete chunks lie between an offset and the end of the file."""
    for name, start, length in itertools.islice(_walk(file, layout, at), MOST_CHUNKS):
        if not all(32 <= letter < 127 for letter in name[:4]) or not 0 <= length <= size - start:
            return False
        at = start + length + -length % layout.align
    return at >= size


def _number(file: BinaryIO, at: int, kind: str) -> int:
    file.seek(at)
    raw = file.read(struct.calcsize(kind))
    return struct.unpack(kind, raw)[0] if len(raw) == struct.calcsize(kind) else 0


def _ogg(file: BinaryIO, size: int) -> tuple[int, str]:
    """End of the last page of an Ogg file, and a remark."""
    first = max(size - OGG_TAIL, 0)
    file.seek(first)
    tail = file.read()
    at = tail.rfind(b"OggS")
    table = tail[at + 27 : at + 27 + tail[at + 26]] if 0 <= at < len(tail) - 26 else b""
    end = at + 27 + len(table) + sum(table)
    closed = bool(table) and bool(tail[at + 5] & 4)
    if not table or len(table) < tail[at + 26] or end > len(tail) or (end < len(tail) and not closed):
        raise ValueError("truncated, the last page is incomplete; copy or download it again")
    if not closed:
        return (size, "no end-of-stream page, as in a cut stream, read to the end of the file")
    return first + end, (f"ignored {len(tail) - end} bytes after the last page" if end < len(tail) else "")


def _flac_total(file: BinaryIO) -> tuple[int, int]:
    """FLAC header field of five bytes: other bits, and number of samples (0 if unknown)."""
    file.seek(21)
    both = int.from_bytes(file.read(5), "big")
    return both >> 36 << 36, both % 2**36


@functools.lru_cache(maxsize=64)
def _counted(path: bytes, size: int, changed_ns: int) -> int:
    """Number of samples of a FLAC file without that number in its header."""
    with _Forward(path) as file:
        return sum(iter(lambda: len(file.read(2**16, dtype="int16", always_2d=True)), 0))
