"""What a checkpoint asks of the machine that loads it."""

import torch

from encoder_foundry import load_recipe
from encoder_foundry.interop import checkpoints
from encoder_foundry.interop.checkpoints import TrainedState, load_checkpoint
from encoder_foundry.model.masked_lm import MaskedLM
from encoder_foundry.run_folder import CompleteCheckpoint


def test_a_model_trained_with_flash_computes_on_cpu(monkeypatch, tmp_path):
    recipe = load_recipe("yamls/main/nano.yaml", ["model.attn_implementation=flash", "model.vocab_size=256"])
    trained = TrainedState(CompleteCheckpoint(tmp_path, 1, 1, 0, {}, {}), recipe, 10_000.0, 1024)
    weights = MaskedLM(recipe.model, 10_000.0).state_dict()
    monkeypatch.setattr(checkpoints, "find_trained_state", lambda path: trained)
    monkeypatch.setattr(checkpoints, "CheckpointWeights", lambda folder: weights)
    with torch.no_grad():
        logits = load_checkpoint(tmp_path)(torch.arange(5), torch.tensor([0, 5], dtype=torch.int32))
    assert logits.shape == (5, 256)
