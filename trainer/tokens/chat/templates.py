"""The chat template: which one, and what it makes of a conversation.

Rendering is transformers' own, in its sandbox. Loading it takes 1.5 s, so it is loaded when a
conversation is rendered, and never for plain text.
"""

import hashlib
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.contract.errors import RequestError
from trainer.contract.files import write_atomically
from trainer.contract.json_files import readable_object
from trainer.contract.json_text import parse_json
from trainer.contract.step_configs import FetchConfig, TokenizeConfig
from trainer.contract.topics import DataConfig
from trainer.contract.volume import path_on_volume
from trainer.tokens.chat.conversations import Conversation, RecordError
from trainer.tokens.model_tokenizer import read_settings

FILE = "chat_template.jinja"
NAMED = "additional_chat_templates"
WITH_TOOLS = "tool_use"
DATE = "26 Jul 2024"
"""What a template that asks for today's date gets: one request makes the same store every day.
Llama's own template takes this date where it can't ask."""
_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class ChatTemplate:
    """Templates of one tokenizer, and the special tokens that they name."""

    text: str
    with_tools: str = ""
    """The one for conversations with tools; empty: the same."""
    special_tokens: Mapping[str, Any] = field(default_factory=dict)

    def of(self, conversation: Conversation) -> str:
        """The template that this conversation is rendered by."""
        return self.with_tools if conversation.tools and self.with_tools else self.text

    def marks_generation(self, conversation: Conversation) -> bool:
        """Whether the template itself says what the assistant writes."""
        return bool(_MARKS.search(self.of(conversation)))

    def render(
        self, conversation: Conversation, turns: int | None = None, *, asks: bool = False
    ) -> str:
        """The text of the conversation.

        Args:
            turns: Of its first turns alone; None: of all.
            asks: With the beginning of an answer, as the model is asked to continue from.
        Raises:
            RecordError: The template takes no such conversation.
        """
        return self._rendered(conversation, turns, add_generation_prompt=asks)[0][0]

    def render_marked(self, conversation: Conversation) -> tuple[str, list[tuple[int, int]]]:
        """The text of all turns, and from where to where its template marks what is generated."""
        texts, marks = self._rendered(conversation, None, return_assistant_tokens_mask=True)
        return texts[0], [(int(begin), int(end)) for begin, end in marks[0]]

    def _rendered(self, conversation: Conversation, turns: int | None, **asked: bool) -> Any:
        """A template is a program that comes with the model: it may raise anything."""
        text = self.of(conversation)
        try:
            return _renderer(text)(
                [conversation.turns[:turns]],
                tools=conversation.tools,
                chat_template=text,
                **asked,
                **self.special_tokens,
            )
        except MemoryError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise RecordError(f"does not fit the chat template (got {reason!r})") from error


def _renderer(template: str) -> Any:
    """transformers' function, with the date of every day the same."""
    from transformers.utils import chat_template_utils

    compiled = chat_template_utils._compile_jinja_template(template)
    compiled.environment.globals["strftime_now"] = _same_day
    return chat_template_utils.render_jinja_template


def _same_day(form: str) -> str:
    from datetime import datetime

    return datetime.strptime(DATE, "%d %b %Y").strftime(form)


# --- finding it -------------------------------------------------------------------------


def template_texts(config: FetchConfig | TokenizeConfig, tokenizer: Path) -> tuple[str, str]:
    """The request's template, and the one for conversations with tools ('': the same).

    Args:
        tokenizer: The folder of the tokenizer.
    Raises:
        RequestError: There is none, or it can't be read.
    """
    if config.data.template:
        return _of_file(config.volume, config.data), ""
    found = _of_tokenizer(tokenizer)
    if not found.get("default"):
        raise RequestError(
            f"dataset has chats or completions, and {tokenizer.name} has no chat template to write "
            f"them with (got {config.dataset!r}). Name a file with one on the volume as "
            "data.template, or take a model that has one."
        )
    return found["default"], found.get(WITH_TOOLS, "")


def _of_file(volume: str, data: DataConfig) -> str:
    path = path_on_volume(volume, "data.template", data.template)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(
            f"data.template can't be read (got {data.template!r}: {error}). "
            "Name a text file on the volume with a chat template in Jinja."
        ) from error
    if not text.strip():
        raise RequestError(f"data.template is empty (got {data.template!r}). Name another file.")
    return text


def _of_tokenizer(folder: Path) -> dict[str, str]:
    """Templates by name, as transformers finds them in a tokenizer's folder."""
    named = read_settings(folder).get("chat_template")
    found = {"default": named} if isinstance(named, str) else {}
    if isinstance(named, list):
        found = {entry["name"]: entry["template"] for entry in named}
    if (folder / FILE).is_file():
        found["default"] = (folder / FILE).read_text(encoding="utf-8")
        for path in sorted((folder / NAMED).glob("*.jinja")):
            found[path.stem] = path.read_text(encoding="utf-8")
    return found


def load_template(config: TokenizeConfig, tokenizer: Path, token_digest: str) -> ChatTemplate:
    """The request's template with the tokenizer's special tokens."""
    text, with_tools = template_texts(config, tokenizer)
    special = _special_tokens(Path(config.volume), tokenizer, token_digest)
    return ChatTemplate(text, with_tools, special)


def _special_tokens(volume: Path, tokenizer: Path, token_digest: str) -> dict[str, Any]:
    """The names and texts of special tokens, as transformers has them; kept in the cache."""
    named = hashlib.sha256(f"1 {token_digest}".encode()).hexdigest()
    kept = volume / "cache/tokens/special" / f"{named}.json"
    if (known := readable_object(kept)) is not None:
        return known
    from trainer.tokens.encode.vocabulary import child_environment

    # In a process of its own, which does without torch: see trainer/tokens/encode/export.py.
    command = [sys.executable, "-P", "-m", "trainer.tokens.chat.special_tokens", str(tokenizer)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=child_environment(), check=False
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise RequestError(f"tokenizer can't be loaded (got {tokenizer}): {last[0]}.")
    write_atomically(kept, done.stdout)
    return dict(parse_json(done.stdout))
