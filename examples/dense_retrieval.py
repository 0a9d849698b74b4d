"""Train a dense retriever, with one vector per text, with sentence-transformers.

    python examples/dense_retrieval.py runs/nano/export runs/dense [--data pairs.jsonl] [--hard-negatives 3]

Each query is compared with the documents of all rows of its batch; only its own document is correct. The loss is the
cached one (GradCache, arXiv 2101.06983), which needs the memory of one mini-batch for any batch size. A plain encoder's
tokens are averaged. Learning rate and warm-up are those of ModernBERT's own script for MS MARCO, whose batch is 512.
"""

from pathlib import Path

from retrieval_pairs import as_retrieval, read_arguments, read_pairs, run
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.evaluation import InformationRetrievalEvaluator
from sentence_transformers.losses import CachedMultipleNegativesRankingLoss
from sentence_transformers.training_args import BatchSamplers
from sentence_transformers.util import mine_hard_negatives

from rotary_foundry.data.fast_tokenizer import special_tokens_as_text
from rotary_foundry.interop.huggingface import add_settings_of_4
from rotary_foundry.interop.sentence_models import load_sentence_model


def main() -> None:
    settings = read_arguments(
        __doc__, epochs=1.0, batch_size=64, mini_batch_size=16, lr=8e-5, max_seq_length=256, hard_negatives=0, seed=42
    )
    train, held_out = read_pairs(settings.data)
    model = load_sentence_model(Path(settings.model), SentenceTransformer)
    model.max_seq_length = settings.max_seq_length
    evaluator = InformationRetrievalEvaluator(*as_retrieval(held_out), write_csv=False)
    undo = special_tokens_as_text(model.tokenizer)
    before = evaluator(model)["cosine_ndcg@10"]
    if settings.hard_negatives:  # the nearest documents that are not the query's own
        count = settings.hard_negatives
        train = mine_hard_negatives(train, model, num_negatives=count, output_format="n-tuple", verbose=False)
        print(f"trained on {len(train):,} rows with {count} hard negatives each")
    SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            output_dir=settings.out,
            num_train_epochs=settings.epochs,
            per_device_train_batch_size=settings.batch_size,
            learning_rate=settings.lr,
            warmup_steps=0.05,
            seed=settings.seed,
            # A document that occurs twice in a batch would be a negative for its own query.
            batch_sampler=BatchSamplers.NO_DUPLICATES,
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=train,
        loss=CachedMultipleNegativesRankingLoss(model, mini_batch_size=settings.mini_batch_size),
    ).train()
    after = evaluator(model)["cosine_ndcg@10"]
    undo()
    model.save_pretrained(settings.out)
    add_settings_of_4(Path(settings.out))
    print(f"nDCG@10 of {len(held_out)} held-out queries: {before:.4f} before, {after:.4f}")


if __name__ == "__main__":
    run(main)
