"""Controls that ipywidgets lacks: a weight with a slider and a number box, both with a name that a screen
reader speaks, and a region that is read out when its words change. ipywidgets' slider handles have no
accessible name and none can be given them (METHOD 8.5), and a live region must outlive its content.

The scripts use the browser's own elements, ask nothing of the network and are part of the notebook's output.
Source: METHOD 8.5.  Notebook: 08_tuning
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anywidget
import traitlets

HERE = Path(__file__).resolve().parent


class Weight(anywidget.AnyWidget):
    """A number from 0 to 1: slider and number box, always equal; another number is refused in words. `label`
    names both; keys: arrows, Page up and down, Home, End.
    """

    _esm = (HERE / "weight.js").read_text(encoding="utf-8")
    disabled = traitlets.Bool(False).tag(sync=True)
    label = traitlets.Unicode().tag(sync=True)
    value = traitlets.Float(0.5, min=0.0, max=1.0).tag(sync=True)
    step = traitlets.Float(0.01).tag(sync=True)


class Region(anywidget.AnyWidget):
    """Words that are read out politely when they change; `value` is HTML."""

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
    """An SVG in two layers of one size; `live` is sent alone where only the marks move.

    Sends {kind: "click" or "hover", x, y} in the drawing's units; {text} is shown beside the pointer.
    """

    _esm, _css = HERE / "drawing.js", HERE / "widgets.css"
    still, live = traitlets.Unicode().tag(sync=True), traitlets.Unicode().tag(sync=True)


class Keys(anywidget.AnyWidget):
    """Invisible: gives keys back to the focused control. JupyterLab in command mode takes arrows and Enter
    from menus and buttons in outputs.

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
    """One output with two faces: the widget in JupyterLab, the HTML in reports, which show no widgets and run
    no scripts.
    """

    def __init__(self, widget, html: Callable[[], str]):
        self.widget, self.html = widget, html

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        """Both faces; Jupyter shows the first it can."""
        found = self.widget._repr_mimebundle_(include=include, exclude=exclude)
        bundle, metadata = found if isinstance(found, tuple) else (found, {})
        return dict(bundle or {}) | {"text/html": self.html()}, metadata
