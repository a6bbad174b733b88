/** Trains learners side by side, each on the same tasks, and says how far they are thirty times a second. */

import { ALGORITHMS, type AlgorithmName } from "./numerics/algorithms";
import { Kernel, type Tasks } from "./numerics/kernel";
import type { Learner, Settings, Weights } from "./numerics/learner";
import { Random, Stream } from "./numerics/random";
import { heldOut, sample } from "./numerics/sines";

export interface Start {
  module: WebAssembly.Module;
  seed: number;
  learners: { name: AlgorithmName; settings: Settings }[];
  /** Meta-updates of each learner, after which it ends. */
  updates: number;
  /** Inner steps on the held-out tasks. */
  heldOutSteps: number;
}

export interface Progress {
  updates: number;
  /** of training alone, so far: of all learners, and of each */
  seconds: number;
  secondsOfEach: number[];
  /** By learner, as they were given: the mean loss of the tasks since the last message, and what is learned. */
  losses: number[];
  /** By learner: the mean loss of tasks that it does not train on, before the inner steps and after each. */
  curves: number[][];
  weights: Weights[];
  isDone: boolean;
}

const BETWEEN = 1000 / 30; // milliseconds

interface Run {
  learners: Learner[];
  random: Random;
  updates: number;
  last: number;
  secondsOfEach: number[];
  /** of the losses since the last message */
  sums: number[];
  heldOut: Tasks;
  heldOutSteps: number;
}

let current: Run | null = null;
let isPlaying = false;
let next = 0; // the timer of what comes next: there is one at a time
// milliseconds until the next message, when the last one was, and how many updates there were then
let between = BETWEEN, said = 0, first = 0;

/** Trains for a thirtieth of a second, or for so many updates. */
function advance(run: Run, last: number): void {
  const { learners, random, secondsOfEach, sums } = run;
  const begin = performance.now();
  while (run.updates < last && performance.now() - begin < BETWEEN) {
    const tasks = sample(random, run.updates);
    for (const [i, learner] of learners.entries()) {
      const start = performance.now();
      sums[i]! += learner.update(tasks);
      secondsOfEach[i]! += (performance.now() - start) / 1000;
    }
    run.updates++;
  }
}

function play(): void {
  clearTimeout(next);
  if (!current || !isPlaying) return;
  advance(current, current.last);
  isPlaying = current.updates < current.last;
  if (!isPlaying || performance.now() - said > between) report(current);
  if (isPlaying) next = setTimeout(play) as unknown as number;
}

function report({ learners, updates, last, secondsOfEach, sums, heldOut, heldOutSteps }: Run): void {
  const begin = performance.now(), curves = learners.map((learner) => learner.curve(heldOut, heldOutSteps));
  postMessage({
    updates, seconds: secondsOfEach.reduce((a, b) => a + b, 0), secondsOfEach,
    losses: sums.map((sum) => sum / (updates - first)), curves,
    weights: learners.map(({ weights }) => weights), isDone: updates >= last,
  } satisfies Progress);
  sums.fill(0);
  first = updates;
  said = performance.now();
  between = Math.max(BETWEEN, 3 * (said - begin)); // at most a quarter of the time goes into the held-out tasks
}

async function begin({ module, seed, learners, updates, heldOutSteps }: Start): Promise<void> {
  isPlaying = true;
  const kernel = await Kernel.of(module);
  current = {
    learners: learners.map(({ name, settings }) => ALGORITHMS[name](kernel, settings, seed)),
    random: new Random(seed, Stream.training), updates: 0, last: updates, secondsOfEach: learners.map(() => 0), sums: learners.map(() => 0),
    heldOut: heldOut(seed), heldOutSteps,
  };
  first = 0;
  play();
}

onmessage = ({ data }: MessageEvent<Start | "pause" | "play" | "step">) => {
  if (typeof data === "object") void begin(data);
  else if (data === "play") {
    if (!isPlaying) (isPlaying = true), play();
  } else if (current) {
    isPlaying = false;
    if (data === "step") advance(current, Math.min(current.updates + 1, current.last));
    if (current.updates > first) report(current); // what was done since the last message, too
  } else isPlaying = false; // and it begins so
};
