"""``lightning-maml report RUN``: a page about a run."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_maml.cli.origin import origin
from lightning_maml.report import read_run, write_report
from lightning_maml.saving import allowing
from lightning_maml.saving.configuration import named_in


def main(args: Sequence[str] | None = None, allowed: Sequence[str] = ()) -> Path:
    """Writes ``report.html`` into the folder of a run, says where it is and returns that."""
    parser = argparse.ArgumentParser("lightning-maml report", description="Write report.html, a page about a run.")
    run = "its folder, such as runs/sinusoid/version_0, or a checkpoint in it; its configuration names what is run"
    parser.add_argument("run", metavar="RUN", help=run)
    parser.add_argument("--baseline", metavar="RUN", help="the folder of a run to compare with")
    options = parser.parse_args(args)
    with allowing([*allowed, *named_in([read_run(options.run).configuration])]):
        return write(options.run, baseline=options.baseline)


def write(run: str | Path, **options: Any) -> Path:
    """:func:`~lightning_maml.report.write_report`, which says where the page is."""
    path = write_report(run, made_by=origin(), **options)
    print(f"Page: {path}")
    return path
