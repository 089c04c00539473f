"""A tokenizer of a few given words, one token each, for models that are made here."""

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast


def words(known: Sequence[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer that knows these words and splits at spaces; the first one pads."""
    inner = Tokenizer(WordLevel({word: k for k, word in enumerate(known)}, unk_token=known[0]))
    inner.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token=known[0])
