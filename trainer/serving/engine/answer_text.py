"""The text of an answer as its tokens come, cut at the first stop sequence."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from trainer.decoding import AnswerStream

REPLACEMENT = "\ufffd"  # what half a character decodes to


class AnswerText:
    """Decode one answer step by step.

    A piece is handed out once it can no longer change: see decoding.py. It is also held while
    it may be the beginning of a stop sequence.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompt_ids: Sequence[int],
        stop: Sequence[str] = (),
        include_stop: bool = False,
    ) -> None:
        self._stream = AnswerStream(tokenizer, prompt_ids)
        self._stop = tuple(stop)
        self._include_stop = include_stop
        self._held = ""  # text that is certain, but may yet begin a stop sequence
        self._longest_hold = max((len(s) for s in self._stop), default=0) - 1
        self.stopped = False

    def push(self, token_id: int) -> str:
        """Add a token; return the text that is now certain. Sets `stopped` at a stop sequence."""
        text = self._held + self._stream.push(token_id)
        if not self._stop:
            return text
        # Text that another token could change counts too: the answer ends with this token.
        now = text + self._stream.held().rstrip(REPLACEMENT)
        found = [(now.find(stop), stop) for stop in self._stop if stop in now]
        if found:
            place, stop = min(found, key=lambda pair: (pair[0], len(pair[1])))
            self.stopped, self._held = True, ""
            return now[: place + (len(stop) if self._include_stop else 0)]
        hold = self._begun(text)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold]

    def finish(self) -> str:
        """The text held back, when no more tokens come."""
        text = "" if self.stopped else self._held + self._stream.held()
        self._held = ""
        return text

    def _begun(self, text: str) -> int:
        """Characters at the end of `text` that may begin a stop sequence."""
        for length in range(min(self._longest_hold, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop):
                return length
        return 0
