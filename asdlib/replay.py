"""A training step that a GPU repeats by itself: recorded once as a CUDA graph, then replayed with one call.

Task
----
A step of a small network is a hundred operations that take a microsecond or two each, and starting one from Python takes ten: the GPU
waits most of the time. A graph starts them all. It holds addresses, so a step is recorded on tensors that stay where they are: a batch
is copied into the one that was recorded, and weights, statistics and the optimiser's state are altered in place.

A step may be recorded where it does the same operations on the same shapes each time, asks for no value and draws nothing; a network
says so by `replayable = True`. Before a recorded step is used, it and the plain step are taken from the same state and compared; where
they differ, or nothing can be recorded, the plain step is used and a line says so. While one is recorded no other thread may use the GPU.

Source: torch's documentation of CUDA graphs; DESIGN 3.  Notebook: 03_baseline (through `training.fit`)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Terms = dict[str, Tensor]
WARM = 3  # steps before one is recorded: libraries choose and allocate in the first ones
_failed: list[str] = []  # what ended the first attempt: torch does not leave a failed capture in order, so there is no second
SAME = 0.01  # a recorded step alters a tensor as the plain one does if it is this part of the change away at most


def recorded(work: Callable[[Tensor], Terms], model: torch.nn.Module, optimiser: torch.optim.Optimizer, batch: Tensor) -> Callable[[Tensor], Terms]:
    """`work` as a graph for batches of this one's shape; as it is for others, and for all where a graph does not do.

    work : a step: alters weights, buffers and the optimiser's state in place, returns terms on the device
    batch : Tensor (items, ...) on the GPU, any of those to come
    returns : the same, from the state that holds now: what was tried here is undone
    """
    if _failed:
        return work
    state = _State(model, optimiser)
    try:
        step = _Recorded(work, state, batch)
        why = "" if step.agrees(batch) else "a recorded step does not do what a plain one does"
    except RuntimeError as error:  # of the capture
        why = str(error).splitlines()[0]
        _failed.append(why)
    finally:
        state.restore()
    if why:
        print(f"steps are not recorded on {batch.device} ({why}); they are done one operation at a time")
        return work
    return step


class _State:
    """Everything that a step alters, as it is now; what an optimiser makes in its first step begins with zeros."""

    def __init__(self, model: torch.nn.Module, optimiser: torch.optim.Optimizer):
        self.model, self.optimiser = model, optimiser
        self.before = {id(tensor): (tensor, tensor.detach().clone()) for tensor in self.tensors()}

    def tensors(self) -> list[Tensor]:
        """Weights, buffers, the optimiser's state."""
        made = [value for values in self.optimiser.state.values() for value in values.values() if isinstance(value, Tensor)]
        return [*self.model.parameters(), *self.model.buffers(), *made]

    @torch.no_grad()
    def restore(self) -> None:
        """Back to what it was."""
        for tensor in self.tensors():
            if id(tensor) in self.before:
                tensor.copy_(self.before[id(tensor)][1])
            else:
                tensor.zero_()

    @torch.no_grad()
    def changes(self, work: Callable[[], object]) -> list[Tensor]:
        """What `work` adds to each tensor, from the state that was."""
        self.restore()
        before = [tensor.detach().clone() for tensor in self.tensors()]
        with torch.enable_grad():
            work()
        return [tensor.detach() - old for tensor, old in zip(self.tensors(), before)]


class _Recorded:
    """A step as a graph."""

    def __init__(self, work: Callable[[Tensor], Terms], state: _State, batch: Tensor):
        self.work, self.state, self.batch, self.graph = work, state, batch.clone(), torch.cuda.CUDAGraph()
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            for _ in range(WARM):
                work(self.batch)
        here.wait_stream(aside)
        state.optimiser.zero_grad(set_to_none=True)  # the recorded step makes gradients of its own
        try:
            for group in state.optimiser.param_groups:
                group["capturable"] = True  # a fused optimiser counts on the device in any case; asked for while recording
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
                self.terms = {name: value.detach() for name, value in work(self.batch).items()}  # the way back is not kept: it is of that stream
        finally:
            torch.cuda.set_stream(here)  # a capture that fails stays on its own
            for group in state.optimiser.param_groups:
                group["capturable"] = False

    def agrees(self, batch: Tensor) -> bool:
        """Whether it alters everything as the plain step does, and returns the same terms."""
        said: list[Terms] = []
        mine, plain = (self.state.changes(lambda step=step: said.append(step(batch))) for step in (self, self.work))
        mine, plain = ([*change, *(value.detach() for value in terms.values())] for change, terms in zip((mine, plain), said))
        return all(bool((one - other).float().norm() <= SAME * other.float().norm()) for one, other in zip(mine, plain))

    def __call__(self, batch: Tensor) -> Terms:
        if batch.shape != self.batch.shape:
            return self.work(batch)
        self.batch.copy_(batch)
        self.graph.replay()
        return {name: value.clone() for name, value in self.terms.items()}
