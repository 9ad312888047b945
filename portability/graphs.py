"""A step of fixed shapes, replayed as a CUDA graph: a stacked step is thousands of small kernels, and a GPU waits for
Python to launch them. Elsewhere the step is simply called."""

import logging
from collections.abc import Callable

import torch
from torch import Tensor

log = logging.getLogger(__name__)


class Replayer:
    """Calls `step(*inputs)`; on a GPU the call is captured when a shape of inputs comes for the second time.

    The first call of a shape is an ordinary update and the warm-up that a capture needs. All graphs share one memory
    pool, which is safe because nothing inside one lives on to the next: a step keeps its results in tensors of its own.
    Where a step cannot be captured, the reason is logged and all further calls are ordinary ones.

    Args:
        step: works in place on tensors that it holds; must not wait for the device.
        device: where the inputs are.
    """

    def __init__(self, step: Callable[..., None], device: torch.device):
        self.step, self.capturing = step, device.type == "cuda"
        self.seen: set[tuple[torch.Size, ...]] = set()
        self.graphs: dict[tuple[torch.Size, ...], tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...]]] = {}
        self.pool = torch.cuda.graph_pool_handle() if self.capturing else None

    def __call__(self, *inputs: Tensor) -> None:
        shapes = tuple(tensor.shape for tensor in inputs)
        if self.capturing and shapes in self.seen and shapes not in self.graphs:
            self._capture(shapes, inputs)
        self.seen.add(shapes)
        if shapes not in self.graphs:
            self.step(*inputs)
            return
        graph, fixed = self.graphs[shapes]
        for mine, new in zip(fixed, inputs, strict=True):
            mine.copy_(new, non_blocking=True)
        graph.replay()

    def _capture(self, shapes: tuple[torch.Size, ...], inputs: tuple[Tensor, ...]) -> None:
        """Record the step; nothing is carried out while recording."""
        fixed, graph = tuple(tensor.clone() for tensor in inputs), torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self.pool):
                self.step(*fixed)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.capturing = False
            log.warning("updates are not replayed as CUDA graphs (%s)", str(error).splitlines()[0])
            return
        self.graphs[shapes] = graph, fixed
