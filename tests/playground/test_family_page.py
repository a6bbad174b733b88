"""The family, as a person uses it."""

from __future__ import annotations

import pytest

from visits import Visit

LINES = "(lines) => lines.map((line) => [line.dataset.name, line.getAttribute('d')])"
NAMES = ["maml", "fomaml", "anil", "meta_sgd", "reptile", "imaml", "cavia", "maml_pp", "pretrained"]


def trained(visit: Visit) -> None:
    """Waits until all have taken their meta-updates."""
    visit.tab.wait_for_selector(".progress[data-done=true]", timeout=120_000)


def lines(visit: Visit, chart: int) -> list[list[str]]:
    return visit.tab.locator(".chart svg").nth(chart).locator("path.line").evaluate_all(LINES)


def test_the_family_learns_and_its_address_brings_it_back(visit: Visit) -> None:
    """What is shared is drawn again: the lines after each inner step, the numbers, and which lines there are."""
    visit.go("family?updates=60&seed=3")
    trained(visit)
    for name, (_, path) in zip(NAMES, lines(visit, 0), strict=True):
        heights = [float(point.partition(",")[2]) for point in path.lstrip("M").split("L")]
        assert name == "reptile" or heights[-1] > heights[0], name  # pixels grow downwards; Reptile needs more updates
    visit.slide("at", 10)
    after = visit.numbers()
    assert [*after] == [f"{name} after 10 steps" for name in NAMES]
    assert after["cavia after 10 steps"] < after["pretrained after 10 steps"]

    visit.tab.get_by_label("iMAML").click()
    visit.tab.get_by_label("ANIL").click()
    assert visit.state()["hidden"] == ["anil", "imaml"]
    shown, address = lines(visit, 1), visit.hash
    assert address == "family?seed=3&updates=60&at=10&hidden=anil,imaml"
    assert len(shown) == len(lines(visit, 0)) == 7
    visit.go(address)
    trained(visit)
    assert visit.numbers() == after
    assert lines(visit, 1) == shown
    assert not visit.tab.get_by_label("ANIL").is_checked()
    visit.tab.get_by_role("button", name="Reset").click()
    assert visit.hash == "family"
    assert visit.tab.get_by_label("ANIL").is_checked()


def test_seconds_are_each_algorithms_own(visit: Visit) -> None:
    visit.go("family?updates=24")
    trained(visit)
    cells = visit.tab.locator("tbody tr").evaluate_all("(rows) => rows.map((row) => row.cells[2].textContent)")
    speed = dict(zip(NAMES, map(float, cells), strict=True))
    assert speed["pretrained"] > speed["imaml"]
    by_updates = lines(visit, 0)
    visit.tab.locator("#control-axis").select_option("seconds")
    assert lines(visit, 0) != by_updates
    assert visit.tab.locator(".chart svg").first.locator(".label.x").text_content() == "seconds of its own training"
    ends = (
        visit.tab.locator(".chart svg")
        .first.locator("path.line")
        .evaluate_all("(lines) => lines.map((line) => line.getPointAtLength(line.getTotalLength()).x)")
    )
    assert ends.index(max(ends)) == NAMES.index("imaml")
    assert ends[NAMES.index("pretrained")] < max(ends) / 2


def test_a_keyboard_is_enough(visit: Visit) -> None:
    visit.go("family?updates=20")
    trained(visit)
    visit.tab.locator("#control-at").focus()
    visit.tab.keyboard.press("ArrowRight")
    assert visit.state()["at"] == 3
    visit.tab.get_by_label("MAML", exact=True).focus()
    visit.tab.keyboard.press("Space")
    visit.tab.keyboard.press("Tab")
    visit.tab.keyboard.press("Space")
    assert visit.state()["hidden"] == ["maml", "fomaml"]
    visit.tab.locator("#control-steps").focus()
    visit.tab.keyboard.press("ArrowLeft")
    assert visit.state()["steps"] == 1
    assert visit.numbers() == {}  # of other settings
    trained(visit)
    assert len(visit.numbers()) == len(NAMES)


def test_who_diverges_is_told_and_its_line_ends(visit: Visit) -> None:
    visit.go("family?updates=20&rate=0.1&at=10")
    trained(visit)
    notice = visit.tab.locator(".notice")
    assert "Reptile has diverged in training: by meta-update" in notice.inner_text()
    assert "pretrained diverges: after 10 inner steps" in notice.inner_text()
    assert visit.tab.locator("tbody tr", has_text="Reptile").locator("td").first.inner_text() == "not a number"
    assert "L" not in (dict(lines(visit, 1))["five"] or "")  # Reptile's
    visit.tab.get_by_label("pretrained").click()
    visit.tab.get_by_label("Reptile").click()
    assert notice.is_hidden()
    visit.slide("at", 0)
    visit.tab.get_by_label("pretrained").click()
    assert notice.is_hidden()
    visit.slide("at", 10)
    visit.tab.set_viewport_size({"width": 360, "height": 800})  # nothing is wider, words in a table included


@pytest.mark.parametrize("wrong", ["hidden=maml,gradient", "axis=days", "steps=0", "at=11", "updates=1e9"])
def test_an_address_that_says_nonsense_is_told(visit: Visit, wrong: str) -> None:
    visit.go(f"family?seed=1&{wrong}")
    visit.complains_of(wrong)
    assert visit.hash == "family?seed=1"


def test_copied_as_python_it_gives_the_same_numbers(visit: Visit) -> None:
    visit.go("family?updates=24&seed=1&steps=3&at=6")
    trained(visit)
    assert visit.program() == pytest.approx(visit.numbers(), rel=1e-3)


def test_training_pauses_and_goes_on(visit: Visit) -> None:
    visit.go("family?updates=20000")
    visit.tab.get_by_role("button", name="Pause").click()
    visit.tab.wait_for_timeout(1500)  # what was under way is said
    said = visit.tab.locator(".progress").inner_text()
    visit.tab.wait_for_timeout(500)
    assert visit.tab.locator(".progress").inner_text() == said
    visit.tab.get_by_role("button", name="Play").click()
    visit.tab.wait_for_selector(f".progress:not(:text-is('{said}'))")
