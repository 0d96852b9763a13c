"""Every source that is cited can be found: sections and papers in notebooks/METHOD.md, equations and sections
of the report; and nothing cites a document that is not in the repository."""

import ast
import io
import json
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
METHOD = (ROOT / "notebooks" / "METHOD.md").read_text(encoding="utf-8")
SECTIONS = re.findall(r"^(?:#{2,3} |- \*\*)(\d+(?:\.\d+)?) ", METHOD, re.MULTILINE)
PAPERS = re.findall(r"^- \*\*(\D+? \d{4}[a-z]?)\*\*: ", METHOD, re.MULTILINE)
# chapters of the report, and its sections as METHOD 1.2 lists them
OF_REPORT = {*"12345", *re.findall(r"^\| (\d(?:\.\d)?) \|", METHOD, re.MULTILINE)}
EQUATIONS = set(re.findall(r"^\| Eq\. (\d) \|", METHOD, re.MULTILINE))

# between two numbers of a list such as "5.6, 5.7 (as printed) and 6.1-6.3"
BETWEEN = r"(?:\s*\([^()]*\))?(?:,?\s+and\s+|,\s+|\s*[-–]\s*|,?\s+to\s+)"
SECTION = r"\d{1,2}(?:\.\d{1,2})?(?![\d.]?\d)"
REPORT = r"\d(?:\.\d)?(?![\d.]?\d)"
EQUATION = r"\d(?![\d.]?\d)"
YEAR = r"(?:19|20)\d\d[a-z]?\b"
NAME = r"[A-Z][A-Za-zÀ-ÿ'’-]*[a-zà-ÿ]"
PAPER = re.compile(rf"\b({NAME}(?:\s+et\s+al\.|\s+and\s+{NAME})?),?\s+(\(?{YEAR}(?:,\s+{YEAR})*\)?)")
NO_AUTHOR = {
    "Challenge",
    "Workshop",
    "Task",
    "Zenodo",
    "Copyright",
    "Since",
    "In",
    "Until",
    "Before",
    "After",
    "From",
    "Of",
}
MISSING = re.compile(
    r"\bSYSTEM(?:\.md)?,? (?:section )?\d|\bDESIGN(?:\.md)? \d|\bUX\b|\breport\.txt|\b[Ss]ystem decisions\b"
    r"|\b(?:FACTS(?:\.md)?|[Ff]acts?) [A-G](?:\d{1,2}\b|\b(?! (?!and\b)[a-z]))"
    r"|\b(?:SYSTEM|FACTS|DESIGN|UX)\.md\b|\b[Ii]ssue (?:#?\d|\")"
    r"|\((?:[^()]*[ ,])?(?:R \d\.\d|R Eq|S \d{1,2}|F [A-G]\d{0,2}|F[2-7])(?:, [^()]*)?\)"  # tags of settings
)


def numbers(text, key, item):
    """Every number of the lists that follow a key; a range counts with both its ends."""
    for found in re.finditer(rf"\b{key}\s*({item}(?:{BETWEEN}{item})*)", text):
        yield from re.findall(item, re.sub(r"\([^()]*\)", " ", found[1]))


def unresolved(text):
    """What a text cites and nobody can find, in words."""
    out = [f"cites {found[0]!r}, which is not in the repository" for found in MISSING.finditer(text)]
    out += [
        f"METHOD {number} is not a section of METHOD.md"
        for number in numbers(text, "METHOD", SECTION)
        if number not in SECTIONS
    ]
    out += [
        f"the report has no section {number}"
        for number in numbers(text, "[Rr]eport(?= \\d)", REPORT)
        if number not in OF_REPORT
    ]
    out += [
        f"the report has no Eq. {number}"
        for number in numbers(text, r"Eqs?\.", EQUATION)
        if number not in EQUATIONS
    ]
    for names, years in PAPER.findall(text):
        names = " ".join(names.split())
        if names not in NO_AUTHOR:
            papers = [f"{names} {year}" for year in re.findall(YEAR, years)]
            out += [
                f"{paper} is not among the references of METHOD.md" for paper in papers if paper not in PAPERS
            ]
    return out


def words(path):
    """Texts of a file: strings and comments of a module, cells of a notebook, else the whole of it."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return spoken(text)
    if path.suffix != ".ipynb":
        return [text]
    out = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        out += spoken(source) if cell["cell_type"] == "code" else [source]
    return out


def spoken(code):
    """Strings and comments of a source text; comments of lines that follow each other are one text."""
    strings, comments, last = [], [], -1
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        if token.type == tokenize.COMMENT:
            piece = token.string.lstrip("# ")
            if comments and token.start[0] == last + 1:
                comments[-1] += " " + piece
            else:
                comments.append(piece)
            last = token.start[0]
        elif token.type in (tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1)):
            strings.append(token.string)
    return strings + comments


def cited():
    """Files that cite."""
    yield from sorted((ROOT / "asdlib").rglob("*.py"))
    yield from (path for path in sorted((ROOT / "tests").rglob("*.py")) if path != Path(__file__).resolve())
    yield from sorted((ROOT / "notebooks").glob("*.ipynb"))
    yield from sorted((ROOT / "notebooks" / "studies").glob("*.toml"))
    yield from sorted((*ROOT.glob("*.md"), *(ROOT / "notebooks").glob("*.md")))


@pytest.mark.parametrize("path", list(cited()), ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_cited_can_be_found(path):
    assert [problem for text in words(path) for problem in unresolved(text)] == []


def test_sections_and_papers_are_numbered_once_and_in_order():
    assert (
        len(SECTIONS) > 60
        and len(PAPERS) > 20
        and {"3.1", "3.2", "4.2"} <= OF_REPORT
        and set("123456") == EQUATIONS
    )
    keys = [[int(part) for part in number.split(".")] for number in SECTIONS]
    assert keys == sorted(keys) and len(set(SECTIONS)) == len(SECTIONS)
    assert sorted(PAPERS) == PAPERS and len(set(PAPERS)) == len(PAPERS)


def test_every_function_beside_an_equation_exists():
    """Names in the third column of the tables of METHOD 2, as `function` or `Class.method`."""
    known = set()
    for path in (ROOT / "asdlib").rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                known.add(node.name)
                known |= {
                    f"{node.name}.{inner.name}"
                    for inner in getattr(node, "body", [])
                    if isinstance(inner, ast.FunctionDef)
                }
    chapter = METHOD.split("\n## 2 ")[1].split("\n## 3 ")[0]
    rows = [line.split(" | ") for line in chapter.splitlines() if line.startswith("| ") and "`" in line]
    named = {name for row in rows for name in re.findall(r"`([\w.]+)`", row[2])}
    assert len(rows) > 15 and len(named) > 20
    assert sorted(named - known) == []
    books = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert {book.strip(" |") for row in rows for book in row[3].split(",")} <= books


@pytest.mark.parametrize(
    "text",
    [
        "Sources: report 3.2, Eq. 5; METHOD 3.4-3.6, 4.1 and 5.7 (Wilkinghoff 2021, 2024). Notebook: 05",
        "Holm (1979) and McClish 1989; Kingma and Welling 2013, after DCASE 2024 Task 2; Hu et al. 2018",
        "METHOD 4.\nThe facts are 5.",
        "METHOD 5. A fan.",
        "the report 3.1 (METHOD 5.6; Eq. 3, 4)",
        "SYSTEMS of machines, FACTS, facts about a system 7",
        "F1 (per domain) and (S = 16)",
        "report 24 clips",
    ],
)
def test_what_resolves_passes(text):
    assert unresolved(text) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("METHOD 3.99", ["METHOD 3.99 is not a section of METHOD.md"]),
        ("METHOD 3.1, 3.2 (as printed) and\n    77.1", ["METHOD 77.1 is not a section of METHOD.md"]),
        ("Nobody et al. 2031; (Holm 1979)", ["Nobody et al. 2031 is not among the references of METHOD.md"]),
        ("Wilkinghoff 2021, 2022", ["Wilkinghoff 2022 is not among the references of METHOD.md"]),
        ("report 2.3, Eq. 1-7", ["the report has no section 2.3", "the report has no Eq. 7"]),
    ],
)
def test_what_cannot_be_found_is_said(text, found):
    assert unresolved(text) == found


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("Source: SYSTEM 7.", "SYSTEM 7"),
        ("Source: FACTS E9", "FACTS E9"),
        ("facts C, D", "facts C"),
        ("see DESIGN 2", "DESIGN 2"),
        ("Source: UX (Widgets)", "UX"),
        ("report.txt, Table 1", "report.txt"),
        ("system decisions, section 8", "system decisions"),
        ("issue 7 (hostile input)", "issue 7"),
        ("Hz (R 4.2)", "(R 4.2)"),
        ("bands (official, F5)", "(official, F5)"),
        ("off (F E13)", "(F E13)"),
    ],
)
def test_a_document_that_is_not_here_is_named(text, what):
    assert unresolved(text) == [f"cites {what!r}, which is not in the repository"]


def test_comments_strings_and_cells_are_all_read(tmp_path):
    module = '"""Module. METHOD 3.99"""\nFACTS = E9 = "SYSTEM 7"\n# see facts\n# E9 and\nx = FACTS  # UX\n'
    (tmp_path / "m.py").write_text(module)
    cells = [{"cell_type": "markdown", "source": ["METHOD\n", "3.98"]}]
    cells += [{"cell_type": "code", "source": ["# DESIGN 2"]}]
    (tmp_path / "n.ipynb").write_text(json.dumps({"cells": cells}))
    found = [
        problem
        for name in ("m.py", "n.ipynb")
        for text in words(tmp_path / name)
        for problem in unresolved(text)
    ]
    assert len(found) == 6
    for word in ("3.99", "SYSTEM 7", "facts E9", "'UX'", "3.98", "DESIGN 2"):
        assert any(word in each for each in found)
