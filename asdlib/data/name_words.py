"""What the names of a recording and of its folders say: split, label, domain, and which of several machines
of a kind.

Conventions
-----------
A name says what its words say: `NormalSound_IND` normal, `engine2_broken` anomaly, `not_ok` anomaly,
`test_normal` both test and normal. Of several folders that name a split the innermost counts; labels and
domains that contradict each other are refused. Words of validation (`val`, `dev`, `eval`) are read as test:
such clips are not trained on.

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
WHOLE = {"dev": "test", "valid": "test"}  # of folders that are called just so
NOT = {"not", "non", "no", "un", "without"}
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
}  # say nothing
CONDITIONS = {  # of public data sets, which become attributes: MIMII's -6_dB_pump, ToyADMOS' case1
    "snr": re.compile(r"(-?\d+)_?dB(?:_.+)?", re.IGNORECASE),
    "case": re.compile(r"case_?(\d+)", re.IGNORECASE),
}
HEAVY_LOAD = re.compile(r"engine\d+_heavyload", re.IGNORECASE)  # a fault in IDMT-ISA Electric Engine
OTHER = {"normal": "anomaly", "anomaly": "normal"}
MACHINE_ID = re.compile(r"(?:id|section)[ _-]?(\d+)", re.IGNORECASE)


def words(name: str) -> list[str]:
    """Words and numbers of a name in lower case: 'NormalSound_2' is normal, sound, 2."""
    return re.findall(r"\d+|[^\W\d_]+", re.sub(r"(?<=[^\W\d_A-Z])(?=[A-Z])", " ", name).lower())


def label(name: str) -> set[str]:
    """Labels that a name says: none, one or, where it contradicts itself, both."""
    found, before = {"anomaly"} if HEAVY_LOAD.fullmatch(name) else set(), ""
    for word in words(name):
        if word in WORDS["label"]:
            told = WORDS["label"][word]
            found.add(OTHER[told] if before in NOT else told)
        before = word
    return found


def value(what: str, text: str) -> str:
    """Split, label or domain that a cell of a list says, every word of it known; "" for anything else. what :
    of `WORDS`
    """
    told = folder(text).get(what, set()) if understood(text) else set()
    return told.pop() if len(told) == 1 else ""


def folder(name: str) -> dict[str, set[str]]:
    """What the name of a folder says: of split, label and domain each what it says, left out where it says
    nothing.
    """
    own = words(name)
    split = {WORDS["split"][word] for word in own if word in WORDS["split"]} | (
        {WHOLE[name.lower()]} if name.lower() in WHOLE else set()
    )
    domain = {WORDS["domain"][name.lower()]} if name.lower() in WORDS["domain"] else set()
    said = {"split": split, "label": label(name), "domain": domain}
    return {what: told for what, told in said.items() if told}


def understood(name: str) -> bool:
    """Whether every word of a folder's name is known here, so that it says all that it is meant to say."""
    known = {*WORDS["split"], *WORDS["label"], *WORDS["domain"], *WHOLE, *NOT, *PLAIN}
    return all(word in known or word.isdigit() for word in words(name)) or any(
        pattern.fullmatch(name) for pattern in (MACHINE_ID, HEAVY_LOAD, *CONDITIONS.values())
    )


def read(stem: str, folders: list[str], top: list[str]) -> dict[str, str]:
    """Split, label and domain by the names of a recording and its folders, as far as they say it.

    Parameters
    ----------
    stem : of the file
    folders : below the place that was named, outermost first
    top : names of that place itself; they count where nothing below says more, and only if they are such
        words and nothing else

    Raises
    ------
    ValueError, in words, for names that contradict each other
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
                f"says both {' and '.join(sorted(every))}, expected one; move or rename it, or list it in"
                " a csv"
            )
        said |= {what: every.pop()} if every else {}
    return said


def conditions(folders: list[str]) -> dict[str, str]:
    """Attributes that folders in the layouts of public data sets are named by: {"snr": "-6"}."""
    found = [(key, pattern.fullmatch(name)) for name in folders for key, pattern in CONDITIONS.items()]
    return {key: match[1] for key, match in found if match}


def section(folders: list[str], parent: str) -> str:
    """Machine of a kind by the innermost folder like id_02: the name above it and its number ('pump/02'); ""
    for none.

    folders : outermost first.  parent : name of the folder above the first
    """
    for above, name in reversed(list(zip([parent, *folders], folders))):
        match = MACHINE_ID.fullmatch(name)
        if match:
            return f"{above}/{int(match[1]):02}"
    return ""


def sections(named: set[str]) -> dict[str, str]:
    """Section number by name ('pump/02', '/02' without a kind, or ""): the number in the name, or consecutive
    numbers where two kinds share one.
    """
    known = sorted(named - {""})
    numbers = {name: name.rpartition("/")[2] for name in known}
    kinds = [name for name in known if not name.startswith("/")]
    if len({numbers[name] for name in kinds}) < len(kinds):
        numbers = {name: f"{place:02}" for place, name in enumerate(known)}
    return {"": "00"} | numbers
