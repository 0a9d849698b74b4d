"""How many tokens another's model has positions for, by its config.json alone.

By the type of model, and not by its table of positions: fine-tuning asks before there is a model, and to make one only
to ask it takes seconds.
"""

from transformers import PretrainedConfig

AFTER_PADDING = (  # RoBERTa and its like: the first token's position is the one after the padding's number
    *("camembert", "data2vec-text", "esm", "ibert", "longformer", "luke", "mpnet", "roberta"),
    *("roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"),
)


def most_tokens(model: PretrainedConfig) -> int | None:
    """The most tokens that a model can be given at once, special ones included; None if there is no limit."""
    positions = getattr(model, "max_position_embeddings", None) or 0
    if model.model_type in AFTER_PADDING:
        return positions - model.pad_token_id - 1
    return positions if positions > 0 else None  # XLNet's are -1
