/** Sine waves y = A sin(x - phase), the regression of Finn et al. 2017 (section 5.1). */

import type { Tasks } from "./kernel";
import { Random, Stream } from "./random";

export const AMPLITUDE = [0.1, 5] as const;
export const PHASE = [0, Math.PI] as const;
export const INPUTS = [-5, 5] as const;

export interface Wave {
  amplitude: number;
  phase: number;
}

export const height = ({ amplitude, phase }: Wave, x: number) => amplitude * Math.sin(x - phase);

/** The batch of tasks that stands at `batch` in a stream: each draws its amplitude, its phase and all its inputs. */
export function sample(random: Random, batch: number, count = 25, shots = 10, queries = 10): Tasks & { waves: Wave[] } {
  const waves: Wave[] = [], each = 2 + shots + queries;
  const sets = [shots, shots, queries, queries].map((rows) => new Float32Array(count * rows));
  const [supportInputs, supportTargets, queryInputs, queryTargets] = sets as [Float32Array, Float32Array, Float32Array, Float32Array];
  for (let task = 0; task < count; task++) {
    const begin = (batch * count + task) * each;
    const wave = { amplitude: random.uniform(begin, ...AMPLITUDE), phase: random.uniform(begin + 1, ...PHASE) };
    waves.push(wave);
    for (let row = 0; row < shots + queries; row++) {
      const x = random.uniform(begin + 2 + row, ...INPUTS), isQuery = row >= shots;
      const at = isQuery ? task * queries + row - shots : task * shots + row;
      (isQuery ? queryInputs : supportInputs)[at] = x;
      (isQuery ? queryTargets : supportTargets)[at] = height(wave, x);
    }
  }
  return { count, supportInputs, supportTargets, queryInputs, queryTargets, waves };
}

/** The tasks that no learner trains on: five examples each. */
export const HELD_OUT = { count: 40, shots: 5, queries: 20 } as const;

export const heldOut = (seed: number) => sample(new Random(seed, Stream.heldOut), 0, HELD_OUT.count, HELD_OUT.shots, HELD_OUT.queries);

/** Weights and biases as torch's `Linear` draws them: uniform within 1 / sqrt(in). */
export function initial(widths: number[], random: Random): Float64Array {
  const numbers: number[] = [];
  for (const [layer, out] of widths.slice(1).entries()) {
    const within = widths[layer]!, bound = 1 / Math.sqrt(within);
    for (let i = (within + 1) * out; i > 0; i--) numbers.push(random.uniform(numbers.length, -bound, bound));
  }
  return Float64Array.from(numbers);
}
