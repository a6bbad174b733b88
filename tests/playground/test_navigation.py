"""Navigation: trajectories, advantages and inner steps against the library's, and the page as a person uses it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import lightning_maml as lm
from lightning_maml.rl import Collector, GaussianPolicy, MetaRLModule, Navigation2D
from visits import Visit

PATHS = "(lines) => lines.map((line) => line.getAttribute('d'))"
BOTH = ("trained", "untrained")
# rollouts of a policy before inner steps, and the parameters after each
ADAPT = """([name, goal, seed, count, rates]) => {
  const { PolicyAdaptation, POLICIES, Random, advantages } = playground.numerics;
  const adaptation = new PolicyAdaptation(POLICIES[name], goal, new Random(seed, 3), count, rates);
  return [...rates, null].map((_, step) => {
    const { policy, ways } = adaptation.after(step);
    return {theta: Array.from(policy.theta), ways, advantages: advantages(ways)};
  });
}"""


@pytest.fixture(scope="module")
def page(built: Any, chromium: Any) -> Any:
    tab = chromium.new_page()
    tab.goto((built / "playground.html").as_uri() + "#navigation")
    tab.wait_for_selector("html[data-page=navigation]")
    yield tab
    tab.close()


class GivenNoise(GaussianPolicy):
    """Takes its noise from the page."""

    noise: Any

    def sample(self, outputs: Tensor) -> Tensor:
        mean, log_std = outputs.chunk(2, -1)
        return mean + log_std.exp() * next(self.noise)


def padded(rows: list[list[float]], length: int) -> Tensor:
    """Rows of different lengths with zeros behind them, ``[N, length]``."""
    return torch.tensor([row + [0.0] * (length - len(row)) for row in rows], dtype=torch.float64)


def module_of(name: str, rates: list[float], count: int) -> MetaRLModule:
    torch.manual_seed(0)
    policy = GivenNoise(2, 2)
    if name == "trained":
        policy.load_state_dict(lm.from_pretrained("rl_navigation").policy.state_dict())
    settings: dict[str, Any] = {"test_steps": len(rates), "test_rates": rates, "test_trajectories": count}
    return MetaRLModule(policy, lm.maml(lr=0.1, steps=1), Navigation2D(), **settings).double()


# with the first goal trajectories end early; the last is out of the goals of training
@pytest.mark.parametrize("goal, seed, count", [([0.05, -0.02], 0, 20), ([0.3, 0.4], 7, 5), ([-0.75, 0.6], 3, 8)])
@pytest.mark.parametrize("name", BOTH)
def test_ways_advantages_and_steps_are_the_librarys(
    page: Any, name: str, goal: list[float], seed: int, count: int
) -> None:
    rates = [0.1, 0.05]
    found = page.evaluate(ADAPT, [name, goal, seed, count, rates])
    module = module_of(name, rates, count)
    # what is behind the end of a trajectory is masked, whatever its noise
    noise = [padded([way["noise"] for way in step["ways"]], 200).view(count, 100, 2) for step in found]
    module.policy.noise = iter(torch.stack(noise).transpose(1, 2).flatten(0, 1))
    collect = Collector(module.environment, module.policy, torch.tensor([goal], dtype=torch.float64), count)
    for ours, (phi, rollouts) in zip(found, module.objective.adapt(collect, 1, 2, rates), strict=True):
        theta = torch.cat([value.flatten() for value in phi.values()])
        torch.testing.assert_close(torch.tensor(ours["theta"], dtype=torch.float64), theta, rtol=1e-9, atol=1e-9)
        for part, expected in {"x": rollouts.observations[0, :, :, 0], "y": rollouts.observations[0, :, :, 1]}.items():
            mine = padded([way[part][:-1] for way in ours["ways"]], 100)
            torch.testing.assert_close(mine, expected * rollouts.mask[0], rtol=1e-9, atol=1e-9)
        rewards = padded([way["rewards"] for way in ours["ways"]], 100)
        torch.testing.assert_close(rewards, rollouts.rewards[0], rtol=1e-9, atol=1e-9)
        mine = padded(ours["advantages"], 100)
        torch.testing.assert_close(mine, rollouts.advantages[0] * rollouts.mask[0], rtol=1e-7, atol=1e-7)
    ends = [len(way["rewards"]) for step in found for way in step["ways"]]
    assert (min(ends) < 100) == (goal[0] == 0.05)  # so that ends are tested, too


def test_normal_numbers_are_numpys(page: Any) -> None:
    scope: dict[str, Any] = {}
    exec(page.evaluate("() => playground.numerics.PYTHON"), scope)
    script = "() => [0, 1, 5, 48000].map((i) => new playground.numerics.Random(7, 3).normal(i))"
    found = page.evaluate(script)
    assert found == pytest.approx(scope["normal"](7, 3, [0, 1, 5, 48_000]).tolist(), abs=1e-12)


def test_the_trained_policy_is_there_after_one_step(visit: Visit) -> None:
    visit.go("navigation")
    numbers = visit.numbers()
    assert numbers["trained return_step_0"] < 4 * numbers["trained return_step_1"]
    assert numbers["untrained return_step_1"] < 0.5 * numbers["untrained return_step_0"]  # both are negative
    rows = visit.tab.locator("tbody tr").all_inner_texts()
    assert len(rows) == 6
    assert f"{numbers['trained return_step_1']:.3g}" in rows[1]


def test_a_goal_is_clicked_dragged_and_shared(visit: Visit) -> None:
    visit.go("navigation?trajectories=5")
    left, right = (visit.tab.locator(".chart svg").nth(i) for i in (0, 1))
    before, ways = visit.numbers(), left.locator(".way").evaluate_all(PATHS)
    left.click(position={"x": 120, "y": 300})
    clicked, address = visit.state(), visit.hash
    assert clicked["goalX"] < 0 > clicked["goalY"]
    assert visit.numbers()["trained return_step_1"] != before["trained return_step_1"]
    assert left.locator(".way").evaluate_all(PATHS) != ways
    star = right.locator(".goal").bounding_box()
    x, y = star["x"] + star["width"] / 2, star["y"] + star["height"] / 2
    visit.tab.mouse.move(x, y)
    visit.tab.mouse.down()
    visit.tab.mouse.move(x + 60, y - 20)
    visit.tab.mouse.move(x + 90, y - 90)
    assert visit.state()["goalX"] > clicked["goalX"]
    assert visit.hash == address  # while it moves
    visit.tab.mouse.up()
    assert visit.hash != address
    assert visit.state()["goalY"] > clicked["goalY"]
    visit.tab.mouse.move(x, y)
    visit.slide("steps", 3)
    visit.slide("rate", 0.08)
    visit.slide("trajectories", 7)
    shown, address = visit.numbers(), visit.hash
    ways = [chart.locator(".way").evaluate_all(PATHS) for chart in (left, right)]
    visit.go(address)
    assert visit.numbers() == shown
    assert [chart.locator(".way").evaluate_all(PATHS) for chart in (left, right)] == ways
    visit.tab.get_by_role("button", name="Reset").click()
    assert visit.hash == "navigation"


def test_a_goal_stays_within_its_limits(visit: Visit) -> None:
    visit.go("navigation?trajectories=5&goalX=0.7")
    chart = visit.tab.locator(".chart svg").first
    chart.focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "Shift+ArrowUp"):
        visit.tab.keyboard.press(key)
    assert (visit.state()["goalX"], visit.state()["goalY"]) == (0.75, 0.36)
    chart.click(position={"x": 5, "y": 5})  # beside the axes
    assert visit.state()["goalY"] == 0.36


def test_a_keyboard_is_enough(visit: Visit) -> None:
    visit.go("navigation?trajectories=5")
    visit.tab.locator("#control-steps").focus()
    visit.tab.keyboard.press("ArrowRight")
    assert visit.state()["steps"] == 2
    assert visit.tab.locator("tr:has(.chosen)").inner_text().startswith("2 steps")
    visit.tab.keyboard.press("Tab")
    visit.tab.keyboard.press("Enter")
    visit.tab.wait_for_selector("button:text-is('Pause')")
    visit.tab.keyboard.press("Enter")
    visit.tab.wait_for_selector("button:text-is('Play')")


def test_walkers_walk_to_the_end(visit: Visit) -> None:
    visit.go("navigation?trajectories=5")
    walkers = visit.tab.locator(".chart svg").first.locator("[data-name=walkers] circle")
    places = "(circles) => circles.map((one) => one.getAttribute('cx') + ' ' + one.getAttribute('cy'))"
    ends = walkers.evaluate_all(places)
    visit.tab.get_by_role("button", name="Play").click()
    visit.tab.wait_for_selector("p:text-matches('time step [1-9]\\d? of 100')")
    visit.tab.get_by_role("button", name="Pause").click()
    assert walkers.evaluate_all(places) != ends
    visit.tab.get_by_role("button", name="Play").click()
    visit.tab.wait_for_selector("p:text-is('time step 100 of 100')")
    assert walkers.evaluate_all(places) == ends


def test_nothing_moves_of_itself_where_that_is_asked_for(visit: Visit) -> None:
    visit.tab.emulate_media(reduced_motion="reduce")
    visit.go("navigation?trajectories=5")
    walk = visit.tab.get_by_role("button", name="ten time steps")
    walk.click()
    walk.click()
    visit.tab.wait_for_timeout(300)
    assert visit.tab.locator("p:text-is('time step 10 of 100')").is_visible()


def test_steps_that_are_too_long_are_told(visit: Visit) -> None:
    visit.go("navigation?rate=0.5")
    assert "meta-trained policy overshoots: after 1 step" in visit.tab.locator(".notice").inner_text()
    visit.slide("rate", 0.1)
    assert visit.tab.locator(".notice").is_hidden()


@pytest.mark.parametrize("wrong", ["steps=6", "goalX=0.8", "trajectories=4", "rate=0", "seed=x", "speed=1"])
def test_an_address_that_says_nonsense_is_told(visit: Visit, wrong: str) -> None:
    visit.go(f"navigation?trajectories=5&{wrong}" if "trajectories" not in wrong else f"navigation?{wrong}")
    visit.complains_of(wrong)


def test_copied_as_python_it_gives_the_same_numbers(visit: Visit) -> None:
    visit.go("navigation?seed=2&goalX=-0.12&goalY=0.31&trajectories=11&rate=0.12")
    assert visit.program() == pytest.approx(visit.numbers(), abs=1e-6)


def test_a_finger_drags_the_goal_and_scrolls_beside_it(built: Any, chromium: Any) -> None:
    context = chromium.new_context(viewport={"width": 360, "height": 700}, has_touch=True, is_mobile=True)
    tab = context.new_page()
    tab.goto((built / "playground.html").as_uri() + "#navigation?trajectories=5")
    tab.wait_for_selector(".goal")
    fingers = context.new_cdp_session(tab)

    def drag(box: dict[str, float]) -> None:
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        for kind, far in [("touchStart", 0), *(("touchMove", 6 * move) for move in range(1, 11))]:
            fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x - far, "y": y - far}]})
            tab.wait_for_timeout(20)
        fingers.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

    drag(tab.locator(".goal").first.bounding_box())
    x, y = tab.evaluate("[playground.state().goalX, playground.state().goalY]")
    assert x < 0.1
    assert y > 0.6
    assert tab.evaluate("scrollY") == 0
    drag(tab.locator(".chart svg").first.bounding_box())
    tab.evaluate("new Promise((done) => setTimeout(done, 200))")
    assert tab.evaluate("[playground.state().goalX, playground.state().goalY]") == [x, y]
    assert tab.evaluate("scrollY") > 0
    context.close()
