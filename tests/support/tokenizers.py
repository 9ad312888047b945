"""Tokenizers made of a few merges."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


def pieces(merges):
    """A byte-level BPE with these merges, as gpt2's: a blank belongs to the word behind it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<|endoftext|>", *alphabet, *("".join(pair) for pair in merges)]
    tok = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tok, eos_token="<|endoftext|>")


def gpt2_like():
    return pieces([("Ġ", "f"), ("i", "n"), ("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("Ġf", "in"), ("Ġfin", "e")])
