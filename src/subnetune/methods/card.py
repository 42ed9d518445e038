"""What is known of a method besides its recipe: where it comes from, what leaks, and the defaults that fill a run."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass

from subnetune.core.errors import UsageError
from subnetune.core.recipe import Group, Recipe, check_choice
from subnetune.core.schedule_names import SCHEDULES
from subnetune.methods.measured import COST, FOUND

# As in the stock Trainer: no weight decay on biases and normalisation layers.
NO_DECAY = (Group("@bias?", weight_decay=0.0), Group("@norm?", weight_decay=0.0))


# The five answers of plain training: what a card says where its method changes nothing.
DEFAULT_ANSWERS = {
    "scope": "everything trains: the pretrained tensors selected, @head whole",
    "selector": "none: every entry of the selected tensors trains",
    "update": "none: the optimizer's own step",
    "forward": "none: the model and its loss as they are",
    "prepare": "nothing",
}


@dataclass(frozen=True)
class Defaults:
    """Training options that fill whatever the user leaves unset.

    lr: peak learning rate; schedule: one of SCHEDULES ("linear" goes to zero); warmup: fraction of all steps;
    clip: largest norm of the gradient of what trains, or None.
    """

    lr: float
    schedule: str = "linear"
    warmup: float = 0.1
    weight_decay: float = 0.01
    batch_size: int = 16
    epochs: int = 3
    clip: float | None = 1.0

    def __post_init__(self) -> None:
        check_choice("Defaults", "schedule", self.schedule, SCHEDULES)
        if not (self.lr > 0 and 0 <= self.warmup < 1 and self.weight_decay >= 0):
            raise UsageError(f"Defaults: lr > 0, 0 <= warmup < 1 and weight_decay >= 0 must hold, got {self!r}")

    def __str__(self) -> str:
        clip = "no clipping" if self.clip is None else f"clip {self.clip:g}"
        return (
            f"lr {self.lr:g}, {self.schedule} schedule, warmup {self.warmup:g}, weight decay {self.weight_decay:g}, "
            f"batch {self.batch_size}, {self.epochs} epochs, {clip}"
        )


@dataclass(frozen=True)
class Card:
    """The honest label of a method: what it does, by whose account, and where this library differs.

    answers: scope, selector, update, forward, prepare in words; one that is left out is that of plain training.
    `leaks` says how entries that the mask leaves out move all the same under the preset's defaults, or is None where
    they keep their bits. `differs_from_release` lists how the preset differs from the authors' release. `found` is what
    our own runs say; where it is left out, and for time and memory, `measured.py` says it, written by a script.
    `own` names the training options, and "dropout", that make the method what it is: a comparison, which gives all
    methods one budget and the model's dropout, leaves them as the defaults and the preset say. `compared` says why, or
    what else is not equal there.
    """

    name: str
    title: str
    citation: str
    arxiv: str | None
    one_line: str
    answers: tuple[tuple[str, str], ...]
    formula: str
    published_grid: str
    leaks: str | None
    differs_from_release: tuple[str, ...]
    defaults: Defaults
    found: str = ""
    own: tuple[str, ...] = ()
    compared: str = ""

    def facts(self) -> tuple[tuple[str, str], ...]:
        """Return all there is to say under its label, in order; a label may stand more than once."""
        given = dict.fromkeys((*DEFAULT_ANSWERS, *(label for label, _ in self.answers)))
        return (
            ("source", self.citation if self.arxiv is None else f"{self.citation} arXiv {self.arxiv}."),
            *((label, text) for label in given for text in self._answers(label)),
            ("formula", self.formula),
            ("published", self.published_grid),
            ("leaks", self.leaks or "nothing: every entry that is not selected keeps its bits"),
            *(("differs", text) for text in self.differs_from_release),
            ("found", self.found or FOUND.get(self.name, "not measured yet")),
            ("cost", COST.get(self.name, "not measured yet")),
            ("defaults", str(self.defaults)),
            *((("compared", self._compared()),) if self.own or self.compared else ()),
        )

    def _compared(self) -> str:
        stays = f"keeps its own {' and '.join(self.own)}" if self.own else ""
        return ": ".join(part for part in (stays, self.compared) if part)

    def _answers(self, label: str) -> tuple[str, ...]:
        return tuple(text for name, text in self.answers if name == label) or (DEFAULT_ANSWERS[label],)

    def text(self, width: int = 100) -> str:
        """Return the card as plain text, wrapped to `width` columns."""

        def block(label: str, body: str) -> str:
            return textwrap.fill(body, width, initial_indent=f"{label:<12}", subsequent_indent=" " * 12)

        lines = [f"{self.name}: {self.title}", "", textwrap.fill(self.one_line, width), ""]
        before = ""
        for label, body in self.facts():
            lines.append(block("" if label == before else label, body))
            before = label
        return "\n".join(lines)


@dataclass(frozen=True)
class Method:
    """A preset and its card. `preset(**options)` returns the recipe."""

    preset: Callable[..., Recipe]
    card: Card

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the preset's keyword parameters."""
        return tuple(inspect.signature(self.preset).parameters)
