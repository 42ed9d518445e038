"""What a model says about words: the outputs at each word's first sub-word, as tags, metrics and rows.

A word that no sub-word stands for (it is cut off at the maximum length, or the tokenizer makes nothing of it) counts as
tagged O: what a model cannot see it cannot find, and a score over fewer words would be another score.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from subnetune.core.errors import NumericError
from subnetune.experiment.alignment import LOST
from subnetune.experiment.data import Collator, Encoded, eval_batches
from subnetune.experiment.fit import Fit
from subnetune.tasks.conll import OUTSIDE
from subnetune.tasks.types import Split

WORD_COLUMNS = ("split", "row", "word", "text", "label")


def predict_words(model: nn.Module, encoded: Encoded, collate: Collator, batch_size: int) -> list[Tensor]:
    """Return per example, in file order, the logits (words with a sub-word, outputs) as float32 on the CPU.

    Runs in eval mode and in the model's own precision, whatever the training forward used; the mode is put back.
    """
    assert encoded.places is not None  # a split of words
    was_training = model.training
    model.eval()
    rows: dict[int, Tensor] = {}
    with torch.no_grad():
        for indices in eval_batches(encoded, batch_size):
            batch = {key: value for key, value in collate(encoded, indices).items() if key != "labels"}
            logits = model(**batch).logits.float().cpu()  # (batch, longest, outputs)
            for position, row in zip(indices, logits, strict=True):
                start = collate.start(len(encoded.examples[position]["input_ids"]), len(row))
                seen = [start + place for place in encoded.places[position] if place != LOST]
                rows[position] = row[torch.tensor(seen, dtype=torch.int64)]
    model.train(was_training)
    return [rows[i] for i in range(len(encoded))]


def tag_words(logits: list[Tensor], encoded: Encoded, fit: Fit) -> list[list[int]]:
    """Return the ids of the task's tags, per example one for each word. `logits` as of `predict_words`.

    Raises NumericError for logits that are not finite.
    """
    assert encoded.places is not None
    if wrong := sum(int((~torch.isfinite(row)).sum()) for row in logits):
        raise NumericError(f"{fit.task.name}: {wrong} logits are not finite numbers")
    outside = fit.task.labels.index(OUTSIDE)
    tagged = []
    for row, places in zip(logits, encoded.places, strict=True):
        said = iter(row.argmax(dim=-1).tolist())
        tagged.append([outside if place == LOST else fit.reading[next(said)] for place in places])
    return tagged


def word_rows(name: str, split: Split, logits: list[Tensor], encoded: Encoded, fit: Fit) -> Iterator[list[object]]:
    """Yield a row per word: `WORD_COLUMNS`, then one probability per output of the model.

    `row` and `word` count from 0, in the file and in the example. A word without a sub-word has no probabilities.
    """
    assert encoded.places is not None
    assert split.words is not None
    tags = tag_words(logits, encoded, fit)
    for i, (example, words) in enumerate(zip(split.ids, split.words, strict=True)):
        chances = iter(torch.softmax(logits[i], dim=-1).tolist())
        for number, (word, place) in enumerate(zip(words, encoded.places[i], strict=True)):
            shown = [""] * len(fit.columns) if place == LOST else [f"{chance:.6f}" for chance in next(chances)]
            yield [name, example, number, word, fit.task.labels[tags[i][number]], *shown]
