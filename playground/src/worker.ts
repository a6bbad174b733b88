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

function run(): void {
  if (!current || !isPlaying) return;
  const begin = performance.now(), sums = current.learners.map(() => 0);
  let done = 0;
  while (current.updates < current.last && performance.now() - begin < BETWEEN) {
    const tasks = sample(current.random, current.updates);
    for (const [i, learner] of current.learners.entries()) sums[i]! += learner.update(tasks);
    current.updates++;
    done++;
  }
  current.seconds += (performance.now() - begin) / 1000;
  const isDone = current.updates >= current.last;
  postMessage({
    updates: current.updates, seconds: current.seconds, losses: sums.map((sum) => sum / done),
    heldOut: current.learners.map((learner) => learner.evaluate(current!.heldOut, current!.heldOutSteps)),
    weights: current.learners.map(({ weights }) => weights), isDone,
  } satisfies Progress);
  isPlaying = !isDone;
  if (isPlaying) setTimeout(run);
}

async function begin({ module, seed, learners, updates, heldOutSteps }: Start): Promise<void> {
  const kernel = await Kernel.of(module);
  current = {
    learners: learners.map(({ name, settings }) => ALGORITHMS[name](kernel, settings, seed)),
    random: new Random(seed, Stream.training), updates: 0, last: updates, seconds: 0,
    heldOut: sample(new Random(seed, Stream.heldOut), 0, HELD_OUT, 5, 20), heldOutSteps,
  };
  isPlaying = true;
  run();
}

onmessage = ({ data }: MessageEvent<Start | "pause" | "play">) => {
  if (data === "pause") isPlaying = false;
  else if (data === "play") {
    if (!isPlaying && current) (isPlaying = true), run();
  } else void begin(data);
};
