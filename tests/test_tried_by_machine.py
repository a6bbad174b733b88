"""Problems, configurations and files that hypothesis or chance makes up: the right numbers, or an error in words."""

from __future__ import annotations

import copy
import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

pytest.importorskip("hypothesis", reason="needs hypothesis")

from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_maml import (
    MLP,
    Batched,
    Fused,
    TaskBatch,
    anil,
    boil,
    cli,
    evaluate,
    fomaml,
    imaml,
    maml,
    maml_pp,
    meta_curvature,
    meta_loss,
    meta_sgd,
    pretrained,
    proto_maml,
    reptile,
    unicorn_maml,
)
from lightning_maml.data import load_omniglot
from lightning_maml.saving import read_checkpoint
from problems import meta_gradient, reference

CONFIGS = Path(__file__).parents[1] / "configs"

# Engines: every draw equals the eager engine in float64, or is refused for a reason

ALGORITHMS = {
    "maml": lambda lr, steps: maml(lr, steps),
    "maml, learned": lambda lr, steps: maml(lr, steps, learn_lr="per_step"),
    "fomaml": lambda lr, steps: fomaml(lr, steps),
    "pretrained": lambda lr, steps: pretrained(lr, steps),
    "anil": lambda lr, steps: anil(lr, steps),
    "boil": lambda lr, steps: boil(lr, steps),
    "meta_sgd": lambda lr, steps: meta_sgd(lr, steps),
    "meta_curvature": lambda lr, steps: meta_curvature(lr, steps),
    "reptile": lambda lr, steps: reptile(lr, steps, batch_size=2),
    "imaml": lambda lr, steps: imaml(lr, steps),
    "maml_pp": lambda lr, steps: maml_pp(lr, steps, multi_step_updates=4),
    "proto_maml": lambda lr, steps: proto_maml(lr, steps),
    "unicorn_maml": lambda lr, steps: unicorn_maml(lr, steps),
}
ENGINES = {
    "batched": Batched(),
    "in chunks": Batched(chunk_size=2),
    "checkpointed": Batched(checkpoint="step"),
    "fused": Fused(),
    "mlp_adapt": Fused(kernel="mlp_adapt"),
    "auto": "auto",
}
DTYPES = {torch.float64: 1e-9, torch.float32: 2e-3, torch.bfloat16: 0.5}


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Any]:
    """A perceptron of any shape, tasks of any size, an algorithm, an engine and a precision."""
    return {
        "hidden": draw(st.lists(st.integers(1, 7), max_size=3)),
        "activation": draw(st.sampled_from(["relu", "tanh"])),
        "features": draw(st.integers(1, 5)),
        "out": draw(st.integers(1, 5)),
        "tasks": draw(st.integers(1, 5)),
        "support": draw(st.integers(1, 7)),
        "query": draw(st.integers(1, 7)),
        "steps": draw(st.integers(0, 4)),
        "loss": draw(st.sampled_from(["mse", "cross_entropy"])),
        "algorithm": draw(st.sampled_from(sorted(ALGORITHMS))),
        "engine": draw(st.sampled_from(sorted(ENGINES))),
        "dtype": draw(st.sampled_from(list(DTYPES))),
        "seed": draw(st.integers(0, 2**31)),
    }


def check(drawn: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(drawn["seed"])
    torch.manual_seed(drawn["seed"])
    network = MLP(drawn["features"], drawn["hidden"], drawn["out"], activation=drawn["activation"], init="default")

    def part(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = torch.randn(drawn["tasks"], rows, drawn["features"], generator=generator)
        if drawn["loss"] == "cross_entropy":
            return inputs, torch.randint(drawn["out"], (drawn["tasks"], rows), generator=generator)
        return inputs, torch.randn(drawn["tasks"], rows, drawn["out"], generator=generator)

    # rounded before the oracle sees them: the difference is then the engine's alone
    dtype = drawn["dtype"]
    tasks = TaskBatch(*part(drawn["support"]), *part(drawn["query"])).to(dtype)
    network = network.to(dtype)
    exact, doubled = copy.deepcopy(network).double(), tasks.to(torch.float64)

    def run(module: nn.Module, data: TaskBatch, engine: Any) -> tuple[list[torch.Tensor], torch.Tensor]:
        algorithm = ALGORITHMS[drawn["algorithm"]](0.05, drawn["steps"])
        rates = algorithm.initial_rates(module)
        algorithm = algorithm.with_rates(rates).at(2)
        output = meta_loss(module, algorithm, data, loss=drawn["loss"], engine=engine)
        gradients = meta_gradient(module, output)
        result = evaluate(module, algorithm, data, loss=drawn["loss"], engine=engine)
        return gradients + ([] if rates is None else [rate.grad for rate in rates.parameters()]), result.query_losses

    try:
        expected, losses = run(exact, doubled, "eager")
    except (ValueError, NotImplementedError) as error:
        assert str(error).startswith("Expected"), error  # noqa: PT017  # an error for the user, in the project's words
        with pytest.raises((type(error), NotImplementedError)):  # an engine may look first at what it can run
            run(network, tasks, ENGINES[drawn["engine"]])
        event("refused by the oracle too")
        return
    if drawn["algorithm"] in ("maml", "fomaml"):
        independent = reference(exact, doubled, drawn["loss"], 0.05, drawn["steps"], drawn["algorithm"] == "fomaml")
        for ours, theirs in zip(expected, independent, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    try:
        got, query_losses = run(network, tasks, ENGINES[drawn["engine"]])
    except NotImplementedError as error:
        assert len(str(error)) > 20  # noqa: PT017  # a reason
        event("refused by the engine")
        return
    scale = max([1e-3, *(g.abs().max().item() for g in expected)])
    worst = max((a.double() - e).abs().max().item() for a, e in zip(got, expected, strict=True)) / scale
    assert worst < DTYPES[dtype], worst
    torch.testing.assert_close(query_losses.double(), losses, rtol=DTYPES[dtype], atol=DTYPES[dtype])
    event("equal")


@pytest.mark.filterwarnings("ignore:The conjugate gradients of the implicit")
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(problems())
def test_every_problem_is_right_or_refused(drawn: dict[str, Any]) -> None:
    check(drawn)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The conjugate gradients of the implicit")
@settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
@given(problems())
def test_every_problem_is_right_or_refused_often(drawn: dict[str, Any]) -> None:
    check(drawn)


# Files of data


def arrays(chance: random.Random) -> dict[str, np.ndarray]:
    side = chance.choice([7, 14])
    images = np.random.default_rng(chance.randrange(2**31)).random((3, 4, side, side)) > 0.5
    return {"images": images, "labels": np.arange(3)[:, None].repeat(4, 1)}


def damaged(chance: random.Random, path: Path) -> None:
    """A file of images with something the matter, or, now and then, nothing."""
    made = arrays(chance)
    images, labels = made["images"], made["labels"]
    kind = chance.randrange(12)
    if kind == 0:
        made["images"] = images.astype(chance.choice(["float32", "uint8", "int64", "complex64", "U3"]))
    elif kind == 1:
        made["images"] = images[..., 0] if chance.random() < 0.5 else images[:, : chance.randrange(4)]
    elif kind == 2:
        made["images"] = images[: chance.randrange(3)]  # an empty class, or fewer than there are labels
    elif kind == 3:
        labels[chance.randrange(3)] = chance.randrange(-2, 5)  # a label that comes twice, or is none
    elif kind == 4:
        made["labels"] = labels.astype(chance.choice(["float64", "U3", "bool"]))
    elif kind == 5:
        made["labels"] = labels.T if chance.random() < 0.5 else labels.ravel()
    elif kind == 6:
        made.pop(chance.choice(["images", "labels"]))
    elif kind == 7:
        made["images"] = np.array([{"an": "object"}], dtype=object)
    chance.choice([np.savez, np.savez_compressed])(path, **made)
    content = bytearray(path.read_bytes())
    if kind == 8:
        content = content[: chance.randrange(len(content))]
    elif kind == 9:
        for _ in range(chance.randrange(1, 20)):
            content[chance.randrange(len(content))] = chance.randrange(256)
    elif kind == 10:
        content = bytearray(chance.randbytes(chance.randrange(200)))
    path.write_bytes(bytes(content))


def try_data(folder: Path, inputs: int, seed: int) -> dict[str, int]:
    chance = random.Random(seed)
    counts = {"loaded": 0, "refused": 0}
    for number in range(inputs):
        root = folder / str(number)
        root.mkdir()
        damaged(chance, root / "images_background.npz")
        damaged(chance, root / "images_evaluation.npz")
        try:
            images = load_omniglot(root)
        except (ValueError, FileNotFoundError) as error:
            assert str(root) in str(error), error  # noqa: PT017  # it names the file
            assert str(error).startswith("Expected")  # noqa: PT017
            counts["refused"] += 1
        else:
            assert images.shape[1:] == (4, 1, 28, 28)
            counts["loaded"] += 1
    return counts


@pytest.mark.parametrize("inputs", [150, pytest.param(1000, marks=pytest.mark.slow)])
def test_damaged_data_are_named(tmp_path: Path, inputs: int) -> None:
    counts = try_data(tmp_path, inputs, inputs)
    assert counts["refused"] > inputs // 2
    assert counts["loaded"] > 0


# Checkpoints


@pytest.mark.parametrize("inputs", [100, pytest.param(2000, marks=pytest.mark.slow)])
def test_damaged_checkpoints_are_named(tmp_path: Path, inputs: int) -> None:
    chance, path = random.Random(0), tmp_path / "damaged.ckpt"
    whole = {"state_dict": {"weight": torch.randn(50, 50)}, "pytorch-lightning_version": "2.5.0", "epoch": 3}
    torch.save(whole, path)
    content = path.read_bytes()
    refused = 0
    for _ in range(inputs):
        damaged = bytearray(content)
        if chance.random() < 0.5:
            damaged = damaged[: chance.randrange(len(damaged))]
        else:
            for _ in range(chance.randrange(1, 30)):
                damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        path.write_bytes(bytes(damaged))
        try:
            read = read_checkpoint(path)
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017
            refused += 1
        else:
            assert torch.equal(read["state_dict"]["weight"], whole["state_dict"]["weight"])
    assert refused > inputs // 2


# Configurations

JUNK: list[Any] = [None, True, -1, 0, 0.5, 3, "x", "", [], {}, [1, -1], {"class_path": "x"}, float("nan"), float("inf")]
SMALL = {
    "data": {"batches_per_epoch": 2, "val_tasks": 2, "test_tasks": 2, "tasks_per_batch": 2},
    "model": {"updates_per_step": 1},
}
LIMITS = ["--trainer.max_steps=2", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


def paths(node: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [at, *(path for key, child in children for path in paths(child, (*at, key)))]


def mutated(chance: random.Random) -> str:
    """A shipped configuration with something the matter."""
    config = yaml.safe_load((CONFIGS / chance.choice(["sinusoid.yaml", "sinusoid_reptile.yaml"])).read_text())
    config["data"]["init_args"].update(SMALL["data"])
    config["model"].update(SMALL["model"])
    for _ in range(chance.choice([1, 1, 2])):
        *above, last = chance.choice(paths(config)[1:])
        node = config
        for key in above:
            node = node[key]
        kind = chance.randrange(3)
        if kind == 0:
            del node[last]
        elif kind == 1 or isinstance(node, list):
            node[last] = copy.deepcopy(chance.choice(JUNK))
        else:
            node[f"{last}_"] = node.pop(last)  # a slip of the pen
    text = yaml.safe_dump(config)
    return text[: chance.randrange(len(text))] if chance.random() < 0.1 else text


def try_configurations(folder: Path, inputs: int, seed: int) -> dict[str, int]:
    chance = random.Random(seed)
    counts = {"ran": 0, "refused": 0}
    for number in range(inputs):
        text = mutated(chance)
        path = folder / f"{number}.yaml"
        path.write_text(text)
        try:
            status = cli.main(["fit", "--config", str(path), *LIMITS])
        except SystemExit as error:  # the parser's
            status = int(error.code or 0)
        counts["refused" if status else "ran"] += 1
    for path in folder.rglob("*"):
        assert not path.name.endswith(".partial")
        if path.suffix == ".ckpt":
            assert "state_dict" in torch.load(path, weights_only=True)
        elif path.suffix == ".json":
            json.loads(path.read_text())
    return counts


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("inputs", [8, pytest.param(1000, marks=pytest.mark.slow)])
def test_damaged_configurations_are_refused_in_words(tmp_path: Path, monkeypatch: Any, inputs: int) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning-maml"])
    counts = try_configurations(tmp_path, inputs, inputs)
    print(counts)
    assert counts["refused"] > inputs // 4
