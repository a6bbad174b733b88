/** Trains learners side by side, each on the same tasks, and says how far they are thirty times a second. */

import { ALGORITHMS, type AlgorithmName } from "./numerics/algorithms";
import { Kernel, type Tasks } from "./numerics/kernel";
import type { Learner, Settings, Weights } from "./numerics/learner";
import { Random, Stream } from "./numerics/random";
import { sample } from "./numerics/sines";

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
  /** of training alone, so far */
  seconds: number;
  /** By learner, as they were given: the mean loss of the tasks since the last message, and what is learned. */
  losses: number[];
  /** By learner: the mean loss of tasks that it does not train on. */
  heldOut: number[];
  weights: Weights[];
  isDone: boolean;
}

const BETWEEN = 1000 / 30; // milliseconds
const HELD_OUT = 40; // tasks

interface Run {
  learners: Learner[];
  random: Random;
  updates: number;
  last: number;
  seconds: number;
  heldOut: Tasks;
  heldOutSteps: number;
}

let current: Run | null = null;
let isPlaying = false;
let next = 0; // the timer of what comes next: there is one at a time

/** Trains for a thirtieth of a second, or for so many updates, and tells of it. */
function advance(run: Run, most = Infinity): void {
  const begin = performance.now(), sums = run.learners.map(() => 0), last = Math.min(run.last, run.updates + most), first = run.updates;
  while (run.updates < last && performance.now() - begin < BETWEEN) {
    const tasks = sample(run.random, run.updates);
    for (const [i, learner] of run.learners.entries()) sums[i]! += learner.update(tasks);
    run.updates++;
  }
  run.seconds += (performance.now() - begin) / 1000;
  const isDone = run.updates >= run.last;
  postMessage({
    updates: run.updates, seconds: run.seconds, losses: sums.map((sum) => sum / (run.updates - first)),
    heldOut: run.learners.map((learner) => learner.evaluate(run.heldOut, run.heldOutSteps)),
    weights: run.learners.map(({ weights }) => weights), isDone,
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
    random: new Random(seed, Stream.training), updates: 0, last: updates, seconds: 0,
    heldOut: sample(new Random(seed, Stream.heldOut), 0, HELD_OUT, 5, 20), heldOutSteps,
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
