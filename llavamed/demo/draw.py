"""Draw a phantom picture from its truth.

`draw(truth, rng, size)` gives an RGB array. A picture is a canvas of smooth shapes on the plane
[-1, 1] x [-1, 1] (x to the right, y down): first the anatomy with random proportions, then the
finding inside its organ, then the look of the modality (noise, exposure, blur, stain). One function
an anatomy; the table `ANATOMY` maps (domain, organ) to it, `DOMAIN_LOOK` finishes the picture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageFilter

from llavamed.demo.truth import Truth

Rng = np.random.Generator
Array = np.ndarray

RADIUS = {"small": (0.065, 0.085), "large": (0.17, 0.21), "": (0.07, 0.09)}  # of a round lesion
COLUMN = {"left": 1.0, "right": -1.0}  # the patient's left is on the right of the picture


@dataclass
class Canvas:
    """A float RGB picture, (size, size, 3) in 0-1, with its coordinate grids."""

    size: int
    rgb: Array = field(init=False)
    x: Array = field(init=False)
    y: Array = field(init=False)

    def __post_init__(self) -> None:
        axis = np.linspace(-1, 1, self.size, dtype=np.float32)
        self.x, self.y = np.meshgrid(axis, axis)
        self.rgb = np.zeros((self.size, self.size, 3), np.float32)

    def fill(self, mask: Array, colour: float | tuple[float, float, float]) -> None:
        self.rgb += mask[..., None] * (np.asarray(colour, np.float32) - self.rgb)

    def ellipse(self, cx: float, cy: float, rx: float, ry: float, angle: float = 0.0, soft: float = 0.06) -> Array:
        """A mask, 1 inside and 0 outside, with an edge `soft` radii wide."""
        mask = np.zeros((self.size, self.size), np.float32)
        rows, columns = self._around(cx, cy, max(rx, ry) * (1 + soft))
        dx, dy = self.x[rows, columns] - cx, self.y[rows, columns] - cy
        if angle:
            cos, sin = np.cos(angle), np.sin(angle)
            dx, dy = dx * cos + dy * sin, dy * cos - dx * sin
        distance = np.sqrt((dx / rx) ** 2 + (dy / ry) ** 2)
        mask[rows, columns] = np.clip((1 - distance) / soft + 0.5, 0, 1)
        return mask

    def blob(
        self, colour: float | tuple[float, float, float],
        cx: float, cy: float, rx: float, ry: float, angle: float = 0.0, soft: float = 0.06,
    ) -> Array:  # fmt: skip
        """Paint an ellipse (its box alone, which is what makes small lesions cheap) and give its mask."""
        mask = self.ellipse(cx, cy, rx, ry, angle, soft)
        box = self._around(cx, cy, max(rx, ry) * (1 + soft))
        part = self.rgb[box]
        part += mask[box][..., None] * (np.asarray(colour, np.float32) - part)
        return mask

    def _around(self, cx: float, cy: float, reach: float) -> tuple[slice, slice]:
        def span(centre: float) -> slice:
            low, high = ((centre + sign * reach + 1) / 2 * (self.size - 1) for sign in (-1, 1))
            return slice(max(0, int(low)), max(0, int(high) + 2))

        return span(cy), span(cx)


def _noise(canvas: Canvas, rng: Rng, cells: int) -> Array:
    """Smooth noise in -1..1 with about `cells` bumps across, (size, size)."""
    coarse = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((canvas.size, canvas.size), Image.Resampling.BICUBIC))


def _spots(rng: Rng, count: int, radius: float, inside: tuple[float, float, float, float]) -> list[tuple[float, float]]:
    """`count` centres in the ellipse (cx, cy, rx, ry), at least 2.6 radii apart."""
    cx, cy, rx, ry = inside
    centres: list[tuple[float, float]] = []
    reach = 0.9
    while len(centres) < count:
        for _ in range(60):
            angle, r = rng.uniform(0, 2 * np.pi), np.sqrt(rng.uniform(0, 1)) * reach
            spot = cx + rx * r * np.cos(angle), cy + ry * r * np.sin(angle)
            if all(np.hypot(spot[0] - a, spot[1] - b) > 2.6 * radius for a, b in centres):
                centres.append(spot)
                break
        else:
            centres, reach = [], reach + 0.05  # too tight: start over in a slightly larger ellipse
    return centres


def _radius(truth: Truth, rng: Rng, scale: float = 1.0) -> float:
    return float(rng.uniform(*RADIUS[truth.size])) * scale


def _chest(canvas: Canvas, truth: Truth, rng: Rng) -> None:
    c, wide = canvas, rng.uniform(0.94, 1.04)
    c.blob(0.42, 0, 0.25, 0.98 * wide, 1.25)
    lungs = {}
    for side, column in COLUMN.items():
        inside = (column * 0.42 * wide, -0.08, 0.31 * wide, 0.66 * rng.uniform(0.95, 1.05))
        lungs[side] = (inside, c.ellipse(*inside, soft=0.12))
        c.fill(lungs[side][1], 0.14)
    c.blob(0.6, 0, 0, 0.13, 1.2, soft=0.25)  # spine and mediastinum
    c.blob(0.62, 0.15, 0.28, 0.27 * wide, 0.3, soft=0.25)  # heart, to the patient's left
    ribs = 0.5 + 0.5 * np.sin((c.y + 0.25 * np.abs(c.x) + rng.uniform(0, 0.3)) * 24)
    c.rgb += (0.09 * ribs * (np.abs(c.x) < 0.85))[..., None]
    for side in lungs:
        c.fill(c.ellipse(COLUMN[side] * 0.42, 0.95, 0.45, 0.36, soft=0.1), 0.6)  # diaphragm
    if truth.normal:
        return
    (cx, cy, rx, ry), lung = lungs[truth.side]
    if truth.finding == "nodule":
        radius = _radius(truth, rng, 0.88)
        outer = cx + COLUMN[truth.side] * 0.05  # clear of the heart and the hilum
        for x, y in _spots(rng, truth.count, radius, (outer, cy - 0.06, rx - radius - 0.04, 0.4)):
            c.blob(rng.uniform(0.8, 0.9), x, y, radius, radius * rng.uniform(0.9, 1.1), soft=0.2)
    elif truth.finding == "effusion":
        level = cy + ry * (rng.uniform(0.32, 0.42) if truth.size == "small" else rng.uniform(-0.25, -0.1))
        meniscus = level - 0.1 * ((c.x - cx) / rx) ** 2
        c.fill(lung * np.clip((c.y - meniscus) / 0.06, 0, 1), 0.68)
    else:  # opacity: a hazy patch, without an edge
        reach = 0.14 if truth.size == "small" else 0.3
        x, y = cx + rng.uniform(-0.06, 0.06), cy + rng.uniform(-0.3, 0.1)
        haze = c.ellipse(x, y, reach, reach * 1.15, soft=1.1) * (0.75 + 0.25 * _noise(c, rng, 14))
        c.fill(np.clip(haze, 0, 1) * 0.9, 0.72)


def _head(canvas: Canvas, rng: Rng, rim: float, brain: float, ventricle: float, folds: float) -> tuple[float, float]:
    """Skull, brain and ventricles; gives the brain's half axes."""
    c, rx, ry = canvas, rng.uniform(0.68, 0.76), rng.uniform(0.82, 0.9)
    c.blob(rim, 0, 0, rx + 0.1, ry + 0.1, soft=0.03)
    c.blob(0.05, 0, 0, rx + 0.03, ry + 0.03, soft=0.03)
    tissue = c.blob(brain, 0, 0, rx, ry, soft=0.04)
    c.rgb += (folds * _noise(c, rng, 26) * tissue)[..., None]
    c.fill(tissue * (np.abs(c.x) < 0.012), 0.15)  # midline
    for column in (-1, 1):
        c.blob(ventricle, column * 0.13, -0.02, 0.07, 0.24, column * 0.25, soft=0.15)
    return rx, ry


def _in_half(truth: Truth, rx: float, ry: float) -> tuple[float, float, float, float]:
    return COLUMN[truth.side] * rx * 0.55, 0.0, rx * 0.18, ry * 0.5


def _ct_brain(canvas: Canvas, truth: Truth, rng: Rng) -> None:
    rx, ry = _head(canvas, rng, rim=0.98, brain=0.42, ventricle=0.2, folds=0.03)
    if truth.finding == "haemorrhage":
        radius = _radius(truth, rng)
        ((x, y),) = _spots(rng, 1, radius, _in_half(truth, rx, ry))
        canvas.blob(0.86, x, y, radius, radius * rng.uniform(1.0, 1.35), rng.uniform(0, 3), soft=0.15)


def _mri_brain(canvas: Canvas, truth: Truth, rng: Rng) -> None:
    rx, ry = _head(canvas, rng, rim=0.62, brain=0.5, ventricle=0.95, folds=0.15)
    if truth.normal:
        return
    radius = _radius(truth, rng, 1.1)
    ((x, y),) = _spots(rng, 1, radius, _in_half(truth, rx, ry))
    if truth.finding == "tumour":  # a bright ring around a dark core
        canvas.blob(0.98, x, y, radius, radius, soft=0.15)
        canvas.blob(0.12, x, y, radius * 0.55, radius * 0.55, soft=0.2)
    else:  # an infarct: a bright wedge, wide towards the skull
        column = COLUMN[truth.side]
        reach = 0.16 if truth.size == "small" else 0.34
        dx, dy = (canvas.x - (x - column * 0.12)) * column, canvas.y - y
        wedge = (dx > 0) & (dx < reach * 1.3) & (np.abs(dy) < dx * 0.75 + 0.02)
        brain = canvas.ellipse(0, 0, rx, ry)
        canvas.fill(wedge * brain, 0.9)


def _abdomen(canvas: Canvas, rng: Rng) -> None:
    c = canvas
    c.blob(0.55, 0, 0.05, rng.uniform(0.9, 0.98), rng.uniform(0.7, 0.78), soft=0.03)
    c.blob(0.24, 0, 0.05, 0.86, 0.67, soft=0.04)  # fat
    c.blob(0.4, 0, 0.05, 0.8, 0.61, soft=0.05)
    c.blob(0.97, 0, 0.48, 0.14, 0.12)  # vertebra
    c.blob(0.62, 0.02, 0.22, 0.07, 0.07)  # aorta


def _ct_kidney(canvas: Canvas, truth: Truth, rng: Rng) -> None:
    _abdomen(canvas, rng)
    for index in range(4):  # bowel loops
        canvas.blob(rng.uniform(0.25, 0.5), -0.45 + 0.3 * index, rng.uniform(-0.35, -0.2), 0.12, 0.1)
    bean = {}
    for side, column in COLUMN.items():
        bean[side] = (column * 0.46, 0.25 + rng.uniform(-0.03, 0.03), 0.2, 0.27)
        canvas.blob(0.68, *bean[side], column * 0.25)
        canvas.blob(0.4, column * 0.34, bean[side][1], 0.08, 0.09, soft=0.2)  # the hilum
    if truth.normal:
        return
    cx, cy, rx, ry = bean[truth.side]
    if truth.finding == "stone":
        for x, y in _spots(rng, truth.count, 0.055, (cx + COLUMN[truth.side] * 0.02, cy, rx * 0.55, ry * 0.75)):
            canvas.blob(1.0, x, y, 0.05, 0.05, soft=0.2)
    else:
        radius = _radius(truth, rng, 0.95)
        x, y = cx + COLUMN[truth.side] * rng.uniform(0.05, 0.1), cy + rng.uniform(-0.12, 0.12)
        canvas.blob(0.1, x, y, radius, radius, soft=0.1)


def _ct_liver(canvas: Canvas, truth: Truth, rng: Rng) -> None:
    _abdomen(canvas, rng)
    liver = (-0.28, -0.08, 0.47, 0.4)
    canvas.blob(0.63, *liver, rng.uniform(-0.25, -0.1))
    canvas.blob(0.15, 0.45, -0.2, 0.2, 0.15)  # stomach
    canvas.blob(0.58, 0.6, 0.15, 0.13, 0.2)  # spleen
    if truth.normal:
        return
    radius = _radius(truth, rng, 0.85)
    for x, y in _spots(rng, truth.count, radius, (-0.28, -0.08, 0.36 - radius * 0.6, 0.3 - radius * 0.6)):
        if truth.finding == "cyst":
            canvas.blob(0.12, x, y, radius, radius, soft=0.1)
        else:
            canvas.blob(0.95, x, y, radius, radius, soft=0.2)
            canvas.blob(0.5, x, y, radius * 0.5, radius * 0.5, soft=0.3)


def _mri_spine(canvas: Canvas, truth: Truth, rng: Rng) -> None:
    c, lean = canvas, rng.uniform(-0.08, 0.08)
    c.rgb += 0.3
    c.rgb += (0.12 * _noise(c, rng, 7))[..., None]
    bend = lean * np.cos(c.y * 2)
    canal = np.clip(1 - np.abs(c.x - 0.22 - bend) / 0.11, 0, 1) > 0
    c.fill(canal.astype(np.float32), 0.92)  # bright fluid, dark cord
    c.fill((np.abs(c.x - 0.24 - bend) < 0.035).astype(np.float32), 0.35)
    levels = np.arange(-0.8, 0.95, 0.36) + rng.uniform(-0.06, 0.06)
    for y in levels:
        shift = lean * np.cos(y * 2)
        block = (np.abs(c.x + 0.12 - shift) < 0.22) & (np.abs(c.y - y) < 0.125)
        c.fill(block.astype(np.float32), 0.66)
        c.fill(c.ellipse(-0.12 + shift, y + 0.18, 0.2, 0.045, soft=0.2), 0.5)
    if truth.finding == "disc herniation":
        for y in rng.choice(levels[:-1], truth.count, replace=False) + 0.18:
            c.blob(0.04, 0.2 + lean * np.cos(y * 2), y, 0.13, 0.075, soft=0.2)


_PINK, _PURPLE, _PALE = (0.9, 0.68, 0.78), (0.38, 0.2, 0.5), (0.97, 0.93, 0.95)


def _dots(
    canvas: Canvas, rng: Rng, count: int, radius: float, colour: tuple[float, float, float], where: Array
) -> None:
    """Nuclei: `count` dark dots at random where `where` is 1, stamped as a mask in one pass."""
    size, pixels = canvas.size, max(1, round(radius * canvas.size / 2))
    ys, xs = np.nonzero(where > 0.5)
    if len(ys) == 0:
        return
    chosen = rng.integers(len(ys), size=count)
    mask = np.zeros((size, size), np.float32)
    for dy in range(-pixels, pixels + 1):
        for dx in range(-pixels, pixels + 1):
            if dx * dx + dy * dy <= pixels * pixels:
                mask[np.clip(ys[chosen] + dy, 0, size - 1), np.clip(xs[chosen] + dx, 0, size - 1)] = 0.9
    canvas.fill(mask, colour)


def _histology_colon(canvas: Canvas, truth: Truth, rng: Rng) -> None:
    c, everywhere = canvas, np.ones((canvas.size, canvas.size), np.float32)
    c.fill(everywhere, _PINK)
    _dots(c, rng, 60, 0.012, _PURPLE, everywhere)
    step = rng.uniform(0.42, 0.5)
    offset = rng.uniform(0, step, 2)
    for row in range(-3, 4):
        for column in range(-3, 4):
            x = column * step + offset[0] + (row % 2) * step / 2
            y = row * step + offset[1]
            r = step * rng.uniform(0.34, 0.4)
            c.blob(_PURPLE, x, y, r, r * rng.uniform(0.9, 1.1))
            c.blob((0.93, 0.75, 0.85), x, y, r * 0.78, r * 0.78)
            c.blob(_PALE, x, y, r * 0.35, r * 0.4)
    if truth.finding == "inflammation":
        for x, y in _spots(rng, truth.count, 0.2, (0, 0, 0.7, 0.7)):
            focus = c.ellipse(x, y, 0.19, 0.19, soft=0.4)
            c.fill(focus * 0.75, _PINK)
            _dots(c, rng, 110, 0.016, (0.16, 0.1, 0.35), focus)
    elif truth.finding == "tumour":
        reach = rng.uniform(0.26, 0.32) if truth.size == "small" else rng.uniform(0.62, 0.72)
        mass = c.ellipse(rng.uniform(-0.2, 0.2), rng.uniform(-0.2, 0.2), reach, reach, soft=0.15)
        c.fill(mass * 0.95, (0.6, 0.36, 0.62))
        _dots(c, rng, int(900 * reach**2), 0.028, (0.25, 0.1, 0.38), mass)


def _histology_liver(canvas: Canvas, truth: Truth, rng: Rng) -> None:
    c, everywhere = canvas, np.ones((canvas.size, canvas.size), np.float32)
    c.fill(everywhere, (0.86, 0.55, 0.62))
    cords = np.sin(c.x * 26 + 3 * _noise(c, rng, 5)) * np.sin(c.y * 26 + 3 * _noise(c, rng, 5))
    c.fill((cords > 0.72).astype(np.float32), _PALE)  # sinusoids
    dead = np.zeros_like(cords)
    if truth.finding == "necrosis":
        reach = rng.uniform(0.24, 0.3) if truth.size == "small" else rng.uniform(0.62, 0.72)
        wobble = 1 + 0.2 * _noise(c, rng, 6)
        dead = c.ellipse(rng.uniform(-0.2, 0.2), rng.uniform(-0.2, 0.2), reach, reach, soft=0.1) * wobble
        c.fill(np.clip(dead, 0, 1), (0.95, 0.85, 0.72))
    _dots(c, rng, 420, 0.02, _PURPLE, 1 - np.clip(dead, 0, 1))


_SPECIMEN = {"liver": (0.45, 0.2, 0.13), "kidney": (0.6, 0.24, 0.2), "spleen": (0.36, 0.14, 0.24)}


def _gross(canvas: Canvas, truth: Truth, rng: Rng) -> None:
    c = canvas
    c.fill(np.ones_like(c.x), (0.2, 0.42, 0.52))
    ticks = (np.abs(c.y - 0.9) < 0.05) & (np.sin(c.x * 60) > 0)
    c.fill((np.abs(c.y - 0.9) < 0.07).astype(np.float32), 0.92)
    c.fill(ticks.astype(np.float32), 0.1)  # a ruler
    colour = _SPECIMEN[truth.organ]
    if truth.organ == "liver":
        body = c.ellipse(0.0, -0.1, 0.82, 0.55, rng.uniform(-0.12, 0.05), soft=0.04)
        body = np.maximum(body, c.ellipse(-0.3, -0.05, 0.52, 0.62, soft=0.04))
    elif truth.organ == "kidney":
        body = c.ellipse(0, -0.1, 0.5, 0.72, rng.uniform(-0.15, 0.15), soft=0.04)
        body = body * (1 - c.ellipse(0.55, -0.1, 0.2, 0.24, soft=0.1))
    else:
        body = c.ellipse(0, -0.1, 0.72, 0.42, rng.uniform(0.2, 0.5), soft=0.04)
    c.fill(body, colour)
    c.rgb += (0.06 * _noise(c, rng, 18) * body)[..., None]
    c.fill(c.ellipse(-0.25, -0.35, 0.2, 0.08, -0.5, soft=1.0) * body * 0.35, 1.0)  # wet gloss
    if truth.normal:
        return
    radius = _radius(truth, rng, 1.05)
    centres = _spots(rng, truth.count, radius, (-0.05, -0.1, 0.42 - radius * 0.7, 0.42 - radius * 0.7))
    for x, y in centres:
        if truth.finding == "tumour":
            c.blob((0.93, 0.87, 0.66), x, y, radius, radius * rng.uniform(0.9, 1.1), soft=0.15)
        elif truth.finding == "haemorrhage":
            c.blob((0.1, 0.0, 0.02), x, y, radius * 1.15, radius, rng.uniform(0, 3), soft=0.25)
        else:
            c.blob((0.8, 0.66, 0.6), x, y, radius * 1.1, radius * 1.1, soft=0.12)


ANATOMY: dict[tuple[str, str], Callable[[Canvas, Truth, Rng], None]] = {
    ("chest_xray", "lung"): _chest,
    ("ct_scan", "brain"): _ct_brain,
    ("ct_scan", "kidney"): _ct_kidney,
    ("ct_scan", "liver"): _ct_liver,
    ("mri", "brain"): _mri_brain,
    ("mri", "spine"): _mri_spine,
    ("histology", "colon"): _histology_colon,
    ("histology", "liver"): _histology_liver,
    ("gross", "kidney"): _gross,
    ("gross", "liver"): _gross,
    ("gross", "spleen"): _gross,
}


@dataclass(frozen=True)
class Look:
    """How a modality finishes a picture: grain (standard deviation), blur (pixels at 160), exposure spread."""

    grain: float
    blur: float
    exposure: float


DOMAIN_LOOK = {
    "chest_xray": Look(0.03, 0.9, 0.1),
    "ct_scan": Look(0.035, 0.6, 0.06),
    "mri": Look(0.03, 0.8, 0.08),
    "histology": Look(0.02, 0.5, 0.05),
    "gross": Look(0.015, 0.6, 0.08),
}


def draw(truth: Truth, rng: Rng, size: int = 160) -> Array:
    """The picture of `truth` as (size, size, 3) uint8."""
    canvas = Canvas(size)
    ANATOMY[truth.domain, truth.organ](canvas, truth, rng)
    look = DOMAIN_LOOK[truth.domain]
    rgb = canvas.rgb * (1 + rng.uniform(-1, 1) * look.exposure) + rng.uniform(-1, 1) * look.exposure / 2
    coloured = truth.domain in ("histology", "gross")
    rgb = rgb + rng.normal(0, look.grain, (size, size, 3 if coloured else 1))
    picture = Image.fromarray((np.clip(rgb, 0, 1) * 255).astype(np.uint8))
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(look.blur * size / 160)))
