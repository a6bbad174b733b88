# ruff: noqa: E501 -- tables: a message a line
"""The commonest mistakes and the whole of what each is answered: what was expected, what came, what to do."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_maml import (
    MLP,
    SGD,
    Algorithm,
    Conv4,
    MetaModule,
    Reptile,
    SinusoidTasks,
    TaskBatch,
    UnequalTasks,
    Unrolled,
    adapt,
    anil,
    cavia,
    cli,
    evaluate,
    imaml,
    maml,
    maml_pp,
    meta_loss,
    proto_maml,
    reptile,
)
from lightning_maml.cli.complaints import complaint

X, Y = torch.randn(3, 5, 2), torch.randn(3, 5, 1)
LABELS = torch.arange(15).view(3, 5) % 4
TASKS = TaskBatch(X, Y, X, Y)
ONE_ROW = TaskBatch(X[:, :1], Y[:, :1], X[:, :1], Y[:, :1])
SEQUENCES = TaskBatch(torch.randn(3, 5, 6, 2), Y, torch.randn(3, 5, 6, 2), Y)


def network(inputs: int = 2, outputs: int = 1) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 4), nn.ReLU(), nn.Linear(4, outputs))


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))


def frozen() -> nn.Module:
    return network().requires_grad_(False)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 1)


class Branching(Layer):
    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.linear(inputs)
        return outputs if outputs.sum() > 0 else -outputs


class Counting(Layer):
    def forward(self, inputs: Tensor) -> Tensor:
        return self.linear(inputs) * inputs.mean().item()


class Writing(Layer):
    def forward(self, inputs: Tensor) -> Tensor:
        outputs = torch.zeros(5, 1)
        outputs += self.linear(inputs)
        return outputs


class Detaching(Layer):
    def forward(self, inputs: Tensor) -> Tensor:
        return self.linear(inputs).detach()


class Named(Layer):
    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        return {"logits": self.linear(inputs)}


class TwoInputs(Layer):
    def forward(self, inputs: Tensor, mask: Tensor) -> Tensor:
        return self.linear(inputs) * mask


def run(
    of: nn.Module | None = None, algorithm: Any = None, tasks: Any = TASKS, loss: Any = "mse", engine: Any = "auto"
) -> Any:
    return meta_loss(of or network(), algorithm or maml(0.1, 1), tasks, loss=loss, engine=engine)


def trainer(precision: Any = "32-true") -> Trainer:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(max_steps=1, accelerator="cpu", precision=precision, **quiet)  # type: ignore[arg-type]


def fit(
    of: Any = None,
    batch: Any = TASKS,
    loader: Any = None,
    precision: Any = "32-true",
    algorithm: Any = None,
    **module: Any,
) -> None:
    loader = loader or DataLoader([batch], batch_size=None)  # type: ignore[arg-type]
    trainer(precision).fit(MetaModule(of or network(), algorithm or maml(0.1, 1), **module), loader)


def test_step(**module: Any) -> None:
    trainer().test(MetaModule(network(), maml(0.1, 1), **module), DataLoader([TASKS], batch_size=None), verbose=False)  # type: ignore[arg-type]


test_step.__test__ = False  # type: ignore[attr-defined]


def predict(inputs: Tensor) -> Tensor:
    return adapt(network(), maml(0.1, 1), X, Y, loss="mse").predict(inputs)


def loaded(path: Path, **given: Any) -> None:
    saver = trainer()
    saver.fit(MetaModule(network(), maml(0.1, 1)), DataLoader([TASKS], batch_size=None))  # type: ignore[arg-type]
    saver.save_checkpoint(path / "last.ckpt")
    MetaModule.load_from_checkpoint(path / "last.ckpt", **given)


WIDTH = (
    "Expected a network that takes {}inputs [rows, {}], as the tasks have, but got Sequential, whose layer `0`, "
    "Linear(in_features={}, out_features=4, bias=True), refuses [5, {}] (mat1 and mat2 shapes cannot be multiplied "
    "(5x{} and {}x4)): change the network or the tasks."
)
DTYPE = "Expected {}inputs of torch.float32, as the parameters of Sequential are, but got {}: convert them by .to(torch.float32)."
TUPLE = "Expected a network that returns its predictions [rows, ...] in one tensor but {} returns a {}: wrap it in a module whose `forward` returns the predictions alone."
ONE = "Expected two {} rows or more at once for the batch-norm layers of Sequential, which go by the rows that they see, but got 1: use more rows, the algorithm's batch_norm={}, or another norm, such as nn.GroupNorm."
VMAP = "Engine '{}' cannot run this: torch refuses to run all tasks in one call ({}). Use engine='eager'."
CONTROL_FLOW = "It looks like you're attempting to use a Tensor in some data-dependent control flow"
COLLATED = "Expected `DataLoader(..., batch_size=None)`, which hands on each {} as it is, but got a data loader that puts several together."
NO_BATCH = "Expected a batch of tasks, TaskBatch(support_inputs, support_targets, query_inputs, query_targets) with tensors [tasks, rows, ...], or those four in a tuple, but got {}."
ARGUMENT = "Expected an argument of `{}` but got `{}`: {}."
RATE = "Expected `lr` to be a number, one for each step, a scalar tensor or Rates but got {}."
OPTIMIZER = "Expected `optimizer` to be a function from parameters to an optimizer, such as `lambda parameters: torch.optim.Adam(parameters, lr=1e-3)`, but got {}."
ENGINE = "Expected `engine` to be one of ['auto', 'eager', 'batched', 'fused'] or an Engine but got 'fast'."
FROZEN = "Expected at least one parameter to adapt but all are frozen: use requires_grad_(True)."
METRIC = "Expected `metric` 'lambda' to return one value for each of 3 tasks, [3], but got shape []."

Mistake = tuple[Callable[[], Any], type[Exception], str]

# What stands in Python, what it raises, and with which words.
MISTAKES: dict[str, Mistake] = {
    # inputs
    "float64 data": (lambda: run(tasks=TaskBatch(X.double(), Y.double(), X.double(), Y.double())), ValueError, DTYPE.format("", "torch.float64")),
    "float64 data, in training": (lambda: fit(batch=TaskBatch(X.double(), Y, X.double(), Y)), ValueError, DTYPE.format("", "torch.float64")),
    "float64 query inputs": (lambda: run(tasks=TaskBatch(X, Y, X.double(), Y)), ValueError, DTYPE.format("query ", "torch.float64")),
    "float64 inputs to predict": (lambda: predict(X.double()), ValueError, DTYPE.format("", "torch.float64")),
    "whole numbers as inputs": (lambda: run(tasks=TaskBatch(X.long(), Y, X.long(), Y)), ValueError, DTYPE.format("", "torch.int64")),
    "inputs of a wrong width": (lambda: run(network(3)), ValueError, WIDTH.format("", 2, 3, 2, 2, 3)),
    "inputs of a wrong width, in training": (lambda: fit(network(3)), ValueError, WIDTH.format("", 2, 3, 2, 2, 3)),
    "inputs of a wrong width, adapting": (lambda: adapt(network(3), maml(), X, Y, loss="mse"), ValueError, WIDTH.format("", 2, 3, 2, 2, 3)),
    "inputs of a wrong width, evaluating": (lambda: evaluate(network(3), maml(), TASKS, loss="mse"), ValueError, WIDTH.format("", 2, 3, 2, 2, 3)),
    "query inputs of a wrong width": (lambda: run(tasks=TaskBatch(X, Y, X[..., :1], Y)), ValueError, WIDTH.format("query ", 1, 2, 1, 1, 2)),
    "inputs of a wrong width to predict": (lambda: predict(torch.randn(3, 5, 3)), ValueError, WIDTH.format("", 3, 2, 3, 3, 2)),
    "inputs and targets exchanged": (lambda: run(tasks=TaskBatch(Y, X, Y, X)), ValueError, WIDTH.format("", 1, 2, 1, 1, 2)),
    "images without channels": (
        lambda: run(Conv4(1, 4), tasks=TaskBatch(torch.randn(3, 5, 28, 28), LABELS, torch.randn(3, 5, 28, 28), LABELS), loss="cross_entropy"), ValueError,
        "Expected a network that takes inputs [rows, 28, 28], as the tasks have, but got Conv4, whose layer `conv1`, Conv2d(4, 64, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1)), refuses [5, 28, 28] (Given groups=1, weight of size [64, 4, 3, 3], expected input[1, 5, 28, 28] to have 4 channels, but got 5 channels instead): change the network or the tasks.",
    ),
    "a network of two inputs": (
        lambda: run(TwoInputs()), ValueError,
        "Expected a network that takes inputs [rows, 2], as the tasks have, but got TwoInputs (TwoInputs.forward() missing 1 required positional argument: 'mask'): change the network or the tasks.",
    ),
    "NaN among the data": (lambda: fit(batch=TaskBatch(X * torch.nan, Y, X, Y)), ValueError, "Expected finite numbers but `support_inputs` holds NaN or infinities in tasks [0, 1, 2]."),
    "data on another device": (lambda: run(tasks=TaskBatch(X.to("meta"), Y, X, Y)), ValueError, "Expected network and tasks on one device but got cpu and, of `support_inputs`, meta."),
    # tasks
    "no tensor": (lambda: TaskBatch(X.numpy(), Y, X, Y), TypeError, "Expected `support_inputs` to be a tensor [tasks, rows, ...], or a tuple or a dictionary by names of such tensors, but got ndarray."),
    "no task dimension": (lambda: adapt(network(), maml(), X[0], Y[0], loss="mse"), ValueError, "Expected as many support targets as support inputs in each task but got 1 and 2: one task alone needs .unsqueeze(0)."),
    "no task dimension, of labels": (
        lambda: adapt(network(2, 4), maml(), X[0], LABELS[0], loss="cross_entropy"), ValueError,
        "Expected `support_targets` to have shape [tasks, rows, ...] but got [5]: one task alone needs .unsqueeze(0).",
    ),
    "no task dimension to predict": (lambda: predict(X[0]), ValueError, "Expected inputs of 3 tasks, [3, rows, ...], but got [5, 2]."),
    "fewer query tasks": (
        lambda: TaskBatch(X, Y, X[:2], Y[:2]), ValueError,
        "Expected the same number of tasks everywhere but got {'support_inputs': 3, 'support_targets': 3, 'query_inputs': 2, 'query_targets': 2}.",
    ),
    "fewer targets": (lambda: TaskBatch(X, Y[:, :4], X, Y), ValueError, "Expected as many support targets as support inputs in each task but got 4 and 5."),
    "no tasks": (lambda: TaskBatch(X[:0], Y[:0], X[:0], Y[:0]), ValueError, "Expected `support_inputs` to hold at least one task and one row but got [0, 5, 2]."),
    "a tuple for tasks": (lambda: run(tasks=(X, Y, X, Y)), TypeError, "Expected `tasks` to be a TaskBatch but got tuple: use TaskBatch(...) to make one."),
    "unequal tasks": (lambda: run(tasks=UnequalTasks([TASKS])), TypeError, "Expected `tasks` to be a TaskBatch but got UnequalTasks: use the batches of its `groups` in turn."),
    "a list of batches": (
        lambda: fit(loader=[TASKS, TASKS]), TypeError,
        "Expected a slice of tasks, as in tasks[2:3], but got 0: tasks.parts(1) has all in turn, and in the place of a list of batches a trainer takes DataLoader(batches, batch_size=None).",
    ),
    "a data loader that collates": (lambda: fit(loader=DataLoader([TASKS])), TypeError, COLLATED.format("TaskBatch")),  # type: ignore[arg-type]
    "one that collates unequal tasks": (lambda: fit(loader=DataLoader([UnequalTasks([TASKS])])), TypeError, COLLATED.format("UnequalTasks")),  # type: ignore[arg-type]
    "ordinary inputs and targets": (lambda: fit(loader=DataLoader(TensorDataset(X[0], Y[0]), batch_size=2)), ValueError, NO_BATCH.format("list of 2: [2, 2], [2, 1]")),
    "a dictionary of tensors": (lambda: fit(batch={"x": X, "y": Y}), ValueError, NO_BATCH.format("dict of 2: [3, 5, 2], [3, 5, 1]")),
    "one batch for several updates": (
        lambda: fit(updates_per_step=4), ValueError,
        "Expected a tuple of up to updates_per_step=4 task batches in a training step but got one task batch: this package's data modules make such tuples; with another data loader make them in its collate function, or set updates_per_step=1.",
    ),
    # the network
    "a class for a network": (lambda: MetaModule(MLP, maml()), TypeError, "Expected `network` to be an nn.Module but got MLP itself: call it, MLP(...)."),  # type: ignore[arg-type]
    "network and algorithm exchanged": (lambda: MetaModule(maml(), network()), TypeError, "Expected `network` to be an nn.Module but got Algorithm."),  # type: ignore[arg-type]
    "an LSTM's tuple": (lambda: run(nn.LSTM(2, 1, batch_first=True), tasks=SEQUENCES), TypeError, TUPLE.format("LSTM", "tuple")),
    "an LSTM's tuple, in training": (lambda: fit(nn.LSTM(2, 1), batch=SEQUENCES), TypeError, TUPLE.format("LSTM", "tuple")),
    "an LSTM's tuple, one task after another": (lambda: run(nn.LSTM(2, 1), tasks=SEQUENCES, engine="eager"), TypeError, TUPLE.format("LSTM", "tuple")),
    "a dictionary of logits": (lambda: run(Named()), TypeError, TUPLE.format("Named", "dict")),
    "predictions without a gradient": (
        lambda: run(Detaching()), ValueError,
        "Expected predictions with a gradient but those of Detaching have none: its `forward` detaches them, or runs under `torch.no_grad()`.",
    ),
    "a frozen network": (lambda: run(frozen()), ValueError, FROZEN),
    "a frozen network, adapting": (lambda: adapt(frozen(), maml(), X, Y, loss="mse"), ValueError, FROZEN),
    "a frozen network, in training": (
        lambda: fit(frozen()), ValueError,
        "Expected something to meta-train but no parameter of the network is trainable: use a network with parameters, and requires_grad_(True) where they are frozen.",
    ),
    "a network without parameters": (lambda: run(nn.ReLU()), ValueError, "Expected a network with parameters to adapt but ReLU has none."),
    "batch-norm of one row": (lambda: run(normed(), tasks=ONE_ROW), ValueError, ONE.format("support", "'running'")),
    "batch-norm of one row, in training": (lambda: fit(normed(), batch=ONE_ROW), ValueError, ONE.format("support", "'running'")),
    "batch-norm of one row in a mini-batch": (lambda: run(normed(), reptile(batch_size=1)), ValueError, ONE.format("support", "'running'")),
    "batch-norm of one query row": (lambda: run(normed(), tasks=TaskBatch(X, Y, X[:, :1], Y[:, :1])), ValueError, ONE.format("query", "'support' or 'running'")),
    "batch-norm of one row to predict": (lambda: adapt(normed(), maml(), X, Y, loss="mse").predict(X[:, :1]), ValueError, ONE.format("query", "'support' or 'running'")),
    # the engine
    "an unknown engine": (lambda: run(engine="fast"), ValueError, ENGINE),
    "an unknown engine, in a module": (lambda: MetaModule(network(), maml(), engine="fast"), ValueError, ENGINE),
    "a branch by values": (lambda: run(Branching(), engine="batched"), NotImplementedError, VMAP.format("batched", CONTROL_FLOW)),
    "a branch by values, fused": (lambda: run(Branching(), engine="fused"), NotImplementedError, VMAP.format("fused", CONTROL_FLOW)),
    "a number out of a tensor": (lambda: run(Counting(), engine="batched"), NotImplementedError, VMAP.format("batched", "It looks like you're calling .item() on a Tensor")),
    "writing in place": (lambda: run(Writing(), engine="batched"), NotImplementedError, VMAP.format("batched", "output with shape [5, 1] doesn't match the broadcast shape [3, 5, 1]")),
    "what a fused engine has not": (lambda: run(algorithm=imaml(), engine="fused"), NotImplementedError, "Engine 'fused' cannot run this: the inner loop has the part Proximal. Use engine='batched'."),
    # the loss
    "a class for a loss": (lambda: run(loss=nn.MSELoss), TypeError, "Expected `loss` to be a function or module but got a class: make one, MSELoss()."),
    "a class for a loss, in a module": (lambda: MetaModule(network(), maml(), nn.CrossEntropyLoss), TypeError, "Expected `loss` to be a function or module but got a class: make one, CrossEntropyLoss()."),
    "a class for a query loss": (lambda: MetaModule(network(), maml(), query_loss=nn.L1Loss), TypeError, "Expected `query_loss` to be a function or module but got a class: make one, L1Loss()."),
    "several inputs of a wrong width": (
        lambda: run(network(3), tasks=TaskBatch((X, X), Y, (X, X), Y)), ValueError,
        "Expected a network that takes inputs ('[rows, 2]', '[rows, 2]'), as the tasks have, but got Sequential, whose layer `0`, Linear(in_features=3, out_features=4, bias=True), refuses (linear(): argument 'input' (position 1) must be Tensor, not tuple): change the network or the tasks.",
    ),
    "an unknown loss": (lambda: MetaModule(network(), maml(), "l1"), ValueError, "Expected `loss` to be one of ['cross_entropy', 'mse'] or a callable but got 'l1'."),
    "no loss": (lambda: run(loss=3), TypeError, "Expected `loss` to be one of ['cross_entropy', 'mse'] or a callable but got 3."),
    "a loss of rows": (lambda: run(loss=nn.MSELoss(reduction="none")), ValueError, "Expected `loss` to return one scalar for each task but got shape [5, 1] for predictions of shape [5, 1]."),
    "a loss that is a float": (lambda: run(loss=lambda p, t: 0.5), TypeError, "Expected `loss` to return a scalar tensor for each task but got float: compute it by torch, without .item()."),
    "a loss without a gradient": (
        lambda: run(loss=lambda p, t: F.mse_loss(p, t).detach()), ValueError,
        "Expected a `loss` with a gradient but that of <lambda> has none: compute it by torch from the predictions, without .item(), .detach() and `torch.no_grad()`.",
    ),
    "a loss that refuses the targets": (
        lambda: run(network(2, 4), loss=F.nll_loss), ValueError,
        "Expected a `loss` that takes predictions [rows, 4] of torch.float32 and targets [rows, 1] of torch.float32, as the tasks have, but got nll_loss (0D or 1D target tensor expected, multi-target not supported): change the loss or the tasks.",
    ),
    # targets
    "class labels with the default loss": (
        lambda: fit(network(2, 4), batch=TaskBatch(X, LABELS, X, LABELS)), ValueError,
        "Expected targets of the predictions' shape for `loss='mse'` but got targets [3, 5] and predictions [3, 5, 4] ([tasks, rows, ...]): class labels need `loss='cross_entropy'`.",
    ),
    "targets without a last dimension": (
        lambda: run(tasks=TaskBatch(X, Y[..., 0], X, Y[..., 0])), ValueError,
        "Expected targets of the predictions' shape for `loss='mse'` but got targets [3, 5] and predictions [3, 5, 1] ([tasks, rows, ...]): use targets.unsqueeze(-1).",
    ),
    "targets of a wrong width": (
        lambda: run(tasks=TaskBatch(X, X, X, X)), ValueError,
        "Expected targets of the predictions' shape for `loss='mse'` but got targets [3, 5, 2] and predictions [3, 5, 1] ([tasks, rows, ...]).",
    ),
    "values as class labels": (
        lambda: run(network(2, 4), loss="cross_entropy"), ValueError,
        "Expected integer class labels for `loss='cross_entropy'` but got torch.float32: convert labels by .long(), and of numbers use `loss='mse'`.",
    ),
    "one-hot labels": (
        lambda: run(network(2, 4), tasks=TaskBatch(X, F.one_hot(LABELS), X, F.one_hot(LABELS)), loss="cross_entropy"), ValueError,
        "Expected logits [tasks, rows, classes] and labels [tasks, rows] for `loss='cross_entropy'` but got [3, 5, 4] and [3, 5, 4].",
    ),
    "labels of 32 bits": (
        lambda: run(network(2, 4), tasks=TaskBatch(X, LABELS.int(), X, LABELS.int()), loss="cross_entropy"), ValueError,
        "Expected a `loss` that takes predictions [rows, 4] of torch.float32 and targets [rows] of torch.int32, as the tasks have, but got cross_entropy (expected target dtype to be Long or Byte, but got Int): change the loss or the tasks.",
    ),
    "more ways than outputs": (
        lambda: fit(network(2, 3), batch=TaskBatch(X, LABELS, X, LABELS), loss="cross_entropy"), ValueError,
        "Expected labels from 0 to 2, as the network has 3 outputs, but got labels from 0 to 3.",
    ),
    # presets
    "maml(first_order=True)": (lambda: maml(first_order=True), TypeError, ARGUMENT.format("maml", "first_order", "it is of second order, and `fomaml` of first")),  # type: ignore[call-arg]
    "anil(first_order=True)": (lambda: anil(first_order=True), TypeError, ARGUMENT.format("anil", "first_order", "it is of second order, and `Algorithm(anil(...).inner, FirstOrder())` of first")),  # type: ignore[call-arg]
    "maml_pp(first_order=True)": (lambda: maml_pp(first_order=True), TypeError, ARGUMENT.format("maml_pp", "first_order", "use `first_order_updates`")),  # type: ignore[call-arg]
    "maml(inner_lr=0.1)": (lambda: maml(inner_lr=0.1), TypeError, ARGUMENT.format("maml", "inner_lr", "use `lr`")),  # type: ignore[call-arg]
    "imaml(num_steps=3)": (lambda: imaml(num_steps=3), TypeError, ARGUMENT.format("imaml", "num_steps", "use `steps`")),  # type: ignore[call-arg]
    "reptile(epsilon=1)": (
        lambda: reptile(epsilon=1), TypeError,  # type: ignore[call-arg]
        ARGUMENT.format("reptile", "epsilon", "it has `lr`, `steps`, `optimizer`, `batch_size`, `adapts`, `batch_norm`"),
    ),
    "a preset that was not called": (lambda: MetaModule(network(), maml), TypeError, "Expected `algorithm` to be one such as maml(lr=0.01, steps=5) but got maml itself: call it, maml(...)."),  # type: ignore[arg-type]
    "a preset that was not called, as a function": (lambda: run(algorithm=maml), TypeError, "Expected `algorithm` to be one such as maml(lr=0.01, steps=5) but got maml itself: call it, maml(...)."),
    "a preset's name": (lambda: MetaModule(network(), "maml"), TypeError, "Expected `algorithm` to be one such as maml(lr=0.01, steps=5) but got 'maml'."),  # type: ignore[arg-type]
    "a network for a rate": (lambda: maml(network(), 5), TypeError, RATE.format("Sequential")),  # type: ignore[arg-type]
    "no rate": (lambda: maml(lr=None), TypeError, RATE.format("NoneType")),  # type: ignore[arg-type]
    "text for a rate": (lambda: maml(lr="0.1"), TypeError, RATE.format("'0.1'")),  # type: ignore[arg-type]
    "a negative rate": (lambda: maml(lr=-1), ValueError, "Expected `lr` to be positive and finite but got -1.0."),
    "negative steps": (lambda: maml(steps=-1), ValueError, "Expected `steps` to be a whole number of at least 0 but got -1."),
    "text for steps": (lambda: maml(steps="3"), ValueError, "Expected `steps` to be a whole number of at least 0 but got '3'."),  # type: ignore[arg-type]
    "an unknown inner optimizer": (lambda: reptile(optimizer="rmsprop"), ValueError, "Expected `optimizer` to be one of ['adam', 'sgd'] but got 'rmsprop'."),  # type: ignore[arg-type]
    "no context": (
        lambda: run(algorithm=cavia()), ValueError,
        r"Expected at least one parameter to adapt but `adapts='(^|\\.)context$'` chooses none of the trainable parameters ['0.weight', '0.bias', '2.weight', '2.bias'].",
    ),
    "a list of what adapts": (lambda: run(algorithm=maml(adapts=["2.weight"])), TypeError, "Expected `adapts` to be a regular expression, as '^(body|head)', or a function of a name but got list."),  # type: ignore[arg-type]
    "prototypes of values": (lambda: run(algorithm=proto_maml()), ValueError, "Expected class labels [tasks, rows] to make prototypes of but got targets of shape [3, 5, 1] and torch.float32."),
    "the class of an inner loop": (lambda: Algorithm(SGD, Reptile()), TypeError, "Expected `inner` to be an inner loop such as SGD(lr=0.01) but got <class 'lightning_maml.inner.loop.SGD'>."),  # type: ignore[arg-type]
    "the class of a rule": (lambda: Algorithm(SGD(), Unrolled), TypeError, "Expected `meta_gradient` to be a rule such as Unrolled() but got <class 'lightning_maml.meta_gradient.unrolled.Unrolled'>."),  # type: ignore[arg-type]
    "an inner loop that diverges": (
        lambda: fit(algorithm=maml(1e20, 3), on_divergence="raise"), ValueError,
        "Expected a finite training loss but it is not: the inner loop diverged, the support loss of tasks 0, 1, 2 is inf after inner step 1 of 3: lower the inner rate (now 1e+20).",
    ),
    # the module
    "an optimizer that is made": (lambda: MetaModule(network(), maml(), optimizer=torch.optim.Adam(network().parameters())), TypeError, OPTIMIZER.format("Adam")),  # type: ignore[arg-type]
    "an optimizer's name": (lambda: MetaModule(network(), maml(), optimizer="adam"), TypeError, OPTIMIZER.format("str")),  # type: ignore[arg-type]
    "no optimizer": (lambda: fit(optimizer=lambda parameters: None), TypeError, "Expected `optimizer` to be a function that returns a torch optimizer but got one that returns NoneType."),
    "a scheduler that is made": (
        lambda: MetaModule(network(), maml(), scheduler=torch.optim.lr_scheduler.StepLR(torch.optim.SGD(network().parameters()), 1)), TypeError,  # type: ignore[arg-type]
        "Expected `scheduler` to be a function from an optimizer to a scheduler, such as `lambda optimizer: StepLR(optimizer, 1000)`, but got StepLR.",
    ),
    "float16 with Adam": (
        lambda: fit(precision="16-true"), ValueError,
        "Expected an `eps` of the optimizer above 0 in float16 but got 1e-08: use precision='16-mixed' or 'bf16-true', or Adam(..., eps=1e-4).",
    ),
    "a metric of all tasks": (lambda: fit(metric=lambda p, t: (p - t).abs().mean()), ValueError, METRIC),
    "a metric of all tasks, in a test": (lambda: test_step(metric=lambda p, t: (p - t).abs().mean()), ValueError, METRIC),
    "an unknown metric": (
        lambda: MetaModule(network(), maml(), metric="acc"), ValueError,
        "Expected `metric` to be one of ['accuracy', 'mse'], a function (predictions [T, N, ...], targets [T, N, ...]) -> [T], or None, but got 'acc'.",
    ),
    "negative test steps": (lambda: MetaModule(network(), maml(), test_steps=-1), ValueError, "Expected `test_steps` to be a whole number of at least 0 but got -1."),
    "no shots": (lambda: SinusoidTasks(shots=0), ValueError, "Expected `shots` to be a whole number of at least 1 but got 0."),
    "hidden layers as a number": (lambda: MLP(1, 40, 1), ValueError, "Expected `hidden` to be a list of whole numbers, as [40, 40], but got 40."),  # type: ignore[arg-type]
    "a task that is not there": (lambda: adapt(network(), maml(), X, Y, loss="mse").network(3), IndexError, "Expected `task` to be from 0 to 2, as there are 3 tasks, but got 3."),
    "training without gradients": (lambda: torch.no_grad()(run)(), RuntimeError, "Expected gradients to be enabled for `meta_loss`; where they are not, use `evaluate`."),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Engine 'auto' goes on with 'eager'")
@pytest.mark.parametrize("mistake", MISTAKES)
def test_message(mistake: str) -> None:
    call, kind, message = MISTAKES[mistake]
    with pytest.raises(kind) as raised:
        call()
    assert type(raised.value) is kind
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("given", "missing", "call"),
    [({}, "`network` and `algorithm`", "network=..., algorithm=..."), ({"network": network()}, "`algorithm`", "algorithm=...")],
)  # fmt: skip
def test_a_checkpoint_without_its_network(tmp_path: Path, given: dict[str, Any], missing: str, call: str) -> None:
    with pytest.raises(TypeError) as raised:
        loaded(tmp_path, **given)
    expected = f"Expected {missing} to be given, as the file has no objects that Python code made, but got none: use "
    assert str(raised.value) == f"{expected}MetaModule.load_from_checkpoint(path, {call})."


def test_the_process_of_a_data_loader_answers_in_a_line() -> None:
    with pytest.raises(TypeError) as raised:
        fit(loader=DataLoader([TASKS], num_workers=1))  # type: ignore[arg-type]
    assert complaint(raised.value) == COLLATED.format("TaskBatch")


def test_errors_of_a_users_own_code_stay_what_they_are() -> None:
    class Own(Layer):
        def forward(self, inputs: Tensor) -> Tensor:
            raise AssertionError("three channels are needed")

    class Looking(Layer):
        def forward(self, inputs: Tensor) -> Tensor:
            layers: dict[str, Tensor] = {}
            return layers["a layer"]

    with pytest.raises(AssertionError, match=r"^three channels are needed$"):
        run(Own())
    with pytest.raises(KeyError, match="a layer"):
        run(Looking())


@pytest.mark.filterwarnings("ignore:Engine 'auto' goes on with 'eager'")
def test_what_is_right_is_not_refused() -> None:
    run(loss=nn.L1Loss())
    run(tasks=TaskBatch(X, Y.double(), X, Y.double()))
    run(tasks=TaskBatch(X, LABELS[..., None], X, LABELS[..., None]))  # values that are whole numbers
    run(Branching())
    run(normed(), maml(0.1, 1, batch_norm="running"), ONE_ROW)
    run(normed(), maml(0.1, 1, batch_norm="support"), TaskBatch(X, Y, X[:, :1], Y[:, :1]))
    for optimizer in (lambda p: torch.optim.SGD(p, 0.1), lambda p: torch.optim.Adam(p, eps=1e-4), lambda p: torch.optim.Adam(p, fused=True)):  # fmt: skip
        fit(precision="16-true", optimizer=optimizer)


SHORT = [
    f"--config={Path(__file__).parents[1] / 'configs' / 'sinusoid.yaml'}",
    "--trainer.max_steps=2",
    "--trainer.logger=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--data.tasks_per_batch=2",
    "--data.batches_per_epoch=2",
    "--data.val_tasks=2",
    "--data.test_tasks=2",
    "--model.updates_per_step=1",
]
MAML = "--model.algorithm: lightning_maml.maml: Option '{}' is not accepted ({})"
WORDS = "`steps`, `learn_lr`, `adapts`, `batch_norm`"

# What stands behind `lightning-maml fit --config configs/sinusoid.yaml`, and the line that it is answered with.
OPTIONS = {
    "--model.network.in_features=2": "Expected a network that takes inputs [rows, 1], as the tasks have, but got MLP, whose layer `linear1`, "
    "Linear(in_features=2, out_features=40, bias=True), refuses [5, 1] (mat1 and mat2 shapes cannot be multiplied (5x1 and 2x40)): change the network or the tasks.",
    "--model.network=lightning_maml.MLPP": "--model.network: lightning_maml.MLPP: module 'lightning_maml' has no attribute 'MLPP' (did you mean MLP?)",
    "--model.network=test_messages.frozen_without_annotation": "--model.network: Import path test_messages.frozen_without_annotation does not correspond to a subclass of Module "
    "(of a function the annotation of what it returns counts, as `-> nn.Module`)",
    "--model.network=test_messages.OneNamed": TUPLE.format("OneNamed", "dict"),
    "--model.network=torch.nn.BatchNorm1d --model.network.num_features=1 --data.shots=1": ONE.format("support", "'running'").replace("Sequential", "BatchNorm1d"),
    "--model.network=test_messages.OneBranching --model.engine=batched": VMAP.format("batched", CONTROL_FLOW),
    "--model.algorithm=lightning_maml.mamml": "--model.algorithm: lightning_maml.mamml: module 'lightning_maml' has no attribute 'mamml' (did you mean maml?)",
    "--model.algorithm.first_order=true": MAML.format("first_order", "it is of second order, and `fomaml` of first"),
    "--model.algorithm.inner_lr=0.1": MAML.format("inner_lr", "use `lr`"),
    "--model.algorithm.setps=3": MAML.format("setps", "did you mean steps?"),
    "--model.algorithm.epsilon=3": MAML.format("epsilon", f"it has `lr`, {WORDS}"),
    "--model.optimizer=torch.optim.Adm": "--model.optimizer: module 'torch.optim' has no attribute 'Adm' but got torch.optim.Adm (did you mean Adam?)",
    "--model.tests_steps=3": "unrecognized arguments: --model.tests_steps=3 (did you mean --model.test_steps?)",
    "--data=lightning_maml.SinusoidTask": "--data: lightning_maml.SinusoidTask: module 'lightning_maml' has no attribute 'SinusoidTask' (did you mean SinusoidTasks?)",
    "--data.shot=3": "--data: lightning_maml.data.SinusoidTasks: Option 'shot' is not accepted but got 3 (did you mean shots?)",
    "--data.shots=-3": "Expected `shots` to be a whole number of at least 1 but got -3.",
    "--data.shots=2.5": "--data.shots: Expected a whole number but got 2.5",
    "--data.amplitude=[1]": "--data.amplitude: lightning_maml.data.SinusoidTasks: Expected a tuple with 2 elements but got [1]",
    "--trainer.precision=16-true --model.optimizer.fused=false": "Expected an `eps` of the optimizer above 0 in float16 but got 1e-08: use precision='16-mixed' or 'bf16-true', or Adam(..., eps=1e-4).",
}  # fmt: skip


class OneBranching(Branching):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 1)


class OneNamed(Named):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 1)


def frozen_without_annotation():  # type: ignore[no-untyped-def]
    return frozen()


@pytest.mark.filterwarnings("ignore")  # what Lightning warns of, before it refuses
@pytest.mark.parametrize("options", OPTIONS)
def test_answer_of_the_command_line(options: str, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning-maml"])
    try:
        status = cli.main(["fit", *SHORT, *options.split()])
    except SystemExit as stop:
        status = int(stop.code or 0)
    assert status in (1, 2)
    assert capsys.readouterr().err.splitlines()[-1] == f"lightning-maml: error: {OPTIONS[options]}"
