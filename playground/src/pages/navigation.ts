/** Navigation: a policy adapts to the goal that is put down, from its own trajectories there. */

import { PolicyAdaptation, HORIZON, MOST_TRAJECTORIES, POLICIES, RATES, SPREAD, UNTRAINED_SEED, meanReturn } from "../numerics/navigation";
import { PYTHON, Random, Stream } from "../numerics/random";
import { element, type Frame, type Opened, type Page } from "../page";
import { number, whole, type Point, type State } from "../state";
import { Table, button, field, shown, slider } from "../views/controls";
import { Chart } from "../views/chart";
import { Field } from "../views/field";

const MOST_STEPS = 5;
const STEPS = Array.from({ length: MOST_STEPS + 1 }, (_, step) => step);
const DRAWN = 10; // of each policy's trajectories: more hide each other
const LIMITS: Point = [-0.75, 0.75]; // of goals
const PLANE: Point = [-0.9, 0.9];
const SECONDS = 4; // of a walk
const COMPARED = [
  { name: "trained", title: "meta-trained", className: "one" },
  { name: "untrained", title: "untrained", className: "two" },
] as const;

const schema = {
  seed: whole(0, 0, 999999),
  goalX: number(0.3, ...LIMITS),
  goalY: number(0.4, ...LIMITS),
  steps: whole(1, 0, MOST_STEPS),
  trajectories: whole(20, 5, MOST_TRAJECTORIES),
  rate: number(RATES[0]!, 0.01, 0.5),
};
type Values = State<typeof schema>["values"];

/** The rate of each inner step: the test of `rl_navigation` halves it after the first one. */
const ratesOf = ({ rate }: Values) => Array.from({ length: MOST_STEPS }, (_, step) => (step ? rate / 2 : rate));

function open(frame: Frame, state: State<typeof schema>): Opened {
  let paths: PolicyAdaptation[] = [], adaptedTo = "", later = 0, walking = 0, time = HORIZON, isTold = false;
  const isStill = matchMedia("(prefers-reduced-motion: reduce)").matches;

  const pair = element("div", { class: "pair fields" });
  frame.figures.append(pair);
  const titles = COMPARED.map(() => new Text());
  const fields = COMPARED.map(({ name, title, className }, i) => {
    const place = element("div", {}, element("p", { class: "legend" }, element("span", { class: className }, title), titles[i]!));
    pair.append(place);
    const label = `The goal, and trajectories of the ${title} policy before and after the inner steps`;
    return new Field(place, { label, name, limits: LIMITS, plane: PLANE, square: SPREAD }, (chart) => {
      if (!paths[i]) return;
      for (const [when, step, faint, last] of [["before", 0, "faint", HORIZON], ["after", state.values.steps, "", time]] as const) {
        const ways = paths[i].after(step).ways.slice(0, DRAWN);
        chart.line(when, ways.flatMap(({ x, y }) => [...x.slice(0, last + 1).map((one, t): Point => [one, y[t]!]), [NaN, NaN] as Point]), `${className} way ${faint}`);
        if (when === "after") chart.dots("walkers", ways.map(({ x, y }): Point => [x[last] ?? x.at(-1)!, y[last] ?? y.at(-1)!]), className, 3.5);
      }
    }, put, () => keep());
  });
  frame.figures.append(element("p", { class: "legend" },
    `${DRAWN} trajectories of each at most; faint: before the first step; a dot: where one ends; dotted: where the goals of training lay.`));
  const below = element("div", { class: "pair" }), beside = element("div");
  frame.figures.append(below);
  const returns = new Chart(
    below,
    { label: "Mean return after each inner step", x: [0, MOST_STEPS], y: [-100, 0], xLabel: "inner steps", yLabel: "mean return", ratio: 0.7 },
    (chart) => {
      for (const [i, { className }] of COMPARED.entries()) {
        const points = returnsOf(i).map((one, step): Point => [step, one]);
        chart.line(className, points, className);
        chart.dots(`at-${className}`, points.filter(([step]) => step === state.values.steps), className);
      }
    },
  );
  below.append(beside);
  const table = new Table(beside, "Mean return", COMPARED.map(({ title }) => title));
  beside.append(element("p", { class: "hint" },
    `A return is minus the distance to the goal, summed over the time steps until a trajectory is at the goal, ${HORIZON} at most.`));

  slider(frame.controls, state, "steps", "Inner steps", [0, MOST_STEPS, 1]);
  const walk = button(frame.controls, "", () => {
    if (isStill) show(time < HORIZON ? time + 10 : 0);
    else if (walking) stop();
    else start(time < HORIZON ? time : 0);
  });
  const said = element("p", { class: "hint" });
  frame.controls.append(said);
  slider(frame.controls, state, "trajectories", "Trajectories for each step", [5, MOST_TRAJECTORIES, 1]);
  slider(frame.controls, state, "rate", "Inner rate, half of it after a step", [0.01, 0.5, 0.01]);
  field(frame.controls, state, "seed", "Seed of the trajectories");
  frame.controls.append(element("p", { class: "hint" }, "Click a place in a field to put the goal there, or drag the star. With the keyboard: arrows, by smaller steps with Shift."));

  /** The mean returns after the inner steps that have been taken. */
  function returnsOf(i: number): number[] {
    const path = paths[i];
    return path ? STEPS.slice(0, path.reached + 1).map((step) => meanReturn(path.after(step).ways)) : [];
  }

  /** Takes the steps that are looked at now, and the others when there is time. */
  function adapt(): void {
    const { seed, goalX, goalY, steps, trajectories } = state.values, rates = ratesOf(state.values);
    const key = [seed, goalX, goalY, trajectories, rates].join();
    if (key !== adaptedTo) paths = COMPARED.map(({ name }) => new PolicyAdaptation(POLICIES[name], [goalX, goalY], new Random(seed, Stream.shown), trajectories, rates));
    adaptedTo = key;
    for (const path of paths) path.after(steps);
    for (const one of fields) one.goal = [goalX, goalY];
    draw();
    sayOvershooting();
    clearTimeout(later);
    later = setTimeout(finish);
  }

  function finish(): void {
    const path = paths.find(({ reached }) => reached < MOST_STEPS);
    if (!path) return;
    path.after(path.reached + 1);
    drawReturns();
    later = setTimeout(finish);
  }

  function draw(): void {
    const { steps } = state.values;
    for (const [i, one] of fields.entries()) {
      titles[i]!.data = `, ${steps ? `after ${named(steps)}` : "before the first step"}: mean return ${shown(returnsOf(i)[steps]!)}`;
      one.draw();
    }
    drawReturns();
  }

  function drawReturns(): void {
    const all = COMPARED.map((_, i) => returnsOf(i));
    table.show(STEPS.map((step) => ({
      name: named(step), className: step === state.values.steps ? "step chosen" : "step", cells: all.map((each) => (step in each ? shown(each[step]!) : "…")),
    })));
    returns.domain([0, MOST_STEPS], [1.05 * Math.min(-60, ...all.flat().filter(Number.isFinite)), 0]);
  }

  function sayOvershooting(): void {
    const told = COMPARED.flatMap(({ title }, i) => {
      const all = returnsOf(i).slice(0, state.values.steps + 1), first = all.findIndex((one) => !(one >= 2.5 * all[0]! - 20));
      return first < 0 ? [] : [`The ${title} policy overshoots: after ${named(first)} its mean return is ${shown(all[first]!)}, ${shown(all[0]!)} before. A smaller inner rate helps: it was trained for ${RATES[0]}.`];
    });
    if (told.length || isTold) frame.notice(told.join(" "));
    isTold = told.length > 0;
  }

  /** The goal while it is dragged: it is in the address once it is let go. */
  function put([x, y]: Point): void {
    Object.assign(state.values, { goalX: Number(x.toFixed(2)), goalY: Number(y.toFixed(2)) });
    stop(HORIZON);
    adapt();
  }

  function keep(): void {
    state.set({ goalX: state.values.goalX, goalY: state.values.goalY });
  }

  /** The walkers at a time step, and the trajectories up to there. */
  function show(now: number): void {
    time = now;
    walk.textContent = isStill ? (now < HORIZON ? "Ten time steps on" : "Walk by ten time steps") : walking ? "Pause" : "Play";
    said.textContent = `time step ${now} of ${HORIZON}`;
    for (const one of fields) one.draw();
  }

  function start(from: number): void {
    const begin = performance.now() - (from / HORIZON) * SECONDS * 1000;
    const next = (now: number) => {
      const at = Math.max(0, Math.min(HORIZON, Math.floor(((now - begin) / (SECONDS * 1000)) * HORIZON)));
      walking = at < HORIZON ? requestAnimationFrame(next) : 0;
      show(at);
    };
    walking = requestAnimationFrame(next);
  }

  function stop(at = time): void {
    cancelAnimationFrame(walking);
    walking = 0;
    show(at);
  }

  stop();
  adapt();
  state.watch(adapt);

  return {
    numbers: () => Object.fromEntries(COMPARED.flatMap(({ name }, i) => STEPS.map((step) => [`${name} return_step_${step}`, meanReturn(paths[i]!.after(step).ways)]))),
    python: () => program(state.values),
    close: () => {
      clearTimeout(later);
      cancelAnimationFrame(walking);
      for (const one of [...fields, returns]) one.close();
    },
  };
}

const named = (steps: number) => `${steps} ${steps === 1 ? "step" : "steps"}`;

/** The same trajectories and inner steps by the library. */
function program(values: Values): string {
  const { seed, goalX, goalY, trajectories } = values;
  return `"""Navigation: what the playground shows, by lightning_maml."""

import json

import torch

import lightning_maml as lm
from lightning_maml.rl import GaussianPolicy, MetaRLModule, Navigation2D

${PYTHON}
# standard normal numbers: [inner steps + 1, trajectories, time steps, actions]
index = np.arange(${MOST_STEPS + 1} * ${MOST_TRAJECTORIES} * ${HORIZON} * 2).reshape(${MOST_STEPS + 1}, ${MOST_TRAJECTORIES}, ${HORIZON}, 2)
noise = torch.from_numpy(normal(${seed}, ${Stream.shown}, index))[:, :${trajectories}]

class GivenNoise(GaussianPolicy):
    """A Gaussian policy that takes its noise from the page, in place of torch."""

    def sample(self, outputs):
        mean, log_std = outputs.chunk(2, -1)
        return mean + log_std.exp() * next(self.noise)

torch.manual_seed(${UNTRAINED_SEED})
untrained, trained = GivenNoise(2, 2), GivenNoise(2, 2)
trained.load_state_dict(lm.from_pretrained("rl_navigation").policy.state_dict())
goal = torch.tensor([[${goalX}, ${goalY}]], dtype=torch.float64)
rates = ${JSON.stringify(ratesOf(values))}

numbers = {}
for name, policy in {"trained": trained, "untrained": untrained}.items():
    policy.noise = iter(noise.transpose(1, 2).flatten(0, 1))  # [trajectories, 2] for each action
    algorithm, settings = lm.maml(lr=rates[0], steps=1), {"test_rates": rates, "test_trajectories": ${trajectories}}
    module = MetaRLModule(policy, algorithm, Navigation2D(), test_steps=len(rates), **settings).double()
    returns = module.adapt(goal).returns[0].tolist()
    numbers |= {f"{name} return_step_{step}": value for step, value in enumerate(returns)}
print(json.dumps(numbers))
`;
}

export const navigation: Page<typeof schema> = {
  name: "navigation",
  title: "Navigation",
  about:
    "Two policies look for a goal that they cannot see: they walk from the middle, are told how far from it they were, and take inner steps of policy gradient. " +
    "Move the goal and the inner steps, and see the meta-trained one go there after a single step, from trajectories that teach the untrained one next to nothing.",
  schema,
  open,
};
