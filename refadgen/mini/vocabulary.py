"""The tokenizer of the built-in model: CLIP's byte-pair kind, with a small vocabulary from the studio's captions.

Any text can be tokenized: pieces that are not in the vocabulary are split into bytes.
"""

import json
from collections.abc import Iterable

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

START, END, PAD = "<|startoftext|>", "<|endoftext|>", "<|pad|>"


def learn_tokenizer(captions: Iterable[str], *, vocab_size: int, max_tokens: int) -> CLIPTokenizer:
    """A CLIP tokenizer whose byte pairs are learned from `captions`. max_tokens: length of a padded text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer = normalizers.Lowercase()
    learner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(False)])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    learner.train_from_iterator(
        sorted(set(captions)), trainer
    )  # sorted: ties between pairs fall the same way every time
    merges = [tuple(pair) for pair in _merges(learner)]
    pieces = [*alphabet, *(f"{letter}</w>" for letter in alphabet)]
    pieces += [left + right for left, right in merges if left + right not in pieces]
    vocab = {piece: index for index, piece in enumerate(dict.fromkeys([*pieces, START, END, PAD]))}
    return CLIPTokenizer(vocab=vocab, merges=merges, pad_token=PAD, model_max_length=max_tokens)


def _merges(tokenizer: Tokenizer) -> list[list[str]]:
    """The learned byte pairs, most frequent first. The tokenizers library exposes them in its JSON only."""
    merges: list[list[str]] = json.loads(tokenizer.to_str())["model"]["merges"]
    return merges
