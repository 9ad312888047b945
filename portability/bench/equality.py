"""Are these the same trainings? Losses of ten updates from the same start over the same batches, side by side."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from portability.bench import libraries
from portability.bench.ours import Stand
from portability.bench.plain import PlainLoop
from portability.bench.workload import Workload

UPDATES = 10
TOLERANCES = {"fp32": 1e-3, "bf16": 0.1}  # of a loss; rounding gives 1e-6 to 1e-4 and 1e-3 to 1e-2, another scale far more
SEED = 0
CONTROL = 10  # the control's learning rate is wrong by this factor, and the check must see it


def compare(work: Workload, rival_rate: float = 1.0) -> dict[str, Any]:
    """Largest absolute differences between losses, each with the bound it must keep.

    Args:
        rival_rate: multiplies the rivals' learning rate; anything but 1 must be found out.
    """
    stand = Stand(replace(work, updates=UPDATES))
    rate = stand.method.learning_rate * rival_rate
    one, theta = _engine(stand, [SEED])
    four, stacked = _engine(stand, [SEED, 1, 2, 3])
    adapters = _plain(stand, rate)
    bound = TOLERANCES[work.precision]
    exact = 0.0 if work.device == "cpu" else bound
    rows = [_row("ours K=1 | ours K=4", one, four, exact), _row("ours K=1 | adapters, plain loop", one, adapters, bound)]
    if work.method == "lora":
        rows.append(_row("ours K=1 | peft, plain loop", one, _peft(stand, rate), bound))
    control = _row(f"control: learning rate x{CONTROL}", one, _plain(stand, rate * CONTROL), bound)
    weights = float((theta[0] - stacked[0]).abs().max())
    return {
        "updates": UPDATES, "rows": rows, "control": control, "weights_k1_k4": weights,
        "passed": all(row["difference"] <= row["bound"] for row in rows)
        and (weights == 0 or work.device != "cpu") and control["difference"] > bound,
    }


def _row(name: str, one: Tensor, other: Tensor, bound: float) -> dict[str, Any]:
    return {"name": name, "difference": float((one - other).abs().max()), "bound": bound,
            "first_loss": float(one[0]), "last_loss": float(one[-1])}


def _engine(stand: Stand, seeds: list[int]) -> tuple[Tensor, Tensor]:
    """Losses (updates,) of the first member of a stack, and all parameters (K, P)."""
    trainer = stand.trainer(seeds)
    for step in range(UPDATES):
        stand.update(trainer, step)
    return trainer.losses[:UPDATES, 0].double().cpu(), trainer.bank.theta.detach()


def _loop(stand: Stand, loop: PlainLoop) -> Tensor:
    losses = [float(loop.update(*stand.batch(step, SEED))) for step in range(UPDATES)]
    return torch.tensor(losses, dtype=torch.float64)


def _plain(stand: Stand, rate: float) -> Tensor:
    """The library whose module it is, in an ordinary loop."""
    return _loop(stand, PlainLoop(stand.scorer, stand.start(SEED), stand.spec, rate))


def _peft(stand: Stand, rate: float) -> Tensor:
    return _loop(stand, peft_loop(stand, rate))


def peft_loop(stand: Stand, rate: float) -> PlainLoop:
    """peft's LoRA on a host of its own, starting from the numbers that ours starts from."""
    model = libraries.load(stand.work, dropout=False).requires_grad_(False).eval().to(stand.work.device)
    libraries.with_peft(model, stand.work)
    model.eval()
    scorer = libraries.scorer_over(model, stand.work, stand.work.precision)
    return PlainLoop(scorer, _named_by_peft(stand.start(SEED)), stand.spec, rate)


def _named_by_peft(start: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """adapters' names to peft's.

    Example:
        >>> list(_named_by_peft({"model.q.loras.module.lora_A": torch.zeros(1)}))
        ['model.q.lora_A.default.weight']
    """
    return {name.replace(".loras.module.lora_A", ".lora_A.default.weight")
            .replace(".loras.module.lora_B", ".lora_B.default.weight"): value for name, value in start.items()}
