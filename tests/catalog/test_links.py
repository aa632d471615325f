"""Addresses of images: what a cell of a shop's catalogue means, and what goes over the wire."""

import pytest

from refadgen.catalog.links import parsed_link, redirect_target, written_link
from refadgen.catalog.rows import parse_row
from refadgen.errors import RowError


@pytest.mark.parametrize(
    ("written", "link"),
    [
        ("//cdn.shop.example/a.jpg?v=1", "https://cdn.shop.example/a.jpg?v=1"),
        ("//cdn.example/a.jpg, //cdn.example/b.jpg", "https://cdn.example/a.jpg"),
        ("https://h/a.jpg , https://h/b.jpg", "https://h/a.jpg"),
        ("HTTPS://h/a.jpg\thttp://h/b.jpg", "HTTPS://h/a.jpg"),
        ("http://h/a.jpg, https://h/b.jpg", "http://h/a.jpg"),
        ("//cdn.example/a.jpg|https://h/b.jpg", "https://cdn.example/a.jpg"),
        ("https://h/a.jpg; //cdn.example/b.jpg", "https://h/a.jpg"),
        ("https://h/a.jpg,www.shop.example/b.jpg", "https://h/a.jpg"),
        ("https://h/a,www.b.jpg", "https://h/a,www.b.jpg"),
        # srcset: the largest of one picture's sizes.
        ("https://h/a.jpg 1x, https://h/a@2x.jpg 2x", "https://h/a@2x.jpg"),
        ("https://h/a-480.jpg 480w,\n  //h/a-1600.jpg 1600w, https://h/a-800.jpg 800w,", "https://h/a-1600.jpg"),
        ("https://h/w_9,h_9/a.jpg 1x", "https://h/w_9,h_9/a.jpg"),
        ("https://h/a.jpg, https://h/a.jpg 1.5x", "https://h/a.jpg"),
        ("https://h/a lamp 2x.jpg", "https://h/a lamp 2x.jpg"),
        ("https://h/w_9,h_9/a,b.jpg", "https://h/w_9,h_9/a,b.jpg"),
        ("https://h/fetch/w_9,h_9/https://shop.example/a.jpg", "https://h/fetch/w_9,h_9/https://shop.example/a.jpg"),
        ("https://h/?url=https://shop.example/a.jpg", "https://h/?url=https://shop.example/a.jpg"),
        ("https://h/a.jpg?a=1&amp;b=2&#038;c=3", "https://h/a.jpg?a=1&b=2&c=3"),
        ("images/a&amp;b, c|d.jpg", "images/a&amp;b, c|d.jpg"),
        ("catalog.v2/a.jpg", "catalog.v2/a.jpg"),
        ("./www.shop.example/a.jpg", "./www.shop.example/a.jpg"),
        ("  s3://b/a.jpg ", "s3://b/a.jpg"),
    ],
)
def test_what_a_cell_means(written: str, link: str) -> None:
    assert written_link(written) == link
    assert written_link(link) == link
    assert parse_row(0, {"sku": "a", "image": written}).image == link


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("www.shop.example/a.jpg", "add https://"),
        ("127.0.0.1:8000/a.jpg", "add https://"),
        ("cdn.shop.example:8443/a.jpg?sig=SECRET", "add https://"),
        ("localhost:8000/a.jpg", "add https://"),
        ('["https://h/a.jpg?sig=SECRET"]', "give one address"),
        ('{"url": "https://h/a.jpg?sig=SECRET"}', "give one address"),
    ],
)
def test_what_cannot_be_meant_is_refused_when_the_row_is_read(written: str, words: str) -> None:
    with pytest.raises(RowError, match=words) as error:
        parse_row(7, {"sku": "a", "image": written})
    assert (error.value.reason, error.value.field) == ("bad_address", "image")
    assert "row 7" in error.value.detail
    assert "SECRET" not in error.value.detail


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("https://h/a.jpg?tok=%2babc%2f%3d&tags[]=a|b#top", "/a.jpg?tok=%2babc%2f%3d&tags[]=a|b"),
        ("https://u:p@h:8443/%7euser/[1]/a,b;c.jpg", "/%7euser/[1]/a,b;c.jpg"),
        ("https://h", "/"),
        ("https://h?a=1", "/?a=1"),
        ('https://h/größe/a b.jpg?q=é "x"', "/gr%C3%B6%C3%9Fe/a%20b.jpg?q=%C3%A9%20%22x%22"),
        ("https://h/100%/%20.jpg", "/100%25/%20.jpg"),
        ("https://h/a/../b/./c.jpg?x=/../y", "/b/c.jpg?x=/../y"),
        ("https://h/<{a}>.jpg", "/%3C%7Ba%7D%3E.jpg"),
    ],
)
def test_a_request_asks_for_the_bytes_as_written(address: str, target: str) -> None:
    assert parsed_link(address)[1] == target


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("/größe/été.jpg".encode().decode("latin-1"), "https://h/größe/été.jpg"),  # raw UTF-8, as Apache writes it
        ("/gr\xf6\xdfe.jpg", "https://h/größe.jpg"),  # Latin-1
        ("b.jpg?s=%2b", "https://h/a/b.jpg?s=%2b"),
        ("//cdn.example/b.jpg", "https://cdn.example/b.jpg"),
    ],
)
def test_redirects(location: str, target: str) -> None:
    assert redirect_target("https://h/a/a.jpg?x=1", location) == target
