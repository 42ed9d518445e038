"""Read sentences of tagged words: CoNLL columns, Universal NER's IOB2 files, WikiAnn's `lang:token` (plain or gzip).

Lines end at a newline and fields at the file's own separator alone: a token may hold `#`, `:`, a no-break space or a
Unicode line separator, and each stays one token with the characters it has.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from subnetune.core.errors import DataError, nearest
from subnetune.tasks.readers import guarded, open_text

OUTSIDE = "O"
DOCUMENT = "-DOCSTART-"


class Word(NamedTuple):
    """One word with its tag, None where the line has none."""

    token: str
    tag: str | None


LineReader = Callable[[str], Word | None]  # a line without its end; None: no word. Raises ValueError, in a few words.


@dataclass(frozen=True)
class Sentences:
    """The sentences of one file. `tags` is None where no line has one."""

    path: Path
    words: list[list[str]]
    tags: list[list[str]] | None


def read_sentences(
    path: Path,
    read_line: LineReader,
    known: Collection[str] | None = None,
    *,
    read_as: Mapping[str, str] | None = None,
    may_lack_tags: bool = False,
) -> Sentences:
    """Return the sentences of a file, one word a line, an empty line between two of them.

    `known` are the tags that may occur; None takes any of IOB2's form. `read_as` gives the tag that another one is
    read as. With `may_lack_tags` a file may have no tags at all. DataError, with the line, for anything else.
    """
    words: list[list[str]] = [[]]
    tags: list[list[str]] = [[]]
    tagged: bool | None = None
    with open_text(path, newline="\n") as file:
        for line, text in guarded(path, enumerate(file, start=1)):
            row = text.removesuffix("\n").removesuffix("\r")
            if not row.strip(" \t"):
                _end_sentence(words, tags)
                continue
            try:
                word = read_line(row)
            except ValueError as error:
                raise DataError(f"{path}, line {line}: {error}; got {row[:80]!r}") from None
            if word is None:
                continue
            if word.token == DOCUMENT:
                _end_sentence(words, tags)
                continue
            if tagged is None:
                tagged = word.tag is not None or not may_lack_tags
            if tagged != (word.tag is not None):
                has = "no tag" if word.tag is None else "a tag, and the lines before have none"
                raise DataError(f"{path}, line {line}: the word {word.token!r} has {has}; got {row[:80]!r}")
            words[-1].append(word.token)
            if word.tag is not None:
                tag = (read_as or {}).get(word.tag, word.tag)
                _check(path, line, tag, known)
                tags[-1].append(tag)
    _end_sentence(words, tags)
    if len(words) == 1:
        raise DataError(f"{path}: the file holds no words")
    return Sentences(path, words[:-1], tags[:-1] if tagged else None)


def _end_sentence(words: list[list[str]], tags: list[list[str]]) -> None:
    if words[-1]:
        words.append([])
        tags.append([])


def _check(path: Path, line: int, tag: str, known: Collection[str] | None) -> None:
    if known is None and tag != OUTSIDE and not (tag[:2] in ("B-", "I-") and len(tag) > 2):
        raise DataError(f"{path}, line {line}: {tag!r} is no IOB2 tag; tags are O, B-TYPE and I-TYPE")
    if known is not None and tag not in known:
        raise DataError(
            f"{path}, line {line}: tag {tag!r} is not one of {', '.join(map(repr, known))}{nearest(tag, known)}"
        )


def conll_line(row: str) -> Word:
    """Read columns separated by tabs, or in a line without any by spaces: the first is the token, the last the tag."""
    fields = row.split("\t") if "\t" in row else [field for field in row.split(" ") if field]
    if len(fields) == 1:
        return Word(fields[0], None)
    return _word(fields[0], fields[-1])


def uner_line(row: str) -> Word | None:
    """Read Universal NER's columns: word number, token, tag and more; a line that starts with `#` is a comment."""
    if row.startswith("#"):
        return None
    fields = row.split("\t")
    if not fields[0].isdecimal() or len(fields) < 2:
        raise ValueError("wanted the word's number, the token and the tag, separated by tabs (for two columns: .conll)")
    return Word(fields[1], None) if len(fields) == 2 else _word(fields[1], fields[2])


def wikiann_line(language: str) -> LineReader:
    """Return what reads `language:token<TAB>tag`."""
    start = f"{language}:"

    def read(row: str) -> Word:
        fields = row.split("\t")
        if len(fields) != 2 or not fields[0].startswith(start):
            raise ValueError(f"wanted '{start}TOKEN', a tab and the tag")
        return _word(fields[0][len(start) :], fields[1])

    return read


def _word(token: str, tag: str) -> Word:
    if not token:
        raise ValueError("the word is empty")
    if not (tag := tag.strip(" ")):
        raise ValueError("the tag is empty")
    return Word(token, tag)


def tag_set(types: Collection[str]) -> tuple[str, ...]:
    """Return the tags of these entity types in order of their ids: O, then B- and I- of each type, sorted by name."""
    return (OUTSIDE, *(f"{place}-{kind}" for kind in sorted(types) for place in "BI"))
