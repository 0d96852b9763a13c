"""Warm kernels: forks that behave like kernels of their own, leave nothing behind, and give way where a fork
cannot be had.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import matplotlib
import nbformat
import papermill
import psutil
import pytest
from papermill.exceptions import PapermillExecutionError

from asdlib.studies import forks
from asdlib.studies import notebook as kernels

pytestmark = pytest.mark.filterwarnings("ignore")  # of papermill and its client, as in the command line

FACTS = """import os, sys
print(os.getpid(), os.getppid(), os.getcwd(), os.environ.get("HELLO"), "asdlib.studies.study" in sys.modules,
      len(os.listdir("/proc/self/task")) < 40)"""
FIGURE = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()"
MATHS = (
    "import numpy as np, torch\nprint(*((x @ x).sum().item() for x in (torch.ones(300, 300), np.ones((300,"
    " 300)))))"
)


def executed(folder: Path, *cells: str) -> list:
    """Outputs of the cells, run as a study runs a notebook."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in cells])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, folder / "in.ipynb")
    papermill.execute_notebook(
        str(folder / "in.ipynb"),
        str(folder / "out.ipynb"),
        kernel_name="python3",
        progress_bar=False,
        cwd=str(folder),
        config=kernels.KERNEL_CONFIG,
        kernel_manager_class=kernels.WarmKernelManager,
    )
    return [cell.outputs for cell in nbformat.read(folder / "out.ipynb", 4).cells]


def printed(outputs: list) -> str:
    """What a cell printed, which a busy machine sends in pieces."""
    return "".join(output.text for output in outputs)


def running(pid: int) -> bool:
    """Whether a process computes: neither gone nor a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pids: list[int], seconds: float = 20.0) -> bool:
    until = time.monotonic() + seconds
    while any(map(running, pids)) and time.monotonic() < until:
        time.sleep(0.1)
    return not any(map(running, pids))


def test_a_fork_server_that_died_is_replaced(tmp_path):
    """It is killed while it imports; the one in its place serves the other tests, too."""
    forks.warm()
    first = forks.forkserver._forkserver._forkserver_pid
    os.kill(first, signal.SIGKILL)
    assert gone([first])
    again = int(printed(executed(tmp_path, FACTS)[0]).split()[1])
    assert again != first and "multiprocessing.forkserver" in " ".join(psutil.Process(again).cmdline())


def test_a_notebook_runs_in_a_fork_with_its_own_folder_and_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("HELLO", "first")
    facts, figure, maths = executed(tmp_path, FACTS, FIGURE, MATHS)
    pid, parent, *rest = printed(facts).split()
    assert rest == [str(tmp_path), "first", "True", "True"]
    assert "multiprocessing.forkserver" in " ".join(psutil.Process(int(parent)).cmdline()) and gone(
        [int(pid)]
    )
    assert [sorted(output.data) for output in figure if "data" in output] == [["image/png", "text/plain"]]
    assert printed(maths).split() == ["27000000.0", "27000000.0"]
    monkeypatch.setenv("HELLO", "second")
    (tmp_path / "other").mkdir()
    again = printed(executed(tmp_path / "other", FACTS)[0]).split()  # not where the fork server was started
    assert again[0] != pid and again[1] == parent and again[2:4] == [str(tmp_path / "other"), "second"]


def test_a_kernel_takes_no_port_that_another_process_could_take_first(tmp_path):
    """Two studies side by side ended with a lost kernel now and then, whose port had been found free and was
    taken before it was bound.
    """
    code = """from ipykernel.kernelapp import IPKernelApp
app = IPKernelApp.instance()
named = [line.split()[-1] for line in open("/proc/net/unix") if app.ip in line]
print(app.transport, app.ip, len(set(named)))"""
    first, second = (printed(executed(tmp_path, code)[0]).split() for _ in range(2))
    assert first[0] == second[0] == "ipc" and first[2] == second[2] == "5" and first[1] != second[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.ipynb", "out.ipynb"]


def test_a_kernel_that_is_killed_is_told_and_the_next_one_runs(tmp_path):
    with pytest.raises((RuntimeError, PapermillExecutionError)):
        executed(tmp_path, "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    assert printed(executed(tmp_path, "print(1)")[0]) == "1\n"


def test_without_a_fork_server_an_ordinary_kernel_is_started(tmp_path, monkeypatch):
    def none():
        raise OSError("no such thing here")

    monkeypatch.setattr(forks.forkserver, "ensure_running", none)
    words = printed(executed(tmp_path, FACTS)[0]).split()
    assert int(words[1]) == os.getpid() and words[4] == "False"


def test_a_kernel_has_one_thread_by_its_own_environment_and_may_start_processes(tmp_path, monkeypatch):
    """As in a worker of Dask, which is a daemon of multiprocessing; what this process has is as it was."""
    monkeypatch.setattr(multiprocessing.current_process(), "daemon", True)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    code = """import multiprocessing, os, threading, threadpoolctl, torch
print(os.environ["OMP_NUM_THREADS"], torch.get_num_threads(), {pool["num_threads"] for pool in threadpoolctl.threadpool_info()})
child = multiprocessing.get_context("fork").Process(target=int)
child.start(); child.join(); print(child.exitcode)"""
    assert (
        printed(executed(tmp_path, code)[0]).split() == ["1", "1", "{1}", "0"]
        and os.environ["OMP_NUM_THREADS"] == "7"
    )


def test_the_users_python_and_ipython_change_nothing_in_a_job(tmp_path, monkeypatch):
    startup = tmp_path / "home" / ".ipython" / "profile_default" / "startup" / "00.py"
    startup.parent.mkdir(parents=True)
    startup.write_text("import pandas; pandas.set_option('display.precision', 1)")
    (tmp_path / "startup.py").write_text("import numpy; numpy.set_printoptions(precision=1)")
    monkeypatch.setenv("MPLCONFIGDIR", matplotlib.get_configdir())  # which lists the fonts already
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("IPYTHONDIR", raising=False)
    monkeypatch.setenv("PYTHONSTARTUP", str(tmp_path / "startup.py"))
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    monkeypatch.setattr(sys, "warnoptions", ["error"])  # as Python has it then
    cell = """import numpy, os, pandas, sys, warnings
warnings.warn("said, not raised")
print(pandas.get_option("display.precision"), numpy.get_printoptions()["precision"], sys.warnoptions,
      sorted(name for name in os.environ if name.startswith("PYTHON")), get_ipython().history_manager.enabled)"""
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)])
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(book, tmp_path / "in.ipynb")
    (tmp_path / "job").mkdir()
    parameters = {"home": str(tmp_path)}
    facts = {"device": "cpu", "auto": "float32"}
    files = {name: str(tmp_path / name) for name in ("study", "page")}
    order = kernels.JobSpec(
        "key", "label", (), **files, notebook=str(tmp_path / "in.ipynb"), folder=str(tmp_path / "job"),
        outputs=(), digest="d", parameters=parameters, facts=facts, footer={},
    )  # fmt: skip
    kernels._execute(order)
    outputs = nbformat.read(tmp_path / "job" / "notebook.ipynb", 4).cells[-1].outputs
    text = "".join(output.text for output in outputs if output.name == "stdout")
    kept = sorted({*(forks.KEPT & os.environ.keys()), "PYTHONSAFEPATH"})
    assert text.split(" ", 2)[:2] == ["6", "8"] and text.split(" ", 2)[2].strip() == f"[] {kept} False"
    assert not (startup.parents[1] / "db").exists()


RUNNER = """import sys
import nbformat, papermill
from asdlib.studies import notebook as kernels
notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(
    "import os, time\\nopen('pids', 'w').write(f'{os.getpid()} {os.getppid()}')\\ntime.sleep(300)")])
nbformat.write(notebook, "in.ipynb")
papermill.execute_notebook("in.ipynb", "out.ipynb", kernel_name="python3", cwd=".", kernel_manager_class=kernels.WarmKernelManager)"""


@pytest.mark.parametrize("end", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.exhaustive)])
def test_the_death_of_the_runner_leaves_no_orphan(tmp_path, end):
    runner = subprocess.Popen(
        [sys.executable, "-c", RUNNER], cwd=tmp_path, stderr=subprocess.DEVNULL, start_new_session=True
    )
    pids, until = tmp_path / "pids", time.monotonic() + 120
    while not (pids.is_file() and len(pids.read_text().split()) == 2) and time.monotonic() < until:
        time.sleep(0.1)
    found = [int(word) for word in pids.read_text().split()]
    assert all(map(running, found))
    os.killpg(runner.pid, end)  # as a terminal does
    runner.wait(60)
    assert gone(found), "the kernel or the fork server outlived the runner"


def test_the_fork_server_is_started_before_anything_heavy_is_imported():
    code = "import sys; from asdlib.studies import forks; print({'torch', 'pandas'} & set(sys.modules))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "set()"
