"""Loss landscapes, as a person uses them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from visits import Visit

PATHS = "(lines) => lines.map((line) => line.getAttribute('d'))"
LINES = ".contours path, .line, .star"


def at_rest(visit: Visit) -> list[str]:
    visit.tab.wait_for_selector("svg[data-cells='120']")
    return visit.tab.locator(LINES).evaluate_all(PATHS)


def drag(visit: Visit, name: str, right: float, down: float) -> None:
    box: Any = visit.tab.locator(f"[data-handle='{name}'] .knob").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    visit.tab.mouse.move(x, y)
    visit.tab.mouse.down()
    visit.tab.mouse.move(x + right / 2, y + down / 2)
    visit.tab.mouse.move(x + right, y + down)
    visit.tab.mouse.up()


def test_inner_steps_move_the_minimum_away(visit: Visit) -> None:
    """Without them it lies at one task; with ten in between all of them, where the loss before them is higher."""
    visit.go("landscape?steps=0")
    before = visit.numbers()
    visit.slide("steps", 10)
    after = visit.numbers()
    assert after["minimum x"] > before["minimum x"] + 2
    assert after["mean after at the minimum"] < 0.1 * before["mean after at the minimum"]
    assert after["mean before at the minimum"] > before["mean before at the minimum"]


def test_dragging_and_the_address(visit: Visit) -> None:
    visit.go("landscape")
    first = at_rest(visit)
    drag(visit, "1", -120, -60)
    assert visit.state()["tasks"][1][0] < 2
    assert visit.state()["tasks"][1][1] > -1
    assert visit.state()["tasks"][0] == [-3, -1.5]
    drag(visit, "theta", 90, 130)
    assert visit.state()["theta"][0][0] > -3
    visit.slide("rate", 0.15)
    visit.slide("steps", 7)
    visit.tab.get_by_role("button", name="Add a task").click()
    assert visit.tab.get_by_role("button", name="Add a task").is_disabled()
    shown, address, lines = visit.numbers(), visit.hash, at_rest(visit)
    assert lines != first
    visit.go(address)
    assert visit.numbers() == shown
    assert at_rest(visit) == lines
    visit.tab.get_by_role("button", name="Reset").click()
    assert visit.hash == "landscape"
    assert at_rest(visit) == first


def test_contours_are_coarse_while_a_task_moves(visit: Visit) -> None:
    visit.go("landscape")
    box: Any = visit.tab.locator("[data-handle='0'] .knob").bounding_box()
    visit.tab.mouse.move(box["x"] + 8, box["y"] + 8)
    visit.tab.mouse.down()
    script = """() => new Promise((found) => {
      const svg = document.querySelector(".figures svg");
      new MutationObserver(() => found(svg.dataset.cells)).observe(svg, {attributeFilter: ["data-cells"]});
      document.querySelector("[data-handle='0']").dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowUp"}));
    })"""
    assert visit.tab.evaluate(script) == "60"
    visit.tab.mouse.up()
    at_rest(visit)


def test_a_keyboard_is_enough(visit: Visit) -> None:
    visit.go("landscape")
    handle = visit.tab.locator("[data-handle='0']")
    handle.focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowUp", "Shift+ArrowLeft"):
        visit.tab.keyboard.press(key)
    assert visit.state()["tasks"][0] == [-2.81, -1.4]
    assert "Task 1 at -2.81, -1.4" in str(handle.get_attribute("aria-label"))
    visit.tab.keyboard.press("Tab")
    visit.tab.keyboard.press("ArrowDown")
    assert visit.state()["tasks"][1] == [3, -1.1]


def test_steps_that_cannot_come_to_rest_are_told(visit: Visit) -> None:
    visit.go("landscape?rate=0.4")
    assert "The inner rate times the stiffness is 2.4, above 2" in visit.tab.locator(".notice").inner_text()
    visit.slide("rate", 0.33)
    assert visit.tab.locator(".notice").is_hidden()


@pytest.mark.parametrize("wrong", ["steps=21", "rate=0", "tasks=1,2", "tasks=9,9_1,1", "theta=1,1_2,2", "colour=red"])
def test_an_address_that_says_nonsense_is_told(visit: Visit, wrong: str) -> None:
    visit.go(f"landscape?{wrong}")
    visit.complains_of(wrong)
    assert visit.hash == "landscape"


@pytest.mark.parametrize("state", ["?steps=0&tasks=-2,1_1,-1", "?steps=9&rate=0.15&theta=3,1.5"])
def test_copied_as_python_it_gives_the_same_numbers(visit: Visit, state: str) -> None:
    visit.go(f"landscape{state}")
    assert visit.program() == pytest.approx(visit.numbers(), rel=1e-6, abs=1e-6)


def test_a_phone_has_room_for_it(visit: Visit) -> None:
    visit.tab.set_viewport_size({"width": 360, "height": 800})
    visit.go("landscape")
    drag(visit, "0", 20, -10)
    assert visit.state()["tasks"][0] != [-3, -1.5]


@pytest.mark.parametrize(
    "page, what, place", [("landscape", "[data-handle='0'] .knob", "tasks[0]"), ("curvature", ".chart svg", "theta")]
)
def test_a_finger_drags_and_does_not_scroll(built: Path, chromium: Any, page: str, what: str, place: str) -> None:
    context = chromium.new_context(viewport={"width": 360, "height": 600}, has_touch=True, is_mobile=True)
    tab = context.new_page()
    tab.goto((built / "playground.html").as_uri() + f"#{page}")
    tab.wait_for_selector(what)
    box: Any = tab.locator(what).first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    before, session = tab.evaluate(f"playground.state().{place}"), context.new_cdp_session(tab)
    up = 3 if page == "landscape" else 0.2  # there one drags up, too
    moves = [{"x": x + step, "y": y - up * step} for step in range(2, 42, 2)]
    session.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
    for move in moves:
        session.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [move]})
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    after = tab.evaluate(f"playground.state().{place}")
    if page == "landscape":
        assert after[0] > before[0] + 1
        assert after[1] > before[1] + 2
    else:
        assert 0.35 < after < 0.55  # from the middle of the picture, at -0.4, by 40 of its 48 pixels a unit
    assert tab.evaluate("scrollY") == 0
    context.close()
