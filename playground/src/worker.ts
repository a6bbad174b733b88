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
  /** By learner: the mean loss of tasks that it does not train on, after all inner steps; and before them and after each. */
  heldOut: number[];
  curves: number[][];
  weights: Weights[];
  isDone: boolean;
}

const BETWEEN = 1000 / 30; // milliseconds
const CHUNK = 4; // updates of one learner before it is the next one's turn: clocks of a browser are too coarse for one

interface Run {
  learners: Learner[];
  random: Random;
  updates: number;
  last: number;
  secondsOfEach: number[];
  heldOut: Tasks;
  heldOutSteps: number;
}

let current: Run | null = null;
let isPlaying = false;
let next = 0; // the timer of what comes next: there is one at a time

let between = BETWEEN;

/** Trains for a thirtieth of a second, or for so many updates, and tells of it. */
function advance(run: Run, most = Infinity): void {
  const { learners, random, secondsOfEach } = run, last = Math.min(run.last, run.updates + most);
  const begin = performance.now(), sums = learners.map(() => 0), first = run.updates;
  while (run.updates < last && performance.now() - begin < between) {
    const chunk = Array.from({ length: Math.min(CHUNK, last - run.updates) }, (_, i) => sample(random, run.updates + i));
    for (const [i, learner] of learners.entries()) {
      const start = performance.now();
      for (const tasks of chunk) sums[i]! += learner.update(tasks);
      secondsOfEach[i]! += (performance.now() - start) / 1000;
    }
    run.updates += chunk.length;
  }
  const isDone = run.updates >= run.last, trained = performance.now();
  const curves = learners.map((learner) => learner.curve(run.heldOut, run.heldOutSteps));
  between = Math.max(BETWEEN, 3 * (performance.now() - trained)); // a quarter of the time at most is for the held-out tasks
  postMessage({
    updates: run.updates, seconds: secondsOfEach.reduce((a, b) => a + b, 0), secondsOfEach,
    losses: sums.map((sum) => sum / (run.updates - first)), heldOut: curves.map((curve) => curve.at(-1)!), curves,
    weights: learners.map(({ weights }) => weights), isDone,
  } satisfies Progress);
  isPlaying &&= !isDone;
}

function play(): void {
  clearTimeout(next);
  if (!current || !isPlaying) return;
  advance(current);
  if (isPlaying) next = setTimeout(play) as unknown as number;
}

async function begin({ module, seed, learners, updates, heldOutSteps }: Start): Promise<void> {
  const kernel = await Kernel.of(module);
  current = {
    learners: learners.map(({ name, settings }) => ALGORITHMS[name](kernel, settings, seed)),
    random: new Random(seed, Stream.training), updates: 0, last: updates, secondsOfEach: learners.map(() => 0),
    heldOut: heldOut(seed), heldOutSteps,
  };
  isPlaying = true;
  play();
}

onmessage = ({ data }: MessageEvent<Start | "pause" | "play" | "step">) => {
  if (data === "pause") isPlaying = false;
  else if (data === "step" && current) advance(current, 1);
  else if (data === "play" && !isPlaying) (isPlaying = true), play();
  else if (typeof data === "object") void begin(data);
};
