"""A step of fixed shapes, replayed as a CUDA graph: a stacked step is thousands of small kernels, and a GPU
waits for Python to launch them. Elsewhere the step is simply called."""

import logging
from collections.abc import Callable

import torch
from torch import Tensor

log = logging.getLogger(__name__)


class CudaGraphRunner:
    """Calls a step; on a GPU the call is captured when a shape of inputs comes for the second time.

    The first call of a shape is an ordinary update and the warm-up that a capture needs. All graphs share one
    memory pool, which is safe because nothing inside one lives on to the next: a step keeps its results in
    tensors of its own. Where a step cannot be captured, the reason is logged and nothing more is. The step is
    not kept, so that a trainer, its graphs and their memory go as soon as nobody uses it.

    Args:
        whole: the step is on this device alone; a graph records one device's work.
    """

    def __init__(self, device: torch.device, whole: bool = True):
        self.device, self.capturing = device, device.type == "cuda" and whole
        self.seen: set[tuple[torch.Size, ...]] = set()
        self.graphs: dict[tuple[torch.Size, ...], tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...]]] = {}
        self.pool = torch.cuda.graph_pool_handle() if self.capturing else None

    def __call__(self, step: Callable[..., None], *inputs: Tensor) -> None:
        """Carry out `step(*inputs)`.

        Args:
            step: the same in every call; works in place on tensors of its own, and must not wait for the
                device.
        """
        shapes = tuple(tensor.shape for tensor in inputs)
        if self.capturing and shapes in self.seen and shapes not in self.graphs:
            self._capture(step, shapes, inputs)
        self.seen.add(shapes)
        if shapes not in self.graphs:
            step(*inputs)
            return
        graph, fixed = self.graphs[shapes]
        for mine, new in zip(fixed, inputs, strict=True):
            mine.copy_(new, non_blocking=True)
        graph.replay()

    def _capture(self, step: Callable[..., None], shapes: tuple[torch.Size, ...],
                 inputs: tuple[Tensor, ...]) -> None:
        """Record the step; nothing is carried out while recording."""
        fixed, graph = tuple(tensor.clone() for tensor in inputs), torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self.pool):
                step(*fixed)
        except RuntimeError as error:
            # a capture that broke stays on its own stream
            torch.cuda.set_stream(torch.cuda.default_stream(self.device))
            if isinstance(error, torch.OutOfMemoryError):
                raise
            torch.cuda.synchronize(self.device)
            self.capturing = False
            log.warning("updates are not replayed as CUDA graphs (%s)", str(error).splitlines()[0])
            return
        self.graphs[shapes] = graph, fixed
