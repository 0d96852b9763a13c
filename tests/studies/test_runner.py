"""Jobs side by side in kernels of one process: order, how many at a time, refusals, Ctrl-C."""

import threading
import time
import types

import pytest

from asdlib import errors
from asdlib.studies import runner
from asdlib.studies.notebook import JobResult, KernelLostError


def order(key, needs=()):
    return types.SimpleNamespace(key=key, needs=needs, label=key)


class Told:
    """In place of `runner.Progress`."""

    def __init__(self):
        self.begun, self.ended = [], []

    def job_started(self, one):
        self.begun.append(one.key)

    def job_ended(self, one, result):
        self.ended.append((one.key, result.error))


def run(monkeypatch, orders, most, work):
    """`_run_parallel` with `work` for every job.  returns : what was told, and how many were at work at most"""
    told, busy, peak, lock = Told(), [0], [0], threading.Lock()

    def run_job(one):
        with lock:
            busy[0] += 1
            peak[0] = max(peak[0], busy[0])
        try:
            return work(one, told)
        finally:
            busy[0] -= 1

    monkeypatch.setattr(runner.kernels, "run_job", run_job)
    try:
        runner._run_parallel(orders, most, told)
    except errors.InputError as refusal:
        return told, peak[0], str(refusal)
    return told, peak[0], ""


@pytest.mark.parametrize("most", [1, 2, 3])
def test_each_job_comes_after_those_it_needs_and_no_more_are_at_work(monkeypatch, most):
    orders = [
        order("a"),
        order("b"),
        order("look", ("a", "fresh")),
        order("c"),
        order("last", ("a", "b", "look", "c")),
    ]

    def work(one, told):
        time.sleep(0.02)
        assert set(one.needs) - {"fresh"} <= {key for key, _ in told.ended}
        return JobResult(0.0)

    told, peak, refusal = run(monkeypatch, orders, most, work)
    assert not refusal and peak == most and told.begun[-1] == "last"
    assert sorted(key for key, _ in told.ended) == sorted(one.key for one in orders)
    if most == 1:
        assert told.begun == [one.key for one in orders]


def test_two_jobs_are_at_work_at_the_same_time(monkeypatch):
    meet = threading.Barrier(2, timeout=10)  # broken if one waits for the other's end

    def work(one, told):
        meet.wait()
        return JobResult(0.0)

    assert run(monkeypatch, [order("a"), order("b")], 2, work)[2] == ""


@pytest.mark.parametrize("lost", [False, True])
def test_after_a_refusal_what_is_at_work_ends_and_nothing_more_begins(monkeypatch, lost):
    ended = threading.Event()

    def work(one, told):
        if one.key == "long":
            time.sleep(0.2)
            ended.set()
        elif lost:
            raise KernelLostError("bad: its kernel ended from outside")
        return JobResult(0.0, "" if one.key == "long" else "bad: three came, expected two")

    told, _, refusal = run(
        monkeypatch, [order("bad"), order("long"), order("c"), order("d", ("bad",))], 2, work
    )
    assert refusal == ("bad: its kernel ended from outside" if lost else "bad: three came, expected two")
    assert (
        ended.is_set() and told.begun == ["bad", "long"] and [key for key, _ in told.ended] == ["bad", "long"]
    )


def test_an_interrupt_kills_the_kernels_and_waits_for_no_job(monkeypatch):
    killed = threading.Event()
    monkeypatch.setattr(runner.kernels, "kill_all", killed.set)

    def interrupted(*_, **__):
        monkeypatch.setattr(runner, "wait", wait)
        raise KeyboardInterrupt

    wait = runner.wait
    monkeypatch.setattr(runner, "wait", interrupted)

    def work(one, told):
        assert killed.wait(10)
        raise KernelLostError("killed")

    with pytest.raises(KeyboardInterrupt):
        run(monkeypatch, [order("a"), order("b"), order("c")], 2, work)
    assert killed.is_set()


def test_a_gpu_does_one_job_at_a_time_and_memory_bounds_the_others(monkeypatch):
    monkeypatch.setattr(runner.training, "cores", lambda: 64)
    assert runner.at_once(gpu=True) == 1 and 1 <= runner.at_once(gpu=False) <= 64
    monkeypatch.setattr(runner, "JOB_GB", 1e6)
    assert runner.at_once(gpu=False) == 1
