"""A fresh JupyterLab opened on any notebook of a finished study runs it from top to bottom; those with controls
do so in test_views.
"""

import lab as labs
import pytest

pytestmark = pytest.mark.browser


@pytest.mark.parametrize(
    "name", [path.stem for path in labs.NOTEBOOKS if path.stem not in ("06_embeddings", "08_tuning")]
)
def test_a_notebook_runs_top_to_bottom(page, server, shots, name):
    server.open(page, f"{name}.ipynb")
    book = server.run_all(page, f"{name}.ipynb")
    assert labs.errors(book) == []
    assert f"OK {name[:2]}: " in labs.said(book)
    page.screenshot(path=shots / f"{name}.png")
    server.end_kernel(f"{name}.ipynb")
