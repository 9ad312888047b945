"""One segment of training, measured alike for every contender."""

import time
from typing import Any

import torch


def settle(device: str) -> None:
    """Wait until the device has done all it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


class Meter:
    """Wall and processor seconds between `start` and `stop`."""

    def __init__(self, device: str):
        self.device = device
        self._wall = self._cpu = 0.0

    def start(self) -> None:
        """Begin a segment."""
        settle(self.device)
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def stop(self) -> dict[str, Any]:
        """Seconds since `start`: ``seconds`` on the wall, ``cpu_s`` of all this process's threads."""
        settle(self.device)
        return {"seconds": time.perf_counter() - self._wall, "cpu_s": time.process_time() - self._cpu}
