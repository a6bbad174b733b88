/** A learner that says what its meta-gradient is; Adam does the rest. */

import { Adam } from "./adam";
import type { Tasks } from "./kernel";
import { Learner, type Weights } from "./learner";

export interface MetaGradient {
  /** the mean loss of the queries after the inner steps */
  loss: number;
  /** of each of the learner's weights, by name */
  of: Weights;
}

export abstract class ByGradient extends Learner {
  private readonly outer: Record<string, Adam> = {};

  /** Nothing moves. */
  abstract gradient(tasks: Tasks): MetaGradient;

  /** Parameters `[tasks, P]` after all inner steps of the training. */
  protected adapted(tasks: Tasks): Float64Array {
    let phi: Float64Array = new Float64Array();
    for (phi of this.walk(tasks, this.settings.steps));
    return phi;
  }

  override update(tasks: Tasks): number {
    const { loss, of } = this.gradient(tasks);
    for (const [name, own] of Object.entries(this.weights)) (this.outer[name] ??= new Adam(own.length, this.settings.outerRate)).step(own, of[name]!);
    return loss;
  }
}

/** The mean over tasks of `[tasks, n]`. */
export function meanOfTasks(values: ArrayLike<number>, tasks: number): Float64Array {
  const each = values.length / tasks, sum = new Float64Array(each);
  for (let begin = 0; begin < values.length; begin += each) for (let i = 0; i < each; i++) sum[i]! += values[begin + i]! / tasks;
  return sum;
}
