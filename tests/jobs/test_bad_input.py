"""Every kind of bad input in one catalogue: what each row ends as, and why; good rows beside them are made."""

import http.server
import io
import socketserver
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import job_runs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from refadgen.catalog.scan import scan_catalog
from refadgen.config import GenerateConfig, load_config
from refadgen.generation.job import CatalogJob

SECRET = "X-Amz-Signature=deadbeefsecret"


def photo(mode: str = "RGB", size: tuple[int, int] = (96, 128)) -> Image.Image:
    """A red box on white."""
    pixels = np.full((size[1], size[0], 3), 255, np.uint8)
    pixels[size[1] // 4 : -size[1] // 4, size[0] // 4 : -size[0] // 4] = (200, 30, 40)
    return Image.fromarray(pixels).convert(mode)


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, format, **options)
    return sink.getvalue()


def bomb() -> bytes:
    """A PNG header that promises 60,000 × 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def sixteen_bit() -> bytes:
    grey = np.full((128, 96), 65535, np.uint16)
    grey[32:96, 24:72] = 12_000
    return encoded(Image.fromarray(grey), "PNG")


def animated() -> bytes:
    return encoded(photo(), "GIF", save_all=True, append_images=[Image.new("RGB", (96, 128), "blue")])


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(photo(), "JPEG", exif=exif)


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path.startswith("/good"):
            body = encoded(photo(), "PNG")
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        elif self.path.startswith("/silent"):
            threading.Event().wait(5)
        else:
            self.send_error(404)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), _Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}"
        httpd.shutdown()


def cases(server: str, folder: Path) -> list[tuple[dict[str, object], str, str]]:
    """Rows with the status and reason each must end in."""
    png = encoded(photo(), "PNG")
    (folder / "good.png").write_bytes(png)
    (folder.parent / "outside.png").write_bytes(png)
    files = {
        "text.jpg": b"this is no image",
        "truncated.jpg": encoded(photo(size=(600, 800)), "JPEG", quality=95)[:2000],
        "bomb.png": bomb(),
        "animated.gif": animated(),
        "cmyk.jpg": encoded(photo("CMYK"), "JPEG"),
        "deep.png": sixteen_bit(),
        "rotated.jpg": rotated(),
        "tiny.png": encoded(Image.new("RGB", (1, 1)), "PNG"),
        "glass.png": encoded(Image.new("RGBA", (96, 128), (0, 0, 0, 0)), "PNG"),
        "scene.png": encoded(
            Image.fromarray(np.random.default_rng(0).integers(0, 255, (128, 96, 3), dtype=np.uint8)), "PNG"
        ),
        "empty.png": b"",
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return [
        ({"sku": "good", "image": "good.png"}, "done", ""),
        ({"sku": "missing", "image": "nowhere.png"}, "rejected", "image_not_found"),
        ({"sku": "gone", "image": f"{server}/gone.png?{SECRET}"}, "rejected", "image_not_found"),
        ({"sku": "silent", "image": f"{server}/silent.png"}, "failed", "image_timeout"),
        ({"sku": "web", "image": f"{server}/good.png?{SECRET}"}, "done", ""),
        ({"sku": "text", "image": "text.jpg"}, "rejected", "not_an_image"),
        ({"sku": "empty file", "image": "empty.png"}, "rejected", "not_an_image"),
        ({"sku": "truncated", "image": "truncated.jpg"}, "rejected", "truncated_image"),
        ({"sku": "bomb", "image": "bomb.png"}, "rejected", "image_too_large"),
        ({"sku": "animated", "image": "animated.gif"}, "rejected", "animated_image"),
        ({"sku": "cmyk", "image": "cmyk.jpg"}, "done", ""),
        ({"sku": "deep", "image": "deep.png"}, "done", ""),
        ({"sku": "rotated", "image": "rotated.jpg"}, "done", ""),
        ({"sku": "tiny", "image": "tiny.png"}, "rejected", "image_too_small"),
        ({"sku": "glass", "image": "glass.png"}, "rejected", "fully_transparent"),
        ({"sku": "scene", "image": "scene.png"}, "rejected", "no_plain_background"),
        ({"sku": "", "image": "good.png"}, "rejected", "empty_sku"),
        ({"sku": None, "image": "good.png"}, "rejected", "empty_sku"),
        ({"sku": "good", "image": "good.png"}, "rejected", "duplicate_sku"),
        ({"sku": "a/b\\c", "image": "good.png"}, "done", ""),
        ({"sku": "../../etc/passwd", "image": "good.png"}, "done", ""),
        ({"sku": "\"quoted\" 'sku'", "image": "good.png"}, "done", ""),
        ({"sku": "new\nline", "image": "good.png"}, "done", ""),
        ({"sku": "emoji 🧴", "image": "good.png"}, "done", ""),
        ({"sku": "<script>alert(1)</script>", "image": "good.png"}, "done", ""),
        ({"sku": "x" * 300, "image": "good.png"}, "rejected", "sku_too_long"),
        ({"sku": "no image", "image": None}, "rejected", "missing_image"),
        ({"sku": "blank prompt", "image": "good.png", "prompt": ["  "]}, "rejected", "empty_prompt"),
        ({"sku": "long prompt", "image": "good.png", "prompt": ["wooden " * 200]}, "rejected", "prompt_too_long"),
        ({"sku": "outside", "image": "../outside.png"}, "rejected", "file_outside_roots"),
        ({"sku": "absolute", "image": "/etc/hostname"}, "rejected", "file_outside_roots"),
        ({"sku": "ftp", "image": "ftp://host/a.png"}, "rejected", "unknown_scheme"),
        ({"sku": "many", "image": "good.png", "num_variants": 1000}, "rejected", "bad_num_variants"),
        ({"sku": "seed", "image": "good.png", "seed": -1}, "rejected", "bad_seed"),
        ({"sku": "placed", "image": "good.png", "placement": "size=9"}, "rejected", "bad_placement"),
        ({"sku": "last", "image": "good.png"}, "done", ""),
    ]


SCHEMA = pa.schema(
    [
        ("sku", pa.string()),
        ("image", pa.string()),
        ("prompt", pa.list_(pa.string())),
        ("num_variants", pa.int64()),
        ("seed", pa.int64()),
        ("placement", pa.string()),
    ]
)


@pytest.mark.slow
def test_every_bad_row_costs_itself_and_says_why(server: str, random_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shop"
    folder.mkdir()
    wanted = cases(server, folder)
    rows = [{name: values.get(name) for name in SCHEMA.names} for values, _, _ in wanted]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), folder / "catalog.parquet")
    settings = (
        "fetch.allow_private_addresses=true",
        "fetch.timeout_s=1",
        "fetch.num_retries=0",
        "catalog.scenes_per_product=1",
        "sampling.num_inference_steps=1",
    )
    ended = job_runs.run(folder / "catalog.parquet", tmp_path / "out", random_model, *settings)
    assert ended.returncode == 0, ended.stderr[-3000:]
    found = {row["row"]: row for row in job_runs.ledger_rows(tmp_path / "out")}
    outcome = [(found[number]["status"], found[number]["reason"]) for number in range(len(wanted))]
    assert outcome == [(status, reason) for _, status, reason in wanted]
    assert len(found) == len(wanted)
    for number, (_, status, _) in enumerate(wanted):
        assert bool(found[number]["detail"]) == (status != "done")
    everything = b"".join(file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file())
    everything += (ended.stdout + ended.stderr).encode()
    for row in found.values():
        everything += repr(row).encode()  # the ledger's parts are compressed
    assert b"deadbeefsecret" not in everything
    assert b"<script>alert(1)" not in (tmp_path / "out" / "report.html").read_bytes()


def write(path: Path, **columns: object) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": ["a.png"]}, "no column 'sku'"),
        ({"sku": ["a"]}, "no column 'image'"),
        ({"sku": ["a"], "image": [1.5]}, "'image'.* is of type double"),
        ({"sku": ["a"], "image": ["a.png"], "seed": ["x"]}, "'seed'.* is of type string"),
        ({"sku": pa.nulls(1), "image": ["a.png"]}, "'sku'.* nothing but nulls"),
    ],
)
def test_a_catalogue_without_what_it_needs_stops_the_job(
    columns: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        scan_catalog(write(tmp_path / "c.parquet", **columns))


def test_catalogues_that_are_none_are_named(tmp_path: Path) -> None:
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 but no more")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="there is no such catalogue"):
        scan_catalog(str(tmp_path / "nowhere.parquet"))
    with pytest.raises(ValueError, match=r"broken\.parquet: not a readable parquet file"):
        scan_catalog(str(tmp_path / "broken.parquet"))
    with pytest.raises(ValueError, match=r"folder: the folder holds no \.parquet file"):
        scan_catalog(str(tmp_path / "folder"))
    with pytest.raises(ValueError, match="storage is a local path or s3://"):
        scan_catalog("gs://bucket/catalog.parquet")


def test_an_output_that_cannot_be_written_is_named(random_model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    config = load_config(GenerateConfig, None, [f"model.path={random_model}"])
    with pytest.raises(ValueError, match=r"--output .*file/out: cannot be written"):
        CatalogJob(config, str(job_runs.CATALOG), str(tmp_path / "file" / "out"))
