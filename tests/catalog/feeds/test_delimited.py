"""CSV and TSV: found separators and encodings, text that stays text, and every way in which a file is broken."""

import codecs
import gzip

import pytest
from feed_files import Open, report_of, rows_of, told

MERCHANT = (
    "id\ttitle\timage_link\tgoogle_product_category\tproduct_type\tavailability\tgtin\n"
    "00123\tTea Cup\thttps://h.example/1.jpg\t2169\tKitchen > Tea Cups\tin_stock\t00012345678905\n"
    "1e5\t<b>Pots</b> &amp; Pans\thttps://h.example/2.jpg\t\tKitchen > Pots\tout_of_stock\t\n"
    "7\tMug\t./7.jpg\t2169\t\tin stock\t\n"
)


def test_a_merchant_tsv(opened: Open) -> None:
    catalog = opened("feed.txt", MERCHANT, "catalog.leave_out=[]")
    assert catalog.read_as.endswith("read as Google Merchant text feed, separated by tabs, UTF-8")
    assert told(catalog) == [
        ("00123", "https://h.example/1.jpg", "Tea Cup", "Kitchen > Tea Cups"),
        ("1e5", "https://h.example/2.jpg", "Pots & Pans", "Kitchen > Pots"),
        ("7", "./7.jpg", "Mug", "2169"),
    ]
    assert "columns not used: gtin" in catalog.lines()
    assert report_of(catalog).lines() == ["rows in the feed: 3, products: 3, left out: 0"]


def test_what_is_out_of_stock_is_left_out_and_counted(opened: Open) -> None:
    catalog = opened("feed.tsv", MERCHANT)
    assert [row.sku for row in rows_of(catalog)] == ["00123", "7"]
    assert catalog.lines()[:2] == [
        "rows in the feed: 3, products: 2, left out: 1",
        "        1 out-of-stock (catalog.leave_out); the first: 1e5",
    ]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_separators_quotes_and_lines_in_cells(separator: str, line_end: str, opened: Open) -> None:
    header = separator.join(["SKU", "Image Link", "Title", "Description"])
    text = f'"a{separator}1"{separator}x.jpg{separator}"The ""Big"" Cup"{separator}"two{line_end}lines"'
    catalog = opened("feed", line_end.join(["", " ", header, text, "", ""]))
    assert told(catalog) == [(f"a{separator}1", "x.jpg", 'The "Big" Cup', None)]
    assert report_of(catalog).rows == 1


@pytest.mark.parametrize(
    ("encoding", "said"),
    [
        ("utf-8", "UTF-8"),
        ("utf-8-sig", "UTF-8"),
        ("utf-16", "UTF-16"),
        ("utf-16-le", "UTF-16-LE"),
        ("utf-16-be", "UTF-16-BE"),
        ("cp1252", "Windows-1252"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_encodings(encoding: str, said: str, packed: bool, opened: Open) -> None:
    data = "sku;image;title\n1;a.jpg;Schöne Schüssel für Äpfel\n".encode(encoding)
    catalog = opened("feed.csv.gz" if packed else "feed.csv", gzip.compress(data) if packed else data)
    assert catalog.read_as.endswith(f"separated by semicolons, {said}{', gzip' if packed else ''}")
    assert told(catalog) == [("1", "a.jpg", "Schöne Schüssel für Äpfel", None)]


def test_a_cell_of_another_encoding_costs_its_row(opened: Open) -> None:
    rows = "".join(f"{row},a.jpg,Cup\n" for row in range(40_000))
    catalog = opened("feed.csv", b"sku,image,title\n" + rows.encode() + b"bad,b.jpg,Sch\xfcssel\nlast,c.jpg,Cup\n")
    assert [row.sku for row in rows_of(catalog)[-2:]] == ["39999", "last"]
    assert dict(report_of(catalog).left_out) == {"not text of the feed's encoding": 1}
    assert report_of(catalog).first == {"not text of the feed's encoding": "bad"}


def test_numbers_and_prompts_of_a_text_feed(opened: Open) -> None:
    catalog = opened("feed.csv", "sku,image,prompt,num_variants,seed\n1,a.jpg,on sand,3, 07\n2,b.jpg,,,\n")
    first, second = rows_of(catalog)
    assert (first.prompts, first.num_variants, first.seed) == (("on sand",), 3, 7)
    assert (second.prompts, second.num_variants, second.seed) == ((), None, None)


def test_a_column_without_values_counts_as_missing(opened: Open) -> None:
    assert [row.sku for row in rows_of(opened("feed.csv", "sku,id,image\n,7,a.jpg\n,8,b.jpg\n"))] == ["7", "8"]


def test_a_file_without_rows(opened: Open) -> None:
    catalog = opened("feed.csv", "sku,image\n")
    assert (catalog.scan.num_rows, report_of(catalog).rows) == (0, 0)


def test_a_limit_reads_no_further(opened: Open) -> None:
    catalog = opened("feed.csv", "sku,image\n1,a\n2,b\n3,c\n", limit=2)
    assert [row.sku for row in rows_of(catalog)] == ["1", "2"]


def test_a_header_that_comes_again_is_no_product(opened: Open) -> None:
    catalog = opened("feed.csv", "sku,image\nsku,image\n1,a.jpg\nsku,image\n2,b.jpg\n")
    assert [row.sku for row in rows_of(catalog)] == ["1", "2"]
    assert dict(report_of(catalog).left_out) == {"repeats the header": 2}


def test_a_line_above_the_header_is_named(opened: Open) -> None:
    with pytest.raises(ValueError, match=r"line names no column, its second one does \('sku,image,title'\): remove"):
        opened("feed.csv", "Export of the shop,,\nsku,image,title\n1,a.jpg,Cup\n")


@pytest.mark.parametrize(
    ("end", "line"),
    [("4,d.jp", 5), ('4,"d.jpg', 5), ("4", 5), ('4,d.jpg,"A fine\nc', 5)],
)
def test_a_file_that_is_cut_in_a_row(end: str, line: int, opened: Open) -> None:
    with pytest.raises(ValueError, match=rf"feed\.csv: ends in the middle of the row at line {line}: export it again"):
        opened("feed.csv", "sku,image,title\n1,a.jpg,A\n2,b.jpg,B\n3,c.jpg,C\n" + end)


def test_packed_files_that_are_cut(opened: Open) -> None:
    rows = "".join(f"{row},{hash(str(row))}.jpg\n" for row in range(20_000))
    data = gzip.compress(f"sku,image\n{rows}".encode())
    for size in (len(data) // 2, 12):
        with pytest.raises(ValueError, match="is cut or damaged gzip"):
            opened("feed.csv.gz", data[:size])


def test_a_wrong_separator_is_named(opened: Open) -> None:
    with pytest.raises(ValueError, match=r"no column 'sku'.* it has 'sku,image'.*It is read as separated by tabs"):
        opened("feed.csv", "sku,image\n1,a.jpg\n", "catalog.format=tsv")


def test_rows_of_other_widths_cost_themselves_while_they_are_few(opened: Open) -> None:
    good = "".join(f"{row},a.jpg,Cup\n" for row in range(30))
    catalog = opened("feed.csv", f"sku,image,title\nx,b.jpg,Cup, red\ny,b.jpg\n{good}")
    assert (len(rows_of(catalog)), dict(report_of(catalog).left_out)) == (
        30,
        {"another number of cells than the header": 2},
    )
    with pytest.raises(ValueError, match=r"3 of 3 rows have another number of cells than the header's 3, first line 2"):
        opened("feed.csv", "sku,image,title\n1,a.jpg,Cup, red\n2,a.jpg,Cup, red\n3,a.jpg,Cup, blue\n")


def test_a_quote_that_is_none_swallows_no_rows(opened: Open) -> None:
    titles = ['"Monitor" 24"', '"24 inch', "Cup", 'The 5" Pot', '"27 inch']
    text = "\n".join(["id\timage\ttitle", *(f"{place}\ta.jpg\t{title}" for place, title in enumerate(titles, 1)), ""])
    assert [(row.sku, row.title) for row in rows_of(opened("feed.tsv", text))] == [
        ("1", '"Monitor" 24"'),
        ("2", '"24 inch'),
        ("3", "Cup"),
        ("4", 'The 5" Pot'),
        ("5", '"27 inch'),
    ]


def test_very_many_columns(opened: Open) -> None:
    wide = ",".join(["sku", "image", *(f"c{number}" for number in range(600))])
    catalog = opened("feed.csv", f"{wide}\n1,a.jpg{',' * 600}\n")
    assert [row.sku for row in rows_of(catalog)] == ["1"]
    assert "c499 and 100 more" in catalog.lines()[1]
    wider = ",".join(["sku", "image", *(f"c{number}" for number in range(10_001))])
    with pytest.raises(ValueError, match="more than 10,000 columns"):
        opened("feed.csv", f"{wider}\n1,a.jpg{',' * 10_001}\n")


def test_a_line_without_end(opened: Open) -> None:
    with pytest.raises(ValueError, match="line 2 has more than 1,048,576 characters"):
        opened("feed.csv", "sku,image\n1," + "x" * (1 << 20) + "\n")


def test_a_missing_column_is_named(opened: Open) -> None:
    with pytest.raises(ValueError, match=r"feed\.csv: the catalogue has no column 'image'.*Is 'imag' meant"):
        opened("feed.csv", "sku,imag\n1,a.jpg\n")
    with pytest.raises(ValueError, match="has title more than once"):
        opened("feed.csv", "sku,image,Title,TITLE\n1,a.jpg,a,b\n")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds no rows, and no header either"),
        (b"PK\x03\x04rest", "a zip archive or an Excel workbook: unpack it"),
        (b"\x89PNG\r\n", "a picture: give the folder"),
        (b"\0\1\2\3" * 100, "neither parquet nor text"),
        (codecs.BOM_UTF8 + b"<html><body>Log in</body></html>", "an HTML page, such as that of a login"),
    ],
)
def test_files_that_are_no_feed(content: bytes, said: str, opened: Open) -> None:
    with pytest.raises(ValueError, match=rf"feed: .*{said}"):
        opened("feed", content)
