/** The family: eight algorithms and the baseline learn side by side, from one seed. */

import type { AlgorithmName } from "../numerics/algorithms";
import type { Settings } from "../numerics/learner";
import { element, type Frame, type Opened, type Page } from "../page";
import { choice, number, several, whole, type Point, type State } from "../state";
import { Training } from "../training";
import { Chart } from "../views/chart";
import { Table, button, field, select, shown, slider, toggles } from "../views/controls";
import type { Progress } from "../worker";
import { program } from "./family_python";

const MOST_STEPS = 10;
const ERRORS: Point = [0.1, 10]; // and lower, where a learner gets there
const LOST = 100; // an error above this, thirty times that of no step, is divergence
const WAIT = 250; // milliseconds that a slider has to rest before all is trained anew

type Given = { rate: number; steps: number };

/** Each with what it is trained with where that differs from the others. */
const COMPARED: { name: AlgorithmName; title: string; className: string; own?: (given: Given) => Partial<Settings> }[] = [
  { name: "maml", title: "MAML", className: "one" },
  { name: "fomaml", title: "FOMAML", className: "two" },
  { name: "anil", title: "ANIL", className: "three" },
  { name: "meta_sgd", title: "Meta-SGD", className: "four" },
  { name: "reptile", title: "Reptile", className: "five", own: ({ steps }) => ({ steps: Math.max(10, steps) }) },
  { name: "imaml", title: "iMAML", className: "six", own: ({ rate, steps }) => ({ rate: rate / 2, steps: Math.max(16, steps), outerRate: 0.001 }) },
  { name: "cavia", title: "CAVIA", className: "seven", own: ({ rate }) => ({ rate: 100 * rate }) },
  { name: "maml_pp", title: "MAML++", className: "eight", own: () => ({ outerRate: 0.001 }) },
  { name: "pretrained", title: "pretrained", className: "nine" },
];
const NAMES = COMPARED.map(({ name }) => name);

const schema = {
  seed: whole(0, 0, 999999),
  updates: whole(1000, 20, 20000),
  rate: number(0.01, 0.001, 0.1, 3),
  steps: whole(2, 1, 5),
  at: whole(2, 0, MOST_STEPS),
  axis: choice("updates", ["updates", "seconds"]),
  hidden: several<AlgorithmName>([], NAMES),
};

function open(frame: Frame, state: State<typeof schema>, module: WebAssembly.Module): Opened {
  const history: Progress[] = [];
  let last: Progress | undefined, trainedWith = "", waiting = 0, told = "", lowest = ERRORS[0];
  const lostAt: (number | undefined)[] = [];
  const settings = () => COMPARED.map(({ own }): Settings => ({ outerRate: 0.002, ...given(), ...own?.(given()) }));
  const given = (): Given => ({ rate: state.values.rate, steps: state.values.steps });
  const drawn = () => COMPARED.flatMap((one, i) => (state.values.hidden.includes(one.name) ? [] : [{ ...one, i }]));

  const training = new Training(module, (progress) => {
    const { weights, ...kept } = progress;
    last = progress;
    lowest = Math.min(lowest, ...progress.curves.flat().filter((error) => error > 0));
    history.push({ ...kept, weights: [] });
    weights.forEach((one, i) => Object.values(one).every((values) => values.every(Number.isFinite)) || (lostAt[i] ??= progress.updates));
    said.textContent = `${progress.updates.toLocaleString("en")} of ${state.values.updates.toLocaleString("en")} meta-updates of each, ${progress.seconds.toFixed(1)} seconds in all`;
    said.dataset.done = String(progress.isDone);
    pause.disabled = progress.isDone;
    draw();
  });

  const race = new Chart(
    frame.figures,
    { label: "Error on held-out tasks while the algorithms learn", x: [0, 1], y: ERRORS, xLabel: "", yLabel: "held-out error", isLog: true, ratio: 0.55, leastHeight: 260 },
    (chart) => {
      lines(chart, ({ i }) => history.map((one): Point => [state.values.axis === "updates" ? one.updates : one.secondsOfEach[i]!, errorOf(one, i)]));
    },
  );
  toggles(frame.figures, state, "hidden", "Lines", COMPARED);
  const afterSteps = new Chart(
    frame.figures,
    { label: "Error on held-out tasks after each inner step", x: [0, MOST_STEPS], y: ERRORS, xLabel: "inner step on a new task", yLabel: "held-out error", isLog: true, ratio: 0.4, leastHeight: 220 },
    (chart) => {
      lines(chart, ({ i }) => (last?.curves[i] ?? []).map((error, step): Point => [step, kept(error)]));
      const dots = drawn().flatMap(({ i, className }) => (last ? [{ className, at: [state.values.at, errorOf(last, i)] as Point }] : []));
      for (const { className, at } of dots) if (Number.isFinite(at[1])) chart.dots(`at-${className}`, [at], className);
    },
  );

  select(frame.controls, state, "axis", "Against", { updates: "meta-updates", seconds: "seconds" });
  slider(frame.controls, state, "at", "Inner steps on a new task", [0, MOST_STEPS, 1]);
  const table = new Table(frame.controls, "Held-out error, and the cost of training", ["error", "updates / s", "time"]);
  const said = element("p", { class: "progress" });
  const trained = element("fieldset", {}, element("legend", {}, "Training"), said);
  frame.controls.append(trained);
  slider(trained, state, "steps", "Inner steps", [1, 5, 1]);
  slider(trained, state, "rate", "Inner rate", [0.001, 0.1, 0.001]);
  field(trained, state, "seed", "Seed");
  field(trained, state, "updates", "Meta-updates");
  const pause = button(trained, "Pause", () => {
    training.toggle();
    pause.textContent = training.isPlaying ? "Pause" : "Play";
  });
  button(trained, "Train again", () => train());
  const hint =
    "Three go their own ways: CAVIA's few numbers of context move at 100 times the inner rate, Reptile takes 10 inner steps or more, " +
    "iMAML 16 of half the rate, for it has to come close to an optimum. MAML++ and Meta-SGD learn their rates for the steps of the training: more of them may overshoot. " +
    "Seconds are those of this page, where Reptile, iMAML and CAVIA are many calls of the kernel, and the others one or a few.";
  frame.controls.append(element("p", { class: "hint" }, hint));

  /** Numbers that a line shows: it ends where a learner is lost. */
  function kept(error: number): number {
    return error <= LOST ? error : NaN;
  }

  function errorOf(progress: Progress, learner: number): number {
    return kept(progress.curves[learner]![state.values.at]!);
  }

  function lines(chart: Chart, pointsOf: (one: { i: number }) => Point[]): void {
    chart.plot.selectAll("*").remove();
    for (const one of drawn()) chart.line(one.className, pointsOf(one), one.className);
  }

  function draw(): void {
    const { axis, updates, at } = state.values;
    race.svg.querySelector(".label.x")!.textContent = axis === "updates" ? "meta-updates" : "seconds of its own training";
    const longest = Math.max(0.1, ...drawn().map(({ i }) => last?.secondsOfEach[i] ?? 0)), errors: Point = [0.8 * lowest, ERRORS[1]];
    race.domain([0, axis === "updates" ? updates : longest], errors);
    afterSteps.domain([0, MOST_STEPS], errors);
    table.show(COMPARED.map(({ title, className }, i) => {
      const seconds = last?.secondsOfEach[i] ?? 0;
      return { name: title, className, cells: last ? [shown(last.curves[i]![at]!), shown(Math.round(last.updates / seconds)), `${seconds.toFixed(seconds < 100 ? 1 : 0)} s`] : [] };
    }));
    say();
  }

  function say(): void {
    const { at } = state.values;
    const lost = drawn().flatMap(({ title, name, i }) => {
      const error = last?.curves[i]![at] ?? 0, { steps } = settings()[i]!, hasMore = at > steps && name !== "pretrained";
      if (lostAt[i] !== undefined) return [`${title} has diverged in training: by meta-update ${lostAt[i]} its weights are no numbers. A smaller inner rate helps.`];
      if (error <= LOST) return [];
      return [`${title} diverges: after ${at} inner steps its error is ${shown(error)}. ${hasMore ? `It was trained with ${steps}: fewer` : "A smaller inner rate"} may help.`];
    });
    const text = lost.join(" ");
    if (text !== told) frame.notice(text);
    told = text;
  }

  function train(): void {
    clearTimeout(waiting);
    const { seed, updates } = state.values;
    trainedWith = key();
    forget();
    pause.textContent = "Pause";
    pause.disabled = false;
    training.start({ seed, updates, heldOutSteps: MOST_STEPS, learners: settings().map((one, i) => ({ name: NAMES[i]!, settings: one })) });
  }

  /** What was trained with other settings says nothing of these. */
  function forget(): void {
    training.stop();
    last = undefined;
    lowest = ERRORS[0];
    history.length = lostAt.length = 0;
    said.textContent = "";
    said.dataset.done = "false";
  }

  function key(): string {
    const { seed, updates, rate, steps } = state.values;
    return [seed, updates, rate, steps].join(" ");
  }

  train();
  state.watch(() => {
    if (key() !== trainedWith) {
      trainedWith = key();
      forget();
      clearTimeout(waiting);
      waiting = window.setTimeout(train, WAIT);
    }
    draw();
  });

  return {
    numbers: () => Object.fromEntries(last ? NAMES.map((name, i) => [`${name} after ${state.values.at} steps`, last!.curves[i]![state.values.at]!]) : []),
    python: () => {
      const trained = (last?.weights ?? []).map((weights, i) => ({ name: NAMES[i]!, settings: settings()[i]!, weights }));
      return program({ seed: state.values.seed, at: state.values.at, updates: last?.updates ?? 0 }, trained);
    },
    close: () => {
      clearTimeout(waiting);
      training.stop();
      for (const chart of [race, afterSteps]) chart.close();
    },
  };
}

export const family: Page<typeof schema> = {
  name: "family",
  title: "The family",
  about:
    "Eight ways to learn how to learn, and the pretrained baseline, train side by side on the same sine waves, from one seed. " +
    "See whose error on waves that it never trained on falls first, by meta-updates or by seconds, and who gains from more inner steps than it was trained with.",
  schema,
  open,
};
