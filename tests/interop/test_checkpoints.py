"""A checkpoint of ours on one process: whole whoever wrote it, without its optimizer, and on any machine."""

from dataclasses import replace

import pytest
import torch

from rotary_foundry.interop import load_model
from rotary_foundry.interop.checkpoint_weights import WEIGHTS, CheckpointWeights
from rotary_foundry.interop.export import export_checkpoint
from rotary_foundry.runs.recipes import load_recipe
from rotary_foundry.runs.safe_reading import read_metadata
from rotary_foundry.utils.errors import ConfigurationError, DataError
from tests.interop.runs import complete, make_run, save_sharded
from tests.models.peers import FAMILY, our_network, pack
from tests.ranks import on_ranks

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def test_a_model_trained_with_flash_computes_on_cpu(tokenizer_dir, tmp_path):
    network = our_network().eval()
    run = make_run(tmp_path / "run", network.shape, tokenizer_dir.parent, network.state_dict(), "flash")
    with torch.no_grad():
        torch.testing.assert_close(load_model(run.path)(*pack(90)), our_network(160_000.0).eval()(*pack(90)))


def test_a_checkpoint_of_three_ranks_is_exported_whole_and_its_optimizer_is_not_even_read(tokenizer_dir, tmp_path):
    network = our_network()
    run = make_run(tmp_path / "run", network.shape, tokenizer_dir.parent, network.state_dict())
    folder = next(run.checkpoints.iterdir())
    on_ranks(3, tmp_path, save_sharded, folder, network.state_dict())
    metadata = read_metadata(folder)
    pieces = [(index, stored) for index, stored in metadata.storage_data.items() if "optimizers" in index.fqn]
    assert len({stored.relative_path for _, stored in metadata.storage_data.items()}) == 3
    for _, stored in pieces:  # whoever reads one of these now fails
        with open(folder / stored.relative_path, "r+b") as file:
            file.seek(stored.offset)
            file.write(b"\0" * stored.length)
    complete(folder, load_recipe(run.recipe))
    assert len(pieces) == 2 * 3 * len(network.state_dict())
    export_checkpoint(run.path, tmp_path / "export")
    exported = load_model(tmp_path / "export").state_dict()
    for name, value in network.state_dict().items():
        assert torch.equal(exported[name], value), name


def test_reading_one_parameter_reads_no_other(tokenizer_dir, tmp_path):
    network = our_network()
    run = make_run(tmp_path / "run", network.shape, tokenizer_dir.parent, network.state_dict())
    folder = next(run.checkpoints.iterdir())
    stored = {index.fqn: place for index, place in read_metadata(folder).storage_data.items()}
    place = stored[WEIGHTS + "head.dense.weight"]
    with open(folder / place.relative_path, "r+b") as file:
        file.seek(place.offset)
        file.write(b"\0" * place.length)
    weights = CheckpointWeights(folder, FAMILY)
    assert "head.dense.weight" in weights  # as a mapping would find out by reading it
    assert torch.equal(weights["decoder.bias"], network.decoder.bias)
    with pytest.raises(DataError, match=r"head\.dense\.weight cannot be read"):
        weights["head.dense.weight"]


def test_weights_that_are_not_the_recipes_models_are_named(tokenizer_dir, tmp_path):
    network = our_network()
    other = replace(network.shape, intermediate_size=32)
    run = make_run(tmp_path / "run", other, tokenizer_dir.parent, network.state_dict())
    with pytest.raises(DataError, match=r"mlp\.Wi\.weight: expected shape \[64, 64\], got \[192, 64\]"):
        load_model(run.path)


def test_a_diverged_checkpoint_is_not_exported(tokenizer_dir, tmp_path):
    network = our_network()
    with torch.no_grad():
        network.model.layers[2].attn.Wo.weight[3, :5] = float("nan")
    run = make_run(tmp_path / "run", network.shape, tokenizer_dir.parent, network.state_dict())
    with pytest.raises(DataError, match=r"layers\.2\.attn\.Wo\.weight has 5 values of 4,096 that are infinite or not"):
        export_checkpoint(run.path, tmp_path / "export")
    assert not (tmp_path / "export").exists()


def test_a_file_of_composers_is_pointed_to_import(tmp_path):
    (tmp_path / "ep0-ba100-rank0.pt").write_bytes(b"")
    with pytest.raises(ConfigurationError, match="rotary-foundry import"):
        load_model(tmp_path / "ep0-ba100-rank0.pt")
