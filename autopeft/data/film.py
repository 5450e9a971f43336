"""Draws one synthetic chest film with numpy: anatomy, lesions, scanner. Nothing is read."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Film:
    """What a film shows.

    Attributes:
        female: changes the rib cage and the soft tissue.
        age: years; changes heart, bones, aorta and the depth of breath.
        scanner: ``A`` (fixed), ``B`` (old, hard contrast, collimated) or ``C`` (portable).
        nodule: one to three round shadows in the lungs.
        opacity: one or two patchy shadows in the lungs.
        effusion: fluid in one or both corners of the chest.
        contrast: factor on the darkness of the lesions.
        mark: whether the technician's mark is on the film.
        anatomy: randomness of the patient (the same in all their films).
        pose: randomness of how the patient stands.
        exposure: randomness of the exposure and the grain.
    """

    female: bool
    age: int
    scanner: str
    nodule: bool
    opacity: bool
    effusion: bool
    contrast: float
    mark: bool
    anatomy: np.random.Generator
    pose: np.random.Generator
    exposure: np.random.Generator


@dataclass(frozen=True)
class _Body:
    """Sizes of a patient in units of half the film."""

    width: float
    top: float
    base: tuple[float, float]  # height of the two halves of the diaphragm
    heart: tuple[float, float, float]  # x, half width, half height
    spine: float
    rib_gap: float
    bone: float


def draw(film: Film, size: int) -> npt.NDArray[np.uint8]:
    """The film as gray levels, uint8 [size, size]; air is dark, bone is bright."""
    body = _body(film)
    x, y = _posed(film, size)
    lung = _lungs(x, y, body)
    density = _soft_tissue(film, x, y, body)
    density -= 0.42 * lung
    density += lung * _vessels(film, x, y, size)
    density += _bones(x, y, lung, body)
    density = _heart(film, x, y, density, body)
    density += film.contrast * _lesions(film, x, y, lung, body, size)
    if film.effusion:
        density = _effusion(film, x, y, density, body)
    return _expose(film, density, size)


def _body(film: Film) -> _Body:
    """Sizes that depend on sex and age, and vary between patients."""
    r = film.anatomy.normal(size=8)
    old = (film.age - 55) / 35
    width = (0.74 if film.female else 0.81) + 0.03 * r[0]
    base = (0.56 if film.female else 0.62) - 0.04 * old + 0.05 * r[1]
    return _Body(
        width=width,
        top=-0.80 + 0.03 * r[2],
        base=(base - 0.04, base + 0.03 + 0.02 * r[3]),
        heart=(0.13 + 0.02 * r[4], 0.29 + 0.035 * old + 0.03 * r[5], 0.30 + 0.02 * r[6]),
        spine=0.02 * r[7],
        rib_gap=(0.165 if film.female else 0.18) + 0.004 * float(film.anatomy.normal()),
        bone=0.13 - 0.04 * old,
    )


@lru_cache(maxsize=4)
def _grid(size: int) -> tuple[Floats, Floats]:
    line = ((np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1).astype(np.float32)
    x, y = np.meshgrid(line, line)
    return x, y


def _posed(film: Film, size: int) -> tuple[Floats, Floats]:
    """Coordinates of the patient, who never stands quite straight: float32 [size, size] each."""
    x, y = _grid(size)
    r = film.pose.normal(size=4)
    angle, zoom = 0.03 * r[0], 1.06 + 0.03 * r[1]
    c, s = np.float32(zoom * np.cos(angle)), np.float32(zoom * np.sin(angle))
    return c * x + s * y + np.float32(0.03 * r[2]), c * y - s * x + np.float32(0.03 * r[3])


def _edge(distance: Floats, soft: float) -> Floats:
    """1 inside (distance < 0), 0 outside, a ramp of width ``soft`` between."""
    share: Floats = np.clip(0.5 - distance / np.float32(soft), 0, 1)
    return share


def _blob(x: Floats, y: Floats, at: tuple[float, float], radius: tuple[float, float]) -> Floats:
    """Squared distance from a center in units of the radii."""
    return ((x - np.float32(at[0])) / np.float32(radius[0])) ** 2 + (
        (y - np.float32(at[1])) / np.float32(radius[1])
    ) ** 2


def _smooth_noise(rng: np.random.Generator, cells: int, size: int) -> Floats:
    """Clouds with about ``cells`` bumps a side: float32 [size, size], spread near 1."""
    small = rng.normal(size=(cells, cells)).astype(np.float32)
    return np.asarray(Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC))


def _lungs(x: Floats, y: Floats, body: _Body) -> Floats:
    """Share of air [size, size]: two fields that narrow to the top, cut by the diaphragm."""
    field = np.zeros_like(x)
    for side, base in ((-1, body.base[0]), (1, body.base[1])):
        center, half = side * 0.50 * body.width, 0.41 * body.width
        height = (base + 0.22 - body.top) / 2
        middle = body.top + height
        narrowing = np.float32(0.30) * (y - np.float32(middle)) * np.float32(side)
        d = np.abs((x - np.float32(center) - narrowing * 0.35) / np.float32(half)) ** 2.6
        d = d + np.abs((y - np.float32(middle)) / np.float32(height)) ** 2.6
        dome = np.float32(base) + np.float32(0.9) * (x - np.float32(center)) ** 2 - y
        field = np.maximum(field, _edge(d - 1, 0.16) * _edge(-dome, 0.05))
    return field


def _soft_tissue(film: Film, x: Floats, y: Floats, body: _Body) -> Floats:
    """Trunk, shoulders, mediastinum, spine and breasts."""
    shoulder = np.float32(body.width + 0.17) - np.float32(0.5) * np.maximum(0, -0.55 - y)
    density = 0.08 + 0.50 * _edge(np.abs(x) - shoulder, 0.05)
    density += 0.10 * _edge(y - np.float32(body.base[1] + 0.05), -0.30)
    column = np.abs(x - np.float32(body.spine) * np.sin(3 * y))
    density += 0.10 * _edge(column - 0.085, 0.05)
    disks = (np.cos(y * np.float32(52)) > 0.72).astype(np.float32)
    density += 0.35 * body.bone * disks * _edge(column - 0.07, 0.03)
    fat = abs(float(film.anatomy.normal()))
    if film.female:
        for side in (-1, 1):
            at = (side * (0.47 + 0.02 * fat) * body.width / 0.74, body.base[0] - 0.12)
            d = _blob(x, y, at, (0.34 + 0.03 * fat, 0.32 + 0.03 * fat))
            density += (0.09 + 0.02 * fat) * _edge(d - 1, 0.30)
    return density


def _bones(x: Floats, y: Floats, lung: Floats, body: _Body) -> Floats:
    """Ribs (bright bands that fall to the side, brighter at their lower rim) and clavicles."""
    wide = np.abs(x)
    fall = np.float32(0.85) * (wide - 0.15) ** 2 - np.float32(0.25) * wide
    phase = (y - fall) / np.float32(body.rib_gap)
    phase = phase - np.floor(phase)
    band = _edge(np.abs(phase - 0.5) - 0.21, 0.14)
    rim = _edge(np.abs(phase - 0.69) - 0.03, 0.08)
    cage = _edge(wide - np.float32(body.width + 0.06), 0.06) * _edge(0.10 - wide, 0.08)
    cage = cage * _edge(y - np.float32(body.base[1]), 0.20)
    bones = body.bone * (0.45 + 0.55 * lung) * (0.8 * band + 0.6 * rim) * cage
    line = y - np.float32(body.top + 0.17) + np.float32(0.22) * (wide - 0.35)
    clavicle = _edge(np.abs(line) - 0.028, 0.03) * _edge(wide - np.float32(0.82), 0.06)
    return bones + 1.2 * body.bone * clavicle * _edge(0.07 - wide, 0.05)


def _vessels(film: Film, x: Floats, y: Floats, size: int) -> Floats:
    """Branching shadows from the hilum, some of them seen end-on, and fine clouds."""
    rng = film.anatomy
    shade = 0.035 * _smooth_noise(rng, max(4, size // 8), size)
    shade = shade + 0.03 * _smooth_noise(rng, 10, size)
    for side in (-1.0, 1.0):
        root = (side * 0.20, -0.02)
        near = np.exp(-_blob(x, y, root, (0.13, 0.22)))
        shade = shade + 0.12 * near
        for angle in rng.uniform(-1.3, 1.3, 6):
            along_x, along_y = side * np.cos(angle), np.sin(angle)
            bend = 0.25 * rng.normal()
            t = (x - np.float32(root[0])) * np.float32(along_x)
            t = t + (y - np.float32(root[1])) * np.float32(along_y)
            off = (y - np.float32(root[1])) * np.float32(along_x)
            off = off - (x - np.float32(root[0])) * np.float32(along_y) - np.float32(bend) * t * t
            thick = np.clip(0.030 - 0.030 * t, 0.004, 1)
            shade = shade + 0.13 * _edge(np.abs(off) - thick, 0.025) * _edge(-t, 0.05) * np.clip(
                1 - 1.3 * t, 0, 1
            )
    for _ in range(5):
        at = (float(rng.uniform(-0.6, 0.6)), float(rng.uniform(-0.5, 0.4)))
        radius = float(rng.uniform(0.016, 0.030))
        shade = shade + float(rng.uniform(0.12, 0.25)) * _edge(
            _blob(x, y, at, (radius, radius)) - 1, 0.8
        )
    return shade.astype(np.float32)


def _heart(film: Film, x: Floats, y: Floats, density: Floats, body: _Body) -> Floats:
    """Heart and great vessels lie in front of the lungs; an old aorta is wide and bright."""
    at, half, height = body.heart
    bottom = body.base[1] - 0.20
    tilted = y + np.float32(0.30) * (np.float32(at) - x)
    heart = _edge(_blob(x, tilted, (at, bottom), (half, height)) - 1, 0.30)
    middle = _edge(np.abs(x) - np.float32(0.13), 0.06) * _edge(y - np.float32(bottom + 0.1), 0.2)
    old = max(0.0, (film.age - 45) / 45)
    knob = _edge(_blob(x, y, (0.10 + 0.03 * old, -0.32), (0.11 + 0.03 * old, 0.16)) - 1, 0.8)
    shadow = np.maximum(np.maximum(heart, middle), 0.8 * knob)
    density = density * (1 - 0.85 * shadow) + 0.85 * shadow * np.maximum(density, 0.60)
    return density + 0.10 * old * knob * (_edge(_blob(x, y, (0.14, -0.32), (0.08, 0.08)) - 1, 0.4))


def _places(rng: np.random.Generator, count: int, body: _Body) -> list[tuple[float, float, float]]:
    """Centers inside the lungs and one more number for the size."""
    places = []
    for _ in range(count):
        side = 1.0 if rng.random() < 0.5 else -1.0
        across, down, more = rng.random(3)
        places.append(
            (
                side * body.width * (0.34 + 0.36 * across),
                body.top + 0.25 + (body.base[0] - body.top - 0.45) * down,
                more,
            )
        )
    return places


def _lesions(film: Film, x: Floats, y: Floats, lung: Floats, body: _Body, size: int) -> Floats:
    """Added density of nodules and opacities [size, size]; drawn for everyone, shown for few.

    The draws do not depend on what is shown, so that a label changes nothing but the lesion.
    """
    rng = film.anatomy
    shade = np.zeros_like(x)
    number = int(rng.integers(1, 4))
    for i, (px, py, more) in enumerate(_places(rng, 3, body)):
        if film.nodule and i < number:
            radius = 0.050 + 0.035 * more
            d = _blob(x, y, (px, py), (radius, radius * (0.85 + 0.3 * more)))
            shade = shade + 0.26 * _edge(d - 1, 0.7)
    clouds = _smooth_noise(rng, max(6, size // 6), size)
    number = int(rng.integers(1, 3))
    for i, (px, py, more) in enumerate(_places(rng, 2, body)):
        if film.opacity and i < number:
            d = _blob(x, y, (px, py), (0.13 + 0.09 * more, 0.15 + 0.06 * more))
            patch = np.exp(-d) * np.clip(0.6 + 0.55 * clouds, 0, 2)
            shade = shade + 0.245 * patch
    return (shade * (0.25 + 0.75 * lung)).astype(np.float32)


def _effusion(film: Film, x: Floats, y: Floats, density: Floats, body: _Body) -> Floats:
    """Fluid rises along the chest wall, highest at the side."""
    rng = film.anatomy
    first = 1.0 if rng.random() < 0.5 else -1.0
    for side, level in ((first, 0.16 + 0.20 * rng.random()), (-first, 0.18 * rng.random() - 0.05)):
        base = body.base[1 if side > 0 else 0]
        rise = np.float32(0.55) * np.maximum(0, np.float32(side) * x - 0.35) ** 1.5
        fluid = _edge(np.float32(base - level) - rise - y, 0.08)
        fluid = fluid * _edge(0.12 - np.float32(side) * x, 0.1)
        fluid = fluid * _edge(np.abs(x) - np.float32(body.width + 0.1), 0.05)
        density = density * (1 - 0.8 * fluid) + 0.8 * fluid * np.maximum(density, 0.62)
    return density


def _expose(film: Film, density: Floats, size: int) -> npt.NDArray[np.uint8]:
    """Scanner: exposure, contrast, grain, collimation, and the technician's mark."""
    rng = film.exposure
    r = rng.normal(size=3)
    gamma, grain, haze = {"A": (1.0, 0.020, 0.0), "B": (1.25, 0.030, -0.02)}.get(
        film.scanner, (0.80, 0.040, 0.06)
    )
    light = np.clip((1.0 + 0.05 * r[0]) * density + haze + 0.03 * r[1], 0.01, 1.2)
    light = light ** np.float32(gamma * (1 + 0.04 * r[2]))
    noise = rng.standard_normal((size, size), dtype=np.float32)
    if film.scanner == "C":  # portable: a coarse, soft grain
        light[:, 1:-1] = (light[:, :-2] + light[:, 1:-1] + light[:, 2:]) / 3
        light[1:-1] = (light[:-2] + light[1:-1] + light[2:]) / 3
    light = light + np.float32(grain) * noise
    x, y = _grid(size)
    if film.scanner == "B":
        light = light * _edge(np.maximum(np.abs(x), np.abs(y)) - 0.95, 0.02)
    if film.mark:
        light = np.maximum(light, 0.95 * _mark(x, y))
    gray: npt.NDArray[np.uint8] = (np.clip(light / 0.95, 0, 1) * 255).astype(np.uint8)
    return gray


def _mark(x: Floats, y: Floats) -> Floats:
    """A lead letter L in the upper corner."""
    stem = (np.abs(x - 0.79) < 0.022) & (np.abs(y + 0.82) < 0.085)
    foot = (np.abs(x - 0.835) < 0.065) & (np.abs(y + 0.757) < 0.022)
    return np.asarray(stem | foot, np.float32)
