"""The door that `composer launch RECIPE [key=value …]` opens, once in every process.

A wrong recipe, an indivisible batch or foreign shards are refused here, before torch is imported and before a process
group is made; one rank says so, not all.
"""

import os
import sys
import time

from encoder_foundry.errors import STOPPED, ConfigurationError, FoundryError, StopRequested
from encoder_foundry.recipe import Plan, Recipe, compile_plan, load_recipe

# Seconds. Composer ends all ranks as soon as one has failed, so the others wait for the first to say what is wrong; one
# that is still there then has an error of its own, such as shards that are missing on its node.
FIRST_RANK_SPEAKS = 10


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: composer [-n PROCESSES] launch RECIPE.yaml [key=value …]")
        return 0 if arguments else 2
    try:
        launch(arguments[0], arguments[1:])
    except FoundryError as error:
        if int(os.environ.get("RANK", 0)) != 0:
            time.sleep(FIRST_RANK_SPEAKS)
        print(f"error: {error}", file=sys.stderr)
        return 2
    except StopRequested as stopped:
        if int(os.environ.get("RANK", 0)) == 0:
            print(f"{stopped}; the same command goes on from there")
        return STOPPED
    return 0


def launch(path: str, overrides: list[str]) -> None:
    recipe = load_recipe(path, overrides)
    check_world_size(recipe, compile_plan(recipe), path)

    from encoder_foundry.data.shards import open_corpus

    tokenizer = open_corpus(recipe)

    # Every flat batch has a length of its own, and oneDNN keeps a compiled kernel for each of the last 1024: gigabytes.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16")

    from encoder_foundry.training.first_weights import check_init_from
    from encoder_foundry.training.logs import start_logs
    from encoder_foundry.training.run import train

    check_init_from(recipe)
    start_logs(recipe)
    train(recipe, tokenizer)


def check_world_size(recipe: Recipe, plan: Plan, path: str) -> None:
    world = int(os.environ.get("WORLD_SIZE", 1))
    recipe.fsdp_config.degrees(world)
    for segment in plan.segments:
        if segment.rows % world:
            raise ConfigurationError(
                f"{path}: an update of stage '{segment.stage}' has {segment.rows} rows, "
                f"which {world} processes do not divide"
            )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
