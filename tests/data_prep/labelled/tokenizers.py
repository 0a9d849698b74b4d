"""Two small tokenizers: of bytes, and of the characters in CLUE's samples."""

import json
from pathlib import Path

import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tests.data_prep.labelled.clue_samples import C3, CHID, CMRC2018, ROWS

SPECIAL = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
WORDS = ["the", "film", "book", "dinner", "song", "was", "seemed", "very", "rather", "quite", "long", "new"]


def write_byte_tokenizer(path: Path) -> Path:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=list(SPECIAL.values()), initial_alphabet=alphabet)
    tokenizer.train_from_iterator([" ".join(WORDS), "good bad Anna Berlin"] * 5, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=128, **SPECIAL)
    fast.save_pretrained(path)
    return path


def write_chinese_tokenizer(path: Path) -> Path:
    """Write a WordPiece tokenizer; words in Latin letters and numbers have several tokens."""
    characters = sorted(set(json.dumps([ROWS, CMRC2018, C3, CHID], ensure_ascii=False) + "[];；|_无效答案"))
    words = [f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")]
    words += characters + [f"##{character}" for character in characters if character.isascii()]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL).save_pretrained(path)
    return path
