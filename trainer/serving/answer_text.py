"""The text of an answer as its tokens come, cut at the first stop sequence."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

CONTEXT_TOKENS = 6  # tokens before a piece that decide how it begins (spaces, merged bytes)
REPLACEMENT = "�"  # what half a character decodes to


class AnswerText:
    """Decode one answer step by step.

    A piece is handed out once it can no longer change: not in the middle of a
    character, and not while it may be the beginning of a stop sequence.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompt_ids: Sequence[int],
        stop: Sequence[str] = (),
        include_stop: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._include_stop = include_stop
        self._window = list(prompt_ids[-CONTEXT_TOKENS:])
        self._known = len(self._window)  # tokens of the window whose text was taken
        self._held = ""  # text that may yet turn out to begin a stop sequence
        self._longest_hold = max((len(s) for s in self._stop), default=0) - 1
        self.stopped = False

    def push(self, token_id: int) -> str:
        """Add a token; return the text that is now certain. Sets `stopped` at a stop sequence."""
        self._window.append(token_id)
        return self._release(self._new_text())

    def finish(self) -> str:
        """The text held back, when no more tokens come."""
        text = "" if self.stopped else self._held + self._new_text(at_end=True)
        self._held = ""
        return text

    def _new_text(self, at_end: bool = False) -> str:
        before = self._decode(self._window[: self._known])
        after = self._decode(self._window)
        if after.endswith(REPLACEMENT) and not at_end:
            return ""
        self._window = self._window[-CONTEXT_TOKENS:]
        self._known = len(self._window)
        return after[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        text = self._tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)
        return text

    def _release(self, piece: str) -> str:
        text = self._held + piece
        found = [(text.find(stop), stop) for stop in self._stop if stop in text]
        if found:
            place, stop = min(found, key=lambda pair: (pair[0], len(pair[1])))
            self.stopped, self._held = True, ""
            return text[: place + (len(stop) if self._include_stop else 0)]
        hold = self._begun(text)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold]

    def _begun(self, text: str) -> int:
        """Characters at the end of `text` that may begin a stop sequence."""
        for length in range(min(self._longest_hold, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop):
                return length
        return 0
