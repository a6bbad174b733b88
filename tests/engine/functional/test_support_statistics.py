"""``batch_norm="support"``: query rows by their task's support statistics; and serving, by row and in either mode."""

from __future__ import annotations

import copy
import json
import pickle
import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.func import functional_call

from benchmarks.serving import markdown
from lightning_maml import (
    Algorithm,
    Batched,
    Eager,
    Fused,
    MetaModule,
    TaskBatch,
    adapt,
    anil,
    evaluate,
    fomaml,
    imaml,
    load_adapted,
    maml,
    maml_pp,
    meta_loss,
    pretrained,
    reptile,
    save_adapted,
)
from lightning_maml.meta_gradient import MultiStep
from lightning_maml.networks import Conv4, step_batch_norm
from lightning_maml.rl import GaussianPolicy
from lightning_maml.rl.adaptation import MetaObjective
from problems import make_problem, meta_gradient, relative_error

LOSS = "cross_entropy"
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
ENGINES = {
    "eager": Eager(),
    "batched": Batched(),
    "chunks": Batched(chunk_size=2),
    "checkpoint": Batched(checkpoint="step"),
    "sgd_update": Fused(kernel="sgd_update"),
    "auto": "auto",
}
NETWORKS = ["norm_mlp", "conv4", "conv4_max_pool", "conv_module"]
SIZES = {"1 task, 2 rows, 1 query": (1, 2, 1), "primes": (3, 5, 7)}


class Written(nn.Module):
    """A batch-norm layer written out, with its statistics in attributes: those that it saw, or that it is given."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = layer.weight, layer.bias, layer.eps
        self.given: tuple[Tensor, Tensor] | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        rows = inputs.movedim(1, -1)
        var, mean = self.given or torch.var_mean(rows, tuple(range(rows.ndim - 1)), correction=0)
        self.seen = var, mean
        return ((rows - mean) / (var + self.eps).sqrt() * self.weight + self.bias).movedim(-1, 1)


def written(network: nn.Module) -> nn.Module:
    """The network with its batch-norm layers written out, of the same parameters under the same names."""
    network = copy.deepcopy(network)
    for parent in [*network.modules()]:
        for name, layer in [*parent.named_children()]:
            if isinstance(layer, NORMS):
                setattr(parent, name, Written(layer))
    return network


def query(network: nn.Module, phi: dict[str, Tensor], support: Tensor, inputs: Tensor) -> Tensor:
    """Predictions by the support set's statistics under ``phi``."""
    layers = [layer for layer in network.modules() if isinstance(layer, Written)]
    functional_call(network, phi, (support,))
    for layer in layers:
        layer.given = layer.seen
    predictions = functional_call(network, phi, (inputs,))
    for layer in layers:
        layer.given = None
    return predictions


def reference(
    network: nn.Module, tasks: TaskBatch, lr: float, steps: int, order: int = 2, weights: list[float] | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Predictions and meta-gradient, one task after another; ``weights`` of the query losses after each step."""
    network = written(network)
    theta = dict(network.named_parameters())
    total, rows = torch.zeros((), dtype=torch.float64), []
    for x, y, qx, qy in zip(*(value for _, value in tasks.named()), strict=True):
        phi = theta
        for step in range(steps):
            loss = F.cross_entropy(functional_call(network, phi, (x,)), y)
            gradients = torch.autograd.grad(loss, [*phi.values()], create_graph=order == 2, retain_graph=True)
            phi = {name: value - lr * g for (name, value), g in zip(phi.items(), gradients, strict=True)}
            predictions = query(network, phi, x, qx)
            weight = weights[step] if weights else float(step == steps - 1)
            total = total + weight * F.cross_entropy(predictions, qy) / len(tasks)
        rows.append(predictions.detach())
    return torch.stack(rows), list(torch.autograd.grad(total, [*theta.values()]))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("network", NETWORKS)
def test_against_the_reference(network, sizes, engine):
    tasks, support, rows = SIZES[sizes]
    module, batch = make_problem(network, LOSS, tasks, support, rows)
    predictions, expected = reference(module, batch, 0.1, 2)
    output = meta_loss(module, maml(0.1, 2, batch_norm="support"), batch, loss=LOSS, engine=ENGINES[engine])
    torch.testing.assert_close(output.predictions, predictions, rtol=1e-10, atol=1e-10)
    assert relative_error(meta_gradient(module, output), expected) < 1e-8


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("network", ["conv4", "conv_module"])
def test_rules_against_the_reference(network, engine):
    module, batch = make_problem(network, LOSS)
    rules = {
        "first order": (fomaml(0.1, 3), {"order": 1}),
        "every step": (Algorithm(maml(0.1, 3).inner, MultiStep(6).at(2)), {"weights": [2 / 9, 2 / 9, 5 / 9]}),
    }
    for name, (algorithm, options) in rules.items():
        _, expected = reference(module, batch, 0.1, 3, **options)
        algorithm = replace(algorithm, batch_norm="support")
        output = meta_loss(module, algorithm, batch, loss=LOSS, engine=ENGINES[engine])
        assert relative_error(meta_gradient(module, output), expected) < 1e-8, name


@pytest.mark.parametrize("engine", ["batched", "checkpoint"])
@pytest.mark.parametrize(
    "algorithm",
    [
        pretrained(0.1, 2),
        anil(0.1, 2),
        reptile(0.1, 3, "sgd", batch_size=3),
        imaml(0.02, 20, proximal=20.0, cg_steps=10, damping=1.0),
    ],
    ids=lambda algorithm: algorithm.name,
)
def test_other_algorithms_as_on_eager(algorithm, engine):
    """Which the reference is compared with above. Statistics are of all rows, whatever mini-batches steps see."""
    module, batch = make_problem("conv4", LOSS, support=7)
    outputs = [
        meta_loss(module, replace(algorithm, batch_norm="support"), batch, loss=LOSS, engine=chosen)
        for chosen in ("eager", ENGINES[engine])
    ]
    gradients = [meta_gradient(module, output) for output in outputs]
    torch.testing.assert_close(outputs[1].predictions, outputs[0].predictions, rtol=1e-9, atol=1e-9)
    assert relative_error(*reversed(gradients)) < 1e-7
    by_batch = meta_loss(module, algorithm, batch, loss=LOSS, engine=ENGINES[engine])
    assert not torch.allclose(by_batch.predictions, outputs[1].predictions)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("network", NETWORKS)
def test_one_row_at_a_time_equals_all_at_once(tmp_path, network, engine, dtype):
    module, batch = make_problem(network, LOSS, dtype=dtype)
    before = copy.deepcopy(module.state_dict())
    algorithm = maml(0.1, 2, batch_norm="support")
    adapted = adapt(module, algorithm, *batch.sets[0], loss=LOSS, engine=ENGINES[engine])
    save_adapted(adapted, tmp_path / "adapted")
    again = load_adapted(tmp_path / "adapted", module, algorithm, loss=LOSS, engine=ENGINES[engine])
    expected = adapted.predict(batch.query_inputs)
    evaluation = evaluate(module, algorithm, batch, loss=LOSS, engine=ENGINES[engine])
    tolerance = {"rtol": 0, "atol": 1e-6 if dtype is torch.float32 else 1e-12}
    torch.testing.assert_close(evaluation.predictions[:, -1], expected, **tolerance)
    assert torch.equal(again.predict(batch.query_inputs), expected)
    for one in (adapted, again):
        rows = [one.predict(row) for row in batch.query_inputs.split(1, 1)]
        torch.testing.assert_close(torch.cat(rows, 1), expected, **tolerance)
    for task, inputs in enumerate(batch.query_inputs):
        for exported in (adapted.network(task).train(), adapted.network(task).eval(), again.network(task).train()):
            rows = [exported(row) for row in (*inputs.split(1), inputs)]
            torch.testing.assert_close(torch.cat(rows[:-1]), expected[task], **tolerance)
            torch.testing.assert_close(rows[-1], expected[task], **tolerance)
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), name  # the meta-network's own are never written


@pytest.mark.parametrize("mode", ["batch", "running"])
@pytest.mark.parametrize("network", NETWORKS)
def test_exported_networks_predict_in_both_modes_what_was_predicted(tmp_path, network, mode):
    module, batch = make_problem(network, LOSS)
    with torch.no_grad():
        for layer in filter(lambda one: isinstance(one, NORMS), module.modules()):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    adapted = adapt(module, maml(0.1, 2, batch_norm=mode), *batch.sets[0], loss=LOSS)
    expected = adapted.predict(batch.query_inputs)
    for task, inputs in enumerate(batch.query_inputs):
        exported = adapted.network(task)
        state = copy.deepcopy(exported.state_dict())
        save_model(exported, tmp_path / "model")
        loaded = pickle.loads(pickle.dumps(adapted.network(0)))
        load_model(loaded, tmp_path / "model")
        for one in (exported.train(), copy.deepcopy(exported.eval()), loaded.train(), loaded.eval()):
            torch.testing.assert_close(one(inputs), expected[task], rtol=1e-9, atol=1e-9)
        assert all(torch.equal(value, state[name]) for name, value in exported.state_dict().items())


def test_exported_networks_adapt_further():
    """In every mode, though their layers are others: the start of another training."""
    module, batch = make_problem("conv4", LOSS)
    for mode in ("running", "support"):
        network = adapt(module, maml(0.1, 1, batch_norm=mode), *batch.sets[0], loss=LOSS).network(0)
        plain = copy.deepcopy(module)
        plain.load_state_dict(network.state_dict())
        for other in ("batch", "running", "support"):
            gradients = [
                meta_gradient(one, meta_loss(one, maml(0.1, 2, batch_norm=other), batch, loss=LOSS, engine="batched"))
                for one in (network, plain)
            ]
            assert relative_error(*gradients) < 1e-9


@pytest.mark.filterwarnings("ignore:.*tasks diverged")
def test_exported_layers_of_every_step_have_the_last_ones():
    module, batch = make_problem("conv4", LOSS)
    step_batch_norm(module, 3)
    with torch.no_grad():
        for name, value in module.named_parameters():
            if "norm" in name:
                value.normal_()
    algorithm = maml_pp(0.1, 3)
    algorithm = algorithm.with_rates(algorithm.initial_rates(module))
    adapted = adapt(module, algorithm, *batch.sets[0], loss=LOSS)
    expected = adapted.predict(batch.query_inputs)
    for exported in (adapted.network(1).train(), adapted.network(1).eval()):
        torch.testing.assert_close(exported(batch.query_inputs[1]), expected[1], rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings("ignore:.*tasks diverged")
@pytest.mark.parametrize("engine", ["eager", "batched"])
def test_predictions_draw_no_dropout_unless_asked(engine):
    network = nn.Sequential(nn.Linear(3, 50), nn.Dropout(0.5), nn.BatchNorm1d(50), nn.Linear(50, 1)).train()
    x, y = torch.randn(2, 4, 3), torch.zeros(2, 4, 1)
    adapted = adapt(network, maml(0.1, 1, batch_norm="support"), x, y, loss="mse", engine=engine)
    assert torch.equal(adapted.predict(x), adapted.predict(x))
    torch.testing.assert_close(adapted.network(1).eval()(x[1]), adapted.predict(x)[1])
    assert not torch.equal(adapted.predict(x, dropout=True), adapted.predict(x, dropout=True))
    assert all(module.training for module in network.modules())
    # no dropout in the statistics either: those of the adapted network itself on the support set
    with torch.no_grad():
        expected = adapted.network(0)[0](x[0]).mean(0)
    torch.testing.assert_close(adapted.parameters["2.running_mean"][0], expected)
    network.eval()
    assert not torch.equal(adapted.predict(x, dropout=True), adapted.predict(x, dropout=True))


def test_rows_that_matter_are_said_once():
    module, batch = make_problem("conv4", LOSS)
    adapted = adapt(module, maml(0.1, 1), *batch.sets[0], loss=LOSS)
    with pytest.warns(UserWarning, match="Conv4 depend on which rows come together.*batch_norm='support'"):
        adapted.predict(batch.query_inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapted.predict(batch.query_inputs)
        adapted.network(0)
        for mode in ("running", "support"):
            fresh, _ = make_problem("conv4", LOSS)
            adapt(fresh, maml(0.1, 1, batch_norm=mode), *batch.sets[0], loss=LOSS).predict(batch.query_inputs)
        for network in (Conv4(5, hidden=4, image_size=16, norm="group").double(), make_problem("mlp", LOSS)[0]):
            inputs = batch.query_inputs if isinstance(network, Conv4) else torch.randn(3, 7, 3, dtype=torch.float64)
            adapt(network, maml(0.1, 1), inputs, batch.query_targets, loss=LOSS).predict(inputs)


def test_engines_that_know_other_statistics_refuse():
    module, batch = make_problem("conv4", LOSS)
    for engine, reason in {
        Batched(compile=True): "batch-norm goes by support, none of batch, running",
        Fused(compile=True): "batch-norm goes by support, none of batch",
    }.items():
        with pytest.raises(NotImplementedError, match=reason):
            meta_loss(module, maml(0.1, 1, batch_norm="support"), batch, loss=LOSS, engine=engine)
    module, batch = make_problem("mlp", "mse")  # no batch-norm, nothing to refuse
    gradients = [
        meta_gradient(module, meta_loss(module, maml(0.1, 2, batch_norm=mode), batch, loss="mse", engine="fused"))
        for mode in ("batch", "support")
    ]
    assert all(map(torch.equal, *gradients))


class Own(nn.BatchNorm1d):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs)


class Ways(nn.Module):
    """Layers that run as often as told, on support sets of 4 rows and on other sets."""

    def __init__(self, support: list[str], query: list[str]) -> None:
        super().__init__()
        self.first, self.norm, self.other = nn.Linear(3, 3), nn.BatchNorm1d(3), nn.BatchNorm1d(3)
        self.support, self.query = support, query

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self.first(inputs)
        for name in self.support if len(inputs) == 4 else self.query:
            outputs = self.get_submodule(name)(outputs)
        return outputs


def _norm(layer: nn.Module, times: int = 1) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 3), *[layer] * times)


@pytest.mark.parametrize("engine", ["eager", "batched"])
@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (_norm(nn.BatchNorm1d(3, track_running_stats=False)), "running statistics for `batch_norm='support'` but got"),
        (_norm(nn.SyncBatchNorm(3)), "forward of nn.BatchNorm1d, 2d or 3d .* got SyncBatchNorm"),
        (_norm(Own(3)), "forward of nn.BatchNorm1d, 2d or 3d .* got Own"),
        (_norm(nn.BatchNorm1d(3, affine=False), times=2), "to run once in a forward .* '1' runs several times"),
        (Ways(["norm", "norm"], ["norm"]), "to run once in a forward .* 'norm' runs several times"),
        (Ways(["norm"], ["other"]), "'other' runs on query sets alone"),
        (Ways([], ["norm"]), r"none of \['norm', 'other'\] does"),
    ],
)
def test_layers_without_such_statistics_are_refused(network, reason, engine):
    inputs = torch.randn(2, 9, 3)
    with pytest.raises(ValueError, match=reason):
        meta_loss(
            network, maml(0.1, 1, batch_norm="support"),
            TaskBatch(inputs[:, :4], inputs[:, :4], inputs[:, 4:], inputs[:, 4:]), loss="mse", engine=engine,
        )  # fmt: skip


@pytest.mark.parametrize("engine", ["eager", "batched"])
def test_a_single_row_has_no_statistics(engine):
    x = torch.randn(2, 1, 3)
    network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    with pytest.raises(ValueError, match=r"several values a channel .* '1' sees \[1, 3\]"):
        meta_loss(network, pretrained(batch_norm="support"), TaskBatch(x, x, x, x), loss="mse", engine=engine)


def test_a_network_that_folds_its_rows():
    """Rows of several parts each, one after another below: a part is normalised by all parts of all support rows."""

    class Folding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.head = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 5)

        def forward(self, inputs: Tensor) -> Tensor:
            parts = self.norm(self.first(inputs.flatten(0, 1))).tanh()
            return self.head(parts).view(*inputs.shape[:2], -1).mean(1)

    torch.manual_seed(0)
    network = Folding().double()
    x, y = torch.randn(3, 5, 2, 3, dtype=torch.float64), torch.randint(5, (3, 5))
    batch = TaskBatch(x[:, :3], y[:, :3], x[:, 3:], y[:, 3:])
    predictions, expected = reference(network, batch, 0.1, 2)
    for engine in ("eager", "batched"):
        output = meta_loss(network, maml(0.1, 2, batch_norm="support"), batch, loss=LOSS, engine=engine)
        torch.testing.assert_close(output.predictions, predictions)
        assert relative_error(meta_gradient(network, output), expected) < 1e-9


def test_weights_are_loaded_by_the_algorithm_that_adapted(tmp_path):
    module, batch = make_problem("conv4", LOSS)
    for mode, other in (("support", "batch"), ("batch", "support")):
        save_adapted(adapt(module, maml(0.1, 1, batch_norm=mode), *batch.sets[0], loss=LOSS), tmp_path / mode)
        with pytest.raises(ValueError, match=f"batch_norm='{other}' but .* statistics of the tasks' support sets"):
            load_adapted(tmp_path / mode, module, maml(0.1, 1, batch_norm=other), loss=LOSS)


def test_half_precision_and_autocast():
    module, batch = make_problem("conv4", LOSS, dtype=torch.float32)
    algorithm = maml(0.1, 1, batch_norm="support")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        adapted = adapt(module, algorithm, *batch.sets[0], loss=LOSS)
        rows = torch.cat([adapted.predict(row) for row in batch.query_inputs.split(1, 1)], 1)
        torch.testing.assert_close(rows, adapted.predict(batch.query_inputs), rtol=0.02, atol=0.02)
        exact = adapt(module, algorithm, *batch.sets[0], loss=LOSS)
    torch.testing.assert_close(adapted.parameters["norm1.running_var"], exact.parameters["norm1.running_var"])
    for network in ("norm_mlp", "conv_module"):
        module, batch = make_problem(network, LOSS, dtype=torch.bfloat16)
        half = adapt(module, algorithm, *batch.sets[0], loss=LOSS)
        assert {value.dtype for value in half.parameters.values()} == {torch.bfloat16}
        alone, expected = half.network(0)(batch.query_inputs[0, :1]), half.predict(batch.query_inputs)[0, :1]
        torch.testing.assert_close(alone, expected, rtol=0.02, atol=0.02)


def test_a_module_predicts_by_support_sets():
    network, batch = make_problem("conv4", LOSS)
    subject = MetaModule(network, maml(0.1, 2, batch_norm="support"), loss=LOSS).eval()
    support, (rows, _) = batch.sets
    alone = [subject.predict_step((*support, row), 0) for row in rows.split(1, 1)]
    torch.testing.assert_close(torch.cat(alone, 1), subject.predict_step((*support, rows), 0))


def test_rollouts_are_no_support_sets():
    with pytest.raises(NotImplementedError, match="batch_norm='batch' or 'running': rollouts are no support sets"):
        MetaObjective(GaussianPolicy(2, 2), maml(0.1, 1, batch_norm="support"))


def test_the_table_is_the_one_that_was_measured(repository):
    results = json.loads((repository / "benchmarks/results/serving.json").read_text())
    assert markdown(results) in (repository / "docs/serving.md").read_text()
    for row in results["rows"]:
        assert row["exported, eval"][0] == pytest.approx(row["one at a time"][0], abs=1e-3)
        assert row["exported, train"][0] == pytest.approx(row["one at a time"][0], abs=1e-3)
    rows = {row["batch_norm"]: row for row in results["rows"]}
    alone = {name: row["one at a time"][0] for name, row in rows.items()}
    assert alone["support"] > max(alone["running"], alone["group norm"])
    support, batch = rows["support"], rows["batch"]
    assert support["one at a time"] == support["all at once"]
    assert batch["one at a time"][0] < 0.3 < support["one at a time"][0] < batch["all at once"][0]
