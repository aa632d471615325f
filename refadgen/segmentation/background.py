"""The mask of a product in front of a plain backdrop, from its colours alone.

`propose` fits a smooth backdrop (white, one colour, a studio gradient) to the image's border in CIE Lab. It floods the
backdrop inwards from the border, so that white inside the product stays product. It then opens holes that show the
backdrop (the handle of a mug) and removes soft ground shadows. A photograph without a plain backdrop is rejected as
`no_plain_background`. `agreement` may change the proposed mask; `Proposal.alpha` then unmixes the edge into an alpha.
All of it works on a photograph of `WORK_SIDE_PX` at most; only the alpha is scaled back.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from refadgen.errors import RowError
from refadgen.segmentation.shadows import ground_shadows
from refadgen.segmentation.surface import border_of, fit_surface

WORK_SIDE_PX = 1024
"""The longer side of the photograph that is worked on."""
MIN_PLAIN_BORDER = 0.7
"""Least share of the border that must be backdrop."""
CLEAR_SCORE = 0.97
"""From this score up, no shadow is looked for: the contour has none."""
MAX_GRADING, MAX_TINT_GRADING = 50.0, 15.0
"""Largest change of a studio backdrop's L* and of its a*b* over the image; more is a scene."""
SURE_SCORE = 0.8
"""From this score up, the first cut stands; below it, a finer one is tried."""
MIN_HOLE = 0.0004
"""Smallest hole that is opened, as a share of the image; smaller ones are gleams and gaps in lace."""
MAX_WALL = 0.7
"""Thickest wall between a hole and the outside, relative to the square root of the hole's area."""
HALO = 0.08
"""JPEG rings and bleeds around strong edges: near an edge, this share of its ΔE still counts as backdrop."""
MIN_SPECK = 0.0003
"""Smallest piece that is kept, as a share of the image; smaller ones are dust and compression."""
MIN_RIM_PIECE = 0.02
"""Smallest piece at the image's border that is kept, as a share of the largest piece; smaller ones are dark corners and
folds of the backdrop."""


@dataclass(frozen=True)
class Backdrop:
    """The plain backdrop.

    lab: float32 HW3, CIE Lab, its colour at every pixel, also behind the product. noise: the spread around it, in ΔE.
    """

    lab: np.ndarray
    noise: float


@dataclass(frozen=True)
class Proposal:
    """A product cut out in front of a plain backdrop. H and W are of the working size, `WORK_SIDE_PX` at most.

    product: bool HW, the mask; all False where there is none. score: 0 to 1, how much of its contour divides two
    colours. candidate: bool HW, pixels of the backdrop's colour, also enclosed ones. distance: float32 HW, ΔE*ab
    between the smoothed photograph and the backdrop. raw: float32 HW3, the photograph in CIE Lab, not smoothed. shape:
    height and width of the photograph as it was given.
    """

    product: np.ndarray
    score: float
    candidate: np.ndarray
    distance: np.ndarray
    raw: np.ndarray
    backdrop: Backdrop
    shape: tuple[int, int]

    def alpha(self, product: np.ndarray) -> np.ndarray:
        """A mask with a soft edge: uint8, of the photograph's size, 0 on the backdrop and 255 on the product.

        product: bool HW of the working size, the proposed mask or a better one.
        """
        alpha = _without_rim_pieces(_soft_edge(product, self.raw, self.backdrop))
        height, width = self.shape
        return (
            alpha if alpha.shape == self.shape else cv2.resize(alpha, (width, height), interpolation=cv2.INTER_LINEAR)
        )


def propose(image_u8: np.ndarray, tolerance: float) -> Proposal:
    """Cuts out the product in front of a plain backdrop.

    image_u8: uint8 HW3, RGB. tolerance: segmentation.background_tolerance, in ΔE*ab.
    Raises: RowError, rejected `no_plain_background`.
    """
    small = at_work_size(image_u8)
    raw = cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    lab = cv2.medianBlur(raw, 3)  # removes compression noise; a median keeps edges in place, a blur would not

    backdrop = _fit_backdrop(lab, border_of(lab.shape), tolerance)
    threshold = float(np.clip(4 * backdrop.noise, 3.5, tolerance))
    background = _flood(_distance(lab, backdrop) < threshold, radius=2)
    if np.count_nonzero(background) > 0.05 * background.size:
        # Fitted to the border alone, the surface was extrapolated inwards. Now pixels around the product count too.
        backdrop = _fit_backdrop(lab, background, tolerance)
    if backdrop.noise > 1:  # grainy: smoothed, so that grain and compression do not cling to the contour
        lab = cv2.GaussianBlur(cv2.medianBlur(lab, 5), (0, 0), 1.0)
    best, score = _cut(lab, backdrop, threshold)
    if score < SURE_SCORE:
        # White on white: smoothed more, so that a much finer step still stands above the noise.
        smooth = cv2.GaussianBlur(cv2.medianBlur(lab, 5), (0, 0), 1.5)
        fine = float(np.clip(2.5 * backdrop.noise, 0.8, threshold / 2))
        second, second_score = _cut(smooth, backdrop, fine)
        if second_score > score:
            best, score, lab, threshold = second, second_score, smooth, fine
    if _crossing_lines(best) > 1:
        raise _refusal("lines run across it to the image's border")
    distance = _distance(lab, backdrop)
    shape = (image_u8.shape[0], image_u8.shape[1])
    return Proposal(best, score, _candidates(distance, threshold), distance, raw, backdrop, shape)


def at_work_size(image_u8: np.ndarray) -> np.ndarray:
    """The photograph (uint8 HW3) reduced to a longer side of `WORK_SIDE_PX`; a smaller one as it is."""
    height, width = image_u8.shape[:2]
    scale = min(1.0, WORK_SIDE_PX / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return image_u8 if scale == 1 else cv2.resize(image_u8, size, interpolation=cv2.INTER_AREA)


def _candidates(distance: np.ndarray, threshold: float) -> np.ndarray:
    """Bool HW: pixels of the backdrop's colour; beside strong edges, compression may have moved it further.

    distance: float32 HW, ΔE to the backdrop. threshold: in ΔE.
    """
    halo = HALO * cv2.dilate(distance, np.ones((17, 17), np.uint8))
    return np.asarray(distance < np.maximum(threshold, halo))


def _fit_backdrop(lab: np.ndarray, where: np.ndarray, tolerance: float) -> Backdrop:
    """Fits a smooth backdrop to the colours of the pixels `where` (bool HW). lab: float32 HW3. tolerance: in ΔE*ab.

    Raises: RowError, rejected `no_plain_background`, where the pixels do not follow one smooth surface.
    """
    surface = fit_surface(lab, tolerance, where)
    share, noise = surface.plain, surface.noise
    if share < MIN_PLAIN_BORDER:
        raise _refusal(f"only {share:.0%} of the border has one smooth colour within {tolerance:g} ΔE")
    if noise > tolerance / 4:
        raise _refusal(f"the border is textured: its colours spread by {noise:.1f} ΔE, at most {tolerance / 4:.1f}")
    light, red_green, yellow_blue = np.ptp(surface.lab[::16, ::16], axis=(0, 1))
    tint, chroma = float(np.hypot(red_green, yellow_blue)), float(np.hypot(surface.center[1], surface.center[2]))
    if light > MAX_GRADING or tint > MAX_TINT_GRADING + 0.6 * chroma:  # a coloured cloth pales as it darkens
        raise _refusal(f"the border changes by {light:.0f} in L* and {tint:.0f} in a*b*")
    return Backdrop(surface.lab, noise)


def _refusal(why: str) -> RowError:
    """The rejection `no_plain_background`, which names the setting that decides."""
    detail = f"no plain background: {why} (segmentation.background_tolerance)"
    return RowError("no_plain_background", detail)


def _distance(lab: np.ndarray, backdrop: Backdrop) -> np.ndarray:
    """float32 HW: ΔE*ab between each pixel and the backdrop."""
    distance: np.ndarray = np.linalg.norm(lab - backdrop.lab, axis=-1)
    return distance


def _disk(radius: int) -> np.ndarray:
    """uint8: 1 on a disk of 2 · radius + 1 pixels across, as cv2's morphology takes it."""
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))


def _flood(candidate: np.ndarray, radius: int) -> np.ndarray:
    """Bool HW: the part of `candidate` that a disk of this radius reaches from the image's border.

    A disk, not a pixel: a gap in the product's contour that is narrower than the disk lets nothing in.
    """
    wide = cv2.erode(candidate.astype(np.uint8), _disk(radius))
    _, labels = cv2.connectedComponents(wide, connectivity=4)
    rim = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    reached = np.isin(labels, np.setdiff1d(rim, [0])).astype(np.uint8)
    flooded: np.ndarray = (cv2.dilate(reached, _disk(radius + 1)) > 0) & candidate
    return flooded


def _cut(lab: np.ndarray, backdrop: Backdrop, threshold: float) -> tuple[np.ndarray, float]:
    """One attempt at one threshold (ΔE): flood, specks, holes, shadow. Returns: product, bool HW, and its score."""
    distance = _distance(lab, backdrop)
    candidate = _candidates(distance, threshold)
    background = _flood(candidate, radius=2)
    product = _without_specks(~background)
    product &= ~_holes(product, candidate, distance, max(1.0, 2 * backdrop.noise))
    best, score = product, support(product, lab, backdrop.noise)
    for shadow in ground_shadows(product, lab, backdrop.lab):
        if score >= CLEAR_SCORE:
            break
        rest = _without_specks(product & ~shadow)
        rest_score = support(rest, lab, backdrop.noise)
        if rest_score > score:  # then the contour left the shadow; into a grey product, it would lose its clear edges
            best, score = rest, rest_score
    return best, score


def _without_specks(product: np.ndarray) -> np.ndarray:
    """Bool HW: `product` without pieces smaller than `MIN_SPECK`."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(product.astype(np.uint8), connectivity=8)
    keep = stats[:, cv2.CC_STAT_AREA] >= MIN_SPECK * product.size
    keep[0] = False
    kept: np.ndarray = keep[labels] if count > 1 else np.zeros_like(product)
    return kept


def _without_rim_pieces(alpha: np.ndarray) -> np.ndarray:
    """The alpha without pieces at the image's border that are small beside the product: they belong to the backdrop."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats((alpha > 0).astype(np.uint8), connectivity=8)
    rim = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    areas = stats[:, cv2.CC_STAT_AREA]
    dropped = np.isin(np.arange(count), rim) & (areas < MIN_RIM_PIECE * areas[1:].max(initial=0))
    dropped[0] = False
    rest: np.ndarray = np.where(dropped[labels], 0, alpha)
    return rest


def _holes(product: np.ndarray, candidate: np.ndarray, distance: np.ndarray, close: float) -> np.ndarray:
    """Bool HW: enclosed pixels through which the backdrop shows, as in the handle of a mug.

    A hole has exactly the backdrop's colour, nothing inside, and a wall to the outside that is thin beside its width.
    A white print or label has more product around it, or is not quite the backdrop's white.
    close: ΔE up to which a colour is exactly the backdrop's.
    """
    holes = np.zeros_like(product)
    enclosed = cv2.morphologyEx((product & candidate).astype(np.uint8), cv2.MORPH_OPEN, _disk(1))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(enclosed, connectivity=4)
    if count == 1:
        return holes
    to_outside = cv2.distanceTransform(np.pad(product, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    for index in range(1, count):
        if stats[index, cv2.CC_STAT_AREA] < MIN_HOLE * product.size:
            continue
        hole = (labels == index).astype(np.uint8)
        core = cv2.erode(hole, _disk(2)) > 0  # the rim is a blend with the product's colour
        values = distance[core] if core.any() else distance[hole > 0]
        if np.median(values) > close or np.percentile(values, 75) > 2 * close:
            continue
        wall = float(to_outside[hole > 0].min())
        contours, tree = cv2.findContours(hole, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        islands = sum(cv2.contourArea(c) for c, node in zip(contours, tree[0], strict=True) if node[3] >= 0)
        area = np.count_nonzero(hole)
        if wall <= MAX_WALL * np.sqrt(area) and islands <= 0.02 * area:
            holes |= cv2.dilate(hole, _disk(1)) > 0
    opened: np.ndarray = holes & candidate
    return opened


def _soft_edge(product: np.ndarray, raw: np.ndarray, backdrop: Backdrop) -> np.ndarray:
    """uint8 HW alpha: 255 inside, 0 outside; at the edge, the pixel's place between backdrop and product colour."""
    mask = product.astype(np.uint8)
    core = cv2.erode(mask, _disk(2), borderType=cv2.BORDER_REPLICATE)
    difference = raw - backdrop.lab
    weight = cv2.blur(core.astype(np.float32), (9, 9))
    inner = cv2.blur(difference * core[..., None], (9, 9)) / np.maximum(weight, 1e-6)[..., None]
    strength = (inner**2).sum(axis=-1)
    unmixed = (difference * inner).sum(axis=-1) / np.maximum(strength, 1e-6)
    feathered = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 0.8)
    # Where product and backdrop hardly differ, unmixing would amplify noise: the feathered mask is used there.
    sure = (weight > 0) & (strength > max(10.0, 6 * backdrop.noise) ** 2)
    alpha = np.where(sure, np.clip(unmixed * 1.1 - 0.05, 0, 1), feathered)
    alpha = np.where(core > 0, 1.0, np.where(cv2.dilate(mask, _disk(1)) > 0, alpha, 0.0))
    return np.round(alpha * 255).astype(np.uint8)


def support(product: np.ndarray, lab: np.ndarray, noise: float) -> float:
    """Score of a contour, 0 to 1: 1 where all of it has a clear step in colour, 0.5 where a twelfth of it has none.

    product: bool HW. lab: float32 HW3, CIE Lab. noise: of the backdrop, in ΔE. An empty product has 0.
    A flood that ate into a pale product, or a mask around a stretch of texture, has a contour without a step.
    """
    if not product.any():
        return 0.0
    left, top, width, height = cv2.boundingRect(product.astype(np.uint8))
    around = (slice(max(0, top - 8), top + height + 8), slice(max(0, left - 8), left + width + 8))
    product, lab = product[around], lab[around]
    contour = (cv2.dilate(product.astype(np.uint8), _disk(1)) > 0) & ~product
    if not contour.any():
        return 0.0
    inside, outside = _local_mean(lab, product), _local_mean(lab, ~product)
    step = np.linalg.norm(inside - outside, axis=-1)[contour]
    unsupported = float((step <= max(2.0, 4 * noise)).mean())
    return max(0.0, 1 - 6 * unsupported)


def _local_mean(lab: np.ndarray, where: np.ndarray) -> np.ndarray:
    """float32 HW3: mean colour of the pixels `where` (bool HW) in the 7 × 7 around each pixel."""
    weight = cv2.blur(where.astype(np.float32), (7, 7))[..., None]
    mean: np.ndarray = cv2.blur(lab * where[..., None].astype(np.float32), (7, 7)) / np.maximum(weight, 1e-6)
    return mean


def _crossing_lines(product: np.ndarray) -> int:
    """Number of the image's sides that only thin lines of the product reach: tile joints, seams, cables of a scene."""
    radius = max(2, round(0.008 * min(product.shape)))
    solid = cv2.morphologyEx(product.astype(np.uint8), cv2.MORPH_OPEN, _disk(radius)) > 0
    band = 4 * radius
    touches = [product[0].any(), product[-1].any(), product[:, 0].any(), product[:, -1].any()]
    reaches = [solid[:band].any(), solid[-band:].any(), solid[:, :band].any(), solid[:, -band:].any()]
    return sum(bool(touch and not reach) for touch, reach in zip(touches, reaches, strict=True))
