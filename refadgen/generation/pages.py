"""Pages that are one HTML file, its data as JSON inside: the report, the review, the evaluation.

Nothing of the data ever becomes markup: the JSON cannot end its script element, the pages only set texts and
attributes, and a content security policy allows no other script and no outside address.
"""

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any


def page_json(document: Mapping[str, Any]) -> bytes:
    """A document as JSON that is safe inside a script element; values as `plain` has them."""
    return plain_json(plain(document))


def plain_json(document: Any) -> bytes:
    """As `page_json`, for a document of JSON's own types without NaN."""
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    # A lone surrogate, of a file name that is not UTF-8, becomes a JSON escape.
    return text.encode("utf-8", "backslashreplace")


def filled_page(name: str, data: bytes, package: str = __package__, *, asks_server: bool = False) -> bytes:
    """The page `name` of a package with `data`, which `page_json` made, in its place.

    asks_server: whether its script may send requests to the server that it came from.
    """
    head, _, tail = _template(name, package, asks_server=asks_server).partition("__DATA__")
    return head.encode() + data + tail.encode()


def plain(value: Any) -> Any:
    """`value` in JSON's own types: other objects as their text, NaN and infinities as null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)


def _template(name: str, package: str, *, asks_server: bool) -> str:
    """The page, without data, with the policy that allows its own style and script by their hashes."""
    page = files(package).joinpath(name).read_text("utf-8")
    policy = {
        "default-src": "'none'",
        "img-src": "'self' file: data: blob:",
        "style-src": _hash_of("style", page),
        # Its own script may add scripts that lie beside the page, from a disk too; nothing else may.
        "script-src": f"{_hash_of('script', page)} 'strict-dynamic'",
        "connect-src": "'self'" if asks_server else "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return page.replace("__POLICY__", "; ".join(f"{name} {value}" for name, value in policy.items()))


def _hash_of(tag: str, page: str) -> str:
    found = re.search(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    assert found, tag
    digest = hashlib.sha256(found[1].encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
