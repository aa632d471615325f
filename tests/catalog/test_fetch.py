"""Fetching from disk and S3, and the files a foreign catalogue must not reach."""

import base64
import errno
import os
import threading
import time
from pathlib import Path

import fsspec
import pytest

from refadgen.catalog.fetch import ImageFetcher
from refadgen.config import FetchConfig
from refadgen.errors import RETRY_HINT, RowError, retried_reasons

CONFIG = FetchConfig(max_bytes=100_000, num_retries=0, allow_private_addresses=True)
IMAGE = b"a picture"  # the fetcher looks into nothing
SECRET = b"another picture"


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A folder with a catalogue and an image, and a secret beside it."""
    folder = tmp_path / "shop"
    (folder / "images").mkdir(parents=True)
    (folder / "catalog.parquet").write_bytes(b"")
    (folder / "images" / "a b%20?#ü.png").write_bytes(IMAGE)
    (tmp_path / "secret.png").write_bytes(SECRET)
    return folder


def _fetcher(shop: Path, config: FetchConfig = CONFIG) -> ImageFetcher:
    return ImageFetcher(config, str(shop / "catalog.parquet"))


def _error(fetcher: ImageFetcher, image: str | bytes) -> RowError:
    with pytest.raises(RowError) as error:
        fetcher.fetch(image)
    assert error.value.detail.startswith("image: ")
    assert (RETRY_HINT in error.value.detail) == (error.value.reason in retried_reasons())
    return error.value


def _reason(fetcher: ImageFetcher, image: str | bytes) -> str:
    error = _error(fetcher, image)
    return f"{error.status} {error.reason}"


# Bytes and data: addresses


def test_bytes_of_the_catalogue(shop):
    assert _fetcher(shop).fetch(IMAGE) == IMAGE
    assert _reason(_fetcher(shop), b"") == "rejected not_an_image"
    assert _reason(_fetcher(shop), b"x" * 100_001) == "rejected image_too_large"


def test_data_addresses(shop):
    fetcher = _fetcher(shop)
    encoded = base64.b64encode(IMAGE).decode()
    assert fetcher.fetch(f"data:image/png;base64,{encoded}") == IMAGE
    assert fetcher.fetch(f"DATA:image/png;BASE64,{encoded[:20]}\n {encoded[20:]}") == IMAGE
    assert fetcher.fetch("data:,%00a") == b"\0a"
    for broken in ("data:image/png;base64", "data:image/png;base64,?*", "data:;base64,", "data:;base64,abc"):
        assert _reason(fetcher, broken) == "rejected not_an_image"
    assert encoded[:30] not in _error(fetcher, f"data:image/png;base64,{encoded}*").detail


# Files


def test_relative_absolute_and_file_addresses(shop):
    fetcher = _fetcher(shop)
    name = "images/a b%20?#ü.png"
    assert fetcher.fetch(name) == fetcher.fetch(f"./images/../{name}") == fetcher.fetch(str(shop / name)) == IMAGE
    (shop / "plain name.png").write_bytes(IMAGE)
    assert fetcher.fetch(f"file://{shop}/plain%20name.png") == fetcher.fetch(f"file:{shop}/plain name.png") == IMAGE


def test_a_folder_as_catalogue_is_where_paths_start(shop):
    assert ImageFetcher(CONFIG, str(shop / "images")).fetch("a b%20?#ü.png") == IMAGE


@pytest.mark.parametrize(
    "image",
    [
        "../secret.png",
        "images/../../secret.png",
        "/etc/passwd",
        "file:///etc/passwd",
        "file:/etc/../etc/passwd",
        "/",
        "..",
    ],
)
def test_files_outside_the_catalogue(shop, image):
    error = _error(_fetcher(shop), image)
    assert (error.status, error.reason) == ("rejected", "file_outside_roots")
    assert "fetch.file_roots" in error.detail


def test_links_do_not_lead_outside(shop):
    (shop / "link.png").symlink_to(shop.parent / "secret.png")
    (shop / "up").symlink_to(shop.parent)
    (shop / "loop").symlink_to(shop / "loop")
    (shop / "inside.png").symlink_to(shop / "images" / "a b%20?#ü.png")
    fetcher = _fetcher(shop)
    assert _reason(fetcher, "link.png") == "rejected file_outside_roots"
    assert _reason(fetcher, "up/secret.png") == "rejected file_outside_roots"
    assert _reason(fetcher, "loop") == "rejected image_not_found"
    assert fetcher.fetch("inside.png") == IMAGE


def test_a_folder_with_the_same_beginning_is_outside(shop):
    (shop.parent / "shop2").mkdir()
    (shop.parent / "shop2" / "a.png").write_bytes(IMAGE)
    assert _reason(_fetcher(shop), "../shop2/a.png") == "rejected file_outside_roots"


def test_file_roots_open_other_folders(shop):
    (shop.parent / "alias").symlink_to(shop.parent)
    for root in (shop.parent, shop.parent / "alias"):
        fetcher = ImageFetcher(FetchConfig(file_roots=(str(root),)), str(shop / "catalog.parquet"))
        assert fetcher.fetch("../secret.png") == SECRET
        assert _reason(fetcher, "/etc/passwd") == "rejected file_outside_roots"


def test_bad_files(shop):
    (shop / "empty.png").write_bytes(b"")
    (shop / "large.png").write_bytes(b"x" * 100_001)
    os.mkfifo(shop / "pipe.png")
    fetcher = _fetcher(shop)
    assert _reason(fetcher, "missing.png") == "rejected image_not_found"
    assert _reason(fetcher, "catalog.parquet/a.png") == "rejected image_not_found"
    assert _reason(fetcher, "x" * 5000) == "rejected image_not_found"
    assert _reason(fetcher, "images") == "rejected not_an_image"
    assert _reason(fetcher, "empty.png") == "rejected not_an_image"
    assert _reason(fetcher, "pipe.png") == "rejected not_an_image"
    assert _reason(fetcher, "large.png") == "rejected image_too_large"
    assert _reason(fetcher, "a\0.png") == "rejected bad_address"
    assert _reason(fetcher, "file://elsewhere/a.png") == "rejected bad_address"


def test_files_and_objects_that_may_not_be_read(s3, shop, monkeypatch):
    # Root, and moto, may read everything: the refusal itself is made here.
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    def drop(*_: object) -> None:
        raise ConnectionError("secret")

    fsspec.filesystem("s3").pipe_file(f"{s3}/closed.png", IMAGE)
    (shop / "closed.png").write_bytes(IMAGE)
    fetcher = _fetcher(shop)
    with monkeypatch.context() as patch:
        patch.setattr("refadgen.catalog.fetch.os.open", refuse)
        assert _reason(fetcher, "closed.png") == "rejected image_refused"
    monkeypatch.setattr("refadgen.catalog.fetch.Storage.read", refuse)
    assert _reason(fetcher, f"s3://{s3}/closed.png") == "rejected image_refused"
    monkeypatch.setattr("refadgen.catalog.fetch.Storage.read", drop)
    error = _error(fetcher, f"s3://{s3}/closed.png")
    assert (error.status, error.reason) == ("failed", "image_unreachable")
    assert "secret" not in str(error)


@pytest.mark.parametrize("image", ["ftp://host/a.png", "gs://b/a.png", "javascript:alert(1)", "s3a://b/a"])
def test_unknown_schemes(shop, image):
    assert _reason(_fetcher(shop), image) == "rejected unknown_scheme"


# Addresses as shops write them


@pytest.mark.parametrize(
    "written",
    [
        "{url}/ok/a.jpg, {url}/ok/b.jpg",  # WooCommerce
        "{url}/ok/a.jpg|{url}/ok/b.jpg",
        "{url}/ok/a.jpg\n{url}/ok/b.jpg",
        '"{url}/ok/a.jpg"; "{url}/ok/b.jpg"',
        "<{url}/ok/a.jpg>",
    ],
)
def test_of_several_links_the_first_is_taken(written: str, shop, web) -> None:
    fetcher = ImageFetcher(FetchConfig(allow_private_addresses=True), str(shop))
    assert fetcher.fetch(written.format(url=web.url)) == web.image
    assert [path for _, path, _ in web.requests] == ["/ok/a.jpg"]


# S3


def test_s3_images(s3, shop):
    files = fsspec.filesystem("s3")
    files.pipe_file(f"{s3}/feeds/images/a b ü.png", IMAGE)
    files.pipe_file(f"{s3}/feeds/catalog.parquet", b"PAR1")
    files.pipe_file(f"{s3}/feeds/empty.png", b"")
    files.pipe_file(f"{s3}/feeds/large.png", b"x" * 100_001)
    address = f"s3://{s3}/feeds/images/a b ü.png"
    assert _fetcher(shop).fetch(address) == IMAGE
    for catalog in (f"s3://{s3}/feeds/catalog.parquet", f"s3://{s3}/feeds", f"s3://{s3}/feeds/"):
        fetcher = ImageFetcher(CONFIG, catalog)
        assert fetcher.fetch("images/a b ü.png") == fetcher.fetch("../feeds/images/a b ü.png") == IMAGE
        assert _reason(fetcher, "images/missing.png") == "rejected image_not_found"
        assert _reason(fetcher, "images") == "rejected not_an_image"
        assert _reason(fetcher, "empty.png") == "rejected not_an_image"
        assert _reason(fetcher, "large.png") == "rejected image_too_large"
        assert _reason(fetcher, "../../etc/passwd") == "rejected bad_address"
        assert _reason(fetcher, "/etc/passwd") == "rejected file_outside_roots"
    for broken in ("s3:", "s3://", f"s3://{s3}", f"s3://{s3}/", f"s3://{s3}/..", "s3:../secret.png", "s3:/etc/passwd"):
        assert _reason(_fetcher(shop), broken) == "rejected bad_address"
    assert _reason(_fetcher(shop), "s3://no-such-bucket/a.png") == "rejected image_not_found"


@pytest.mark.parametrize("num_retries", [0, 2])
def test_s3_is_tried_as_often_as_the_settings_say(sick_s3, shop, num_retries):
    fetcher = _fetcher(shop, FetchConfig(num_retries=num_retries, backoff_s=0.01))
    error = _error(fetcher, "s3://status/503")
    assert (error.status, error.reason) == ("failed", "image_unreachable")
    assert len(sick_s3.requests) == num_retries + 1
    assert _reason(fetcher, "s3://status/403") == "rejected image_refused"
    assert len(sick_s3.requests) == num_retries + 2


def test_s3_that_is_well_again(sick_s3, shop):
    fetcher = _fetcher(shop, FetchConfig(num_retries=2, backoff_s=0.01))
    assert fetcher.fetch("s3://busy/0") == sick_s3.image


def test_s3_that_does_not_answer(sick_s3, shop):
    fetcher = _fetcher(shop, FetchConfig(num_retries=1, timeout_s=0.3, backoff_s=0.01))
    started = time.monotonic()
    assert _reason(fetcher, "s3://silent/a") == "failed image_unreachable"
    assert len(sick_s3.requests) == 2
    assert time.monotonic() - started < 6  # s3fs's own: 15 s, 5 × 5 times


def test_reads_of_one_bucket_are_bounded(sick_s3, shop):
    fetcher = _fetcher(shop, FetchConfig(max_per_host=2))

    def work(number: int) -> None:
        for i in range(3):
            fetcher.fetch(f"s3://slow/{number}-{i}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sick_s3.most_active == 2


def test_a_bucket_that_hangs_holds_up_no_other(sick_s3, shop):
    fetcher = _fetcher(shop, FetchConfig(max_per_host=1, num_retries=0))
    hanging = threading.Thread(target=lambda: _reason(fetcher, "s3://silent/a"), daemon=True)
    hanging.start()
    while not sick_s3.requests:
        time.sleep(0.01)
    assert fetcher.fetch("s3://ok/a") == sick_s3.image
    assert hanging.is_alive()
    sick_s3.stopping.set()
    hanging.join()


def test_errors_name_the_field_that_is_fetched(shop, web):
    for mask in (
        "none.png",
        f"{web.url}/status/404",
        f"{web.url}/status/500",
        "s3://gone/a",
        "ftp://a/b",
        b"",
        "data:,",
    ):
        with pytest.raises(RowError) as error:
            _fetcher(shop).fetch(mask, field="mask")
        assert error.value.field == "mask", mask
        assert error.value.detail.startswith("mask: "), mask


def test_web_addresses_go_to_the_web(shop, web):
    assert _fetcher(shop).fetch(f"{web.url}/ok/a") == web.image
    assert _reason(_fetcher(shop), f"{web.url.upper()}/status/404") == "rejected image_not_found"
    assert _reason(_fetcher(shop, FetchConfig()), f"{web.url}/ok/a") == "rejected private_address"


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.EIO, "failed image_unreachable"),
        (errno.ESTALE, "failed image_unreachable"),
        (errno.ETIMEDOUT, "failed image_unreachable"),
        (errno.EMFILE, "failed image_unreachable"),
        (errno.ENFILE, "failed image_unreachable"),
        (errno.ENOMEM, "failed image_unreachable"),
        (errno.ENOENT, "rejected image_not_found"),
        (errno.ENOTDIR, "rejected image_not_found"),
        (errno.ELOOP, "rejected image_not_found"),
        (errno.ENAMETOOLONG, "rejected image_not_found"),
    ],
)
def test_a_disk_with_a_problem_is_not_the_rows_fault(shop, monkeypatch, number, reason):
    def broken(path, flags):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("refadgen.catalog.fetch._open_resolved", broken)
    assert _reason(_fetcher(shop), "a.png") == reason
