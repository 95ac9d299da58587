"""Whether chats and completions can be rendered: before anything is downloaded or trained."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.contract.step_configs import FetchConfig
from trainer.contract.topics import DataConfig
from trainer.fetch.dataset import check_dataset
from trainer.tokens.chat.shapes import check_shapes, is_of_records, peeked_shapes
from trainer.tokens.chat.templates import template_texts
from trainer.tokens.text.sources import SourceList

if TYPE_CHECKING:
    from trainer.tokens.mixture.shares import Wanted


def check_text(config: FetchConfig) -> SourceList:
    """The files of the dataset, and of all that is mixed with it.

    Raises:
        RequestError: A part is missing, empty or without a file of text.
    """
    if config.data.is_mixture:
        return SourceList(source for _, _, files in _parts(config) for source in files)
    arrays = config.data.is_of_records
    return check_dataset(Path(config.volume), config.dataset, config.listing, arrays)


def _parts(config: FetchConfig) -> list[tuple["Wanted", DataConfig, SourceList]]:
    from trainer.tokens.mixture.parts import part_data  # loads numpy

    text_field = str(config.request.get("text_field", "text"))
    return part_data(config.volume, config.dataset, config.data, config.listing, text_field)


def check_records(config: FetchConfig, sources: SourceList, tokenizer: Path | None) -> None:
    """Hold the dataset's files to `data`, and chats to their template.

    Args:
        tokenizer: The tokenizer's folder; None: it is not here yet.
    Raises:
        RequestError: They do not go together, or there is no template.
    """
    text_field = str(config.request.get("text_field", "text"))
    if config.data.is_mixture and sources:
        for part, data, files in _parts(config):
            check_records(replace(config, dataset=part.name, data=data), files, tokenizer)
        return
    some, shapes = peeked_shapes(config.data, sources, text_field)
    check_shapes(config.data, config.dataset, some, shapes, sources.left_out)
    if is_of_records(shapes) and (tokenizer or config.data.template):
        template_texts(config, tokenizer or Path())
