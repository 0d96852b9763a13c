"""The command `asd` for tests: as a process of its own, as a user types it, or in this process or a fork, where
only the words and files matter and no interpreter has to be started.
"""

import contextlib
import importlib
import io
import multiprocessing
import os
import resource
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import papermill
import pytest
from papermill.exceptions import PapermillExecutionError

from asdlib import cli, errors
from asdlib.studies import artifacts, forks

CODE = "import sys; from asdlib.cli import main; sys.exit(main())"
ENV = os.environ | {"OMP_NUM_THREADS": "1"}


def asd(*words, timeout=600):
    """A process of its own, from another folder."""
    return subprocess.run(
        [sys.executable, "-c", CODE, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd="/",
        env=ENV,
    )


def cells(notebook, executed, parameters, kernel_manager_class, **_):
    """In place of `papermill.execute_notebook`: the cells, one after the other, in this process."""
    book = nbformat.read(notebook, 4)
    first, *others = [cell.source for cell in book.cells if cell.cell_type == "code"]
    names = {"__name__": "__main__"}
    try:
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
            for name, value in kernel_manager_class.job.items():
                patch.setenv(name, value)
            exec(compile(first, notebook, "exec"), names)
            names.update(parameters)
            for source in others:
                exec(compile(source, notebook, "exec"), names)
    except errors.InputError as refusal:
        raise PapermillExecutionError(0, 0, source, "InputError", str(refusal), []) from refusal
    finally:
        artifacts.unlock_dir(Path(executed).parent)  # a kernel's end does
        plt.close("all")
    nbformat.write(book, executed)


def asd_here(*words):
    """In this process, cells of notebooks too; what it said as of a process."""
    from asdlib.studies import runner  # here: most tests need no more than a command's words

    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(papermill, "execute_notebook", cells)
        patch.setattr(forks, "warm", lambda: None)
        patch.setattr(runner, "at_once", lambda gpu: 1)  # of cells in one process
        code = cli.main(list(map(str, words)))
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def forked(words, fault=None, limit=None, timeout=300):
    """As `asd_here`, in a fork of the server that `forks.warm` starts.

    fault : of `killing.arm`;  limit : size of the largest file that can be written, bytes
    """
    fork = multiprocessing.get_context("forkserver")
    ours, theirs = fork.Pipe(duplex=False)
    process = fork.Process(target=_in_the_fork, args=(theirs, list(map(str, words)), fault, limit))
    process.start()
    theirs.close()
    with contextlib.suppress(EOFError):  # it was killed
        out, err = "", ""
        if ours.poll(timeout):
            out, err = ours.recv()
    process.join(timeout)
    return subprocess.CompletedProcess(words, process.exitcode, out, err)


def _in_the_fork(pipe, words, fault, limit):
    if fault is not None:
        sys.path.insert(0, str(Path(__file__).parent / "faults"))
        importlib.import_module("killing").arm(fault)
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    done = asd_here(*words)
    pipe.send((done.stdout, done.stderr))
    sys.exit(done.returncode)
