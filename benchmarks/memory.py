"""Peak memory of one Conv4 meta-gradient at 5 and at 50 inner steps, unrolled and with ``checkpoint="step"``.

    python -m benchmarks.memory [--json FILE]

8 tasks, 5-way 1-shot; each measurement in a process of its own, above what the imports take.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from benchmarks.about import about


def peak_mb(steps: int, checkpoint: bool) -> float:
    """Resident megabytes."""
    code = f"""
import resource, torch
from benchmarks.workloads.omniglot_5w1s import build
from lightning_maml import Batched, maml, meta_loss
torch.manual_seed(0)
network, tasks, loss, _ = build(8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
engine = Batched(checkpoint={"step" if checkpoint else None!r})
meta_loss(network, maml(0.1, {steps}), tasks, loss=loss, engine=engine).surrogate.backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = {}
    for checkpoint in (True, False):
        for steps in (5, 50):
            name = f"{'checkpoint' if checkpoint else 'unrolled'}, {steps} steps"
            rows[name] = {"peak_mb": peak_mb(steps, checkpoint)}
            print(f"{name:24}{rows[name]['peak_mb']:8.0f} MB", flush=True)
    if options.json:
        options.json.write_text(json.dumps({"benchmark": "memory", **about(), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
