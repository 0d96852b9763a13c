"""One job of a study, by itself: a notebook executed by papermill, its folder sealed, its page written.

An `Order` holds plain values, so that it can cross to another process or machine that sees the same folders. What a user can mend comes
back as a sentence in the `Outcome`; only what another try may mend (a kernel that was killed) is raised, for a cluster to try again.
Sources: METHOD 8.2, 8.3. Notebooks: all (by asdlib.studies.runner and asdlib.studies.dask).
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import nbformat
import papermill
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from asdlib import errors
from asdlib.studies import artifacts, notebook, report

KERNEL_CONFIG = Config(
    {
        "KernelManager": {"transport_encryption": "auto"},  # no warning about plain TCP
        "NotebookClient": {"extra_arguments": ["--log-level=50"]},  # an interrupt at shutdown is no error
    }
)


class KernelLost(RuntimeError):
    """The kernel ended from outside; the same job may succeed the next time."""


@dataclass(frozen=True)
class Order:
    """A job as plain values.

    key : its name within the study;  label : its name for people;  needs : keys of jobs that come before it
    study : the folder whose lock its runner holds;  notebook, folder, page : paths;  outputs : files elsewhere that belong to it
    digest : of everything that shapes it;  parameters : of the notebook;  facts : for the manifest;  footer : of the page
    """

    key: str
    label: str
    needs: tuple[str, ...]
    study: str
    notebook: str
    folder: str
    page: str
    outputs: tuple[str, ...]
    digest: str
    parameters: dict
    facts: dict
    footer: dict


@dataclass(frozen=True)
class Outcome:
    """How a job ended: seconds, and the refusal in a sentence or ""."""

    seconds: float
    refusal: str = ""


def perform(order: Order) -> Outcome:
    """Do one job, or nothing if it is finished already. Runs in the runner's process or in a worker's.

    raises : KernelLost
    """
    # its kernel belongs to the runner that holds the study
    tell = {artifacts.HOLDS: order.study, artifacts.DEVICE: order.facts["device"], artifacts.PRECISION: order.facts["auto"]}
    before = {name: os.environ.get(name) for name in tell}
    os.environ.update(tell)
    began, folder = time.perf_counter(), Path(order.folder)
    try:
        with artifacts.guarded(folder):
            artifacts.alone(folder)  # a kernel whose worker was killed may live for another second
            artifacts.let_go(folder)
            if not artifacts.finished(folder, order.digest):
                artifacts.begin(folder, order.digest)
                Path(order.page).unlink(missing_ok=True)
                _execute(order)
                artifacts.write_text(folder / "params.json", json.dumps(order.parameters, indent=1))
                facts = order.facts | {"seconds": round(time.perf_counter() - began, 2)}
                artifacts.seal(folder, order.digest, facts, [Path(path) for path in order.outputs])
            export(order)
    except errors.Refusal as refusal:
        return Outcome(time.perf_counter() - began, str(refusal))
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    return Outcome(time.perf_counter() - began)


def _execute(order: Order) -> None:
    """Run one notebook to its end; the executed copy is put in place only then, a broken one stays as failed.ipynb."""
    folder = Path(order.folder)
    failed = folder / "failed.ipynb"
    try:
        papermill.execute_notebook(
            order.notebook, str(failed), parameters=order.parameters, kernel_name="python3", progress_bar=False, cwd=str(folder),
            config=KERNEL_CONFIG, kernel_manager_class=notebook.WarmKernelManager,
        )  # fmt: skip
    except PapermillExecutionError as error:
        if error.ename == "Refusal":
            raise errors.Refusal(f"{order.label}: {error.evalue}") from error
        raise errors.Refusal(f"{order.label} failed with {error.ename}: {error.evalue}; see {failed}") from error
    except RuntimeError as error:  # the kernel died or never came up
        advice = "most likely for want of memory; free some or use fewer or shorter clips, then give the same command again"
        raise KernelLost(f"{order.label}: its kernel ended from outside ({type(error).__name__}), {advice}") from error
    os.replace(failed, folder / "notebook.ipynb")


def export(order: Order) -> None:
    """The executed notebook as a page of the report, if that is not there."""
    folder, page = Path(order.folder), Path(order.page)
    if page.is_file():
        return
    page.parent.mkdir(parents=True, exist_ok=True)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    title = nbformat.read(folder / "notebook.ipynb", 4).cells[0].source.splitlines()[0].lstrip("# ")
    report.html(folder / "notebook.ipynb", page, order.footer | {"device": manifest["device"], **manifest["versions"]}, title)
