/** Implicit MAML (Rajeswaran, Finn, Kakade, Levine 2019): the meta-gradient at the end of the inner loop, whatever way led there. */

import { ByGradient, meanOfTasks, type MetaGradient } from "./by_gradient";
import type { Kernel, Tasks } from "./kernel";
import { mean, type Settings } from "./learner";

export interface Implicit {
  /** lambda, which draws tasks back to the meta-parameters */
  proximal: number;
  cgSteps: number;
  damping: number;
}

export class Imaml extends ByGradient {
  constructor(kernel: Kernel, settings: Settings, seed: number, readonly rule: Implicit) {
    super(kernel, settings, seed);
  }

  protected override stepped(parameters: Float64Array, gradient: Float32Array): Float64Array {
    const { theta, rule, settings } = this, P = theta.length, next = parameters.slice();
    for (let begin = 0; begin < next.length; begin += P)
      for (let i = 0; i < P; i++) next[begin + i]! -= settings.rate * (gradient[begin + i]! + rule.proximal * (next[begin + i]! - theta[i]!));
    return next;
  }

  /** The mean over tasks of g, of ((1 + damping) I + H / lambda) g = gradient of the queries, H of the support set. */
  override gradient(tasks: Tasks): MetaGradient {
    const { proximal, cgSteps, damping } = this.rule, { supportInputs, supportTargets } = tasks;
    const phi = this.adapted(tasks);
    const { losses, gradients } = this.kernel.curvature(this.network, phi, tasks.queryInputs, tasks.queryTargets);
    const multiply = (v: Float64Array) => {
      const { products } = this.kernel.curvature(this.network, phi, supportInputs, supportTargets, v), product = new Float64Array(v.length);
      for (let i = 0; i < v.length; i++) product[i] = (1 + damping) * v[i]! + products[i]! / proximal;
      return product;
    };
    const b = Float64Array.from(gradients), start = b.map((value) => value / (1 + damping));
    return { loss: mean(losses), of: { theta: meanOfTasks(conjugateGradients(multiply, b, cgSteps, start, tasks.count), tasks.count) } };
  }
}

/**
 * Solves A x = b for each task, all `[tasks, P]`; the iterate of the smallest residual. A task that meets a direction of
 * negative curvature stays where it is.
 */
function conjugateGradients(
  multiply: (v: Float64Array) => Float64Array, b: Float64Array, steps: number, start: Float64Array, tasks: number,
): Float64Array {
  const P = b.length / tasks, x = start.slice(), best = start.slice(), first = multiply(start);
  const r = b.map((value, i) => value - first[i]!), p = r.slice();
  const dot = (one: Float64Array, other: Float64Array, task: number) => {
    let sum = 0;
    for (let i = task * P; i < (task + 1) * P; i++) sum += one[i]! * other[i]!;
    return sum;
  };
  const squared = Array.from({ length: tasks }, (_, task) => dot(r, r, task)), least = [...squared];
  for (let step = 0; step < steps; step++) {
    const product = multiply(p);
    for (let task = 0; task < tasks; task++) {
      const curvature = dot(p, product, task), before = squared[task]!, begin = task * P, end = begin + P;
      if (!(curvature > 0 && before > 0)) continue;
      const alpha = before / curvature;
      for (let i = begin; i < end; i++) (x[i]! += alpha * p[i]!), (r[i]! -= alpha * product[i]!);
      squared[task] = dot(r, r, task);
      for (let i = begin; i < end; i++) p[i] = r[i]! + (squared[task]! / before) * p[i]!;
      if (squared[task]! >= least[task]!) continue;
      least[task] = squared[task]!;
      best.set(x.subarray(begin, end), begin);
    }
  }
  return best;
}
