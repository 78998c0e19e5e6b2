"""Locates a model or tokenizer, before transformers requests its files one by one.

A name is a folder, if a folder of that name exists; else a hub id, unless it can only be a path. The hub is queried
once, without retries: if it does not answer, everything is taken from its cache.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..common.errors import ModelNotFoundError, UnsupportedArchitectureError

ACCESS = ("cache_dir", "force_download", "local_files_only", "token", "trust_remote_code")
"""Arguments of ``from_pretrained`` that apply to every repository."""
PLACE = ("revision", "subfolder", "code_revision", "gguf_file")
"""Arguments of ``from_pretrained`` that apply to one repository."""
TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "tokenizer.model", "vocab.json", "config.json")
_FILE_ENDINGS = (".gguf", ".safetensors", ".bin", ".pt", ".json")
_MAX_ERROR = 300
"""Maximum number of characters quoted from errors of other packages."""
_TOKEN = "hf auth login, HF_TOKEN, or model_kwargs={'token': ...}"
_DOWNLOAD_ADVICE = "check the spelling, give a local folder, or download it where there is a network: hf download {}"


@dataclass(frozen=True)
class Place:
    """Where a model or tokenizer is loaded from.

    Attributes:
        what: its name in messages.
        path: a folder or hub id, as for ``from_pretrained``.
        arguments: hub arguments of ``from_pretrained``.
        note: why the hub was not queried for the files, if it was not.
        advice: what to do if files are missing.
    """

    what: str
    path: str
    arguments: dict[str, Any]
    note: str = ""
    advice: str = ""


def look_up(
    path: str, what: str, arguments: Mapping[str, Any], *, files: tuple[str, ...] = ("config.json",), advice: str = ""
) -> Place:
    """The place of a model or tokenizer, checked to exist.

    Args:
        path: a folder, a GGUF file or a hub id.
        what: its name in messages.
        arguments: hub arguments of ``from_pretrained``.
        files: at least one of these must exist; nothing is checked if empty.
        advice: what to do if it is missing.

    Raises:
        ModelNotFoundError: naming it, what was tried and what to do.
    """
    place = Place(what, path, dict(arguments), advice=advice)
    local_path = Path(path)
    if path.endswith(".gguf"):
        _check_gguf(local_path, place)
        return replace(place, path=str(local_path.parent), arguments={**arguments, "gguf_file": local_path.name})
    if local_path.is_dir():
        _check_folder(local_path / (arguments.get("subfolder") or ""), place, files)
        return place
    if local_path.exists():
        raise _missing(place, f"{local_path.absolute()} is a file, but neither a saved model's folder nor a GGUF file")
    if _can_only_be_a_path(path):
        raise _missing(place, f"there is no folder or file {local_path.absolute()}")
    return _ask_hub(place, files)


def as_typed(name: str | Path) -> str:
    """A folder, file or hub id as a string, its ``~`` expanded."""
    return str(Path(name).expanduser()) if str(name).startswith("~") else str(name)


@contextmanager
def short_errors(place: Place, *also: type[Exception]) -> Iterator[None]:
    """Turn the long errors of transformers into a short error that names the model.

    Args:
        place: the place of the model or tokenizer.
        also: additional errors that mean that it cannot be loaded.
    """
    from safetensors import SafetensorError

    unreadable: tuple[type[Exception], ...] = (OSError, SafetensorError, *also)
    try:
        yield
    except (ModelNotFoundError, UnsupportedArchitectureError):
        raise
    except unreadable as error:
        raise _missing(place, f"{type(error).__name__}: {_shortened(error)}") from None
    except ValueError as error:
        trust = "trust_remote_code" in str(error)
        hint = "; if you trust it: model_kwargs={'trust_remote_code': True}" if trust else ""
        raise ValueError(f"{place.what} cannot be loaded: {_shortened(error)}{hint}") from None
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise ValueError(
            f"{place.what} cannot be loaded: the shapes of its weights differ from its configuration; does "
            "model_kwargs change shapes?"
        ) from None


def _check_gguf(file: Path, place: Place) -> None:
    if not file.is_file():
        raise _missing(place, f"there is no file {file.absolute()}")
    with file.open("rb") as opened:
        if opened.read(4) != b"GGUF":
            raise _missing(place, f"{file.absolute()} is not a GGUF file")


def _check_folder(folder: Path, place: Place, files: tuple[str, ...]) -> None:
    if not files or "gguf_file" in place.arguments or any((folder / name).is_file() for name in files):
        return
    if (folder / "adapter_config.json").is_file():
        raise ModelNotFoundError(
            f"{place.what} cannot be loaded: {folder} holds only a PEFT adapter (adapter_config.json), not its base "
            "model; load both with peft and give the result: FrozenLLM(PeftModel.from_pretrained(base, "
            "adapter), tokenizer=...)"
        )
    content = ", ".join(sorted(os.listdir(folder))[:8]) if folder.is_dir() else "no such folder"
    raise _missing(place, f"{folder.absolute()} has no {' or '.join(files)} (it holds: {content or 'nothing'})")


def _can_only_be_a_path(name: str) -> bool:
    """Whether a name cannot be a hub id, which is NAME or OWNER/NAME."""
    return (
        name.startswith((".", "~", "/")) or name.count("/") > 1 or "\\" in name or name.lower().endswith(_FILE_ENDINGS)
    )


def _ask_hub(place: Place, files: tuple[str, ...]) -> Place:
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    options = {name: value for name, value in place.arguments.items() if value is not None}
    note: str | None
    if options.get("local_files_only"):
        note = "only local files may be used (local_files_only)"
    elif constants.HF_HUB_OFFLINE:
        note = "offline mode is on: HF_HUB_OFFLINE=1"
    else:
        note = _no_answer(place.path, options, files)
        if note is None:
            return place
    cached = {name: options[name] for name in ("cache_dir", "revision") if name in options}
    prefix = f"{options['subfolder']}/" if options.get("subfolder") else ""
    try:
        is_cached = not files or any(
            isinstance(try_to_load_from_cache(place.path, prefix + name, **cached), str) for name in files
        )
    except HFValidationError:
        raise _missing(place, f"it is neither a folder ({Path(place.path).absolute()}) nor a hub id") from None
    if not is_cached:
        tried = f"it is no folder here, not in the cache {cached.get('cache_dir', constants.HF_HUB_CACHE)}, and {note}"
        raise _missing(replace(place, advice=place.advice or _DOWNLOAD_ADVICE.format(place.path)), tried)
    return replace(place, arguments={**place.arguments, "local_files_only": True}, note=note)


def _no_answer(repository: str, options: Mapping[str, Any], files: tuple[str, ...]) -> str | None:
    """Why the hub does not provide the model; None if it does."""
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url

    where = {name: options[name] for name in ("revision", "subfolder") if name in options}
    for file in files or ("config.json",):
        try:
            get_hf_file_metadata(hf_hub_url(repository, file, **where), token=options.get("token"))
            return None
        except errors.GatedRepoError:
            return f"the Hub grants access to it on request: ask for it on its page, then give a token ({_TOKEN})"
        except errors.RepositoryNotFoundError:
            return f"the Hub has no repository of that name; a private one needs a token ({_TOKEN})"
        except errors.RevisionNotFoundError:
            return f"the Hub has it, but not its revision {where.get('revision')!r}"
        except errors.EntryNotFoundError:
            continue
        except Exception as error:  # depends on the HTTP library of the hub's client
            return f"the Hub could not be reached ({type(error).__name__}: {_shortened(error)})"
    return f"the Hub has it, but without {' or '.join(files)}: an adapter or GGUF files alone?" if files else None


def _missing(place: Place, tried: str) -> ModelNotFoundError:
    notes = [tried, *(note for note in (place.note, place.advice) if note)]
    return ModelNotFoundError(f"{place.what} cannot be loaded: {'; '.join(notes)}")


def _shortened(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= _MAX_ERROR else f"{text[:_MAX_ERROR]}..."
