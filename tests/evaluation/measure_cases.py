"""Planted ads for the measures: a product on white with a printed label, and what may become of it in a scene."""

import cv2
import numpy as np

from refadgen.evaluation.measures.picture import AdPicture

HEIGHT, WIDTH = 320, 256
LABEL = "AURORA"


def product(label: str = LABEL, *, hue: float = 0.0, other: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """A box with a label and a cap on white, and its mask. hue: degrees. other: another product of another shape."""
    canvas = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    if other:
        cv2.ellipse(mask, (128, 170), (70, 90), 0, 0, 360, 255, -1)
        canvas[mask > 0] = (190, 60, 40)
        cv2.circle(canvas, (128, 150), 30, (250, 220, 80), -1)
        return canvas, mask
    cv2.rectangle(mask, (58, 80), (198, 270), 255, -1)
    cv2.rectangle(mask, (98, 50), (158, 80), 255, -1)
    canvas[mask > 0] = (40, 90, 170)
    cv2.rectangle(canvas, (98, 50), (158, 80), (220, 180, 60), -1)
    cv2.rectangle(canvas, (66, 140), (190, 200), (245, 245, 240), -1)
    if label:
        (text_width, _), _ = cv2.getTextSize(label, cv2.FONT_HERSHEY_SIMPLEX, 0.8, 2)
        cv2.putText(
            canvas, label, (128 - text_width // 2, 178), cv2.FONT_HERSHEY_SIMPLEX, 0.8, (20, 20, 60), 2, cv2.LINE_AA
        )
    if hue:
        hsv = cv2.cvtColor(canvas, cv2.COLOR_RGB2HSV)
        hsv[..., 0] = (hsv[..., 0].astype(int) + round(hue / 2)) % 180
        canvas = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    return canvas, mask


def scene() -> np.ndarray:
    """A wall above a table, with some grain."""
    rng = np.random.default_rng(0)
    picture = np.empty((HEIGHT, WIDTH, 3), np.float32)
    picture[:220], picture[220:] = (205, 190, 170), (120, 85, 60)
    grain = cv2.GaussianBlur(rng.normal(0, 30, (HEIGHT, WIDTH, 3)).astype(np.float32), (0, 0), 3)
    return np.clip(picture + grain, 0, 255).astype(np.uint8)


def in_scene(canvas: np.ndarray, mask: np.ndarray, background: np.ndarray | None = None) -> np.ndarray:
    background = scene() if background is None else background
    return np.where(mask[..., None] > 127, canvas, background)


def moved(image: np.ndarray, *, share: float = 0.0, scale: float = 1.0, fill: int = 255) -> np.ndarray:
    """Shifted to the right by a share of the longer side, scaled about the product's middle."""
    center = (128.0, 165.0)
    matrix = cv2.getRotationMatrix2D(center, 0, scale)
    matrix[0, 2] += share * HEIGHT
    value = fill if image.ndim == 2 else (fill,) * 3
    return cv2.warpAffine(image, matrix, (WIDTH, HEIGHT), flags=cv2.INTER_LINEAR, borderValue=value)


def changes() -> dict[str, np.ndarray]:
    """Ads of the product by the change: the first is the product itself in the scene."""
    canvas, mask = product()
    true = in_scene(canvas, mask)
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 1, true.shape)
    found = {"the product itself": true}
    for strength in (5, 15, 45):
        found[f"noise of {strength}"] = np.clip(true + strength * noise, 0, 255).astype(np.uint8)
    found["wrong product"] = in_scene(*product(other=True))
    found["another label"] = in_scene(*product("ZEPHYR"))
    for share in (0.02, 0.05, 0.10):
        found[f"shifted by {share:.0%}"] = in_scene(moved(canvas, share=share), moved(mask, share=share, fill=0))
    found["scaled by 5 %"] = in_scene(moved(canvas, scale=1.05), moved(mask, scale=1.05, fill=0))
    found["hue turned by 10°"] = in_scene(product(hue=10)[0], mask)
    mirrored = canvas.copy()
    mirrored[140:201, 66:191] = canvas[140:201, 66:191][:, ::-1]
    found["label mirrored"] = in_scene(mirrored, mask)
    found["label removed"] = in_scene(product("")[0], mask)
    found["scene blurred"] = in_scene(canvas, mask, cv2.GaussianBlur(scene(), (0, 0), 6))
    return found


def pictures(ads: dict[str, np.ndarray], prompt: str = "a bottle on a table") -> list[AdPicture]:
    canvas, mask = product()
    return [
        AdPicture(ad_u8=ad, canvas_u8=canvas, mask_u8=mask, prompt=prompt, run="r", sku="own") for ad in ads.values()
    ]
