"""A model or a tokenizer that is not there is refused at once, by its name; nothing is looked up on the hub.

transformers takes a path without a folder for a repository, which without a network takes it a minute, and with one may
be somebody else's.
"""

import shutil
from pathlib import Path

import pytest
from sentence_transformers import CrossEncoder, SentenceTransformer
from transformers import AutoModelForMaskedLM

from rotary_foundry.data.fast_tokenizer import open_fast
from rotary_foundry.data_prep.self_instruct.local_generator import LocalGenerator
from rotary_foundry.data_prep.tokenizer import open_brought
from rotary_foundry.evaluation.causal_models import open_causal_model
from rotary_foundry.evaluation.models import open_model
from rotary_foundry.evaluation.retrieval_models import open_retriever
from rotary_foundry.evaluation.suites import find_suites
from rotary_foundry.finetuning.example_encoding import prepare
from rotary_foundry.finetuning.finetune_config import load_finetune_config
from rotary_foundry.interop import load_model
from rotary_foundry.interop.importing import import_model
from rotary_foundry.interop.sentence_models import load_sentence_model
from rotary_foundry.models.in_transformers import load_theirs
from rotary_foundry.utils.errors import ConfigurationError, DataError
from tests.evaluation.decoders import save_decoder
from tests.finetuning.conftest import opinion_files
from tests.interop.runs import make_run
from tests.models.peers import our_network
from tests.retrieval import no_network, tiny_encoder

__all__ = ["no_network", "opinion_files", "tiny_encoder"]  # fixtures, here too

GONE = Path("runs/gone")  # as a repository on the hub is named


def finetune(model: Path, files: tuple[Path, Path], folder: Path, tokenizer: str) -> None:
    (folder / "mine.yaml").write_text(
        f"model: {model}\ntokenizer: {tokenizer}\nout: {folder}/out\n"
        "search: {lr: [1e-2], weight_decay: [0], max_duration: [1ep], global_train_batch_size: [4]}\n"
        f"tasks: {{mine: {{data: {{train: {files[0]}, validation: [{files[1]}]}}}}}}\n"
    )
    prepare(load_finetune_config(folder / "mine.yaml"), "mine", folder / "data")


DOORS = {
    "tokenizer": lambda *_: open_fast(GONE),
    "tokenizer.path of data_prep": lambda *_: open_brought(GONE),
    "generator of self-instruct": lambda *_: LocalGenerator(GONE),
    "evaluate": lambda *_: open_model(GONE),
    "evaluate retrieval": lambda *_: open_retriever(GONE, None),
    "evaluate tokenizer=": lambda encoder, *_: open_model(encoder, tokenizer=str(GONE)),
    "finetune": lambda _, files, folder: finetune(GONE, files, folder, "null"),
    "finetune tokenizer=": lambda encoder, files, folder: finetune(encoder, files, folder, str(GONE)),
    "import": lambda _, __, folder: import_model(GONE, folder / "imported"),
    "import --tokenizer": lambda encoder, _, folder: import_model(encoder, folder / "imported", tokenizer=GONE),
    "load_model": lambda *_: load_model(GONE),
    "load_theirs": lambda *_: load_theirs(AutoModelForMaskedLM, GONE, "a model", None),
    "dense retriever": lambda *_: load_sentence_model(GONE, SentenceTransformer),
    "reranker": lambda *_: load_sentence_model(GONE, CrossEncoder),
}


@pytest.mark.parametrize("door", DOORS)
def test_a_folder_that_is_not_there_is_refused_by(door, tiny_encoder, opinion_files, tmp_path, no_network):
    with pytest.raises((ConfigurationError, DataError), match=rf"{GONE}.*\b(no such f|no tokenizer\.json|is missing)"):
        DOORS[door](tiny_encoder, opinion_files, tmp_path)
    assert not no_network


def test_a_decoder_s_tokenizer_that_is_not_there_is_refused(tmp_path, no_network):
    (suite,) = find_suites(["causal_lm"], [f"tokenizer={GONE}"], decoder=True)
    with pytest.raises(DataError, match=f"{GONE}: no such folder"):
        open_causal_model(save_decoder(tmp_path / "decoder"), suite.config)
    assert not no_network


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_run_whose_tokenizer_is_gone_is_refused(tokenizer_dir, tmp_path, no_network):
    network = our_network(hidden_size=32, num_attention_heads=2)
    run = make_run(tmp_path / "run", network.shape, tokenizer_dir.parent, network.state_dict())
    shutil.rmtree(run.tokenizer)
    with pytest.raises(DataError, match=r"run/tokenizer: no such folder; .* with tokenizer="):
        open_model(run.path)
    with pytest.raises(DataError, match=r"run/tokenizer.* is missing"):
        open_retriever(run.path, None)
    assert not no_network
