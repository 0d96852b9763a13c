"""Pages and players: the one frame of every page, and a clip to hear inside it.

Conventions
-----------
A page asks nothing of the network and runs no script: its own policy forbids both. Titles and captions are
escaped. Source: METHOD 8.4. Notebooks: 01_data, 02_preprocessing, 06_embeddings, 09_report.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from asdlib.viz import audio
from asdlib.viz.tables import Html, breakable, escape

TEMPLATES = Path(__file__).resolve().parent / "templates"
POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"


def head(title: str) -> Html:
    """What stands above the body of every page."""
    return Html(
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport"'
        ' content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><title>{escape(title)}</title>\n'
        f"<style>{(TEMPLATES / 'report.css').read_text(encoding='utf-8')}</style></head>\n"
    )


def page(title: str, body: str) -> str:
    """A page without a notebook behind it.  body : HTML, what stands below the title"""
    return f'{head(title)}<body><main class="index"><h1>{escape(title)}</h1>{body}</main></body></html>\n'


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
