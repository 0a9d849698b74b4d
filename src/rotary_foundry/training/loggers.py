"""Make the loggers of a recipe; wandb and tensorboard also get the run's name and folder."""

import secrets
from dataclasses import asdict

from composer.loggers import LoggerDestination, TensorboardLogger
from composer.utils import dist

from rotary_foundry.loggers.wandb_run import WandBRun
from rotary_foundry.recipe import Recipe
from rotary_foundry.runs.environment import commit
from rotary_foundry.runs.record_files import each_line, write_whole
from rotary_foundry.runs.run_folder import RunFolder
from rotary_foundry.training.extensions import extensions
from rotary_foundry.utils.errors import ConfigurationError
from rotary_foundry.utils.redaction import redacted


def loggers(recipe: Recipe, folder: RunFolder) -> list[LoggerDestination]:
    """Make the loggers of a run, wandb and tensorboard first. Call it on every rank.

    Raises:
        ConfigurationError: a logger refuses a value.
    """
    made: list[LoggerDestination] = []
    for name, make in OURS.items():
        if recipe.loggers.get(name) is not None:
            try:
                made += make(recipe, folder, dict(recipe.loggers[name]))
            except TypeError as error:
                raise ConfigurationError(f"'loggers.{name}': {error}") from error
    return made + extensions(recipe, "loggers", without=tuple(OURS))


def _wandb(recipe: Recipe, folder: RunFolder, arguments: dict) -> list[LoggerDestination]:
    plain = asdict(recipe)
    init_kwargs = {"dir": str(folder.path), "resume": "allow", "allow_val_change": True}
    if dist.get_global_rank() == 0:  # the only one that logs
        if not folder.wandb_id.exists():
            write_whole(folder.wandb_id, secrets.token_hex(4))
        init_kwargs["id"] = folder.wandb_id.read_text(encoding="ascii")
        init_kwargs["config"] = {"recipe": redacted(plain), "git_commit": commit()}
    given = arguments.pop("init_kwargs", None) or {}
    settings = {"settings": given["settings"]} if "settings" in given else {}  # an API key may be given there
    init_kwargs |= redacted(given, plain) | settings
    abandoned = [line["batch"] - line["to_batch"] + 1 for line in each_line(folder.ledger, ("batch", "to_batch"))]
    wandb_run = WandBRun(
        first_step=sum(abandoned),
        secret_in=plain,
        checkpoint_references=arguments.pop("checkpoint_references", False),
        init_kwargs=init_kwargs,
        **redacted({"name": recipe.run_name} | arguments, plain),
    )
    return [wandb_run]


def _tensorboard(recipe: Recipe, folder: RunFolder, arguments: dict) -> list[LoggerDestination]:
    """Make the TensorBoard logger on the first rank only; on other ranks Composer's writes empty files."""
    logger = TensorboardLogger(**({"log_dir": str(folder.tensorboard)} | arguments))
    return [logger] if dist.get_global_rank() == 0 else []


OURS = {"wandb": _wandb, "tensorboard": _tensorboard}
