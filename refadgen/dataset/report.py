"""The report page of a data set: counts, examples of rejected ads by reason, and some triplets.

One HTML file with its pictures inside, without scripts and without outside resources.
"""

import base64
import html
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from refadgen.batch.ledger import Ledger, short_keys
from refadgen.batch.planning import Plan
from refadgen.batch.rows import field_names, from_table
from refadgen.catalog.fetch import ImageFetcher
from refadgen.catalog.images import decode_image
from refadgen.config import FetchConfig
from refadgen.dataset.card import COUNT_TITLES, category_counts
from refadgen.dataset.ledgers import NEAR_DUPLICATE
from refadgen.dataset.planning import Keys, ads_of_rows
from refadgen.dataset.rows import PlannedAd
from refadgen.storage.store import Storage
from refadgen.triplets.schema import Triplet, decode

KEY = "report.html"
SHEET_KEY = "variants.webp"
_EXAMPLES = 6
"""Ads shown for each reason."""
_PRODUCTS = 8
"""Triplets shown."""
_HEIGHT_PX = 200
"""Height of a triplet's pictures."""


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    """The columns of the ledger that the page shows (see ledgers.AdLedgerRow)."""

    row_id: str
    row: int | None
    ad_id: str | None
    category: str | None
    status: str
    reason: str | None
    detail: str | None
    duplicate_of: str | None
    file: str | None


_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; } h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
table { border-collapse: collapse; } td, th { padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--line);
text-align: right; } td:first-child, th:first-child { text-align: left; }
.row { display: flex; flex-wrap: wrap; gap: 1rem; } figure { margin: 0; width: 10rem; }
figure img { max-width: 100%; max-height: 10rem; background: var(--soft); }
figcaption { font-size: .8rem; overflow-wrap: anywhere; } .scroll { overflow-x: auto; } .scroll img { display: block; }
.big { display: flex; gap: 2.5rem; } .big b { display: block; font-size: 1.6rem; }
"""


def write_report(
    storage: Storage,
    ledger: Ledger,
    keys: Keys,
    facts: Mapping[str, Any],
    fetch: FetchConfig,
    input_uri: str,
    plan: Plan,
) -> None:
    """Writes report.html and the sheet of variants.

    keys: of the input's ads. facts: the entries of run.json. plan: all ads of the input, for the pictures of rejected
    ones.
    """
    latest = ledger.latest([name for name in field_names(_Outcome) if name != "row_id"])
    triplets = _some_triplets(storage, latest)
    if triplets:
        storage.write(SHEET_KEY, _webp(variants_sheet(triplets)))
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'><meta name='viewport' content='width=device-width'>",
        # The page shows texts of strangers: should one escape its quoting, it still runs no script and loads nothing.
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; img-src data:; "
        "style-src 'unsafe-inline'\">",
        f"<title>Data set report</title><style>{_STYLE}</style><h1>Data set report</h1>",
        _overview(facts),
        _categories(ledger),
        _products(triplets),
        _rejections(latest.filter(pa.array(np.isin(short_keys(latest["row_id"]), keys))), fetch, input_uri, plan),
    ]
    # Ids of an input may hold lone surrogates, which UTF-8 cannot encode.
    storage.write(KEY, "\n".join(parts).encode("utf-8", "backslashreplace"))


def _overview(facts: Mapping[str, Any]) -> str:
    counts = facts["counts"]
    numbers = "".join(f"<div><b>{counts.get(name, 0):,}</b>{name}</div>" for name in ("done", "rejected", "failed"))
    return (
        f"<p>{_text(facts['input'])} → {_text(facts['output'])}, {_text(facts['started_at'])}, "
        f"{facts['seconds']:g} s, {facts['built']:,} triplets made by this run.</p><div class='big'>{numbers}</div>"
    )


def _categories(ledger: Ledger) -> str:
    rows = [
        f"<tr><td>{_text(each.category)}</td>{''.join(f'<td>{number:,}</td>' for number in each.numbers)}</tr>"
        for each in category_counts(ledger)
    ]
    titles = "".join(f"<th scope='col'>{each}</th>" for each in COUNT_TITLES)
    return f"<h2>Categories</h2><table><tr><th scope='col'>category</th>{titles}</tr>{''.join(rows)}</table>"


def _products(triplets: list[Triplet]) -> str:
    if not triplets:
        return ""
    parts = ["<h2>Some triplets</h2><p>The ad, then its product images.</p>"]
    for triplet in triplets:
        kinds = ", ".join(each.kind for each in triplet.variants)
        parts.append(
            f"<h3>{_text(triplet.captions[0])}</h3><div class='scroll'>"
            f"<img alt='The ad and its product images: {_text(kinds)}' src='{_data(_webp(_strip(triplet)))}'></div>"
        )
    return "".join(parts)


def _rejections(latest: pa.Table, fetch: FetchConfig, input_uri: str, plan: Plan) -> str:
    trouble = latest.filter(pc.not_equal(latest["status"], "done")).sort_by("row")
    if not len(trouble):
        return "<h2>Rejected</h2><p>None.</p>"
    examples: dict[str, list[_Outcome]] = {}
    totals: dict[str, int] = {}
    for count in pc.value_counts(trouble["reason"]).to_pylist():
        rows = trouble.filter(pc.equal(trouble["reason"], count["values"]))
        examples[count["values"]], totals[count["values"]] = from_table(rows.slice(0, _EXAMPLES), _Outcome), len(rows)
    shown = {outcome.row for outcomes in examples.values() for outcome in outcomes if outcome.row is not None}
    # By row_id: a row's number is that of the run that recorded it, and the input may have another ad there by now.
    pictures = _pictures(ads_of_rows(plan, shown), fetch, input_uri)
    parts = ["<h2>Not in the data set</h2>"]
    for reason in sorted(totals, key=lambda name: -totals[name]):
        figures = "".join(_figure(outcome, pictures.get(outcome.row_id)) for outcome in examples[reason])
        parts.append(f"<h3>{_text(reason)}: {totals[reason]:,}</h3><div class='row'>{figures}</div>")
    return "".join(parts)


def _figure(outcome: _Outcome, picture: bytes | None) -> str:
    image = f"<img alt='' src='{_data(picture)}'>" if picture else ""
    detail = f"as {outcome.duplicate_of}" if outcome.reason == NEAR_DUPLICATE else outcome.detail or ""
    return f"<figure>{image}<figcaption><b>{_text(outcome.ad_id or '')}</b><br>{_text(detail)}</figcaption></figure>"


def _pictures(ads: Iterable[PlannedAd], fetch: FetchConfig, input_uri: str) -> dict[str, bytes]:
    """Returns small WebP pictures of the ads that can be read, by row_id."""
    fetcher = ImageFetcher(fetch, input_uri)
    pictures = {}
    for ad in ads:
        try:
            image = decode_image(fetcher.fetch(ad.image or ad.image_bytes), fetch).convert("RGB")
        except Exception:  # of many kinds; the ledger's detail beside the picture says why it cannot be read
            continue
        image.thumbnail((160, 160))
        pictures[ad.row_id] = _webp(np.asarray(image))
    return pictures


def _some_triplets(storage: Storage, latest: pa.Table) -> list[Triplet]:
    """Reads some triplets, of different categories as far as there are enough."""
    # The smallest row_id of each category: any choice would do that does not change from run to run.
    done = latest.filter(pc.equal(latest["status"], "done")).sort_by("row")
    first = done.group_by("category").aggregate([("row_id", "min")])["row_id_min"].sort().slice(0, _PRODUCTS)
    is_first = pc.is_in(done["row_id"], value_set=first)
    others = done.filter(pc.invert(is_first)).slice(0, _PRODUCTS - len(first))
    triplets = []
    for outcome in [*from_table(done.filter(is_first), _Outcome), *from_table(others, _Outcome)]:
        assert outcome.file  # it is done
        # A filter on the way in: the file holds hundreds of triplets.
        with storage.arrow().open_input_file(storage.path(outcome.file)) as handle:
            table = pq.read_table(handle, filters=[("row_id", "==", outcome.row_id)])
        triplets += [decode(each) for each in table.to_pylist()]
    return triplets


def variants_sheet(triplets: list[Triplet]) -> np.ndarray:
    """Returns uint8 H×W×3: a strip per triplet, the ad and its product images side by side."""
    strips = [_strip(triplet) for triplet in triplets]
    width = max(strip.shape[1] for strip in strips)
    padded = [np.pad(s, ((0, 4), (0, width - s.shape[1]), (0, 0)), constant_values=255) for s in strips]
    return np.concatenate(padded)


def _strip(triplet: Triplet) -> np.ndarray:
    pictures = [triplet.ad_image, *(variant.image for variant in triplet.variants)]
    height, width = triplet.ad_image.shape[:2]
    size = (max(1, round(width * _HEIGHT_PX / height)), _HEIGHT_PX)
    interpolation = cv2.INTER_AREA if height > _HEIGHT_PX else cv2.INTER_CUBIC
    return np.concatenate([cv2.resize(each, size, interpolation=interpolation) for each in pictures], axis=1)


def _webp(pixels: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "WEBP", quality=85)
    return sink.getvalue()


def _data(webp: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(webp).decode()}"


def _text(text: str) -> str:
    return html.escape(text[:300], quote=True)
