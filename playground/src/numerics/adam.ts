/** Adam (Kingma, Ba 2015), as torch's: in place. */
export class Adam {
  private readonly mean: Float64Array;
  private readonly square: Float64Array;
  private count = 0;

  constructor(length: number, public rate: number, private readonly betas: readonly [number, number] = [0.9, 0.999]) {
    this.mean = new Float64Array(length);
    this.square = new Float64Array(length);
  }

  step(parameters: Float64Array, gradient: ArrayLike<number>): void {
    const [b, c] = this.betas, { mean, square } = this;
    this.count++;
    const rate = this.rate / (1 - b ** this.count), root = Math.sqrt(1 - c ** this.count);
    for (let i = 0; i < parameters.length; i++) {
      const g = gradient[i]!;
      mean[i] = b * mean[i]! + (1 - b) * g;
      square[i] = c * square[i]! + (1 - c) * g * g;
      parameters[i]! -= (rate * mean[i]!) / (Math.sqrt(square[i]!) / root + 1e-8);
    }
  }
}
