"""The lint of an output's files, as they lie there and as a server hands them out."""

import functools
import io
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from test_encoding import RECORD

from refadgen.channels.rules import load_rules
from refadgen.config import FetchConfig, OutputConfig
from refadgen.config.provenance import ProvenanceConfig
from refadgen.generation.channel_files import encode_for_channel
from refadgen.generation.encoding import encode_product
from refadgen.generation.ledger import SCHEMA, AdLedger
from refadgen.generation.lint_files import FileLint
from refadgen.provenance.marks import AdMarks
from refadgen.storage.store import Storage

sys.path.append(str(Path(__file__).resolve().parents[2] / "jobs"))
CANVAS = np.full((144, 144, 3), 200, np.uint8)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """One done image with files for two channels, and one that failed."""
    files = []
    for name in ("merchant", "pinterest"):
        marks = AdMarks(ProvenanceConfig())
        file, _ = encode_for_channel(CANVAS, RECORD, load_rules()[name], OutputConfig(), marks)
        uri = f"channels/{name}/3f/a.jpg"
        (tmp_path / uri).parent.mkdir(parents=True)
        (tmp_path / uri).write_bytes(file.data)
        files.append({"channel": name, "uri": uri, "digital_source_type": "trainedAlgorithmicMedia", "lint": "clean"})
    (tmp_path / "product.webp").write_bytes(encode_product(CANVAS, CANVAS[..., 0], (144, 144)))
    nothing: dict[str, Any] = dict.fromkeys(SCHEMA.names)
    rows = [
        nothing
        | {"image_id": 32 * "a", "sku": "a", "status": "done", "product_uri": "product.webp", "channel_files": files},
        nothing | {"image_id": 32 * "b", "sku": "b", "status": "failed"},
    ]
    AdLedger(Storage(str(tmp_path))).append(pa.Table.from_pylist(rows, schema=SCHEMA))
    return tmp_path


@pytest.fixture
def served(output: Path) -> Iterator[str]:
    """The output over HTTP, as a template."""
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(output))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/{{uri}}"
    server.shutdown()
    thread.join()
    server.server_close()


def lint(*words: str) -> int:
    from lint_channels import main  # type: ignore[import-not-found] # jobs/ is no package

    code: int = main(list(words))
    return code


def test_files_as_they_lie_there(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lint(str(output)) == 0
    assert capsys.readouterr().out.splitlines() == [
        "       1 merchant: clean",
        "       1 pinterest: clean",
        "not checked: text beside the product (--text looks for it)",
        "2 files, 0 not clean",
    ]


def test_a_server_that_strips_the_mark_and_loses_a_file(
    output: Path, served: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lint(str(output), "--lint-url", served, "fetch.allow_private_addresses=true") == 0
    (output / "channels/pinterest/3f/a.jpg").unlink()
    stripped = io.BytesIO()
    Image.open(output / "channels/merchant/3f/a.jpg").save(stripped, "JPEG", quality=90, xmp=b"")
    (output / "channels/merchant/3f/a.jpg").write_bytes(stripped.getvalue())
    assert lint(str(output), "--lint-url", served, "fetch.allow_private_addresses=true") == 1
    told = (output / "channels" / "lint.csv").read_text().splitlines()
    base = served.removesuffix("{uri}")
    assert told[1:] == [
        f"a,{32 * 'a'},merchant,{base}channels/merchant/3f/a.jpg,no DigitalSourceType: the mark is lost",
        f"a,{32 * 'a'},pinterest,{base}channels/pinterest/3f/a.jpg,not served: image_not_found",
    ]
    assert "2 files, 2 not clean" in capsys.readouterr().out


def test_a_private_address_is_asked_for_by_permission_only(output: Path, served: str) -> None:
    assert lint(str(output), "--lint-url", served) == 1
    assert "not served: private_address" in (output / "channels" / "lint.csv").read_text()


def test_text_counts_where_a_channel_forbids_it(output: Path) -> None:
    seen: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def text(picture: np.ndarray, mask: np.ndarray) -> str:
        seen.append((picture.shape, mask.shape))
        return "SALE"

    counts = FileLint(Storage(str(output)), FetchConfig(), text=text).run()
    assert dict(counts) == {("merchant", "text beside the product: 'SALE'"): 1, ("pinterest", "clean"): 1}
    assert seen == [((1500, 1500, 3), (1500, 1500))]


def test_an_output_without_files_for_channels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lint(str(tmp_path)) == 2
    assert "no image here has files for channels" in capsys.readouterr().err
