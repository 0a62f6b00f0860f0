"""How many pictures of no digit pass for one, of kinds that the detector has not seen; how many digits are refused.

    python tests/benchmarks/bench_rejection.py <mnist.npz> [fonts/ ...]

Letters and signs are drawn by the font files of the folders (.ttf, .otf), which should not be those of Matplotlib that
the detector has learned from: by default /usr/share/fonts. Pictures are patches of scikit-image's photographs, whole
and cut out on white, as garments are in Fashion-MNIST. All go the way of a file, through ``read_digit``; what that
refuses is refused. O, I, l and o are counted apart: drawn by hand they are a zero and a one.
"""

from __future__ import annotations

import argparse
import io
import string
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

from digit_study.inference import detector
from digit_study.pictures.image_files import ImageError
from digit_study.pictures.images import read_digit

TWINS = "OIlo"
SETS = {
    "capitals": [one for one in string.ascii_uppercase if one not in TWINS],
    "small letters": [one for one in string.ascii_lowercase if one not in TWINS],
    "O, I, l, o": list(TWINS),
    "signs": list("@#$%&?!+=*<>{}"),
    "arrows": list("←↑→↓↔↕⇐⇒⇑⇓"),
    "Greek": list("ΓΔΘΛΞΠΣΦΨΩαβδεζηθλμξπψω"),
}


def drawn(font: Path, character: str) -> bytes | None:
    """A character as a PNG, black on white; None where the font has none."""
    face, sheet = ImageFont.truetype(str(font), 120), Image.new("L", (220, 220), 255)
    if face.getmask(character).getbbox() is None or bytes(face.getmask(character)) == bytes(
        face.getmask("\uffff")
    ):
        return None
    ImageDraw.Draw(sheet).text((110, 110), character, 0, face, "mm")
    return png(sheet)


def png(image: Image.Image) -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


def pictures(random: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    """Patches of photographs, whole, and cut out in a form on white; noise of three kinds; stripes."""
    photos = [
        getattr(skimage.data, name)()
        for name in ("camera", "coins", "astronaut", "coffee", "moon", "brick")
    ]
    greys = [np.asarray(Image.fromarray(photo).convert("L")) for photo in photos]
    for number in range(600):
        grey = greys[number % len(greys)]
        side = int(random.integers(40, 200))
        top, left = (random.integers(0, room - side) for room in grey.shape)
        patch = Image.fromarray(grey[top : top + side, left : left + side]).resize((28, 28))
        yield "photographs", png(patch)
        sheet, mask = Image.new("L", (28, 28)), Image.new("L", (28, 28))
        pen = ImageDraw.Draw(mask)
        width, shoulder = random.integers(5, 12, 2)
        pen.rectangle((14 - width, 4, 14 + width, 24), 255)
        pen.rectangle((14 - width - shoulder // 2, 4, 14 + width + shoulder // 2, 10), 255)
        sheet.paste(patch, mask=mask)
        yield "cut out like garments", png(sheet)
        noise = random.choice([1, 3, 9])
        grain = (
            random.integers(0, 256, (-(-84 // noise),) * 2)
            .astype(np.uint8)
            .repeat(noise, 0)
            .repeat(noise, 1)
        )
        yield "noise", png(Image.fromarray(grain[:84, :84]))


def main(mnist: Path, folders: Sequence[Path]) -> None:
    """Draw, read, and print a line a kind."""
    accepts, read, refused, kinds = (
        detector.load(),
        list[np.ndarray](),
        dict[str, int](),
        list[str](),
    )
    fonts = sorted(
        path
        for folder in folders
        for ending in ("ttf", "otf")
        for path in folder.rglob(f"*.{ending}")
    )
    fonts = [font for font in fonts if not font.name.startswith(("DejaVu", "STIX", "cm"))]
    letters = (
        (kind, drawn(font, one)) for font in fonts for kind, some in SETS.items() for one in some
    )
    for kind, image in [*letters, *pictures(np.random.default_rng(0))]:
        if image is None:
            continue
        try:
            read.append(read_digit(image))
            kinds.append(kind)
        except ImageError:
            refused[kind] = refused.get(kind, 0) + 1
    passed = accepts(np.stack(read)[..., None])
    print(f"{len(fonts)} fonts")
    for kind in dict.fromkeys(kinds):
        own = passed[np.array(kinds) == kind]
        count = len(own) + refused.get(kind, 0)
        print(f"{kind:24} {100 * own.sum() / count:5.1f} % of {count:5,} pass for a digit")
    with np.load(mnist) as archive:
        digits = archive["x_test"][..., None]
    share = 1 - float(accepts(digits).mean())
    print(f"{'MNIST test digits':24} {100 * share:5.2f} % of {len(digits):,} are refused")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mnist", type=Path, help="Keras's mnist.npz")
    parser.add_argument("fonts", type=Path, nargs="*", default=[Path("/usr/share/fonts")])
    options = parser.parse_args()
    main(options.mnist, options.fonts)
