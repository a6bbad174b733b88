/** MAML++ (Antoniou, Edwards, Storkey 2019), without batch-norm: rates for each layer and step, and a loss after each step. */

import { ByGradient, type MetaGradient } from "./by_gradient";
import type { Kernel, Tasks } from "./kernel";
import { mean, type Settings, type Weights } from "./learner";

export class MamlPp extends ByGradient {
  /** `[steps, tensors]`: weights and bias of each layer in turn */
  readonly rates: Float64Array;
  /** which tensor each parameter belongs to, `[P]` */
  private readonly tensor: number[];
  private readonly tensors: number;
  private updates = 0;

  /** @param multiStepUpdates meta-updates until only the loss after the last step counts */
  constructor(kernel: Kernel, settings: Settings, seed: number, readonly multiStepUpdates: number) {
    super(kernel, settings, seed);
    const { widths } = this.network, sizes = widths.slice(1).flatMap((out, layer) => [widths[layer]! * out, out]);
    this.tensor = sizes.flatMap((length, tensor) => Array<number>(length).fill(tensor));
    this.tensors = sizes.length;
    this.rates = new Float64Array(settings.steps * sizes.length).fill(settings.rate);
  }

  override get weights() {
    return { theta: this.theta, rates: this.rates };
  }

  /** Of the query losses after inner steps 1 to the last, now; they sum to 1. */
  get stepWeights(): number[] {
    const { steps } = this.settings, progress = this.multiStepUpdates ? Math.min(1, this.updates / this.multiStepUpdates) : 1;
    return Array.from({ length: steps }, (_, i) => (1 + (i < steps - 1 ? -progress : (steps - 1) * progress)) / steps);
  }

  /** Further steps than in training take the last one's rates. */
  protected override stepped(parameters: Float64Array, gradient: Float32Array, step: number): Float64Array {
    const row = Math.min(step, this.settings.steps - 1) * this.tensors, P = this.theta.length;
    return parameters.map((value, i) => value - this.rates[row + this.tensor[i % P]!]! * gradient[i]!);
  }

  /** A loss after each step is as many inner loops, each from the beginning. */
  override gradient(tasks: Tasks): MetaGradient {
    const P = this.theta.length, { steps } = this.settings, of: Weights = { theta: new Float64Array(P), rates: new Float64Array(this.rates.length) };
    const rates = Float32Array.from({ length: steps * P }, (_, i) => this.rates[Math.floor(i / P) * this.tensors + this.tensor[i % P]!]!);
    let loss = NaN;
    for (const [i, weight] of this.stepWeights.entries()) {
      if (!weight) continue;
      const found = this.kernel.adapt(this.network, this.theta, tasks, rates.subarray(0, (i + 1) * P), i + 1);
      loss = mean(found.losses);
      for (let j = 0; j < P; j++) of.theta![j]! += weight * found.gradient[j]!;
      for (let j = 0; j < (i + 1) * P; j++) of.rates![Math.floor(j / P) * this.tensors + this.tensor[j % P]!]! += weight * found.ratesGradient[j]!;
    }
    return { loss, of };
  }

  override update(tasks: Tasks): number {
    const loss = super.update(tasks);
    this.updates++;
    return loss;
  }
}
