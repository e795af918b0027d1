"""Detection of unprintable characters: those that move, hide or reorder the text around them.

Producers check their text with it, and the command line and the HTTP API clean text before they show it. This module
imports only the standard library.
"""

from __future__ import annotations

import re
from typing import Final

# The characters of category Cf in Unicode 15.0, without the two joiners: zero-width characters, bidi controls, tags.
# Listed here, because computing the list takes 0.1 s, which would slow down every import in a producer.
_FORMAT: Final = (
    "\u00ad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064"
    "\u2066-\u206f\ufeff\ufff9-\ufffb"
)
_FORMAT_BEYOND_16_BITS: Final = (
    "\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0001\U000e0020-\U000e007f"
)
# Control characters, line and paragraph separators.
_CONTROL: Final = "\x00-\x1f\x7f-\x9f\u2028\u2029"
# Zero-width non-joiner and joiner. Persian and Indic words, and emoji such as 👩‍👩‍👧, need them between characters in
# the range below. Anywhere else, they would only create different strings that look the same.
_JOINERS: Final = "\u200c\u200d"
_JOINED: Final = "\u0600-\u1fff\u2190-\U0010ffff"

_UNPAIRED_SURROGATES: Final = "\ud800-\udfff"

UNPRINTABLE: Final = re.compile(
    f"[{_CONTROL}{_UNPAIRED_SURROGATES}{_FORMAT}{_FORMAT_BEYOND_16_BITS}]"
    f"|(?<![{_JOINED}])[{_JOINERS}]|[{_JOINERS}](?![{_JOINED}])"
)

# Printable text, as far as a JSON Schema pattern can describe it for every validator: without lookarounds, and without
# characters beyond 16 bits.
PRINTABLE_PATTERN: Final = f"^[^{_CONTROL}{_FORMAT}]*$"
