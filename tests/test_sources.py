"""What an import takes each recording for: a list governs, names are understood or refused, and whatever is
not used is told and counted.
"""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from asdlib import cli, errors
from asdlib.data import importer, index, sources


@pytest.fixture
def rec(tmp_path):
    """Makes recordings below tmp_path/rec, each of its own sound."""
    (tmp_path / "rec").mkdir()

    def make(*names):
        for name in names:
            path = tmp_path / "rec" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            wave = 0.1 * np.sin(2 * np.pi * (100 + sum(map(ord, name))) * np.arange(16000) / 16000)
            soundfile.write(path, wave, 16000)
        return tmp_path / "rec"

    return make


def taken(*where, accept=()):
    """What `found` takes recordings for: name below the first folder -> 'split label', and why others are
    left out.
    """
    table, problems, notes = sources.found(where, accept)
    base = where[0] if Path(where[0]).is_dir() else Path(where[0]).parent
    kinds = {os.path.relpath(row.path, base): f"{row.split} {row.label}" for row in table.itertuples()}
    return (
        kinds,
        {os.path.relpath(path, base): reason for path, reason, left_out in problems if left_out},
        notes,
    )


def kinds(*where, accept=()):
    """Number of recordings by 'split label'."""
    return pd.Series(taken(*where, accept=accept)[0]).value_counts().to_dict()


# ---------------------------------------------------------------- lists


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_list_governs_wherever_it_stands(rec, order):
    folder = rec("a.wav", "b.wav", "c.wav", "test/normal/d.wav", "anomaly/e.wav")
    (folder / "labels.csv").write_text("path,label\na.wav,normal\nb.wav,anomaly\nanomaly/e.wav,normal\n")
    places = [folder, folder / "labels.csv"]
    table, problems, notes = sources.found([places[i] for i in order])
    found = {os.path.relpath(row.path, folder): f"{row.split} {row.label}" for row in table.itertuples()}
    assert found == {
        "a.wav": "train normal",
        "b.wav": "test anomaly",
        "anomaly/e.wav": "train normal",
        "test/normal/d.wav": "test normal",
    }
    assert [(os.path.relpath(path, folder), reason.split(",")[0]) for path, reason, _ in problems] == [
        ("c.wav", "not in labels.csv")
    ]
    assert f"1 recordings in {folder} are not in labels.csv: labeled by their names and folders" in notes


def test_a_list_alone_tells_what_lies_beside_it(rec):
    folder = rec("a.wav", "b.wav", "c.wav", "other/d.wav")
    (folder / "labels.csv").write_text("path,label\na.wav,normal\n")
    found, left, _ = taken(folder / "labels.csv")
    assert found == {"a.wav": "train normal"} and left.keys() == {"b.wav", "c.wav"}
    assert (
        left["b.wav"]
        == "not in labels.csv, which lists recordings next to it; add it there, or its folder to the sources"
    )


def test_a_list_that_was_not_given_is_not_passed_over_in_silence(rec):
    folder = rec("a.wav", "b.wav")
    (folder / "labels.csv").write_text("path;label\na.wav;normal\nb.wav;anomaly\n")
    (folder / "log.csv").write_text("time,temperature\n1,20\n")
    with pytest.raises(
        errors.InputError, match=r"no label in its name or folder; labels.csv.* add it to the sources"
    ):
        sources.found([folder])
    rec("normal/c.wav")
    found, left, notes = taken(folder)
    assert found == {"normal/c.wav": "train normal"} and left.keys() == {"a.wav", "b.wav"}
    assert (
        any("labels.csv looks like a list of labels but is not read" in note for note in notes)
        and "2 .csv skipped" in notes
    )


@pytest.mark.parametrize(
    "text, words",
    [
        (
            "path,label\na.wav,normal\nb.wav,normal\na.wav,anomaly\n",
            "labels.csv:2 says label 'normal', split 'train' but {}labels.csv:4 says label",
        ),
        (
            "path,label\na.wav,anomaly\nb.wav,normal\n./a.wav,normal\n",
            "labels.csv:2 says label 'anomaly', split 'test' but {}labels.csv:4 says",
        ),
        (
            "path,label,split\na.wav,normal,train\nb.wav,normal,\na.wav,normal,test\n",
            "labels.csv:2 says split 'train' but {}labels.csv:4 says split",
        ),
        (
            "path,label,load\na.wav,normal,1\nb.wav,normal,1\na.wav,normal,2\n",
            "labels.csv:2 says load '1' but {}labels.csv:4 says load '2'",
        ),
    ],
)
def test_rows_that_disagree_are_refused_with_both_lines(rec, text, words):
    folder = rec("a.wav", "b.wav")
    (folder / "labels.csv").write_text(text)
    found, left, _ = taken(folder / "labels.csv", folder)
    assert (
        found == {"b.wav": "train normal"}
        and words.format(f"{folder}/") in left["a.wav"]
        and left["a.wav"].endswith("fix the list")
    )


def test_two_lists_that_disagree_are_refused_with_both_lines_and_alike_ones_are_one(rec):
    folder = rec("a.wav", "b.wav")
    (folder / "one.csv").write_text("path,label\na.wav,normal\nb.wav,normal\n")
    (folder / "two.csv").write_text("path,label\nb.wav,normal\nb.wav,normal\na.wav,NG\n")
    found, left, _ = taken(folder / "one.csv", folder / "two.csv")
    assert found == {"b.wav": "train normal"}
    assert (
        left["a.wav"].startswith(f"{folder}/one.csv:2 says label 'normal'")
        and f"{folder}/two.csv:4 says label 'anomaly'" in left["a.wav"]
    )


def test_a_row_that_is_not_understood_keeps_the_file_out_of_the_folder_too(rec):
    folder = rec("normal/a.wav", "normal/b.wav")
    (folder / "labels.csv").write_text("path,label\nnormal/a.wav,1\n")
    found, left, _ = taken(folder, folder / "labels.csv")
    assert (
        found == {"normal/b.wav": "train normal"}
        and "says label '1', expected normal, anomaly or nothing" in left["normal/a.wav"]
    )


def test_cells_too_few_too_many_and_unknown(rec):
    folder = rec(*(f"{name}.wav" for name in "abcdef"))
    rows = [
        "Path;Label;load;",
        ".\\a.wav;OK;1,5;",
        "b.wav;NG",
        "c.wav;normal;nan;",
        "d.wav;normal;2;x;y",
        ";normal;3;",
        "f.wav;normal;4,5",
    ]
    (folder / "labels.csv").write_text("\n".join(rows))
    table, problems, _ = sources.found([folder / "labels.csv"])
    load = {Path(row.path).name: row.attr_load for row in table.itertuples()}
    assert load == {"a.wav": "1,5", "b.wav": "", "c.wav": "", "f.wav": "4,5"}
    told = {os.path.relpath(path, folder): reason for path, reason, _ in problems}
    assert told["labels.csv:3"] == "got 2 cells, expected 4; missing values are treated as unknown"
    assert told["labels.csv:4"] == "load 'nan' is treated as unknown" and told["labels.csv:6"].startswith(
        "no recording given"
    )
    assert (
        told["d.wav"] == "its row in labels.csv has 5 cells, expected 4; quote text that contains a separator"
    )
    assert told["e.wav"].startswith("not in labels.csv")


@pytest.mark.parametrize(
    "raw, words",
    [
        (b"", "labels.csv: cannot be read as csv .empty, expected a header"),
        (b"path,label\n", "no usable recordings in .*labels.csv"),
        (
            "path,label\nü.wav,normal\n".encode("latin-1"),
            "labels.csv: cannot be read as csv .not a valid UTF-8",
        ),
        (b"a.wav,normal\n", "got columns a.wav, normal, expected path and label"),
        (b"path,label,load,load\na.wav,normal,1,2\n", "duplicate column load, expected unique names"),
    ],
)
def test_files_that_are_no_list_are_refused_in_one_sentence(rec, raw, words, tmp_path, capsys):
    folder = rec("a.wav")
    (folder / "labels.csv").write_bytes(raw)
    with pytest.raises(errors.InputError, match=words):
        sources.found([folder / "labels.csv", folder] if raw == b"" else [folder / "labels.csv"])
    assert (
        cli.main(["import", str(folder / "labels.csv"), "--root", str(tmp_path / "root"), "--machine", "m"])
        == 2
    )
    assert capsys.readouterr().err.count("\n") == 1


# ---------------------------------------------------------------- layouts


LAYOUTS = {
    "MIMII": (
        [
            "-6_dB_pump/pump/id_00/normal/0.wav",
            "-6_dB_pump/pump/id_00/abnormal/0.wav",
            "-6_dB_pump/pump/id_02/normal/0.wav",
            "0_dB_pump/pump/id_02/abnormal/0.wav",
        ],
        {"train normal": 2, "test anomaly": 2},
    ),
    "IDMT-ISA": (
        [
            "train/engine1_good/pure_0.wav",
            "train/engine2_broken/pure_0.wav",
            "train/engine3_heavyload/pure_0.wav",
            "test/engine1_good/talk_0.wav",
            "test/engine2_broken/talk_0.wav",
            "test/engine3_heavyload/talk_0.wav",
        ],
        {"train normal": 1, "test normal": 1, "test anomaly": 2},
    ),
    "OK and NG": (["OK/0.wav", "OK/1.wav", "NG/0.wav"], {"train normal": 2, "test anomaly": 1}),
    "MVTec": (
        ["train/good/0.wav", "test/good/1.wav", "test/crack/0.wav"],
        {"train normal": 1, "test normal": 1, "test unlabeled": 1},
    ),
    "ToyADMOS": (
        [
            "ToyCar/case1/NormalSound_IND/c_normal_IND_ch1_0001.wav",
            "ToyCar/case1/AnomalousSound_IND/c_ab00_IND_ch1_0001.wav",
        ],
        {"train normal": 1, "test anomaly": 1},
    ),
    "validation": (
        ["train/normal/a.wav", "val/normal/b.wav", "eval_anomaly/c.wav", "test/bad/d.wav"],
        {"train normal": 1, "test normal": 1, "test anomaly": 2},
    ),
    "splits in names": (
        ["train_normal/a.wav", "test_normal/b.wav", "test_abnormal/c.wav"],
        {"train normal": 1, "test normal": 1, "test anomaly": 1},
    ),
    "days": (["monday/a.wav", "tuesday/b.wav", "c.wav"], {"train normal": 3}),
    "hidden": (
        [
            "normal/a.wav",
            ".Trash-1000/files/bad.wav",
            "normal/.ipynb_checkpoints/a.wav",
            "__MACOSX/normal/b.wav",
            "lost+found/c.wav",
        ],
        {"train normal": 1},
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_that_people_have(rec, layout):
    names, expected = LAYOUTS[layout]
    assert kinds(rec(*names)) == expected


def test_a_folder_that_is_not_understood_is_not_trained_on(rec):
    folder = rec("train/good/a.wav", "train/heavyload/b.wav", "train/my rig/c.wav", "leaking/d.wav")
    found, left, notes = taken(folder)
    assert found == {"train/good/a.wav": "train normal"}
    assert left["train/my rig/c.wav"].startswith(
        "folder name my rig not recognized, expected a word such as normal or anomaly"
    )
    assert (
        left["train/my rig/c.wav"].endswith("--accept-folders 'my rig'")
        and "leaking" in left["leaking/d.wav"]
    )
    assert (
        "folder names not recognized: leaking, heavyload, my rig" in notes
        and "folder names recognized: good = normal" in notes
    )
    assert kinds(folder, accept=["heavyload", "my rig"]) == {"train normal": 3}


def test_a_folder_called_test_that_holds_everything_is_said(rec, tmp_path, capsys):
    rec("test/normal/a.wav", "test/normal/b.wav", "test/anomaly/c.wav")
    command = ["import", str(tmp_path / "rec" / "test"), "--root", str(tmp_path / "root"), "--machine", "m"]
    assert cli.main(command) == 2
    assert (
        "2 normal ones are in a test folder, pass it to --accept-folders if it is not a test set"
        in capsys.readouterr().err
    )
    assert cli.main([*command, "--accept-folders", "test"]) == 0
    out = capsys.readouterr().out
    assert "train normal     source      2 clips" in out and "test  anomaly    source      1 clips" in out
    assert "note: every test clip of m is anomalous (1): its AUC is undefined, add normal test clips" in out


def test_validation_is_test_and_said(rec):
    assert "folder names recognized: val = test" in taken(rec("train/normal/a.wav", "val/normal/b.wav"))[2]


def test_machines_of_a_kind_stay_apart_as_sections(rec, tmp_path):
    folder = rec(
        *(
            f"pump/id_{i:02}/{label}/{k}.wav"
            for i in (0, 2)
            for label in ("normal", "abnormal")
            for k in (0, 1)
        )
    )
    done = importer.import_machine([folder], tmp_path / "root", "pump")
    table, _ = index.index([tmp_path / "root"])
    assert table.groupby(["section", "split", "label"]).size().to_dict() == {
        (section, *kind): 2 for section in ("00", "02") for kind in (("train", "normal"), ("test", "anomaly"))
    }
    assert "sections, evaluated separately: 00 is pump/00 (4), 02 is pump/02 (4)" in done.text()
    both = rec("fan/id_00/normal/f.wav")
    assert sources.found([both])[0]["section"].value_counts().to_dict() == {"00": 1, "01": 4, "02": 4}


def test_sections_of_challenge_names_and_of_lists_are_kept(rec):
    folder = rec("section_01_source_train_normal_0001.wav", "fan/normal_id_04_00000000.wav", "z.wav")
    (folder / "labels.csv").write_text("path,label,section\nz.wav,normal,7\n")
    table, _, _ = sources.found([folder, folder / "labels.csv"])
    assert sorted(table["section"]) == ["01", "04", "07"]


def test_links_are_followed_and_names_that_disagree_are_told(rec, tmp_path):
    rec("raw/day1/a.wav", "raw/day2/b.wav", "raw/day2/c.wav")
    view = tmp_path / "view"
    for name, target in (("normal", "day1"), ("anomaly", "day2"), ("test/normal", "day1")):
        (view / name).parent.mkdir(parents=True, exist_ok=True)
        (view / name).symlink_to(tmp_path / "rec" / "raw" / target, target_is_directory=True)
    (view / "lost").symlink_to(tmp_path / "nowhere")
    found, left, _ = taken(view)
    assert found == {"anomaly/b.wav": "test anomaly", "anomaly/c.wav": "test anomaly"}
    assert left["lost"].startswith("dangling link") and {"normal/a.wav", "test/normal/a.wav"} <= left.keys()
    (view / "test" / "normal").unlink()
    (view / "raw").symlink_to(
        tmp_path / "rec" / "raw", target_is_directory=True
    )  # the same again, by names that say nothing
    assert kinds(view) == {"train normal": 1, "test anomaly": 2}


def test_files_passed_over_are_counted(rec, tmp_path):
    folder = rec("normal/a.wav")
    for name in ("normal/b.m4a", "normal/c.m4a", "notes.txt"):
        (folder / name).touch()
    _, left, notes = taken(folder, folder / "normal" / "b.m4a")
    assert notes == [
        "2 .m4a, 1 .txt skipped; .m4a not supported, convert to wav or flac, for example: ffmpeg -i"
        " x.m4a x.wav"
    ]
    assert left["normal/b.m4a"].startswith("file type .m4a not supported, expected audio")
    (folder / "normal" / "a.wav").unlink()
    with pytest.raises(
        errors.InputError, match=r"no usable recordings in .*; 2 .m4a, 1 .txt skipped; .m4a not supported"
    ):
        sources.found([folder])


def test_own_machines_below_a_source_are_not_imported_again(rec):
    folder = rec("normal/a.wav", "bad/b.wav")
    first = importer.import_machine([folder], folder, "one", copy=True)
    second = importer.import_machine([folder], folder, "two", copy=True)
    assert (
        len(first.clips) == len(second.clips) == 2 and "one: a machine created by asd import" in second.text()
    )
    assert len(importer.import_machine([folder / "one"], folder, "three").clips) == 2


def test_names_that_are_not_utf8_are_left_out_one_by_one(rec, tmp_path, capsys):
    folder = rec("normal/a.wav", "normal/b.wav", "bad/c.wav")
    os.rename(folder / "normal" / "b.wav", os.fsencode(folder) + b"/normal/Pr\xfcfstand.wav")
    for name in (b"/normal/x.\xff", b"/\xff.csv"):
        with open(os.fsencode(folder) + name, "w") as file:
            file.write("path,label\n")
    os.symlink("nowhere", os.fsencode(folder) + b"/\xfe")
    os.mkdir(os.fsencode(folder) + b"/normal/\xfc")
    assert cli.main(["import", str(folder), "--root", str(tmp_path / "root"), "--machine", "m"]) == 0
    out = capsys.readouterr().out
    out.encode()
    assert (
        "2 clips, 2 s" in out
        and "name is not valid UTF-8" in out
        and "dangling link" in out
        and "Pr\\udcfcfstand.wav" in out
    )
    assert len(index.index([tmp_path / "root"])[0]) == 2


def test_challenge_names_that_their_folders_contradict_are_left_out(rec):
    name = "x_section_00_source_train_normal_0001_noAttribute.wav"
    found, left, _ = taken(rec(f"a/{name}", f"anomaly/{name}", f"test/{name}"))
    assert (
        found == {f"a/{name}": "train normal"}
        and all("but its folders disagree" in reason for reason in left.values())
        and len(left) == 2
    )


def test_remarks_on_attribute_lists_reach_the_import(rec):
    names = [f"fan/train/section_00_source_train_normal_000{i}.wav" for i in (0, 1)]
    folder = rec(*names)
    (folder / "fan" / "attributes_00.csv").write_text(
        f"file_name,d1p,d1v\n{names[0]},vel,1\n{names[0]},vel,2\n{names[1]},vel,1\n"
    )
    table, problems, notes = sources.found([folder])
    assert table["attr_vel"].tolist() == ["", "1"] and not any(".csv" in note for note in notes)
    assert any(
        "attributes_00.csv:2 and attributes_00.csv:3 disagree about the attributes" in reason
        for _, reason, _ in problems
    )


def test_the_table_at_the_end_counts_what_was_left_out_and_why(rec, tmp_path):
    folder = rec("train/good/a.wav", *(f"train/heavyload/{i}.wav" for i in range(3)), "train/broken/b.wav")
    told = importer.import_machine([folder], tmp_path / "root", "m").text().splitlines()
    assert told[1:5] == [
        "  train normal     source      1 clips of 1 s",
        "  left out                     4",
        (
            "    3 x folder name heavyload not recognized, expected a word such as normal or anomaly; rename"
            " it, list its recordings in a csv, or accept them as normal with --accept-folders heavyload; the"
            f" first: {folder}/train/heavyload/0.wav"
        ),
        (
            f"    {folder}/train/broken/b.wav: anomalous recording in the training set, expected"
            " normal recordings only; move it to test/anomaly"
        ),
    ]
