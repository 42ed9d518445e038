"""Real NER files are read whole: sentences and tags are as many as their list of sources counts."""

from __future__ import annotations

import warnings
from collections import Counter

import pytest

from conftest import shared_folder
from subnetune.tasks import DataWarning, load_task
from subnetune.tasks.spans import invalid_tags
from subnetune.tasks.types import Split, Task

# task and split -> sentences, words, {tag: count}; where a token is `#`, see `test_a_hash_is_a_word`.
COUNTS = {
    ("ner:en", "dev"): (10000, 80536, {"O": 40875, "B-LOC": 4834, "I-ORG": 11638, "B-PER": 4635}),
    ("ner:de", "test"): (10000, 97646, {"O": 68654, "B-LOC": 4961, "I-PER": 6792, "B-ORG": 4157}),
    ("ner:masakhaner/swa", "test"): (604, 15409, {"O": 13648, "B-LOC": 463, "B-DATE": 162}),
    ("ner:universal_ner/da_ddt", "train"): (4383, 80378, {"O": 75941, "B-PER": 1235, "I-LOC": 76}),
    ("ner:universal_ner/pt_bosque", "dev"): (1172, 28447, {"O": 26131, "B-PER": 570, "I-ORG": 296}),
    ("ner:universal_ner/hr_set", "dev"): (960, 22292, {"O": 20143 + 154 + 163, "B-LOC": 395}),  # with B-OTH, I-OTH
    ("ner:universal_ner/en_pud", "test"): (1000, 21176, {"O": 19611, "B-LOC": 426}),
    ("ner:wnut17", "train"): (3394, 62730, {"O": 59570, "B-person": 660, "I-creative-work": 206}),
}


def read(name: str, split: str) -> tuple[Task, Split]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        data = load_task(name, shared_folder("data"), splits=(split,))
    return data.task, data.train if split == "train" else data.evaluation[split]


@pytest.mark.parametrize(("name", "split"), [pytest.param(*case, id=f"{case[0]}-{case[1]}") for case in COUNTS])
def test_counts(name: str, split: str) -> None:
    task, found = read(name, split)
    sentences, words, tags = COUNTS[name, split]
    assert (len(found), sum(map(len, found.words or ()))) == (sentences, words)
    counts = Counter(task.labels[tag] for row in found.tags or () for tag in row)
    assert {tag: counts[tag] for tag in tags} == tags


def test_a_hash_is_a_word() -> None:
    """The Yoruba train file has 38 tokens `#`; the list of sources takes their lines for breaks between sentences."""
    _, found = read("ner:masakhaner/yor", "train")
    hashes = sum(row.count("#") for row in found.words or ())
    assert (hashes, sum(map(len, found.words or ())) - hashes) == (38, 56236)
    assert len(found) == 2171


def test_invalid_tags_of_real_files() -> None:
    task, found = read("ner:universal_ner/da_ddt", "train")
    assert invalid_tags(found, task) == 6
