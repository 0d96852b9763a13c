"""Accessible controls that ipywidgets lacks: a labeled slider with a number box, and a live region.

The slider handles of ipywidgets have no accessible name (METHOD 8.5), and a live region must exist before its
content changes. The scripts use standard HTML elements, make no network requests and are part of the
notebook's output.
Source: METHOD 8.5.  Notebook: 08_tuning
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anywidget
import traitlets

HERE = Path(__file__).resolve().parent


class Weight(anywidget.AnyWidget):
    """A number from 0 to 1 as a slider and a linked number box, both labeled with `label`.

    Keys: arrows, Page up and down, Home, End. Invalid numbers are rejected with a message.
    """

    _esm = (HERE / "weight.js").read_text(encoding="utf-8")
    disabled = traitlets.Bool(False).tag(sync=True)
    label = traitlets.Unicode().tag(sync=True)
    value = traitlets.Float(0.5, min=0.0, max=1.0).tag(sync=True)
    step = traitlets.Float(0.01).tag(sync=True)


class Region(anywidget.AnyWidget):
    """A polite live region: screen readers announce changes of `value` (HTML)."""

    _esm = """
export default { render({ model, el }) {
  el.setAttribute("aria-live", "polite");
  el.setAttribute("role", "status");
  const show = () => { el.innerHTML = model.get("value"); };
  model.on("change:value", show);
  show();
} };
"""
    value = traitlets.Unicode().tag(sync=True)


class Drawing(anywidget.AnyWidget):
    """An SVG of two layers of the same size; if only marks move, only `live` is sent.

    Sends {kind: "click" or "hover", x, y} in the drawing's units; a received {text} is shown as a tooltip.
    """

    _esm, _css = HERE / "drawing.js", HERE / "widgets.css"
    still, live = traitlets.Unicode().tag(sync=True), traitlets.Unicode().tag(sync=True)


class Keys(anywidget.AnyWidget):
    """Invisible widget that keeps JupyterLab's command mode from capturing keys of controls in outputs.

    within : CSS selector of the boxes whose controls keep their keys
    """

    _esm = """
export default { render({ model }) {
  const keep = (event) => {
    if (event.target.closest(model.get("within")))
      event.target.setAttribute("data-lm-suppress-shortcuts", "true");
  };
  document.addEventListener("focusin", keep);
  return () => document.removeEventListener("focusin", keep);
} };
"""
    within = traitlets.Unicode().tag(sync=True)


class DualView:
    """An output with two versions: a widget for JupyterLab, and HTML for reports, which run no scripts."""

    def __init__(self, widget, html: Callable[[], str]):
        self.widget, self.html = widget, html

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        """Return both versions; Jupyter shows the richest that it supports."""
        found = self.widget._repr_mimebundle_(include=include, exclude=exclude)
        bundle, metadata = found if isinstance(found, tuple) else (found, {})
        return dict(bundle or {}) | {"text/html": self.html()}, metadata
