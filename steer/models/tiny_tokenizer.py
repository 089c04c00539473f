"""A small real tokenizer, made in code: byte-level BPE over bytes and a few hundred word pieces.

It turns any text into ids and back without loss, and has one token each for the names of the
months and weekdays and for some common words, with the space before them. Like smollm2's it adds
no BOS of its own. The models that use it are in `tiny`.
"""

from collections.abc import Iterator

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"

MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
COMMON = (
    *("the", "and", "of", "to", "in", "is", "was", "that", "it", "for", "on", "with", "not", "he"),
    *("she", "good", "bad", "great", "terrible", "day", "days", "month", "after", "before", "one"),
    *("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "red", "blue", "cat"),
)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ bos_token + message['role'] + '\n' + message['content'] + eos_token + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ bos_token + 'assistant\n' }}{% endif %}"
)

# How byte-level BPE writes the space byte.
SPACE = "\u0120"


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return a fresh tokenizer of 579 tokens, the same on every call and machine."""
    vocabulary = {PAD: 0, BOS: 1, EOS: 2}
    for byte in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary.setdefault(byte, len(vocabulary))
    merges: list[tuple[str, str]] = []
    for left, right in _merges():
        if left + right not in vocabulary:
            vocabulary[left + right] = len(vocabulary)
            merges.append((left, right))
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([PAD, BOS, EOS])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def _merges() -> Iterator[tuple[str, str]]:
    """Yield the merges that build each word from its left end, words with a space first.

    No two of them can compete inside a word, so every known word becomes one token.
    """
    spaced = [SPACE + word for word in (*MONTHS, *WEEKDAYS, *COMMON)]
    for word in (*spaced, *MONTHS, *WEEKDAYS):
        for end in range(1, len(word)):
            yield word[:end], word[end]
