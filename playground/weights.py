"""Writes ``src/built/navigation.json``: two policies for the page "Navigation", and the numbers of their environment.

The meta-trained policy ships with the package; the other one is as it is drawn, before any training. Parameters are in
the order of ``named_parameters``, in single precision, as base64.
"""

import base64
import json
from pathlib import Path

import torch

from lightning_maml import from_pretrained
from lightning_maml.rl import GaussianPolicy, MetaRLModule, Navigation2D

BUILT = Path(__file__).parent / "src" / "built"
SEED = 0  # of the policy without training


def main() -> None:
    """Raises SystemExit where the shipped policy is not of the kind that the page computes."""
    module = from_pretrained("rl_navigation")
    if not isinstance(module, MetaRLModule) or not isinstance(module.environment, Navigation2D):
        raise SystemExit(f"playground: expected a policy of Navigation2D but got {type(module).__name__}.")
    trained, environment, advantages = module.policy, module.environment, module.objective.advantages
    torch.manual_seed(SEED)
    untrained = GaussianPolicy(2, 2)
    described = (
        str(trained),
        module.objective.estimator,
        advantages.gae_lambda,
        advantages.baseline,
        advantages.normalize,
    )
    if described != (str(untrained), "lvc", 1.0, True, True):
        raise SystemExit(
            f"playground: expected a GaussianPolicy(2, 2) and the advantages of its page but got {described}."
        )
    shapes = [parameter.shape for name, parameter in trained.named_parameters() if name.endswith("weight")]
    numbers = {
        "widths": [shapes[0][1], *(shape[0] for shape in shapes)],
        "horizon": environment.horizon,
        "spread": environment.spread,
        "discount": advantages.discount,
        "rates": module.test_rates,
        "seed": SEED,
        "trained": encoded(trained),
        "untrained": encoded(untrained),
    }
    BUILT.mkdir(parents=True, exist_ok=True)
    (BUILT / "navigation.json").write_text(json.dumps(numbers))


def encoded(policy: torch.nn.Module) -> str:
    """All parameters as base64 of little-endian single precision."""
    flat = torch.nn.utils.parameters_to_vector(policy.parameters()).detach()
    return base64.b64encode(flat.numpy().astype("<f4").tobytes()).decode()


if __name__ == "__main__":
    main()
