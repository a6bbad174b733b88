"""Directions, as a person uses them."""

from __future__ import annotations

import pytest

from visits import Visit

ALGORITHMS = ["maml", "fomaml", "reptile", "imaml", "anil", "pretrained"]
PATHS = "(lines) => lines.map((line) => line.getAttribute('d'))"


def at_rest(visit: Visit) -> list[str]:
    visit.tab.wait_for_selector("svg[data-cells='120']")
    return visit.tab.locator(".contours path, .line, .star").evaluate_all(PATHS)


def test_maml_ends_lowest_and_the_others_elsewhere(visit: Visit) -> None:
    visit.go("directions")
    numbers = visit.numbers()
    ends = [numbers[f"{name} end"] for name in ALGORITHMS]
    assert min(ends) == ends[0]
    assert len({round(end, 3) for end in ends}) == len(ends)


def test_without_inner_steps_those_that_adapt_by_them_agree(visit: Visit) -> None:
    visit.go("directions?steps=0")
    numbers = visit.numbers()
    for name in ("fomaml", "anil", "pretrained"):
        assert numbers[f"{name} x"] == pytest.approx(numbers["maml x"])
        assert numbers[f"{name} end"] == pytest.approx(numbers["maml end"])
    assert (numbers["reptile x"], numbers["reptile y"]) == (0, 0)
    assert visit.tab.get_by_role("row", name="Reptile").inner_text().split() == ["Reptile", "stays", "5.07"]


def test_dragging_and_the_address(visit: Visit) -> None:
    visit.go("directions")
    first = at_rest(visit)
    box = visit.tab.locator("[data-handle='theta'] .knob").bounding_box()
    visit.tab.mouse.move(box["x"] + 8, box["y"] + 8)
    visit.tab.mouse.down()
    visit.tab.mouse.move(box["x"] + 150, box["y"] + 40)
    visit.tab.mouse.up()
    assert visit.state()["theta"][0][0] > -2.5
    for name, value in (("steps", 8), ("rate", 0.15), ("proximal", 4.5), ("outer", 0.1)):
        visit.slide(name, value)
    visit.tab.locator("#control-length").select_option("true")
    shown, address, lines = visit.numbers(), visit.hash, at_rest(visit)
    assert lines != first
    visit.go(address)
    assert visit.numbers() == shown
    assert at_rest(visit) == lines
    visit.tab.get_by_role("button", name="Reset").click()
    assert visit.hash == "directions"
    assert at_rest(visit) == first


def test_a_keyboard_is_enough(visit: Visit) -> None:
    visit.go("directions")
    visit.tab.locator("[data-handle='theta']").focus()
    for key in ("ArrowRight", "ArrowUp", "Shift+ArrowDown"):
        visit.tab.keyboard.press(key)
    assert visit.state()["theta"] == [[-3.4, 2.09]]
    visit.tab.locator("#control-proximal").focus()
    visit.tab.keyboard.press("ArrowRight")
    assert visit.state()["proximal"] == 2.1


def test_a_direction_that_points_uphill_is_told(visit: Visit) -> None:
    """Where steps overshoot, the gradient after them points to the other side."""
    visit.go("directions")
    assert visit.tab.locator(".notice").is_hidden()
    visit.go("directions?steps=1&rate=0.5&tasks=-1,-1_-1,-1&theta=-0.5,-0.75")
    assert visit.numbers()["fomaml slope"] > 0
    assert "uphill on the meta-loss: FOMAML" in visit.tab.locator(".notice").inner_text()
    visit.slide("rate", 0.05)
    assert visit.tab.locator(".notice").is_hidden()


def test_an_address_that_says_nonsense_is_told(visit: Visit) -> None:
    visit.go("directions?proximal=1&length=long")
    notice = visit.tab.locator(".notice").inner_text()
    assert 'Expected "proximal" to be a number from 2 to 10 but got "1".' in notice
    assert 'Expected "length" to be one of normalised, true but got "long".' in notice
    assert visit.hash == "directions"


@pytest.mark.parametrize("state", ["?steps=3&theta=2,1.5&proximal=3&tasks=-2,-1_1,2"])
def test_copied_as_python_it_gives_the_same_numbers(visit: Visit, state: str) -> None:
    visit.go(f"directions{state}")
    assert visit.program() == pytest.approx(visit.numbers(), rel=1e-6, abs=1e-6)
