"""Prepare packed shards from a data YAML: `python data_prep CONFIG [key=value …]`.

This folder is first on sys.path, so it must not contain a module with the name of a library.
"""

import argparse
import logging
import os
import sys

from rich.console import Console

from rotary_foundry.data_prep.corpus_config import load_corpus_config
from rotary_foundry.data_prep.pipeline import prepare
from rotary_foundry.data_prep.statistics import Statistics
from rotary_foundry.data_prep.statistics_table import first_bad_input, table
from rotary_foundry.utils.errors import FoundryError, escape_unprintable, print_error
from rotary_foundry.utils.redaction import redacted

# transformers saves and opens tokenizers; without this setting it would import torch, which takes six seconds each time
os.environ.setdefault("USE_TORCH", "0")
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def main() -> int:
    """Run the command line; the exit status is 2 for a problem that the user can fix."""
    escape_unprintable()
    parser = argparse.ArgumentParser(prog="python data_prep", description="Make packed MDS shards of a corpus.")
    parser.add_argument("config", help="a data YAML, such as yamls/data/nano.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides a key, as in out=data/other")
    arguments = parser.parse_args()
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    logging.getLogger("rotary_foundry").setLevel(logging.INFO)
    try:
        config = load_corpus_config(arguments.config, arguments.overrides)
        if prepare(config):
            console = Console()
            console.print(table(config.out, Statistics.read(config.out)))
            for line in first_bad_input(config.out):
                console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(f"submitted; give the same command again when the jobs have ended, to see what is in {config.out}")
    except (FoundryError, OSError) as error:  # an OSError names the file
        print_error(redacted(str(error)))
        return 2
    return 0


if __name__ == "__main__":  # worker processes import this file too
    sys.exit(main())
