"""References to container images: a name with a tag or a digest.

Source: https://github.com/distribution/reference (the grammar of a reference).
"""

import re
from collections.abc import Mapping
from typing import Any

TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
NAME = re.compile(
    r"([a-zA-Z0-9.-]+(:[0-9]+)?/)?[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*"
)
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def image_of(name: str, tag: str) -> str:
    """The reference of an image; a name with a digest is complete without the tag."""
    return name if "@" in name else f"{name}:{tag}"


def with_tag_apart(given: Any, image: str, tag: str, usual_tag: str) -> Any:
    """A request whose parameter `image` may hold NAME:TAG, with the tag in `tag`.

    Args:
        usual_tag: The default of `tag`: Prefect's forms send it, so it is not a choice.
    Raises:
        ValueError: It is no reference, or both parameters give a tag and they differ.
    """
    if not isinstance(given, Mapping) or not isinstance(given.get(image), str) or not given[image]:
        return given
    reference, separate = given[image].strip(), given.get(tag, usual_tag)
    name, digest = _parted(reference, "@")
    name, own_tag = _parted(name, ":")
    if not NAME.fullmatch(name) or not (DIGEST.fullmatch(digest) or digest == ""):
        raise ValueError(
            f"{image} is no name of an image (got {reference!r}). "
            "Use NAME, NAME:TAG or NAME@sha256:DIGEST, in lower case."
        )
    wrong = next((t for t in (own_tag, separate) if t and not TAG.fullmatch(str(t))), "")
    if wrong or reference.endswith(":"):
        raise ValueError(
            f"{tag} is no tag of an image (got {wrong!r}). Use letters, digits, '.', '_' and '-'."
        )
    if digest:
        if separate != usual_tag:
            raise ValueError(
                f"{tag} has no meaning beside a digest (got {separate!r}). Leave it out."
            )
        return {**given, image: f"{name}@{digest}"}
    if own_tag and separate not in (usual_tag, own_tag):
        raise ValueError(
            f"{image} names a tag, and {tag} another one (got {reference!r} and {separate!r}). "
            "Give one of them."
        )
    return {**given, image: name, tag: own_tag or separate}


def _parted(reference: str, mark: str) -> tuple[str, str]:
    """Name and what follows the mark; a registry's port belongs to the name."""
    head, slash, last = reference.rpartition("/")
    name, _, rest = last.partition(mark)
    return f"{head}{slash}{name}", rest
