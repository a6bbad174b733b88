/** Reptile (Nichol, Achiam, Schulman 2018): the meta-parameters move towards where each task's descent led. */

import { ByGradient, meanOfTasks, type MetaGradient } from "./by_gradient";
import type { Tasks } from "./kernel";
import { mean } from "./learner";

export class Reptile extends ByGradient {
  /** The mean over tasks of theta - phi, in the place of a gradient. */
  override gradient(tasks: Tasks): MetaGradient {
    const phi = this.adapted(tasks);
    const { losses } = this.kernel.curvature(this.network, phi, tasks.queryInputs, tasks.queryTargets);
    return { loss: mean(losses), of: { theta: meanOfTasks(phi, tasks.count).map((value, i) => this.theta[i]! - value) } };
  }

  /** It has no query set: all rows are examples, as `lightning_maml.reptile` advises. */
  override update(tasks: Tasks): number {
    const { count, supportInputs, supportTargets, queryInputs, queryTargets } = tasks;
    return super.update({
      ...tasks, supportInputs: rowByRow(supportInputs, queryInputs, count), supportTargets: rowByRow(supportTargets, queryTargets, count),
    });
  }
}

/** `[tasks, n]` and `[tasks, m]` as `[tasks, n + m]`. */
function rowByRow(one: Float32Array, other: Float32Array, tasks: number): Float32Array {
  const n = one.length / tasks, m = other.length / tasks, both = new Float32Array(one.length + other.length);
  for (let task = 0; task < tasks; task++) {
    both.set(one.subarray(task * n, (task + 1) * n), task * (n + m));
    both.set(other.subarray(task * m, (task + 1) * m), task * (n + m) + n);
  }
  return both;
}
