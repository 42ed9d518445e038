"""Sentences of tagged words that a tiny model can learn: an animal after an adjective is one entity with it."""

from __future__ import annotations

from pathlib import Path

from tiny_run import WORDS, make_model

ADJECTIVES, ANIMALS = ("small", "big", "red"), ("cat", "dog", "bird")


def sentences(count: int, offset: int = 0) -> list[list[tuple[str, str]]]:
    """Return `count` sentences of 3 to 8 words with tags of the types LOC and PER."""
    found = []
    for i in range(offset, offset + count):
        row: list[tuple[str, str]] = [("the" if i < 100 else "a", "O")]  # none is both in train and dev
        for k in range(1 + i % 4):
            kind = "PER" if (i + k) % 2 else "LOC"
            adjective, animal = ADJECTIVES[(i * 5 + k) % 3], ANIMALS[0 if kind == "PER" else 1 + i % 2]
            row += [(adjective, f"B-{kind}"), (animal, f"I-{kind}")] if k % 2 else [(animal, f"B-{kind}")]
            row.append((WORDS[5 + (i + k) % 3], "O"))
        found.append(row)
    return found


def write_conll(file: Path, rows: list[list[tuple[str, str]]], form: str = "{0}\t{1}") -> Path:
    """Write sentences, a word a line in `form` (of token and tag)."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join("".join(form.format(*word) + "\n" for word in row) for row in rows), encoding="utf-8")
    return file


def make_tagged_root(root: Path) -> Path:
    """Write a tiny model, `train.conll`, `dev.conll`, and small sets of WikiAnn, MasakhaNER and WNUT17 below `data`."""
    make_model(root / "model")
    write_conll(root / "train.conll", sentences(26))
    write_conll(root / "dev.conll", sentences(11, offset=100))
    for language, offset in (("en", 0), ("de", 50)):
        for split, count in (("train", 16), ("dev", 9)):
            rows = sentences(count, offset + 200 * (split == "dev"))
            write_conll(root / f"data/ner/wikiann/{language}.{split}", rows, language + ":{0}\t{1}")
    write_conll(
        root / "data/ner/masakhaner/yor.dev.txt", [*sentences(5), [("never", "B-DATE"), ("cat", "B-PER")]], "{0} {1}"
    )
    write_conll(root / "data/ner/wnut17/dev.conll", [[("cat", "B-person")]])
    return root
