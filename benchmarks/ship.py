"""Puts the weights of a reproduced training into the package, with their card.

    python -m benchmarks.ship RUN/reproduction.json RUN/checkpoints/best.ckpt

Of the checkpoint the weights stay, and what they are built by. Beside their test go random images, and what is
predicted for them. A run that went on in several folders has its result in the last, and its best in one of them.
"""

import argparse
import inspect
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from lightning_maml import MetaModule, adapt, saving, trained
from lightning_maml.cli.reproduction import FIELDS
from lightning_maml.saving.weights import sha256_of

KEPT = ("state_dict", "hyper_parameters", "hparams_name", "pytorch-lightning_version", "epoch", "global_step")
TESTS = Path(__file__).parents[1] / "tests" / "trained"


def ship(result: Path, checkpoint: Path, folder: Path = trained.FOLDER, tests: Path = TESTS) -> str:
    """Writes ``NAME.ckpt`` and ``NAME.json``, and ``NAME.safetensors`` for the tests; returns the name.

    Raises:
        ValueError: the result lacks a field, or is of other weights than those of the checkpoint.
    """
    card = json.loads(result.read_text())
    if missing := [name for name in FIELDS if card.get(name) is None]:
        raise ValueError(f"Expected {result} to say {', '.join(missing)} but it does not.")
    content = saving.read_checkpoint(checkpoint)
    found = sha256_of({}, content["state_dict"])
    if found != card["weights"]:
        raise ValueError(f"Expected the weights {card['weights']} that were tested but {checkpoint} has {found}.")
    card["overrides"] = [option for option in card["overrides"] if not option.startswith("--data.root")]  # a path here
    name: str = card["protocol"]
    torch.save({kept: content[kept] for kept in KEPT}, folder / f"{name}.ckpt")
    (folder / f"{name}.json").write_text(json.dumps(card, indent=1) + "\n")
    module = MetaModule.load_from_checkpoint(folder / f"{name}.ckpt").eval()
    given = content["hyper_parameters"]["network"]["init_args"]
    sizes = {option: found.default for option, found in inspect.signature(type(module.network)).parameters.items()}
    save_file(predicted(module, random_images(**sizes | given)), tests / f"{name}.safetensors")
    return name


def random_images(ways: int, channels: int, image_size: int, **_: Any) -> dict[str, torch.Tensor]:
    """Support and query sets ``[2, ways, ...]`` of one image a class, as bytes."""
    size = 2, ways, channels, image_size, image_size
    generator = torch.Generator().manual_seed(0)
    support, query = (torch.randint(256, size, dtype=torch.uint8, generator=generator) for _ in range(2))
    return {"support": support, "query": query}


def predicted(module: MetaModule, images: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The images, and the ``predictions [2, ways, ways]`` after the steps of a test."""
    support, query = (images[name].float() / 255 for name in ("support", "query"))
    labels = torch.arange(support.shape[1]).expand(len(support), -1)
    algorithm = module.algorithm.with_steps(module.test_steps)
    found = adapt(module.network, algorithm, support, labels, loss="cross_entropy").predict(query)
    return {**images, "predictions": found}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ship", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("result", type=Path, help="reproduction.json, of `lightning-maml reproduce`")
    parser.add_argument("checkpoint", type=Path, help="the best one, which was tested")
    options = parser.parse_args()
    print(f"{ship(options.result, options.checkpoint)} ships with the package.")
