"""What a recipe may name of Composer's is what Composer has; the rest is refused by key, without importing it."""

import inspect

import composer.algorithms
import composer.callbacks
import composer.loggers
import pytest
from composer.core import Algorithm, Callback
from composer.loggers import LoggerDestination

from rotary_foundry import load_recipe
from rotary_foundry.recipe.extension_names import KINDS
from rotary_foundry.utils.errors import ConfigurationError

NANO = "yamls/main/nano.yaml"


@pytest.mark.parametrize(
    ("key", "module", "base"),
    [
        ("callbacks", composer.callbacks, Callback),
        ("algorithms", composer.algorithms, Algorithm),
        ("loggers", composer.loggers, LoggerDestination),
    ],
)
def test_the_names_are_those_of_composers_classes(key, module, base):
    classes = {found for found in vars(module).values() if inspect.isclass(found) and issubclass(found, base)} - {base}
    kind = KINDS[key]
    assert {name.replace("_", "") for name in kind.names} == {
        found.__name__.lower().removesuffix("logger") for found in classes
    }
    assert kind.refused.keys() <= set(kind.names)


def test_names_and_dotted_paths_are_taken_and_null_leaves_one_out():
    recipe = load_recipe(
        NANO,
        [
            "callbacks={lr_monitor: {}, my_package.callbacks.Mine: {every: 3}, speed_monitor: null}",
            "algorithms={my_package.Mine: {}}",
            "loggers={file: {filename: log.txt}}",
        ],
    )
    assert recipe.callbacks == {"lr_monitor": {}, "my_package.callbacks.Mine": {"every": 3}, "speed_monitor": None}
    assert load_recipe(NANO, ["callbacks.lr_monitor={}"]).callbacks == {"lr_monitor": {}}


@pytest.mark.parametrize(
    ("override", "says"),
    [
        (
            "callbacks.lr_monitr={}",
            "'callbacks.lr_monitr': 'lr_monitr' is not known; did you mean 'lr_monitor'; name a cl",
        ),
        ("callbacks.Mine={}", "name a class of your own by its dotted path, such as my_package.MyClass"),
        ("callbacks={my-package.Mine: {}}", "'callbacks.my-package.Mine': 'my-package.Mine' is not known"),
        ("callbacks={my_package..Mine: {}}", "'callbacks.my_package..Mine': 'my_package..Mine' is not known"),
        ("callbacks.lr_monitor=3", "'callbacks.lr_monitor': expected arguments by name"),
        ("callbacks.lr_monitor=[3]", "'callbacks.lr_monitor': expected arguments by name"),
        ("callbacks=[lr_monitor]", "'callbacks': expected a mapping of keys to values, got a list"),
        ("callbacks.checkpoint_saver={}", "'callbacks.checkpoint_saver': a run saves its checkpoints itself"),
        ("algorithms.gradient_clipping={}", "'algorithms.gradient_clipping': changes the optimizer, which 'optimizer'"),
        ("algorithms.seq_length_warmup={}", "give the stages their 'row_length'"),
        ("algorithms.ema={}", "its state is in no checkpoint"),
        ("algorithms.emma={}", "'algorithms.emma': 'emma' is not known; name a class of your own"),
        ("loggers.tensorbord={}", "'tensorbord' is not known; did you mean 'tensorboard'"),
        ("loggers.wandb={checkpoint_references: 3}", "'loggers.wandb.checkpoint_references': expected true or false"),
        ("loggers.progress_bar={}", "would draw into the recipe's own 'progress_bar'"),
    ],
)
def test_what_cannot_be_used_is_refused_by_key(override, says):
    with pytest.raises(ConfigurationError) as refused:
        load_recipe(NANO, [override])
    assert says in str(refused.value)
