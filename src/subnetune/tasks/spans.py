"""Entity spans in sequences of IOB2 tags, and the scores over them, as `seqeval` has them in its default mode.

A span is a run of tags of one type. B-X starts one; so does an I-X that continues nothing (it stands first, after O, or
after another type), which IOB2 does not allow and models say all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from subnetune.core.errors import DataError, UsageError
from subnetune.tasks.types import Split, Task

Span: TypeAlias = tuple[str, int, int]  # type, first word, last word
Ids: TypeAlias = Sequence[Sequence[int]]  # one sequence of tag ids per example


def spans(tags: Sequence[str]) -> list[Span]:
    """Return the spans of one sequence of tags, in order."""
    found: list[Span] = []
    before = ""  # the type that the word before belongs to, "" for none
    for i, tag in enumerate(tags):
        place, _, kind = tag.partition("-")
        if place == "I" and kind == before:
            found[-1] = (kind, found[-1][1], i)
        elif place in ("B", "I"):
            found.append((kind, i, i))
        before = kind
    return found


def continues_nothing(tags: Sequence[str]) -> int:
    """Return how many I-X of one sequence follow neither B-X nor I-X of their type."""
    before = [""] + [tag.partition("-")[2] for tag in tags]
    return sum(tag.startswith("I-") and tag[2:] != kind for tag, kind in zip(tags, before, strict=False))


def invalid_tags(split: Split, task: Task) -> int:
    """Return how many tags of a split continue nothing; 0 for a split without tags."""
    return sum(continues_nothing([task.labels[i] for i in row]) for row in split.tags or ())


def span_scores(task: Task, predictions: Ids, labels: Ids) -> dict[str, float]:
    """Return micro-averaged `f1`, `precision` and `recall` of spans, and the `token_accuracy`, all fractions.

    `predictions` and `labels`: tag ids of `task`, per example one for each word. A span counts as found where its type
    and both of its ends are right. Where there is nothing to divide by (no span predicted, none true) a score is 0.0.
    DataError where the two do not have the same shape or an id is no tag.
    """
    if len(predictions) != len(labels) or not len(labels):
        raise DataError(f"{task.name}: {len(predictions)} predicted sequences of tags for {len(labels)} true ones")
    right = guessed = true = same = words = 0
    for number, (guess, truth) in enumerate(zip(predictions, labels, strict=True)):
        if len(guess) != len(truth):
            raise DataError(f"{task.name}, example {number}: {len(guess)} predicted tags for {len(truth)} words")
        found, wanted = set(spans(_names(task, guess))), set(spans(_names(task, truth)))
        right, guessed, true = right + len(found & wanted), guessed + len(found), true + len(wanted)
        same += sum(a == b for a, b in zip(guess, truth, strict=True))
        words += len(truth)
    precision, recall = _share(right, guessed), _share(right, true)
    scores = {
        "f1": 2 * precision * recall / (precision + recall) if right else 0.0,
        "precision": precision,
        "recall": recall,
        "token_accuracy": _share(same, words),
    }
    if unknown := [name for name in task.metrics if name not in scores]:
        raise UsageError(f"{task.name}: no metric {unknown[0]!r} of tags; there are {', '.join(scores)}")
    return {name: scores[name] for name in task.metrics}


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _names(task: Task, ids: Sequence[int]) -> list[str]:
    if any(not 0 <= i < len(task.labels) for i in ids):
        raise DataError(f"{task.name}: tag ids lie in 0..{len(task.labels) - 1}, got {sorted(set(ids))}")
    return [task.labels[i] for i in ids]
