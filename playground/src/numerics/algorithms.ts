/** The algorithms of the playground by name, as `lightning_maml` names them. */

import { Cavia } from "./cavia";
import { Imaml } from "./imaml";
import type { Kernel } from "./kernel";
import { Descent, Pretrained, type Learner, type Settings } from "./learner";
import { MamlPp } from "./maml_pp";
import { Reptile } from "./reptile";

export const IMPLICIT = { proximal: 1, cgSteps: 5, damping: 1 };
export const CONTEXTS = 5;
export const MULTI_STEP_UPDATES = 500;

type Make = (kernel: Kernel, settings: Settings, seed: number) => Learner;

export const ALGORITHMS = {
  maml: (kernel, settings, seed) => new Descent(kernel, settings, seed, { order: 2, moves: "all", learnsRates: false }),
  fomaml: (kernel, settings, seed) => new Descent(kernel, settings, seed, { order: 1, moves: "all", learnsRates: false }),
  anil: (kernel, settings, seed) => new Descent(kernel, settings, seed, { order: 2, moves: "head", learnsRates: false }),
  meta_sgd: (kernel, settings, seed) => new Descent(kernel, settings, seed, { order: 2, moves: "all", learnsRates: true }),
  reptile: (kernel, settings, seed) => new Reptile(kernel, settings, seed),
  imaml: (kernel, settings, seed) => new Imaml(kernel, settings, seed, IMPLICIT),
  cavia: (kernel, settings, seed) => new Cavia(kernel, settings, seed, CONTEXTS),
  maml_pp: (kernel, settings, seed) => new MamlPp(kernel, settings, seed, MULTI_STEP_UPDATES),
  pretrained: (kernel, settings, seed) => new Pretrained(kernel, settings, seed),
} satisfies Record<string, Make>;

export type AlgorithmName = keyof typeof ALGORITHMS;
