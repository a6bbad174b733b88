"""Adapters that peft puts into a network adapt like the library's own. Runs where peft is installed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_maml import Batched, TaskBatch, adapt, lora, meta_loss
from lightning_maml.networks import add_lora
from problems import make_problem, meta_gradient, relative_error

peft = pytest.importorskip("peft", reason="needs peft")

ENGINES = {"eager": "eager", "batched": "batched", "checkpoint": Batched(checkpoint="step")}
LAYERS = ["embed", "head"]
LR, RANK, ALPHA = 0.1, 2, 3


def adapters(network: nn.Module, **options) -> nn.Module:
    """The network with peft's adapters beside its linear layers, moved away from zero."""
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=LAYERS, **options)
    model = peft.get_peft_model(network, config)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("engine", ENGINES)
def test_adapters_of_peft_adapt(engine):
    """By hand: what peft says is trainable takes the inner steps, and nothing else does or learns."""
    module, tasks = make_problem("attention", "cross_entropy")
    model = adapters(module)
    theta = {name: value for name, value in model.named_parameters() if value.requires_grad}
    assert len(theta) == 2 * len(LAYERS)
    assert lora().inner.adapted(dict(model.named_parameters())) == list(theta)
    total = torch.zeros((), dtype=torch.float64)
    with sdpa_kernel(SDPBackend.MATH):
        for t in range(len(tasks)):
            phi = theta
            for _ in range(2):
                predictions = functional_call(model, phi, (tasks.support_inputs[t],))
                loss = F.cross_entropy(predictions, tasks.support_targets[t])
                g = torch.autograd.grad(loss, list(phi.values()), create_graph=True)
                phi = {n: v - LR * d for (n, v), d in zip(phi.items(), g, strict=True)}
            predictions = functional_call(model, phi, (tasks.query_inputs[t],))
            total = total + F.cross_entropy(predictions, tasks.query_targets[t]) / len(tasks)
    expected = list(torch.autograd.grad(total, list(theta.values())))
    output = meta_loss(model, lora(LR, 2), tasks, loss="cross_entropy", engine=ENGINES[engine])
    assert relative_error(meta_gradient(model, output), expected) < 1e-9
    adapted = adapt(model, lora(LR, 2), tasks.support_inputs, tasks.support_targets, loss="cross_entropy")
    assert list(adapted.parameters) == list(theta)


def test_peft_equals_add_lora():
    """The same matrices in both: the same predictions and the same meta-gradient."""
    model = adapters(make_problem("attention", "cross_entropy")[0])
    module, tasks = make_problem("attention", "cross_entropy")
    ours = add_lora(module, RANK, scale=ALPHA)
    theirs = dict(model.named_parameters())
    with torch.no_grad():
        for layer in LAYERS:
            for x in "ab":
                value = theirs[f"base_model.model.{layer}.lora_{x.upper()}.default.weight"]
                ours.get_parameter(f"{layer}.lora_{x}").copy_(value)
    torch.testing.assert_close(ours(tasks.query_inputs[0]), model(tasks.query_inputs[0]))
    gradients = [
        meta_gradient(network, meta_loss(network, lora(LR, 3), tasks, loss="cross_entropy"))
        for network in (ours, model)
    ]
    assert relative_error(*gradients) < 1e-9


@pytest.mark.parametrize("engine", ENGINES)
def test_bf16_under_peft(engine):
    """A base in bfloat16, for which peft keeps its adapters in float32, under autocast: near the float32 numbers."""
    whole, tasks = make_problem("attention", "cross_entropy", dtype=torch.float32)
    expected = adapters(whole)
    right = meta_gradient(expected, meta_loss(expected, lora(LR, 2), tasks, loss="cross_entropy", engine="eager"))
    model = adapters(make_problem("attention", "cross_entropy", dtype=torch.float32)[0].bfloat16())
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        output = meta_loss(model, lora(LR, 2), tasks, loss="cross_entropy", engine=ENGINES[engine])
    actual = meta_gradient(model, output)
    assert {gradient.dtype for gradient in actual} == {torch.float32}
    flat = [torch.cat([g.flatten() for g in gradients]) for gradients in (actual, right)]
    assert not torch.equal(*flat)
    assert F.cosine_similarity(*flat, dim=0) > 0.98


class Classifier(nn.Module):
    """A language model of transformers as the library calls networks: ``tokens [N, L] -> logits [N, labels]``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=tokens).logits  # a mask would be branched on, which vmap refuses


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's own call
@pytest.mark.parametrize("engine", ENGINES)
def test_a_real_transformer(engine):
    """DistilBERT from transformers, small and with random weights, with peft's adapters in its attention."""
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "dim": 16, "hidden_dim": 32, "n_heads": 2, "n_layers": 2, "max_position_embeddings": 12}
    config = transformers.DistilBertConfig(
        **sizes, num_labels=3, dropout=0.0, attention_dropout=0.0, seq_classif_dropout=0.0
    )
    network = transformers.DistilBertForSequenceClassification(config).double()
    model = Classifier(peft.get_peft_model(network, peft.LoraConfig(r=2, target_modules=["q_lin", "v_lin"])))
    assert len(lora().inner.adapted(dict(model.named_parameters()))) == 2 * 2 * 2
    tokens, labels = torch.randint(50, (2, 6, 8)), torch.arange(6).expand(2, 6) % 3
    tasks = TaskBatch(tokens, labels, tokens.flip(1), labels.flip(1))
    gradients = [
        meta_gradient(model, meta_loss(model, lora(LR, 2), tasks, loss="cross_entropy", engine=e))
        for e in ("eager", ENGINES[engine])
    ]
    assert any(gradient.any() for gradient in gradients[0])
    assert relative_error(*gradients) < 1e-9
