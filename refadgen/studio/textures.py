"""Procedural pictures of surfaces and walls: sRGB uint8 [H, W, 3], drawn from a seed, tileable in both directions."""

import numpy as np

TILE_PX = 384
TILE_UNITS = 3.0
"""Side of one tile on the floor, in product heights."""


def fractal_noise(rng: np.random.Generator, *, slope: float, stretch: float = 1.0, size: int = TILE_PX) -> np.ndarray:
    """Periodic noise float64 [size, size], mean 0, deviation 1.

    slope: of the amplitude spectrum, 0 white noise … 2 clouds. stretch: above 1 elongates it along x.
    """
    fy, fx = np.fft.fftfreq(size)[:, None] * size, np.fft.rfftfreq(size)[None] * size
    radius = np.hypot(fx * stretch, fy)
    radius[0, 0] = 1.0  # no division by zero; the mean is set to 0 below
    amplitude = radius**-slope
    amplitude[0, 0] = 0.0
    # Filtered in the spectrum, noise is periodic: tiles fit each other.
    spectrum = np.fft.rfft2(rng.standard_normal((size, size)))
    noise = np.fft.irfft2(spectrum * amplitude, s=(size, size))
    return np.asarray(noise / noise.std(), np.float64)


def _paint(base: tuple[float, float, float], *layers: tuple[np.ndarray, tuple[float, float, float]]) -> np.ndarray:
    """`base` colour (0–255) plus each layer's field [H, W] times its colour, as uint8."""
    image = np.array(base) + sum(field[..., None] * np.array(color) for field, color in layers)
    return np.asarray(np.clip(image, 0, 255), np.uint8)


def surface_texture(surface: str, seed: int) -> np.ndarray:
    """The picture of one of `scenes.SURFACES`."""
    rng = np.random.default_rng([seed, 5])
    warm = rng.uniform(-10, 10)
    y = np.arange(TILE_PX)[:, None] * np.ones((1, TILE_PX))
    if surface == "wooden table":
        planks = 6
        index = (y * planks // TILE_PX).astype(int)
        tone = rng.uniform(-1, 1, planks)[index]
        shift = rng.integers(TILE_PX, size=planks)
        grain = fractal_noise(rng, slope=1.2, stretch=14)
        grain = np.stack([np.roll(row, shift[i]) for i, row in zip(index[:, 0], grain, strict=True)])
        gap = ((y * planks) % TILE_PX < 5 * planks).astype(float)
        base = (138 + warm, 86 + warm, 48)
        return _paint(base, (tone, (16, 13, 9)), (grain, (17, 14, 10)), (gap, (-80, -55, -32)))
    if surface == "marble slab":
        vein = np.exp(-np.abs(fractal_noise(rng, slope=1.7) + 0.3 * fractal_noise(rng, slope=1.2)) * 9)
        cloud = fractal_noise(rng, slope=1.8)
        return _paint((226, 224, 222), (vein, (-110, -108, -100)), (cloud, (7, 7, 8)))
    if surface == "sand":
        ripple = np.sin(2 * np.pi * 9 * y / TILE_PX + 2.6 * fractal_noise(rng, slope=1.7))
        grit = fractal_noise(rng, slope=0.3)
        return _paint((224, 200, 154 + warm), (ripple, (6, 6, 6)), (grit, (14, 14, 13)))
    if surface == "grass":
        blades, patch = fractal_noise(rng, slope=0.75), fractal_noise(rng, slope=1.6)
        return _paint((72 + warm, 128, 38), (blades, (26, 38, 16)), (patch, (10, 12, 4)))
    if surface == "concrete":
        stain, grit = fractal_noise(rng, slope=1.5), fractal_noise(rng, slope=0.2)
        pores = (fractal_noise(rng, slope=0.9) > 2.4).astype(float)
        return _paint((150, 149, 146), (stain, (12, 12, 12)), (grit, (7, 7, 7)), (pores, (-45, -45, -45)))
    if surface == "snow":
        drift, sparkle = fractal_noise(rng, slope=1.9), fractal_noise(rng, slope=0.5)
        return _paint((233, 239, 248), (drift, (9, 7, 4)), (sparkle, (5, 4, 3)))
    if surface == "blue cloth":
        fold = fractal_noise(rng, slope=1.7, stretch=0.25)
        x = y.T
        weave = np.sin(2 * np.pi * 48 * x / TILE_PX) * np.sin(2 * np.pi * 48 * y / TILE_PX)
        return _paint((38, 76 + warm, 164), (fold, (11, 16, 26)), (weave, (9, 12, 18)))
    if surface == "dark slate":
        layer, stain = fractal_noise(rng, slope=1.1, stretch=3), fractal_noise(rng, slope=1.6)
        return _paint((56, 60, 66), (layer, (11, 11, 12)), (stain, (7, 8, 9)))
    raise ValueError(f"{surface!r} is no surface of the studio")


_PAINTS = {
    "white wall": (236, 235, 231),
    "pink wall": (232, 138, 168),
    "green wall": (96, 168, 112),
    "blue wall": (82, 134, 206),
    "yellow wall": (238, 200, 74),
    "grey wall": (138, 140, 144),
}


def wall_texture(wall: str, seed: int) -> np.ndarray:
    """The picture of one of `scenes.WALLS`, except the open sky, which `sky_picture` paints."""
    rng = np.random.default_rng([seed, 6])
    if wall == "leafy hedge":
        leaves, depth = fractal_noise(rng, slope=0.9), fractal_noise(rng, slope=0.5)
        holes = (fractal_noise(rng, slope=1.0) < -1.0).astype(float)
        return _paint((44, 92, 36), (leaves, (22, 34, 14)), (depth, (12, 20, 8)), (holes, (-26, -44, -22)))
    if wall not in _PAINTS:
        raise ValueError(f"{wall!r} is no wall of the studio")
    base = np.clip(np.array(_PAINTS[wall]) + rng.uniform(-9, 9, 3), 0, 250)
    plaster = fractal_noise(rng, slope=1.3)
    red, green, blue = map(float, base)
    return _paint((red, green, blue), (plaster, (3.5, 3.5, 3.5)))


_SKIES = {
    # light: (zenith, horizon, cloud), linear RGB
    "soft studio light": ((0.22, 0.45, 0.85), (0.62, 0.78, 0.95), (0.95, 0.96, 0.98)),
    "morning sun from the left": ((0.16, 0.42, 0.88), (0.80, 0.84, 0.88), (1.0, 0.96, 0.90)),
    "evening sun from the right": ((0.20, 0.22, 0.50), (0.95, 0.48, 0.18), (1.0, 0.62, 0.40)),
    "spotlight from above": ((0.010, 0.014, 0.045), (0.035, 0.045, 0.10), (0.05, 0.055, 0.09)),
}


def sky_picture(light: str, seed: int, *, horizon: float, height: int, width: int) -> np.ndarray:
    """The sky behind everything, linear float32 [height, width, 3].

    horizon: the end of the ground, in pixel rows from the top; the sky is paler near it.
    """
    rng = np.random.default_rng([seed, 7])
    zenith, low, cloud = (np.array(color) for color in _SKIES[light])
    rows = (np.arange(height) + 0.5) / height
    lift = np.clip((horizon / height - rows) / 0.8, 0, 1) ** 0.6
    gradient = low + (zenith - low) * lift[:, None]
    noise = fractal_noise(rng, slope=1.8, stretch=0.5, size=256)
    row = np.linspace(0, 150, height).astype(int)[:, None]
    column = np.linspace(0, 100, width).astype(int)[None]
    cover = np.clip(0.45 * noise[row, column] - 0.1, 0, 0.85)[..., None]
    return np.asarray(gradient[:, None] * (1 - cover) + cloud * cover, np.float32)
