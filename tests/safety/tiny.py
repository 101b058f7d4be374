"""Tiny random RoBERTa and invented texts, for tests of mechanics."""

from __future__ import annotations

from pathlib import Path

from anymal.safety.texts import TextRecord

KINDS_OF_WORDS = {"cyber": "hack crack", "violence": "kill stab", "": "bake draw plant"}


def make_text_encoder(folder: Path, *, seed: int = 0, layers: int = 3) -> Path:
    """A random RoBERTa (byte-level tokenizer) as a Hugging Face folder."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaModel

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=360, special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator([" ".join(f"please {words} it" for words in KINDS_OF_WORDS.values())] * 3, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", cls_token="<s>",
                                   sep_token="</s>", pad_token="<pad>")
    torch.manual_seed(seed)
    config = RobertaConfig(vocab_size=len(fast), hidden_size=32, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=4,
                           max_position_embeddings=130, bos_token_id=0, pad_token_id=1, eos_token_id=2, initializer_range=0.3, type_vocab_size=1)
    RobertaModel(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def make_texts(count: int, *, start: int = 0) -> list[TextRecord]:
    """Texts of which a word tells the category."""
    found = []
    for number in range(start, start + count):
        label = [*KINDS_OF_WORDS][number % 3]
        words = KINDS_OF_WORDS[label].split()
        said = f"please {words[number // 3 % len(words)]} it"
        found.append(TextRecord(f"t{number:04d}", said, (label,) if label else (), "made-up", f"g{number}", "request"))
    return found
