"""What a plan says of `skip`: exact where the tokens are there, else nothing yet.

Nothing is written, and no text is read. Importing this loads nothing heavy.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.contract.errors import DamagedError, RequestError
from trainer.contract.step_configs import TokenizeConfig
from trainer.plan.context_count import finished_store
from trainer.tokens.chat.shapes import is_of_records, peeked_shapes

if TYPE_CHECKING:
    from trainer.tokens.text.sources import Source


def left_out_facts(
    config: TokenizeConfig, sources: "list[Source] | None" = None
) -> tuple[dict[str, Any] | None, list[str]]:
    """The figures of what is left out, None where they are not known yet; and problems."""
    if config.skip.is_empty:
        return None, []
    from trainer.tokens.left_out import left_out, matches, unknown_pattern
    from trainer.tokens.store import TokenStore
    from trainer.tokens.text.document_digests import are_kept
    from trainer.tokens.text.kept_listing import list_once

    if sources is None:
        sources, _ = list_once(config.volume, config.dataset, config.listing)
    paths = [source.path for source in sources]
    unknown = [p for p in config.skip.documents if not matches(p, paths)]
    if unknown:
        return None, [unknown_pattern(pattern, paths) for pattern in unknown]
    _, shapes = peeked_shapes(config.data, sources, config.text_field)
    _, folder = finished_store(config, sources, is_of_records(shapes))
    try:
        store = TokenStore.open(folder) if folder else None
        if store is None or (config.skip.sha256 and not are_kept(Path(config.volume), store)):
            return None, []
        found = left_out(store, config.skip, config.volume, config.dataset)
    except DamagedError:  # the tokenize step makes it anew
        return None, []
    except RequestError as error:
        return None, list(error.problems)
    return (found.figures if found else None), []
