/** CAVIA (Zintgraf, Shiarlis, Kurin, Hofmann, Whiteson 2019): a few numbers of context adapt, from zero; all else is shared. */

import { ByGradient, type MetaGradient } from "./by_gradient";
import type { Kernel, Tasks } from "./kernel";
import { mean, type Settings } from "./learner";
import { Random, Stream } from "./random";
import { initial } from "./sines";

/**
 * A context c beside the input is W c in the first layer's bias, of W `[hidden, contexts]`: the network is the one that all
 * learners have, with b + W c for b, and a step c - rate W' g, of the bias's gradient g, moves that bias by -rate W W' g.
 */
export class Cavia extends ByGradient {
  readonly contextWeights: Float64Array;
  /** where the first layer's bias stands in theta */
  private readonly bias: number;
  private readonly hidden: number;

  constructor(kernel: Kernel, settings: Settings, seed: number, readonly contexts: number) {
    super(kernel, settings, seed);
    const [inputs, hidden, ...rest] = this.network.widths as [number, number, ...number[]];
    this.hidden = hidden;
    this.bias = inputs * hidden;
    this.contextWeights = new Float64Array(hidden * contexts);
    const drawn = initial([inputs + contexts, hidden, ...rest], new Random(seed, Stream.weights)), row = inputs + contexts;
    for (let unit = 0; unit < hidden; unit++) {
      this.theta.set(drawn.subarray(unit * row, unit * row + inputs), unit * inputs);
      this.contextWeights.set(drawn.subarray(unit * row + inputs, (unit + 1) * row), unit * contexts);
    }
    this.theta.set(drawn.subarray(row * hidden), this.bias);
  }

  override get weights() {
    return { theta: this.theta, contextWeights: this.contextWeights };
  }

  /** W' g `[contexts]`, of what stands at the bias in the row `[P]` of a task. */
  private toContext(row: ArrayLike<number>, task: number): Float64Array {
    const { contexts, hidden, contextWeights } = this, begin = task * this.theta.length + this.bias, sum = new Float64Array(contexts);
    for (let i = 0; i < hidden * contexts; i++) sum[i % contexts]! += contextWeights[i]! * row[begin + Math.floor(i / contexts)]!;
    return sum;
  }

  /** Adds `scale` W c to the bias of a task in `[tasks, P]`. */
  private fromContext(rows: Float64Array, task: number, context: Float64Array, scale: number): void {
    const { contexts, hidden, contextWeights } = this, begin = task * this.theta.length + this.bias;
    for (let i = 0; i < hidden * contexts; i++) rows[begin + Math.floor(i / contexts)]! += scale * contextWeights[i]! * context[i % contexts]!;
  }

  protected override stepped(parameters: Float64Array, gradient: Float32Array): Float64Array {
    const next = parameters.slice();
    for (let task = 0; task * this.theta.length < next.length; task++) {
      this.fromContext(next, task, this.toContext(gradient, task), -this.settings.rate);
    }
    return next;
  }

  override gradient(tasks: Tasks): MetaGradient {
    const { count, supportInputs, supportTargets } = tasks, { rate, steps } = this.settings, P = this.theta.length, { contexts, hidden } = this;
    const every = Array.from({ length: count }, (_, task) => task), theta = new Float64Array(P), ofW = new Float64Array(hidden * contexts);
    const collect = (rows: ArrayLike<number>) => {
      for (let begin = 0; begin < count * P; begin += P) for (let i = 0; i < P; i++) theta[i]! += rows[begin + i]! / count;
    };
    /** adds scale g c' to the gradient of W, g at the bias of a task's row */
    const outer = (rows: ArrayLike<number>, task: number, context: Float64Array, scale: number) => {
      for (let i = 0; i < ofW.length; i++) ofW[i]! += (scale / count) * rows[task * P + this.bias + Math.floor(i / contexts)]! * context[i % contexts]!;
    };

    const path: { phi: Float64Array; contexts: Float64Array[]; gradients: Float32Array }[] = [];
    let phi: Float64Array = new Float64Array(count * P), now = every.map(() => new Float64Array(contexts));
    for (const task of every) phi.set(this.theta, task * P);
    for (let step = 0; step < steps; step++) {
      const { gradients } = this.kernel.curvature(this.network, phi, supportInputs, supportTargets);
      path.push({ phi, contexts: now, gradients });
      now = now.map((context, task) => {
        const along = this.toContext(gradients, task);
        return context.map((value, i) => value - rate * along[i]!);
      });
      phi = this.stepped(phi, gradients);
    }
    const { losses, gradients: v } = this.kernel.curvature(this.network, phi, tasks.queryInputs, tasks.queryTargets);
    collect(v);
    for (const task of every) outer(v, task, now[task]!, 1);
    const slopes = every.map((task) => this.toContext(v, task)); // of the loss by the contexts after a step
    for (const { phi, contexts: before, gradients } of path.reverse()) {
      const along = new Float64Array(count * P);
      for (const task of every) {
        outer(gradients, task, slopes[task]!, -rate);
        this.fromContext(along, task, slopes[task]!, -rate);
      }
      const { products } = this.kernel.curvature(this.network, phi, supportInputs, supportTargets, along);
      collect(products);
      for (const task of every) {
        outer(products, task, before[task]!, 1);
        const more = this.toContext(products, task);
        for (let i = 0; i < contexts; i++) slopes[task]![i]! += more[i]!;
      }
    }
    return { loss: mean(losses), of: { theta, contextWeights: ofW } };
  }
}

/** The parameters of a network with contexts among its inputs, in torch's order, of what a `Cavia` has learned. */
export function joined({ theta, contextWeights }: Record<string, Float64Array>, inputs: number, hidden: number): Float64Array {
  const contexts = contextWeights!.length / hidden, row = inputs + contexts, all = new Float64Array(theta!.length + contextWeights!.length);
  for (let unit = 0; unit < hidden; unit++) {
    all.set(theta!.subarray(unit * inputs, (unit + 1) * inputs), unit * row);
    all.set(contextWeights!.subarray(unit * contexts, (unit + 1) * contexts), unit * row + inputs);
  }
  all.set(theta!.subarray(inputs * hidden), row * hidden);
  return all;
}
