# ruff: noqa: E501 -- a table: one case a line
"""Every wrong input is answered by what was expected and what came, before any work is lost."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_maml import SGD, Algorithm, Batched, TaskBatch, Unrolled, adapt, evaluate, maml, meta_loss
from lightning_maml.inner import Rates

X, Y = torch.randn(3, 5, 2), torch.randn(3, 5, 1)
LABELS = torch.randint(4, (3, 5))


def network(out: int = 1) -> nn.Module:
    return nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, out))


def run(**changes):
    arguments = {
        "network": network(),
        "algorithm": maml(0.1, 1),
        "tasks": TaskBatch(X, Y, X, Y),
        "loss": "mse",
        **changes,
    }
    return meta_loss(arguments.pop("network"), arguments.pop("algorithm"), arguments.pop("tasks"), **arguments)


def nan_at(tensor: torch.Tensor, task: int, value: float = float("nan")) -> torch.Tensor:
    tensor = tensor.clone()
    tensor[task, 0] = value
    return tensor


def frozen() -> nn.Module:
    return network().requires_grad_(False)


def no_grad():
    with torch.no_grad():
        return run()


CASES = {
    "not a tensor": (lambda: TaskBatch([1.0], Y, X, Y), TypeError, "`support_inputs` to be a tensor .* but got list"),
    "no task dimension": (lambda: TaskBatch(X, Y[0, :, 0], X, Y), ValueError, r"`support_targets` to have shape .* but got \[5\]"),
    "no tasks": (lambda: TaskBatch(X[:0], Y[:0], X[:0], Y[:0]), ValueError, r"at least one task and one row but got \[0, 5, 2\]"),
    "no query rows": (lambda: TaskBatch(X, Y, X[:, :0], Y[:, :0]), ValueError, r"`query_inputs` to hold at least one .* \[3, 0, 2\]"),
    "tasks differ": (lambda: TaskBatch(X, Y, X[:2], Y[:2]), ValueError, "same number of tasks everywhere .*'query_inputs': 2"),
    "rows differ": (lambda: TaskBatch(X, Y[:, :4], X, Y), ValueError, "as many support targets as support inputs .* 4 and 5"),
    "an index": (lambda: TaskBatch(X, Y, X, Y)[0], TypeError, "slice of tasks"),
    "negative steps": (lambda: maml(0.1, -1), ValueError, "`steps` to be a whole number .* -1"),
    "fractional steps": (lambda: maml(0.1, 1.5), ValueError, "`steps` to be a whole number .* 1.5"),
    "zero rate": (lambda: maml(0.0), ValueError, "`lr` to be positive and finite but got 0.0"),
    "infinite rate": (lambda: maml(float("inf")), ValueError, "`lr` to be positive and finite but got inf"),
    "rate vector": (lambda: SGD(torch.ones(3)), ValueError, r"scalar tensor but got shape \[3\]"),
    "unknown kind of rate": (lambda: maml(learn_lr="layer"), ValueError, "`learn_lr` to be one of .* but got 'layer'"),
    "no rate for any step": (lambda: maml([], 2), ValueError, "`lr` to hold positive and finite rates"),
    "a rate of 0 for a step": (lambda: maml([0.1, 0.0], 2), ValueError, "`lr` to hold .* but got \\[0.1, 0.0\\]"),
    "rates of steps for rates that know none": (
        lambda: maml([0.1, 0.05], 2, learn_lr="shared").initial_rates(torch.nn.Linear(1, 1)),
        ValueError,
        "one initial rate for learned rates 'shared' but got \\[0.1, 0.05\\]: only 'per_step'",
    ),
    "learned rate without a home": (lambda: run(algorithm=maml(learn_lr="shared")), ValueError, "initial_rates"),
    "unknown batch-norm": (lambda: maml(batch_norm="eval"), ValueError, r"`batch_norm` to be one of \['batch', 'running', 'support'\] but got 'eval'"),
    "rule class, not rule": (lambda: Algorithm(SGD(), Unrolled), TypeError, "rule such as Unrolled"),
    "adapts nothing": (lambda: run(algorithm=maml(adapts="^classifier")), ValueError, "at least one parameter to adapt .*classifier"),
    "all frozen": (lambda: run(network=frozen()), ValueError, "at least one parameter to adapt"),
    "no parameters": (lambda: run(network=nn.ReLU()), ValueError, "network with parameters to adapt but ReLU has none"),
    "unknown loss": (lambda: run(loss="l1"), ValueError, r"`loss` to be one of \['cross_entropy', 'mse'\] .* 'l1'"),
    "loss of a wrong type": (lambda: run(loss=3), TypeError, "`loss` to be one of .* but got 3"),
    "loss without reduction": (lambda: run(loss=nn.MSELoss(reduction="none")), ValueError, r"one scalar for each task but got shape \[5, 1\]"),
    "unknown engine": (lambda: run(engine="fast"), ValueError, r"`engine` to be one of \['auto', 'eager', 'batched'.* 'fast'"),
    "engine of a wrong type": (lambda: run(engine=7), TypeError, "`engine` to be one of .* 7"),
    "chunk of zero": (lambda: Batched(chunk_size=0), ValueError, "`chunk_size` to be a whole number of at least 1 but got 0"),
    "unknown checkpoint": (lambda: Batched(checkpoint="layer"), ValueError, r"`checkpoint` to be one of \[None, 'step'\] but got 'layer'"),
    "targets would broadcast": (lambda: run(tasks=TaskBatch(X, Y[..., 0], X, Y[..., 0])), ValueError, r"targets \[3, 5\] and predictions \[3, 5, 1\]"),
    "float labels": (lambda: run(network=network(4), loss="cross_entropy"), ValueError, "integer class labels .* torch.float32"),
    "one-hot labels": (
        lambda: run(network=network(4), loss="cross_entropy", tasks=TaskBatch(X, Y.long(), X, Y.long())), ValueError,
        r"logits \[tasks, rows, classes\] and labels \[tasks, rows\]",
    ),
    "label too large": (
        lambda: run(network=network(3), loss="cross_entropy", tasks=TaskBatch(X, LABELS * 0 + 3, X, LABELS)), ValueError,
        "labels from 0 to 2, as the network has 3 outputs, but got labels from 3 to 3",
    ),
    "query label negative": (
        lambda: run(network=network(4), loss="cross_entropy", tasks=TaskBatch(X, LABELS, X, LABELS * 0 - 1)), ValueError,
        "labels from 0 to 3, .* from -1 to -1",
    ),
    "NaN in an input": (lambda: run(tasks=TaskBatch(X, Y, nan_at(X, 2), Y)), ValueError, r"`query_inputs` holds NaN or infinities in tasks \[2\]"),
    "infinite target": (lambda: run(tasks=TaskBatch(X, nan_at(Y, 1, float("inf")), X, Y)), ValueError, r"`support_targets` holds .* \[1\]"),
    "gradients disabled": (no_grad, RuntimeError, "gradients to be enabled for `meta_loss`; .* use `evaluate`"),
    "inputs that ask for gradients, compiled": (
        lambda: run(tasks=TaskBatch(X.clone().requires_grad_(), Y, X, Y), engine=Batched(compile=True)), NotImplementedError,
        "inputs or targets ask for a gradient",
    ),
    "running statistics that are not kept": (
        lambda: run(network=nn.Sequential(nn.BatchNorm1d(2, track_running_stats=False), nn.Linear(2, 1)), algorithm=maml(batch_norm="running")),
        ValueError, "every batch-norm layer to keep running statistics",
    ),
    "evaluate with negative steps": (lambda: evaluate(network(), maml(), TaskBatch(X, Y, X, Y), loss="mse", steps=-1), ValueError, "`steps`"),
    "evaluate with bad labels": (
        lambda: evaluate(network(3), maml(), TaskBatch(X, LABELS * 0, X, LABELS * 0 + 9), loss="cross_entropy"), ValueError, "from 9 to 9",
    ),
    "predict for another number of tasks": (
        lambda: adapt(network(), maml(), X, Y, loss="mse").predict(X[:2]), ValueError, r"inputs of 3 tasks, \[3, rows, ...\], but got \[2, 5, 2\]",
    ),
    "adapt without targets for all": (lambda: adapt(network(), maml(), X, Y[:2], loss="mse"), ValueError, "same number of tasks"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bad_input(case):
    call, error, message = CASES[case]
    with pytest.raises(error, match=message):
        call()


def test_compiled_graphs_look_at_labels_again():
    module, engine = network(4), Batched(compile=True)
    run(network=module, loss="cross_entropy", tasks=TaskBatch(X, LABELS, X, LABELS), engine=engine)
    with pytest.raises(ValueError, match="labels from 0 to 3, .* from 4 to 4"):
        run(network=module, loss="cross_entropy", tasks=TaskBatch(X, LABELS, X, LABELS * 0 + 4), engine=engine)


def test_rates_for_another_network():
    rates = Rates("per_parameter", 0.1, 1, dict(nn.Linear(2, 1).named_parameters()))
    with pytest.raises(AttributeError, match="0/weight"):
        run(algorithm=maml(0.1, 1, learn_lr="per_parameter").with_rates(rates))
