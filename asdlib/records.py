"""Archives of a public record: the list with sizes and checksums, and every byte of them, however the connection behaves.

Task
----
A server that speaks the API of Zenodo (/api/records/ID, .../files/KEY/content) is asked for a record's files, and for what is missing of
each by range requests. What may pass (429, 500 to 504, a dropped or stalled connection) is tried again, with the pauses that the server
asks for, or doubling ones; a redirect to another server is refused. An archive is believed when its checksum fits. The checksums are the
server's own: with a mirror they protect from damage, not from the mirror.

Source: FACTS F2. Used by `asdlib.download`
"""

from __future__ import annotations

import email.utils
import functools
import hashlib
import http.client
import json
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from asdlib import checks

ZENODO = "https://zenodo.org"
ARCHIVE = re.compile(r"(?:dev|eval)(?:_data)?_(?P<machine>[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*)(?:_(?:train|test))?(?:_r(?P<revision>\d{1,3}))?\.zip")
PASSING = (408, 425, 429, 500, 502, 503, 504)
ATTEMPTS = 8  # in a row that bring less than ENOUGH
ENOUGH = 2**20  # bytes
LONGEST_PAUSE, MOST_PAUSE = 64, 900  # s: of our own doubling pauses; that a server may ask for
TIMEOUT, STALLED = 30, 60  # s without a byte; s in which less than 64 kB came
BLOCK = 2**16
MOST_LIST, MOST_ARCHIVE = 2**24, 2**37  # bytes: 16 MB of JSON, 128 GB


@dataclass(frozen=True)
class Archive:
    """One archive of a record. size in bytes; digest in hexadecimal by `algorithm`; folder: where its machine goes, below the root."""

    key: str
    machine: str
    revision: int
    size: int
    algorithm: str
    digest: str
    url: str
    folder: str


class _Passing(Exception):
    """A failure that may pass: what it was, the pause that the server asks for (s), whether bytes came before it."""

    def __init__(self, what: str, pause: float | None = None, gained: bool = False):
        super().__init__(what)
        self.pause, self.gained = pause, gained


class _SameServer(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, request, file, code, message, headers, target):
        here, there = (urllib.parse.urlsplit(url) for url in (request.full_url, target))
        if (here.scheme, here.netloc) != (there.scheme, there.netloc):
            where = f"{there.scheme}://{there.netloc}"[:200]
            raise checks.Refusal(f"{request.full_url}: redirects to {where!r}, expected the same server; if you trust that one, give it as --mirror")
        return super().redirect_request(request, file, code, message, headers, target)


def address(url: str) -> str:
    """The address of a server without a slash at its end; a Refusal for what is none."""
    try:
        split = urllib.parse.urlsplit(url)
        good = split.scheme in ("http", "https") and split.hostname and split.port != 0 and not split.query and not split.fragment
    except ValueError:
        good = False
    if not good or not url.isascii() or not url.isprintable() or " " in url:
        raise checks.Refusal(f"mirror {url!r}: expected an address like {ZENODO}")
    return url.rstrip("/")


def size_of(path: Path) -> int:
    """Bytes of a file, 0 if there is none."""
    return path.stat().st_size if path.is_file() else 0


class Server:
    """The API of a record server. wait : how to pause, s."""

    def __init__(self, base: str, say: Callable[[str], None], wait: Callable[[float], None]):
        self.base, self.say, self.wait = base, say, wait
        self.opener = urllib.request.build_opener(_SameServer)

    def archives(self, record: int, folder: str) -> list[Archive]:
        """Archives of a record; of a machine with several revisions the latest."""
        url = f"{self.base}/api/records/{record}"
        text = self._persist(url, lambda: self._read(url))
        try:
            entries = [(str(e["key"]), e["size"], str(e["checksum"])) for e in json.loads(text)["files"]]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            what = f"no list of files with key, size and checksum came ({type(error).__name__})"
            raise checks.Refusal(f"{url}: {what}; is it a server like {ZENODO}?") from error
        latest: dict[str, Archive] = {}
        for key, size, checksum in entries:
            found = ARCHIVE.fullmatch(key)
            if not found:
                continue  # descriptions and pictures
            algorithm, _, digest = checksum.partition(":")
            if type(size) is not int or not 0 < size <= MOST_ARCHIVE:
                raise checks.Refusal(f"{url}: {key} is said to have {str(size)[:40]} bytes, expected 1 to {MOST_ARCHIVE}")
            if algorithm not in ("md5", "sha256", "sha512") or not re.fullmatch(r"[0-9a-f]{32,128}", digest):
                raise checks.Refusal(f"{url}: {key} has the checksum {checksum[:80]!r}, expected md5:... in hexadecimal")
            revision = int(found["revision"] or 0)
            archive = Archive(key, found["machine"], revision, size, algorithm, digest, f"{url}/files/{key}/content", folder)
            before = latest.setdefault(archive.machine, archive)
            if before.revision < revision:
                latest[archive.machine] = archive
        if not latest:
            raise checks.Refusal(f"{url}: none of its {len(entries)} files is an archive of a machine, expected dev_<machine>.zip and the like")
        return [latest[machine] for machine in sorted(latest)]

    def fetch(self, archive: Archive, part: Path, what: str) -> None:
        """The whole archive in `part`, its checksum verified; goes on from what `part` holds."""
        for _ in range(2):  # a part that went bad on our side deserves a second chance
            self._persist(archive.url, functools.partial(self._append, archive, part, _Progress(what, archive.size, self.say)))
            with part.open("rb") as file:
                if hashlib.file_digest(file, archive.algorithm).hexdigest() == archive.digest:
                    return
            part.unlink()
            self.say(f"{what}: its checksum is not the announced one")
        wrong = f"fetched twice, {archive.algorithm} is never the announced {archive.digest}"
        raise checks.Refusal(f"{archive.url}: {wrong}; try later or another --mirror")

    def _persist(self, url: str, once: Callable):
        failed = 0
        while True:
            try:
                return once()
            except _Passing as failure:
                failed = 1 if failure.gained else failed + 1
                if failed >= ATTEMPTS:
                    raise checks.Refusal(f"{url}: {failure}, {failed} times in a row; give the same command again later, or --mirror") from failure
                pause = min(2 ** (failed - 1), LONGEST_PAUSE) if failure.pause is None else failure.pause
                if pause > MOST_PAUSE:
                    raise checks.Refusal(f"{url}: {failure}, and to come back in {pause:.0f} s; give the same command again then") from failure
                if sys.stderr.isatty():
                    print(file=sys.stderr)  # ends the line that shows the progress
                self.say(f"{url}: {failure}; goes on in {pause:.0f} s")
                self.wait(pause)

    def _open(self, url: str, start: int = 0) -> http.client.HTTPResponse:
        headers = {"User-Agent": "asdlib", "Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
        try:
            return self.opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            with error:
                if error.code in PASSING:
                    raise _Passing(f"the server answers {error.code}", _asked_pause(error.headers)) from error
                if error.code == 416 and start:
                    raise _Passing("the server has no more bytes") from error
            raise checks.Refusal(f"{url}: the server answers {error.code}; is the address right, and is --mirror needed?") from error
        except (OSError, http.client.HTTPException) as error:
            raise _Passing(_words(error)) from error

    def _read(self, url: str) -> bytes:
        with self._open(url) as response:
            try:
                text = response.read(MOST_LIST + 1)
            except (OSError, http.client.HTTPException) as error:
                raise _Passing(_words(error)) from error
        if len(text) > MOST_LIST:
            raise checks.Refusal(f"{url}: more than {MOST_LIST >> 20} MB came, expected a list of files")
        return text

    def _append(self, archive: Archive, part: Path, progress: _Progress) -> None:
        """One request for what is missing; _Passing if it ends too early."""
        start = have = size_of(part)
        if start == archive.size:
            return
        if start > archive.size:
            part.unlink()
            start = have = 0
        since, came = time.monotonic(), 0
        with self._open(archive.url, start) as response, part.open("ab") as out:
            skip = start if response.status == 200 else 0  # the server does not know ranges and begins at the beginning
            if response.status == 206 and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                out.truncate(0)
                raise _Passing("the server sends another range than was asked for")
            while True:
                try:
                    block = response.read1(BLOCK)
                except (OSError, http.client.HTTPException) as error:
                    raise _Passing(_words(error), gained=have - start >= ENOUGH) from error
                if not block:
                    break
                skipped = min(skip, len(block))
                skip, block = skip - skipped, block[skipped:]
                have, came = have + len(block), came + skipped + len(block)
                if have > archive.size:
                    out.truncate(0)
                    raise checks.Refusal(f"{archive.url}: more came than the {archive.size} bytes announced; try later or another --mirror")
                out.write(block)
                progress.update(have)
                if time.monotonic() - since > STALLED:
                    if came < BLOCK:
                        raise _Passing("the connection is stalled", gained=have - start >= ENOUGH)
                    since, came = time.monotonic(), 0
        if have < archive.size:
            raise _Passing(f"the connection ended at {have} of {archive.size} bytes", gained=have - start >= ENOUGH)


def _words(error: Exception) -> str:
    reason = getattr(error, "reason", error)
    said = str(getattr(reason, "strerror", "") or reason or type(reason).__name__)[:200]
    return f"no answer ({''.join(letter if letter.isprintable() else '?' for letter in said)})"


def _asked_pause(headers) -> float | None:
    """Seconds that Retry-After asks for, as a number or a date; None without it."""
    asked = (headers.get("Retry-After") or "").strip()
    if re.fullmatch(r"\d{1,9}", asked):
        return float(asked)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(asked).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


class _Progress:
    """One line that is rewritten on a terminal; elsewhere a line per tenth."""

    def __init__(self, what: str, total: int, say: Callable[[str], None]):
        self.what, self.total, self.say, self.began, self.shown, self.first = what, total, say, time.monotonic(), -1.0, None

    def update(self, done: int) -> None:
        """Say that `done` of `total` bytes are there."""
        self.first = done if self.first is None else self.first
        live = sys.stderr.isatty()
        share, last = done / self.total, done == self.total
        if not last and share - self.shown < (0.002 if live else 0.1):
            return
        self.shown = share
        rate = (done - self.first) / max(time.monotonic() - self.began, 1e-3)
        line = f"{self.what}: {share:4.0%} of {self.total / 1e6:.1f} MB, {rate / 1e6:.1f} MB/s"
        if live:
            print(f"\r{line:<78}", end="\n" if last else "", file=sys.stderr, flush=True)
        else:
            self.say(line)
