"""The fetch step: `python -m trainer fetch CONFIG.json`."""

import contextlib
import dataclasses
import difflib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from trainer.config import FetchConfig
from trainer.errors import RequestError
from trainer.fetch.dataset import check_dataset
from trainer.fetch.hub import fetch_from_hub, fetched_before, parse_hub_id
from trainer.fetch.model_folder import ModelFacts, read_model
from trainer.fetch.place import check_earlier_run, check_run_name, check_volume
from trainer.fetch.tensorized import check_tensorized
from trainer.fetch.tokenizer_folder import count_token_ids
from trainer.steps import StepResult
from trainer.tokens.sources import Source
from trainer.volume_paths import is_url, path_on_volume


@dataclass
class Problems:
    """What is wrong, collected, so that a user mends it all at once."""

    found: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def collected(self) -> Iterator[None]:
        """Keep what the block refuses, and go on."""
        try:
            yield
        except RequestError as error:
            self.found += error.problems

    def refuse(self) -> None:
        if self.found:
            raise RequestError(*self.found)


Folders = dict[str, Path]
"""Where the model is, and the tokenizer if it is another one, by parameter."""


def run(config: FetchConfig) -> StepResult:
    """Check the request against the volume, and make sure that the model is on it.

    Raises:
        RequestError: With everything that is wrong.
    """
    config, folders, _ = looked_at(config)
    if config.check_only:
        return StepResult(message="the request can be run")
    # A download takes long: it is begun only when nothing else is wrong.
    downloaded = [_download(config, parameter, folders) for parameter in _asked(config)]
    return _result(config, _check_model(config, folders), folders, any(downloaded))


def looked_at(config: FetchConfig) -> tuple[FetchConfig, Folders, list[Source]]:
    """The request with its volume by its true path, the folders that are on it, the dataset.

    Raises:
        RequestError: With everything that is wrong, as far as it needs no download.
    """
    # As path_on_volume has it: a volume may be named by a link or a relative path.
    config = dataclasses.replace(config, volume=str(Path(config.volume).resolve()))
    check_volume(Path(config.volume), touch=not config.check_only)
    return config, *_check_what_is_there(config)


def _asked(config: FetchConfig) -> list[str]:
    return ["model", "tokenizer"] if config.tokenizer else ["model"]


def _check_what_is_there(config: FetchConfig) -> tuple[Folders, list[Source]]:
    """Everything that needs no download; the folders that are on the volume, and the dataset."""
    problems, folders, sources = Problems(), Folders(), []
    for check in (check_run_name, check_earlier_run, _check_prompt_file, _check_tracking):
        with problems.collected():
            check(config)
    with problems.collected():
        sources = check_dataset(Path(config.volume), config.dataset, config.listing)
    for parameter in _asked(config):
        with problems.collected():
            if folder := _on_volume(config, parameter):
                folders[parameter] = folder
    if folders.keys() == set(_asked(config)):
        with problems.collected():
            _check_model(config, folders)
    problems.refuse()
    return folders, sources


def _check_prompt_file(config: FetchConfig) -> None:
    name = config.prompt_file
    if name and not path_on_volume(config.volume, "prompt_file", name).is_file():
        raise RequestError(
            f"prompt_file is not there (got {name!r}). It is a text file on the volume with one "
            "prompt a line. Correct it, or leave it empty."
        )


def _check_tracking(config: FetchConfig) -> None:
    if config.wandb_key and importlib.util.find_spec("wandb") is None:
        raise RequestError(
            "wandb_key needs the package wandb, which is not installed "
            f"(got {config.wandb_key!r}). Install the extra `tracking` "
            "(pip install 'finetune-pipeline[tracking]'), or leave wandb_key empty."
        )


def _on_volume(config: FetchConfig, parameter: str) -> Path | None:
    """The folder that `parameter` names; None where it is a model of the hub, not yet here."""
    name, volume = getattr(config, parameter), Path(config.volume)
    if not is_url(name):
        folder = path_on_volume(volume, parameter, name)
        if folder.is_dir():
            return folder
    hub_id = parse_hub_id(name)
    if hub_id is None:
        raise RequestError(_neither(volume, parameter, name))
    if config.trust_remote_code and not hub_id.pinned:
        raise RequestError(
            f"{parameter} is not pinned, so trust_remote_code=true would run whatever is there "
            f"tomorrow (got {name!r}). Write {hub_id.id}@COMMIT with the 40 digits of a commit "
            "that you have read."
        )
    return fetched_before(volume, hub_id, tokenizer_only=without_weights(config, parameter))


def without_weights(config: FetchConfig, parameter: str) -> bool:
    """Whether all but the weights is wanted of what `parameter` names."""
    return parameter == "tokenizer" or bool(config.tensorizer_uri)


def _download(config: FetchConfig, parameter: str, folders: Folders) -> bool:
    """Bring what `parameter` names from the hub unless it is here; says whether it did."""
    if parameter in folders:
        return False
    hub_id = parse_hub_id(getattr(config, parameter))
    assert hub_id is not None, "checked before"
    folders[parameter], downloaded = fetch_from_hub(
        Path(config.volume),
        parameter,
        hub_id,
        tokenizer_only=without_weights(config, parameter),
        with_code=config.trust_remote_code,
    )
    return downloaded


def _neither(volume: Path, parameter: str, name: str) -> str:
    there = sorted(
        str(path.parent.relative_to(volume)) for path in volume.glob("models/**/config.json")
    )
    near = difflib.get_close_matches(name, there, n=1)
    return (
        f"{parameter} is neither a folder on the volume nor a Hugging Face id (got {name!r}). "
        "A folder is relative to the volume, an id is org/name or org/name@revision. "
        + (f"Did you mean {near[0]}?" if near else "Correct it.")
    )


def _check_model(config: FetchConfig, folders: Folders) -> ModelFacts:
    """Whether the model can be trained on contexts of that size with that tokenizer."""
    problems = Problems()
    ids = facts = None
    parameter = _asked(config)[-1]  # which holds the tokenizer
    with problems.collected():
        ids = count_token_ids(folders[parameter], parameter)
    with problems.collected():
        elsewhere = None
        if config.tensorizer_uri:
            elsewhere = check_tensorized(Path(config.volume), config.tensorizer_uri)
        facts = read_model(folders["model"], config.trust_remote_code, elsewhere)
        problems.found += _limits(config, facts, ids, folders[parameter].name)
    problems.refuse()
    assert facts is not None
    return facts


def _limits(config: FetchConfig, facts: ModelFacts, ids: int | None, tokenizer: str) -> list[str]:
    problems = []
    if facts.context_limit is not None and config.context > facts.context_limit:
        problems.append(
            f"context is larger than the model takes (got {config.context}). "
            f"{facts.folder.name} has positions for {facts.context_limit} tokens. "
            f"Set context={facts.context_limit} or less."
        )
    if ids is not None and facts.embeddings is not None and ids > facts.embeddings:
        problems.append(
            f"tokenizer {tokenizer} has more tokens than the model has embeddings "
            f"(got {ids:,} tokens). {facts.folder.name} has {facts.embeddings:,}. "
            "Take the model's own tokenizer. Only tokens added to that one get new embeddings."
        )
    return problems


def _result(
    config: FetchConfig, facts: ModelFacts, folders: Folders, downloaded: bool
) -> StepResult:
    size = f"{facts.parameters / 1e6:,.1f} M parameters, {facts.bytes / 1e6:,.1f} MB"
    places = {name: str(folder.relative_to(config.volume)) for name, folder in folders.items()}
    return StepResult(
        result={
            "model": places["model"],
            "tokenizer": places.get("tokenizer", ""),
            "model_bytes": facts.bytes,
            "parameters": facts.parameters,
            "context_limit": facts.context_limit,
            "downloaded": downloaded,
        },
        message=f"{places['model']}: {size}, {'downloaded' if downloaded else 'there already'}",
        reused=not downloaded,
    )
