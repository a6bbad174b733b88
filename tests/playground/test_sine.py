"""Fit a sine, as a person uses it."""

from __future__ import annotations

import pytest

from visits import Visit

PATHS = "(lines) => lines.map((line) => line.getAttribute('d'))"


def test_maml_wins_before_ones_eyes(visit: Visit) -> None:
    visit.go("sine?updates=1500&seed=3")
    visit.tab.wait_for_selector(".progress[data-done=true]", timeout=60_000)
    numbers = visit.numbers()
    assert numbers["maml over the wave"] < 0.5 * numbers["pretrained over the wave"]


def test_points_steps_and_the_address(visit: Visit) -> None:
    """Points are put down and taken away, sliders move, and the address brings the same picture back."""
    visit.go("sine?updates=100")
    visit.tab.wait_for_selector(".progress[data-done=true]")
    chart = visit.tab.locator(".chart svg").first
    before = visit.numbers()
    chart.click(position={"x": 400, "y": 120})
    assert len(visit.state()["points"]) == 6
    assert visit.numbers() != before
    put = visit.state()["points"][-1]
    chart.click(position={"x": 400, "y": 120})
    assert put not in visit.state()["points"]
    chart.click(position={"x": 500, "y": 200})
    visit.slide("steps", 9)
    visit.slide("amplitude", 4.5)
    visit.slide("phase", 2)
    visit.slide("rate", 0.02)
    shown, address, lines = visit.numbers(), visit.hash, chart.locator(".line.wave, .line.one").evaluate_all(PATHS)
    visit.go(address)
    visit.tab.wait_for_selector(".progress[data-done=true]")
    assert visit.numbers() == shown
    assert chart.locator(".line.wave, .line.one").evaluate_all(PATHS) == lines
    visit.tab.get_by_role("button", name="Reset").click()
    assert visit.hash == "sine"


def test_a_keyboard_is_enough(visit: Visit) -> None:
    visit.go("sine?updates=100")
    visit.tab.locator(".chart svg").first.focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowUp", "Enter"):
        visit.tab.keyboard.press(key)
    assert visit.state()["points"][-1] == [0.5, 0.25]
    visit.tab.keyboard.press("Delete")
    assert [0.5, 0.25] not in visit.state()["points"]
    visit.tab.locator("#control-steps").focus()
    visit.tab.keyboard.press("ArrowRight")
    assert visit.state()["steps"] == 6


def test_a_task_that_diverges_is_told(visit: Visit) -> None:
    visit.go("sine?updates=100&rate=0.2&amplitude=5&steps=20")
    visit.tab.wait_for_selector(".progress[data-done=true]")
    assert "diverges: after step" in visit.tab.locator(".notice").inner_text()
    visit.slide("rate", 0.01)
    assert visit.tab.locator(".notice").is_hidden()


@pytest.mark.parametrize("wrong", ["steps=abc", "steps=1e9", "seed=-1", "rate=NaN", "points=1,2_x,3", "colour=red"])
def test_an_address_that_says_nonsense_is_told(visit: Visit, wrong: str) -> None:
    visit.go(f"sine?updates=100&{wrong}")
    visit.complains_of(wrong)
    assert visit.hash == "sine?updates=100"


def test_copied_as_python_it_gives_the_same_numbers(visit: Visit) -> None:
    visit.go("sine?updates=300&seed=1&steps=3&points=-2,1_0.5,2.25_3,-1")
    visit.tab.wait_for_selector(".progress[data-done=true]")
    assert visit.program() == pytest.approx(visit.numbers(), rel=1e-4)


def test_training_pauses_and_goes_on(visit: Visit) -> None:
    visit.go("sine?updates=30000")
    visit.tab.wait_for_selector(".progress:not(:empty)")
    visit.tab.get_by_role("button", name="Pause").click()
    visit.tab.wait_for_timeout(300)
    said = visit.tab.locator(".progress").inner_text()
    visit.tab.wait_for_timeout(300)
    assert visit.tab.locator(".progress").inner_text() == said
    visit.tab.get_by_role("button", name="One update").click()
    after = int(said.split()[0].replace(",", "")) + 1
    visit.tab.wait_for_selector(f".progress:has-text('{after:,} of')")
    visit.tab.get_by_role("button", name="Play").click()
    visit.tab.wait_for_selector(f".progress:not(:text-is('{said}'))")
