"""Find out how many tokens any library's model can take, from its config.json only.

The model type decides, not the table of positions: fine-tuning needs the number before it loads the model, and loading
takes seconds.
"""

from transformers import PretrainedConfig

from rotary_foundry.utils.errors import DataError

AFTER_PADDING = (  # RoBERTa and similar models: positions start after the id of the padding token
    *("camembert", "data2vec-text", "esm", "ibert", "longformer", "luke", "mpnet", "roberta"),
    *("roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"),
)


def most_tokens(model: PretrainedConfig) -> int | None:
    """Return the most tokens that a model takes at once, special tokens included; None if there is no limit.

    Raises:
        DataError: a value in its configuration is not a number; names the key.
    """
    positions, begins_after = getattr(model, "max_position_embeddings", None) or 0, model.model_type in AFTER_PADDING
    padding = model.pad_token_id if begins_after else 0
    for key, value in (("max_position_embeddings", positions), ("pad_token_id", padding)):
        if type(value) is not int:
            raise DataError(f"{model.name_or_path}: config.json: {key}: expected a number, got {value!r:.60}")
    if begins_after:
        return positions - padding - 1
    return positions if positions > 0 else None  # XLNet's are -1
