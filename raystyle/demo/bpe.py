"""Train a byte-level BPE tokenizer in which every frequent character is one token.

Plain byte-level training on a small Chinese corpus merges the last byte of one character with the first of the next
wherever that pair is frequent, and characters caught in it never become tokens (163 of the storyteller's 564 here). So
merges are learned between characters and then written out in bytes: first those that put the bytes of a character
together, then the learned ones. The result is an ordinary byte-level tokenizer; characters it has not seen stay bytes.
"""

import json
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

EOS = "<|endoftext|>"
# Longer tokens would swallow whole formulas where the documents repeat themselves.
MAX_TOKEN_CHARACTERS = 2
_WORDS = r" ?\p{L}+|[^\p{L}]"


def train_tokenizer(documents: Sequence[str], vocab_size: int) -> "PreTrainedTokenizerFast":
    """A tokenizer of at most `vocab_size` tokens, half of them kept for characters; `<|endoftext|>` ends and pads."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = pre_tokenizers.Split(Regex(_WORDS), "isolated")
    in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    vocab, merges = _in_bytes(*_learn(documents, vocab_size, words), vocab_size, in_bytes)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, in_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, pad_token=EOS)


def _learn(documents: Sequence[str], vocab_size: int, words: Any) -> tuple[list[str], list[tuple[str, str]]]:
    """The frequent characters, and merges of them in the order learned."""
    from tokenizers import Tokenizer, models, trainers

    counts = Counter(char for document in documents for char in document)
    # Chosen here because the trainer breaks ties between equally rare characters by chance.
    characters = sorted(counts, key=lambda char: (-counts[char], char))[: vocab_size // 2]
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = words
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=characters,
        limit_alphabet=len(characters),
        max_token_length=MAX_TOKEN_CHARACTERS,
        show_progress=False,
    )
    learner.train_from_iterator(documents, trainer)
    merges = json.loads(learner.to_str())["model"]["merges"]
    return characters, [(left, right) for left, right in merges]


def _in_bytes(
    characters: list[str], learned: list[tuple[str, str]], vocab_size: int, in_bytes: Any
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges over the byte-level alphabet, where every byte is written as one visible letter."""

    def letters(text: str) -> str:
        return "".join(piece for piece, _ in in_bytes.pre_tokenize_str(text))

    vocab = {token: i for i, token in enumerate([EOS, *sorted(in_bytes.alphabet())])}
    pairs = [(letters(char)[:i], letters(char)[i]) for char in characters for i in range(1, len(letters(char)))]
    pairs += [(letters(left), letters(right)) for left, right in learned]
    merges = []
    for left, right in pairs:
        if left + right in vocab:
            continue
        if len(vocab) >= vocab_size:
            break
        vocab[left + right] = len(vocab)
        merges.append((left, right))
    return vocab, merges
