"""Benchmarks of what surrounds the computing: a kernel's start, a report's page."""

import dataclasses
import os
import statistics
import tempfile
import time
from pathlib import Path

import nbformat
import papermill
import torch
from nbconvert import HTMLExporter

from asdlib.studies import report
from asdlib.studies.notebook import KERNEL_CONFIG, WarmKernelManager
from asdlib.viz import plots
from tests.bench.measure import Measure, compare

IMPORTS = """from asdlib.analysis import latents
from asdlib.evaluation import metrics
from asdlib.studies import study as studies
from asdlib.viz import plots, tables
print(1)"""


def notebook(*cells: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A notebook for the kernel python3."""
    return nbformat.v4.new_notebook(
        cells=list(cells),
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    )


def kernel(device: torch.device) -> list[Measure]:
    """A notebook that imports what notebooks import, in a warm kernel and in one of its own; wall time, since
    other processes do the work.
    """
    with tempfile.TemporaryDirectory() as folder:
        nbformat.write(notebook(nbformat.v4.new_code_cell(IMPORTS)), Path(folder) / "in.ipynb")

        def run(**more) -> None:
            papermill.execute_notebook(
                f"{folder}/in.ipynb",
                f"{folder}/out.ipynb",
                kernel_name="python3",
                progress_bar=False,
                cwd=folder,
                config=KERNEL_CONFIG,
                **more,
            )

        made = compare(
            "kernel and imports",
            "notebooks",
            lambda: run(kernel_manager_class=WarmKernelManager),
            1,
            run,
            rounds=3,
            says="a kernel of its own",
            timer=time.perf_counter,
        )
    return [dataclasses.replace(made, note=f"wall time, load average {os.getloadavg()[0]:.1f}")]


def page(device: torch.device) -> list[Measure]:
    """A page of a report from an executed notebook with ten figures and ten tables."""
    picture = (
        plots.image(plots.curve(["a", "b"], [0.1, 0.2]), "svg")
        if hasattr(plots, "curve")
        else b"<svg xmlns='http://www.w3.org/2000/svg'/>"
    )
    outputs = [nbformat.v4.new_output("display_data", {"image/svg+xml": picture.decode(), "text/plain": ""})]
    outputs.append(
        nbformat.v4.new_output(
            "display_data",
            {"text/html": "<table>" + "<tr><td>0.5</td></tr>" * 200 + "</table>", "text/plain": ""},
        )
    )
    cells = []
    for number in range(10):
        cells += [
            nbformat.v4.new_markdown_cell(f"## Part {number}\nSome *text*."),
            nbformat.v4.new_code_cell("x = 1", outputs=outputs),
        ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "in.ipynb"
        nbformat.write(notebook(nbformat.v4.new_markdown_cell("# Title"), *cells), path)
        plain = [0]

        def stock() -> None:
            text, _ = HTMLExporter().from_filename(str(path))
            plain[0] = len(text)

        made = compare(
            "report page",
            "pages",
            lambda: report.html(path, Path(folder) / "out.html", {"study": "x"}, "Title"),
            1,
            stock,
            rounds=3,
            says="nbconvert's own template",
        )
        size = (Path(folder) / "out.html").stat().st_size
    return [
        dataclasses.replace(made, note=f"{size / 1e3:.0f} kB, plain {statistics.median(plain) / 1e3:.0f} kB")
    ]
