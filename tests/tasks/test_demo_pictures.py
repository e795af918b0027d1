"""The pictures of the demo's items."""

from __future__ import annotations

import urllib.error
import urllib.request

import pytest

from tasks.demo.pictures import EDGE, Pictures
from tasks.demo.sample import albums


def test_items_of_the_demo_have_pictures_and_others_have_none() -> None:
    sample = albums(share=0.02)

    with Pictures(sample) as pictures:
        for album in (sample[0], sample[-1]):
            address = pictures.url_template.format(pet_id=album.pet_id, media_id=album.media_ids[0], width=64)
            with urllib.request.urlopen(address, timeout=10) as answer:
                body = answer.read()
            assert body.startswith(b"\x89PNG\r\n")
            assert int.from_bytes(body[16:20], "big") == EDGE
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(pictures.url_template.format(pet_id=1, media_id="x", width=64), timeout=10)
