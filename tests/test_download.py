"""Downloads from a server of our own on the loopback that speaks the record API and misbehaves in every way a test asks for."""

import fcntl
import hashlib
import http.server
import io
import json
import os
import stat
import struct
import threading
import time
import urllib.parse
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from packed import zipped

from asdlib import archives, checks, cli, clips, download, records

RECORDS = {"dev": 10902294, "additional": 11259435, "eval": 11363076}


def wav(seed: int) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, np.random.default_rng(seed).integers(-9000, 9000, 4000).astype(np.int16), 16000, format="WAV", subtype="PCM_16")
    return out.getvalue()


def train(machine: str, count: int, first: int = 0) -> dict[str, bytes]:
    return {f"{machine}/train/section_00_source_train_normal_{i:04}_noAttribute.wav": wav(first + i) for i in range(count)}


def contents() -> dict[int, dict[str, bytes]]:
    """What the three records hold: small archives under their true names, one superseded, and files that are no archives."""
    test = {f"fan/test/section_00_source_test_{label}_0000_noAttribute.wav": wav(20 + len(label)) for label in ("normal", "anomaly")}
    fan = train("fan", 3) | test
    fan["fan/attributes_00.csv"] = b"file_name\n"
    fan |= {"__MACOSX/fan/._attributes_00.csv": b"junk", "fan/.DS_Store": b"junk"}
    arm = {f"RoboticArm/train/section_00_source_train_normal_{i:04}_weight15_BckgF.wav": wav(40 + i) for i in range(2)}
    unnamed = {f"RoboticArm/test/section_00_{i:04}.wav": wav(60 + i) for i in range(2)}
    return {
        10902294: {"dev_fan.zip": zipped(fan), "dev_valve.zip": zipped(train("valve", 2, 30)), "README.md": b"# about"},
        11259435: {"eval_data_RoboticArm_train.zip": zipped({"RoboticArm/train/old.wav": b"old"}), "eval_data_RoboticArm_train_r2.zip": zipped(arm)},
        11363076: {"eval_data_RoboticArm_test.zip": zipped(unnamed)},
    }


class Server(http.server.ThreadingHTTPServer):
    """`script`: what happens to the next requests for contents, in turn; then requests are answered as they should be."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.records, self.script, self.log, self.lists, self.ranges = contents(), [], [], {}, True

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request, client_address):  # connections that a test cuts
        pass


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
        path = urllib.parse.urlsplit(self.path).path.removeprefix("/api/records/").split("/")
        self.server.log.append((self.path, self.headers.get("Range")))
        record = int(path[0])
        if len(path) == 1 and not (self.server.script and self.server.script[0][0] == "list"):
            listed = self.server.lists.get(record, listing(self.server.records[record]))
            body = listed if isinstance(listed, bytes) else json.dumps(listed).encode()
            return self.answer(200, body)
        body = self.server.records[record][path[2]] if len(path) > 1 else b""
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1]) if self.server.ranges else 0
        if self.server.script:
            return self.misbehave(body, start, *self.server.script.pop(0))
        if start:
            return self.answer(206, body[start:], Content_Range=f"bytes {start}-{len(body) - 1}/{len(body)}")
        return self.answer(200, body)

    def misbehave(self, body: bytes, start: int, what: str, value=None):
        if what == "list":
            what, value = value
        if what == "drop":  # the whole length is promised, part of it comes
            promised = {"Content_Length": len(body) - start, "Content_Range": f"bytes {start}-/{len(body)}"}
            self.answer(206 if start else 200, body[start : start + value], **promised)
            self.connection.close()
        elif what == "drip":
            self.answer(206 if start else 200, b"", Content_Length=len(body) - start, Content_Range=f"bytes {start}-/{len(body)}")
            for byte in body[start:]:
                self.wfile.write(bytes([byte]))
                time.sleep(0.005)
        elif what == "truncate":  # a shorter length is promised and comes
            self.answer(206 if start else 200, body[start : start + value], Content_Range=f"bytes {start}-/{len(body)}")
        elif what == "status":
            self.answer(value)
        elif what == "retry":
            self.answer(value[0], Retry_After=value[1])
        elif what == "wrong range":
            self.answer(206, body, Content_Range=f"bytes 0-{len(body) - 1}/{len(body)}")
        elif what == "corrupt":
            self.answer(200, bytes(len(body)))
        elif what == "more":
            self.answer(200, body + b"more")
        elif what == "redirect":
            self.answer(302, Location=value)
        elif what == "garbage":
            self.wfile.write(b"\x1b[31mnot http at all\r\n\r\n")
            self.connection.close()


def listing(files: dict[str, bytes]) -> dict:
    return {"files": [{"key": key, "size": len(body), "checksum": f"md5:{hashlib.md5(body).hexdigest()}"} for key, body in files.items()]}


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    found = Server()
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    found.shutdown()
    found.server_close()
    thread.join()


class Run:
    """Downloads into one root; pauses are noted instead of waited."""

    def __init__(self, server, root):
        self.server, self.root, self.said, self.pauses = server, root, [], []

    def __call__(self, parts=("dev",), machines=(), **more):
        wait = more.pop("wait", self.pauses.append)
        return download.download("dcase2024", self.root, parts, machines, mirror=self.server.address, say=self.said.append, wait=wait, **more)

    def files(self) -> dict[str, bytes]:
        found = [path for path in self.root.rglob("*") if path.is_file() and ".download" not in path.parts]
        return {str(path.relative_to(self.root)): path.read_bytes() for path in found}

    def leftovers(self) -> list[str]:
        return sorted(path.name for path in (self.root / ".download").iterdir() if path.suffix not in (".json", "") or path.is_dir())


@pytest.fixture
def run(server, tmp_path):
    return Run(server, tmp_path / "data")


def test_all_parts_come_into_the_layout_that_index_reads_and_a_second_call_asks_nothing(server, run):
    folders = run(parts=())
    assert folders == [run.root / "dev_data/raw", run.root / "eval_data/raw"]
    table, problems = clips.index(folders)
    assert table.groupby(["machine", "split"]).size().to_dict() == {
        ("RoboticArm", "test"): 2, ("RoboticArm", "train"): 2, ("fan", "test"): 2, ("fan", "train"): 3, ("valve", "train"): 2}  # fmt: skip
    assert problems.empty
    asked = [path for path, _ in server.log]
    assert "/api/records/11259435/files/eval_data_RoboticArm_train_r2.zip/content" in asked
    assert not [path for path in asked if "RoboticArm_train.zip" in path or "README" in path]  # superseded; no archive
    assert not [name for name in run.files() if "MACOSX" in name or ".DS_Store" in name] and run.leftovers() == []
    assert not any(path.stat().st_mode & stat.S_IXUSR for path in run.root.rglob("*") if path.is_file())
    before = {path: path.stat().st_mtime_ns for path in run.root.rglob("*") if path.name != ".lock"}
    server.log.clear()
    assert run(parts=()) == folders and server.log == []
    assert before == {path: path.stat().st_mtime_ns for path in run.root.rglob("*") if path.name != ".lock"}


def test_machines_and_parts_choose_and_later_calls_bring_only_the_rest(server, run):
    run(machines=("valve",))
    assert {name.split("/")[2] for name in run.files()} == {"valve"}
    server.log.clear()
    run()
    assert [path for path, _ in server.log if "content" in path] == ["/api/records/10902294/files/dev_fan.zip/content"]
    with pytest.raises(checks.Refusal, match="unknown machine 'valv'; did you mean valve"):
        run(machines=("valv",))
    with pytest.raises(checks.Refusal, match="unknown part 'evall'; did you mean eval"):
        run(parts=("evall",))
    with pytest.raises(checks.Refusal, match="unknown data set 'dcase2042'; did you mean dcase2024"):
        download.download("dcase2042", run.root)


def test_a_file_that_vanished_or_shrank_is_fetched_again(server, run):
    run()
    whole = run.files()
    for path in sorted((run.root / "dev_data/raw/fan/train").iterdir())[:1]:
        path.unlink()
    run()
    assert run.files() == whole
    cut = run.root / "dev_data/raw/fan/attributes_00.csv"
    cut.write_bytes(b"")
    run()
    assert cut.read_bytes() == b"" and any("kept as it is" in line for line in run.said)  # not a recording: the user's word stands


def test_dropped_and_truncated_connections_are_gone_on_with_where_they_stopped(server, run):
    size = len(server.records[10902294]["dev_fan.zip"])
    server.script = [("drop", 1000), ("truncate", 500), ("drop", 0), ("garbage", None)]
    run(machines=("fan",))
    asked = [start for path, start in server.log if "content" in path]
    assert asked == [None, "bytes=1000-", "bytes=1500-", "bytes=1500-", "bytes=1500-"]
    assert run.pauses == [1, 2, 4, 8]
    assert size > 1500 and clips.index([run.root])[0].shape[0] == 5
    assert not any("\x1b" in line for line in run.said)


def test_an_interrupted_call_goes_on_in_the_next(server, run):
    def interrupt(seconds):
        raise KeyboardInterrupt

    server.script = [("drop", 2000)]
    with pytest.raises(KeyboardInterrupt):
        run(machines=("fan",), wait=interrupt)
    assert (run.root / ".download/dev_fan.zip.part").stat().st_size == 2000 and run.files() == {}
    run(machines=("fan",))
    assert server.log[-1][1] == "bytes=2000-" and run.leftovers() == [] and len(run.files()) == 6


def test_an_interrupt_while_files_are_put_in_place_leaves_nothing_half(server, run, monkeypatch):
    replace, calls = os.replace, []

    def breaking(source, target):
        calls.append(target)
        if len(calls) == 3:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(download.os, "replace", breaking)
    with pytest.raises(KeyboardInterrupt):
        run(machines=("fan",))
    monkeypatch.setattr(download.os, "replace", replace)
    assert run.leftovers() == ["dev_fan.zip.part"] and 0 < len(run.files()) < 6
    server.log.clear()
    run(machines=("fan",))
    assert len(run.files()) == 6 and not [path for path, _ in server.log if "content" in path]  # the archive was there, whole


def test_a_server_without_ranges_is_read_from_the_start_and_nothing_is_doubled(server, run):
    server.ranges = False
    server.script = [("drop", 3000), ("drop", 4000)]
    run(machines=("fan",))
    assert clips.index([run.root])[0].shape[0] == 5


def test_a_wrong_range_starts_again(server, run):
    server.script = [("drop", 1000), ("wrong range", None)]
    run(machines=("fan",))
    assert [start for path, start in server.log if "content" in path] == [None, "bytes=1000-", None]


@pytest.mark.parametrize("code", records.PASSING)
def test_what_may_pass_is_tried_again_after_the_pause_that_is_asked_for(server, run, code):
    later = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 100))
    server.script = [("list", ("retry", (code, "7"))), ("retry", (code, "21")), ("status", code), ("retry", (code, later)), ("retry", (code, "soon"))]
    run(machines=("valve",))
    assert run.pauses[0] == 7 and run.pauses[1] == 21 and run.pauses[2] == 2 and 90 < run.pauses[3] <= 100 and run.pauses[4] == 8
    assert any(f"the server answers {code}; goes on in 21 s" in line for line in run.said)


@pytest.mark.parametrize(
    "script, words",
    [
        ([("status", 503)] * 8, "the server answers 503, 8 times in a row; give the same command again later"),
        ([("drop", 0)] * 8, "the connection ended at 0 of .* bytes, 8 times in a row|no answer .*8 times in a row"),
        ([("retry", (429, "86400"))], "to come back in 86400 s; give the same command again then"),
        ([("status", 404)], "the server answers 404; is the address right"),
        ([("status", 403)], "the server answers 403"),
        ([("corrupt", None)] * 2, "fetched twice, md5 is never the announced"),
        ([("more", None)], "more came than the .* bytes announced"),
        ([("redirect", "http://localhost:1/secret")], "redirects to 'http://localhost:1', expected the same server"),
        ([("redirect", "file:///etc/passwd")], "redirects to 'file://'|answers 302"),
        ([("redirect", "https://127.0.0.1/x")], "redirects to 'https://127.0.0.1'"),
        ([("list", ("redirect", "http://example.org/api"))], "redirects to 'http://example.org'"),
        ([("list", ("status", 404))], "records/10902294: the server answers 404"),
    ],
)  # fmt: skip
def test_what_does_not_pass_is_refused_in_words_and_leaves_no_file(server, run, script, words):
    server.script = list(script)
    with pytest.raises(checks.Refusal, match=words):
        run(machines=("valve",))
    assert run.files() == {} and len(run.pauses) <= 8 and all(pause <= records.MOST_PAUSE for pause in run.pauses)
    server.script = []
    run(machines=("valve",))  # the server is well again
    assert len(run.files()) == 2


def test_a_redirect_within_the_server_is_followed_and_a_loop_is_not(server, run):
    url = "/api/records/10902294/files/dev_valve.zip/content"
    server.script = [("redirect", url)]
    run(machines=("valve",))
    assert len(run.files()) == 2
    server.script = [("redirect", "/api/records/10902294/files/dev_fan.zip/content")] * 30
    with pytest.raises(checks.Refusal, match="the server answers 302"):
        run(machines=("fan",))


def test_a_corrupt_download_is_fetched_once_more(server, run):
    server.script = [("corrupt", None)]
    run(machines=("valve",))
    assert len(run.files()) == 2 and any("checksum is not the announced one" in line for line in run.said)


def test_a_stalled_connection_is_given_up(server, run, monkeypatch):
    monkeypatch.setattr(records, "STALLED", 0.05)
    server.script = [("drip", None)] * 8
    with pytest.raises(checks.Refusal, match="the connection is stalled, 8 times in a row"):
        run(machines=("fan",))
    run(machines=("fan",))
    assert clips.index([run.root])[0].shape[0] == 5


def test_no_server_at_all_is_said(tmp_path, server):
    server.shutdown()
    server.server_close()
    with pytest.raises(checks.Refusal, match=r"no answer \(Connection refused\), 8 times in a row"):
        download.download("dcase2024", tmp_path, mirror=server.address, say=lambda line: None, wait=lambda seconds: None)


def entry(key="dev_fan.zip", size=10, checksum="md5:" + "0" * 32):
    return {"files": [{"key": key, "size": size, "checksum": checksum}]}


@pytest.mark.parametrize(
    "listed, words",
    [
        (b"<html>captive portal</html>", "no list of files with key, size and checksum came"),
        (b"[" * 100000, "no list of files"),
        (b"\xff\xfe\x00", "no list of files"),
        ({"files": 3}, "no list of files"),
        ({"files": [{"key": "dev_fan.zip"}]}, "no list of files"),
        ([], "no list of files"),
        ({"files": []}, "none of its 0 files is an archive of a machine"),
        (entry(size=0), "is said to have 0 bytes"),
        (entry(size=-1), "is said to have -1 bytes"),
        (entry(size=10**15), "expected 1 to"),
        (entry(size=True), "is said to have True bytes"),
        (entry(size="10"), "is said to have 10 bytes"),
        (entry(checksum="crc:12"), "has the checksum 'crc:12', expected md5"),
        (entry(checksum="md5:zz"), "has the checksum 'md5:zz'"),
        (entry(checksum=""), "has the checksum ''"),
        (entry(size=2**37), "GB are needed, .* are free; free some, or choose --parts"),
        (entry(key="../../dev_fan.zip"), "none of its 1 files is an archive"),
        (entry(key="dev_../x.zip"), "none of its 1 files is an archive"),
        (entry(key="dev_fan.zip\x00"), "none of its 1 files is an archive"),
        (entry(key="dev_fan.zip/../../x"), "none of its 1 files is an archive"),
    ],
)
def test_a_list_that_lies_is_refused(server, run, listed, words):
    server.lists[10902294] = listed
    with pytest.raises(checks.Refusal, match=words):
        run()
    assert run.files() == {}


def test_a_list_that_never_ends_is_not_read_to_its_end(server, run, monkeypatch):
    monkeypatch.setattr(records, "MOST_LIST", 1000)
    server.lists[10902294] = b" " * 5000
    with pytest.raises(checks.Refusal, match="expected a list of files"):
        run()


def test_a_size_that_lies_is_refused_either_way(server, run):
    whole = len(server.records[10902294]["dev_valve.zip"])
    for size, words in ((whole - 10, "more came than"), (whole + 10, "the connection ended at|no more bytes")):
        listed = listing(server.records[10902294])
        listed["files"][1]["size"] = size
        server.lists[10902294] = listed
        with pytest.raises(checks.Refusal, match=words):
            run(machines=("valve",))
        assert run.files() == {}


@pytest.mark.parametrize(
    "mirror", ["file:///etc", "ftp://x", "zenodo.org", "http://", "http://x/?a", "http://x:99999", "http://[x", "http://a b", "http://ä"]
)
def test_an_address_that_is_none_is_refused(tmp_path, mirror):
    with pytest.raises(checks.Refusal, match=r"expected an address like https://zenodo\.org"):
        download.download("dcase2024", tmp_path, mirror=mirror)


def test_another_file_in_the_place_of_a_recording_is_refused_and_kept(server, run):
    there = run.root / "dev_data/raw/valve/train/section_00_source_train_normal_0000_noAttribute.wav"
    there.parent.mkdir(parents=True)
    there.write_bytes(b"mine")
    with pytest.raises(checks.Refusal, match=r"another file is there than dev_valve\.zip brings; move it away"):
        run(machines=("valve",))
    assert there.read_bytes() == b"mine"
    there.unlink()
    run(machines=("valve",))


def test_a_link_that_leads_out_of_the_root_is_not_followed(server, run, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (run.root / "dev_data/raw").mkdir(parents=True)
    (run.root / "dev_data/raw/valve").symlink_to(outside)
    with pytest.raises(checks.Refusal, match="a link leads from there to elsewhere"):
        run(machines=("valve",))
    assert list(outside.iterdir()) == []


def test_two_downloads_at_once_are_refused(server, run, monkeypatch):
    (run.root / ".download").mkdir(parents=True)
    with open(run.root / ".download/.lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(checks.Refusal, match="another download is at work"):
            run()


def test_a_folder_that_cannot_be_written_is_said(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(checks.Refusal, match=r"Not a directory|File exists"):
        Run(server, tmp_path / "file")()


def test_what_is_unpacked_is_left_out_of_an_index_of_the_root_until_it_is_in_place(server, run):
    run(machines=("fan",))
    left = run.root / ".download/dev_valve.zip.unpacked/valve/train"
    left.mkdir(parents=True)
    (left / "section_00_source_train_normal_0000.wav").write_bytes(wav(1))
    assert set(clips.index([run.root])[0]["machine"]) == {"fan"}


# ---------------------------------------------------------------- true names


TRUTH = """RoboticArm
section_00_0000.wav,section_00_source_normal_0035_weight15_BckgF.wav
section_00_0001.wav,section_00_target_test_anomaly_0091_weight35_BckgE.wav
"""


def test_true_names_are_linked_and_the_missing_word_is_put_in(server, run, tmp_path):
    truth = tmp_path / "eval_data_list_2024.csv"
    truth.write_text("3DPrinter\nsection_00_0001.wav,section_00_target_test_anomaly_0001_mdl_B_spd_2.wav\n" + TRUTH)
    for _ in range(2):
        run(parts=("additional", "eval"), truth=truth)
    folder = run.root / "eval_data/raw/RoboticArm"
    assert sorted(path.name for path in (folder / "test_rename").iterdir()) == [
        "section_00_source_test_normal_0035_weight15_BckgF.wav", "section_00_target_test_anomaly_0091_weight35_BckgE.wav"]  # fmt: skip
    test = clips.index([folder.parent])[0].query("split == 'test'")
    assert list(test["label"]) == ["normal", "anomaly"] and list(test["attr_weight"]) == ["15", "35"]
    (folder / "test_rename" / "section_00_source_test_normal_0035_weight15_BckgF.wav").unlink()
    with pytest.raises(checks.Refusal, match="holds other names than"):
        run(parts=("additional", "eval"), truth=truth)


@pytest.mark.parametrize(
    "text, words",
    [
        ("RoboticArm\nsection_00_0000.wav,../../../x.wav\n", "line 2 is .*expected a machine, or NAME.wav,TRUE_NAME.wav"),
        ("RoboticArm\nsection_00_0000.wav,/etc/x.wav\n", "line 2 is"),
        ("section_00_0000.wav,section_00_source_test_normal_0035.wav\n", "line 1 is"),
        ("../..\n", "line 1 is"),
        ("RoboticArm\nsection_00_0000.wav\n", "line 2 is"),
        ("RoboticArm\nsection_00_0000.wav,section_00_source_test_normal_0035.wav\n", "no line for RoboticArm/test/section_00_0001.wav"),
        (TRUTH.replace("target_test_anomaly_0091_weight35_BckgE", "source_normal_0035_weight15_BckgF"), "two clips of RoboticArm have one true name"),
        ("RoboticArm\nsection_00_0000.wav,section_00_source_test_normal_0035_a\0b.wav\n", "line 2 is"),
        ("fan\n", "no evaluation clip of the machines in"),
        ("\udcff", "not readable as a list of names"),
        ("a" * 200000, "line 1 is|not readable|field larger"),
        (f"RoboticArm\nsection_00_0000.wav,section_00_source_test_normal_0035_{'a' * 300}.wav\n", "line 2 is"),
    ],
)
def test_a_list_of_names_that_is_none_is_refused(server, run, tmp_path, text, words):
    truth = tmp_path / "truth.csv"
    truth.write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(checks.Refusal, match=words):
        run(parts=("eval",), truth=truth)
    assert not (run.root / "eval_data/raw/RoboticArm/test_rename").exists()


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


def patched(path: Path, old: bytes, new: bytes) -> Path:
    """The archive with bytes changed behind the library's back, in the local header and the table of contents."""
    content = path.read_bytes()
    assert old in content and len(old) == len(new)
    path.write_bytes(content.replace(old, new))
    return path


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    "entries, words",
    [
        ([(entry_of("../../x.wav"), b"x")], "leads out of its folder"),
        ([(entry_of("fan/../../../x.wav"), b"x")], "leads out of its folder"),
        ([(entry_of("fan/./x.wav"), b"x")], "leads out of its folder"),
        ([(entry_of("fan//x.wav"), b"x")], "leads out of its folder"),
        ([(entry_of("/etc/x.wav"), b"x")], "is an absolute path"),
        ([(entry_of("fan\\..\\x.wav"), b"x")], "is an absolute path or one of another system"),
        ([(entry_of("C:/x.wav"), b"x")], "is an absolute path"),
        ([(entry_of("fan/a\nb.wav"), b"x")], "has control characters"),
        ([(entry_of("fan/\x1b[31m.wav"), b"x")], "has control characters"),
        ([(entry_of("fan/" + "a" * 256), b"x")], "has too long a name"),
        ([(entry_of("a/" * 600 + "b"), b"x")], "has too long a name"),
        ([(entry_of("fan/train", stat.S_IFLNK | 0o777), b"/etc")], "is a link or a device"),
        ([(entry_of("fan/train", stat.S_IFLNK | 0o777), b"../.."), (entry_of("fan/train/x.wav"), b"x")], "is a link or a device"),
        ([(entry_of("fan/x", stat.S_IFIFO), b"")], "is a link or a device"),
        ([(entry_of("fan/x", stat.S_IFCHR), b"")], "is a link or a device"),
        ([(entry_of("fan/x", stat.S_IFDIR), b"")], "is a link or a device"),
        ([(entry_of("fan/x.wav"), b"x"), (entry_of("fan/x.wav"), b"y")], "in the place of another file"),
        ([(entry_of("fan/x.wav"), b"x"), (entry_of("fan/X.WAV"), b"y")], "in the place of another file"),
        ([(entry_of("fan/x.wav"), b"x"), (entry_of("fan/x.wav/y.wav"), b"y")], "in the place of another file"),
        ([(entry_of("fan/x.wav/y.wav"), b"x"), (entry_of("fan/x.wav"), b"y")], "in the place of another file"),
        ([(entry_of("fan/x.wav", method=zipfile.ZIP_LZMA), b"x")], "is packed by method 14"),
        ([(entry_of("fan/x.wav", method=zipfile.ZIP_BZIP2), b"x")], "is packed by method 12"),
        ([(entry_of("fan/x.wav", method=zipfile.ZIP_DEFLATED), bytes(2**27))], "claims 134217728 bytes in"),
        ([(entry_of(f"fan/{i}.wav", method=zipfile.ZIP_DEFLATED), bytes(2**23)) for i in range(10)], "claim to hold 83.9 MB, which no recordings do"),
        ([(entry_of("fan/.hidden"), b"x")], "no file in it"),
        ([], "no file in it"),
    ],
)
def test_an_archive_that_is_not_trusted_writes_nothing(tmp_path, entries, words):
    with pytest.raises(checks.Refusal, match=words):
        archives.unpack(written(tmp_path / "a.zip", *entries), tmp_path / "out")
    assert not (tmp_path / "out").exists() and {path.name for path in tmp_path.iterdir()} == {"a.zip"}


def test_an_encrypted_archive_is_refused(tmp_path):
    path = written(tmp_path / "a.zip", (entry_of("fan/x.wav"), b"x"))
    content = bytearray(path.read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + place] |= 1
    path.write_bytes(content)
    with pytest.raises(checks.Refusal, match="is encrypted"):
        archives.unpack(path, tmp_path / "out")


def test_sizes_and_checksums_that_lie_are_refused(tmp_path):
    body = bytes(range(256)) * 40
    sizes = struct.pack("<II", len(body), len(body))
    for number, new in enumerate((struct.pack("<II", len(body), len(body) - 5), struct.pack("<II", len(body), 2**31))):
        path = patched(written(tmp_path / f"{number}.zip", (entry_of("fan/x.wav"), body)), sizes, new)
        with pytest.raises(checks.Refusal, match=r"no readable zip archive|claims|holds|unpacks to"):
            archives.unpack(path, tmp_path / f"out{number}")
    path = patched(written(tmp_path / "c.zip", (entry_of("fan/x.wav"), body)), body[:300], bytes(300))
    with pytest.raises(checks.Refusal, match=r"no readable zip archive.*CRC"):
        archives.unpack(path, tmp_path / "outc")


def test_an_archive_whose_entries_overlap_is_refused(tmp_path):
    """The bomb of overlapping files: many entries of the table of contents point at one body."""
    kernel = bytes(2**20)
    path = written(tmp_path / "a.zip", *((entry_of(f"fan/{i:04}.wav", method=zipfile.ZIP_DEFLATED), kernel if i == 0 else b"") for i in range(500)))
    with zipfile.ZipFile(path) as archive:
        first = archive.infolist()[0]
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\x01\x02")
    while at >= 0:
        content[at + 16 : at + 28] = struct.pack("<III", first.CRC, first.compress_size, first.file_size)
        content[at + 42 : at + 46] = struct.pack("<I", 0)
        at = content.find(b"PK\x01\x02", at + 4)
    path.write_bytes(content)
    with pytest.raises(checks.Refusal, match=r"claim to hold|no readable zip"):
        archives.unpack(path, tmp_path / "out")


def test_a_table_of_contents_without_measure_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MOST_CONTENTS", 10000)
    path = written(tmp_path / "a.zip", *((entry_of(f"fan/{i}.wav"), b"") for i in range(300)))
    with pytest.raises(checks.Refusal, match="its table of contents takes"):
        archives.unpack(path, tmp_path / "out")
    monkeypatch.undo()
    monkeypatch.setattr(archives, "MOST_FILES", 200)
    with pytest.raises(checks.Refusal, match="holds 300 files, at most 200"):
        archives.unpack(path, tmp_path / "out")


def test_more_than_the_free_space_is_refused(tmp_path, monkeypatch):
    path = written(tmp_path / "a.zip", (entry_of("fan/x.wav"), b"x" * 5000))
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 4000})())
    with pytest.raises(checks.Refusal, match="free some"):
        archives.unpack(path, tmp_path / "out")


def test_a_hostile_archive_from_a_server_leaves_no_file_and_names_itself(server, run, tmp_path):
    server.records[10902294] = {"dev_fan.zip": written(tmp_path / "a.zip", (entry_of("fan/../../../../x.wav"), b"x")).read_bytes()}
    with pytest.raises(checks.Refusal, match=r"dev_fan\.zip.*leads out of its folder; not unpacked"):
        run()
    assert run.files() == {} and not list(tmp_path.rglob("x.wav"))


def test_files_without_the_machine_s_folder_find_their_place(server, run):
    body = zipped({"train/section_00_source_train_normal_0000.wav": wav(1), "data/deep/fan/test/section_00_source_test_normal_0000.wav": wav(2)})
    server.records[10902294] = {"dev_fan.zip": body}
    run()
    names = [f"dev_data/raw/fan/{split}/section_00_source_{split}_normal_0000.wav" for split in ("test", "train")]
    assert sorted(run.files()) == names


# ---------------------------------------------------------------- command line


def test_the_command_prints_progress_and_the_next_command(server, tmp_path, capsys):
    root = tmp_path / "my data"
    command = ["download", "dcase2024", "--root", str(root), "--parts", "dev, eval", "--mirror", server.address]
    assert cli.main(command) == 0
    out = capsys.readouterr().out
    assert f"next: asd run paper --data-root '{root}/dev_data/raw' '{root}/eval_data/raw'" in out
    assert "[1/3] dev_fan.zip: 100% of" in out and "\r" not in out and "[3/3] eval_data_RoboticArm_test.zip: 2 files in" in out
    assert cli.main([*command, "--machines", "pump"]) == 2
    assert "asd: unknown machine 'pump'; known: RoboticArm, fan, valve" in capsys.readouterr().err


def test_on_a_terminal_one_line_is_rewritten(server, run, monkeypatch, capsys):
    monkeypatch.setattr(records.sys.stderr, "isatty", lambda: True, raising=False)
    run(machines=("fan",))
    err = capsys.readouterr().err
    assert err.startswith("\r[1/1] dev_fan.zip: ") and err.endswith("\n") and err.count("\n") == 1 and "100% of" in err
