"""Count the tokens of a corpus' held-out text for two tokenizers: the corpus' own, and another.

    python examples/tokenizer_fertility.py data/wiki another-tokenizer

Fewer tokens for the same text mean shorter rows and a cheaper run, so this shows whether a tokenizer suits a language
or a domain. The text is held out because a tokenizer that was trained on the corpus has seen the rest. Words are
separated by blanks: in a script without blanks, such as Chinese, only the tokens per byte are meaningful.
"""

import argparse

from rotary_foundry.data.fast_tokenizer import open_fast, special_tokens_as_text
from rotary_foundry.data_prep.inspection.held_out_texts import held_out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a folder that `python data_prep` wrote")
    parser.add_argument("against", help="a folder with a Hugging Face tokenizer")
    parser.add_argument("--documents", type=int, default=1000, help="per source, at most (1000)")
    settings = parser.parse_args()
    other = open_fast(settings.against)
    special_tokens_as_text(other)
    sums: dict[str, list[int]] = {}  # words, bytes, tokens by ours and by the other
    for text in held_out(settings.data, settings.documents, seed=0):
        theirs = len(other(text.text, add_special_tokens=False, verbose=False)["input_ids"])
        counts = len(text.text.split()), len(text.text.encode()), text.tokens, theirs
        for name in (text.source, "all"):
            sums[name] = [a + b for a, b in zip(sums.get(name, [0] * 4), counts, strict=True)]
    sums["all"] = sums.pop("all")  # last
    print(f"{'source':20} {'bytes':>12} {'tokens per word':>21} {'tokens per byte':>21} {'other ÷ own':>11}")
    for source, (words, size, own, theirs) in sums.items():
        ratios = (own / max(1, words), theirs / max(1, words), own / size, theirs / size)
        print(f"{source:20} {size:12,} " + " ".join(f"{ratio:10.3f}" for ratio in ratios) + f" {theirs / own:11.2f}")


if __name__ == "__main__":
    main()
