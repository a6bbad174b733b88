/** The algorithms of the playground by name, as `lightning_maml` names them. */

import type { Kernel } from "./kernel";
import { Descent, Pretrained, type Learner, type Settings } from "./learner";

type Make = (kernel: Kernel, settings: Settings, seed: number) => Learner;

export const ALGORITHMS = {
  maml: (kernel, settings, seed) => new Descent(kernel, settings, seed, { order: 2, moves: "all", learnsRates: false }),
  fomaml: (kernel, settings, seed) => new Descent(kernel, settings, seed, { order: 1, moves: "all", learnsRates: false }),
  anil: (kernel, settings, seed) => new Descent(kernel, settings, seed, { order: 2, moves: "head", learnsRates: false }),
  meta_sgd: (kernel, settings, seed) => new Descent(kernel, settings, seed, { order: 2, moves: "all", learnsRates: true }),
  pretrained: (kernel, settings, seed) => new Pretrained(kernel, settings, seed),
} satisfies Record<string, Make>;

export type AlgorithmName = keyof typeof ALGORITHMS;
