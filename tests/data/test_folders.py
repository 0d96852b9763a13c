"""The shared walk: hidden and system folders are passed over, links are followed once, what leads nowhere is
said.
"""

import os
from collections import Counter

import pytest

from asdlib.data import folders, index


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return root


def found(root):
    """Files below a root by their way from there, the problems, and what was passed over."""
    problems, passed = [], Counter()
    files = [os.path.relpath(path, root) for path in folders.below(root, (".wav",), problems, passed)]
    return files, [(os.path.relpath(path, root), reason) for path, reason, _ in problems], dict(passed)


def test_what_is_hidden_or_of_the_system_is_passed_over(tmp_path):
    hidden = [
        ".git/a.wav",
        ".Trash-1000/files/a.wav",
        "n/.ipynb_checkpoints/a.wav",
        "__MACOSX/n/._a.wav",
        "n/._a.wav",
        "n/@eaDir/a.wav/x.wav",
        "System Volume Information/a.wav",
        "$RECYCLE.BIN/a.wav",
        "lost+found/a.wav",
    ]
    files, problems, passed = found(touch(tmp_path, "n/a.wav", "n/b.WAV", "n/notes.txt", "n/README", *hidden))
    assert files == ["n/a.wav", "n/b.WAV"] and not problems
    assert passed == {folders.HIDDEN: 9, ".txt": 1, "": 1}


def test_a_hidden_folder_that_is_named_is_read(tmp_path):
    assert found(touch(tmp_path / ".rec", "a.wav"))[0] == ["a.wav"]


@pytest.mark.parametrize("depth", ["", "n"])
def test_links_back_to_where_they_lie_end(tmp_path, depth):
    touch(tmp_path, "n/a.wav", "n/m/b.wav")
    for name in "abcdef":
        (tmp_path / depth / f"link {name}").symlink_to(".", target_is_directory=True)
    (tmp_path / "n" / "m" / "up").symlink_to("../..", target_is_directory=True)
    assert found(tmp_path)[:2] == (["n/a.wav", "n/m/b.wav"], [])


def test_folders_that_link_to_each_other_end(tmp_path):
    names = [f"d{i:02}" for i in range(12)]
    for one in names:
        touch(tmp_path, f"{one}/{one}.wav")
        for other in names:
            (tmp_path / one / f"to {other}").symlink_to(tmp_path / other, target_is_directory=True)
    files, problems, _ = found(tmp_path)
    assert (
        files[:12] == [f"{name}/{name}.wav" for name in names] and len(files) <= 12 + 12 * 12 and not problems
    )


def test_a_link_is_followed_and_one_that_leads_above_the_root_is_told(tmp_path):
    touch(tmp_path, "store/faulty/a.wav", "rec/normal/b.wav", "other.wav")
    (tmp_path / "rec" / "anomaly").symlink_to("../store/faulty", target_is_directory=True)
    assert found(tmp_path / "rec")[:2] == (["normal/b.wav", "anomaly/a.wav"], [])
    (tmp_path / "rec" / "normal" / "all").symlink_to(tmp_path, target_is_directory=True)
    files, problems, _ = found(tmp_path / "rec")
    assert (
        len(files) == 2
        and problems[0][0] == "normal/all"
        and "a parent of the folder being read; not followed" in problems[0][1]
    )


def test_dangling_links_are_called_so(tmp_path):
    touch(tmp_path, "n/a.wav")
    (tmp_path / "gone").symlink_to("nowhere")
    (tmp_path / "n" / "b.wav").symlink_to("lost.wav")
    (tmp_path / "n" / "self.wav").symlink_to("self.wav")
    files, problems, _ = found(tmp_path)
    assert files == ["n/a.wav"] and [path for path, _ in problems] == ["gone", "n/b.wav", "n/self.wav"]
    assert all(reason.startswith("dangling link: ") for _, reason in problems)


def test_imported_machines_are_passed_over_unless_they_are_named(tmp_path):
    touch(tmp_path, "rec/a.wav", "rec/pump/train/b.wav", "rec/mine/c.wav")
    (tmp_path / "rec" / "pump" / "imported.csv").write_text(folders.IMPORTED_HEADER + ",split\n")
    (tmp_path / "rec" / "mine" / "imported.csv").write_text("name,what\n")  # of somebody else
    files, problems, _ = found(tmp_path / "rec")
    assert (
        files == ["a.wav", "mine/c.wav"]
        and problems[0][0] == "pump"
        and "created by asd import" in problems[0][1]
    )
    assert found(tmp_path / "rec" / "pump")[0] == ["train/b.wav"]


def test_passed_over_files_are_counted_with_a_hint_for_audio():
    assert folders.passed_over({}) == ""
    assert folders.passed_over({".txt": 2, "": 1}) == "2 .txt, 1 without extension skipped"
    assert folders.passed_over({".txt": 2, ".m4a": 5}).startswith(
        "5 .m4a, 2 .txt skipped; .m4a not supported, convert to wav or flac"
    )


def test_index_walks_the_same_way(tmp_path):
    name = "train/section_00_source_train_normal_0000_noAttribute.wav"
    touch(tmp_path, f"fan/{name}", f"@eaDir/old/{name}", f".Trash-0/gone/{name}")
    for link in ("a", "b"):
        (tmp_path / link).symlink_to(".", target_is_directory=True)
        (tmp_path / "fan" / link).symlink_to(".", target_is_directory=True)
    (tmp_path / "fan" / "train" / "section_00_source_train_normal_0001_noAttribute.wav").symlink_to(
        "lost.wav"
    )
    touch(
        tmp_path, "fan/train/memo.m4a", "fan/train/day2/section_00_source_train_normal_0002_noAttribute.wav"
    )
    table, problems = index.index([tmp_path])
    assert table["machine"].tolist() == ["fan"]
    told = dict(zip((os.path.relpath(path, tmp_path) for path in problems["path"]), problems["reason"]))
    assert (
        "1 .m4a skipped" in told["fan/train"]
        and "its recordings are not read; move them up" in told["fan/train/day2"]
    )
    assert told["fan/train/section_00_source_train_normal_0001_noAttribute.wav"].startswith(
        "dangling link: lost.wav does not exist"
    )
