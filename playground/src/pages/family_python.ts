/** The family's evaluation by the library, from the weights that the page has trained. */

import { IMPLICIT, CONTEXTS, type AlgorithmName } from "../numerics/algorithms";
import { joined } from "../numerics/cavia";
import { NETWORK, type Settings, type Weights } from "../numerics/learner";
import { PYTHON, Stream } from "../numerics/random";
import { AMPLITUDE, HELD_OUT, INPUTS } from "../numerics/sines";
import { encoded } from "../python";

interface Trained {
  name: AlgorithmName;
  settings: Settings;
  weights: Weights;
}

/** How the library is asked for an algorithm. */
function call({ name, settings: { rate, steps } }: Trained): string {
  const more: Partial<Record<AlgorithmName, string>> = { reptile: ', "sgd"', imaml: `, proximal=${IMPLICIT.proximal}` };
  return `lm.${name}(${rate}, ${steps}${more[name] ?? ""})`;
}

/** What is learned of the network, in torch's order. */
function theta({ name, weights }: Trained): Float64Array {
  return name === "cavia" ? joined(weights, NETWORK.widths[0]!, NETWORK.widths[1]!) : weights.theta!;
}

/** Rates in torch's order: of MAML++, those of all steps a tensor. */
function rates({ name, settings: { steps }, weights }: Trained): Float64Array {
  const own = weights.rates!, tensors = own.length / steps;
  return name === "maml_pp" ? own.map((_, i) => own[(i % steps) * tensors + Math.floor(i / steps)]!) : own;
}

export function program({ seed, at, updates }: { seed: number; at: number; updates: number }, trained: Trained[]): string {
  const { count, shots, queries } = HELD_OUT, [inputs, ...hidden] = NETWORK.widths.slice(0, -1);
  return `"""The family: what the playground shows of held-out tasks, by lightning_maml."""

import base64
import json

import numpy as np
import torch
from torch.nn.utils import vector_to_parameters

import lightning_maml as lm
from lightning_maml.networks import Context

SEED, STEPS = ${seed}, ${at}
ALGORITHMS = {
${trained.map((one) => `    "${one.name}": ${call(one)},`).join("\n")}
}

${PYTHON.replace("import numpy as np\n\n", "")}

def held_out(tasks=${count}, shots=${shots}, queries=${queries}):
    """The page's tasks: amplitude, phase and inputs of each in turn, out of one stream of random numbers."""
    index = np.arange(tasks * (2 + shots + queries)).reshape(tasks, -1)
    amplitude = uniform(SEED, ${Stream.heldOut}, index[:, :1], ${AMPLITUDE.join(", ")})
    phase = uniform(SEED, ${Stream.heldOut}, index[:, 1:2], 0, np.pi)
    x = uniform(SEED, ${Stream.heldOut}, index[:, 2:], ${INPUTS.join(", ")})
    x, y = (torch.tensor(each, dtype=torch.float32)[..., None] for each in (x, amplitude * np.sin(x - phase)))
    return lm.TaskBatch(x[:, :shots], y[:, :shots], x[:, shots:], y[:, shots:])

def put(text, parameters):
    vector_to_parameters(torch.from_numpy(np.frombuffer(base64.b64decode(text), "<f4").copy()), parameters)

# after ${updates} meta-updates; to train such weights yourself: lightning-maml fit --config sinusoid
WEIGHTS = {
${trained.map((one) => `    "${one.name}": "${encoded(theta(one))}",`).join("\n")}
}
RATES = {
${trained.filter(({ weights }) => weights.rates).map((one) => `    "${one.name}": "${encoded(rates(one))}",`).join("\n")}
}

numbers, tasks = {}, held_out()
for name, algorithm in ALGORITHMS.items():
    contexts = ${CONTEXTS} if name == "cavia" else 0
    network = lm.MLP(${inputs} + contexts, [${hidden.join(", ")}], 1)
    put(WEIGHTS[name], network.parameters())
    if contexts:  # the numbers that adapt stand beside the input
        network = torch.nn.Sequential(Context(contexts), network)
    module = lm.MetaModule(network, algorithm, loss="mse")
    if name in RATES:
        put(RATES[name], module.rates.parameters())
    result = lm.evaluate(network, module.algorithm, tasks, loss="mse", steps=STEPS)
    numbers[f"{name} after {STEPS} steps"] = result.query_losses[:, -1].mean().item()
print(json.dumps(numbers))
`;
}
