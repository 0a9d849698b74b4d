"""What goes into a rank's log and from there to the terminal."""

import logging

import pytest

from rotary_foundry.runs.recipes import load_recipe
from rotary_foundry.training import logs
from rotary_foundry.utils.errors import FoundryError
from rotary_foundry.utils.redaction import REDACTED

SECRET = "planted0planted0"


@pytest.mark.parametrize("kind", [FoundryError, ValueError])
def test_a_secret_of_the_recipe_that_an_error_repeats_is_neither_logged_nor_said(monkeypatch, tmp_path, kind):
    """As pydantic does with the value of a key that wandb.Settings does not know."""
    misspelt = f"loggers.wandb.init_kwargs.settings.apikey={SECRET}"
    recipe = load_recipe("yamls/main/nano.yaml", [f"runs_folder={tmp_path}", misspelt])
    monkeypatch.setattr(logging, "basicConfig", lambda handlers, **_: logs.log.addHandler(handlers[0]))
    monkeypatch.setattr(logging, "captureWarnings", lambda _: None)
    monkeypatch.setattr(logs.faulthandler, "enable", lambda _: None)
    monkeypatch.setattr(logs, "_recipe", None)
    monkeypatch.setattr(logs, "_file", None)
    logs.start_logs(recipe)
    said = logs.log_failure(kind(f"extra inputs are not permitted, input_value='{SECRET}'"))
    logs.log.removeHandler(logs.log.handlers[-1])
    assert f"input_value='{REDACTED}'" in said and SECRET not in said
    written = (tmp_path / "nano/logs/rank0.log").read_text()
    assert f"{kind.__name__}: extra inputs" in written and SECRET not in written


def test_a_full_disk_puts_no_traceback_of_logging_on_the_terminal(capsys):
    handler = logs._LogFile("/dev/full")
    for message, arguments in (("lost", ()), ("%d is no number", ("this",))):
        handler.handle(logging.LogRecord("a name", logging.INFO, __file__, 1, message, arguments, None))
        said = capsys.readouterr().err
        assert ("Logging error" in said) == bool(arguments)  # a mistake in our code is still told
    logging.getLogger().removeHandler(handler)
