"""What names say: words of many kinds, never a part of a word, and never both."""

import pytest

from asdlib.data import name_words


@pytest.mark.parametrize(
    "name, expected",
    [
        (name, {"normal"})
        for name in (
            "normal",
            "NORMAL_1",
            "NormalSound_IND",
            "OK",
            "good 2",
            "healthy",
            "no_fault",
            "fan_NORMAL_4",
            "non-defective",
        )
    ]
    + [
        (name, {"anomaly"})
        for name in (
            "anomaly",
            "Anomalies",
            "AnomalousSound_IND",
            "abnormal_bearing",
            "engine2_broken",
            "NG",
            "ko",
            "faulty",
            "defect",
            "damaged",
            "bad",
            "not_normal_5",
            "NotOK",
            "abnormal1",
        )
    ]
    + [(name, set()) for name in ("monday", "default", "badge", "Normandie", "ngram", "token", "crack")]
    + [("Pump No 1 normal", {"normal"}), ("OK_NG", {"normal", "anomaly"})],
)
def test_words_of_names(name, expected):
    assert name_words.label(name) == expected


@pytest.mark.parametrize(
    "folders, top, expected",
    [
        (["train", "normal"], [], {"split": "train", "label": "normal"}),
        (["test_abnormal"], [], {"split": "test", "label": "anomaly"}),
        (["val", "normal"], [], {"split": "test", "label": "normal"}),
        (["dev"], [], {"split": "test"}),
        (["dev_data"], [], {}),
        (["test", "train"], [], {"split": "train"}),  # the innermost
        (["train"], ["val"], {"split": "train"}),
        ([], ["test"], {"split": "test"}),
        ([], ["test rig 5"], {}),
        ([], ["Bad Homburg"], {}),
        (["normal"], ["fault study"], {"label": "normal"}),
        ([], ["NG"], {"label": "anomaly"}),
        (["target", "normal"], [], {"domain": "target", "label": "normal"}),
    ],
)
def test_folders_say_split_label_and_domain(folders, top, expected):
    assert name_words.read("x", folders, top) == expected


def test_contradictions_are_refused():
    for stem, folders in (
        ("x", ["normal", "broken"]),
        ("bad_1", ["normal"]),
        ("x", ["source", "target"]),
        ("x", ["train_test"]),
    ):
        with pytest.raises(
            ValueError, match=r"matches both .*, expected one; move or rename it, or list it in a csv"
        ):
            name_words.read(stem, folders, [])


@pytest.mark.parametrize(
    "name, expected",
    [
        ("test_normal", True),
        ("normal_2", True),
        ("raw", True),
        ("id_02", True),
        ("heavyload", False),
        ("train_day1", False),
        ("crack", False),
    ],
)
def test_names_that_are_understood(name, expected):
    assert name_words.understood(name) == expected


def test_machines_of_a_kind_become_sections():
    assert (
        name_words.section(["id_00", "normal"], "pump") == "pump/00"
        and name_words.section(["6dB", "pump", "ID 4"], "x") == "pump/04"
    )
    assert name_words.section(["normal"], "id_03") == ""
    assert name_words.sections({"pump/00", "pump/02", "", "/02"}) == {
        "": "00",
        "/02": "02",
        "pump/00": "00",
        "pump/02": "02",
    }
    assert name_words.sections({"pump/00", "fan/00"}) == {"": "00", "fan/00": "00", "pump/00": "01"}
