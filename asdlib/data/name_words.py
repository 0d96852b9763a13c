"""Split, label, domain and section from the names of recordings and their folders.

Conventions
-----------
Names are interpreted word by word: `NormalSound_IND` is normal, `engine2_broken` and `not_ok` anomalous,
`test_normal` both test and normal. The innermost folder with a split determines it; contradictory labels or
domains raise an error. Words for validation (`val`, `dev`, `eval`) count as test.

Source: METHOD 8.6.  Used by: `asdlib.data.importer`.
"""

from __future__ import annotations

import re

ANOMALY = (
    "anomaly anomalies anomalous abnormal abnormality broken fault faults faulty defect defects defective"
    " damage damaged bad ng nok ko fail fails failed failing failure failures unhealthy malfunction"
    " malfunctioning"
)
WORDS = {
    "split": (
        {"train": "train", "training": "train"}
        | dict.fromkeys("test tests testing val validation eval evaluation holdout".split(), "test")
    ),
    "label": (
        dict.fromkeys("normal normals good ok okay healthy nominal intact undamaged".split(), "normal")
        | dict.fromkeys(ANOMALY.split(), "anomaly")
    ),
    "domain": {"source": "source", "target": "target"},
}
WHOLE = {"dev": "test", "valid": "test"}  # only as the whole folder name
NOT = {"not", "non", "no", "un", "without"}
# words without meaning
PLAIN = {
    "data",
    "set",
    "sound",
    "sounds",
    "audio",
    "clip",
    "clips",
    "file",
    "files",
    "recording",
    "recordings",
    "wav",
    "raw",
}
CONDITIONS = {  # attributes in folder names of public data sets: MIMII's -6_dB_pump, ToyADMOS' case1
    "snr": re.compile(r"(-?\d+)_?dB(?:_.+)?", re.IGNORECASE),
    "case": re.compile(r"case_?(\d+)", re.IGNORECASE),
}
HEAVY_LOAD = re.compile(r"engine\d+_heavyload", re.IGNORECASE)  # a fault in IDMT-ISA Electric Engine
OTHER = {"normal": "anomaly", "anomaly": "normal"}
MACHINE_ID = re.compile(r"(?:id|section)[ _-]?(\d+)", re.IGNORECASE)


def words(name: str) -> list[str]:
    """Lower-case words and numbers of a name: 'NormalSound_2' is normal, sound, 2."""
    return re.findall(r"\d+|[^\W\d_]+", re.sub(r"(?<=[^\W\d_A-Z])(?=[A-Z])", " ", name).lower())


def label(name: str) -> set[str]:
    """Labels in a name: none, one, or both if contradictory."""
    found, before = {"anomaly"} if HEAVY_LOAD.fullmatch(name) else set(), ""
    for word in words(name):
        if word in WORDS["label"]:
            told = WORDS["label"][word]
            found.add(OTHER[told] if before in NOT else told)
        before = word
    return found


def value(what: str, text: str) -> str:
    """Split, label or domain in a cell of a list, if unambiguous and all words are known, else "".

    what : key of `WORDS`
    """
    told = folder(text).get(what, set()) if understood(text) else set()
    return told.pop() if len(told) == 1 else ""


def folder(name: str) -> dict[str, set[str]]:
    """Values of split, label and domain in the name of a folder; keys without a value are omitted."""
    own = words(name)
    split = {WORDS["split"][word] for word in own if word in WORDS["split"]} | (
        {WHOLE[name.lower()]} if name.lower() in WHOLE else set()
    )
    domain = {WORDS["domain"][name.lower()]} if name.lower() in WORDS["domain"] else set()
    said = {"split": split, "label": label(name), "domain": domain}
    return {what: told for what, told in said.items() if told}


def understood(name: str) -> bool:
    """Whether all words of a folder name are known."""
    known = {*WORDS["split"], *WORDS["label"], *WORDS["domain"], *WHOLE, *NOT, *PLAIN}
    return all(word in known or word.isdigit() for word in words(name)) or any(
        pattern.fullmatch(name) for pattern in (MACHINE_ID, HEAVY_LOAD, *CONDITIONS.values())
    )


def read(stem: str, folders: list[str], top: list[str]) -> dict[str, str]:
    """Split, label and domain from the names of a recording and its folders, as far as given.

    Parameters
    ----------
    stem : file name without suffix
    folders : folders below the source, outermost first
    top : names of the source itself; used only as a fallback, and only if all their words are known

    Raises
    ------
    ValueError for contradictory names
    """
    told = [folder(name) for name in folders]
    above = [folder(name) for name in top if words(name) and understood(name)]
    said: dict[str, str] = {}
    for what in WORDS:
        found = [one[what] for one in told if what in one]
        if what == "label":
            found += [label(stem)] if label(stem) else []
        found = found or [one[what] for one in above if what in one]
        every = set().union(*(found[-1:] if what == "split" else found))
        if len(every) > 1:
            raise ValueError(
                f"name matches both {' and '.join(sorted(every))}, expected one; move or rename it, or list"
                " it in a csv"
            )
        said |= {what: every.pop()} if every else {}
    return said


def conditions(folders: list[str]) -> dict[str, str]:
    """Attributes in folder names of public data sets, for example {"snr": "-6"}."""
    found = [(key, pattern.fullmatch(name)) for name in folders for key, pattern in CONDITIONS.items()]
    return {key: match[1] for key, match in found if match}


def section(folders: list[str], parent: str) -> str:
    """Section from the innermost folder like id_02: parent name and number ('pump/02'), or "".

    folders : outermost first.  parent : name of the folder above the first
    """
    for above, name in reversed(list(zip([parent, *folders], folders))):
        match = MACHINE_ID.fullmatch(name)
        if match:
            return f"{above}/{int(match[1]):02}"
    return ""


def sections(named: set[str]) -> dict[str, str]:
    """Section number by name ('pump/02', '/02' without parent, or "").

    Uses the number in the name, or consecutive numbers if two parents share one.
    """
    known = sorted(named - {""})
    numbers = {name: name.rpartition("/")[2] for name in known}
    kinds = [name for name in known if not name.startswith("/")]
    if len({numbers[name] for name in kinds}) < len(kinds):
        numbers = {name: f"{place:02}" for place, name in enumerate(known)}
    return {"": "00"} | numbers
