"""Every package of the lock has a licence that allows what is done with it here."""

import re
from importlib.metadata import distribution

import pytest

from tests.images.closure import locked_versions
from tests.images.test_dependencies import LOCK

# Use, change and pass on, also beside code under another licence.
ALLOWED = {
    *"0BSD AFL Apache Apache-2.0 Artistic BSD BSD-2-Clause BSD-3-Clause BSL-1.0 CC0-1.0".split(),
    *"CNRI-Python ISC MIT MIT-0 MIT-CMU MPL-2.0 PSF PSF-2.0 Zlib LLVM-exception".split(),
}
# As packages write them that have no SPDX expression.
SPELLINGS = {
    "academic free license (afl)": "AFL",
    "apache": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "apache software license 2.0": "Apache-2.0",
    "3-clause bsd license": "BSD-3-Clause",
    "bsd license": "BSD",
    "isc license (iscl)": "ISC",
    "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "python software foundation license": "PSF",
    "artistic license": "Artistic",
    "dfsg approved": "",
}
KNOWN = {
    # Its metadata names none; the file LICENSE in its wheel is this one.
    "fastokens": "Apache-2.0",
    # Artistic License or GPL, as the user likes: taken under the first.
    "text-unidecode": "Artistic",
}


def licence_of(name: str) -> str:
    """What a package's metadata says, as an expression."""
    metadata = distribution(name).metadata
    if expression := metadata.get("License-Expression"):
        return expression
    classes = [c for c in metadata.get_all("Classifier") or [] if c.startswith("License ::")]
    named = [c.rpartition("::")[2].strip() for c in classes]
    return " AND ".join(named) or (metadata.get("License") or "").partition("\n")[0]


def terms_of(expression: str) -> set[str]:
    """The licences that an expression names."""
    parts = [part.strip() for part in re.split(r"\s+(?:AND|OR|WITH)\s+", expression)]
    words = (SPELLINGS.get(part.lower(), part.strip("()")) for part in parts)
    return {word for word in words if word}


@pytest.mark.parametrize("name", locked_versions(LOCK))
def test_the_licence_is_one_of_the_list(name: str) -> None:
    terms = terms_of(KNOWN.get(name, licence_of(name)))
    assert terms and terms <= ALLOWED, f"{name}: {terms - ALLOWED or 'no licence is named'}"


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ("MIT", True),
        ("MPL-2.0 AND (Apache-2.0 OR MIT)", True),
        ("Apache-2.0 WITH LLVM-exception", True),
        ("GPL-3.0-only", False),
        ("MIT AND AGPL-3.0-or-later", False),
        ("GNU General Public License v2 or later (GPLv2+)", False),
        ("", False),
    ],
)
def test_terms_are_read(expression: str, allowed: bool) -> None:
    terms = terms_of(expression)
    assert bool(terms and terms <= ALLOWED) is allowed
