/** Fit a sine: MAML beside the pretrained baseline, both trained before your eyes. */

import { Kernel } from "../numerics/kernel";
import { type Learner, type Path, mean } from "../numerics/learner";
import { ALGORITHMS, type AlgorithmName } from "../numerics/algorithms";
import { Random, Stream } from "../numerics/random";
import { AMPLITUDE, INPUTS, height } from "../numerics/sines";
import { element, type Frame, type Opened, type Page } from "../page";
import { number, points, whole, type Point, type State } from "../state";
import { Training } from "../training";
import { Chart } from "../views/chart";
import { Table, button, field, shown, slider } from "../views/controls";
import { encoded } from "../python";

const HEIGHTS: Point = [-6, 6];
const MOST_STEPS = 20;
const SHOTS = 5;
const SETTINGS = { rate: 0.01, steps: 2, outerRate: 0.002 };
const COMPARED: { name: AlgorithmName; title: string; className: string }[] = [
  { name: "maml", title: "MAML", className: "one" },
  { name: "pretrained", title: "pretrained", className: "two" },
];
const GRID = Array.from({ length: 201 }, (_, i) => INPUTS[0] + (i / 200) * (INPUTS[1] - INPUTS[0]));

const schema = {
  seed: whole(0, 0, 999999),
  amplitude: number(3, ...AMPLITUDE, 1),
  phase: number(1, 0, 3.14),
  steps: whole(5, 0, MOST_STEPS),
  rate: number(0.01, 0.001, 0.2, 3),
  updates: whole(6000, 100, 30000),
  points: points<Point[] | null>(null, [...INPUTS], HEIGHTS),
};

function open(frame: Frame, state: State<typeof schema>, module: WebAssembly.Module): Opened {
  // by learner: what the inner steps lead to, the curve after each, and its error over the wave
  let learners: Learner[] = [], paths: Path[] = [], curves: Float32Array[][] = [], errors: number[][] = [], cursor: Point | null = null, updates = 0;
  const history: Point[][] = COMPARED.map(() => []);
  let trainedWith = "";

  const training = new Training(module, (progress) => {
    updates = progress.updates;
    for (const [i, learner] of learners.entries()) {
      learner.load(progress.weights[i]!);
      history[i]!.push([progress.updates, progress.curves[i]!.at(-1)!]);
    }
    const rate = Math.round(progress.updates / progress.seconds);
    said.textContent = `${progress.updates.toLocaleString("en")} of ${state.values.updates.toLocaleString("en")} meta-updates, ${rate.toLocaleString("en")} a second`;
    said.dataset.done = String(progress.isDone);
    pause.disabled = progress.isDone;
    one.disabled = training.isPlaying || progress.isDone;
    adapt();
    losses.draw();
  });

  const fit = new Chart(
    frame.figures,
    { label: "The wave, its points, and both networks after the inner steps", x: [...INPUTS], y: HEIGHTS, xLabel: "x", yLabel: "y", leastHeight: 220, isFocusable: true },
    (chart) => {
      chart.line("wave", GRID.map((x): Point => [x, height(state.values, x)]), "wave");
      for (const [i, { className }] of COMPARED.entries()) {
        if (!curves[i]) continue;
        const curve = (step: number) => GRID.map((x, j): Point => [x, curves[i]![step]![j]!]);
        chart.line(`before-${className}`, curve(0), `${className} faint`);
        chart.line(`after-${className}`, curve(state.values.steps), className);
      }
      chart.dots("points", chosen(), "point");
      chart.dots("cursor", cursor ? [cursor] : [], "cursor", 8);
    },
  );
  const legend = element("p", { class: "legend" }, "dashed: the wave; faint: before the first step. ");
  frame.figures.append(legend);
  for (const { title, className } of COMPARED) legend.append(element("span", { class: className }, title), " ");
  const pair = element("div", { class: "pair" });
  frame.figures.append(pair);
  const steps = new Chart(
    pair,
    { label: "Error over the wave after each inner step", x: [0, MOST_STEPS], y: [0.001, 30], xLabel: "inner step", yLabel: "error over the wave", isLog: true, ratio: 0.7, leastHeight: 220 },
    (chart) => {
      for (const [i, { className }] of COMPARED.entries()) {
        chart.line(className, (errors[i] ?? []).map((error, step): Point => [step, error]), className);
        chart.dots(`at-${className}`, errors[i] ? [[state.values.steps, errors[i][state.values.steps]!]] : [], className);
      }
    },
  );
  const losses = new Chart(
    pair,
    { label: "Error on held-out tasks while training", x: [0, state.values.updates], y: [0.03, 10], xLabel: "meta-updates", yLabel: `held out, after ${SHOTS} steps`, isLog: true, ratio: 0.7, leastHeight: 220 },
    (chart) => {
      for (const [i, { className }] of COMPARED.entries()) chart.line(className, history[i]!, className);
    },
  );

  const said = element("p", { class: "progress" });
  const table = new Table(frame.controls, "Mean squared error", ["at the points", "over the wave"]);
  slider(frame.controls, state, "steps", "Inner steps", [0, MOST_STEPS, 1]);
  slider(frame.controls, state, "amplitude", "Amplitude", [...AMPLITUDE, 0.1]);
  slider(frame.controls, state, "phase", "Phase", [0, 3.14, 0.01]);
  slider(frame.controls, state, "rate", "Inner rate", [0.001, 0.2, 0.001]);
  const trained = element("fieldset", {}, element("legend", {}, "Training"), said);
  frame.controls.append(trained);
  field(trained, state, "seed", "Seed");
  field(trained, state, "updates", "Meta-updates");
  const pause = button(trained, "Pause", () => {
    training.toggle();
    pause.textContent = training.isPlaying ? "Pause" : "Play";
    one.disabled = training.isPlaying;
  });
  const one = button(trained, "One update", () => training.step());
  one.disabled = true;
  button(trained, "Train again", () => train());
  button(frame.controls, "Clear points", () => state.set({ points: [] }));
  frame.controls.append(element("p", { class: "hint" }, "Click into the picture to put a point down, click a point to take it away. With the keyboard: arrows, Enter, Delete."));

  /** Where the examples are: as they were put down, or five on the wave. */
  function chosen(): Point[] {
    if (state.values.points) return state.values.points as Point[];
    const random = new Random(state.values.seed, Stream.shown);
    return Array.from({ length: SHOTS }, (_, i) => onWave(random.uniform(i, ...INPUTS)));
  }

  function onWave(x: number): Point {
    return [Number(x.toFixed(2)), Number(height(state.values, Number(x.toFixed(2))).toFixed(2))];
  }

  function adapt(): void {
    const [inputs, targets] = [chosen().map(([x]) => x), chosen().map(([, y]) => y)];
    paths = learners.map((learner) => {
      learner.settings.rate = state.values.rate;
      return learner.adapt(inputs, targets, MOST_STEPS);
    });
    curves = learners.map((learner, i) => learner.predict(paths[i]!.parameters, GRID));
    errors = curves.map((all) => all.map((curve) => mean(GRID.map((x, j) => (curve[j]! - height(state.values, x)) ** 2))));
    const at = state.values.steps;
    table.show(COMPARED.map(({ title, className }, i) => ({
      name: title, className, cells: paths[i] ? [shown(paths[i].losses[at]!), shown(errors[i]![at]!)] : [],
    })));
    fit.draw();
    steps.draw();
    sayDivergence();
  }

  function sayDivergence(): void {
    const told = COMPARED.flatMap(({ title }, i) => {
      const all = paths[i]?.losses ?? [], first = all.findIndex((loss, step) => step > 0 && !(loss <= 10 * Math.max(all[0]!, 0.1)));
      return first < 0 ? [] : [`${title} diverges: after step ${first} its error at the points is ${shown(all[first]!)}, ${shown(all[0]!)} before the first. A smaller inner rate helps.`];
    });
    if (told.length || isToldDivergence) frame.notice(told.join(" "));
    isToldDivergence = told.length > 0;
  }
  let isToldDivergence = false;

  function train(): void {
    const { seed, updates: last } = state.values;
    trainedWith = `${seed} ${last}`;
    for (const points of history) points.length = 0;
    pause.textContent = "Pause";
    one.disabled = true;
    losses.domain([0, last], [0.03, 10]);
    training.start({ seed, updates: last, heldOutSteps: SHOTS, learners: COMPARED.map(({ name }) => ({ name, settings: SETTINGS })) });
  }

  function put(at: Point): void {
    const [x, y] = at, near = chosen().findIndex(([a, b]) => Math.hypot(fit.x(a) - fit.x(x), fit.y(b) - fit.y(y)) < 10);
    const kept = chosen().filter((_, i) => i !== near);
    if (near >= 0) state.set({ points: kept });
    else if (kept.length < 30) state.set({ points: [...kept, [Number(x.toFixed(2)), Number(y.toFixed(2))]] });
  }

  fit.svg.addEventListener("click", (event) => {
    const [x, y] = fit.at(event);
    if (x >= INPUTS[0] && x <= INPUTS[1] && y >= HEIGHTS[0] && y <= HEIGHTS[1]) put([x, y]);
  });
  fit.svg.addEventListener("keydown", (event) => {
    const moves: Record<string, Point> = { ArrowLeft: [-0.25, 0], ArrowRight: [0.25, 0], ArrowUp: [0, 0.25], ArrowDown: [0, -0.25] };
    const move = moves[event.key], now: Point = cursor ?? [0, 0];
    if (move) {
      const within = (value: number, [low, high]: Point) => Math.min(high, Math.max(low, value));
      cursor = [within(now[0] + move[0], INPUTS), within(now[1] + move[1], HEIGHTS)];
    } else if (event.key === "Enter" || event.key === "Delete") put(now);
    else return;
    event.preventDefault();
    fit.draw();
  });

  void Kernel.of(module).then((kernel) => {
    learners = COMPARED.map(({ name }) => ALGORITHMS[name](kernel, { ...SETTINGS }, state.values.seed));
    train();
    adapt();
  });
  state.watch((changed) => {
    // the points keep their places and follow the wave
    if ((changed.has("amplitude") || changed.has("phase")) && !changed.has("points") && state.values.points) {
      state.values.points = state.values.points.map(([x]) => onWave(x));
    }
    if (`${state.values.seed} ${state.values.updates}` !== trainedWith) train();
    adapt();
  });

  return {
    numbers: () =>
      Object.fromEntries(
        paths.flatMap((path, i) => [
          [`${COMPARED[i]!.name} at the points`, path.losses[state.values.steps]!],
          [`${COMPARED[i]!.name} over the wave`, errors[i]![state.values.steps]!],
        ]),
      ),
    python: () => program(chosen(), state.values, Object.fromEntries(COMPARED.map(({ name }, i) => [name, learners[i]!.theta])), updates),
    history: () => history,
    close: () => {
      training.stop();
      for (const chart of [fit, steps, losses]) chart.close();
    },
  };
}

/** The same adaptation by the library, from the weights that the page has trained. */
function program(chosen: Point[], { amplitude, phase, steps, rate, seed }: State<typeof schema>["values"], weights: Record<string, Float64Array>, updates: number): string {
  return `"""Fit a sine: what the playground shows, by lightning_maml."""

import base64
import json

import numpy as np
import torch

import lightning_maml as lm

# after ${updates} meta-updates with seed ${seed}; to train such weights yourself: lightning-maml fit --config sinusoid
WEIGHTS = {
${Object.entries(weights).map(([name, theta]) => `    "${name}": "${encoded(theta)}",`).join("\n")}
}
points = torch.tensor(${JSON.stringify(chosen)}).reshape(-1, 2)
grid = torch.linspace(${INPUTS[0]}, ${INPUTS[1]}, ${GRID.length})[:, None]
wave = ${amplitude} * torch.sin(grid - ${phase})

numbers = {}
for name, text in WEIGHTS.items():
    network = lm.MLP(${1}, [40, 40], 1)
    theta = torch.from_numpy(np.frombuffer(base64.b64decode(text), "<f4").copy())
    torch.nn.utils.vector_to_parameters(theta, network.parameters())
    x, y = points[None, :, :1], points[None, :, 1:]
    adapted = lm.adapt(network, lm.maml(lr=${rate}, steps=${steps}), x, y, loss="mse")
    numbers[f"{name} at the points"] = adapted.support_losses[0, -1].item()
    numbers[f"{name} over the wave"] = (adapted.predict(grid[None])[0] - wave).square().mean().item()
print(json.dumps(numbers))
`;
}

export const sine: Page<typeof schema> = {
  name: "sine",
  title: "Fit a sine",
  about:
    "Two networks learn from the same sine waves, before your eyes: MAML learns where to begin, the baseline learns to answer at once. " +
    "Put down a few points of a wave that neither has seen, move the inner steps, and see which one fits it.",
  schema,
  open,
};
