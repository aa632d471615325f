"""Tells local paths from addresses of object stores by their text alone, without importing a file system."""

import os
import re
from urllib.parse import unquote, urlsplit


def is_remote(uri: str) -> bool:
    """Whether `uri` names an object store (`scheme://…`) rather than a local path or `file:`."""
    # At least two letters before the colon: C: is a drive.
    return bool(re.match(r"^[a-zA-Z][a-zA-Z0-9+.-]+://", uri)) and not uri.lower().startswith("file://")


def local_path(uri: str) -> str:
    """The absolute local path of a plain path or `file:` address. Raises: ValueError for an address with a host."""
    if uri.lower().startswith("file:"):
        parts = urlsplit(uri)
        if parts.netloc not in ("", "localhost"):
            raise ValueError(f"{uri!r}: a file: address names no host")
        uri = unquote(parts.path)
    return os.path.abspath(os.path.expanduser(uri))
