"""How byte-level vocabularies spell bytes."""

from functools import cache


@cache
def byte_alphabet() -> dict[str, int]:
    """The character by which byte-level vocabularies spell each byte.

    Source: GPT-2's encoder: printable Latin-1 as itself, the rest from U+0100 on.
    """
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(b): b for b in shown} | {chr(0x100 + i): b for i, b in enumerate(hidden)}
