"""Puts the weights of a reproduced training into the package, with their card.

    python -m benchmarks.ship RUN/reproduction.json RUN/checkpoints/best.ckpt
    python -m benchmarks.ship RUN/metrics.json RUN/checkpoints/last.ckpt    # of a policy

Of the checkpoint the weights stay, and what they are built by. Beside their test go random inputs, and what is
predicted for them. A run that went on in several folders has its result in the last, and its best in one of them.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from lightning_maml import MetaModule, adapt, saving
from lightning_maml.cli.reproduction import FIELDS
from lightning_maml.rl import MetaRLModule
from lightning_maml.saving.pretrained import SHIPPED
from lightning_maml.saving.resume import CONFIGURATION
from lightning_maml.saving.weights import sha256_of

KEPT = ("state_dict", "hyper_parameters", "hparams_name", "pytorch-lightning_version", "epoch", "global_step")
OF_POLICY = (
    *("protocol", "seed", "updates", "machine", "versions", "commit", "weights", "trajectories", "test_tasks"),
    *("inner_steps", "results"),
)
"""What the card of a policy says, which has no queries."""
TESTS = Path(__file__).parents[1] / "tests" / "trained"


def ship(result: Path, checkpoint: Path, folder: Path = SHIPPED, tests: Path = TESTS) -> str:
    """Writes ``NAME.ckpt`` and ``NAME.json``, and ``NAME.safetensors`` for the tests; returns the name.

    Raises:
        ValueError: the result lacks a field, or is of other weights than those of the checkpoint.
    """
    content = saving.read_checkpoint(checkpoint)
    found = sha256_of({}, content["state_dict"])
    kept = {name: content[name] for name in KEPT}
    learns_policy = "policy" in kept["hyper_parameters"]
    card = json.loads(result.read_text())
    if learns_policy:
        card = of_policy(card, content, result, checkpoint) | {"weights": found}
        environment = content[CONFIGURATION]["data"]["init_args"]["environment"]
        kept["hyper_parameters"] = {**kept["hyper_parameters"], "environment": environment}
    if missing := [name for name in (OF_POLICY if learns_policy else FIELDS) if card.get(name) is None]:
        raise ValueError(f"Expected {result} to say {', '.join(missing)} but it does not.")
    if found != card["weights"]:
        raise ValueError(f"Expected the weights {card['weights']} that were tested but {checkpoint} has {found}.")
    card["overrides"] = [
        option for option in card.get("overrides", []) if not option.startswith("--data.root")
    ]  # a path here
    card["data"] = content[CONFIGURATION]["data"]["class_path"].rpartition(".")[2]
    name: str = card["protocol"]
    torch.save(kept, folder / f"{name}.ckpt")
    (folder / f"{name}.json").write_text(json.dumps(card, indent=1) + "\n")
    module = (MetaRLModule if learns_policy else MetaModule).load_from_checkpoint(folder / f"{name}.ckpt").eval()
    save_file(predicted(module, random_inputs(module)), tests / f"{name}.safetensors")
    return name


def of_policy(test: dict[str, Any], content: dict[str, Any], result: Path, checkpoint: Path) -> dict[str, Any]:
    """The card of a policy: its ``metrics.json``, the configuration's numbers, and where the run began.

    ValueError where the test was of another checkpoint.
    """
    if test["checkpoint"] is None or Path(test["checkpoint"]).name != checkpoint.name:
        raise ValueError(f"Expected a test of {checkpoint} in {result} but it is of {test['checkpoint']}.")
    run, last = checkpoint.parents[1], len(test["inner_steps"]) - 1
    origin = json.loads((run / "origin.json").read_text())
    results = []
    for step, (mean, ci95) in enumerate(zip(test["return"]["mean"], test["return"]["ci95"], strict=True)):
        none = {"published": None, "published_ci95": None, "verdict": None}
        results.append({"value": "return", "inner_steps": step, "measured": mean, "measured_ci95": ci95, **none})
    about = {name: test[name] for name in ("algorithm", "estimator", "trajectories", "rates", "seed", "data_seed")}
    done = {"updates": content["global_step"], "test_tasks": test["tasks"], "inner_steps": last, "results": results}
    return {"protocol": run.parent.name, **origin, **about, **done}


def random_inputs(module: MetaModule | MetaRLModule) -> dict[str, torch.Tensor]:
    """Support and query sets of two tasks: bytes of one image a class ``[2, ways, ...]``, or ``[2, 5, 1]`` of numbers.

    Of a policy the query set is of observations ``[2, 5, O]``; there is no support set.
    """
    generator = torch.Generator().manual_seed(0)
    if isinstance(module, MetaRLModule):
        return {"query": torch.randn(2, 5, module.policy.observation_size, generator=generator)}
    sizes = module.described["network"]["init_args"] if module.described else {}
    if "image_size" not in sizes:
        support, query = (torch.randn(2, 5, sizes["in_features"], generator=generator) for _ in range(2))
    else:
        size = 2, sizes["ways"], sizes["channels"], sizes["image_size"], sizes["image_size"]
        support, query = (torch.randint(256, size, dtype=torch.uint8, generator=generator) for _ in range(2))
    return {"support": support, "query": query}


def predicted(module: MetaModule | MetaRLModule, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inputs, and the ``predictions`` after the steps of a test; of a policy, its outputs before any."""
    if isinstance(module, MetaRLModule):
        with torch.no_grad():
            return {**inputs, "predictions": module.policy(inputs["query"])}
    support, query = (inputs[name] for name in ("support", "query"))
    of_images = support.dtype is torch.uint8
    labels = torch.arange(support.shape[1]).expand(len(support), -1)
    targets = labels if of_images else support.sin()
    support, query = (part.float() / 255 if of_images else part for part in (support, query))
    algorithm = module.algorithm.with_steps(module.test_steps)
    found = adapt(module.network, algorithm, support, targets, loss=module.loss).predict(query)
    return {**inputs, "predictions": found}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ship", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("result", type=Path, help="reproduction.json, of `lightning-maml reproduce`")
    parser.add_argument("checkpoint", type=Path, help="the best one, which was tested")
    options = parser.parse_args()
    print(f"{ship(options.result, options.checkpoint)} ships with the package.")
