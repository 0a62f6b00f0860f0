"""What predict.py reads of pictures that are rendered here: drawings, photos, numbers.

    python tests/benchmarks/bench_handwriting.py <model.keras> [--pictures N]

The digits are the strokes of digit_study.model.pen, drawn anew with a seed that no training uses:
in one pixel, in blocks, with a pen, on paper with a shadow, with rules, with squares, at a sheet's
edge, with a pencil; with thin pens on large photos in difficult light; and rows of them. Prints a line a kind: right, wrong and refused, by the
detector or before it. These are no people's digits: it shows which way of drawing a network or the
front end loses, not how well it reads what people write.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

from digit_study.inference.detector import are_digits
from digit_study.inference.prediction import Reading, load_model, read_files
from digit_study.model import pen

Random = np.random.Generator
Picture = npt.NDArray[np.uint8]
SEED = 4_711


def strokes(digit: int, random: Random, side: float) -> list[list[tuple[float, float]]]:
    """A variant of a digit, its longer side as given, its corner at 0."""
    drawn = pen.FORMS[digit](random)
    points = np.concatenate(drawn)
    low = points.min(axis=0)
    longer = (points.max(axis=0) - low).max()
    return [[tuple(point) for point in (stroke - low) / longer * side] for stroke in drawn]


def inked(digit: int, random: Random, size: int, extent: float, width: int) -> Picture:
    """A digit somewhere on a square of black, white ink."""
    canvas = Image.new("L", (size, size))
    draw = ImageDraw.Draw(canvas)
    margin = width + 1
    corner = random.uniform(margin, max(margin + 0.1, size - extent - margin), 2)
    for stroke in strokes(digit, random, extent):
        points = [(x + corner[0], y + corner[1]) for x, y in stroke]
        draw.line(points, 255, width, "curve" if width > 2 else None)
        for x, y in (points[0], points[-1]):
            if width > 2:
                draw.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), 255)
    return np.asarray(canvas)


def one_pixel(digit: int, random: Random) -> Picture:
    return 255 - inked(digit, random, 28, random.uniform(14, 24), 1)


def blocks(digit: int, random: Random) -> Picture:
    return inked(digit, random, 64, random.uniform(30, 52), int(random.integers(4, 9)))


def hairline(digit: int, random: Random) -> Picture:
    return 255 - inked(digit, random, 400, random.uniform(150, 330), 2)


def brush(digit: int, random: Random) -> Picture:
    return 255 - inked(digit, random, 280, random.uniform(140, 220), int(random.integers(8, 28)))


def _ink(digit: int, random: Random, width: int | None = None) -> npt.NDArray[np.float64]:
    width = int(random.integers(5, 16)) if width is None else width
    crisp = inked(digit, random, 480, random.uniform(160, 300), width) / 255
    return ndimage.gaussian_filter(crisp, 1.5)


def _photo(
    ink: npt.NDArray[np.float64], light: npt.NDArray[np.float64], random: Random, dark: float = 0.65
) -> Picture:
    grain = random.normal(0, 4, ink.shape)
    return np.clip(light * (1 - dark * ink) + grain, 0, 255).astype(np.uint8)


def photo(digit: int, random: Random) -> Picture:
    ink = _ink(digit, random)
    y, x = np.mgrid[0 : 1 : ink.shape[0] * 1j, 0 : 1 : ink.shape[1] * 1j]
    return _photo(ink, 215 - 50 * x - 30 * y, random)


def shadow(digit: int, random: Random) -> Picture:
    ink = _ink(digit, random)
    y, x = np.mgrid[:1:480j, :1:480j]
    lies_in_it = x + random.uniform(-0.8, 0.8) * y < random.uniform(0.25, 0.75)
    light = 215 * (1 - 0.45 * ndimage.gaussian_filter(lies_in_it.astype(float), 10))
    return _photo(ink, light, random)


def ruled(digit: int, random: Random) -> Picture:
    light = np.full((480, 480), 215.0)
    light[int(random.integers(10, 60)) :: 60] = 160
    return _photo(_ink(digit, random), ndimage.uniform_filter(light, 3), random)


def squared(digit: int, random: Random) -> Picture:
    light = np.full((480, 480), 215.0)
    light[int(random.integers(10, 50)) :: 50] = 160
    light[:, int(random.integers(10, 50)) :: 50] = 160
    return _photo(_ink(digit, random), ndimage.uniform_filter(light, 3), random)


def sheets_edge(digit: int, random: Random) -> Picture:
    y, x = np.mgrid[:1:480j, :1:480j]
    light = np.where(x + 0.1 * y > 1.0, 60.0, 215.0)
    return _photo(_ink(digit, random), light, random)


def pencil(digit: int, random: Random) -> Picture:
    grain = ndimage.gaussian_filter(random.normal(size=(480, 480)), 1.5)
    ink = _ink(digit, random) * np.clip(0.7 + 0.3 * grain / grain.std(), 0.2, 1)
    return _photo(ink, np.full((480, 480), 205.0), random, 0.3)


# ------------------------------------------------------------------------ large photos, thin pens

#: Height and width of a large photo.
LARGE = (900, 1200)


def _thin_ink(digit: int, random: Random) -> npt.NDArray[np.float64]:
    """A digit of a fifth to a half of a large photo, in a thin pen."""
    height, width = LARGE
    extent = random.uniform(180, 480)
    pen_width = max(2, int(extent * random.choice([0.012, 0.02, 0.03])))
    square = inked(digit, random, int(extent) + 4 * pen_width + 8, extent, pen_width) / 255
    top = int(random.uniform(40, height - len(square) - 40))
    left = int(random.uniform(40, width - len(square) - 40))
    ink = np.zeros(LARGE)
    ink[top : top + len(square), left : left + len(square)] = square
    return ndimage.gaussian_filter(ink, 1.0)


def _uneven(random: Random) -> npt.NDArray[np.float64]:
    """Light that falls off towards one side."""
    y, x = np.mgrid[: 1 : LARGE[0] * 1j, : 1 : LARGE[1] * 1j]
    angle = random.uniform(0, 2 * np.pi)
    slope = random.uniform(0, 0.3)
    return random.uniform(170, 220) * (1 - slope * (np.cos(angle) * x + np.sin(angle) * y))


def _in_shadow(light: npt.NDArray[np.float64], random: Random) -> npt.NDArray[np.float64]:
    """Light of which a shadow with a sharp edge takes a third to a half."""
    y, x = np.mgrid[: 1 : LARGE[0] * 1j, : 1 : LARGE[1] * 1j]
    lean = random.uniform(-1, 1)
    lies_in_it = (x + lean * y) / (1 + abs(lean)) < random.uniform(0.25, 0.75)
    edge = ndimage.gaussian_filter(lies_in_it.astype(float), random.uniform(2, 10))
    return light * (1 - random.uniform(0.33, 0.5) * edge)


def hard_shadow(digit: int, random: Random) -> Picture:
    return _photo(_thin_ink(digit, random), _in_shadow(_uneven(random), random), random)


def two_shadows(digit: int, random: Random) -> Picture:
    light = _in_shadow(_in_shadow(_uneven(random), random), random)
    return _photo(_thin_ink(digit, random), light, random)


def black_corner(digit: int, random: Random) -> Picture:
    """The sheet ends in a round corner, and part of it lies in a shadow."""
    y, x = np.mgrid[: LARGE[0], : LARGE[1]]
    lies_beyond = np.hypot(x - LARGE[1], y) < random.uniform(60, 240)
    light = np.where(lies_beyond, 10.0, _in_shadow(_uneven(random), random))
    return _photo(_thin_ink(digit, random), light, random)


def reflection(digit: int, random: Random) -> Picture:
    y, x = np.mgrid[: 1 : LARGE[0] * 1j, : 1 : LARGE[1] * 1j]
    row, column = random.uniform(0.1, 0.9, 2)
    size = random.uniform(0.06, 0.16)
    spot = np.exp(-(((x - column) / size) ** 2) - ((y - row) / size) ** 2)
    light = np.minimum(_uneven(random) + random.uniform(60, 120) * spot, 254)
    return _photo(_thin_ink(digit, random), light, random)


def dotted_paper(digit: int, random: Random) -> Picture:
    dots = np.zeros(LARGE)
    dots[int(random.integers(10, 45)) :: 45, int(random.integers(10, 45)) :: 45] = 1
    dots = ndimage.gaussian_filter(ndimage.grey_dilation(dots, (3, 3)), 0.8)
    light = _in_shadow(_uneven(random) * (1 - 0.3 * dots), random)
    return _photo(_thin_ink(digit, random), light, random)


SINGLE: dict[str, Callable[[int, Random], Picture]] = {
    "one pixel, 28x28": one_pixel,
    "blocks, 64x64": blocks,
    "hairline": hairline,
    "brush": brush,
    "photo": photo,
    "shadow": shadow,
    "ruled paper": ruled,
    "squared paper": squared,
    "sheet's edge": sheets_edge,
    "pencil": pencil,
    "hard shadow": hard_shadow,
    "two shadows": two_shadows,
    "black corner": black_corner,
    "reflection": reflection,
    "dotted, shadow": dotted_paper,
}


def row(digits: list[int], random: Random) -> Picture:
    """Digits beside each other, of like size, dark on white."""
    width = int(random.integers(3, 7))
    tiles = []
    for digit in digits:
        tile = inked(digit, random, 90, random.uniform(55, 70), width)
        columns = np.flatnonzero(tile.any(axis=0))
        cut = tile[:, columns[0] : columns[-1] + 1]
        tiles.append(np.pad(cut, ((0, 0), (0, int(random.integers(8, 25))))))
    return 255 - np.pad(np.hstack(tiles), 30)


def read(pictures: list[Picture], model: Path) -> list[Reading]:
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for number, picture in enumerate(pictures):
            files.append(Path(folder, f"{number}.png"))
            Image.fromarray(picture).save(files[-1])
        return list(read_files(files, load_model(model), are_digits))


def main(model: Path, count: int) -> None:
    """Render, read, and print a line a kind."""
    for kind, draw in SINGLE.items():
        random = np.random.default_rng(SEED)
        wanted = [number % 10 for number in range(count)]
        readings = read([draw(digit, random) for digit in wanted], model)
        pairs = list(zip(readings, wanted, strict=True))
        right = sum(reading.digit == digit for reading, digit in pairs)
        refused = sum(reading.error is not None for reading in readings)
        wrong = count - right - refused
        print(f"{kind:18} {right:4} right {wrong:4} wrong {refused:4} refused, of {count}")
    random = np.random.default_rng(SEED)
    numbers = [list(random.integers(0, 10, random.integers(2, 8))) for _ in range(count // 2)]
    readings = read([row(digits, random) for digits in numbers], model)
    texts = ["".join(map(str, digits)) for digits in numbers]
    found = [reading.number.text if reading.number else None for reading in readings]
    right = sum(text == own for text, own in zip(texts, found, strict=True))
    print(f"{'rows of digits':18} {right:4} exactly right, of {len(numbers)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="a Keras file")
    parser.add_argument("--pictures", type=int, default=200, help="of each kind")
    options = parser.parse_args()
    main(options.model, options.pictures)
