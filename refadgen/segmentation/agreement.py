"""Where the plain-backdrop cut and the second opinion agree, where they do not, and what the mask then is.

A mask from the colours alone is exact, but does not know what it sees; the network knows, but is coarse. So contours
come from the colours, and whole regions are decided by the network where it is sure. Where it is not, the doubt is kept
under its name.
"""

from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from refadgen.errors import RowError
from refadgen.segmentation.background import Proposal, at_work_size, propose, support
from refadgen.segmentation.classes import BACKDROP, FRAME, MARK, SHADOW
from refadgen.segmentation.second_opinion import WEIGHTS, Opinion, second_opinion

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]

REACH = 1.5
"""A disagreement thinner than twice this many pixels of the network is a matter of its coarse contour."""
SURE_PIXEL = 0.75
"""|2p − 1| of a pixel from which on the network decides about it."""
SURE = 0.6
"""Mean of |2p − 1| over a region from which on the network decides about it."""
PROBLEMS = {
    "white_on_white": "a part of the product may have the backdrop's colour; another backdrop or a mask would help",
    "framed_photo": "the product may stand in a photograph within a frame or a padding; crop it to the photograph",
    "marks_on_photo": "text, badges or arrows may lie over the photograph; give one without them, or a mask",
    "unclear_shadow": "a shadow or reflection may be taken for the product; softer light or a mask would help",
    "unclear_holes": "it is unclear whether the backdrop shows through the product; a mask would help",
    "unclear_mask": "it is unclear what the product is; a plainer photograph or a mask would help",
}
"""What is doubted and what would help, by reason."""
DOUBTS = {MARK: "marks_on_photo", FRAME: "framed_photo", SHADOW: "unclear_shadow", BACKDROP: "unclear_mask"}


@dataclass(frozen=True)
class Agreement:
    """product: bool HW at the working size, the agreed mask. features: measurements that the verdict weighs, by name.
    doubt: the reason that fits the largest region of disagreement."""

    product: Bools
    features: dict[str, float]
    doubt: str


@dataclass(frozen=True)
class AgreedMask:
    """What this project makes of a photograph without a mask.

    alpha: uint8 HW, of the photograph's size, 255 on the product. source: plain_background or second_opinion. features,
    doubt: as `Agreement` has them; problem: the doubt in words, and what would help.
    """

    alpha: npt.NDArray[np.uint8]
    source: str
    features: dict[str, float]
    doubt: str
    problem: str


def agreed_mask(image_u8: npt.NDArray[np.uint8], tolerance: float, weights: Path = WEIGHTS) -> AgreedMask:
    """The mask that colours and network agree on; the network's own, where no backdrop is plain.

    image_u8: uint8 HW3, RGB. tolerance: segmentation.background_tolerance. weights: of the mask network.
    """
    opinion = second_opinion(image_u8, weights)
    try:
        proposal = propose(image_u8, tolerance)
    except RowError as error:
        found = alone(at_work_size(image_u8), opinion)
        rough = np.where(found.product, np.uint8(255), np.uint8(0))
        size = (image_u8.shape[1], image_u8.shape[0])
        alpha = np.asarray(cv2.resize(rough, size, interpolation=cv2.INTER_LINEAR), np.uint8)
        return AgreedMask(alpha, "second_opinion", found.features, found.doubt, error.problem)
    found = agree(proposal, opinion)
    alpha = proposal.alpha(found.product)
    return AgreedMask(alpha, "plain_background", found.features, found.doubt, PROBLEMS[found.doubt])


@dataclass
class _Changes:
    """Areas in pixels, by what happened to a region."""

    added: float = 0.0
    closed: float = 0.0
    opened: float = 0.0
    removed: dict[int, float] = field(default_factory=lambda: dict.fromkeys(DOUBTS, 0.0))
    unsure: float = 0.0
    largest_unsure: float = 0.0
    doubt: str = "unclear_mask"


def agree(proposal: Proposal, opinion: Opinion) -> Agreement:
    """Settles a plain-backdrop proposal with the network's opinion."""
    height, width = proposal.product.shape
    classes = np.stack([cv2.resize(plane, (width, height)) for plane in opinion.classes])
    likely = np.asarray(cv2.resize(opinion.product, (width, height)), np.float32)
    product, changes = _settled(proposal, likely, classes)
    lab = cv2.medianBlur(proposal.raw, 3)
    features = _shared_features(product, opinion, proposal.distance)
    area = max(1.0, float(np.count_nonzero(product)))
    features |= {
        "plain": 1.0,
        "support": support(product, lab, proposal.backdrop.noise),
        "score": proposal.score,
        "noise": proposal.backdrop.noise,
        "before": _iou(proposal.product, likely > 0.5),
        "unsure": min(2.0, changes.unsure / area),
        "largest_unsure": min(2.0, changes.largest_unsure / area),
        "added": min(2.0, changes.added / area),
        "closed": min(2.0, changes.closed / area),
        "opened": min(2.0, changes.opened / area),
        "removed": min(2.0, sum(changes.removed.values()) / area),
    }
    return Agreement(product, features, _named(changes, features))


def alone(image_small: npt.NDArray[np.uint8], opinion: Opinion) -> Agreement:
    """The network's own mask, its contour drawn to the photograph's edges: where no backdrop is plain.

    image_small: uint8 HW3, the photograph at the working size.
    """
    height, width = image_small.shape[:2]
    lab = np.asarray(cv2.cvtColor(image_small.astype(np.float32) / 255, cv2.COLOR_RGB2LAB), np.float32)
    likely = np.asarray(cv2.resize(opinion.product, (width, height)), np.float32)
    refined = guided(
        lab / np.float32(100), likely, radius=max(2, round(1.5 * max(height, width) / opinion.product.shape[0]))
    )
    product = refined > 0.5
    features = _shared_features(product, opinion, np.zeros((height, width), np.float32))
    features |= dict.fromkeys(
        ("plain", "score", "noise", "before", "unsure", "largest_unsure", "added", "closed", "opened", "removed"), 0.0
    )
    features["support"] = support(product, cv2.medianBlur(lab, 3), 1.0)
    return Agreement(product, features, "no_plain_background")


def _settled(proposal: Proposal, likely: Floats, classes: Floats) -> tuple[Bools, _Changes]:
    """Decides each region where the proposal and the network differ."""
    plain, net = proposal.product, likely > 0.5
    size = max(plain.shape)
    radius = max(1, round(REACH * size / classes_side(size)))
    product, changes = plain.copy(), _Changes()
    # Gaps that are too narrow for the rules of holes: the backdrop's colour, and no product by the network.
    gaps = plain & proposal.candidate & (likely < 0.55)
    gaps &= cv2.morphologyEx(gaps.astype(np.uint8), cv2.MORPH_OPEN, np.ones((2, 2), np.uint8)) > 0
    product &= ~gaps
    changes.opened += float(np.count_nonzero(gaps))
    certainty = np.abs(2 * likely - 1)
    # Beside its own contour the network is not sure, so what it is sure of is no matter of its coarseness.
    certain = (product ^ net) & (certainty > SURE_PIXEL)
    changes.added += float(np.count_nonzero(certain & net))
    for kind, plane in ((kind, classes[kind]) for kind in DOUBTS):
        largest = plane >= np.max([classes[other] for other in DOUBTS], axis=0)
        changes.removed[kind] += float(np.count_nonzero(certain & ~net & largest))
    product = np.where(certain, net, product)
    differs = (product ^ net).astype(np.uint8)
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    core = cv2.erode(differs, disk)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(core, connectivity=8)
    for index in range(1, count):
        x, y, w, h = stats[index, :4]
        box = (
            slice(max(0, y - 2 * radius), y + h + 2 * radius),
            slice(max(0, x - 2 * radius), x + w + 2 * radius),
        )
        grown = cv2.dilate((labels[box] == index).astype(np.uint8), disk, iterations=1) > 0
        region = grown & (differs[box] > 0)
        _decide(region, box, product, proposal.candidate, certainty, classes, net, changes)
    return product, changes


def classes_side(size: int) -> float:
    """Pixels of the network along the longer side of a photograph."""
    from refadgen.segmentation.mask_network import SIDE_PX

    return float(min(size, SIDE_PX))


def _decide(
    region: Bools,
    box: tuple[slice, slice],
    product: Bools,
    candidate: Bools,
    certainty: Floats,
    classes: Floats,
    net: Bools,
    changes: _Changes,
) -> None:
    area = float(np.count_nonzero(region))
    is_product = bool(net[box][region].mean() > 0.5)
    means = classes[(slice(None), *box)][:, region].mean(axis=1)
    kind = max(DOUBTS, key=lambda name: float(means[name]))
    if certainty[box][region].mean() >= SURE:
        product[box][region] = is_product
        if not is_product:
            changes.removed[kind] += area
        elif candidate[box][region].mean() > 0.5:
            changes.added += area
        else:
            changes.closed += area
        return
    changes.unsure += area
    if area > changes.largest_unsure:
        changes.largest_unsure = area
        pale = candidate[box][region].mean() > 0.5
        changes.doubt = "white_on_white" if pale else DOUBTS[kind]
        if pale and product[box][region].mean() > 0.5:
            changes.doubt = "unclear_holes"


def _shared_features(product: Bools, opinion: Opinion, distance: Floats) -> dict[str, float]:
    """Measurements at the network's size."""
    side = opinion.product.shape[0]
    share = cv2.resize(product.astype(np.float32), (side, side), interpolation=cv2.INTER_AREA)
    likely, area = opinion.product, max(1.0, float(share.sum()))
    mask = share > 0.5
    inner = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    outer = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    rest = inner | ~outer  # without the contour, where a coarse network is never sure
    unclear = np.where(rest, 1 - np.abs(2 * likely - 1), 0)
    core = cv2.morphologyEx((unclear > 0.4).astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    _, _, stats, _ = cv2.connectedComponentsWithStats(core)
    largest = float(stats[1:, cv2.CC_STAT_AREA].max(initial=0))
    wrong = rest & (mask != (likely > 0.5))
    edge = outer & ~inner
    small = cv2.resize(distance, (side, side), interpolation=cv2.INTER_AREA)
    contact = max(mask[0].mean(), mask[-1].mean(), mask[:, 0].mean(), mask[:, -1].mean())
    return {
        "soft": float(np.minimum(share, likely).sum() / max(1.0, float(np.maximum(share, likely).sum()))),
        "hard": _iou(mask, likely > 0.5),
        "flip": _iou(opinion.classes[1] > 0.5, opinion.mirrored > 0.5),
        "unclear": min(2.0, float(unclear.sum()) / area),
        "largest_unclear": min(2.0, largest / area),
        "wrong": min(2.0, float(np.count_nonzero(wrong)) / area),
        "area": float(np.log(area / side**2 + 1e-4)),
        "thin": float(np.count_nonzero(edge)) / area,
        "faint": float((small[edge] < 4).mean()) if edge.any() else 1.0,
        "contact": float(contact),
        "marks": min(2.0, float((opinion.classes[MARK] > 0.3).sum()) / area),
        "frame": min(2.0, float((opinion.classes[FRAME] > 0.3).sum()) / side**2),
        "shadow": min(2.0, float((opinion.classes[SHADOW] > 0.3).sum()) / area),
    }


def _named(changes: _Changes, features: dict[str, float]) -> str:
    if changes.unsure:
        return changes.doubt
    if features["faint"] > 0.3:
        return "white_on_white"
    return "unclear_mask"


def _iou(one: Bools, other: Bools) -> float:
    union = np.count_nonzero(one | other)
    return float(np.count_nonzero(one & other) / union) if union else 1.0


def guided(guide: Floats, soft: Floats, radius: int, epsilon: float = 1e-3) -> Floats:
    """Draws the contour of `soft` (HW, 0 to 1) to the edges of `guide` (HW3): a guided filter, channel by channel."""
    size = (2 * radius + 1, 2 * radius + 1)
    total, weight = np.zeros_like(soft), np.zeros_like(soft)
    mean_soft = cv2.blur(soft, size)
    for channel in np.moveaxis(guide, -1, 0):
        channel = np.ascontiguousarray(channel)
        mean = cv2.blur(channel, size)
        variance = cv2.blur(channel * channel, size) - mean * mean
        slope = (cv2.blur(channel * soft, size) - mean * mean_soft) / (variance + epsilon)
        offset = mean_soft - slope * mean
        strength = variance + 1e-4
        total += strength * np.clip(cv2.blur(slope, size) * channel + cv2.blur(offset, size), 0, 1)
        weight += strength
    return np.asarray(total / weight, np.float32)
