"""What inductor's code for an H100 moves, by its own count; nothing is run."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))


@pytest.mark.long  # the code of three graphs is made
@pytest.mark.parametrize("model", ["base", "large"])
def test_the_kernels_of_a_layer_and_of_the_loss_move_what_was_predicted_and_keep_what_plan_counts(model):
    import predicted
    from gpu_code import TOKENS, counts

    found, tokens, shape = counts(model), TOKENS[model], predicted.shape_of(model)
    unit = 2 * tokens * shape.hidden_size  # hidden states in bf16
    for way, suffix in (("compiled", ""), ("eager", ", eager")):
        moved = sum(found[f"layer, {direction}{suffix}"]["bytes"] for direction in ("forward", "backward"))
        assert moved / unit == pytest.approx(predicted.LAYER[model, way], abs=0.1)
        assert found[f"chunk of the loss{suffix}"]["bytes"] == pytest.approx(predicted.CHUNK[way], rel=0.01)
    kept = shape.kept_of_layer(2, compiled=True)
    assert found["layer, forward"]["kept"] == pytest.approx(kept * tokens, rel=0.01)


def test_a_layer_and_a_chunk_of_the_loss_move_at_most_what_was_aimed_at():
    import predicted

    assert predicted.LAYER["base", "compiled"] <= 80
    assert predicted.CHUNK["compiled"] <= 0.6e9
