"""From a request for a mixture to its parts, each with what is asked of its own text."""

from dataclasses import replace

from trainer.contract.errors import RequestError
from trainer.contract.step_configs import TokenizeConfig
from trainer.contract.topics import DataConfig, SkipConfig
from trainer.tokens.chat.shapes import is_of_records, peeked_shapes
from trainer.tokens.mixture.shares import Wanted, parts_of
from trainer.tokens.text.kept_listing import list_once
from trainer.tokens.text.sources import SourceList


def part_configs(config: TokenizeConfig) -> list[tuple[Wanted, TokenizeConfig]]:
    """The parts of a mixture, each with what its own store is made of."""
    found = part_data(config.volume, config.dataset, config.data, config.listing, config.text_field)
    skip = SkipConfig()
    return [
        (part, replace(config, dataset=part.name, data=data, skip=skip)) for part, data, _ in found
    ]


def part_data(
    volume: str, dataset: str, data: DataConfig, listing: str, text_field: str
) -> list[tuple[Wanted, DataConfig, SourceList]]:
    """The parts of a mixture, what is asked of each part's text, and its files.

    Chats and plain text may be mixed: what `data` says of records alone is then said of the parts
    that have some.

    Raises:
        RequestError: A part is missing or holds nothing to read.
    """
    alone = replace(data, weights={}, replay="", replay_share=0.0)
    parts = parts_of(dataset, data.weights, data.replay, data.replay_share)
    files = [_files(volume, part, data, listing) for part in parts]
    of_records = [is_of_records(peeked_shapes(data, listed, text_field)[1]) for listed in files]
    as_text = alone.for_plain_text() if any(of_records) else alone
    asked = [alone if records else as_text for records in of_records]
    return list(zip(parts, asked, files, strict=True))


def _files(volume: str, part: Wanted, data: DataConfig, listing: str) -> SourceList:
    try:
        sources, _ = list_once(volume, part.name, listing, data.is_of_records)
    except RequestError as error:
        raise RequestError(*(f"{part.key}: {problem}" for problem in error.problems)) from error
    if any(source.kind == "tokens" for source in sources):
        raise RequestError(
            f"{part.key} names a file of tokens (got {part.name!r}), which can't be mixed. Name "
            "the text."
        )
    if not any(source.size for source in sources):
        raise RequestError(f"{part.key} has empty files only (got {part.name!r}). Text is needed.")
    return sources
