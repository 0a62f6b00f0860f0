"""Pictures of what is no digit: letters, symbols, scribbles, shapes, textures, digits turned over. All are made here.

A detector learns from them what a digit is not (outlier exposure; D. Hendrycks, M. Mazeika, T. Dietterich 2019, arXiv
1812.04606). Letters are drawn by the fonts that Matplotlib brings and by fonts after handwriting
(the fontpkg packages of the extra `tools`, where these are asked for), as the fonts have them and,
from their skeletons, as by a pen.
"""

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
from joblib import Parallel, delayed
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from skimage.morphology import skeletonize

from digit_study.data.sources import Labels, Pixels
from digit_study.inference.image_files import Grey
from digit_study.inference.images import BOX, SIDE, size_normalised

#: Side of a drawing before it is size-normalised, and the size of a glyph on it, in pixels.
CANVAS, GLYPH = 56, 40
#: Pictures that are made together.
CHUNK = 2_000
#: Unicode's categories of letters, symbols and punctuation; marks and numbers are left out.
CATEGORIES = ("Lu", "Ll", "Lo", "Sm", "So", "Sc", "Po", "Ps", "Pe", "Sk")
#: Words in the Unicode names of characters that show a digit, or nothing that can be told from one.
NUMERIC = ("DIGIT", "NUMBER", "NUMERAL", "FRACTION", "ROD ", "HEXAGRAM", "BRAILLE")
#: Ends of names of characters that are a digit to any eye: O, I, S, Z, b, q, З, Ʒ, Ч, Ƨ and others.
TWINS = (
    "OMICRON",
    "IOTA",
    "PALOCHKA",
    "CIRCLE",
    "RING",
    "VERTICAL LINE",
    "VERTICAL BAR",
    " O",
    " I",
    " S",
    " Z",
    "LETTER B",
    "LETTER Q",
    "ZE",
    "EZH",
    "YOGH",
    "CHE",
    "OPEN E",
    "TONE TWO",
    "TONE FIVE",
    "TONE SIX",
    "IOTA",
    "GIMEL",
    "SMALL LETTER L",
)
#: O, o, I, i, l and | are left out, for they are a zero and a one to any eye; so are S, s, Z, z, b
#: and q, which are a 5, a 2, a 6 and a 9.
LATIN = "AABBCCDDEEFFGGHHJJKKLLMMNNPPQQRRTTUUVVWWXXYYacdefghjkmnprtuvwxy@#$%&?!+=*{}[]<>~"
Random = np.random.Generator
#: Which share of the glyphs is Latin and printed, Latin and written, and of any other kind.
Shares = tuple[float, float, float]
EVEN: Shares = (1 / 3, 1 / 3, 1 / 3)
#: Without fonts after handwriting, which are a package of their own.
PRINTED: Shares = (2 / 3, 0.0, 1 / 3)


@dataclass(frozen=True)
class Glyph:
    """One character of one font file."""

    font: Path
    character: str


def printed_fonts() -> list[Path]:
    """The font files that Matplotlib brings, but for those of parts of symbols, and of boxes for what is missing."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return [
        one
        for one in sorted(folder.glob("*.ttf"))
        if not one.name.startswith(("STIXSiz", "STIXNonUni", "Last"))
    ]


def handwriting_fonts() -> list[Path]:
    """Return the font files of the families that fontpkg has installed."""
    import fontpkg

    return sorted(one.path for family in fontpkg.families().values() for one in family.files)


@cache
def latin_glyphs() -> list[Glyph]:
    """Return Latin letters and signs as printed."""
    return [Glyph(font, letter) for font in printed_fonts() for letter in LATIN]


@cache
def written_glyphs() -> list[Glyph]:
    """Return Latin letters and signs as written."""
    return [
        Glyph(font, letter)
        for font in handwriting_fonts()
        for letter in LATIN
        if letter in _characters(font)
    ]


@cache
def other_glyphs() -> list[Glyph]:
    """Return all else in print that is no number."""
    found = []
    for font in printed_fonts():
        # the last fonts are TeX's: their other characters are not where Unicode has them
        if font.name.startswith("cm"):
            continue
        covered = ImageFont.truetype(str(font), GLYPH)
        known = _characters(font)
        found += [Glyph(font, letter) for letter in known if covered.getmask(letter).getbbox()]
    return found


@cache
def _characters(font: Path) -> list[str]:
    from fontTools.ttLib import TTFont

    with TTFont(font, lazy=True) as opened:
        found = [chr(code) for code in sorted(opened.getBestCmap())]
    return [
        one for one in found if unicodedata.category(one) in CATEGORIES and not _is_numeric(one)
    ]


def _is_numeric(character: str) -> bool:
    name = unicodedata.name(character, "")
    shows_one = any(word in name for word in NUMERIC) or name.endswith(TWINS)
    return shows_one or unicodedata.numeric(character, None) is not None


@cache
def printed(glyph: Glyph) -> Grey:
    """A glyph on a canvas, (CANVAS, CANVAS), float32, 0 to 1."""
    font = ImageFont.truetype(str(glyph.font), GLYPH)
    canvas = Image.new("L", (CANVAS, CANVAS))
    ImageDraw.Draw(canvas).text((CANVAS // 2, CANVAS // 2), glyph.character, 255, font, "mm")
    return np.asarray(canvas, np.float32) / 255


def _moved(ink: Grey, random: Random, wild: float) -> Grey:
    """Turned, sheared, stretched and bent like rubber (P. Simard, D. Steinkraus, J. Platt 2003), each by chance."""
    angle, shear = random.normal(0, 0.15), random.normal(0, 0.15)
    stretch = np.exp(random.normal(0, 0.15, 2))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.array([[1, shear], [0, 1]]) * stretch
    centre = (CANVAS - 1) / 2
    grid = np.mgrid[:CANVAS, :CANVAS].astype(np.float32) - centre
    places = np.einsum("ij,jyx->iyx", matrix, grid) + centre
    coarse = random.normal(0, wild, (2, 5, 5))
    bend = ndimage.zoom(coarse, (1, CANVAS / 5, CANVAS / 5), order=1)[:, :CANVAS, :CANVAS]
    return np.asarray(ndimage.map_coordinates(ink, places + bend, order=1), np.float32)


def _penned(ink: Grey, random: Random) -> Grey:
    """The skeleton of what is drawn, followed by a pen two to five 28ths wide."""
    line = skeletonize(ink > 0.5)
    if not line.any():
        return ink
    width = random.uniform(1.3, 4.5) * GLYPH / BOX / 1.4
    away = ndimage.distance_transform_edt(~line)
    return np.asarray(np.clip(width / 2 + 0.5 - away, 0, 1), np.float32)


def font_letter(random: Random, shares: Shares) -> Grey:
    """A letter or sign as a font has it, light or bold, moved a little."""
    ink = printed(_any_glyph(random, shares))
    weight = random.integers(4)
    if weight == 1:
        ink = ndimage.grey_dilation(ink, (3, 3))
    elif weight == 2 and (thin := ndimage.grey_erosion(ink, (2, 2))).max() > 0.6:
        ink = thin
    return _moved(ink, random, random.uniform(0, 1.5))


def pen_letter(random: Random, shares: Shares) -> Grey:
    """A letter or sign as a pen writes it."""
    return _penned(
        _moved(printed(_any_glyph(random, shares)), random, random.uniform(1, 3.5)), random
    )


def _any_glyph(random: Random, shares: Shares) -> Glyph:
    kinds = (latin_glyphs, written_glyphs, other_glyphs)
    chosen = kinds[random.choice(3, p=shares)]()
    return chosen[random.integers(len(chosen))]


def scribble(random: Random, _: Shares) -> Grey:
    """One to four strokes, straight or bent."""
    canvas = Image.new("L", (CANVAS, CANVAS))
    draw, width = ImageDraw.Draw(canvas), int(random.integers(3, 8))
    for _ in range(random.integers(1, 5)):
        a, b, c = random.uniform(6, CANVAS - 6, (3, 2))
        t = np.linspace(0, 1, 12)[:, None]
        curve = (
            (1 - t) ** 2 * a + 2 * t * (1 - t) * b + t**2 * c
            if random.random() < 0.6
            else np.stack([a, c])
        )
        draw.line([tuple(point) for point in curve], 255, width, "curve")
    return ndimage.gaussian_filter(np.asarray(canvas, np.float32) / 255, 0.7)


def shape(random: Random, _: Shares) -> Grey:
    """A polygon, a star or an arrow, outlined or filled."""
    canvas = Image.new("L", (CANVAS, CANVAS))
    draw, corners = ImageDraw.Draw(canvas), int(random.integers(3, 9))
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False) + random.uniform(0, 2 * np.pi)
    radii = np.where(np.arange(corners) % 2, random.uniform(0.3, 1), 1) * 24 + random.normal(
        0, 2, corners
    )
    points = [
        tuple(point)
        for point in CANVAS / 2 + (radii * np.array([np.cos(angles), np.sin(angles)])).T
    ]
    if random.random() < 0.4:
        draw.polygon(points, fill=255)
    else:
        draw.line([*points, points[0]], 255, int(random.integers(3, 7)), "curve")
    return _moved(np.asarray(canvas, np.float32) / 255, random, 1.0)


def texture(random: Random, _: Shares) -> Grey:
    """Noise of any grain, as it is or cut into light and dark, or stripes."""
    if random.random() < 0.2:
        y, x = np.mgrid[:CANVAS, :CANVAS] * random.uniform(0.2, 1.2)
        angle = random.uniform(0, np.pi)
        waves = np.sin(np.cos(angle) * x + np.sin(angle) * y)
        return np.asarray(np.clip(waves, 0, 1), np.float32)
    noise = ndimage.gaussian_filter(random.normal(size=(CANVAS, CANVAS)), random.uniform(0.3, 6))
    noise = (noise - noise.mean()) / noise.std() - random.uniform(-0.5, 1.5)
    return np.asarray(np.clip(noise * random.choice([1, 10]), 0, 1), np.float32)


def picture(random: Random, _: Shares) -> Grey:
    """A shaded thing, such as a garment: a few filled forms, the same on both sides or not, under a texture."""
    canvas = Image.new("L", (CANVAS, CANVAS))
    draw = ImageDraw.Draw(canvas)
    for _ in range(random.integers(1, 4)):
        centre, size = random.uniform(16, 40, 2), random.uniform(5, 24, 2)
        kind = draw.ellipse if random.random() < 0.4 else draw.rectangle
        kind((*(centre - size), *(centre + size)), int(random.integers(90, 256)))
    solid = np.asarray(canvas, np.float32) / 255
    if random.random() < 0.5:
        solid = np.maximum(solid, solid[:, ::-1])
    shade = ndimage.gaussian_filter(random.normal(size=(CANVAS, CANVAS)), random.uniform(1, 5))
    return _moved(
        solid * np.clip(1 + 0.5 * shade / shade.std(), 0.15, 1).astype(np.float32), random, 1.0
    )


#: Kinds of non-digits, and how many of a hundred each gives; those of digits are made in :func:`from_digits`.
KINDS: dict[Callable[[Random, Shares], Grey], int] = {
    font_letter: 34, pen_letter: 34, scribble: 8, shape: 6, texture: 5, picture: 5,
}  # fmt: skip
TURNED = 8
#: Digits that stay digits when they are turned upside down, and in a mirror.
AS_TURNED, AS_MIRRORED = (0, 1, 6, 8, 9), (0, 1, 8)


def from_digits(images: Pixels, labels: Labels, random: Random) -> npt.NDArray[np.uint8]:
    """A digit (28, 28) that is none any more: turned over, mirrored, or one over another."""
    first, second = random.integers(len(images), size=2)
    kind, image, label = random.integers(3), images[first, ..., 0], labels[first]
    if kind == 0 and label not in AS_TURNED:
        return image[::-1, ::-1]
    if kind == 1 and label not in AS_MIRRORED:
        return image[:, ::-1]
    other = np.roll(images[second, ..., 0], random.integers(-6, 7, 2), (0, 1))
    return np.asarray(np.maximum(image, other))


def made(count: int, images: Pixels, labels: Labels, seed: int, shares: Shares = EVEN) -> Pixels:
    """``count`` non-digits (count, 28, 28, 1), in MNIST's form, on all cores; the same for the same seed and digits."""
    chunks = [min(CHUNK, count - start) for start in range(0, count, CHUNK)]
    parts = Parallel(n_jobs=-1)(
        delayed(_made)(size, images, labels, (seed, number), shares)
        for number, size in enumerate(chunks)
    )
    return np.concatenate(list(parts))


def _made(
    count: int, images: Pixels, labels: Labels, seed: tuple[int, int], shares: Shares
) -> Pixels:
    random, kinds = np.random.default_rng(seed), list(KINDS)
    chances = np.array([*KINDS.values(), TURNED]) / (sum(KINDS.values()) + TURNED)
    found = np.zeros((count, SIDE, SIDE, 1), np.uint8)
    for place, kind in enumerate(random.choice(len(chances), count, p=chances)):
        if kind == len(kinds):
            found[place, ..., 0] = from_digits(images, labels, random)
            continue
        ink = kinds[kind](random, shares)
        while (ink > 0.1).sum() < 12:
            ink = kinds[kind](random, shares)
        found[place, ..., 0] = size_normalised(ink)
    return found
