"""Make stand-ins for a rehearsal: small shards, and a small model to grow from.

The recipe's own shards are used if they exist. If not, small ones are made under the same names from the files of the
Python installation, with their own tokenizer. The model to grow from is always a stand-in with random weights, because
the real one is too large for a rehearsal.
"""

import json
import shutil
import tempfile
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import torch
from composer.utils import dist

from rotary_foundry.data.corpus import open_corpus
from rotary_foundry.data_prep.conversations.chat_template import TEMPLATE_FILE
from rotary_foundry.data_prep.corpus_config import CorpusConfig, TokenizerConfig, TrainTokenizer
from rotary_foundry.data_prep.pipeline import prepare
from rotary_foundry.data_prep.readers import BadInput, SourceConfig, parts, read
from rotary_foundry.data_prep.task_config import TEXT
from rotary_foundry.data_prep.tokenizer import CAUSAL_TOKENS
from rotary_foundry.interop.huggingface import export_model
from rotary_foundry.models.config_json import CONFIG
from rotary_foundry.recipe import Recipe
from rotary_foundry.recipe.compilation import compile_stages
from rotary_foundry.runs.recipes import load_recipe
from rotary_foundry.runs.run_folder import RunFolder
from rotary_foundry.runs.run_lock import LOCK
from rotary_foundry.training.ranks import on_rank_zero
from rotary_foundry.training.rehearsal_tasks import rehearsal_tasks, text_source
from rotary_foundry.utils.errors import ConfigurationError

VOCABULARY = 8192
READERS = ("python_docstrings", "python_files", "distribution_readmes")
MOST_SAID = 500  # characters of an answer, so that it fits any row
TEMPLATE = "{% for m in messages %}{{ m.content }}{{ eos_token if m.role == 'assistant' else bos_token }}{% endfor %}"


def with_stand_ins(recipe: Recipe) -> Recipe:
    """Return a rehearsal's recipe with stand-ins for missing parts. Call it on every rank; the first makes them."""
    dist.initialize_dist("gpu" if torch.cuda.is_available() else "cpu", timeout=recipe.dist_timeout)
    folder = RunFolder.of(recipe)
    if recipe.data.remote is None and not (Path(recipe.data.local) / "tokenizer/tokenizer.json").is_file():
        stand_in = f"{recipe.data.local}-rehearsal"
        if dist.get_global_rank() == 0:
            print(f"{recipe.data.local}: no shards; rehearsing on Python's own sources in {stand_in}", flush=True)
        recipe = replace(
            recipe,
            data=replace(recipe.data, local=stand_in),
            model=replace(recipe.model, vocab_size=VOCABULARY),  # pyrefly: ignore[unexpected-keyword]: every family has it
        )
        on_rank_zero(lambda: _make_corpus(recipe))
    if recipe.init_from is not None:
        recipe = replace(recipe, init_from=str(folder.path / "grown_from"))
    on_rank_zero(lambda: _forget_another(recipe, folder))
    if recipe.init_from is not None:
        on_rank_zero(lambda: _make_source(recipe, Path(recipe.init_from)))
    return recipe


def _forget_another(recipe: Recipe, folder: RunFolder) -> None:
    """Remove a rehearsal of the same name if it was of another recipe or had another number of processes.

    Raises:
        ConfigurationError: the run with this name is not a rehearsal.
    """
    if not folder.recipe.exists():
        return
    there = load_recipe(folder.recipe)
    if not there.rehearse:
        raise ConfigurationError(
            f"{folder.path}: a run that is not a rehearsal has the name of this rehearsal; set another run_name"
        )
    if there != recipe:
        for path in folder.path.iterdir():
            if path.name == LOCK:  # this launch's
                continue
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _make_corpus(recipe: Recipe) -> None:
    """Prepare the small corpus; with a multi-task stage, its tasks have rows for every kind of head."""
    corpus = _small_corpus(recipe)
    with tempfile.TemporaryDirectory() as folder:
        if any(recipe.objective_of(stage).block_size is not None for stage in recipe.stages):
            tasks = rehearsal_tasks(recipe, Path(folder))
            texts = {text_source(name): source for name, source in corpus.sources.items() if tasks[name].kind == TEXT}
            corpus = replace(corpus, sources=texts, tasks=tasks)
        prepare(corpus)


def _small_corpus(recipe: Recipe) -> CorpusConfig:
    readers = zip(recipe.data.sources, cycle(READERS), strict=False)
    columns = {column for stage in recipe.stages for column in recipe.objective_of(stage).columns}
    sources = {source: SourceConfig(reader=reader) for source, reader in readers}
    tokenizer = TokenizerConfig(train=TrainTokenizer(VOCABULARY), causal=recipe.family.causal)
    if "responses" in columns:
        beside = Path(f"{recipe.data.local}-conversations")
        sources = {name: _conversations(source, beside / f"{name}.jsonl") for name, source in sources.items()}
        tokenizer = replace(tokenizer, chat_template=str(beside / TEMPLATE_FILE))
        (beside / TEMPLATE_FILE).write_text(TEMPLATE, encoding="utf-8")
    return CorpusConfig(
        sources=sources,
        tokenizer=tokenizer,
        row_lengths=list(dict.fromkeys(stage.row_length for stage in recipe.stages.values())),
        out=recipe.data.local,
        validation=0.05,
        word_starts="pre_tokenizer" if "word_starts" in columns else None,
        executor={"local": {"workers": 1}},  # this process is one of a run's ranks
    )


def _conversations(source: SourceConfig, file: Path) -> SourceConfig:
    """Write documents as conversations whose answer is the document's end, so that there are long prompts as well."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8") as lines:
        for part in parts(source):
            for document in read(source, part, BadInput("rehearsal")):
                said = min(len(document.text) // 2, MOST_SAID)
                turns = {"user": document.text[:-said], "assistant": document.text[-said:]}
                special = any(token in document.text for token in CAUSAL_TOKENS.values())
                if not special and all(content.strip() for content in turns.values()):
                    messages = [{"role": role, "content": content} for role, content in turns.items()]
                    lines.write(json.dumps({"messages": messages}) + "\n")
    return SourceConfig(reader="jsonl", path=str(file), conversations="messages", too_long="cut_left")


def _make_source(recipe: Recipe, folder: Path) -> None:
    """Write a model with random weights from which the rehearsal's model can be grown."""
    if (folder / CONFIG).is_file():
        return
    open_corpus(recipe)  # the tokenizer goes with the model
    family, shape = recipe.family, recipe.model.shape.smaller()
    weights = {name: family.initial_value(name, shape, recipe.seed) for name in shape.parameter_shapes()}
    first, *_ = recipe.stages
    values = compile_stages(recipe).at(0).knobs
    knobs = {name: values[name] for name in family.knobs_of_weights()}
    tokenizer = Path(recipe.data.local) / "tokenizer"
    export_model(weights, family, shape, knobs, tokenizer, recipe.stages[first].row_length, folder)
