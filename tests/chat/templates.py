"""Chat templates of the kinds that models have, and tokenizers whose special tokens they name."""

from functools import cache

from tokenizers import AddedToken, Tokenizer

from tests.tokens.models import LLAMA, byte_level

TURNS = ("<|im_start|>", "<|im_end|>")

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# The same with marks, as transformers reads them.
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Without special tokens between turns, as Llama 2's and Mistral's: words meet words.
INST = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}"
    "{% endfor %}"
)
# Drops the thoughts of all answers but the last, as Qwen3's.
FORGETS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Asks for the date, as Llama 3.1's, and shows tools.
DATED = "{{ strftime_now('%d %b %Y') }}{% if tools %}{{ tools | tojson }}{% endif %}" + CHATML


@cache
def with_turns(pattern: str = "") -> Tokenizer:
    """A byte-level tokenizer with the special tokens of turns."""
    tokenizer = Tokenizer.from_str(byte_level(pattern).to_str())
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in TURNS])
    return tokenizer


TOKENIZERS = {"gpt2": "", "llama": LLAMA}
