"""Lists as people save them: every usual form is read alike, any other is refused in words."""

import pytest

from asdlib.data import lists

ROWS = [["a.wav", "normal"], ["b.wav", "anomaly"]]
TEXT = "path,label\na.wav,normal\nb.wav,anomaly\n"


@pytest.mark.parametrize(
    "raw",
    [
        TEXT.encode(),
        TEXT.encode("utf-8-sig"),
        TEXT.encode("utf-16"),
        TEXT.replace("\n", "\r\n").encode(),
        TEXT.replace("\n", "\r").encode(),
        TEXT.replace(",", ";").encode(),
        TEXT.replace(",", "\t").encode(),
        b"sep=;\n" + TEXT.replace(",", ";").encode(),
        b'\xef\xbb\xbf"sep=\t"\r\n' + TEXT.replace(",", "\t").encode(),
        TEXT.replace("\n", "\n\n").encode(),
        TEXT.replace(",", " , ").encode(),
        b'"path", "label"\n"a.wav", "normal"\n"b.wav", "anomaly"',
    ],
)
def test_usual_forms_are_one(raw, tmp_path):
    (tmp_path / "list.csv").write_bytes(raw)
    header, rows = lists.read(tmp_path / "list.csv")
    assert header == ["path", "label"] and [cells for _, cells in rows] == ROWS
    assert lists.columns(tmp_path / "list.csv") == {"path", "label"}


def test_lines_are_counted_as_an_editor_does(tmp_path):
    (tmp_path / "list.csv").write_text("sep=,\npath,label\n\na.wav,normal\n,\nb.wav,anomaly\n")
    assert [number for number, _ in lists.read(tmp_path / "list.csv")[1]] == [4, 6]


@pytest.mark.parametrize(
    "raw, words",
    [
        (b"", "empty, expected a header"),
        (b"\n \n", "empty"),
        (b"sep=;\n", "empty"),
        ("ort\nPrüfstand".encode("latin-1"), "not a valid UTF-8"),
        (b"RIFF\0\0\0\0", "not a valid UTF-8"),
        (
            b'path,label\na.wav,"normal\nb.wav,anomaly\nc.wav,normal\n',
            "quotation mark .* before line 4 is not closed",
        ),
        (b"path,label\n" + b"a" * 200000, "field larger than field limit"),
    ],
)
def test_other_files_are_refused_in_words(raw, words, tmp_path):
    (tmp_path / "list.csv").write_bytes(raw)
    with pytest.raises(ValueError, match=words):
        lists.read(tmp_path / "list.csv")
