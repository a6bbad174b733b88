"""A page about a run: what it learned and how well, in pictures; one file that asks no other for anything."""

from lightning_maml.report.figures import LogFigures
from lightning_maml.report.report import write_report
from lightning_maml.report.run import Run, read_run

__all__ = ["LogFigures", "Run", "read_run", "write_report"]
