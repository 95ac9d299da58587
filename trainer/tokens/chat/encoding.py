"""From rendered conversations to ids, each with whether it is trained.

The ids are those of the whole text, as `apply_chat_template(tokenize=True)` gives them. An id is
trained if it holds a character of a trained part: where a token reaches over the edge of one it
counts to it, as in transformers' `return_assistant_tokens_mask`.
"""

import json
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from trainer.contract.json_text import parse_json
from trainer.tokens.chat.trained_parts import Rendered, Spans

# JSON can spell half of a surrogate pair, which is no character.
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


class Encoded(NamedTuple):
    """One record: ids and whether each is trained, both (T,)."""

    ids: np.ndarray
    trained: np.ndarray


class ChatEncoder:
    """The model's own tokenizer, which also says where each token stands in the text."""

    def __init__(self, tokenizer_json: str) -> None:
        from tokenizers import Tokenizer

        fields = parse_json(tokenizer_json)
        # It adds nothing here, and a byte-level one takes white space out of tokens' places.
        fields["post_processor"] = None
        self._tokenizer = Tokenizer.from_str(json.dumps(fields))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def encode(self, texts: Sequence[Rendered]) -> list[Encoded]:
        """Ids and masks of some conversations."""
        whole = [_HALF_CHARACTER.sub("\ufffd", text.text) for text in texts]
        batch = self._tokenizer.encode_batch(whole, add_special_tokens=False)
        return [
            Encoded(
                np.array(encoding.ids, np.uint32),
                trained_ids(np.array(encoding.offsets, np.int64).reshape(-1, 2), text.trained),
            )
            for encoding, text in zip(batch, texts, strict=True)
        ]


def trained_ids(places: np.ndarray, spans: Spans) -> np.ndarray:
    """Which ids are trained; the first never is, as nothing comes before it.

    Args:
        places: From where to where each token stands in the text, (T, 2).
        spans: The trained parts.
    Returns:
        (T,), bool. Tokens without a place of their own count with those around them.
    """
    trained = np.zeros(len(places), bool)
    for begin, end in spans:
        inside = np.flatnonzero((places[:, 0] < end) & (places[:, 1] > begin))
        if len(inside):
            trained[inside[0] : inside[-1] + 1] = True
    trained[:1] = False
    return trained
