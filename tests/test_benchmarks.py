"""The benchmarks' gate, and what they say of what cannot run. No speed is tested."""

import json
import sys

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.contenders import batched
from benchmarks.measure import relative_error


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
    return main()


SMALL = ("--tasks", "1", "--inner-steps", "2", "--rounds", "2")


def test_the_gate_gives_a_wrong_contender_no_time(monkeypatch, tmp_path, capsys):
    right = batched.prepare

    def off(problem):
        run = right(problem)
        return lambda: [value + 0.01 * value.abs().max() for value in run()]

    monkeypatch.setattr(batched, "prepare", off)
    path = tmp_path / "rows.json"
    assert call(monkeypatch, *SMALL, "--contenders", "eager,batched", "--json", str(path)) == 1
    assert [row["contender"] for row in json.loads(path.read_text())] == ["eager"]
    assert "WRONG: batched" in capsys.readouterr().out


def test_a_missing_contender_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "higher", None)
    assert call(monkeypatch, *SMALL, "--contenders", "eager,higher") == 0
    assert "missing: higher: ModuleNotFoundError" in capsys.readouterr().out


def test_an_unknown_contender_is_refused(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        call(monkeypatch, "--contenders", "eagre")
    assert "but got eagre" in capsys.readouterr().err


def test_relative_error_by_hand():
    exact = [torch.tensor([4.0, 0.0]).double(), torch.tensor([1.0]).double()]
    assert relative_error([torch.tensor([4.0, 0.0]), torch.tensor([2.0])], exact) == 0.25
    assert relative_error([torch.tensor([4.0, 0.0])], exact) == float("inf")
    assert not relative_error([torch.tensor([4.0, float("nan")]), torch.tensor([1.0])], exact) <= 1
