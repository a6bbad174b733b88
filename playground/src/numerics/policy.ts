/** A Gaussian policy with ReLUs, as `lightning_maml.rl.GaussianPolicy`: one row forth and back, in double precision. */

import { size } from "./kernel";

export class Policy {
  /** Of each layer: its inputs, which for hidden layers are after the ReLU. */
  private readonly inputs: Float64Array[];
  private readonly outputs: Float64Array[];
  /** Of each layer `[in, out]`, the other way round: so the inputs that are 0 are left out. */
  private readonly columns: Float64Array[];
  private readonly begins: number[];
  /** The deviation of each action. */
  readonly std: Float64Array;

  /** @param theta weights `[out, in]` and biases `[out]` of each layer, then the logarithms of the deviations, `[P]` */
  constructor(readonly widths: number[], readonly theta: Float64Array) {
    this.begins = widths.map((_, layer) => size(widths.slice(0, layer + 1)));
    this.outputs = widths.slice(1).map((out) => new Float64Array(out));
    this.inputs = [new Float64Array(widths[0]!), ...this.outputs.slice(0, -1)];
    this.columns = this.outputs.map((output, layer) => {
      const out = output.length, within = widths[layer]!, begin = this.begins[layer]!, turned = new Float64Array(out * within);
      for (let o = 0; o < out; o++) for (let i = 0; i < within; i++) turned[i * out + o] = theta[begin + o * within + i]!;
      return turned;
    });
    this.std = theta.slice(size(widths)).map(Math.exp);
  }

  /** The mean of the actions at an observation; the next call writes into the same array. */
  mean(observation: ArrayLike<number>): Float64Array {
    const { theta } = this;
    this.inputs[0]!.set(observation);
    for (let layer = 0; layer < this.outputs.length; layer++) {
      const output = this.outputs[layer]!, input = this.inputs[layer]!, within = input.length, out = output.length;
      const columns = this.columns[layer]!, bias = this.begins[layer]! + within * out;
      for (let o = 0; o < out; o++) output[o] = theta[bias + o]!;
      for (let i = 0, at = 0; i < within; i++, at += out) {
        const value = input[i]!;
        if (value !== 0) for (let o = 0; o < out; o++) output[o] = output[o]! + value * columns[at + o]!;
      }
      if (layer < this.outputs.length - 1) for (let o = 0; o < out; o++) if (output[o]! < 0) output[o] = 0;
    }
    return this.outputs.at(-1)!;
  }

  /** Adds to `gradient [P]` that of `slope` times the last mean, through the network. */
  back(slope: Float64Array, gradient: Float64Array): void {
    const { theta } = this;
    let of = slope;
    for (let layer = this.outputs.length - 1; layer >= 0; layer--) {
      const input = this.inputs[layer]!, within = input.length, out = of.length, begin = this.begins[layer]!;
      const before = new Float64Array(within), bias = begin + within * out, used: number[] = [];
      for (let i = 0; i < within; i++) if (input[i] !== 0) used.push(i);
      for (let o = 0, at = begin; o < out; o++, at += within) {
        const value = of[o]!;
        if (value === 0) continue;
        gradient[bias + o] = gradient[bias + o]! + value;
        for (let k = 0; k < used.length; k++) {
          const i = used[k]!;
          gradient[at + i] = gradient[at + i]! + value * input[i]!;
          before[i] = before[i]! + value * theta[at + i]!;
        }
      }
      of = before; // 0 where the ReLU was
    }
  }
}
