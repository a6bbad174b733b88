"""Curvature, as a person uses it."""

from __future__ import annotations

import pytest

from visits import Visit

PATHS = "(shapes) => shapes.map((shape) => shape.getAttribute('d') ?? shape.getAttribute('x'))"
SHAPES = ".line, .uphill"


def test_fomaml_points_uphill_where_steps_overshoot(visit: Visit) -> None:
    visit.go("curvature")
    numbers = visit.numbers()
    assert numbers["FOMAML's slope"] * numbers["MAML's slope"] < 0
    assert numbers["dphi/dtheta 1"] == pytest.approx(1 - 0.3 * numbers["curvature 0"])
    assert "FOMAML points uphill here" in visit.tab.locator("[role=status]").last.inner_text()
    assert visit.tab.locator(".uphill").count() == 1
    visit.slide("rate", 0.05)
    assert "FOMAML points downhill here" in visit.tab.locator("[role=status]").last.inner_text()
    assert visit.tab.locator(".uphill").count() == 0
    visit.slide("steps", 0)
    numbers = visit.numbers()
    assert numbers["FOMAML's slope"] == numbers["MAML's slope"]


def test_mamls_slope_is_that_of_the_curve(visit: Visit) -> None:
    """A difference of the loss on both sides, as a reader measures it in the picture."""
    visit.go("curvature?steps=3&stiffness=6&theta=0.9")
    slope = visit.numbers()["MAML's slope"]
    either = []
    for theta in (0.89, 0.91):
        visit.slide("theta", theta)
        either.append(visit.numbers()["meta-loss"])
    assert (either[1] - either[0]) / 0.02 == pytest.approx(slope, rel=1e-2)


def test_dragging_and_the_address(visit: Visit) -> None:
    visit.go("curvature")
    first = visit.tab.locator(SHAPES).evaluate_all(PATHS)
    chart = visit.tab.locator(".chart svg").first
    box = chart.bounding_box()
    visit.tab.mouse.move(box["x"] + 200, box["y"] + 100)
    visit.tab.mouse.down()
    visit.tab.mouse.move(box["x"] + 250, box["y"] + 90)
    visit.tab.mouse.up()
    visit.tab.mouse.move(box["x"] + 400, box["y"] + 90)
    assert -2 < visit.state()["theta"] < -1
    for name, value in (("steps", 6), ("rate", 0.25), ("stiffness", 10.5)):
        visit.slide(name, value)
    shown, address, lines = visit.numbers(), visit.hash, visit.tab.locator(SHAPES).evaluate_all(PATHS)
    assert lines != first
    visit.go(address)
    assert visit.numbers() == shown
    assert visit.tab.locator(SHAPES).evaluate_all(PATHS) == lines
    visit.tab.get_by_role("button", name="Reset").click()
    assert visit.hash == "curvature"
    assert visit.tab.locator(SHAPES).evaluate_all(PATHS) == first


def test_a_keyboard_is_enough(visit: Visit) -> None:
    visit.go("curvature")
    visit.tab.locator(".chart svg").last.focus()
    for key in ("ArrowRight", "ArrowRight", "Shift+ArrowLeft"):
        visit.tab.keyboard.press(key)
    assert visit.state()["theta"] == 0.44
    visit.tab.locator("#control-stiffness").focus()
    visit.tab.keyboard.press("ArrowRight")
    assert visit.state()["stiffness"] == 6.6


def test_an_address_that_says_nonsense_is_told(visit: Visit) -> None:
    visit.go("curvature?theta=3&steps=1.5")
    notice = visit.tab.locator(".notice").inner_text()
    assert 'Expected "theta" to be a number from -2.5 to 2.5 but got "3".' in notice
    assert 'Expected "steps" to be a whole number from 0 to 20 but got "1.5".' in notice
    assert visit.hash == "curvature"


def test_an_address_may_be_wrong_and_steps_jump_about(visit: Visit) -> None:
    """Both are told, and the first no longer once something moves."""
    visit.go("curvature?theta=3&stiffness=12")
    notice = visit.tab.locator(".notice")
    assert notice.inner_text().startswith('Expected "theta"')
    assert "The inner rate times the stiffness is 3.6, above 2" in notice.inner_text()
    visit.slide("stiffness", 11)
    assert notice.inner_text().startswith("The inner rate times the stiffness is 3.3, above 2")
    visit.slide("stiffness", 5)
    assert notice.is_hidden()


@pytest.mark.parametrize("state", ["?steps=4&stiffness=5&theta=-1.7&rate=0.45"])
def test_copied_as_python_it_gives_the_same_numbers(visit: Visit, state: str) -> None:
    visit.go(f"curvature{state}")
    assert visit.program() == pytest.approx(visit.numbers(), rel=1e-6, abs=1e-9)
