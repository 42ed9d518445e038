"""Pieces that are added to a method: how they are written, where they go, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from subnetune import (
    DecayToAnchor,
    HoldUnselected,
    MaskGradient,
    MixUnselected,
    NoisyLayers,
    NoisyStart,
    PullToPretrained,
    RDrop,
    Recall,
    Recipe,
    SetDropout,
    methods,
)
from subnetune.core.errors import UsageError
from subnetune.experiment.config import RunConfig, load_config, resolve
from subnetune.experiment.names import run_name
from subnetune.experiment.piece_texts import piece_texts, read_piece, write_piece
from subnetune.experiment.recipes import PIECES, add_pieces, build_recipe
from subnetune.experiment.rundir import RunDir
from subnetune.experiment.session import check_config_unchanged


def run(*pieces: object, **values: object) -> RunConfig:
    return RunConfig.from_values({"task": "rte", "with": list(pieces), **values})


def made(*pieces: object, **values: object) -> Recipe:
    return build_recipe(run(*pieces, **values))


@pytest.mark.parametrize("name", PIECES)
def test_every_piece_is_there_under_its_name_and_is_public(name: str) -> None:
    import subnetune

    field, module, kind = PIECES[name]
    method = {"mixout": "child-tuning-f", "mask-gradient": "child-tuning-f", "hold-unselected": "child-tuning-f"}
    options: dict[str, object] = {"mask_gradient": False, "exact": True} if name in ("mixout", "mask-gradient") else {}
    recipe = made(name, method=method.get(name, "full"), options=options)
    assert any(type(piece) is getattr(subnetune, kind) for piece in getattr(recipe, field))
    assert module == f"subnetune.{module.split('.')[1]}.{module.split('.')[2]}"


def test_options_reach_the_piece() -> None:
    assert made("l2-sp:weight=0.5").forward == (PullToPretrained(0.5),)
    assert made("l2-sp:weight=1").forward == (PullToPretrained(1.0),)
    assert made("r-drop:weight=2.0,form=sum").forward == (RDrop(2.0, "sum"),)
    assert made({"r-drop": {"weight": 2.0, "form": "sum"}}).forward == (RDrop(2.0, "sum"),)
    assert made("noisy-tune", "set-dropout:p=0.2").prepare == (SetDropout(0.2), NoisyStart())


def test_rules_nest_in_one_order_however_they_are_asked_for() -> None:
    forwards = (PullToPretrained(), RDrop(), NoisyLayers(), MixUnselected())
    for names in (("l2-sp", "r-drop", "hype", "mixout"), ("mixout", "r-drop", "l2-sp", "hype")):
        options: dict[str, object] = {"mask_gradient": False, "exact": True}
        assert made(*names, method="child-tuning-f", options=options).forward == forwards
    plain = methods.child_tuning_f(keep=0.5)
    held = (*plain.update, HoldUnselected())
    assert made("hold-unselected", method="child-tuning-f", keep=0.5).update == held
    for names in (("recadam", "hold-unselected"), ("hold-unselected", "recadam")):
        assert made(*names, method="child-tuning-f", keep=0.5).update == (*held, Recall())
    late = add_pieces(Recipe(selector=plain.selector, update=(DecayToAnchor(),)), ("mask-gradient",), "own")
    assert late.update == (MaskGradient(), DecayToAnchor())


@pytest.mark.parametrize(
    ("pieces", "method", "what"),
    [
        (["mask-gradient"], "child-tuning-f", "method 'child-tuning-f' has mask-gradient already"),
        (["r-drop", "r-drop:weight=2"], "full", "--with r-drop is given twice"),
        (["rdrop"], "full", "unknown piece 'rdrop' in --with; did you mean 'r-drop'"),
        (["l2-sp:wieght=0.1"], "full", "piece 'l2-sp' has no option 'wieght'; it has weight; did you mean 'weight'"),
        (["l2-sp:weight=much"], "full", "option 'weight' of piece 'l2-sp': got 'much', allowed is float"),
        (["l2-sp:weight=-1"], "full", "PullToPretrained: weight"),
        (["mixout"], "full", "MixUnselected acts on unselected entries, and this recipe has no selector"),
        (["mixout"], "child-tuning-d", "under the one mask of Top HoldUnselected keeps them there anyway"),
        (["mixout"], "child-tuning-f", "both divide the gradient by keep"),
        (["r-drop", "set-dropout:p=0"], "full", "compares two passes that differ by dropout"),
        (["recadam", "weight-decay"], "full", "both pull to the pretrained weights"),
    ],
)
def test_what_is_not_there_or_makes_no_sense_is_refused(pieces: list[str], method: str, what: str) -> None:
    with pytest.raises(UsageError) as error:
        resolve(run(*pieces, method=method))
    assert what in str(error.value)


@pytest.mark.parametrize("text", ["", ":", "l2-sp:", "l2-sp:weight", "l2-sp:=1", "l2-sp:weight=1,weight=2", "r-drop:,"])
def test_what_is_no_piece_is_told_with_the_form_that_is(text: str) -> None:
    with pytest.raises(UsageError, match=r"^with: got .*, allowed is names of pieces"):
        run(text)
    with pytest.raises(UsageError):
        read_piece(text)


@pytest.mark.parametrize("value", [True, 3, [3], [["r-drop"]], {"l2-sp": 0.01}, [{"l2-sp": [1]}]])
def test_what_is_neither_text_nor_mapping_is_refused(value: object) -> None:
    with pytest.raises(UsageError, match=r"^with: got "):
        RunConfig.from_values({"task": "rte", "with": value})


@pytest.mark.parametrize(
    ("said", "texts"),
    [
        ("r-drop", ("r-drop",)),
        ("r-drop, l2-sp:weight=1e-2,power=2 , hype", ("r-drop", "l2-sp:power=2,weight=0.01", "hype")),
        (["l2-sp: weight = 0.010"], ("l2-sp:weight=0.01",)),
        ([{"l2-sp": {"weight": 0.01}}, "r-drop"], ("l2-sp:weight=0.01", "r-drop")),
        ({"l2-sp": {"weight": 0.01}, "r-drop": None}, ("l2-sp:weight=0.01", "r-drop")),
        ('x:a="\\"",b=null', ('x:a="\\"",b=null',)),  # a quoted quotation mark ends nothing
        ("x:a=[1, 2],b=true,c='7,8'", ('x:a=[1, 2],b=true,c="7,8"',)),
    ],
)
def test_one_piece_has_one_text_however_it_is_said(said: object, texts: tuple[str, ...]) -> None:
    assert piece_texts(said) == texts
    assert piece_texts(texts) == texts
    assert RunConfig.from_values({"task": "rte", "with": said}).with_ == texts


_names = st.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True)
_values = st.one_of(
    st.booleans(),
    st.none(),
    st.integers(-(10**9), 10**9),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12),
    st.lists(st.integers(-9, 9) | st.sampled_from(["a", "b, c", "1"]), max_size=3),
)


@given(_names, st.dictionaries(st.from_regex(r"[a-z][a-z_]{0,8}", fullmatch=True), _values, max_size=3))
def test_a_written_piece_is_read_back(name: str, options: dict[str, Any]) -> None:
    text = write_piece(name, options)
    assert read_piece(text) == (name, options)
    assert piece_texts(text) == (text,)


def test_files_flags_and_runs_agree(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("task: rte\nwith:\n  - l2-sp: {weight: 1e-2}\n  - r-drop\n")
    of_file, of_flags = load_config(file, {}), run("l2-sp:weight=0.01", "r-drop")
    assert of_file == of_flags
    assert run_name(of_file) == "rte-full-withl2-sp_weight=0.01,r-drop"
    assert load_config(file, {"with": ["hype"]}).with_ == ("hype",)
    whole = resolve(of_file.model_copy(update={"output": tmp_path / "out"}))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.yaml").write_text(whole.to_yaml(), encoding="utf-8")
    assert load_config(tmp_path / "out" / "config.yaml", {}) == whole
    kept = RunDir(tmp_path / "out")
    check_config_unchanged(kept, whole)
    other = resolve(run("l2-sp:weight=0.02", "r-drop", output=str(tmp_path / "out")))
    with pytest.raises(UsageError, match=r"with: the run has \['l2-sp:weight=0.01', 'r-drop'\], now \['l2-sp:weight"):
        check_config_unchanged(kept, other)
    file.write_text("task: rte\nwith:\n  - l2-sp: 3\n")
    with pytest.raises(UsageError, match=r"run.yaml, line 2: with: got"):
        load_config(file, {})
