"""Jobs on two worker processes over loopback: order, refusals in words, lost kernels and workers, and what is
left afterwards.
"""

import functools
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from threading import Thread

import nbformat
import psutil
import pytest
import torch

from asdlib import errors
from asdlib.studies import artifacts, dask
from asdlib.studies import notebook as studies_notebook
from asdlib.studies.runner import _use_workers_device

distributed = pytest.importorskip("distributed", reason="the extra cluster is not installed")
WorkerPlugin, LocalCluster = distributed.WorkerPlugin, distributed.LocalCluster
OPEN = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
pytestmark = [pytest.mark.slow, OPEN]


def plainly(order):
    """In place of papermill: the cells in a bare interpreter, which can be lost as a kernel can."""
    _, first, other = (cell.source for cell in nbformat.read(order.notebook, 4).cells)
    code = f"{first}\nhome = {order.parameters['home']!r}\n{other}"
    done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    if done.returncode < 0:
        raise studies_notebook.KernelLostError(f"{order.label}: its kernel ended from outside")
    if done.returncode:
        raise errors.InputError(f"{order.label}: {done.stderr.strip().rpartition('InputError: ')[2]}")
    shutil.copyfile(order.notebook, artifacts.Path(order.folder) / "notebook.ipynb")


class Plainly(WorkerPlugin):
    """Workers, also those that come in the place of others, need no fork server with all imports."""

    def setup(self, worker):
        studies_notebook._execute = plainly


@pytest.fixture(scope="module")
def pool():
    with dask.local(2) as client:
        client.register_plugin(Plainly())
        yield client


@pytest.fixture
def here(monkeypatch):
    """A cluster whose one worker is a thread of this process, which has made its imports."""
    monkeypatch.setattr(studies_notebook, "_execute", plainly)
    with (
        LocalCluster(1, threads_per_worker=1, processes=False, dashboard_address=None) as own,
        dask.existing(own.scheduler_address) as client,
    ):
        yield client


def order(folder, name, *lines, needs=()):
    """A job whose notebook is these lines; it takes no parameters but `home`."""
    book = nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}
    )
    first = nbformat.v4.new_code_cell(
        'home: str = ""  # a folder of the test', metadata={"tags": ["parameters"]}
    )
    book.cells = [
        nbformat.v4.new_markdown_cell("# A job"),
        first,
        nbformat.v4.new_code_cell("\n".join(["import os, time", *lines])),
    ]
    notebook = folder / f"{name}.ipynb"
    nbformat.write(book, notebook)
    job, page = folder / "runs" / name, folder / "reports" / f"{name}.html"
    return studies_notebook.JobSpec(
        key=name,
        label=name,
        needs=needs,
        study=str(folder),
        notebook=str(notebook),
        folder=str(job),
        page=str(page),
        outputs=(),
        digest="d1",
        parameters={"home": str(folder)},
        facts={"device": "cpu", "auto": "float32"},
        footer={},
    )


def told(client, orders, gpu=False):
    found = []
    dask.spread(client, orders, gpu, lambda order, result: found.append((order.key, result.error)))
    return found


def finished(order):
    return artifacts.finished(artifacts.Path(order.folder), "d1")


def test_jobs_run_side_by_side_and_after_those_they_need(pool, tmp_path):
    meet = (
        "open(f'{home}/%s', 'w'); t = time.time()\nwhile not os.path.exists(f'{home}/%s'): time.sleep(0.05);"
        " assert time.time() < t + 60"
    )
    a, b = order(tmp_path, "a", meet % ("a_is", "b_is")), order(tmp_path, "b", meet % ("b_is", "a_is"))
    line = "assert os.path.exists(f'{home}/runs/a/DONE') and os.path.exists(f'{home}/runs/b/DONE')"
    last = order(tmp_path, "last", line, needs=("a", "b", "fresh"))
    found = told(pool, [a, b, last])
    assert (
        sorted(found[:2]) == [("a", ""), ("b", "")]
        and found[2] == ("last", "")
        and all(map(finished, (a, b, last)))
    )
    assert (tmp_path / "reports" / "last.html").is_file()


def test_a_finished_job_is_not_done_again(pool, tmp_path):
    one = order(tmp_path, "one", "open(f'{home}/count', 'a').write('x')")
    told(pool, [one])
    told(pool, [one])
    assert (tmp_path / "count").read_text() == "x"


def test_a_refusal_ends_what_needs_it_and_what_does_not_is_done(pool, tmp_path):
    lines = (
        "from asdlib import errors",
        "raise errors.InputError('three came, expected two; leave one out')",
    )
    bad, other = order(tmp_path, "bad", *lines), order(tmp_path, "other", "time.sleep(1)")
    after = order(tmp_path, "after", "pass", needs=("bad", "other"))
    ended = []
    with pytest.raises(errors.InputError, match=r"^bad: three came, expected two; leave one out$"):
        dask.spread(pool, [bad, other, after], False, lambda order, _: ended.append(order.key))
    assert sorted(ended) == ["after", "bad", "other"] and finished(other)
    assert not finished(after) and not os.path.exists(after.folder)


def test_what_most_wait_for_is_done_first(here, tmp_path):
    """On one worker: of jobs that could all begin, those that others need come before those that none needs."""
    line = "open(f'{home}/order', 'a').write('%s ')"
    names = dict.fromkeys("abcd", ()) | {"train": (), "look": ("train",), "report": ("train", "look")}
    orders = [order(tmp_path, name, line % name, needs=needs) for name, needs in names.items()]
    assert all(refusal == "" for _, refusal in told(here, orders))
    done = (tmp_path / "order").read_text().split()
    assert done.index("train") <= 2, done  # one runs and one lies with the worker when it comes
    assert done.index("look") < done.index("report")


def test_a_job_that_the_cluster_gives_up_is_a_sentence(here, tmp_path, monkeypatch):
    """An error that is neither a refusal nor a lost kernel; workers restarted by somebody else."""
    with (
        monkeypatch.context() as patch,
        pytest.raises(
            errors.InputError,
            match=r"^odd: the cluster gave up on it \(TypeError: .*; see the workers' logs, then run the same",
        ),
    ):
        patch.setattr(dask, "_run_after", functools.partial(int, base="ten"))
        told(here, [order(tmp_path, "odd", "pass")])
    lines = ("open(f'{home}/begun', 'w')", "while not os.path.exists(f'{home}/over'): time.sleep(0.05)")

    def restart():
        while not (tmp_path / "begun").exists():
            time.sleep(0.05)
        here.restart(wait_for_workers=False)

    thread = Thread(target=restart)
    thread.start()
    with pytest.raises(errors.InputError, match=r"^long: the cluster gave up on it"):
        told(here, [order(tmp_path, "long", *lines)])
    (tmp_path / "over").touch()
    thread.join()


def test_a_lost_kernel_is_tried_again(pool, tmp_path):
    flaky = order(
        tmp_path,
        "flaky",
        "first = not os.path.exists(f'{home}/seen'); open(f'{home}/seen', 'w')",
        "if first: os.kill(os.getpid(), 9)",
    )
    assert told(pool, [flaky]) == [("flaky", "")] and finished(flaky)


def deaf():
    return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, set())


def test_workers_do_not_hear_ctrl_c_and_the_runner_does(pool):
    assert list(pool.run(deaf).values()) == [True, True] and not deaf()


def test_a_kernel_that_is_lost_every_time_is_a_sentence(pool, tmp_path):
    with pytest.raises(errors.InputError, match="hopeless: its kernel ended from outside"):
        told(
            pool,
            [order(tmp_path, "hopeless", "open(f'{home}/count', 'a').write('x')", "os.kill(os.getpid(), 9)")],
        )
    assert (tmp_path / "count").read_text() == "x" * (1 + dask.RETRIES)


@pytest.mark.exhaustive  # the faults kill one in a whole study
def test_a_killed_worker_costs_its_own_job_only(tmp_path):
    """Its kernel ends with it, the job is done again elsewhere, the other job notices nothing."""
    with dask.local(2) as client:
        pids = client.run(os.getpid)  # by the workers' addresses
        line = "open(f'{home}/%s', 'a').write(f'{os.getpid()}\\n'); time.sleep(4)"
        orders = [order(tmp_path, name, line % f"{name}_pid") for name in ("a", "b")]
        killed = []

        def kill(path=tmp_path / "a_pid"):
            while not path.exists() or not path.read_text().endswith("\n"):
                time.sleep(0.05)
            killed.append(
                next(
                    pids[address]
                    for address, keys in client.processing().items()
                    if any("/a-d1" in key for key in keys)
                )
            )
            os.kill(killed[0], signal.SIGKILL)

        thread = Thread(target=kill)
        thread.start()
        found = told(client, orders)
        thread.join()
        assert sorted(found) == [("a", ""), ("b", "")] and all(map(finished, orders))
        kernels = [int(word) for word in (tmp_path / "a_pid").read_text().split()]
        assert len(kernels) == 2 and len((tmp_path / "b_pid").read_text().split()) == 1
        time.sleep(2)
        for pid in (*killed, kernels[0]):
            assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_an_existing_cluster_is_used_and_nobody_there_is_said(pool, tmp_path):
    with dask.existing(pool.scheduler.address) as client:
        assert dask.device_of(client) == ("cpu", False)
        one = order(tmp_path, "one", "pass")
        assert told(client, [one]) == [("one", "")] and finished(one)
    with (
        pytest.raises(errors.InputError, match=r"--scheduler tcp://127\.0\.0\.1:9: no answer"),
        dask.existing("tcp://127.0.0.1:9"),
    ):
        pass


class Workers:
    """What `dask.device_of` asks of a cluster."""

    def __init__(self, *seen, resources=()):
        self.seen, self.resources = seen, resources

    def scheduler_info(self, n_workers):
        return {
            "workers": {
                number: {"resources": dict.fromkeys(self.resources, 1)} for number in range(len(self.seen))
            }
        }

    def run(self, function, *words):
        if "nothing" in self.seen:
            raise ModuleNotFoundError("No module named 'asdlib'")
        return dict(enumerate(self.seen))


@pytest.mark.parametrize(
    "workers, setting, expected",
    [
        (Workers("cuda", "cuda", resources=["GPU"]), "auto", ("cuda", True)),
        (Workers("cuda", "cuda"), "auto", ("cuda", False)),
        (Workers("cpu", "cpu"), "auto", ("cpu", False)),
        (
            Workers("cuda", "cpu"),
            "auto",
            ("only some workers of the cluster have a GPU; start those with `--resources GPU=1`"),
        ),
        (Workers("cuda", "cpu"), "cpu", ("cpu", False)),
        (Workers("cpu", "cpu"), "cuda", "device cuda requested, but no worker of the cluster has a GPU"),
        (Workers("cuda", resources=["GPU"]), "cuda", ("cuda", True)),
        (Workers(), "auto", "the cluster has no workers left; start some with"),
        (
            Workers("nothing"),
            "auto",
            (
                r"cannot report their device \(ModuleNotFoundError: No module named 'asdlib'\); install"
                r" this version of asdlib"
            ),
        ),
    ],
)
@pytest.mark.parametrize("runner", ["cpu", "cuda"])
def test_jobs_are_meant_for_the_device_of_the_workers_whatever_the_runner_has(
    workers, setting, expected, runner
):
    run = types.SimpleNamespace(cfg=types.SimpleNamespace(device=setting), device=torch.device(runner))
    if isinstance(expected, str):
        with pytest.raises(errors.InputError, match=expected):
            _use_workers_device(workers, [run])
    else:
        assert (_use_workers_device(workers, [run]), run.device) == (expected[1], torch.device(expected[0]))


@pytest.mark.parametrize("said, expected", [(["bf16", "", "bf16"], "bf16"), (["bf16", "float32"], "float32")])
def test_jobs_are_trained_in_bf16_where_every_worker_that_may_get_one_has_units_for_it(said, expected):
    assert dask.auto_of(Workers(*said), "cuda") == expected


def test_gpu_jobs_go_to_workers_that_offer_one(tmp_path, monkeypatch):
    """Two workers, one unit of the resource GPU: two jobs never meet; the GPU is the first of those that the
    runner was told to use.
    """
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    with dask.local(2, gpus=1) as client:
        client.register_plugin(Plainly())
        assert (
            dask.device_of(client) == ("cuda", True)
            and len(client.scheduler_info(n_workers=-1)["workers"]) == 1
        )
        line = (
            "assert os.environ['CUDA_VISIBLE_DEVICES'] == '3' and not os.path.exists(f'{home}/busy');"
            " open(f'{home}/busy', 'w'); time.sleep(1)"
        )
        orders = [order(tmp_path, name, line, "os.unlink(f'{home}/busy')") for name in ("a", "b")]
        assert sorted(told(client, orders, gpu=True)) == [("a", ""), ("b", "")]


@pytest.mark.parametrize(
    "told, expected",
    [("3,1", ["3", "1"]), ("GPU-aa,GPU-bb,GPU-cc", ["GPU-aa", "GPU-bb"]), (None, ["0", "1"])],
)
def test_workers_share_the_gpus_that_the_runner_was_told_to_use(monkeypatch, told, expected):
    (
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        if told is None
        else monkeypatch.setenv("CUDA_VISIBLE_DEVICES", told)
    )
    assert dask._visible_gpus(2) == expected


def test_workers_below_one_are_refused():
    with pytest.raises(errors.InputError, match="--workers -1: expected 1 or more"), dask.local(-1):
        pass
