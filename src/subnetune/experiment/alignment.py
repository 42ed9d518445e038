"""Words to sub-words: where in a tokenised example each word begins, and which tag each sub-word carries."""

from __future__ import annotations

from typing import Any

from subnetune.core.errors import DataError, UsageError
from subnetune.tasks.types import Split, Task

IGNORED = -100  # what transformers' losses leave out
LOST = -1  # the place of a word that no sub-word stands for


def align(
    split: Split, task: Task, tokenizer: Any, max_length: int
) -> tuple[list[dict[str, list[int]]], list[list[int]]]:
    """Return the tokenised examples of a split of words, and for each the place of every word's first sub-word.

    An example's `labels` hold a tag id at the first sub-word of each word and -100 elsewhere; a split without tags has
    none. A word that is cut off at `max_length`, or that the tokenizer makes nothing of (such as a zero-width space),
    has the place -1. Raises UsageError for a tokenizer that does not know which word a sub-word is of.
    """
    if split.words is None:
        raise DataError(f"task {task.name!r}: the split {split.name!r} has no words to tag")
    if not getattr(tokenizer, "is_fast", False):
        raise UsageError(
            f"{type(tokenizer).__name__} does not know which word a sub-word is of, which tags of words need; use a "
            "model whose tokenizer is a fast one (it has a tokenizer.json)"
        )
    words = [[f" {word}" for word in row] for row in split.words] if _lacks_spaces(tokenizer) else split.words
    columns = tokenizer(words, is_split_into_words=True, truncation=True, max_length=max_length, padding=False)
    examples: list[dict[str, list[int]]] = []
    places: list[list[int]] = []
    for i, row in enumerate(split.words):
        example = {key: list(columns[key][i]) for key in columns}
        first = [LOST] * len(row)
        for place, word in enumerate(columns.word_ids(i)):
            if word is not None and first[word] == LOST:
                first[word] = place
        if split.tags is not None:
            labels = [IGNORED] * len(example["input_ids"])
            for place, tag in zip(first, split.tags[i], strict=True):
                if place != LOST:
                    labels[place] = tag
            example["labels"] = labels
        examples.append(example)
        places.append(first)
    return examples, places


def _lacks_spaces(tokenizer: Any) -> bool:
    """Say whether words given one by one lose the space that the same words have in running text.

    So with byte-level tokenizers (GPT-2, RoBERTa) that were not made with `add_prefix_space`: each word would look like
    the middle of one. With a space before each, words are what `add_prefix_space=True` makes of them.
    """
    text = tokenizer("a b", add_special_tokens=False)["input_ids"]
    plain, spaced = (
        tokenizer(words, is_split_into_words=True, add_special_tokens=False) for words in (["a", "b"], [" a", " b"])
    )
    first = [i for i, word in zip(plain["input_ids"], plain.word_ids(), strict=True) if word == 0]
    second = [i for i, word in zip(spaced["input_ids"], spaced.word_ids(), strict=True) if word == 1]
    return bool(text != plain["input_ids"] and text == first + second)
