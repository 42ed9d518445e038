"""Files of tagged words: every separator that is none stays in its token, and errors name file and line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from subnetune.core.errors import DataError, MissingDataError, UsageError
from subnetune.tasks import FileSpec, TaskData, find_task, load_task, task_names
from subnetune.tasks.conll import conll_line, read_sentences, tag_set, uner_line, wikiann_line

pytestmark = pytest.mark.filterwarnings("ignore::subnetune.tasks.DataWarning")  # small files repeat themselves
NBSP, LINE, PARAGRAPH = "\u00a0", "\u2028", "\u2029"
SAME = ("O", "B-LOC", "I-LOC", "B-ORG", "I-ORG", "B-PER", "I-PER")


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["a.conll", "a.conll.gz"])
def test_conll_keeps_every_character_of_a_token(tmp_path: Path, name: str) -> None:
    text = (
        "-DOCSTART- -X- -X- O\n\n"
        f"# O\n#tag NN I-NP B-PER\na:b O\n{NBSP} O\nx{NBSP}y{LINE}z{PARAGRAPH} I-PER\n\n\n"
        "-DOCSTART-\tO\nNew York\tB-LOC\r\n\r\n"
        "NA   O  \nlast O"
    )
    read = read_sentences(write(tmp_path / name, text), conll_line)
    assert read.words == [
        ["#", "#tag", "a:b", NBSP, f"x{NBSP}y{LINE}z{PARAGRAPH}"],
        ["New York"],
        ["NA", "last"],
    ]
    assert read.tags == [["O", "B-PER", "O", "O", "I-PER"], ["B-LOC"], ["O", "O"]]


def test_a_document_line_ends_a_sentence(tmp_path: Path) -> None:
    read = read_sentences(write(tmp_path / "a.conll", "a O\n-DOCSTART- O\nb O\n"), conll_line)
    assert read.words == [["a"], ["b"]]


def test_uner_reads_the_third_column_and_skips_comments(tmp_path: Path) -> None:
    text = "# text = # O\n1\t#\tO\tB-LOC\tme\n2\t34 470\tB-LOC\n# in between\n3\t1:2\tI-LOC\t-\t-\n\n# end\n"
    read = read_sentences(write(tmp_path / "a.iob2", text), uner_line)
    assert (read.words, read.tags) == ([["#", "34 470", "1:2"]], [["O", "B-LOC", "I-LOC"]])


def test_wikiann_takes_off_its_own_language_once(tmp_path: Path) -> None:
    text = "en:en:x\tB-LOC\nen:12:30\tO\nen:#\tO\n\nen::\tO\n"
    read = read_sentences(write(tmp_path / "en.train", text), wikiann_line("en"))
    assert read.words == [["en:x", "12:30", "#"], [":"]]


@pytest.mark.parametrize(
    ("reader", "text", "wrong"),
    [
        pytest.param(conll_line, "a O\nb\n", "line 2: the word 'b' has no tag", id="no-tag"),
        pytest.param(conll_line, "a\tO\nb\t\n", "line 2: the tag is empty", id="empty-tag"),
        pytest.param(conll_line, "a\tO\n\tO\n", "line 2: the word is empty", id="empty-word"),
        pytest.param(conll_line, "a O\n\nb S-PER\n", "line 3: tag 'S-PER' is not one of", id="unknown-tag"),
        pytest.param(uner_line, "a\tO\n", "line 1: wanted the word's number", id="not-uner"),
        pytest.param(wikiann_line("en"), "de:a\tO\n", "line 1: wanted 'en:TOKEN'", id="other-language"),
        pytest.param(wikiann_line("en"), "en:\tO\n", "line 1: the word is empty", id="empty-wikiann-word"),
        pytest.param(conll_line, "\n\n", "the file holds no words", id="empty-file"),
    ],
)
def test_what_is_malformed_is_named_with_its_line(tmp_path: Path, reader: object, text: str, wrong: str) -> None:
    path = write(tmp_path / "bad.conll", text)
    with pytest.raises(DataError, match=wrong) as caught:
        read_sentences(path, reader, SAME)  # type: ignore[arg-type]
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("tag", ["PER", "B-", "b-PER", "E-PER", "o"])
def test_own_tags_are_iob2(tmp_path: Path, tag: str) -> None:
    with pytest.raises(DataError, match="line 1: .* is no IOB2 tag"):
        read_sentences(write(tmp_path / "a.txt", f"a {tag}\n"), conll_line)


def test_damaged_files_are_data_errors(tmp_path: Path) -> None:
    (tmp_path / "a.conll").write_bytes(b"a O\n\xff O\n")
    with pytest.raises(DataError, match="not UTF-8"):
        read_sentences(tmp_path / "a.conll", conll_line)
    (tmp_path / "a.conll.gz").write_bytes(gzip.compress(b"a O\n" * 99)[:-9])
    with pytest.raises(DataError, match="damaged gzip"):
        read_sentences(tmp_path / "a.conll.gz", conll_line)


def test_names_and_tag_sets() -> None:
    assert find_task("NER:EN") is find_task("ner:wikiann/en")
    assert find_task("ner:en").name == "ner:en"
    assert find_task("ner:en").labels == find_task("ner:universal_ner/hr_set").labels == SAME
    assert find_task("ner:masakhaner/yor").labels == ("O", "B-DATE", "I-DATE", *SAME[1:])
    kinds = ("corporation", "creative-work", "group", "location", "person", "product")
    assert find_task("ner:wnut17").labels == tag_set(kinds)
    assert find_task("ner:de").metrics[0] == "f1"
    assert (find_task("ner:de").kind, find_task("ner:de").outputs) == ("tokens", 7)
    assert {"ner:en", "ner:wnut17", "ner:universal_ner/da_ddt", "amazon:books"} <= set(task_names())


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("ner:wikian/en", "ner:wikiann"),
        ("ner:masakhaner/yur", "'ner:masakhaner/yor'"),
        ("ner:wnut18", "'ner:wnut17'"),
        ("amazon:book", "'amazon:books'"),
        ("nr:en", "'ner:en'"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(name: str, meant: str) -> None:
    with pytest.raises(UsageError, match="unknown task") as caught:
        find_task(name)
    assert meant in str(caught.value) or name == "ner:wikian/en"


def test_sets_lie_where_their_names_say(tmp_path: Path) -> None:
    write(tmp_path / "ner/wikiann/en.train", "en:Oslo\tB-LOC\n")
    write(tmp_path / "ner/wikiann/en.dev.gz", "en:is\tO\nen:Oslo\tI-LOC\n")
    write(tmp_path / "ner/masakhaner/yor.dev.txt.gz", "loni B-DATE\n")
    write(tmp_path / "ner/universal_ner/hr_set.dev.iob2", "1\tDan\tB-OTH\n2\tu\tI-OTH\n3\tSplitu\tB-LOC\n")
    write(tmp_path / "ner/universal_ner/en_pud.test.iob2.gz", "1\ta\tO\n")
    write(tmp_path / "ner/universal_ner/da_ddt-ud-dev.iob2", "1\ta\tO\n")
    write(tmp_path / "ner/wnut17/dev.conll", "Oslo\tB-location\n")
    data = load_task("ner:en", tmp_path)
    assert data.train.words == [["Oslo"]]
    assert data.evaluation["dev"].texts == ["is Oslo"]
    assert data.evaluation["dev"].labels == [[0, 2]]

    def dev(name: str) -> TaskData:
        return load_task(name, tmp_path, splits=("dev",))

    assert dev("ner:masakhaner/yor").evaluation["dev"].labels == [[1]]
    assert dev("ner:universal_ner/hr_set").evaluation["dev"].labels == [[0, 0, 1]]  # OTH is no entity there
    assert list(dev("ner:universal_ner/en_pud").evaluation) == ["test"]  # it has no other split
    assert len(dev("ner:universal_ner/da_ddt").evaluation["dev"]) == 1  # the name of the release
    assert dev("ner:wnut17").evaluation["dev"].texts == ["Oslo"]
    with pytest.raises(MissingDataError, match=r"(?s)split 'train'.*hr_set\.train\.iob2"):
        load_task("ner:universal_ner/hr_set", tmp_path)
    with pytest.raises(MissingDataError, match="--data-dir"):
        load_task("ner:en", None)


def test_a_tag_of_another_corpus_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "ner/wikiann/en.dev", "en:now\tB-DATE\n")
    with pytest.raises(DataError, match=r"en\.dev, line 1: tag 'B-DATE' is not one of"):
        load_task("ner:en", tmp_path, splits=("dev",))


def own(train: Path | None, dev: Path, **change: object) -> TaskData:
    splits = ("dev",) if train is None else ("train", "dev")
    return load_task("mine", files=FileSpec(train, dev, test=dev, **change), splits=splits)  # type: ignore[arg-type]


def test_own_files_take_their_tags_from_train(tmp_path: Path) -> None:
    train = write(tmp_path / "t.conll.gz", "a I-zoo\n\nb B-ant\nc O\n")
    data = own(train, write(tmp_path / "d.txt", "a B-zoo\n"))
    assert data.task.labels == ("O", "B-ant", "I-ant", "B-zoo", "I-zoo")
    assert (data.train.labels, data.evaluation["dev"].labels) == ([[4], [1, 0]], [[3]])
    with pytest.raises(DataError, match=r"d\.txt, line 1: tag 'B-cat' is not one of"):
        own(train, write(tmp_path / "d.txt", "a B-cat\n"))
    with pytest.raises(DataError, match="no word has a tag of an entity"):
        own(write(tmp_path / "o.txt", "a O\n"), train)


def test_own_files_without_train_need_the_tags_in_order(tmp_path: Path) -> None:
    dev = write(tmp_path / "d.iob2", "1\ta\tI-x\n")
    assert own(None, dev, labels=("I-x", "O", "B-x")).evaluation["dev"].labels == [[0]]
    with pytest.raises(UsageError, match=r"O among them, and these labels do not: NOUN, I-x"):
        own(None, dev, labels=("NOUN", "I-x"))
    with pytest.raises(UsageError, match="tags are unknown"):
        own(None, dev)


def test_a_test_file_may_lack_tags_altogether(tmp_path: Path) -> None:
    path = write(tmp_path / "d.conll", "a\nb\n\nc\n")
    spec = FileSpec(test=path, labels=SAME)
    split = load_task("mine", files=spec, splits=("test",)).evaluation["test"]
    assert (split.words, split.labels, split.tags) == ([["a", "b"], ["c"]], None, None)
    write(path, "a\nb O\n")
    with pytest.raises(DataError, match="line 2: the word 'b' has a tag"):
        load_task("mine", files=spec, splits=("test",))


def test_tables_and_tagged_words_do_not_mix(tmp_path: Path) -> None:
    path = write(tmp_path / "d.conll", "a O\n")
    with pytest.raises(UsageError, match="files of one kind"):
        FileSpec(path, tmp_path / "d.csv")
    with pytest.raises(DataError, match=r"tagged words, which have no columns to name, \.conll"):
        load_task("mine", files=FileSpec(path, label="tag"), splits=("train",))


def test_splits_of_words_keep_words_and_tags_together(tmp_path: Path) -> None:
    lines = "".join(f"w{i} B-x\nv{i} {'O' if i % 2 else 'I-x'}\n\n" for i in range(20))
    data = own(write(tmp_path / "t.conll", lines), write(tmp_path / "d.conll", "w3 B-x\nv3 O\n\nq O\n"))
    taken = data.train.take(7, seed=1)
    assert taken.words == [[f"w{i}", f"v{i}"] for i in taken.ids]
    assert taken.tags == [[1, 0 if i % 2 else 2] for i in taken.ids]
    rest, held = data.train.holdout(0.25, seed=0)
    assert sorted((rest.words or []) + (held.words or [])) == sorted(data.train.words or [])
    assert data.overlap() == {"dev": 1}
    with pytest.raises(UsageError, match="cannot stratify"):
        data.train.take(3, seed=0, stratified=True)
    with pytest.raises(DataError, match="a tag for each of 1 words"):
        type(taken)(["a"], None, [[0, 0]], words=[["a"]])


def test_the_fingerprint_knows_where_words_end(tmp_path: Path) -> None:
    paths = [write(tmp_path / name, "a b\tB-x\nc\tO\n\n") for name in ("1.conll", "2.conll")]
    write(paths[1], "a\tB-x\nb c\tO\n\n")
    first, second = (own(path, path) for path in paths)
    assert first.train.texts == second.train.texts
    assert first.fingerprint() != second.fingerprint()


def test_amazon_domains(tmp_path: Path) -> None:
    rows = "\n".join(json.dumps({"label": i % 2, "text": f"NA {i}"}) for i in range(4))
    write(tmp_path / "amazon/dvd.train.jsonl.gz", rows)
    data = load_task("Amazon:DVD", tmp_path, splits=("train",))
    assert (data.task.name, data.task.labels, data.train.labels) == (
        "amazon:dvd",
        ("negative", "positive"),
        [0, 1, 0, 1],
    )
    for wrong in (2, "1", True, [1]):
        write(tmp_path / "amazon/dvd.dev.jsonl", json.dumps({"label": wrong, "text": "x"}))
        with pytest.raises(DataError, match="line 1: label .* is not 0"):
            load_task("amazon:dvd", tmp_path, splits=("dev",))
    with pytest.raises(MissingDataError, match=r"books\.train\.jsonl"):
        load_task("amazon:books", tmp_path)
