"""Return how many tokens a model of another library can take, from its config.json only.

The type of the model decides, not its table of positions: fine-tuning needs the number before it loads the model, which
takes seconds.
"""

from transformers import PretrainedConfig

AFTER_PADDING = (  # RoBERTa and similar models: positions start after the id of the padding token
    *("camembert", "data2vec-text", "esm", "ibert", "longformer", "luke", "mpnet", "roberta"),
    *("roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"),
)


def most_tokens(model: PretrainedConfig) -> int | None:
    """Return the most tokens that a model takes at once, special ones included; None if there is no limit."""
    positions = getattr(model, "max_position_embeddings", None) or 0
    if model.model_type in AFTER_PADDING:
        return positions - model.pad_token_id - 1
    return positions if positions > 0 else None  # XLNet's are -1
