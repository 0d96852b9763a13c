"""Downloads from a server of our own on the loopback that speaks the record API and fails as a test asks."""

import fcntl
import hashlib
import http.server
import io
import json
import os
import stat
import threading
import types
import zipfile
from pathlib import Path

import numpy as np
import pooch
import pytest
import soundfile
from packed import zipped

from asdlib import cli, errors
from asdlib.data import download, index
from asdlib.studies import artifacts

DEV, MORE, EVAL = 10902294, 11259435, 11363076


def wav(seed: int) -> bytes:
    out = io.BytesIO()
    wave = np.random.default_rng(seed).integers(-9000, 9000, 4000).astype(np.int16)
    soundfile.write(out, wave, 16000, format="WAV", subtype="PCM_16")
    return out.getvalue()


def train(machine: str, count: int, first: int = 0, attribute: str = "noAttribute") -> dict[str, bytes]:
    name = "{}/train/section_00_source_train_normal_{:04}_{}.wav"
    return {name.format(machine, i, attribute): wav(first + i) for i in range(count)}


def contents() -> dict[int, dict[str, bytes]]:
    """What the three records hold: archives under their true names, one superseded, and another file."""
    fan = train("fan", 3) | {"fan/attributes_00.csv": b"file_name\n"}
    for label in ("normal", "anomaly"):
        fan[f"fan/test/section_00_source_test_{label}_0000_noAttribute.wav"] = wav(20 + len(label))
    fan |= {"__MACOSX/fan/._attributes_00.csv": b"junk", "fan/.DS_Store": b"junk"}
    arm = zipped(train("RoboticArm", 2, 40, "weight15_BckgF"))
    old = {"RoboticArm/train/old.wav": b"old"}
    unnamed = {f"RoboticArm/test/section_00_{i:04}.wav": wav(60 + i) for i in range(2)}
    return {
        DEV: {"dev_fan.zip": zipped(fan), "dev_valve.zip": zipped(train("valve", 2, 30)), "README.md": b"#"},
        MORE: {"eval_data_RoboticArm_train.zip": zipped(old), "eval_data_RoboticArm_train_r2.zip": arm},
        EVAL: {"eval_data_RoboticArm_test.zip": zipped(unnamed)},
    }


def listing(files: dict[str, bytes]) -> dict:
    sums = {key: f"md5:{hashlib.md5(body).hexdigest()}" for key, body in files.items()}
    return {"files": [{"key": key, "size": len(files[key]), "checksum": sums[key]} for key in files]}


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def answer(self, code: int, body: bytes = b"", **headers):
        self.send_response(code)
        for name, value in ({"Content_Length": len(body)} | headers).items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        server, path = self.server, self.path.removeprefix("/api/records/").split("/")
        server.log.append((self.path, self.headers.get("Range")))
        record = int(path[0])
        if len(path) == 1:
            listed = server.lists.get(record, listing(server.records[record]))
            return self.answer(200, listed if isinstance(listed, bytes) else json.dumps(listed).encode())
        body = server.records[record][path[2]]
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1]) if server.ranges else 0
        code = 206 if start else 200
        more = {"Content_Range": f"bytes {start}-{len(body) - 1}/{len(body)}"} if start else {}
        if start >= len(body):
            return self.answer(416)
        what, value = server.script.pop(0) if server.script else ("", None)
        if what == "drop":  # the whole length is promised, part of it comes
            self.answer(code, body[start : start + value], Content_Length=len(body) - start, **more)
            self.connection.close()
        elif what == "status":
            self.answer(value)
        elif what == "corrupt":
            self.answer(200, bytes(len(body)))
        elif what == "redirect":
            self.answer(302, Location=value)
        elif what == "garbage":
            self.wfile.write(b"\x1b[31mnot http at all\r\n\r\n")
            self.connection.close()
        else:
            self.answer(code, body[start:], **more)


@pytest.fixture
def server(monkeypatch):
    """`script`: what happens to the next requests for contents, in turn; later ones are answered well."""
    monkeypatch.setenv("no_proxy", "*")
    found = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.daemon_threads, found.handle_error = True, lambda *args: None
    found.records, found.script, found.log, found.lists, found.ranges = contents(), [], [], {}, True
    found.address = f"http://127.0.0.1:{found.server_address[1]}"
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    found.shutdown()
    found.server_close()
    thread.join()


class Run:
    """Downloads into one root; pooch's pauses are noted instead of waited."""

    def __init__(self, server, root):
        self.server, self.root, self.said, self.pauses = server, root, [], []

    def __call__(self, parts=("dev",), machines=(), **more):
        where = {"mirror": self.server.address, "say": self.said.append} | more
        return download.download("dcase2024", self.root, parts, machines, **where)

    def files(self) -> dict[str, bytes]:
        found = [path for path in self.root.rglob("*") if path.is_file() and ".download" not in path.parts]
        return {str(path.relative_to(self.root)): path.read_bytes() for path in found}

    def leftovers(self) -> list[str]:
        found = (self.root / ".download").iterdir()
        return sorted(path.name for path in found if path.suffix not in (".json", ""))

    def asked(self) -> list[tuple[str, str | None]]:
        return [(path.split("/")[5], start) for path, start in self.server.log if "content" in path]


@pytest.fixture
def run(server, tmp_path, monkeypatch):
    made = Run(server, tmp_path / "data")
    monkeypatch.setattr(download, "BLOCK", 100)
    monkeypatch.setattr(pooch.core, "time", types.SimpleNamespace(sleep=made.pauses.append))
    return made


# ---------------------------------------------------------------- contract


def test_all_parts_come_into_the_layout_that_index_reads_and_a_second_call_asks_nothing(server, run):
    folders = run(parts=())
    assert folders == [run.root / "dev_data/raw", run.root / "eval_data/raw"]
    table, problems = index.index(folders)
    assert table.groupby(["machine", "split"]).size().to_dict() == {
        ("RoboticArm", "test"): 2,
        ("RoboticArm", "train"): 2,
        ("fan", "test"): 2,
        ("fan", "train"): 3,
        ("valve", "train"): 2,
    }
    assert problems.empty and run.leftovers() == []
    keys = ["dev_fan", "dev_valve", "eval_data_RoboticArm_train_r2", "eval_data_RoboticArm_test"]
    assert run.asked() == [(f"{key}.zip", None) for key in keys]  # no superseded one
    assert not [name for name in run.files() if "MACOSX" in name or ".DS_Store" in name]
    assert not any(path.stat().st_mode & stat.S_IXUSR for path in run.root.rglob("*") if path.is_file())
    before = {path: path.stat().st_mtime_ns for path in run.root.rglob("*.*") if path.is_file()}
    server.log.clear()
    assert run(parts=()) == folders and server.log == []
    before.pop(run.root / ".download/.lock")
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_machines_and_parts_choose_and_later_calls_bring_only_the_rest(run):
    run(machines=("valve",))
    assert {name.split("/")[2] for name in run.files()} == {"valve"}
    run()
    assert run.asked() == [("dev_valve.zip", None), ("dev_fan.zip", None)]
    with pytest.raises(errors.InputError, match="unknown machine 'valv'; did you mean valve"):
        run(machines=("valv",))
    with pytest.raises(errors.InputError, match="unknown part 'evall'; did you mean eval"):
        run(parts=("evall",))
    with pytest.raises(errors.InputError, match="unknown data set 'dcase2042'; did you mean dcase2026"):
        download.download("dcase2042", run.root)


def test_files_that_vanished_or_shrank_are_fetched_again(run):
    run()
    whole = run.files()
    first, second = sorted((run.root / "dev_data/raw/fan/train").iterdir())[:2]
    first.unlink()
    second.write_bytes(b"cut")
    run()
    assert run.files() == whole


def test_files_find_their_place_whatever_folders_an_archive_has(server, run):
    name = "{0}/section_00_source_{0}_normal_0000.wav".format
    files = {name("train"): wav(1), "data/deep/fan/" + name("test"): wav(2)}
    server.records[DEV] = {"dev_fan.zip": zipped(files)}
    run()
    assert sorted(run.files()) == [f"dev_data/raw/fan/{name(split)}" for split in ("test", "train")]


# ---------------------------------------------------------------- connections


def test_dropped_connections_are_gone_on_with_where_they_stopped(server, run):
    server.script = [("drop", 1000), ("status", 503), ("drop", 0), ("garbage", None)]
    run(machines=("fan",))
    starts = [None] + ["bytes=1000-"] * 4
    assert run.asked() == [("dev_fan.zip", start) for start in starts] and run.pauses == [1, 2, 3, 4]
    assert index.index([run.root])[0].shape[0] == 5


def test_an_interrupted_call_goes_on_in_the_next(server, run, monkeypatch):
    def interrupt(seconds):
        raise KeyboardInterrupt

    server.script = [("drop", 2000)]
    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        context.setattr(pooch.core.time, "sleep", interrupt)
        run(machines=("fan",))
    assert (run.root / ".download/dev_fan.zip.part").stat().st_size == 2000 and run.files() == {}
    run(machines=("fan",))
    assert run.asked()[-1][1] == "bytes=2000-" and run.leftovers() == [] and len(run.files()) == 6


def test_an_interrupt_while_files_are_put_in_place_leaves_nothing_half(run, monkeypatch):
    replace, calls = os.replace, []

    def breaking(source, target):
        calls.append(target)
        if len(calls) == 5:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        context.setattr(artifacts.os, "replace", breaking)
        run(machines=("fan",))
    assert run.leftovers() == ["dev_fan.zip"] and 0 < len(run.files()) < 6
    run(machines=("fan",))
    assert len(run.files()) == 6 and run.asked() == [("dev_fan.zip", None)]  # the archive was there, whole


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("part", [b"x" * 100, b"x" * 10**6])
def test_a_part_of_something_else_and_a_server_without_ranges_double_nothing(server, run, part, ranges):
    server.ranges = ranges
    server.script = [("drop", 3000)]
    (run.root / ".download").mkdir(parents=True)
    (run.root / ".download/dev_fan.zip.part").write_bytes(part)
    run(machines=("fan",))
    assert index.index([run.root])[0].shape[0] == 5 and run.leftovers() == []


LOOP = f"/api/records/{DEV}/files/dev_valve.zip/content"


@pytest.mark.parametrize(
    "what, value, words",
    [
        ("status", 503, "server returned 503"),
        ("status", 404, "server returned 404; is the URL correct"),
        ("drop", 0, "no response .*; run the same command again later"),
        ("garbage", None, r"no response \(.*not http at all"),
        ("corrupt", None, r"downloaded file does not match the record's checksum \(md5:"),
        ("redirect", "file:///etc/passwd", "no response"),
        ("redirect", LOOP, "server returned 302"),
    ],
)
def test_what_does_not_pass_is_refused_in_words_and_leaves_no_file(server, run, what, value, words):
    server.script = [(what, value)] * (200 if value == LOOP else 5)
    with pytest.raises(errors.InputError, match=words) as caught:
        run(machines=("valve",))
    assert str(caught.value).isprintable() and run.files() == {} and len(run.pauses) == 4
    server.script = []
    run(machines=("valve",))  # the server is well again
    assert len(run.files()) == 2


def test_no_server_at_all_is_said(server, run):
    server.shutdown()
    server.server_close()
    with pytest.raises(errors.InputError, match=r"no response \(Connection refused\); run the same"):
        run()


@pytest.mark.parametrize("mirror", ["file:///etc", "zenodo.org", "http://", "http://x/?a", "http://ä"])
def test_an_address_that_is_none_is_refused(tmp_path, mirror):
    with pytest.raises(errors.InputError, match=r"expected a URL like https://zenodo\.org"):
        download.download("dcase2024", tmp_path, mirror=mirror)


# ---------------------------------------------------------------- lists and disks


def entry(key="dev_fan.zip", size=10, checksum="md5:" + "0" * 32):
    return {"files": [{"key": key, "size": size, "checksum": checksum}]}


@pytest.mark.parametrize(
    "listed, words",
    [
        (b"<html>captive portal</html>", "not a list of archives with key, size and md5"),
        (b"[" * 100000, "not a list of archives"),
        ({"files": 3}, "not a list of archives"),
        ({"files": [{"key": "dev_fan.zip"}]}, "not a list of archives"),
        ({"files": []}, "none of its 0 files is named like dev_<machine>.zip"),
        (entry(size=0), "dev_fan.zip with size 0"),
        (entry(checksum="md5:zz"), "and checksum 'md5:zz'"),
        (entry(key="../../dev_fan.zip"), "none of its 1 files"),
    ],
)
def test_a_record_with_other_files_than_expected_is_refused_and_asked_for_again(server, run, listed, words):
    server.lists[DEV] = listed
    with pytest.raises(errors.InputError, match=words):
        run()
    assert run.files() == {}
    server.lists.clear()
    run()
    assert len(run.files()) == 8


def test_too_little_space_and_a_full_disk_are_said_and_the_next_call_goes_on(run, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context, pytest.raises(errors.InputError, match="GB, only 0"):
        context.setattr(download.shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=10**4))
        run(machines=("fan",))
    with monkeypatch.context() as context, pytest.raises(errors.InputError, match="No space left on device"):
        context.setattr(download.shutil, "copyfileobj", full)
        run(machines=("fan",))
    assert run.files() == {}
    run(machines=("fan",))
    assert len(run.files()) == 6


def test_two_downloads_at_once_and_a_file_for_a_folder_are_refused(run, tmp_path):
    (run.root / ".download").mkdir(parents=True)
    with open(run.root / ".download/.lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(errors.InputError, match="another download is in progress"):
            run()
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.InputError, match=r"Not a directory|File exists"):
        Run(run.server, tmp_path / "file")()


# ---------------------------------------------------------------- archives


def entry_of(name: str, mode: int = 0, method: int = zipfile.ZIP_STORED) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr, info.compress_type = mode << 16, method
    return info


def written(path: Path, *entries: tuple[zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for info, content in entries:
            archive.writestr(info, content)
    return path


@pytest.mark.parametrize(
    "info, content, words",
    [
        (entry_of("../../x.wav"), b"x", "points outside its folder"),
        (entry_of("/etc/x.wav"), b"x", "points outside its folder"),
        (entry_of("fan\\..\\x.wav"), b"x", "points outside its folder"),
        (entry_of("fan/\x1b[31m.wav"), b"x", "has an unsafe name"),
        (entry_of("fan/" + "a" * 256), b"x", "has an unsafe name"),
        (entry_of("fan/train", stat.S_IFLNK | 0o777), b"/etc", "is a link or a device"),
        (entry_of("fan/x.wav", method=zipfile.ZIP_LZMA), b"x", "is encrypted or not deflated"),
        (
            entry_of("fan/x.wav", method=zipfile.ZIP_DEFLATED),
            bytes(2**27),
            "that would unpack to 134217.* not plausible",
        ),
        (entry_of("fan/.hidden"), b"x", "in 0 files, not plausible for recordings"),
    ],
)
def test_an_archive_that_is_not_trusted_writes_nothing(tmp_path, info, content, words):
    path = written(tmp_path / "a.zip", (entry_of("fan/train/good.wav"), b"x"), (info, content))
    if "0 files" in words:
        written(path, (info, content))
    with pytest.raises(errors.InputError, match=rf"a\.zip: cannot be unpacked.*{words}"):
        download.unpack(path, tmp_path / "in/out", "fan")
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_encrypted_and_damaged_archives_are_refused(tmp_path):
    body = bytes(range(256)) * 40
    whole = written(tmp_path / "a.zip", (entry_of("fan/x.wav"), body)).read_bytes()
    locked = bytearray(whole)
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        locked[locked.index(mark) + place] |= 1
    damaged = whole.replace(body[:300], bytes(300))
    for content, words in ((locked, "is encrypted"), (damaged, "CRC"), (whole[:-30], "not a zip file")):
        (tmp_path / "a.zip").write_bytes(content)
        with pytest.raises(errors.InputError, match=f"cannot be unpacked.*{words}"):
            download.unpack(tmp_path / "a.zip", tmp_path / "out", "fan")
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "a.zip"]


def test_a_hostile_archive_from_a_server_leaves_no_file_and_names_itself(server, run, tmp_path):
    bad = written(tmp_path / "a.zip", (entry_of("fan/../../../../x.wav"), b"x"))
    server.records[DEV] = {"dev_fan.zip": bad.read_bytes()}
    with pytest.raises(
        errors.InputError, match=r"dev_fan\.zip: cannot be unpacked.*points outside its folder"
    ):
        run()
    assert run.files() == {} and not list(tmp_path.rglob("x.wav"))


# ---------------------------------------------------------------- true names


TRUTH = """RoboticArm
section_00_0000.wav,section_00_source_normal_0035_weight15_BckgF.wav
section_00_0001.wav,section_00_target_test_anomaly_0091_weight35_BckgE.wav
"""


def test_true_names_are_given_and_the_missing_word_is_put_in(run, tmp_path):
    truth = tmp_path / "eval_data_list_2024.csv"
    other = "3DPrinter\nsection_00_0001.wav,section_00_target_test_anomaly_0001_mdl_B_spd_2.wav\n"
    truth.write_text(other + TRUTH)
    for _ in range(2):
        run(parts=("additional", "eval"), truth=truth)
    folder = run.root / "eval_data/raw/RoboticArm"
    assert sorted(path.name for path in (folder / "test_rename").iterdir()) == [
        "section_00_source_test_normal_0035_weight15_BckgF.wav",
        "section_00_target_test_anomaly_0091_weight35_BckgE.wav",
    ]
    test = index.index([folder.parent])[0].query("split == 'test'")
    assert list(test["label"]) == ["normal", "anomaly"] and list(test["attr_weight"]) == ["15", "35"]
    next((folder / "test_rename").iterdir()).unlink()
    with pytest.raises(errors.InputError, match="file names differ from those in"):
        run(parts=("additional", "eval"), truth=truth)


@pytest.mark.parametrize(
    "text, words",
    [
        (
            "RoboticArm\nsection_00_0000.wav,../../../x.wav\n",
            "is neither a machine nor NAME.wav,TRUE_NAME.wav",
        ),
        ("section_00_0000.wav,section_00_source_test_normal_0035.wav\n", "is neither a machine"),
        (
            "RoboticArm\nsection_00_0000.wav,section_00_source_test_normal_0035.wav\n",
            "expected exactly one true name per",
        ),
        (
            TRUTH + "section_00_0001.wav,section_00_source_normal_0035_weight15_BckgF.wav\n",
            "expected exactly one true",
        ),
        (
            "RoboticArm\nsection_00_0000.wav,section_00_source_test_normal_0035_\0.wav\n",
            "is neither a machine|NUL",
        ),
        ("fan\n", "no evaluation clips of the machines in"),
        ("\udcff", "not a list of true names"),
        (f"RoboticArm\na.wav,section_00_source_test_normal_0035_{'a' * 300}.wav\n", "is neither a machine"),
    ],
)
def test_a_list_of_names_that_is_none_is_refused(run, tmp_path, text, words):
    truth = tmp_path / "truth.csv"
    truth.write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(errors.InputError, match=words):
        run(parts=("eval",), truth=truth)
    assert not (run.root / "eval_data/raw/RoboticArm/test_rename").exists()


# ---------------------------------------------------------------- command line


def test_the_command_says_how_far_it_is_and_the_next_command(server, run, capsys, monkeypatch):
    root = run.root.parent / "my data"
    command = ["download", "dcase2024", "--root", str(root), "--parts", "dev, eval"]
    command += ["--mirror", server.address]
    monkeypatch.setattr(download.sys.stderr, "isatty", lambda: True, raising=False)
    assert cli.main(command) == 0
    said = capsys.readouterr()
    assert f"next: asd run paper --data-root '{root}/dev_data/raw' '{root}/eval_data/raw'" in said.out
    assert "[1/3] dev_fan.zip: 0.0 MB" in said.out
    assert "[3/3] eval_data_RoboticArm_test.zip: 2 files in" in said.out
    assert said.err.count("100%") == 3  # a bar for each archive
    assert cli.main([*command, "--machines", "pump"]) == 2
    assert "asd: unknown machine 'pump'; known: RoboticArm, fan, valve" in capsys.readouterr().err
