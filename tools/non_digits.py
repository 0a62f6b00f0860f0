"""Make pictures of what is no digit: letters, symbols, scribbles, shapes, textures, turned digits.

A detector learns from them what a digit is not. This is outlier exposure (D. Hendrycks, M. Mazeika,
T. Dietterich 2019, arXiv 1812.04606).

Letters are drawn with the fonts that Matplotlib brings, and with handwriting fonts, which are
packages of the extra `tools`. Some are drawn as the font has them. Others are drawn by a pen that
follows the skeleton of the letter.
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
from digit_study.pictures.image_files import Grey
from digit_study.pictures.images import BOX, SIDE, size_normalised

#: Side of a drawing before it is size-normalised, in pixels.
CANVAS = 56
#: Size of a glyph on it, in pixels.
GLYPH = 40
#: Pictures that a job makes.
CHUNK = 2_000
#: Pixels with ink that a drawing has at least; it is drawn again if it has fewer.
LEAST_INK = 12
#: Grey level, 0 to 1, above which a pixel is ink.
INK = 0.1
#: Unicode's categories of letters, symbols and punctuation; marks and numbers are left out.
CATEGORIES = ("Lu", "Ll", "Lo", "Sm", "So", "Sc", "Po", "Ps", "Pe", "Sk")
#: Words in the Unicode names of characters that show a digit, or what looks like a digit.
NUMERIC = ("DIGIT", "NUMBER", "NUMERAL", "FRACTION", "ROD ", "HEXAGRAM", "BRAILLE")
#: Ends of names of characters that look like a digit: O, I, S, Z, b, q, З, Ʒ, Ч, Ƨ and others.
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
#: Latin letters and signs. O, o, I, i, l, |, S, s, Z, z, b and q, which look like a digit, are left
#: out.
LATIN = "AABBCCDDEEFFGGHHJJKKLLMMNNPPQQRRTTUUVVWWXXYYacdefghjkmnprtuvwxy@#$%&?!+=*{}[]<>~"
Random = np.random.Generator
#: Shares of glyphs that are Latin and printed, Latin and handwritten, and of any other kind.
Shares = tuple[float, float, float]
#: As many glyphs of every kind.
EVEN: Shares = (1 / 3, 1 / 3, 1 / 3)
#: No glyphs of handwriting fonts, which need packages of the extra `tools`.
PRINTED: Shares = (2 / 3, 0.0, 1 / 3)
#: Matplotlib's fonts of parts of symbols, and of boxes for missing characters.
UNUSED_FONTS = ("STIXSiz", "STIXNonUni", "Last")


@dataclass(frozen=True)
class Glyph:
    """A character of a font file."""

    font: Path
    character: str


def printed_fonts() -> list[Path]:
    """Return the font files that Matplotlib brings, but for :data:`UNUSED_FONTS`."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    fonts = sorted(folder.glob("*.ttf"))
    return [font for font in fonts if not font.name.startswith(UNUSED_FONTS)]


def handwriting_fonts() -> list[Path]:
    """Return the font files of the families that fontpkg has installed."""
    import fontpkg

    return sorted(file.path for family in fontpkg.families().values() for file in family.files)


@cache
def latin_glyphs() -> list[Glyph]:
    """Return the Latin glyphs of printed fonts."""
    return [Glyph(font, letter) for font in printed_fonts() for letter in LATIN]


@cache
def written_glyphs() -> list[Glyph]:
    """Return the Latin glyphs of handwriting fonts."""
    return [
        Glyph(font, letter)
        for font in handwriting_fonts()
        for letter in LATIN
        if letter in _characters(font)
    ]


@cache
def other_glyphs() -> list[Glyph]:
    """Return the glyphs of printed fonts, of any alphabet, that look like no digit."""
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
        characters = [chr(code) for code in sorted(opened.getBestCmap())]
    return [character for character in characters if _is_no_digit(character)]


def _is_no_digit(character: str) -> bool:
    if unicodedata.category(character) not in CATEGORIES:
        return False
    if unicodedata.numeric(character, None) is not None:
        return False
    name = unicodedata.name(character, "")
    return not name.endswith(TWINS) and not any(word in name for word in NUMERIC)


@cache
def printed(glyph: Glyph) -> Grey:
    """Draw a glyph on a canvas, (CANVAS, CANVAS), float32, 0 to 1."""
    font = ImageFont.truetype(str(glyph.font), GLYPH)
    canvas = Image.new("L", (CANVAS, CANVAS))
    ImageDraw.Draw(canvas).text((CANVAS // 2, CANVAS // 2), glyph.character, 255, font, "mm")
    return np.asarray(canvas, np.float32) / 255


def _moved(ink: Grey, random: Random, wild: float) -> Grey:
    """Turn, shear, stretch and bend a drawing at random.

    It is bent like rubber, after P. Simard, D. Steinkraus, J. Platt 2003.

    Args:
        ink: The drawing, (CANVAS, CANVAS), 0 to 1.
        random: Where random numbers come from.
        wild: Standard deviation of the bending, in pixels.
    """
    angle = random.normal(0, 0.15)
    shear = random.normal(0, 0.15)
    stretch = np.exp(random.normal(0, 0.15, 2))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.array([[1, shear], [0, 1]]) * stretch
    centre = (CANVAS - 1) / 2
    grid = np.mgrid[:CANVAS, :CANVAS].astype(np.float32) - centre
    coordinates = np.einsum("ij,jyx->iyx", matrix, grid) + centre
    coarse = random.normal(0, wild, (2, 5, 5))
    bend = ndimage.zoom(coarse, (1, CANVAS / 5, CANVAS / 5), order=1)[:, :CANVAS, :CANVAS]
    return np.asarray(ndimage.map_coordinates(ink, coordinates + bend, order=1), np.float32)


def _penned(ink: Grey, random: Random) -> Grey:
    """Draw the skeleton of a drawing with a pen of random width."""
    line = skeletonize(ink > 0.5)
    if not line.any():
        return ink
    width = random.uniform(1.3, 4.5) * GLYPH / BOX / 1.4
    away = ndimage.distance_transform_edt(~line)
    return np.asarray(np.clip(width / 2 + 0.5 - away, 0, 1), np.float32)


def font_letter(random: Random, shares: Shares) -> Grey:
    """Draw a letter or sign as a font has it, light or bold, moved a little."""
    ink = printed(_any_glyph(random, shares))
    weight = random.integers(4)
    if weight == 1:
        ink = ndimage.grey_dilation(ink, (3, 3))
    elif weight == 2:
        light = ndimage.grey_erosion(ink, (2, 2))
        # of the thinnest letters too little is left
        if light.max() > 0.6:
            ink = light
    return _moved(ink, random, random.uniform(0, 1.5))


def pen_letter(random: Random, shares: Shares) -> Grey:
    """Draw a letter or sign as a pen writes it."""
    letter = printed(_any_glyph(random, shares))
    bent = _moved(letter, random, random.uniform(1, 3.5))
    return _penned(bent, random)


def _any_glyph(random: Random, shares: Shares) -> Glyph:
    kinds = (latin_glyphs, written_glyphs, other_glyphs)
    chosen = kinds[random.choice(3, p=shares)]()
    return chosen[random.integers(len(chosen))]


def scribble(random: Random, shares: Shares) -> Grey:
    """Draw one to four strokes, straight or bent."""
    canvas = Image.new("L", (CANVAS, CANVAS))
    draw = ImageDraw.Draw(canvas)
    width = int(random.integers(3, 8))
    t = np.linspace(0, 1, 12)[:, None]
    for _ in range(random.integers(1, 5)):
        start, control, end = random.uniform(6, CANVAS - 6, (3, 2))
        stroke = np.stack([start, end])
        if random.random() < 0.6:
            stroke = (1 - t) ** 2 * start + 2 * t * (1 - t) * control + t**2 * end
        draw.line([tuple(point) for point in stroke], 255, width, "curve")
    return ndimage.gaussian_filter(np.asarray(canvas, np.float32) / 255, 0.7)


def shape(random: Random, shares: Shares) -> Grey:
    """Draw a polygon, a star or an arrow, outlined or filled."""
    canvas = Image.new("L", (CANVAS, CANVAS))
    draw = ImageDraw.Draw(canvas)
    corners = int(random.integers(3, 9))
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False) + random.uniform(0, 2 * np.pi)
    # every second corner may lie further inside
    radii = np.where(np.arange(corners) % 2, random.uniform(0.3, 1), 1) * 24
    radii = radii + random.normal(0, 2, corners)
    outline = CANVAS / 2 + (radii * np.array([np.cos(angles), np.sin(angles)])).T
    points = [tuple(point) for point in outline]
    if random.random() < 0.4:
        draw.polygon(points, fill=255)
    else:
        draw.line([*points, points[0]], 255, int(random.integers(3, 7)), "curve")
    return _moved(np.asarray(canvas, np.float32) / 255, random, 1.0)


def texture(random: Random, shares: Shares) -> Grey:
    """Draw stripes, or noise of any grain, grey or in black and white."""
    if random.random() < 0.2:
        y, x = np.mgrid[:CANVAS, :CANVAS] * random.uniform(0.2, 1.2)
        angle = random.uniform(0, np.pi)
        waves = np.sin(np.cos(angle) * x + np.sin(angle) * y)
        return np.asarray(np.clip(waves, 0, 1), np.float32)
    noise = ndimage.gaussian_filter(random.normal(size=(CANVAS, CANVAS)), random.uniform(0.3, 6))
    noise = (noise - noise.mean()) / noise.std() - random.uniform(-0.5, 1.5)
    return np.asarray(np.clip(noise * random.choice([1, 10]), 0, 1), np.float32)


def picture(random: Random, shares: Shares) -> Grey:
    """Draw a shaded object, such as a garment, of a few filled forms."""
    canvas = Image.new("L", (CANVAS, CANVAS))
    draw = ImageDraw.Draw(canvas)
    for _ in range(random.integers(1, 4)):
        centre = random.uniform(16, 40, 2)
        size = random.uniform(5, 24, 2)
        fill_form = draw.rectangle
        if random.random() < 0.4:
            fill_form = draw.ellipse
        fill_form((*(centre - size), *(centre + size)), int(random.integers(90, 256)))
    solid = np.asarray(canvas, np.float32) / 255
    if random.random() < 0.5:
        # the same on both sides
        solid = np.maximum(solid, solid[:, ::-1])
    noise = ndimage.gaussian_filter(random.normal(size=(CANVAS, CANVAS)), random.uniform(1, 5))
    shade = np.clip(1 + 0.5 * noise / noise.std(), 0.15, 1).astype(np.float32)
    return _moved(solid * shade, random, 1.0)


#: Kinds of non-digits, and how many of a hundred pictures are of each.
KINDS: dict[Callable[[Random, Shares], Grey], int] = {
    font_letter: 34,
    pen_letter: 34,
    scribble: 8,
    shape: 6,
    texture: 5,
    picture: 5,
}
#: How many of a hundred pictures are made by :func:`from_digits`.
TURNED = 8
#: Digits that stay digits when they are turned upside down.
AS_TURNED = (0, 1, 6, 8, 9)
#: Digits that stay digits in a mirror.
AS_MIRRORED = (0, 1, 8)


def from_digits(images: Pixels, labels: Labels, random: Random) -> npt.NDArray[np.uint8]:
    """Turn a digit upside down, mirror it, or lay a second digit over it.

    Args:
        images: Digits to choose from, (n, 28, 28, 1), uint8.
        labels: Their labels, (n,).
        random: Where random numbers come from.

    Returns:
        A picture (28, 28), uint8, that is no digit any more.
    """
    first, second = random.integers(len(images), size=2)
    kind = random.integers(3)
    image = images[first, ..., 0]
    label = labels[first]
    if kind == 0 and label not in AS_TURNED:
        return image[::-1, ::-1]
    if kind == 1 and label not in AS_MIRRORED:
        return image[:, ::-1]
    other = np.roll(images[second, ..., 0], random.integers(-6, 7, 2), (0, 1))
    return np.asarray(np.maximum(image, other))


def made(count: int, images: Pixels, labels: Labels, seed: int, shares: Shares = EVEN) -> Pixels:
    """Make pictures of non-digits on all cores.

    Args:
        count: How many.
        images: Digits for :func:`from_digits`, (n, 28, 28, 1), uint8.
        labels: Their labels, (n,).
        seed: Seed of all that is random. The same seed and digits give the same pictures.
        shares: Shares of glyphs by kind.

    Returns:
        Pictures (count, 28, 28, 1), uint8, put into the middle as MNIST's digits are.
    """
    chunks = [min(CHUNK, count - start) for start in range(0, count, CHUNK)]
    parts = Parallel(n_jobs=-1)(
        delayed(_made)(size, images, labels, (seed, number), shares)
        for number, size in enumerate(chunks)
    )
    return np.concatenate(list(parts))


def _made(
    count: int, images: Pixels, labels: Labels, seed: tuple[int, int], shares: Shares
) -> Pixels:
    random = np.random.default_rng(seed)
    kinds = list(KINDS)
    weights = np.array([*KINDS.values(), TURNED])
    chosen = random.choice(len(weights), count, p=weights / weights.sum())
    pictures = np.zeros((count, SIDE, SIDE, 1), np.uint8)
    for target, kind in zip(pictures[..., 0], chosen, strict=True):
        if kind == len(kinds):
            target[:] = from_digits(images, labels, random)
        else:
            target[:] = size_normalised(_with_ink(kinds[kind], random, shares))
    return pictures


def _with_ink(draw: Callable[[Random, Shares], Grey], random: Random, shares: Shares) -> Grey:
    """Draw until there is enough ink."""
    while True:
        ink = draw(random, shares)
        if (ink > INK).sum() >= LEAST_INK:
            return ink
