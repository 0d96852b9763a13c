"""Pages and what stands in them: their frame, the strip that links those of a study, players, scales.

Conventions
-----------
A page asks nothing of the network and runs no script: its own policy forbids both. Titles and captions are
escaped. A page of the series is named by what it shows: `<stage>[_<machine>][_seed<k>].html`; the report
itself, 09, is `index.html`. Source: METHOD 8.4. Notebooks: 01_data, 02_preprocessing, 06_embeddings,
09_report.
"""

from __future__ import annotations

import math
import os
import re
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from asdlib import io
from asdlib.viz import audio
from asdlib.viz.tables import Html, breakable, escape

TEMPLATES = Path(__file__).resolve().parent / "templates"
POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
REPORT = "09_report"
STRIP = re.compile(r'<nav class="series".*?</nav>', re.DOTALL)
ORANGE, PURPLE = "#e08214", "#8073ac"  # the arms of matplotlib's PuOr
PAGE = re.compile(r"(?P<stage>\d\d_[a-z]+)(?:_(?!seed\d+$)(?P<machine>.+?))?(?:_seed(?P<seed>\d+))?")


def _css(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def parts_style() -> Html:
    """The look of scales, cards and badges, for outputs that JupyterLab shows without the frame of a page."""
    return Html(f"<style>{_css('parts.css')}</style>")


def head(title: str) -> Html:
    """What stands above the body of every page."""
    return Html(
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport"'
        ' content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><title>{escape(title)}</title>\n'
        f"<style>{_css('report.css')}{_css('parts.css')}</style></head>\n"
    )


def page(title: str, body: str) -> str:
    """A page without a notebook behind it.  body : HTML, what stands below the title"""
    return f'{head(title)}<body class="alone"><main><h1>{escape(title)}</h1>{body}</main></body></html>\n'


# ---------------------------------------------------------------- the strip


class _Page(NamedTuple):
    path: Path
    stage: str
    machine: str
    seed: str


def about(path: Path) -> list[str]:
    """The machine and the seed that a page of the series is about, by its name; nothing where it is about
    all.
    """
    name = PAGE.fullmatch(path.stem)
    machine, seed = name.group("machine", "seed") if name else (None, None)
    return [*([machine] if machine else []), *([f"seed {seed}"] if seed else [])]


def series(folder: Path) -> list[_Page]:
    """The pages of a study's series that are there, in order."""
    found = []
    for path in folder.glob("*.html"):
        name = PAGE.fullmatch(REPORT if path.stem == "index" else path.stem)
        if name:
            found.append(_Page(path, *(part or "" for part in name.group("stage", "machine", "seed"))))
    return sorted(found, key=lambda page: (page.stage, page.machine, int(page.seed or 0)))


def link_series(folder: Path, index: Path) -> None:
    """Write into every page of a study the links to all its other pages, by stage, machine and seed; links
    between notebooks become links between pages.  index : the page of all studies
    """
    pages, top = series(folder), urllib.parse.quote(os.path.relpath(index, folder))
    for page in pages:
        text = page.path.read_text(encoding="utf-8")
        new = STRIP.sub(lambda _, page=page: _strip(page, pages, top), text, count=1)
        new = re.sub(r'href="(\d\d_[a-z]+)\.ipynb"', lambda link, page=page: _href(link[1], page, pages), new)
        if new != text:
            io.write_text(page.path, new)


def _nearest(stage: str, here: _Page, pages: Sequence[_Page]) -> _Page | None:
    """Of a stage the page of this machine and seed, or else its first."""
    of_stage = [page for page in pages if page.stage == stage]
    near = [(p.machine != here.machine) + (p.seed != here.seed) for p in of_stage]
    return of_stage[int(np.argmin(near))] if of_stage else None


def _href(stage: str, here: _Page, pages: Sequence[_Page]) -> str:
    page = _nearest(stage, here, pages)
    return f'href="{urllib.parse.quote(page.path.name)}"' if page else 'href="#" aria-disabled="true"'


def _link(page: _Page, words: str, current: bool) -> str:
    mark = ' aria-current="page"' if current else ""
    return f'<a href="{urllib.parse.quote(page.path.name)}"{mark}>{escape(words)}</a>'


def _strip(here: _Page, pages: Sequence[_Page], top: str) -> str:
    stages = list(dict.fromkeys(page.stage for page in pages))
    links = [
        _link(_nearest(stage, here, pages), stage.replace("_", " "), stage == here.stage) for stage in stages
    ]
    rows = [f'<a href="{top}">All studies</a>{"".join(links)}']
    for name in ("machine", "seed"):
        kin = [page for page in pages if page.stage == here.stage]
        values = list(dict.fromkeys(getattr(page, name) for page in kin))
        if len(values) > 1:
            there = [_nearest(here.stage, here._replace(**{name: value}), kin) for value in values]
            rows.append(
                f"<span>{name}</span>"
                + "".join(_link(page, value, page == here) for page, value in zip(there, values, strict=True))
            )
    shown = "".join(f"<p>{row}</p>" for row in rows)
    return f'<nav class="series" aria-label="Pages of this study">{shown}</nav>'


# ---------------------------------------------------------------- parts of pages


def sound(source: str, name: str) -> Html:
    """A player alone.  source : of `audio.vorbis`.  name : what a screen reader says"""
    return Html(f'<audio controls preload="metadata" aria-label="{escape(name)}" src="{source}"></audio>')


def clip(shown: Html, words: Html) -> Html:
    """One of several clips: its player, or what stands in for it, and words below."""
    return Html(f'<figure class="clip">{shown}<figcaption>{words}</figcaption></figure>')


def player(samples: np.ndarray, sample_rate: int, caption: str, gain: float) -> Html:
    """A clip to hear, inside the page. samples : int16, or float of full scale 1, (n,).  gain : the page's
    `audio.common_gain`.
    """
    return clip(sound(audio.vorbis(samples, sample_rate, gain), caption), breakable(caption))


def badges(texts: Sequence[tuple[str, bool]]) -> Html:
    """Short remarks in a row.  texts : (words, whether serious)"""
    items = "".join(
        f'<li class="{"serious" if serious else "minor"}">{escape(words)}</li>' for words, serious in texts
    )
    return Html(f'<ul class="badges" aria-label="Warnings">{items}</ul>' if items else "")


def scale(
    ends: tuple[float, float],
    label: str,
    *,
    band: tuple[float, float] | None = None,
    bar: tuple[float, float] | None = None,
    lines: Sequence[float] = (),
    dots: Sequence[tuple[float, str]] = (),
) -> Html:
    """Values on a line, as HTML: it fits any width, theme and paper.

    ends : of the scale; what lies beyond stands at its end.  label : what a screen reader says.  band : gray,
        from and to.  bar : an interval.  lines : upright marks.  dots : (value, kind); kind is "", "hollow",
        "source" or "target".  What is NaN is left out.
    """

    def at(value: float) -> float:
        return 100 * min(max((value - ends[0]) / (ends[1] - ends[0]), 0), 1)

    def reach(kind: str, pair: tuple[float, float] | None) -> str:
        if pair is None or any(map(math.isnan, pair)):
            return ""
        return (
            f'<i class="{kind}" style="left:{at(pair[0]):.1f}%;width:{at(pair[1]) - at(pair[0]):.1f}%"></i>'
        )

    marks = [reach("band", band), reach("bar", bar)]
    marks += [f'<i class="mark" style="left:{at(x):.1f}%"></i>' for x in lines if not math.isnan(x)]
    marks += [
        f'<i class="dot {kind}" style="left:{at(x):.1f}%"></i>' for x, kind in dots if not math.isnan(x)
    ]
    return Html(f'<span class="scale" role="img" aria-label="{escape(label)}">{"".join(marks)}</span>')


def strip(values: np.ndarray, limit: float, label: str) -> Html:
    """A signed number along a clip as a row of colored cells: orange above 0, purple below, the ground at 0.

    values : (cells,).  limit : value of the full color, > 0.  label : what a screen reader says
    """
    step, stops = 100 / len(values), []
    for number, value in enumerate(values):
        color = ORANGE if value > 0 else PURPLE
        shade = f"{color}{round(255 * min(abs(value) / limit, 1)):02x}"
        stops.append(f"{shade} {number * step:.1f}% {(number + 1) * step:.1f}%")
    look = f"background:linear-gradient(90deg,{','.join(stops)})"
    return Html(f'<span class="strip" role="img" aria-label="{escape(label)}" style="{look}"></span>')


def legend(above: str, below: str) -> Html:
    """What the two colors of `strip`, and of pictures in orange and purple, say."""
    marks = ((ORANGE, above), (PURPLE, below))
    return Html(
        '<p class="note legend">'
        + " ".join(
            f'<span><i style="background:{color}"></i> {escape(words)}</span>' for color, words in marks
        )
        + "</p>"
    )


def rows(lines: Sequence[tuple[str, Html, str]], ticks: Sequence[tuple[float, str]] = ()) -> Html:
    """Scales below each other.  lines : (name, of `scale`, value in words).  ticks : (place from 0 to 1,
    words) of an axis below them
    """
    out = [
        f'<div class="row"><span class="name">{escape(name)}</span>{shown}<span class="value">{escape(value)}'
        "</span></div>"
        for name, shown, value in lines
    ]
    if ticks:
        shift = [(100 * at, 100 * at if at in (0, 1) else 50, words) for at, words in ticks]
        marks = "".join(
            f'<b style="left:{left:.1f}%;transform:translateX(-{by:.0f}%)">{escape(words)}</b>'
            for left, by, words in shift
        )
        out.append(f'<div class="row axis" aria-hidden="true"><span class="ticks">{marks}</span></div>')
    return Html(f'<div class="rows">{"".join(out)}</div>')
