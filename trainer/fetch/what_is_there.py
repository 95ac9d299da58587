"""Everything about a request that needs no download: the dataset, and the models on the volume."""

import contextlib
import difflib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from trainer.contract.errors import RequestError
from trainer.contract.step_configs import FetchConfig
from trainer.contract.volume import is_url, path_on_volume, refuse_links_out
from trainer.evaluation.tasks import refuse_tasks
from trainer.fetch.checks import check_earlier_run, check_run_name
from trainer.fetch.hub import fetched_before, parse_hub_id
from trainer.fetch.model_folder import ModelFacts, context_limit, read_config, read_model
from trainer.fetch.records import check_records, check_text
from trainer.fetch.tensorized import check_tensorized
from trainer.fetch.tokenizer_folder import check_it_encodes, count_token_ids, lacks_tokenizer
from trainer.fetch.weight_shapes import weight_problems
from trainer.fetch.weights import has_weights
from trainer.planning.model_shape import rotation_limit
from trainer.tokens.beginning import check_beginning
from trainer.tokens.text.sources import SourceList


@dataclass
class Problems:
    """What is wrong, collected, so that a user mends it all at once."""

    found: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def collected(self) -> Iterator[None]:
        """Keep what the block refuses, and continue."""
        try:
            yield
        except RequestError as error:
            self.found += error.problems

    def refuse(self) -> None:
        if self.found:
            raise RequestError(*self.found)


Folders = dict[str, Path]
"""Where the model is, and the tokenizer if it is another one, by parameter."""


def asked_models(config: FetchConfig) -> list[str]:
    return ["model", "tokenizer"] if config.tokenizer else ["model"]


def check_what_is_there(
    config: FetchConfig, *, with_dataset: bool = True, whole: bool = True
) -> tuple[Folders, SourceList]:
    """Everything that needs no download; the folders that are on the volume, and the dataset.

    Args:
        with_dataset: Whether it has to be there.
        whole: Whether a model must have weights and a tokenizer.
    """
    problems, folders, sources = Problems(), Folders(), SourceList([])
    for check in (check_run_name, check_earlier_run, _check_prompt_file, _check_tracking):
        with problems.collected():
            check(config)
    with problems.collected():
        refuse_tasks(config.evaluation, config.volume)
    if with_dataset:
        with problems.collected():
            sources = check_text(config)
    for parameter in asked_models(config):
        with problems.collected():
            if folder := _on_volume(config, parameter):
                refuse_links_out(config.volume, parameter, folder)
                folders[parameter] = folder
    with problems.collected():
        check_records(config, sources, folders.get(asked_models(config)[-1]))
    if folders.keys() == set(asked_models(config)):
        with problems.collected():
            check_model(config, folders, sources, whole=whole)
    elif "model" in folders:
        with problems.collected():
            check_context(config, folders["model"])
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


def check_model(
    config: FetchConfig, folders: Folders, sources: SourceList | None, *, whole: bool = True
) -> ModelFacts:
    """Whether the model can be trained on contexts of that size with that tokenizer.

    Args:
        sources: The dataset's files, where the tokenizer is still to be tried.
        whole: Whether there must be a tokenizer, and weights.
    """
    problems = Problems()
    ids = facts = None
    with problems.collected():  # whatever else is wrong with the model
        check_context(config, folders["model"])
    parameter = asked_models(config)[-1]  # which holds the tokenizer
    with problems.collected():
        if whole or not lacks_tokenizer(folders[parameter]):
            ids = count_token_ids(folders[parameter], parameter)
            check_beginning(config.data.bos, folders[parameter])
            if sources is not None:
                check_it_encodes(folders[parameter], parameter, Path(config.volume), sources)
    with problems.collected():
        elsewhere = None
        if config.tensorizer_uri and not (whole or sources) and is_url(config.tensorizer_uri):
            elsewhere = 0  # who plans without the data may be without the store's credentials
        elif config.tensorizer_uri:
            elsewhere = check_tensorized(Path(config.volume), config.tensorizer_uri)
        elif not whole and not has_weights(folders["model"]):
            elsewhere = 0
        facts = read_model(folders["model"], config.trust_remote_code, elsewhere)
        problems.found += _limits(facts, ids, folders[parameter].name)
    if facts is not None and not problems.found:
        problems.found += weight_problems(facts, Path(config.volume), config.request.get("lora"))
    problems.refuse()
    assert facts is not None
    return facts


def check_context(config: FetchConfig, folder: Path) -> None:
    """Refuse a context that the model in `folder` has no positions for."""
    try:
        described = read_config(folder)
        limit = context_limit(described)
    except RequestError:
        return  # of config.json, which others say
    turns = rotation_limit(described) if config.data.packing else None
    if turns is not None and config.context > turns[1]:
        raise RequestError(
            f"data.packing does not go with contexts of this length (got {config.context}). "
            f"{folder.name} turns positions otherwise in texts of more than {turns[1]} tokens "
            f"(rope_type {turns[0]!r}), by the longest text of a batch. Set context={turns[1]} or "
            "less, or leave data.packing out."
        )
    if limit is not None and config.context > limit:
        raise RequestError(
            f"context is larger than the model takes (got {config.context}). "
            f"{folder.name} has positions for {limit} tokens. Set context={limit} or less."
        )


def _limits(facts: ModelFacts, ids: int | None, tokenizer: str) -> list[str]:
    problems = []
    if ids is not None and facts.embeddings is not None and ids > facts.embeddings:
        problems.append(
            f"tokenizer {tokenizer} has more tokens than the model has embeddings "
            f"(got {ids:,} tokens). {facts.folder.name} has {facts.embeddings:,}. "
            "Take the model's own tokenizer. Only tokens added to that one get new embeddings."
        )
    return problems
