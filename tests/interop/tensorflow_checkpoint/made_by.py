"""Write the checkpoint of this folder: `python -m tests.interop.tensorflow_checkpoint.made_by`, by TensorFlow 2.21.0.

TensorFlow is imported only to write. Every number is 1,000 times its tensor's place in the list plus its own place in
the tensor. So a test knows what must be read.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

CONFIG = {
    "hidden_act": "relu",
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "type_vocab_size": 2,
    "vocab_size": 32,
}
KERNELS = {  # [in, out]
    **{f"attention/self/{part}/kernel": (8, 8) for part in ("query", "key", "value")},
    "attention/output/dense/kernel": (8, 8),
    "intermediate/dense/kernel": (8, 12),
    "output/dense/kernel": (12, 8),
}
SHAPES = {
    "bert/embeddings/word_embeddings": (32, 8),
    "bert/embeddings/token_type_embeddings": (2, 8),
    **{f"bert/encoder/layer_{layer}/{name}": shape for layer in range(2) for name, shape in KERNELS.items()},
    "bert/embeddings/word_embeddings/adam_m": (32, 8),  # of BERT's training code, which saves its moments
}


def tensors() -> dict[str, NDArray[np.float32]]:
    """Return the tensors of the checkpoint by name."""
    return {
        name: (1000 * place + np.arange(np.prod(shape))).astype(np.float32).reshape(shape)
        for place, (name, shape) in enumerate(SHAPES.items())
    }


if __name__ == "__main__":
    import tensorflow

    made = tensors()
    tensorflow.raw_ops.SaveV2(
        prefix=str(Path(__file__).with_name("bert_model.ckpt")),
        tensor_names=list(made),
        shape_and_slices=[""] * len(made),
        tensors=list(made.values()),
    )
