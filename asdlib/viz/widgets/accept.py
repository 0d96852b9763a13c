"""Controls below the embedding map to accept clips as normal: preview, keep, revoke.

Class names for tests and styles: asd-accept, asd-accept-show, asd-accept-keep, asd-accept-words (read out),
asd-accept-list, asd-accept-revoke.
Source: METHOD 3.8.  Notebook: 06_embeddings
"""

from __future__ import annotations

import html
from collections.abc import Sequence

import ipywidgets

from asdlib import errors
from asdlib.viz.widgets import controls
from asdlib.viz.widgets.map_model import EmbeddingMap


class AcceptView(ipywidgets.VBox):
    """Controls to accept the selected clip of a map as normal, after a preview of the effect.

    review : `asdlib.studies.accepted.Review`, computes the effect on the decisions of the view's system
    beside : buttons to show to the left of its own
    """

    def __init__(self, model: EmbeddingMap, review, beside: Sequence[ipywidgets.Widget] = ()):
        self.model, self.review = model, review
        self.words = controls.Region()
        self.show = self._button("This is normal", "show", self._show, "Preview what changes if accepted")
        self.keep = self._button("Keep", "keep", self._keep, "Accept the clip as normal, as previewed")
        self.list = ipywidgets.VBox()
        self.words.add_class("asd-accept-words")
        self.list.add_class("asd-accept-list")
        buttons = ipywidgets.HBox([*beside, self.show, self.keep], layout={"flex_flow": "row wrap"})
        super().__init__([buttons, self.words, self.list])
        self.add_class("asd-accept")
        model.observe(lambda _: self._reset(), ["row", "view"])
        self._reset()
        self._show_list()

    @staticmethod
    def _button(label: str, name: str, act, tooltip: str) -> ipywidgets.Button:
        button = ipywidgets.Button(description=label, tooltip=tooltip)
        button.on_click(lambda _: act())
        return button.add_class(f"asd-accept-{name}")

    def _reset(self) -> None:
        self.show.disabled, self.keep.disabled, self.words.value = self.model.row < 0, True, ""

    def _call(self, act, *given) -> bool:
        """Call a function, show its message or error, and return whether it succeeded."""
        try:
            words, failed = act(*given), False
        except errors.InputError as error:
            words, failed = str(error), True
        self.words.value = f'<div class="asd-accept-text">{html.escape(words)}</div>'
        return not failed

    def _show(self) -> None:
        before, self.show.description = self.show.description, "computing"
        try:
            self.keep.disabled = not self._call(self.review.preview, self.model.row, self.model.system)
        finally:
            self.show.description = before

    def _keep(self) -> None:
        self.keep.disabled = True
        self._call(self.review.keep)
        self._show_list()

    def _revoke(self, digest: str) -> None:
        self._call(self.review.revoke, digest)
        self._show_list()

    def _show_list(self) -> None:
        """List the accepted clips, each with a button to revoke it."""
        lines = []
        for one in self.review.listed().itertuples():
            name = one.file.rsplit("/", 1)[-1]
            button = self._button(
                "Revoke", "revoke", lambda digest=one.digest: self._revoke(digest), f"Revoke {name}"
            )
            text = f"{html.escape(one.machine)}: {html.escape(name)}, accepted {html.escape(one.when)}"
            lines.append(ipywidgets.HBox([button, ipywidgets.HTML(text)]))
        self.list.children = lines
