"""Warm kernels: forks that behave like kernels of their own, leave nothing behind, and give way where a fork cannot be had."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import papermill
import psutil
import pytest
from papermill.exceptions import PapermillExecutionError

from asdlib import kernels, perform

pytestmark = pytest.mark.filterwarnings("ignore")  # of papermill and its client, as in the command line

FACTS = """import os, sys
print(os.getpid(), os.getppid(), os.getcwd(), os.environ.get("HELLO"), "asdlib.study" in sys.modules, len(os.listdir("/proc/self/task")) < 40)"""
FIGURE = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()"
MATHS = "import numpy as np, torch\nprint(*((x @ x).sum().item() for x in (torch.ones(300, 300), np.ones((300, 300)))))"


def executed(folder: Path, *cells: str) -> list:
    """Outputs of the cells, run as a study runs a notebook."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in cells])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, folder / "in.ipynb")
    papermill.execute_notebook(str(folder / "in.ipynb"), str(folder / "out.ipynb"), kernel_name="python3", progress_bar=False, cwd=str(folder),
                               config=perform.KERNEL_CONFIG, kernel_manager_class=kernels.WarmKernelManager)  # fmt: skip
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


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """The shared zygote stays for all tests, but what one of them breaks is not left to the next."""
    if kernels._shared.impossible:
        monkeypatch.setattr(kernels, "_shared", kernels._Shared())


def test_a_notebook_runs_in_a_fork_with_its_own_folder_and_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("HELLO", "first")
    facts, figure, maths = executed(tmp_path, FACTS, FIGURE, MATHS)
    pid, parent, *rest = printed(facts).split()
    assert rest == [str(tmp_path), "first", "True", "True"]
    assert int(parent) == kernels._shared.zygote.process.pid and gone([int(pid)])
    assert [sorted(output.data) for output in figure if "data" in output] == [["image/png", "text/plain"]]
    assert printed(maths).split() == ["27000000.0", "27000000.0"]
    monkeypatch.setenv("HELLO", "second")
    (tmp_path / "other").mkdir()
    again = printed(executed(tmp_path / "other", FACTS)[0]).split()  # not where the zygote was started
    assert again[0] != pid and again[1] == parent and again[2:4] == [str(tmp_path / "other"), "second"]


def test_a_kernel_takes_no_port_that_another_process_could_take_first(tmp_path):
    """Two studies side by side ended with a lost kernel now and then, whose port had been found free and was taken before it was bound."""
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


def test_a_zygote_that_died_is_replaced(tmp_path):
    executed(tmp_path, "1")
    first = kernels._shared.zygote.process
    first.kill()
    first.wait()
    assert printed(executed(tmp_path, FACTS)[0]).split()[1] == str(kernels._shared.zygote.process.pid) != str(first.pid)


def test_without_a_zygote_an_ordinary_kernel_is_started(tmp_path, monkeypatch):
    def none(shared=False):
        raise OSError("no such thing here")

    monkeypatch.setattr(kernels, "_shared", kernels._Shared())
    monkeypatch.setattr(kernels.Zygote, "start", none)
    words = printed(executed(tmp_path, FACTS)[0]).split()
    assert int(words[1]) == os.getpid() and words[4] == "False" and kernels._shared.impossible


WORKER = """import sys, time
from asdlib import kernels
child = kernels._Shared()
print(child.fork(sys.argv[1:], None, {}), flush=True)  # makes its own connection file and waits
print(child.zygote.process, flush=True)
time.sleep(300)"""


def test_a_worker_gets_a_zygote_from_the_runner_s_and_both_end_with_their_callers(tmp_path):
    """No imports of its own; its door is closed to others and gone with the runner."""
    runner = kernels._Shared()
    door = Path(runner.made(shared=True).door)
    assert door.stat().st_mode & 0o777 == 0o700
    environment = os.environ | {kernels.ADDRESS: str(door / kernels.DOOR)}
    worker = subprocess.Popen([sys.executable, "-c", WORKER, "kernel", "-f", str(tmp_path / "none.json")], stdout=subprocess.PIPE, text=True,
                              env=environment)  # fmt: skip
    try:
        pid, own = int(worker.stdout.readline()), worker.stdout.readline()
        assert own == "None\n" and pid != worker.pid, "it started one of its own"
        served = [process.pid for process in psutil.Process(runner.zygote.process.pid).children() if process.pid != pid]
        assert len(served) == 1 and running(served[0])
        worker.kill()
        assert gone(served), "the worker's zygote outlived it"
        assert gone([pid]), "the worker's kernel outlived it"
        assert running(runner.zygote.process.pid)
        runner.zygote.link.close()
        runner.zygote.lines.close()  # as the runner's death does
        assert gone([runner.zygote.process.pid]) and not door.exists()
    finally:
        worker.kill()
        worker.communicate()
        runner.zygote.close()


def test_where_a_zygote_cannot_be_had_nothing_is_left_behind(tmp_path, monkeypatch):
    """A folder for temporary files whose name is too long for a socket: workers make their own imports."""
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr(kernels.tempfile, "tempdir", str(deep))
    with pytest.raises(OSError, match="too long"):
        kernels.Zygote.start(shared=True)
    assert not list(deep.iterdir())


RUNNER = """import sys
import nbformat, papermill
from asdlib import kernels
notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(
    "import os, time\\nopen('pids', 'w').write(f'{os.getpid()} {os.getppid()}')\\ntime.sleep(300)")])
nbformat.write(notebook, "in.ipynb")
papermill.execute_notebook("in.ipynb", "out.ipynb", kernel_name="python3", cwd=".", kernel_manager_class=kernels.WarmKernelManager)"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_the_death_of_the_runner_leaves_no_orphan(tmp_path, end):
    runner = subprocess.Popen([sys.executable, "-c", RUNNER], cwd=tmp_path, stderr=subprocess.DEVNULL, start_new_session=True)
    pids, until = tmp_path / "pids", time.monotonic() + 120
    while not (pids.is_file() and len(pids.read_text().split()) == 2) and time.monotonic() < until:
        time.sleep(0.1)
    found = [int(word) for word in pids.read_text().split()]
    assert all(map(running, found))
    os.killpg(runner.pid, end)  # as a terminal does
    runner.wait(60)
    assert gone(found), "the kernel or the zygote outlived the runner"
