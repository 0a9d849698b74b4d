"""The console script `encoder-foundry`. Each subcommand imports its room when it is called, and not before."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from encoder_foundry.errors import FoundryError

app = typer.Typer(
    help="Pretrain modern long-context encoders.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback()
def _root() -> None:
    """Typer makes a single command the whole program unless there is a callback."""


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint, or a run folder for its newest one.")],
    out_dir: Annotated[Path, typer.Argument(help="Where the model goes.")],
) -> None:
    """Write a checkpoint as a model that plain transformers loads: safetensors, config and tokenizer."""
    from encoder_foundry.interop.export import export_checkpoint

    export_checkpoint(checkpoint, out_dir)
    print(f"exported to {out_dir}")


@app.command()
def summary(run: Annotated[Path, typer.Argument(help="A run folder, such as runs/nano.")]) -> None:
    """Print what a run did: its stages with their held-out loss, and what the exported model fills in."""
    from encoder_foundry.reporting.summary import print_summary

    print_summary(run)


def main() -> None:
    """Run a subcommand; a FoundryError is one line on stderr and status 2."""
    try:
        app()
    except FoundryError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
