"""Train a multi-vector retriever (ColBERT, late interaction), with a small vector per token, with PyLate.

    python examples/multi_vector_retrieval.py runs/nano/export runs/colbert [--data pairs.jsonl]

A query's score for a document is the sum over the query's tokens of the best match among the document's (MaxSim). Each
query is compared with the documents of all rows of its batch. To distil a teacher's scores instead, as in
arXiv 2412.13663, use `pylate.losses.Distillation` on rows of `query`, `documents` and `scores`. The learning rate,
batch and warm-up are those of ModernBERT's own script.
"""

from pathlib import Path

from pylate.evaluation import PyLateInformationRetrievalEvaluator
from pylate.losses import CachedContrastive
from pylate.models import ColBERT
from pylate.utils import ColBERTCollator
from retrieval_pairs import as_retrieval, read_arguments, read_pairs, run
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.training_args import BatchSamplers
from transformers import set_seed

from rotary_foundry.data.fast_tokenizer import special_tokens_as_text
from rotary_foundry.interop.huggingface import add_settings_of_4
from rotary_foundry.interop.sentence_models import load_sentence_model

# Queries are padded with mask tokens, which take part in attention. By PyLate's default they do not, and then their
# vectors are zero under flash attention, but not without it (lightonai/pylate#125). The saved model keeps this.
EXPANSION = {"do_query_expansion": True, "attend_to_expansion_tokens": True}


def main() -> None:
    settings = read_arguments(
        __doc__, epochs=1.0, batch_size=16, mini_batch_size=16, lr=8e-5, query_length=32, document_length=180, seed=42
    )
    train, held_out = read_pairs(settings.data)
    set_seed(settings.seed)  # the layer from the encoder's width to a token's vector is new
    lengths = {"query_length": settings.query_length, "document_length": settings.document_length}
    model = load_sentence_model(Path(settings.model), ColBERT, **lengths, **EXPANSION)
    evaluator = PyLateInformationRetrievalEvaluator(*as_retrieval(held_out), write_csv=False)
    undo = special_tokens_as_text(model.tokenizer)
    before = evaluator(model)["MaxSim_ndcg@10"]
    SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
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
        loss=CachedContrastive(model, mini_batch_size=settings.mini_batch_size),
        data_collator=ColBERTCollator(model.tokenize),
    ).train()
    after = evaluator(model)["MaxSim_ndcg@10"]
    undo()
    model.save_pretrained(settings.out)
    add_settings_of_4(Path(settings.out))
    print(f"nDCG@10 of {len(held_out)} held-out queries: {before:.4f} before, {after:.4f}")


if __name__ == "__main__":
    run(main)
