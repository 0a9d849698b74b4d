"""Train a reranker (cross-encoder), which reads a query and a document together, with sentence-transformers.

    python examples/reranker.py runs/nano/export runs/reranker [--data pairs.jsonl]

A reranker sorts the documents that a retriever found. In training, each query's own document is compared with the
documents of a few other rows of the batch. The measure is the rank of the right document among twenty.
"""

from pathlib import Path

from retrieval_pairs import read_arguments, read_pairs, run
from sentence_transformers.cross_encoder import (
    CrossEncoder,
    CrossEncoderTrainer,
    CrossEncoderTrainingArguments,
)
from sentence_transformers.cross_encoder.evaluation import CrossEncoderRerankingEvaluator
from sentence_transformers.cross_encoder.losses import MultipleNegativesRankingLoss
from sentence_transformers.training_args import BatchSamplers
from transformers import set_seed

from rotary_foundry.data.fast_tokenizer import special_tokens_as_text
from rotary_foundry.interop.huggingface import add_settings_of_4
from rotary_foundry.interop.sentence_models import load_sentence_model

CANDIDATES = 20


def main() -> None:
    settings = read_arguments(
        __doc__, epochs=1.0, batch_size=32, in_batch_negatives=4, lr=8e-5, max_seq_length=512, seed=42
    )
    train, held_out = read_pairs(settings.data)
    set_seed(settings.seed)  # the layer from the encoder's width to a score is new
    model = load_sentence_model(Path(settings.model), CrossEncoder, num_labels=1, max_length=settings.max_seq_length)
    documents = held_out["positive"][:]
    samples = []
    for at, (query, own) in enumerate(zip(held_out["query"], documents, strict=True)):
        others = (documents * 2)[at + 1 : at + CANDIDATES]
        samples.append({"query": query, "positive": [own], "negative": [text for text in others if text != own]})
    evaluator = CrossEncoderRerankingEvaluator(samples, write_csv=False)
    undo = special_tokens_as_text(model.tokenizer)
    before = evaluator(model)["ndcg@10"]
    CrossEncoderTrainer(
        model=model,
        args=CrossEncoderTrainingArguments(
            output_dir=settings.out,
            num_train_epochs=settings.epochs,
            per_device_train_batch_size=settings.batch_size,
            learning_rate=settings.lr,
            warmup_steps=0.05,
            seed=settings.seed,
            batch_sampler=BatchSamplers.NO_DUPLICATES,
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=train,
        loss=MultipleNegativesRankingLoss(model, num_negatives=settings.in_batch_negatives),
    ).train()
    after = evaluator(model)["ndcg@10"]
    undo()
    model.save_pretrained(settings.out)
    add_settings_of_4(Path(settings.out))
    print(f"nDCG@10 of {len(held_out)} held-out queries: {before:.4f} before, {after:.4f}")


if __name__ == "__main__":
    run(main)
