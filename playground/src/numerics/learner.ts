/** A learner of sine tasks: one meta-update, and what it does with the examples of one new task. */

import { Adam } from "./adam";
import { size, type Kernel, type Network, type Tasks } from "./kernel";
import { Random, Stream } from "./random";
import { initial } from "./sines";

export const NETWORK: Network = { widths: [1, 40, 40, 1], activation: "relu" };
export const PARAMETERS = size(NETWORK.widths);

/** What becomes of one task after each inner step, from none to all: `[steps + 1]` of each. */
export interface Path {
  parameters: Float64Array[];
  /** of the examples */
  losses: number[];
}

export interface Settings {
  /** of the inner loop */
  rate: number;
  /** inner steps in training */
  steps: number;
  /** of Adam */
  outerRate: number;
}

/** Parameters of a learner as they travel between worker and page. */
export type Weights = Record<string, Float64Array>;

export abstract class Learner {
  readonly network = NETWORK;
  readonly theta: Float64Array;

  constructor(protected readonly kernel: Kernel, readonly settings: Settings, seed: number) {
    this.theta = initial(this.network.widths, new Random(seed, Stream.weights));
  }

  /** One meta-update; the mean loss of the queries after the inner steps, before the update. */
  abstract update(tasks: Tasks): number;

  /** All that is learned. */
  get weights(): Weights {
    return { theta: this.theta };
  }

  load(weights: Weights): void {
    for (const [name, own] of Object.entries(this.weights)) own.set(weights[name]!);
  }

  /** Inner steps on the examples of one task. */
  adapt(inputs: number[], targets: number[], steps: number): Path {
    const given = Float32Array.from(inputs), wanted = Float32Array.from(targets), path: Path = { parameters: [], losses: [] };
    let now: Float64Array = this.theta.slice();
    for (let step = 0; step <= steps; step++) {
      path.parameters.push(now);
      if (!inputs.length) {
        path.losses.push(0);
        continue;
      }
      const { losses, gradients } = this.kernel.curvature(this.network, now, given, wanted);
      path.losses.push(losses[0]!);
      now = this.stepped(now, gradients, step);
    }
    return path;
  }

  /** Parameters `[tasks, P]` after the inner step number `step`, by the gradients of the examples. */
  protected stepped(parameters: Float64Array, gradient: Float32Array, _step: number): Float64Array {
    const next = parameters.slice(), { rate } = this.settings;
    for (let i = 0; i < next.length; i++) next[i]! -= rate * gradient[i]!; // several times as fast as `map`
    return next;
  }

  /** Parameters `[tasks, P]`, of each task's own: before the first inner step on the support sets, and after each. */
  protected *walk({ count, supportInputs, supportTargets }: Tasks, steps: number): Generator<Float64Array> {
    let now: Float64Array = new Float64Array(count * this.theta.length);
    for (let task = 0; task < count; task++) now.set(this.theta, task * this.theta.length);
    yield now;
    for (let step = 0; step < steps; step++) {
      const { gradients } = this.kernel.curvature(this.network, now, supportInputs, supportTargets);
      yield (now = this.stepped(now, gradients, step));
    }
  }

  /** The mean loss of the queries of tasks before the first inner step on their support sets, and after each: `[steps + 1]`. */
  curve(tasks: Tasks, steps: number): number[] {
    const loss = (now: Float64Array) => mean(this.kernel.curvature(this.network, now, tasks.queryInputs, tasks.queryTargets).losses);
    return Array.from(this.walk(tasks, steps), loss);
  }

  /** Outputs `[networks][rows]` of networks with these parameters. */
  predict(parameters: Float64Array[], inputs: number[]): Float32Array[] {
    const all = this.kernel.predict(this.network, parameters, inputs);
    return parameters.map((_, i) => all.subarray(i * inputs.length, (i + 1) * inputs.length));
  }
}

/** Which parameters an inner step moves, how far, and what of the meta-gradient is kept. */
interface Rule {
  order: 1 | 2;
  /** Of the whole network, or of the last layer alone. */
  moves: "all" | "head";
  /** Whether each parameter has a rate, learned with it. */
  learnsRates: boolean;
}

/** The learners whose meta-gradient the kernel takes in one call: MAML, FOMAML, ANIL, Meta-SGD. */
export class Descent extends Learner {
  /** `[P]`, the same in each step. */
  readonly rates: Float64Array;
  private readonly outer: Adam;
  private readonly outerOfRates: Adam;

  constructor(kernel: Kernel, settings: Settings, seed: number, private readonly rule: Rule) {
    super(kernel, settings, seed);
    const head = PARAMETERS - size(this.network.widths.slice(-2));
    this.rates = Float64Array.from({ length: PARAMETERS }, (_, i) => (rule.moves === "all" || i >= head ? settings.rate : 0));
    this.outer = new Adam(PARAMETERS, settings.outerRate);
    this.outerOfRates = new Adam(PARAMETERS, settings.outerRate);
  }

  private get isPlain(): boolean {
    return !this.rule.learnsRates && this.rule.moves === "all";
  }

  override get weights(): Weights {
    return this.rule.learnsRates ? { theta: this.theta, rates: this.rates } : { theta: this.theta };
  }

  /** The mean loss of a meta-batch and its gradients: nothing moves. */
  gradient(tasks: Tasks): { loss: number; theta: Float32Array; rates: Float32Array } {
    const { steps, rate } = this.settings, rates = new Float32Array(this.isPlain ? steps : steps * PARAMETERS);
    for (let step = 0; step < steps; step++) {
      if (this.isPlain) rates[step] = rate;
      else rates.set(this.rates, step * PARAMETERS);
    }
    const { losses, gradient, ratesGradient } = this.kernel.adapt(this.network, this.theta, tasks, rates, steps, this.rule.order);
    return { loss: mean(losses), theta: gradient, rates: ratesGradient };
  }

  override update(tasks: Tasks): number {
    const { loss, theta, rates } = this.gradient(tasks);
    this.outer.step(this.theta, theta);
    if (this.rule.learnsRates) {
      const sum = new Float64Array(PARAMETERS);
      for (let i = 0; i < rates.length; i++) sum[i % PARAMETERS]! += rates[i]!;
      this.outerOfRates.step(this.rates, sum);
    }
    return loss;
  }

  protected override stepped(parameters: Float64Array, gradient: Float32Array): Float64Array {
    return parameters.map((value, i) => value - this.rates[i % PARAMETERS]! * gradient[i]!);
  }
}

/** The baseline: one network for the queries of all tasks, without an inner loop in training. */
export class Pretrained extends Learner {
  private readonly outer = new Adam(PARAMETERS, this.settings.outerRate);

  override update(tasks: Tasks): number {
    const { losses, gradient } = this.kernel.adapt(this.network, this.theta, tasks, [], 0);
    this.outer.step(this.theta, gradient);
    return mean(losses);
  }
}

export const mean = (values: ArrayLike<number>): number => {
  let sum = 0;
  for (let i = 0; i < values.length; i++) sum += values[i]!;
  return sum / values.length;
};
