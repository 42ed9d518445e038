"""Named entity recognition tasks by name: WikiAnn, MasakhaNER, Universal NER and WNUT17.

WikiAnn: Pan et al., ACL 2017, in the balanced splits of Rahimi et al., ACL 2019 (arXiv 1902.00193). MasakhaNER: arXiv
2103.11811, and 2 (arXiv 2210.12391), which has the same types. Universal NER: arXiv 2311.09122. WNUT17: Derczynski et
al., W-NUT 2017.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from subnetune.core.errors import MissingDataError, UsageError, nearest
from subnetune.tasks.conll import LineReader, conll_line, read_sentences, tag_set, uner_line, wikiann_line
from subnetune.tasks.readers import find_file
from subnetune.tasks.types import Split, Task

PREFIX = "ner:"
METRICS = ("f1", "precision", "recall", "token_accuracy")
_SAME = ("LOC", "ORG", "PER")
_WIKIANN = (
    "ace af als am an ang ar arc arz as ast ay az ba bar bat-smg be be-x-old bg bh bn bo br bs ca cbk-zam cdo ce ceb "
    "ckb co crh cs csb cv cy da de diq dv el eml en eo es et eu ext fa fi fiu-vro fo fr frr fur fy ga gan gd gl gn gu "
    "hak he hi hr hsb hu hy ia id ig ilo io is it ja jbo jv ka kk km kn ko ksh ku ky la lb li lij lmo ln lt lv map-bms "
    "mg mhr mi min mk ml mn mr ms mt mwl my mzn nap nds ne nl nn no nov oc or os pa pdc pl pms pnb ps pt qu rm ro ru "
    "rw sa sah scn sco sd sh si simple sk sl so sq sr su sv sw szl ta te tg th tk tl tr tt ug uk ur uz vec vep vi vls "
    "vo wa war wuu xmf yi yo zea zh zh-classical zh-min-nan zh-yue"
).split()
_MASAKHANER = "amh bam bbj ewe fon hau ibo kin lug luo mos nya pcm sna swa tsn twi wol xho yor zul".split()
_UNER_TRAINED = "da_ddt en_ewt hr_set pt_bosque sk_snk sr_set sv_talbanken zh_gsd zh_gsdsimp".split()
_UNER_TESTS = "ceb_gja de_pud en_pud pt_pud ru_pud sv_pud tl_trg tl_ugnayan zh_pud".split()


@dataclass(frozen=True)
class Corpus:
    """A collection of sets with one published tag set, and where its files lie below the data folder.

    `tests` are the sets that are published as a test set alone. `names` are the file names of a set and split, the
    first one found counts; `line` returns what reads a set's lines; `read_as` holds tags that are read as others.
    """

    folder: str
    sets: tuple[str, ...]
    types: tuple[str, ...]
    names: tuple[str, ...]
    line: Callable[[str], LineReader] = field(default=lambda _: conll_line)
    tests: tuple[str, ...] = ()
    read_as: Mapping[str, str] = field(default_factory=dict)


CORPORA: dict[str, Corpus] = {
    "wikiann": Corpus("wikiann", tuple(_WIKIANN), _SAME, ("{set}.{split}",), wikiann_line),
    "masakhaner": Corpus("masakhaner", tuple(_MASAKHANER), ("DATE", *_SAME), ("{set}.{split}.txt",)),
    # The published tag set has three types for every set. The Croatian and Serbian files also hold what other corpora
    # annotate, as OTH; as in the published data that is no entity here, so that one tag set serves all languages.
    "universal_ner": Corpus(
        "universal_ner",
        (*_UNER_TRAINED, *_UNER_TESTS),
        _SAME,
        ("{set}.{split}.iob2", "{set}-ud-{split}.iob2"),
        lambda _: uner_line,
        tuple(_UNER_TESTS),
        {"B-OTH": "O", "I-OTH": "O"},
    ),
    "wnut17": Corpus(
        "wnut17",
        ("",),
        ("corporation", "creative-work", "group", "location", "person", "product"),
        ("{split}.conll",),
    ),
}


def ner_names() -> tuple[str, ...]:
    """Return the names of all sets: `ner:en` (WikiAnn), `ner:masakhaner/yor`, `ner:wnut17`."""
    return tuple(_name(corpus, part) for corpus, found in CORPORA.items() for part in found.sets)


def _name(corpus: str, part: str) -> str:
    if corpus == "wikiann":
        return f"{PREFIX}{part}"
    return f"{PREFIX}{corpus}/{part}" if part else f"{PREFIX}{corpus}"


def is_ner(name: str) -> bool:
    """Say whether a task's name means one of these."""
    return name.lower().startswith(PREFIX)


def find_ner(name: str) -> Task:
    """Return the task of that name, in any case; `ner:wikiann/en` is `ner:en`. UsageError if there is none."""
    corpus, part = _parts(name)
    return _task(_name(corpus, part))


@cache
def _task(name: str) -> Task:
    corpus, _ = _parts(name)
    return Task(name, "tokens", tag_set(CORPORA[corpus].types), METRICS, pair=False)


def _parts(name: str) -> tuple[str, str]:
    """Return the corpus and the set in it."""
    text = name.lower().removeprefix(PREFIX)
    corpus, _, part = text.partition("/")
    if corpus not in CORPORA and not part:
        corpus, part = "wikiann", corpus
    if corpus not in CORPORA or part not in CORPORA[corpus].sets:
        raise UsageError(
            f"unknown task {name!r}; there are {PREFIX}LANGUAGE (WikiAnn, such as ner:en), "
            + ", ".join(f"{PREFIX}{c}{'/SET' if CORPORA[c].sets != ('',) else ''}" for c in list(CORPORA)[1:])
            + nearest(f"{PREFIX}{text}", ner_names())
        )
    return corpus, part


def load_ner(name: str, split: str, data_dir: Path | None) -> dict[str, Split]:
    """Return one split ("train", "dev" or "test") by its name, from `<data_dir>/ner/<corpus>`.

    A set that is published as a test set alone gives that as "test" where "dev" is asked for. MissingDataError says
    which files were looked for; DataError, with file and line, for what is malformed or no tag of the corpus.
    """
    corpus, part = _parts(name)
    found = CORPORA[corpus]
    if data_dir is None:
        raise MissingDataError(f"{name} needs a data folder: give --data-dir, the folder that holds ner/{found.folder}")
    if split == "dev" and part in found.tests:
        split = "test"
    names = [form.format(set=part, split=split) for form in found.names]
    path = find_file([data_dir / "ner" / found.folder], names, f"{name}, split {split!r}")
    task = _task(name)
    read = read_sentences(path, found.line(part), task.labels, read_as=found.read_as)
    return {split: tagged_split(read.words, read.tags, task, split)}


def tagged_split(words: list[list[str]], tags: list[list[str]] | None, task: Task, name: str) -> Split:
    """Return sentences as a split: tags as ids of `task`, texts joined by spaces."""
    ids = {tag: i for i, tag in enumerate(task.labels)}
    labels = None if tags is None else [[ids[tag] for tag in row] for row in tags]
    return Split([" ".join(row) for row in words], None, labels, name=name, words=words)
