"""Files that strangers, crashes and disks made: each ends in a worded refusal or in a correct result, never
in a traceback, a hang or a flood.

Mutations are drawn by hypothesis without randomness, so many of each family, counted in INPUTS. A test that
reads one of them runs inside `bounded`: 5 s of computing, 1 GB of memory more than before. Archives and
servers are those of test_download.
"""

import ast
import base64
import collections
import contextlib
import html.parser
import io
import json
import os
import pickle
import re
import resource
import shutil
import signal
import struct
import types
import zipfile
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import papermill
import pyarrow
import pyarrow.parquet
import pytest
import soundfile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packed import zipped
from torch import nn

from asdlib import errors, schemas
from asdlib import io as io_module
from asdlib.data import decode, download
from asdlib.data import index as clip_index
from asdlib.data.store import Clips, _open, open_store
from asdlib.evaluation import detectability, metrics
from asdlib.models import training
from asdlib.settings import to_tree
from asdlib.studies import artifacts, config, report, stages, study
from asdlib.studies.run import Run
from asdlib.studies.runner import parameters
from asdlib.viz import plots, report_plots, tables

ROOT = Path(__file__).resolve().parent.parent
BASELINE_NOTEBOOK = ROOT / "notebooks" / "03_baseline.ipynb"
INPUTS: collections.Counter = collections.Counter()  # family: hostile inputs that were read
EVIL = "<script>alert(1)</script>"
NUMBERS = [
    b"\0\0\0\0",
    b"\1\0\0\0",
    b"\xff\xff\xff\x7f",
    b"\0\0\0\x80",
    b"\xff\xff\xff\xff",
    b"\xfe\xff\xff\xff",
    b"\0\0\1\0",
    b"\x7f\xff\xff\xff",
]


def hostile(count: int):
    """So many examples, always the same ones; an eighth of them unless ASDLIB_EXHAUSTIVE is set."""
    return settings(
        max_examples=count if os.environ.get("ASDLIB_EXHAUSTIVE") else max(count // 8, 20),
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@contextlib.contextmanager
def bounded(family: str):
    """Count an input, and stop what takes more than 5 s of this process's time or 1 GB."""

    def late(number, frame):
        raise TimeoutError("a hostile input took more than 5 s")

    INPUTS[family] += 1
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.signal(signal.SIGVTALRM, late)
    signal.setitimer(signal.ITIMER_VIRTUAL, 5)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, signal.SIG_DFL)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20, (
        "a hostile input took more than 1 GB"
    )


@contextlib.contextmanager
def said():
    """A refusal inside this block is one line that a terminal can show."""
    try:
        yield
    except errors.InputError as refusal:
        assert len(str(refusal)) > 10 and "\x1b" not in str(refusal)


PLACES = st.floats(0, 1, exclude_max=True)
CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("byte"), PLACES, st.binary(min_size=1, max_size=1)),
        st.tuples(st.just("over"), PLACES, st.sampled_from(NUMBERS)),
        st.tuples(st.just("insert"), PLACES, st.binary(min_size=1, max_size=40)),
        st.tuples(st.just("cut"), PLACES, st.integers(1, 60)),
        st.tuples(st.just("repeat"), PLACES, st.integers(1, 60)),
        st.tuples(st.just("end"), PLACES, st.none()),
    ),
    min_size=1,
    max_size=5,
)


def mutated(body: bytes, changes: list, first: int = 0, span: int | None = None) -> bytes:
    """A file after the changes, all of which begin within `span` bytes from `first`."""
    for kind, place, value in changes:
        at = first + int(place * min(span or len(body), max(len(body) - first, 1)))
        if kind in ("byte", "over"):
            body = body[:at] + value + body[at + len(value) :]
        elif kind == "insert":
            body = body[:at] + value + body[at:]
        elif kind == "cut":
            body = body[:at] + body[at + value :]
        elif kind == "repeat":
            body = body[: at + value] + body[at:]
        else:
            body = body[:at]
    return body


LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5))
KEYS = st.text(max_size=5)
JSONS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=6,
)


# ---------------------------------------------------------------- recordings


def recording(**how) -> bytes:
    out = io.BytesIO()
    rng = np.random.default_rng(0)
    soundfile.write(out, 0.1 * rng.standard_normal((4000, how.pop("channels", 1))), 16000, **how)
    return out.getvalue()


WAVS = [recording(format="WAV", subtype=subtype) for subtype in ("PCM_16", "PCM_24", "FLOAT")]
WAVS += [recording(format="WAVEX", subtype="PCM_16", channels=3), recording(format="RF64", subtype="PCM_32")]
FLAC = recording(format="FLAC", subtype="PCM_16")


def heard(path: Path, body: bytes, data: decode.DataSettings, family: str) -> decode.Decoded:
    path.write_bytes(body)
    with bounded(family):
        found = decode.decode(path, data)
    if found.samples is None:
        assert len(found.refused) > 10 and found.refused.isprintable()
    else:
        assert (
            found.samples.dtype == np.int16
            and found.samples.ndim == 1
            and len(found.samples) >= decode.SHORTEST_S * 16000 - 1
        )
        assert np.isfinite(found.level_db) and found.digest
    return found


@hostile(400)
@given(st.sampled_from(WAVS), CHANGES, st.sampled_from([80, 8080, None]), st.booleans(), st.integers(0, 3))
def test_mutated_wavs(tmp_path_factory, body, changes, span, resample, channel):
    heard(
        tmp_path_factory.getbasetemp() / "x.wav",
        mutated(body, changes, 0, span),
        decode.DataSettings(resample=resample, channel=channel),
        "wav",
    )


@hostile(100)
@given(CHANGES, st.sampled_from([42, None]), st.booleans())
def test_mutated_flacs(tmp_path_factory, changes, span, resample):
    heard(
        tmp_path_factory.getbasetemp() / "x.flac",
        mutated(FLAC, changes, 0, span),
        decode.DataSettings(resample=resample),
        "flac",
    )


OTHERS = [recording(format=name, subtype="PCM_16") for name in ("AIFF", "AU", "CAF", "W64", "SVX", "NIST")]
OTHERS += [
    recording(format="OGG", subtype="VORBIS"),
    recording(format="AIFF", subtype="PCM_24", endian="LITTLE"),
]


@hostile(300)
@given(st.sampled_from(OTHERS), CHANGES, st.sampled_from([60, 300, None]))
def test_mutated_containers(tmp_path_factory, body, changes, span):
    heard(
        tmp_path_factory.getbasetemp() / "x.snd",
        mutated(body, changes, 0, span),
        decode.DataSettings(resample=True),
        "container",
    )


def claims(frames: int) -> bytes:
    """A FLAC file whose header claims so many frames."""
    body = bytearray(FLAC)
    body[21] = (body[21] & 0xF0) | (frames >> 32)
    body[22:26] = struct.pack(">I", frames & 0xFFFFFFFF)
    return bytes(body)


@pytest.mark.parametrize(
    "name, body, words",
    [
        ("x.flac", claims(2**36 - 1), r"too long \(4294967 s"),
        ("x.flac", claims(2**31 - 1), r"too long \(134218 s"),
        ("x.wav", WAVS[0][:24] + struct.pack("<I", 1) + WAVS[0][28:], r"too long \(4000 s|too long"),
        (
            "x.wav",
            WAVS[0][:24] + struct.pack("<I", 14699) + WAVS[0][28:],
            "the greatest common divisor of the rates",
        ),
        ("x.wav", WAVS[0][:36] + bytes(3_000_000), "no data chunk among the first 1000 chunks"),
        ("x.wav", WAVS[0][:24] + struct.pack("<I", 0) + WAVS[0][28:], "unreadable"),
    ],
)
def test_headers_that_ask_for_gigabytes_or_hours(tmp_path, name, body, words):
    """Each of them took a process down before there were limits: 128 GiB asked for at once, 12 GB of filter,
    17 s of empty parts.
    """
    assert re.search(
        words, heard(tmp_path / name, body, decode.DataSettings(resample=True), "header").refused
    )


def test_usual_rates_are_resampled_still(tmp_path):
    for rate in (8000, 11025, 22050, 32000, 44100, 48000, 96000, 192000):
        soundfile.write(tmp_path / "x.wav", np.zeros(rate) + 0.01, rate)
        assert len(decode.decode(tmp_path / "x.wav", decode.DataSettings(resample=True)).samples) == 16000


# ---------------------------------------------------------------- folders and lists


LIST = "\n".join(
    [
        "file_name,d1p,d1v,d2p,d2v",
        *(
            f"fan/train/section_00_source_train_normal_{i:04}_m-n_A_vel_{i}.wav,m-n,A,vel,{i}"
            for i in range(4)
        ),
    ]
)


def machine(root: Path, name: str = "fan", stems=(), body: bytes = b"") -> Path:
    shutil.rmtree(root, ignore_errors=True)
    (root / name / "train").mkdir(parents=True)
    for i in range(4):
        (root / name / "train" / f"section_00_source_train_normal_{i:04}_m-n_A_vel_{i}.wav").write_bytes(body)
    for stem in stems:
        (root / name / "train" / f"{stem}.wav").write_bytes(body)
    return root


def shown(table: pd.DataFrame, problems: pd.DataFrame) -> None:
    """What an index found can be told in every form, and none of it is markup or moves the cursor."""
    summary = clip_index.summary(table, problems)
    json.loads(json.dumps(summary))
    lines = clip_index.summary_text(summary).splitlines()
    assert not any("\x1b" in line or "\r" in line for line in lines)
    for part in (table, problems):
        assert tags(tables.styled(part)) <= {"style", "table", "thead", "tbody", "tr", "th", "td", "wbr", "p"}


class _Tags(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.handlers = set(), set()

    def handle_starttag(self, tag, attrs):
        self.found.add(tag)
        self.handlers |= {
            name for name, value in attrs if name.startswith("on") or "javascript:" in (value or "")
        }


def tags(text: str) -> set[str]:
    """Elements of a piece of HTML as a browser would see them; an attribute that runs something fails the
    test.
    """
    parser = _Tags()
    parser.feed(text)
    assert not parser.handlers
    return parser.found


@hostile(200)
@given(CHANGES, st.sampled_from([30, None]))
def test_mutated_attribute_lists(tmp_path_factory, changes, span):
    root = machine(tmp_path_factory.getbasetemp() / "lists")
    (root / "fan" / "attributes_00.csv").write_bytes(mutated(LIST.encode(), changes, 0, span))
    with bounded("csv"), said():
        table, problems = clip_index.index([root])
        assert len(table) == 4
        shown(table, problems)


@pytest.mark.parametrize(
    "text, words",
    [
        (
            "file_name" + ",k,v" * 60000 + "\nx.wav" + "".join(f",k{i},v" for i in range(60000)),
            "more than 100 attributes",
        ),
        (
            "file_name,d1p,d1v\n" + "\n".join(f"x{i}.wav,k{i},v" for i in range(5000)),
            "more than 100 attributes",
        ),
        ("file_name,d1p,d1v\n" + "a" * 200000, "field larger than field limit"),
        (
            'file_name,"' + "a\n" * 50000,
            "listed in an attributes csv|attributes are read from the file names|$",
        ),
    ],
)
def test_lists_that_ask_for_a_column_per_attribute(tmp_path, text, words):
    root = machine(tmp_path / "root")
    (root / "fan" / "attributes_00.csv").write_text(text)
    with bounded("csv"):
        table, problems = clip_index.index([root])
    assert len(table.columns) < 120 and (problems["reason"].str.contains(words).any() or not len(problems))


SEVERITIES = b"""file_name,severity
fan/test/section_00_source_test_anomaly_0000.wav,0.5
fan/test/section_00_source_test_anomaly_0001.wav,2
"""


@hostile(150)
@given(CHANGES)
def test_mutated_lists_of_severities(tmp_path_factory, changes):
    root = tmp_path_factory.getbasetemp() / "severities"
    (root / "fan").mkdir(parents=True, exist_ok=True)
    (root / "fan" / "severity.csv").write_bytes(mutated(SEVERITIES, changes))
    paths = [str(root / "fan" / "test" / f"section_00_source_test_anomaly_{i:04}.wav") for i in range(3)]
    with bounded("severity"), said():
        found = detectability.severities(pd.DataFrame({"clip": ["a", "b", "c"], "path": paths}))
        assert len(found) == 3 and (found.dropna() >= 0).all() and not np.isinf(found).any()


NAMES = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=60
).filter(lambda name: name not in (".", "..") and len(name.encode()) < 200)
MARKUP = st.sampled_from(
    [
        EVIL,
        '"><img src=x onerror=alert(1)>',
        "' onload='x",
        "a|b`*_#[x](y)",
        "$x^2$",
        "{{7*7}}",
        "%s%n",
        "-rf",
        "~",
        "é日本語",
        "a\nb",
        "\x1b[31m",
    ]
)
ENDINGS = st.one_of(
    NAMES, MARKUP.filter(lambda text: "/" not in text), MARKUP.map(lambda text: text.replace("/", ""))
)


@hostile(200)
@given(
    ENDINGS,
    st.lists(
        st.one_of(ENDINGS, ENDINGS.map(lambda text: f"section_00_source_train_normal_0009_{text}")),
        max_size=3,
    ),
)
def test_names_of_any_kind(tmp_path_factory, name, stems):
    root = tmp_path_factory.getbasetemp() / "names"
    with bounded("name"), said():
        machine(root, name, stems)
        table, problems = clip_index.index([root])
        shown(table, problems)
        assert not table["clip"].str.contains(r"[\x00-\x1f\x7f]").any()


def test_a_machine_that_would_pass_for_all_machines_is_refused(tmp_path):
    with pytest.raises(errors.InputError, match="is reserved for all machines in tables; rename the folder"):
        clip_index.index([machine(tmp_path / "root", "all")])
    with pytest.raises(errors.InputError, match="name of at most 100 bytes"):
        clip_index.index([machine(tmp_path / "other", "ä" * 60)])


# ---------------------------------------------------------------- studies


STUDY = b"""about = "one"
seeds = [0, 1]
systems = ["baseline_knn"]
[data]
roots = ["/nowhere"]
machines = ["fan"]
sample_rate = 16000
[autoencoder]
epochs = 3
lr = 1e-3
[oevae.features]
n_mels = 224
[oevae.mixup]
"""


@hostile(300)
@given(CHANGES)
def test_mutated_studies(tmp_path_factory, changes):
    path = tmp_path_factory.getbasetemp() / "study.toml"
    path.write_bytes(mutated(STUDY, changes))
    with bounded("toml"), said():
        cfg = config.load(str(path))
        assert config.StudySettings(**to_tree(cfg)) == cfg


SETTINGS = st.sampled_from(
    [row[0] for row in config.describe()] + ["", "a.b", "data", "oevae.features.x", ".", "..", "name.x"]
)
VALUES = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        [
            "[" * 5000,
            "{a={b=1}}",
            "1e999",
            "-0.0",
            "nan",
            "inf",
            "9" * 5000,
            "1979-05-27",
            "[[1]]",
            "{}",
            "[1, 'a']",
            '"""',
            "true",
            "0x10",
            "\0",
            "''",
        ]
    ),
    st.integers().map(str),
    st.floats().map(str),
)


@hostile(250)
@given(st.lists(st.builds("{}={}".format, SETTINGS, VALUES), min_size=1, max_size=3))
def test_settings_of_any_kind(overrides):
    with bounded("setting"), said():
        cfg = config.load("smoke", overrides)
        assert config.StudySettings(**to_tree(cfg)) == cfg


@pytest.mark.parametrize(
    "text",
    [
        "x = " + "[" * 20000,
        "x = " + "{a=" * 20000,
        "a" + ".b" * 20000 + "=1",
        "[" + "a." * 5000 + "b]",
        "x = " + "9" * 10000,
    ],
)
def test_studies_as_deep_as_a_well(tmp_path, text):
    path = tmp_path / "study.toml"
    path.write_text(text)
    with bounded("toml"), pytest.raises(errors.InputError):
        config.load(str(path))


@pytest.mark.parametrize(
    "name",
    [
        "a" * 5000 + ".toml",
        "/" + "a/" * 5000 + "x.toml",
        "\0.toml",
        "a\0b",
        "",
        "..",
        "../demo",
        "/etc/passwd",
        "\ud800.toml",
    ],
)
@pytest.mark.parametrize("how", ["study", "include"])
def test_names_of_studies_that_are_none(name, how):
    with bounded("setting"), pytest.raises(errors.InputError):
        config.load(
            *(
                [name]
                if how == "study"
                else ["smoke", [f"include={json.dumps([name])}", f"include={json.dumps(['~' + name])}"]]
            )
        )


@pytest.mark.parametrize("root", ["/a\0b", "/" + "a" * 5000, "/dev/null", "/proc/self/mem"])
def test_roots_that_are_none(tmp_path, root):
    with bounded("setting"), pytest.raises(errors.InputError):
        run = study.open_run("smoke", ["data.roots=" + json.dumps([root])], tmp_path)
        assert run.clips is None


# ---------------------------------------------------------------- what a study left behind


class Finished(dict):
    """Detector: its run, folder, files and count of scores."""

    def __repr__(self) -> str:
        return f"Finished({', '.join(self)})"


@pytest.fixture(scope="module")
def finished(context, tmp_path_factory):
    """A run with a detector of each kind fitted, whose folders can be copied, spoiled and sealed again."""
    home = tmp_path_factory.mktemp("home")
    found = Finished()
    for name, stage, of in (
        ("baseline_knn", "03", "pump"),
        ("autoencoder", "03", "pump"),
        ("oevae", "05", "pump"),
        ("classifier", "04", ""),
    ):
        run = Run(context.cfg, home, 0, stages.stage_of(stage), of or "pump")
        run.__dict__["store"] = context.store
        _, scores, _ = run.fit_or_load(name)
        scored = run.detector_folder(name, of, 0)
        files = {
            f"{kind}/{path.name}": path.read_bytes()
            for kind, folder in (("scores", scored), ("trained", run.trained_with(scored)))
            for path in folder.iterdir()
        }
        found[name] = (run, scored, files, len(scores))
    return found


def spoil(finished, name: str, file: str, body: bytes, family: str) -> None:
    """Put a file in the place of a detector's, sealed as if it had been written so, and ask the run for the
    detector.
    """
    run, scored, files, _ = finished[name]
    trained = scored.parent / json.loads(files["scores/manifest.json"])["trained"]
    for kind, folder in (("scores", scored), ("trained", trained)):
        for path in folder.iterdir():
            path.unlink()
        for other, content in files.items():
            if other.startswith(f"{kind}/"):
                (folder / other.partition("/")[2]).write_bytes(body if other == file else content)
        artifacts.commit(folder, folder.name, {"trained": trained.name})
    rows = np.flatnonzero((run.clips["machine"] == run.machine) & (run.clips["split"] == "test"))
    with bounded(family), said():
        detector, scores, history = run.fit_or_load(name)
        assert len(schemas.score_table(scores)) > 0 and isinstance(history, pd.DataFrame)
        with np.errstate(all="ignore"):
            told = detector.components(
                Clips(detector.store, rows[:2])
            )  # weights of another size would show here
        assert told and all(len(values) == 2 for values in told.values())


def kept(finished, ending: str) -> list[tuple[str, str]]:
    return [
        (name, file)
        for name, (_, _, files, _) in finished.items()
        for file in sorted(files)
        if file.endswith(ending)
    ]


def test_the_detectors_are_read_back_as_they_are(finished):
    assert len(kept(finished, ".safetensors")) >= 8 and len(kept(finished, ".parquet")) >= 6
    for name, (run, _, files, count) in finished.items():
        spoil(finished, name, "scores/scores.parquet", files["scores/scores.parquet"], "whole")
        assert len(run.fit_or_load(name)[1]) == count


@hostile(200)
@given(st.integers(0, 100), CHANGES, st.sampled_from(["head", "tail", "all"]))
def test_mutated_tables_of_detectors(finished, which, changes, where):
    tables_of = kept(finished, ".parquet")
    name, file = tables_of[which % len(tables_of)]
    body = finished[name][2][file]
    first, span = {"head": (0, 200), "tail": (len(body) - 3000, 3000), "all": (0, None)}[where]
    spoil(finished, name, file, mutated(body, changes, max(first, 0), span), "parquet")


@hostile(200)
@given(st.integers(0, 100), CHANGES, st.sampled_from([8, 500, None]))
def test_mutated_tensors_of_detectors(finished, which, changes, span):
    files = kept(finished, ".safetensors")
    name, file = files[which % len(files)]
    spoil(finished, name, file, mutated(finished[name][2][file], changes, 0, span), "safetensors")


CELLS = st.one_of(
    st.none(),
    st.text(max_size=5),
    st.integers(-5, 5),
    st.floats(),
    st.lists(st.integers(), max_size=2),
    st.binary(max_size=3),
)


@hostile(80)
@given(st.sampled_from(schemas.SCORE_COLUMNS), st.lists(CELLS, min_size=1, max_size=3))
def test_tables_with_foreign_cells(finished, column, cells):
    files = finished["baseline_knn"][2]
    table = pd.read_parquet(io.BytesIO(files["scores/scores.parquet"]))
    out = io.BytesIO()
    try:
        table.assign(**{column: pd.Series([cells[i % len(cells)] for i in range(len(table))])}).to_parquet(
            out, index=False
        )
    except (pyarrow.ArrowException, TypeError, ValueError, OverflowError):
        return
    spoil(finished, "baseline_knn", "scores/scores.parquet", out.getvalue(), "parquet cells")


KNOWN = {"split": ["test"], "domain": ["source"], "label": ["normal"]}


@pytest.mark.parametrize(
    "table, words",
    [
        (pd.DataFrame({"a": [1]}), "lacks the columns system"),
        (pd.DataFrame({name: ["x"] for name in schemas.SCORE_COLUMNS} | KNOWN), "expected numeric columns"),
        (
            pd.DataFrame(
                {name: ["x"] for name in schemas.SCORE_COLUMNS} | KNOWN | {"score": [np.nan], "seed": [0]}
            ),
            "expected a finite number",
        ),
        (
            pd.DataFrame({name: [3] for name in schemas.SCORE_COLUMNS}),
            "column system contains 3, expected strings only",
        ),
        (
            pd.DataFrame({name: ["x"] for name in schemas.SCORE_COLUMNS} | {"clip": [None]}),
            "column clip contains None, expected strings only",
        ),
    ],
)
def test_a_score_table_of_another_form_is_refused(tmp_path, table, words):
    table.to_parquet(tmp_path / "scores.parquet")
    with pytest.raises(errors.InputError, match=words):
        io_module.scores(tmp_path / "scores.parquet")


def test_a_table_that_claims_to_be_huge_is_not_read(tmp_path):
    pyarrow.parquet.write_table(
        pyarrow.table({"a": pyarrow.array(["x"]).take(pyarrow.array(np.zeros(2**23, int)))}),
        tmp_path / "t.parquet",
    )
    assert (tmp_path / "t.parquet").stat().st_size < 10**5
    with bounded("parquet"), pytest.raises(errors.InputError, match="declares 8388608 rows"):
        io_module.table(tmp_path / "t.parquet")


@hostile(120)
@given(
    st.sampled_from(["clips.parquet", "problems.parquet", "DONE.json"]), CHANGES, st.sampled_from([300, None])
)
def test_mutated_stores_are_decoded_again(context, tmp_path_factory, file, changes, span):
    source, folder = context.store.folder, tmp_path_factory.getbasetemp() / "store"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)
    (folder / file).write_bytes(mutated((folder / file).read_bytes(), changes, 0, span))
    table = context.store.clips[[*schemas.CLIP_COLUMNS]]
    with bounded("store"):
        found = _open(folder, json.loads((source / "DONE.json").read_text())["source"], 16000)
    assert found is None or (
        found.clips["clip"].tolist() == table["clip"].tolist()
        and found.fingerprint == context.store.fingerprint
    )


@hostile(150)
@given(
    st.one_of(JSONS, st.fixed_dictionaries({"digest": JSONS, "files": JSONS})), st.one_of(st.none(), CHANGES)
)
def test_markers_of_any_form(finished, value, changes):
    """DONE as JSON of any form, and DONE and BEGUN as any bytes: a folder is finished or it is not."""
    _, folder, files, _ = finished["baseline_knn"]
    done = json.dumps(value).encode() if changes is None else mutated(files["scores/DONE"], changes)
    (folder / "DONE").write_bytes(done)
    with bounded("marker"):
        assert artifacts.is_whole(folder) in (True, False)
    marked = folder.parent / "begun"
    marked.mkdir(exist_ok=True)
    (marked / "BEGUN").write_bytes(done + b"\xff")
    (marked / "old").write_bytes(b"")
    artifacts.start(marked, "0123")
    assert {path.name for path in marked.iterdir()} == {"BEGUN"}


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4))

    def loss(self, batch, generator):
        return {"loss": ((self.weight - batch) ** 2).sum()}


def trained(checkpoint: Path) -> list[float]:
    with training.seeded_init(0):
        model = Line()
    training.fit(
        model,
        lambda generator: iter([torch.ones(4)]),
        torch.optim.Adam(model.parameters(), 0.1),
        epochs=3,
        seed=0,
        what="t",
        checkpoint=checkpoint,
    )
    return model.weight.tolist()


@hostile(100)
@given(CHANGES, st.sampled_from([200, None]))
def test_mutated_checkpoints(tmp_path_factory, changes, span):
    path = tmp_path_factory.getbasetemp() / "checkpoint.pt"
    path.unlink(missing_ok=True)
    trained(path)
    whole = path.read_bytes()
    path.write_bytes(mutated(whole, changes, 0, span))
    with bounded("checkpoint"), said():
        assert np.isfinite(trained(path)).all()


# ---------------------------------------------------------------- nothing that is read can run


class Bomb:
    """Leaves a file where it is unpickled."""

    ran: Path

    def __reduce__(self):
        return (Path.touch, (self.ran,))


@pytest.fixture
def bomb(monkeypatch, tmp_path):
    ran = tmp_path / "ran"
    monkeypatch.setattr(Bomb, "ran", ran, raising=False)
    pickle.loads(pickle.dumps(Bomb()))
    assert ran.exists(), "the bomb is a dud, and would prove nothing"
    ran.unlink()
    yield pickle.dumps(Bomb())
    assert not ran.exists(), "a pickle ran"


@pytest.mark.filterwarnings(
    "ignore"
)  # as on the command line: a warning that stops torch would prove nothing
def test_pickles_in_the_place_of_artifacts_do_not_run(bomb, finished, tmp_path):
    for name, file in kept(finished, ".safetensors") + kept(finished, ".parquet"):
        spoil(finished, name, file, bomb, "pickle")
    as_torch = io.BytesIO()
    with zipfile.ZipFile(as_torch, "w") as archive:
        archive.writestr("archive/data.pkl", bomb)
        archive.writestr("archive/version", "3")
        archive.writestr("archive/byteorder", "little")
    array = io.BytesIO()
    np.save(array, np.array([Bomb()], dtype=object), allow_pickle=True)
    whole = io.BytesIO()
    torch.save({"model": Bomb(), "optimizer": {}, "history": []}, whole)
    for body in (bomb, as_torch.getvalue(), array.getvalue(), whole.getvalue()):
        path = tmp_path / "checkpoint.pt"
        path.write_bytes(body)
        with bounded("pickle"):
            assert np.isfinite(trained(path)).all()
        (tmp_path / "weights.safetensors").write_bytes(body)
        with bounded("pickle"), pytest.raises(errors.InputError, match="does not contain the weights"):
            training.load_weights(Line(), tmp_path / "weights.safetensors")
        (tmp_path / "x.wav").write_bytes(body)
        assert "unreadable" in decode.decode(tmp_path / "x.wav", decode.DataSettings()).refused
    kinds = pyarrow.schema(
        [
            pyarrow.field(
                "a",
                pyarrow.binary(),
                metadata={
                    b"ARROW:extension:name": b"arrow.py_extension_type",
                    b"ARROW:extension:metadata": bomb,
                },
            )
        ]
    )
    pyarrow.parquet.write_table(
        pyarrow.table({"a": pyarrow.array([b"x"], pyarrow.binary())}).cast(kinds), tmp_path / "t.parquet"
    )
    with bounded("pickle"), said():
        io_module.table(tmp_path / "t.parquet")


RUNNING = "eval exec compile __import__ os.system os.popen pd.read_pickle pandas.read_pickle np.load numpy.load".split()
FORBIDDEN = "pickle cPickle dill cloudpickle joblib marshal shelve yaml numpy.lib.npyio".split()


def running(source: str) -> list[str]:
    """Ways in which a source file could run what it reads, in words."""
    out = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            out += [alias.name for alias in node.names if alias.name.split(".")[0] in FORBIDDEN]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FORBIDDEN:
            out.append(str(node.module))
        elif isinstance(node, ast.Call):
            name, given_ = (
                ast.unparse(node.func),
                {word.arg: ast.unparse(word.value) for word in node.keywords},
            )
            if name == "torch.load" and given_.get("weights_only") != "True":
                out.append("torch.load without weights_only=True")
            if given_.get("allow_pickle", "False") != "False" or given_.get("shell", "False") != "False":
                out.append(f"{name} with allow_pickle or shell")
            if name in RUNNING:
                out.append(name)
            if name.endswith((".to_pickle", ".read_pickle", ".eval")) and name != "model.eval" and node.args:
                out.append(name)
            if name == "torch.hub.load" or name.endswith("trust_remote_code"):
                out.append(name)
    return out


def sources() -> dict[str, str]:
    found = {
        str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
        for path in (ROOT / "asdlib").rglob("*.py")
    }
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        book = json.loads(path.read_text(encoding="utf-8"))
        found[path.name] = "\n".join(
            "".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code"
        )
    return found


def test_no_source_can_run_what_it_reads():
    assert {name: running(text) for name, text in sources().items() if running(text)} == {}
    assert len(sources()) > 30


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from joblib import load",
        "import yaml",
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "np.load(p)",
        "eval(text)",
        "np.load(p, allow_pickle=True)",
        "pd.read_pickle(p)",
        "exec(text)",
        "os.system(text)",
        "subprocess.run(text, shell=True)",
        "frame.eval(text)",
        "t.to_pickle(p)",
    ],
)
def test_such_a_source_is_found(text):
    assert running(text)


def test_jupyter_is_only_ever_started_on_loopback_with_a_token():
    """No command starts a server; where a text tells how, it leaves the defaults alone (127.0.0.1, a random
    token).
    """
    open_to_all = re.compile(
        r"--ip\b|--no-token|allow[_-]origin|allow[_-]remote|(?:IdentityProvider|ServerApp|NotebookApp)\.(?:token|password|ip)|0\.0\.0\.0|--allow-root"
    )
    texts = sources() | {
        path.name: path.read_text(encoding="utf-8") for path in [*ROOT.glob("*.md"), *ROOT.glob("*.toml")]
    }
    assert "jupyter lab" in texts["README.md"]
    assert {name: open_to_all.findall(text) for name, text in texts.items() if open_to_all.search(text)} == {}
    assert not [
        name
        for name, text in sources().items()
        if re.search(r"jupyter[- ](?:lab|notebook|server)|jupyterlab|LabApp|ServerApp|voila", text)
    ]


# ---------------------------------------------------------------- notebooks' parameters


INJECTIONS = [
    '"; import os; os.system("touch injected"); x = "',
    "'; exec('1') #",
    "a\nimport os\nos.getcwd()",
    "a\r\nimport os",
    '"""',
    "\\",
    '\\"',
    '\\n" + str(1) + "',
    "{x}",
    "%s",
    "#",
    "\u2028import os",
    "\x0cimport os",
    "\x00",
    "é日本語\U0001f600",
    "$(touch x)",
    "`x`",
    "None",
    "True",
    "__import__('os')",
    "!ls",
    "%run x",
    "\ud800",
    EVIL,
]


def injected(parameters: dict) -> dict:
    """The values that a notebook's injected cell assigns, read from its syntax; constants only."""
    book = papermill.iorw.load_notebook_node(str(ROOT / "notebooks" / "03_baseline.ipynb"))
    book = papermill.parameterize.parameterize_notebook(book, parameters)
    cells = [cell for cell in book.cells if "injected-parameters" in cell.metadata.get("tags", [])]
    assert len(cells) == 1
    found = {}
    for statement in ast.parse(cells[0].source).body:
        assert (
            isinstance(statement, ast.Assign)
            and len(statement.targets) == 1
            and isinstance(statement.targets[0], ast.Name)
        ), ast.unparse(statement)
        found[statement.targets[0].id] = ast.literal_eval(statement.value)
    return found


@pytest.mark.parametrize("text", INJECTIONS)
def test_parameters_cannot_inject_code(text):
    words = {"study": f"/studies/{text}.toml", "home": f"/home/{text}", "machine": text}
    given_ = parameters(BASELINE_NOTEBOOK, overrides=[f"about={text}", text], seed=3, **words)
    assert injected(given_) == given_


@hostile(100)
@given(st.text(max_size=80), st.lists(st.text(max_size=40), max_size=3))
def test_parameters_of_any_kind_stay_constants(text, overrides):
    words = {"study": text, "home": text, "machine": text}
    given_ = parameters(BASELINE_NOTEBOOK, overrides=overrides, seed=0, **words)
    with bounded("parameter"):
        assert injected(given_) == given_


@pytest.mark.parametrize("text", INJECTIONS)
def test_a_notebook_that_gets_such_a_parameter_refuses_it(text, tmp_path):
    for given_ in (
        {"study": text},
        {"study": "smoke", "machine": text},
        {"study": "smoke", "overrides": [text]},
    ):
        with pytest.raises(errors.InputError):
            study.open_notebook(
                "03_baseline",
                **{"overrides": ["data.recorded=true", 'data.roots=["/nowhere"]'], "home": str(tmp_path)}
                | given_,
            )


# ---------------------------------------------------------------- pages


SAFE = set(
    """
    html head meta title style body main nav p ol li a div span details summary pre h1 h2 h3 section
    article i b table caption thead tbody tr th td wbr figure figcaption audio img footer dl dt dd
    strong ul code
    """.split()
)
MARKS = [
    EVIL.replace("/", ""),
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</td><svg onload=alert(1)>".replace("/", ""),
    "&lt;b&gt;",
    "]]><x>",
    "{{x}}{% x %}",
]


EVERY = (0, 1, 6)  # an element, an attribute, a template; the others are like one of them


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(number, marks=[] if number in EVERY else [pytest.mark.exhaustive])
        for number in range(len(MARKS))
    ],
)
def marked(request, tmp_path_factory):
    """A study's clips whose machine, attribute values and file names are markup."""
    mark = MARKS[request.param]
    root = tmp_path_factory.mktemp("marked")
    rng = np.random.default_rng(0)
    for split, label, count in (("train", "normal", 4), ("test", "normal", 3), ("test", "anomaly", 3)):
        folder = root / f"m{mark}" / split
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(count):
            soundfile.write(
                folder / f"section_00_source_{split}_{label}_{i:04}_key_{mark}.wav",
                0.1 * rng.standard_normal(4000),
                16000,
            )
        (folder / f"{mark}.wav").write_bytes(b"")
    store = open_store(*clip_index.index([root]), tmp_path_factory.mktemp("store"), decode.DataSettings())
    return mark, store


def study_of(store, mark):
    """What `report.findings` asks of a run."""
    small = metrics.MetricsSettings(bootstrap=20, shuffles=10)
    return types.SimpleNamespace(
        cfg=config.StudySettings(name="t", about=mark, systems=("baseline_knn",), metrics=small),
        clips=store.clips,
        store=store,
        seed=0,
        home=Path("/"),
        withdrawn=[],
        synthetic=False,
        unseen=lambda s: s["split"] == "train",
        measure=lambda s: (metrics.table(s, small, 0), metrics.controls(store.clips, s, small, 0)),
        load_table=lambda *_: pd.DataFrame(),
    )


def text_of(page: str) -> str:
    """What a browser shows of a page."""
    found = []
    parser = html.parser.HTMLParser()
    parser.handle_data = found.append
    parser.feed(page)
    return "".join(found)


def test_names_show_as_text_in_tables_players_figures_and_pages(marked, tmp_path):
    mark, store = marked
    assert store.clips["machine"].str.contains(mark, regex=False).all() and len(store.problems)
    rows = [
        ("baseline_knn", "score", *row, float(i), 0)
        for i, row in enumerate(
            store.clips[list(schemas.SCORE_COLUMNS[2:8])].itertuples(index=False, name=None)
        )
    ]
    scores = schemas.score_table(pd.DataFrame(rows, columns=schemas.SCORE_COLUMNS))
    decisions = pd.DataFrame(
        [("baseline_knn", f"m{mark}", "all", 0, 3.0)],
        columns=["system", "machine", "domain", "seed", "threshold"],
    )
    some = scores["clip"][:2]
    run = study_of(store, mark)
    found = report.findings(run, scores)
    outputs = [
        tables.styled(store.clips, mark),
        tables.styled(store.problems, mark),
        tables.folded(mark, tables.styled(scores)),
        report.players(store, some, some, 16000),
        report.first_screen(found),
        report.claims_table(found),
        report.detection_table(found),
        report.clip_cards(run, found),
        report_plots.domain_gaps(found.table, found.controls),
        plots.counts(store.clips)._repr_html_(),
        plots.spread(store.clips, "level_db")._repr_html_(),
        report_plots.score_histograms(scores, decisions)._repr_html_(),
        plots.waveform(np.zeros(100), 16000, [], mark)._repr_html_(),
    ]
    cells = [nbformat.v4.new_markdown_cell("# Title"), nbformat.v4.new_markdown_cell("## Part")]
    printed = [
        nbformat.v4.new_output("stream", text=f"{mark}\n"),
        nbformat.v4.new_output("display_data", data={"text/plain": mark}),
    ]
    shown_ = [nbformat.v4.new_output("display_data", data={"text/html": str(text)}) for text in outputs]
    book = nbformat.v4.new_notebook(
        cells=[*cells, nbformat.v4.new_code_cell(f"x = {mark!r}", outputs=printed + shown_)]
    )
    nbformat.write(book, tmp_path / "n.ipynb")
    page = report.html(
        tmp_path / "n.ipynb", tmp_path / "page.html", {"study": mark, "machine": f"m{mark}"}, f"Report {mark}"
    ).read_text(encoding="utf-8")
    for text in [*outputs, page]:
        assert tags(text) <= SAFE and "<script" not in text
    drawn = [
        base64.b64decode(data).decode() for data in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", page)
    ]
    assert drawn and not any(
        "<script" in text or "onload" in re.sub(r"<!--.*?-->", "", text) for text in drawn
    )
    words = text_of(page)
    assert words.count(mark) >= len(store.clips)  # as text, to the letter


def test_names_show_as_text_in_summaries_and_the_index_of_studies(marked, tmp_path):
    mark, _ = marked
    scores = marked[1].clips.assign(system="baseline_knn", component="score", seed=0, score=1.0)
    found = report.findings(study_of(marked[1], mark), scores[list(schemas.SCORE_COLUMNS)])
    table, controls = found.table, found.controls
    problems = pd.DataFrame({"path": [mark], "reason": [mark], "left_out": [True]})
    report.write_summary(tmp_path / "t", found, problems)
    index = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert tags(index) <= SAFE and mark in text_of(index)
    assert tags((tmp_path / "t" / "summary.md").read_text(encoding="utf-8")) <= set()
    assert (
        tags(tables.metrics_table(table, controls)) <= SAFE
        and tags(plots.metric_dots(table)._repr_html_()) <= SAFE
    )


REPORT = json.dumps(
    {
        "study": "t",
        "about": "a",
        "finished": "2024-01-01",
        "machines": ["fan"],
        "omega": {"knn": [0.5, 0.4, 0.6]},
        "left_out": 1,
        "headline": "h",
        "warnings": [["w", True]],
    }
).encode()


@hostile(150)
@given(CHANGES)
def test_mutated_reports_in_the_index_of_studies(tmp_path_factory, changes):
    folder = tmp_path_factory.getbasetemp() / "reports"
    (folder / "t").mkdir(parents=True, exist_ok=True)
    (folder / "t" / "report.json").write_bytes(mutated(REPORT, changes))
    with bounded("report.json"):
        assert tags(report.write_index(folder).read_text(encoding="utf-8")) <= SAFE


@hostile(150)
@given(st.sampled_from(["about", "finished", "machines", "omega", "left_out", "headline", "warnings"]), JSONS)
def test_reports_of_another_form_in_the_index_of_studies(tmp_path_factory, name, value):
    folder = tmp_path_factory.getbasetemp() / "forms"
    for i, facts in enumerate((json.loads(REPORT), json.loads(REPORT) | {name: value}, value)):
        (folder / str(i)).mkdir(parents=True, exist_ok=True)
        (folder / str(i) / "report.json").write_text(json.dumps(facts))
    with bounded("report.json"):
        assert tags(report.write_index(folder).read_text(encoding="utf-8")) <= SAFE


CELL = nbformat.v4.new_code_cell("x = 1", id="one", outputs=[nbformat.v4.new_output("stream", text="1")])
BOOK = nbformat.writes(
    nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Title", id="top"), CELL])
).encode()


@hostile(60)
@given(CHANGES)
def test_mutated_notebooks(tmp_path_factory, changes):
    folder = tmp_path_factory.getbasetemp()
    (folder / "n.ipynb").write_bytes(mutated(BOOK, changes))
    with bounded("notebook"), said():
        report.html(folder / "n.ipynb", folder / "n.html", {}, "t")


# ---------------------------------------------------------------- downloads


ZIP = zipped({f"fan/train/section_00_source_train_normal_{i:04}.wav": bytes(range(200)) for i in range(3)})


@hostile(250)
@given(CHANGES, st.sampled_from(["head", "tail", "all"]))
def test_mutated_archives_write_only_what_they_should(tmp_path_factory, changes, where):
    folder = tmp_path_factory.getbasetemp() / "zips"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "in").mkdir(parents=True)
    first, span = {"head": (0, 200), "tail": (len(ZIP) - 320, 320), "all": (0, None)}[where]
    (folder / "a.zip").write_bytes(mutated(ZIP, changes, first, span))
    with bounded("zip"), said():
        names = download.unpack(folder / "a.zip", folder / "in" / "out", "fan")
        assert sorted(path for path in (folder / "in" / "out").rglob("*") if path.is_file()) == sorted(
            folder / "in" / "out" / name for name in names
        )
    assert {path.name for path in folder.iterdir()} == {"a.zip", "in"} and {
        path.name for path in (folder / "in").iterdir()
    } <= {"out"}


LISTED = json.dumps(
    {
        "files": [
            {"key": "dev_fan.zip", "size": 10, "checksum": "md5:" + "0" * 32},
            {"key": "README.md", "size": 1, "checksum": "md5:0"},
        ]
    }
).encode()


@hostile(150)
@given(CHANGES)
def test_mutated_lists_of_records(tmp_path_factory, changes):
    folder = tmp_path_factory.getbasetemp()
    (folder / "http_x_1.json").write_bytes(mutated(LISTED, changes))
    with bounded("record"), said():
        found = download._archives("http://x/1", folder, "dev_data/raw")  # pooch takes what is there
        assert all(re.fullmatch(r"[\w.-]+", archive.key) and archive.size > 0 for archive in found)


NAMES_OF = b"""RoboticArm
section_00_0000.wav,section_00_source_normal_0035_weight15_BckgF.wav
section_00_0001.wav,section_00_target_test_anomaly_0091_weight35_BckgE.wav
"""


@hostile(150)
@given(CHANGES)
def test_mutated_lists_of_true_names(tmp_path_factory, changes):
    folder = tmp_path_factory.getbasetemp() / "truth"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "raw" / "RoboticArm" / "test").mkdir(parents=True)
    for i in range(2):
        (folder / "raw" / "RoboticArm" / "test" / f"section_00_{i:04}.wav").write_bytes(b"x")
    (folder / "truth.csv").write_bytes(mutated(NAMES_OF, changes))
    with bounded("truth"), said():
        download.rename_eval(folder / "raw", folder / "truth.csv", lambda line: None)
        assert len(list((folder / "raw" / "RoboticArm" / "test_rename").iterdir())) == 2
    assert {path.name for path in folder.iterdir()} == {"raw", "truth.csv"} and {
        path.name for path in (folder / "raw").iterdir()
    } == {"RoboticArm"}


def test_every_family_was_read(request):
    ours = {item.name for item in request.session.items if item.path == Path(__file__)}
    if "test_mutated_wavs" not in ours or "test_mutated_lists_of_true_names" not in ours:
        pytest.skip("only some of the families were asked for")
    print(dict(INPUTS))
    assert len(INPUTS) >= 23 and min(INPUTS.values()) > 0 and sum(INPUTS.values()) >= 400, INPUTS
