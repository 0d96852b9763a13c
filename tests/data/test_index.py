"""clips: layouts of all challenge years, every naming trap, attribute lists, refusals, training classes, the
summary.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pandas as pd
import pytest

from asdlib import errors, schemas
from asdlib.data import index

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
NORMAL = "section_00_source_train_normal_{:04d}{}.wav"


def make(root: Path, names, csv: str | None = None, csv_name: str = "attributes_00.csv") -> Path:
    """Empty files <root>/<name>, and a csv of attributes in the first machine's folder."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    if csv is not None:
        (root / names[0]).parent.parent.joinpath(csv_name).write_text(csv, encoding="utf-8")
    return root


def one(root: Path, ending: str, csv: str | None = None, machine: str = "m"):
    """Index of one training clip with that ending: (its attributes or None if it was left out, problems)."""
    make(
        root,
        [
            f"{machine}/train/{NORMAL.format(0, '_noAttribute')}",
            f"{machine}/train/{NORMAL.format(1, ending)}",
        ],
    )
    if csv is not None:
        (root / machine / "attributes_00.csv").write_text(
            f"file_name,d1p,d1v,d2p,d2v\n{csv}\n", encoding="utf-8"
        )
    table, problems = index.index([root])
    rows = table[table["clip"].str.contains("_normal_0001")]
    attributes = (
        None if rows.empty else {key: rows.iloc[0][f"attr_{key}"] for key in index.attribute_keys(rows)}
    )
    return attributes, problems


@pytest.mark.parametrize(
    ("ending", "expected"),
    [
        ("_vel_4_loc_A", {"vel": "4", "loc": "A"}),
        ("_m-n_X", {"m-n": "X"}),
        ("_vel_380_ac_0.03_", {"vel": "380", "ac": "0.03"}),
        ("_car_B1_spd_31V_mic_1", {"car": "B1", "spd": "31V", "mic": "1"}),
        ("_pat_00", {"pat": "00"}),
        ("_v1pat_A_v2pat_none", {"v1pat": "A", "v2pat": "none"}),
        ("_spd1000_BckgA", {"spd": "1000", "Bckg": "A"}),
        ("_weight15_BckgF", {"weight": "15", "Bckg": "F"}),
        ("_weight00_BckgD", {"weight": "00", "Bckg": "D"}),
        ("_noAttribute", {}),
        ("_", {}),
        ("", {}),
    ],
)
def test_attributes_from_names(tmp_path, ending, expected):
    attributes, problems = one(tmp_path, ending)
    assert attributes == expected
    assert problems.empty


@pytest.mark.parametrize(
    "ending",
    [
        "_mic_pos_A",
        "_volt_1.5_wt_200_damage1",
        "_mic_imp34dt05_mic_pos_C_grind_100_bkg_B",
        "_1_5",
        "_a_1_a_2",
        "_a__b_c",
    ],
)
def test_ambiguous_endings_are_reported_and_kept_out(tmp_path, ending):
    attributes, problems = one(tmp_path, ending)
    assert attributes is None
    assert problems["left_out"].tolist() == [True]
    assert problems["path"][0].endswith(f"0001{ending}.wav")
    assert "cannot be parsed" in problems["reason"][0]


@pytest.mark.parametrize(
    ("ending", "row", "expected"),
    [
        ("_mic_pos_A", "m/train/{},mic_pos,A,,", {"mic_pos": "A"}),
        ("_volt_1.5_wt_200_damage1", "m/train/{},volt,1.5,wt,200", {"volt": "1.5", "wt": "200"}),
        (
            "_car_A1_spd_2",
            "{stem},car,A1,speed,2",
            {"car": "A1", "speed": "2"},
        ),  # no machine, no extension, another key
        (
            "_car_A1_spd_M_mic_1",
            "{stem},car,A1,mic,1",
            {"car": "A1", "mic": "1"},
        ),  # the name says more than the csv
        ("_ac_0.03_", "m/train/{stem}.wav,ac,0.03", {"ac": "0.03"}),
        ("_ac_0.03_", "section_00_source_train_normal_0001_ac_0.03,ac,0.03", {"ac": "0.03"}),
        ("_vel_1", "train\\{},vel,1", {"vel": "1"}),
        ("_noAttribute", "m/train/{},noAttribute,", {}),
        ("_vel_1", "m/train/{}", {}),
    ],
)
def test_the_csv_decides(tmp_path, ending, row, expected):
    name = NORMAL.format(1, ending)
    first = f"m/train/{NORMAL.format(0, '_noAttribute')},noAttribute,\n"
    attributes, problems = one(tmp_path, ending, first + row.format(name, stem=name[:-4]))
    assert attributes == expected
    assert problems.empty, problems.to_dict("records")


def test_2024_tree_with_evaluation_clips_and_several_roots(tmp_path):
    dev = make(
        tmp_path / "dev_data/raw",
        [
            "fan/train/section_00_source_train_normal_0000_n_A.wav",
            "fan/train/section_00_target_train_normal_0000_n_X.flac",
            "fan/test/section_00_source_test_anomaly_0000_n_A.wav",
            "fan/test/section_00_target_test_normal_0000_n_Z.WAV",
            "fan/test/._section_00_target_test_normal_0000_n_Z.wav",
            "fan/supplemental/section_00_noise_supplemental_normal_0000.wav",
            "fan/readme.txt",
        ],
    )
    extra = make(
        tmp_path / "extra", ["RoboticArm/train/section_00_source_train_normal_0000_weight15_BckgF.wav"]
    )
    final = make(
        tmp_path / "eval_data/raw",
        ["RoboticArm/test/section_00_0000.wav", "RoboticArm/test/section_00_0001.wav"],
    )
    table, problems = index.index([dev, extra, final])
    assert problems.empty
    found = table.set_index("clip")
    assert found.loc[
        "fan/test/section_00_source_test_anomaly_0000_n_A.wav", ["domain", "label"]
    ].tolist() == ["source", "anomaly"]
    assert found.loc["RoboticArm/test/section_00_0001.wav", ["domain", "label", "section"]].tolist() == [
        "unknown",
        "unlabeled",
        "00",
    ]
    assert list(table.columns) == [*schemas.CLIP_COLUMNS, "attr_Bckg", "attr_n", "attr_weight"]
    assert index.attribute_keys(table[table["machine"] == "RoboticArm"]) == ["Bckg", "weight"]
    assert len(table) == 7
    only, _ = index.index([tmp_path], machines=["fan"])  # a parent of several trees
    assert set(only["machine"]) == {"fan"} and len(only) == 4
    assert (
        len(index.index([dev, tmp_path / "dev_data", dev / "fan"])[0]) == 4
    )  # the same folder three times is one


def test_renamed_evaluation_clips_stand_in_for_the_anonymous_ones(tmp_path):
    names = ["train/section_00_source_train_normal_0000_noAttribute.wav", "test/section_00_0000.wav"]
    named = [
        f"test_rename/section_00_source_{label}_0035_weight15_BckgF.wav" for label in ("normal", "anomaly")
    ]  # published without "test"
    table, problems = index.index([make(tmp_path, [f"RoboticArm/{name}" for name in names + named])])
    assert problems.empty
    assert table["label"].tolist() == ["anomaly", "normal", "normal"] and set(table["domain"]) == {"source"}
    assert index.attribute_keys(table) == []  # hidden: training clips say noAttribute


def test_2020_and_2021_and_2022_layouts(tmp_path):
    make(
        tmp_path,
        [
            "y20/pump/train/normal_id_02_00000000.wav",
            "y20/pump/test/anomaly_id_02_00000001.wav",
            "y20/pump/test/id_03_00000001.wav",
            "y21/gearbox/train/section_00_source_train_normal_0000_1_g_1_mm_1_mV_none.wav",
            "y21/gearbox/train/section_01_target_train_normal_0000_strength_1_ambient.wav",
            "y21/gearbox/source_test/section_00_source_test_normal_0000.wav",
            "y21/gearbox/target_test/section_03_target_test_0007.wav",
            "y22/valve/train/section_02_source_train_normal_0000_pat_00.wav",
            "y22/valve/test/section_04_0000.wav",
        ],
    )
    table, problems = index.index([tmp_path])
    assert problems.empty, problems.to_dict("records")
    found = table.set_index("clip")
    assert found.loc["pump/test/anomaly_id_02_00000001.wav", ["section", "domain", "label"]].tolist() == [
        "02",
        "source",
        "anomaly",
    ]
    assert found.loc["pump/test/id_03_00000001.wav", "label"] == "unlabeled"
    free = found.loc[found.index.str.startswith("gearbox/train"), "attr_condition"]
    assert free.tolist() == ["1_g_1_mm_1_mV_none", "strength_1_ambient"]
    assert found.loc["gearbox/test/section_03_target_test_0007.wav", ["domain", "label"]].tolist() == [
        "target",
        "unlabeled",
    ]
    assert found.loc["valve/train/section_02_source_train_normal_0000_pat_00.wav", "section"] == "02"


def test_names_that_cannot_stand(tmp_path):
    bad = {
        "fan/train/whatever.wav": "cannot be parsed",
        "fan/train/section_00_source_test_normal_0000_n_A.wav": "name says test but the file is in train",
        "fan/train/section_00_source_train_anomaly_0000_n_A.wav": "anomaly clip in the train folder",
        "fan/train/section_00_0000.wav": "unlabeled clip in the train folder",
        "fan/test/section_00_normal_0000.wav": "cannot be parsed",
    }
    make(tmp_path, ["fan/train/section_00_source_train_normal_0001_n_A.wav", *bad])
    table, problems = index.index([tmp_path])
    assert len(table) == 1
    reasons = {
        str(Path(path).relative_to(tmp_path)): reason
        for path, reason in zip(problems["path"], problems["reason"], strict=True)
    }
    assert problems["left_out"].all() and set(reasons) == set(bad)
    for name, part in bad.items():
        assert part in reasons[name]


def test_same_clip_in_two_roots_is_reported_and_the_first_kept(tmp_path):
    name = "fan/train/section_00_source_train_normal_0001_n_A.wav"
    roots = [make(tmp_path / "b", [name]), make(tmp_path / "a", [name])]
    table, problems = index.index(roots)
    assert table["path"].tolist() == [str(roots[0] / name)]
    assert (
        problems["path"].tolist() == [str(roots[1] / name)]
        and "same machine and name" in problems["reason"][0]
    )


def test_csv_rows_without_a_file_and_the_reverse(tmp_path):
    names = [f"fan/train/{NORMAL.format(i, '_n_A')}" for i in (0, 1)] + ["fan/test/section_00_0000.wav"]
    rows = f"file_name,d1p,d1v\n{names[0]},n,A\nfan/train/{NORMAL.format(7, '_n_A')},n,A\n"
    table, problems = index.index([make(tmp_path, names, rows)])
    assert len(table) == 3 and not problems["left_out"].any()
    assert problems["path"].tolist() == [
        str(tmp_path / names[1]),
        str(tmp_path / "fan/train" / NORMAL.format(7, "_n_A")),
    ]
    assert "no row" in problems["reason"][0] and "the file does not exist" in problems["reason"][1]


@pytest.mark.parametrize(
    ("encoding", "part"),
    [("utf-16", None), ("utf-8-sig", None), ("utf-16-le", "UTF-8"), ("latin-1", "UTF-8")],
)
def test_csv_in_another_encoding_is_read_or_worded(tmp_path, encoding, part):
    name = f"fan/train/{NORMAL.format(0, '_vel_1')}"
    make(tmp_path, [name])
    text = f"file_name,d1p,d1v\r\n{name},Gerät,9\r\n"
    (tmp_path / "fan/attributes_00.csv").write_bytes(text.encode(encoding))
    table, problems = index.index([tmp_path])
    if part is None:
        assert problems.empty and table["attr_Gerät"].tolist() == ["9"]
    else:
        assert (
            part in problems["reason"][0]
            and problems["path"][0].endswith("attributes_00.csv")
            and not problems["left_out"][0]
        )
        assert table["attr_vel"].tolist() == ["1"]


def test_csv_without_header_with_semicolons_and_hidden_lists(tmp_path):
    name = f"fan/train/{NORMAL.format(0, '_vel_1')}"
    make(tmp_path, [name], f"{name},vel,9\n")
    table, problems = index.index([tmp_path])
    assert "no header" in problems["reason"][0] and table["attr_vel"].tolist() == ["1"]
    make(tmp_path, [name], f"file_name;d1p;d1v\n{name};vel;9\n")
    (tmp_path / "fan/attributes_00_test_correspondence.csv").write_text(
        f"file_name,d1p,d1v\n{name},secret,1\n"
    )
    table, problems = index.index([tmp_path])
    assert problems.empty and index.attribute_keys(table) == ["vel"] and table["attr_vel"].tolist() == ["9"]


@pytest.mark.parametrize(
    "name, raw",
    [
        ("Attributes_00.csv", "file_name,d1p,d1v\n{},vel,9\n"),
        ("attributes_00.csv", "File_Name,D1P,D1V\n{},vel,9\n"),
        ("attributes_00.csv", "file_name\td1p\td1v\n{}\tvel\t9\n"),
        ("attributes_00.csv", "sep=;\nfile_name;d1p;d1v\n{};vel;9\n"),
        ("attributes_00.csv", "file_name,d1p,d1v\r{},vel,9\r"),
    ],
)
def test_lists_of_attributes_are_read_in_usual_forms(tmp_path, name, raw):
    clip = f"fan/train/{NORMAL.format(0, '_vel_1')}"
    table, problems = index.index([make(tmp_path, [clip], raw.format(clip), name)])
    assert problems.empty and table["attr_vel"].tolist() == ["9"]


@pytest.mark.parametrize(
    "name", ["attributes (1).csv", "attributes.csv", "attributes_00 (1).csv", "attributes_00.tsv"]
)
def test_lists_of_attributes_of_other_names_are_told(tmp_path, name):
    clip = f"fan/train/{NORMAL.format(0, '_vel_1')}"
    table, problems = index.index([make(tmp_path, [clip], f"file_name,d1p,d1v\n{clip},vel,9\n", name)])
    assert (
        problems["path"].tolist() == [str(tmp_path / "fan" / name)]
        and "only files named like attributes_00.csv are read" in problems["reason"][0]
    )
    assert table["attr_vel"].tolist() == ["1"]


def test_an_empty_list_of_attributes_is_a_sentence(tmp_path):
    clip = f"fan/train/{NORMAL.format(0, '_vel_1')}"
    _, problems = index.index([make(tmp_path, [clip], "")])
    assert problems["reason"].tolist() == [
        "empty, expected a header and a row per recording; attributes are read from the file names"
    ]


@pytest.mark.parametrize("second", ["attributes_00.csv", "attributes_01.csv"])
def test_rows_that_disagree_are_told_with_their_lines_and_not_used(tmp_path, second):
    names = [f"fan/train/{NORMAL.format(i, '_vel_1')}" for i in (0, 1)]
    make(tmp_path, names, f"file_name,d1p,d1v\n{names[0]},vel,4\n{names[1]},vel,5\n{names[1]},vel,5\n")
    with open(tmp_path / "fan" / second, "a") as file:
        file.write(f"{'file_name,d1p,d1v' if second[-5] == '1' else ''}\n{names[0]},vel,8\n")
    table, problems = index.index([tmp_path])
    line = (
        f"attributes_00.csv:2 and {second}:{2 if second[-5] == '1' else 6} disagree about the attributes of"
        f" {Path(names[0]).stem}"
    )
    assert problems["reason"].str.startswith(line).sum() == 1 and table["attr_vel"].tolist() == ["1", "5"]


def test_a_row_with_a_cell_too_few_invents_nothing(tmp_path):
    names = [f"fan/train/{NORMAL.format(i, '')}" for i in (0, 1)]
    table, problems = index.index(
        [
            make(
                tmp_path,
                names,
                f"file_name,d1p,d1v,d2p,d2v\n{names[0]},vel,4,load,1\n{names[1]},vel,load,2\n",
            )
        ]
    )
    assert table["attr_vel"].tolist() == ["4", ""] and table["attr_load"].tolist() == ["1", ""]
    assert (
        problems["reason"]
        .str.startswith("attributes_00.csv:3 has 4 cells, expected file_name and attribute, value pairs")
        .sum()
        == 1
    )


def test_a_test_of_one_label_is_a_problem_at_planning(tmp_path):
    names = [f"{machine}/train/{NORMAL.format(0, '')}" for machine in ("fan", "pump", "saw")]
    names += [f"fan/test/section_00_source_test_anomaly_000{i}.wav" for i in (0, 1)] + [
        "pump/test/section_00_source_test_normal_0000.wav"
    ]
    names += ["saw/test/section_00_source_test_normal_0000.wav", "saw/test/section_00_0001.wav"]
    names += [f"saw/test/section_01_source_test_{label}_0000.wav" for label in ("normal", "anomaly")]
    _, problems = index.index([make(tmp_path, names)])
    assert problems["reason"].tolist() == [
        "every test clip of fan is anomalous (2): its AUC is undefined, add normal test clips",
        "every test clip of pump is normal (1): its AUC is undefined, add anomalous test clips",
    ]
    assert not problems["left_out"].any()
    (tmp_path / "saw/test/section_00_0001.wav").unlink()
    assert "every test clip of saw section 00 is normal (1)" in index.index([tmp_path])[1]["reason"].iloc[-1]


def test_machine_without_training_clip_is_a_problem(tmp_path):
    _, problems = index.index([make(tmp_path, ["fan/test/section_00_0000.wav"])])
    assert "no training clips of fan" in problems["reason"][0] and not problems["left_out"][0]


def test_refusals(tmp_path):
    with pytest.raises(errors.InputError, match="nowhere: no such folder, expected a folder of machines"):
        index.index([tmp_path / "nowhere"])
    with pytest.raises(
        errors.InputError, match=r"no recordings .* in any machine folder, expected <machine>/train"
    ):
        index.index([tmp_path])
    with pytest.raises(errors.InputError, match="no folder: no recording"):
        index.index([])
    make(tmp_path, ["one.wav", "two.flac"])
    with pytest.raises(errors.InputError, match="2 recordings but no machine folder"):
        index.index([tmp_path])
    with pytest.raises(errors.InputError, match="Not a directory"):
        index.index([tmp_path / "one.wav"])
    make(tmp_path, ["gearbox/train/odd.wav"])
    with pytest.raises(errors.InputError, match=r"unknown machine 'gearbx'; did you mean gearbox?"):
        index.index([tmp_path], machines=["gearbx"])
    with pytest.raises(errors.InputError, match=r"no usable clip .*odd.wav: name cannot be parsed"):
        index.index([tmp_path])


def test_folders_without_permission(tmp_path, monkeypatch):
    make(tmp_path, ["fan/train/section_00_source_train_normal_0001_n_A.wav", "fan/test/section_00_0000.wav"])
    truth = os.listdir
    for locked in (
        tmp_path,
        tmp_path / "fan/test",
    ):  # the superuser may read anything, so the refusal is played

        def listdir(path, locked=locked):
            if Path(path) == locked:
                raise PermissionError(13, "Permission denied", str(path))
            return truth(path)

        monkeypatch.setattr(os, "listdir", listdir)
        if locked == tmp_path:
            with pytest.raises(
                errors.InputError,
                match=r"cannot be read .Permission denied.*check the path and its permissions",
            ):
                index.index([tmp_path])
        else:
            table, problems = index.index([tmp_path])
            assert (
                len(table) == 1 and problems["path"].tolist() == [str(locked)] and problems["left_out"].all()
            )


def test_links_in_circles_end(tmp_path):
    make(tmp_path, ["a/fan/train/section_00_source_train_normal_0001_n_A.wav"])
    (tmp_path / "a" / "again").symlink_to(tmp_path, target_is_directory=True)
    assert len(index.index([tmp_path])[0]) == 1


def test_training_classes_and_summary(tmp_path):
    names = [
        f"fan/train/section_00_source_train_normal_{i:04d}_spd_{volt}V_n_A.wav"
        for i, volt in enumerate((8, 12, 8))
    ]
    names += ["fan/train/section_00_target_train_normal_0000_spd_8V_n_A.wav"]
    names += [
        f"fan/test/section_00_target_test_{label}_0000_spd_100V_n_A.wav" for label in ("anomaly", "normal")
    ]
    names += [
        "pump/train/section_00_source_train_normal_0000_noAttribute.wav",
        "pump/test/section_00_0000.wav",
    ]
    table, problems = index.index([make(tmp_path, names)])
    classes = index.training_classes(table)
    assert set(classes) == {
        "fan/00/n=A,spd=12V/source",
        "fan/00/n=A,spd=8V/source",
        "fan/00/n=A,spd=8V/target",
        "pump/00//source",
    }
    assert classes.index.equals(table.index[table["split"] == "train"])
    content = index.summary(table.assign(seconds=[10.0, 12.0] + [10.0] * 6), problems)
    assert json.loads(json.dumps(content)) == {
        "machines": {
            "fan": {
                "train": {"source": 3, "target": 1},
                "test": {
                    "source_normal": 0,
                    "source_anomaly": 0,
                    "target_normal": 1,
                    "target_anomaly": 1,
                    "unlabeled": 0,
                },
                "attributes": {
                    "n": {"source": ["A"], "target": ["A"]},
                    "spd": {"source": ["8V", "12V"], "target": ["8V", "100V"]},
                },
                "classes": 3,
                "seconds": [10.0, 12.0],
            },
            "pump": {
                "train": {"source": 1, "target": 0},
                "test": {
                    "source_normal": 0,
                    "source_anomaly": 0,
                    "target_normal": 0,
                    "target_anomaly": 0,
                    "unlabeled": 1,
                },
                "attributes": {},
                "classes": 1,
                "seconds": [10.0, 10.0],
            },
        },
        "classes": 4,
        "problems": [],
    }
    text = index.summary_text(content)
    assert "spd: source 8V, 12V | target 8V, 100V" in text and "4 training classes, 0 problems" in text
    many = pd.DataFrame({"path": ["p"] * 30, "reason": ["r"] * 30, "left_out": False})
    assert "and 10 more" in index.summary_text(index.summary(table, many))


def csv_lists(part: str):
    if not (SHARED / "dcase2023_csv" / part).is_dir():
        pytest.skip("the DCASE 2023 file lists (../shared/data/dcase2023_csv) are not there")
    return sorted((SHARED / "dcase2023_csv" / part).glob("*/attributes_00.csv"))


def tree_of_lists(root: Path, part: str) -> dict[str, pd.DataFrame]:
    """Folders and files as the real lists name them; every file a link to one second of silence."""
    silence = root / "silence.bin"
    silence.write_bytes(
        b"RIFF"
        + (32036).to_bytes(4, "little")
        + b"WAVEfmt "
        + bytes.fromhex("1000000001000100803e0000007d000002001000")
        + b"data"
        + (32000).to_bytes(4, "little")
        + bytes(32000)
    )
    lists = {}
    for path in csv_lists(part):
        machine = path.parent.name
        rows = pd.read_csv(path, dtype=str)
        for split in ("train", "test"):
            (root / machine / split).mkdir(parents=True)
        for name in rows["file_name"]:
            full = name if "/" in name else f"{machine}/train/{name}.wav"
            os.link(silence, root / full)
        (root / machine / "attributes_00.csv").write_bytes(path.read_bytes())
        lists[machine] = rows
    return lists


def test_real_2023_development_lists(tmp_path):
    lists = tree_of_lists(tmp_path, "dev_data")
    table, problems = index.index([tmp_path])
    assert problems.empty
    content = index.summary(table, problems)
    assert len(content["machines"]) == 7 and len(table) == 8400
    for machine, part in content["machines"].items():
        assert part["train"] == {"source": 990, "target": 10}
        assert part["test"] == {
            f"{d}_{k}": 50 for d in ("source", "target") for k in ("normal", "anomaly")
        } | {"unlabeled": 0}
        rows = lists[machine].set_index("file_name")
        mine = table[table["machine"] == machine].set_index("clip")
        for number in range(1, len(rows.columns) // 2 + 1):
            key = rows[f"d{number}p"].iloc[0]
            pd.testing.assert_series_equal(
                mine.loc[rows.index, f"attr_{key}"], rows[f"d{number}v"], check_names=False, check_dtype=False
            )
        assert (
            part["classes"]
            == rows[rows.index.str.contains("/train/")]
            .assign(domain=rows.index.to_series().str.extract("_(source|target)_", expand=False))
            .drop_duplicates()
            .shape[0]
        )


def test_real_2023_lists_without_machine_or_extension(tmp_path):
    lists = tree_of_lists(tmp_path, "eval_data_train")
    table, problems = index.index([tmp_path])
    assert problems.empty
    assert table.groupby("machine").size().tolist() == [1000] * 7
    assert index.attribute_keys(table[table["machine"] == "ToyTank"]) == [
        "car",
        "speed",
    ]  # the name adds mic and calls speed spd
    assert index.attribute_keys(table[table["machine"] == "Vacuum"]) == ["car", "mic"]
    assert len(lists) == 7


def test_recorded_fans():
    if not (SHARED / "real").is_dir():
        pytest.skip("the recorded fans (../shared/data/real) are not there")
    table, problems = index.index([SHARED / "real"])
    part = index.summary(table, problems)["machines"]["fan"]
    assert problems.empty and part["attributes"] == {} and part["train"] == {"source": 60, "target": 0}
    assert (part["test"]["source_normal"], part["test"]["source_anomaly"]) == (18, 16)
    with pytest.raises(errors.InputError, match="10 recordings but no machine folder"):
        index.index([SHARED / "loose"])


def test_a_name_that_is_not_utf8_is_told_and_left_out(tmp_path):
    folder = tmp_path / "raw" / "fan" / "train"
    folder.mkdir(parents=True)
    (folder / "section_00_source_train_normal_0000_noAttribute.wav").write_bytes(b"")
    odd = os.fsencode(folder) + b"/section_00_source_train_normal_0001_\xff.wav"
    with open(odd, "wb"):
        pass
    table, problems = index.index([tmp_path / "raw"])
    assert (
        len(table) == 1
        and problems["reason"].str.contains("name is not valid UTF-8 or contains control characters").sum()
        == 1
    )
    problems.to_json(), json.dumps(index.summary(table, problems))
