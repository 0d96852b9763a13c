"""HTML pages and their parts: frame, navigation between the pages of a study, players, scales.

Conventions
-----------
A page makes no network requests and runs no scripts; its content security policy forbids both. Titles and
captions are escaped. Page names are `<stage>[_<machine>][_seed<k>].html`; the report, 09, is `index.html`.
Source: METHOD 8.4. Notebooks: 01_data, 02_preprocessing, 06_embeddings, 09_report.
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
ORANGE, PURPLE = "#e08214", "#8073ac"  # from matplotlib's PuOr
PAGE = re.compile(r"(?P<stage>\d\d_[a-z]+)(?:_(?!seed\d+$)(?P<machine>.+?))?(?:_seed(?P<seed>\d+))?")


def _css(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def parts_style() -> Html:
    """Return the style of scales, cards and badges, for outputs shown in JupyterLab."""
    return Html(f"<style>{_css('parts.css')}</style>")


def head(title: str) -> Html:
    """Return everything before the body of a page."""
    return Html(
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport"'
        ' content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><title>{escape(title)}</title>\n'
        f"<style>{_css('report.css')}{_css('parts.css')}</style></head>\n"
    )


def page(title: str, body: str) -> str:
    """Return a page that is not made from a notebook.  body : HTML below the title"""
    return f'{head(title)}<body class="alone"><main><h1>{escape(title)}</h1>{body}</main></body></html>\n'


# ---------------------------------------------------------------- navigation


class _Page(NamedTuple):
    path: Path
    stage: str
    machine: str
    seed: str


def about(path: Path) -> list[str]:
    """Return machine and seed from the name of a page, where it is specific to them."""
    name = PAGE.fullmatch(path.stem)
    machine, seed = name.group("machine", "seed") if name else (None, None)
    return [*([machine] if machine else []), *([f"seed {seed}"] if seed else [])]


def series(folder: Path) -> list[_Page]:
    """Return the existing pages of a study, in order."""
    found = []
    for path in folder.glob("*.html"):
        name = PAGE.fullmatch(REPORT if path.stem == "index" else path.stem)
        if name:
            found.append(_Page(path, *(part or "" for part in name.group("stage", "machine", "seed"))))
    return sorted(found, key=lambda page: (page.stage, page.machine, int(page.seed or 0)))


def link_series(folder: Path, index: Path) -> None:
    """Update the navigation in all pages of a study; links between notebooks become links between pages.

    index : the page of all studies
    """
    pages, top = series(folder), urllib.parse.quote(os.path.relpath(index, folder))
    for page in pages:
        text = page.path.read_text(encoding="utf-8")
        new = STRIP.sub(lambda _, page=page: _strip(page, pages, top), text, count=1)
        new = re.sub(r'href="(\d\d_[a-z]+)\.ipynb"', lambda link, page=page: _href(link[1], page, pages), new)
        if new != text:
            io.write_text(page.path, new)


def _nearest(stage: str, here: _Page, pages: Sequence[_Page]) -> _Page | None:
    """Return the page of a stage that matches machine and seed best."""
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
        siblings = [page for page in pages if page.stage == here.stage]
        values = list(dict.fromkeys(getattr(page, name) for page in siblings))
        if len(values) > 1:
            linked = [_nearest(here.stage, here._replace(**{name: value}), siblings) for value in values]
            rows.append(
                f"<span>{name}</span>"
                + "".join(
                    _link(page, value, page == here) for page, value in zip(linked, values, strict=True)
                )
            )
    shown = "".join(f"<p>{row}</p>" for row in rows)
    return f'<nav class="series" aria-label="Pages of this study">{shown}</nav>'


# ---------------------------------------------------------------- parts of pages


def sound(source: str, name: str) -> Html:
    """Return an audio player.  source : from `audio.vorbis`.  name : accessible name"""
    return Html(f'<audio controls preload="metadata" aria-label="{escape(name)}" src="{source}"></audio>')


def clip(shown: Html, words: Html) -> Html:
    """Return a player (or a substitute) with a caption."""
    return Html(f'<figure class="clip">{shown}<figcaption>{words}</figcaption></figure>')


def player(samples: np.ndarray, sample_rate: int, caption: str, gain: float) -> Html:
    """Return a player of embedded audio with a caption.

    samples : int16, or float with full scale 1, (n,).  gain : factor, see `audio.common_gain`
    """
    return clip(sound(audio.vorbis(samples, sample_rate, gain), caption), breakable(caption))


def badges(texts: Sequence[tuple[str, bool]]) -> Html:
    """Return warnings as badges.  texts : (text, whether serious)"""
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
    """Draw values on a horizontal scale in HTML, independent of width and theme; NaN is skipped.

    ends : of the scale, to which values are clipped.  label : accessible name.  band : gray interval
    bar : colored interval.  lines : vertical marks.  dots : (value, kind); kind is "", "hollow", "source" or
        "target"
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
    """Draw signed values along a clip as colored cells: orange above 0, purple below, transparent at 0.

    values : (cells,).  limit : value at full color, > 0.  label : accessible name
    """
    step, stops = 100 / len(values), []
    for number, value in enumerate(values):
        color = ORANGE if value > 0 else PURPLE
        shade = f"{color}{round(255 * min(abs(value) / limit, 1)):02x}"
        stops.append(f"{shade} {number * step:.1f}% {(number + 1) * step:.1f}%")
    look = f"background:linear-gradient(90deg,{','.join(stops)})"
    return Html(f'<span class="strip" role="img" aria-label="{escape(label)}" style="{look}"></span>')


def legend(above: str, below: str) -> Html:
    """Return the legend of the two colors of `strip`, also used in pictures."""
    marks = ((ORANGE, above), (PURPLE, below))
    return Html(
        '<p class="note legend">'
        + " ".join(
            f'<span><i style="background:{color}"></i> {escape(words)}</span>' for color, words in marks
        )
        + "</p>"
    )


def rows(lines: Sequence[tuple[str, Html, str]], ticks: Sequence[tuple[float, str]] = ()) -> Html:
    """Stack scales with names and values.

    lines : (name, from `scale`, formatted value).  ticks : (position 0..1, text) of an axis below them
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
