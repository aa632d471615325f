"""Headers for hosts that refuse a plain request, from a file of the user's. They may be secret: no log shows them."""

import re
from collections.abc import Mapping

import yaml

from refadgen.storage.store import split_uri

Headers = Mapping[str, str]

_HOST = re.compile(r"\*|[\w.-]+|\[[0-9a-f:.]+\]", re.IGNORECASE)
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_OURS = ("host", "accept-encoding", "content-length", "transfer-encoding", "connection")


class HostHeaders:
    """Headers by host; `*` stands for every host, and a host's own come on top."""

    def __init__(self, by_host: Mapping[str, Headers]) -> None:
        self._by_host = by_host

    def of(self, host: str) -> dict[str, str]:
        """The headers for requests to `host`."""
        return {**self._by_host.get("*", {}), **self._by_host.get(host.lower(), {})}


def load_headers(file: str | None) -> HostHeaders:
    """Loads `fetch.headers_file`, YAML: a mapping of names and values for each host. None: there are none.

    Raises: ValueError naming the file and the host, never a value.
    """
    if file is None:
        return HostHeaders({})
    try:
        folder, name = split_uri(file)
        tree = yaml.safe_load(folder.read(name).decode("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"fetch.headers_file={file!r}: cannot be read ({type(error).__name__})") from error
    except yaml.YAMLError:  # without its text, which shows a line of the file
        raise ValueError(f"fetch.headers_file={file!r}: not YAML") from None
    if not isinstance(tree, dict):
        raise ValueError(
            f"fetch.headers_file={file!r}: must hold headers by host, as `cdn.shop.example: {{NAME: VALUE}}`"
        )
    return HostHeaders({str(host).lower(): _checked(file, str(host), headers) for host, headers in tree.items()})


def _checked(file: str, host: str, headers: object) -> Headers:
    """Raises: ValueError where a header cannot be sent, or is not for the user to set."""
    where = f"fetch.headers_file={file!r}: {host}"
    if not _HOST.fullmatch(host):
        raise ValueError(f"{where}: must be the name of a host, without https:// and port, or *")
    if not isinstance(headers, dict):
        raise ValueError(f"{where}: must hold headers, as `User-Agent: Mozilla/5.0`")
    for name, value in headers.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name.lower() in _OURS:
            raise ValueError(f"{where}: {name!r} is no header that can be set")
        if not isinstance(value, str) or not value.isprintable() or not value.isascii():
            raise ValueError(f"{where}: the value of {name} must be a line of plain text; quote it")
    return {str(name): str(value) for name, value in headers.items()}
