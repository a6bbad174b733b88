"""What ``reproduce`` compares, and writes to ``reproduction.json`` so that others can check it."""

import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.cli import LightningCLI
from torch import nn

from lightning_maml.saving.weights import sha256_of
from lightning_maml.training.results import Published

FILE = "reproduction.json"
FIELDS = (
    *("protocol", "overrides", "seed", "updates", "of_updates", "cut_short", "minutes", "machine", "version", "commit"),
    *("weights", "test_queries", "transductive", "class_orders", "test_tasks", "inner_steps", "results"),
)
"""What a result needs to be one that others can check; each is in the file, and ``None`` where it is not known."""


@dataclass(frozen=True)
class Comparison:
    """A measured number beside a published one, if any; ``value`` is ``"loss"`` or ``"accuracy"``."""

    value: str
    inner_steps: int
    measured: float
    measured_ci95: float
    published: float | None = None
    published_ci95: float | None = None

    @property
    def verdict(self) -> str | None:
        """``"reproduced"`` where the two 95% intervals meet, otherwise ``"better"`` or ``"worse"``.

        Example:
            >>> Comparison("accuracy", 3, 0.984, 0.004, 0.987, 0.004).verdict
            'reproduced'
            >>> Comparison("loss", 1, 0.80, 0.05, 0.67).verdict
            'worse'
        """
        if self.published is None:
            return None
        gain = (self.published - self.measured) if self.value == "loss" else (self.measured - self.published)
        if abs(gain) <= self.measured_ci95 + (self.published_ci95 or 0.0):
            return "reproduced"
        return "better" if gain > 0 else "worse"  # as is a number that is not finite

    def cells(self) -> list[str]:
        """Inner steps, measured and published, to be printed."""
        factor, digits, unit = (100, 2, " %") if self.value == "accuracy" else (1, 3, "")
        pairs = (self.measured, self.measured_ci95), (self.published, self.published_ci95)
        shown = [[f"{factor * number:.{digits}f}" for number in pair if number is not None] for pair in pairs]
        return [str(self.inner_steps), *(" ± ".join(numbers) + unit if numbers else "-" for numbers in shown)]


def compared(published: Published | None, results: Mapping[str, float], inner_steps: int) -> Iterator[Comparison]:
    """What a test measured beside what was published; where nothing was, alone, after the last inner step."""
    if published is None:
        value = "accuracy" if f"test/accuracy_step_{inner_steps}" in results else "loss"
        name = f"test/{value}_step_{inner_steps}"
        yield Comparison(value, inner_steps, results[name], results[f"{name}_ci95"])
        return
    for value in ("loss", "accuracy"):
        for steps, numbers in getattr(published, value).items():
            name = f"test/{value}_step_{steps}"
            if name not in results:
                raise ValueError(f"Expected a test with {steps} inner steps and {value} but it has {sorted(results)}.")
            yield Comparison(value, steps, results[name], results[f"{name}_ci95"], *numbers)


def about_training(cli: LightningCLI) -> dict[str, Any]:
    """Updates done, minutes of all parts, and whether ``max_time`` ended it."""
    trainer = cli.trainer
    timer = next(callback for callback in trainer.callbacks if isinstance(callback, Timer))  # type: ignore[attr-defined]
    done, left = trainer.global_step, timer.time_remaining()
    cut_short = left is not None and left <= 0 and done < trainer.max_steps
    return {"updates": done, "cut_short": cut_short, "minutes": round(timer.time_elapsed() / 60, 2)}


def about_test(cli: LightningCLI) -> dict[str, Any]:
    """How it was tested, and what: the SHA-256 of the weights; where, in the words of the files of ``benchmarks``."""
    module, data = cli.model, cli.datamodule
    size = getattr(data, "sizes", {}).get("test", {})
    state = {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    threads = torch.get_num_threads()
    return {
        "weights": sha256_of({}, state),
        "test_tasks": data.test_tasks,
        "ways": size.get("ways"),
        "test_queries": size.get("queries"),
        "transductive": is_transductive(module.network, module.algorithm.batch_norm),
        "class_orders": module.class_orders,
        "inner_steps": module.test_steps,
        "machine": {"machine": platform.machine(), **gpu, "cores": os.cpu_count(), "threads": threads},
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def is_transductive(network: nn.Module, batch_norm: str) -> bool:
    """Whether a query's prediction depends on the other queries of its task: by statistics of a batch-norm."""
    layers = any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in network.modules())
    return layers and batch_norm == "batch"


def commit() -> str | None:
    """The library's commit, where it runs from a checkout of its own; it ends with ``-dirty`` where files differ."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", Path(__file__).name], check=True, capture_output=True)
        describe = [*git, "describe", "--always", "--dirty", "--exclude=*"]
        return subprocess.run(describe, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def done_before(folder: Path, asked: Mapping[str, Any]) -> Path | None:
    """The file in the ``folder`` of a protocol's runs of one that was asked for the same and was not cut short.

    None where files differ from the code's commit, too: two such states go by one name.
    """
    if str(asked["commit"]).endswith("-dirty"):
        return None
    for path in sorted(folder.glob(f"*/{FILE}")):
        try:
            found = json.loads(path.read_text())
        except ValueError:
            continue
        if found.get("cut_short") is False and all(found.get(name) == asked[name] for name in asked):
            return path
    return None
