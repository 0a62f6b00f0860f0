"""A table of the ways in which a digit's picture reaches a person's disk, and of what is no digit."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from conftest import sample
from PIL import Image, ImageDraw
from scipy import ndimage

from digit_study.pictures.image_files import ImageError, read_grey
from digit_study.pictures.images import is_mnist_form, read_digit, to_mnist

Bitmap = npt.NDArray[np.uint8]
DIGITS: Bitmap = sample()[0]
SOME = DIGITS[::50]  # a hundred, ten of each digit


def enlarged(image: Bitmap, way: int = Image.Resampling.BICUBIC, times: int = 10) -> Bitmap:
    return np.asarray(Image.fromarray(image).resize((28 * times, 28 * times), way))


def off_centre(image: Bitmap) -> Bitmap:
    canvas = np.zeros((100, 120), np.uint8)
    canvas[5:33, 80:108] = image
    return canvas


def as_jpeg(image: Bitmap, quality: int = 80) -> Bitmap:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def photographed(image: Bitmap) -> Bitmap:
    """Dark ink on paper in uneven light, with the grain of a sensor."""
    ink = np.pad(enlarged(image) / 255, ((40, 90), (90, 30)))
    y, x = np.mgrid[0 : 1 : ink.shape[0] * 1j, 0 : 1 : ink.shape[1] * 1j]
    light = 210 - 60 * x - 30 * y * y
    grain = np.random.default_rng(0).normal(0, 6, ink.shape)
    return np.clip(light * (1 - 0.7 * ink) + grain, 0, 255).astype(np.uint8)


def on_a_card(image: Bitmap) -> Bitmap:
    """A white card with dark ink on a black table."""
    return off_centre(255 - image)


WAYS: dict[str, Callable[[Bitmap], Bitmap]] = {
    "inverted": lambda image: 255 - image,
    "enlarged, nearest": lambda image: enlarged(image, Image.Resampling.NEAREST),
    "enlarged, bicubic": enlarged,
    "off-centre": off_centre,
    "off-centre, inverted": lambda image: 255 - off_centre(image),
    "shifted": lambda image: np.roll(image, (3, -3), (0, 1)),
    "jpeg": as_jpeg,
    "enlarged jpeg": lambda image: as_jpeg(enlarged(image)),
    "faint": lambda image: (200 - 0.2 * image).astype(np.uint8),
    "photographed": photographed,
    "on a card": on_a_card,
}


def in_light(image: Bitmap, light: npt.NDArray[np.floating], darkness: float = 0.65) -> Bitmap:
    """Dark ink on paper of 500x560 in any light, with the grain of a sensor."""
    ink = np.pad(enlarged(image) / 255, ((100, 120), (150, 130)))
    grain = np.random.default_rng(0).normal(0, 4, ink.shape)
    return np.clip(light * (1 - darkness * ink) + grain, 0, 255).astype(np.uint8)


def shadow(columns: float, lean: float) -> npt.NDArray[np.floating]:
    """Light of which 0.55 is left in a shadow whose edge is 25 pixels wide."""
    y, x = np.mgrid[:500, :560]
    lies_in_it = x + lean * y < columns * 560
    return 215 * (1 - 0.45 * ndimage.gaussian_filter(lies_in_it.astype(float), 10))


def rules(apart: int, squared: bool) -> npt.NDArray[np.floating]:
    light = np.full((500, 560), 215.0)
    for shift in range(3):
        light[10 + shift :: apart] = 160
        if squared:
            light[:, 10 + shift :: apart] = 160
    return light


def with_edge() -> npt.NDArray[np.floating]:
    """The sheet ends before the picture does, and a dark table begins."""
    y, x = np.mgrid[:500, :560]
    return np.where(x + 0.1 * y > 540, 60.0, 215.0)


def in_frame() -> npt.NDArray[np.floating]:
    """A thin dark frame around paper in uneven light."""
    return np.pad(np.tile(np.linspace(205, 180, 530), (470, 1)), 15, constant_values=40.0)


def on_a_table(table: float) -> npt.NDArray[np.floating]:
    """A sheet that lies askew on a darker table."""
    y, x = np.mgrid[-250:250, -280:280]
    lies_on_sheet = (np.abs(x + 0.1 * y) < 225) & (np.abs(y - 0.1 * x) < 215)
    return np.where(lies_on_sheet, 215.0, table)


def dark_corners() -> npt.NDArray[np.floating]:
    """Light that fades away from the middle, as lenses have it."""
    y, x = np.mgrid[-1:1:500j, -1:1:560j]
    return 205 * (1 - 0.7 * (np.hypot(x, y) / 1.42) ** 3)


def torn_corner() -> npt.NDArray[np.floating]:
    """A sheet partly in shadow, beyond whose round corner it is black."""
    y, x = np.mgrid[:500, :560]
    lies_beyond = np.hypot(x - 560, y) < 130
    return np.where(lies_beyond, 5.0, shadow(0.6, 0.4))


#: A photograph takes as long as all the others.
SLOWEST = "photographed"
LIGHTS = {
    "left third in shadow": shadow(1 / 3, 0.0),
    "shadow across the digit": shadow(0.65, 0.6),
    "ruled": rules(60, squared=False),
    "squared": rules(50, squared=True),
    "sheet's edge": with_edge(),
    "shadow, black corner": torn_corner(),
    "sheet on a dark table": on_a_table(40.0),
    "sheet on a grey table": on_a_table(120.0),
}
#: Where faint strokes were lost beside what is darker.
PENCIL_LIGHTS = {"dark frame": in_frame(), "dark corners": dark_corners()}


def likeness(first: Bitmap, second: Bitmap) -> float:
    rows = [image.ravel().astype(float) for image in (first, second)]
    return float(np.corrcoef(*rows)[0, 1])


@pytest.mark.slow
def test_mnist_images_pass_bit_for_bit() -> None:
    assert all(np.array_equal(to_mnist(image.astype(np.float32)), image) for image in DIGITS)


@pytest.mark.parametrize(
    "way", [*sorted(set(WAYS) - {SLOWEST}), pytest.param(SLOWEST, marks=pytest.mark.slow)]
)
def test_a_digit_comes_back_as_mnist_holds_it(way: str) -> None:
    chosen = SOME[::2]
    back = [to_mnist(WAYS[way](image).astype(np.float32)) for image in chosen]
    alike = [likeness(*pair) for pair in zip(back, chosen, strict=True)]
    assert np.median(alike) > 0.9 and np.quantile(alike, 0.05) > 0.7
    assert all(
        image.shape == (28, 28) and image.dtype == np.uint8 and image.max() == 255 for image in back
    )


@pytest.mark.slow
@pytest.mark.parametrize("light", LIGHTS)
def test_neither_shadows_nor_rules_nor_an_edge_are_strokes(light: str) -> None:
    """A shadow's edge was read as a 1 once, with a probability of 0.996."""
    chosen = SOME[2::9]
    alike = [
        likeness(to_mnist(in_light(image, LIGHTS[light]).astype(np.float32)), image)
        for image in chosen
    ]
    assert np.median(alike) > 0.8 and np.mean(np.array(alike) > 0.6) >= 0.8


@pytest.mark.slow
@pytest.mark.parametrize("light", PENCIL_LIGHTS)
def test_a_pencil_is_seen_beside_what_is_darker(light: str) -> None:
    chosen = SOME[2::9]
    pictures = [in_light(image, PENCIL_LIGHTS[light], 0.3) for image in chosen]
    back = [to_mnist(picture.astype(np.float32)) for picture in pictures]
    alike = [likeness(*pair) for pair in zip(back, chosen, strict=True)]
    assert np.median(alike) > 0.8 and min(alike) > 0.6


def slanting_light() -> npt.NDArray[np.floating]:
    """Light that fades from a corner of the sheet to the other."""
    y, x = np.mgrid[-1:1:500j, -1:1:560j]
    return 150 * (1 - 0.25 * x - 0.2 * y)


@pytest.mark.slow
@pytest.mark.parametrize("is_inverted", [False, True])
def test_a_thick_pen_in_uneven_light_keeps_its_polarity(is_inverted: bool) -> None:
    """What lies between thick strokes is thinner than they are, and was taken for the strokes."""
    thickest = np.argsort([image.mean() for image in DIGITS])[-40::4]
    alike = []
    for image in DIGITS[thickest]:
        picture = in_light(image, slanting_light())
        if is_inverted:
            picture = np.asarray(255 - picture, np.uint8)
        alike.append(likeness(to_mnist(picture.astype(np.float32)), image))
    assert min(alike) > 0.7


def boxed(picture: Bitmap) -> Bitmap:
    """A box around the digit, as forms have it."""
    picture[20:260, 20:24] = picture[20:260, 256:260] = 60
    picture[20:24, 20:260] = picture[256:260, 20:260] = 60
    return picture


def underlined(picture: Bitmap) -> Bitmap:
    """A line below the digit, which does not reach the edges."""
    picture[228:232, 20:260] = 60
    return picture


@pytest.mark.parametrize("with_lines", [boxed, underlined])
def test_lines_around_a_digit_are_left_out(with_lines: Callable[[Bitmap], Bitmap]) -> None:
    for image in SOME[2::9]:
        plain = 255 - np.pad(enlarged(image, times=6), 56)
        alike = likeness(to_mnist(with_lines(plain.copy()).astype(np.float32)), image)
        assert alike > 0.8


def test_a_zero_with_a_stroke_in_it_keeps_both() -> None:
    """A zero with a stroke through it is rounder than a box."""
    picture = Image.new("L", (280, 280), 255)
    pen = ImageDraw.Draw(picture)
    pen.ellipse((70, 40, 210, 240), outline=0, width=14)
    pen.line((125, 160, 155, 120), 0, 14)
    seen = to_mnist(np.asarray(picture, np.float32))
    assert seen[4:8].max() > 200 and seen[12:16, 12:16].max() > 200


def test_lines_of_a_single_pixel_get_a_pens_width_in_small_pictures() -> None:
    drawing = np.full((28, 28), 255, np.float32)
    drawing[5:22, 18] = 0
    drawing[5, 8:18] = 0
    seven = to_mnist(drawing)
    assert (seven > 128).sum(axis=1).min(initial=9, where=(seven > 128).any(axis=1)) >= 2


def test_the_halves_of_a_broken_digit_are_no_two_digits() -> None:
    whole = np.kron(DIGITS[1203], np.ones((4, 4), np.uint8))
    rows = np.flatnonzero(whole.any(axis=1))
    middle = (rows[0] + rows[-1]) // 2
    whole[middle : middle + 2] = 0
    assert to_mnist(255.0 - whole.astype(np.float32)).shape == (28, 28)


@pytest.mark.slow
def test_the_result_has_mnists_form_whatever_came_in() -> None:
    for way in WAYS.values():
        for image in SOME[::7]:
            back = to_mnist(way(image).astype(np.float32)).astype(np.float32)
            assert np.abs(np.array(ndimage.center_of_mass(back)) - 14).max() < 1
            assert 18 <= max(np.ptp(axis) + 1 for axis in np.nonzero(back)) <= 20


def test_a_hairline_gets_a_pens_width() -> None:
    page = np.full((600, 500), 255, np.float32)
    page[100:500, 250] = 0
    assert (to_mnist(page) > 100).sum(axis=1).max() >= 2


MODES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "L": lambda grey: grey,
    "RGB": lambda grey: grey.convert("RGB"),
    "P": lambda grey: grey.convert("P"),
    "I;16": lambda grey: Image.fromarray(np.asarray(grey).astype(np.uint16) * 257),
    "16 bits holding 8": lambda grey: Image.fromarray(np.asarray(grey).astype(np.uint16)),
    "LA, opaque": lambda grey: grey.convert("LA"),
    "drawn in the alpha, black": lambda grey: Image.merge(
        "LA", (Image.new("L", grey.size, 0), grey)
    ),
    "drawn in the alpha, white": lambda grey: Image.merge(
        "LA", (Image.new("L", grey.size, 255), grey)
    ),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_of_png_passes_bit_for_bit(mode: str, tmp_path: Path) -> None:
    for image in SOME[::9]:
        MODES[mode](Image.fromarray(image)).save(tmp_path / "digit.png")
        assert np.array_equal(read_digit(tmp_path / "digit.png"), image)


@pytest.mark.parametrize("name", ["d.jpg", "d.bmp", "d.tif", "d.gif", "d.webp", "d.pgm", "d.png"])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK", "1"])
def test_formats_and_modes(name: str, mode: str, tmp_path: Path) -> None:
    picture = Image.fromarray(255 - enlarged(SOME[33])).convert(mode)
    try:
        picture.save(tmp_path / name)
    except (OSError, KeyError, ValueError):
        pytest.skip(f"{name} holds no {mode}")
    assert likeness(read_digit(tmp_path / name), SOME[33]) > 0.85


@pytest.mark.parametrize(("top", "least"), [(255.0, 0.0), (1.0, 0.0), (1.04, -0.03)])
def test_a_tiff_of_floats_is_read_whatever_they_range_over(
    top: float, least: float, tmp_path: Path
) -> None:
    """As numpy, matplotlib and scikit-image make them; a resampled one may overshoot."""
    Image.fromarray(enlarged(SOME[33]).astype(np.float32) / 255 * (top - least) + least).save(
        tmp_path / "d.tif"
    )
    assert likeness(read_digit(tmp_path / "d.tif"), SOME[33]) > 0.85


def test_the_orientation_tag_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    turned = Image.fromarray(enlarged(SOME[77])).transpose(Image.Transpose.ROTATE_90)
    turned.save(tmp_path / "d.jpg", exif=exif)
    assert likeness(read_digit(tmp_path / "d.jpg"), SOME[77]) > 0.8


def test_of_an_animation_the_first_frame(tmp_path: Path) -> None:
    frames = [Image.fromarray(enlarged(SOME[k])) for k in (20, 80)]
    frames[0].save(tmp_path / "d.gif", save_all=True, append_images=frames[1:])
    assert likeness(read_digit(tmp_path / "d.gif"), SOME[20]) > 0.9


def test_yellow_on_white_is_seen(tmp_path: Path) -> None:
    paper = np.full((280, 280, 3), 255, np.uint8)
    paper[..., 2] -= enlarged(SOME[55])
    Image.fromarray(paper).save(tmp_path / "d.png")
    assert likeness(read_digit(tmp_path / "d.png"), SOME[55]) > 0.9


NOISE = np.random.default_rng(1)
NO_DIGIT: dict[str, tuple[Bitmap, str]] = {
    "white": (np.full((50, 60), 255, np.uint8), "blank"),
    "black 28x28": (np.zeros((28, 28), np.uint8), "blank"),
    "a speck": (np.pad(np.full((2, 2), 255, np.uint8), 40), "blank"),
    "paper": (np.clip(NOISE.normal(220, 6, (300, 300)), 0, 255).astype(np.uint8), "blank|no digit"),
    "gradient": (np.tile(np.arange(200, dtype=np.uint8), (150, 1)), "blank|no digit"),
    "noise": (NOISE.integers(0, 256, (28, 28)).astype(np.uint8), "no digit"),
    "large noise": (NOISE.integers(0, 256, (300, 200)).astype(np.uint8), "no digit"),
    "disc": (np.uint8(255) * (np.hypot(*np.mgrid[-50:50, -50:50]) < 30).astype(np.uint8), "solid"),
    "two": (np.hstack([DIGITS[0], DIGITS[2600]]), "2 marks"),
    "two, enlarged, inverted": (
        255 - np.kron(np.hstack([DIGITS[0], DIGITS[2600]]), np.ones((9, 9), np.uint8)),
        "2 ",
    ),
    "stacked": (np.vstack([DIGITS[1000], DIGITS[2600]]), "2 marks"),
    "three": (np.hstack(DIGITS[[3, 700, 4000]]), "3 marks"),
    "a sheet": (
        np.vstack([np.hstack(row) for row in DIGITS[:4800:100].reshape(6, 8, 28, 28)]),
        "marks",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", NO_DIGIT)
def test_what_is_no_digit_is_refused_with_its_word(case: str) -> None:
    picture, word = NO_DIGIT[case]
    with pytest.raises(ImageError, match=word):
        to_mnist(picture.astype(np.float32))


@pytest.mark.slow
@pytest.mark.parametrize("way", ["inverted", "enlarged, bicubic", "off-centre", "jpeg"])
def test_broken_strokes_are_no_second_digit(way: str) -> None:
    broken = [image for image in DIGITS[::4] if ndimage.label(image > 60, np.ones((3, 3)))[1] > 1]
    assert len(broken) > 30
    refused = 0
    for image in broken:
        try:
            to_mnist(WAYS[way](image).astype(np.float32))
        except ImageError:
            refused += 1
    assert refused <= 0.05 * len(broken)  # under one in a thousand of all images


def damaged(name: str, folder: Path) -> Path:
    path = folder / name
    whole = io.BytesIO()
    Image.fromarray(enlarged(SOME[0])).save(whole, "PNG")
    contents = {"text.png": b"hello", "empty.png": b"", "drawing.svg": b"<svg xmlns=''/>"}
    path.write_bytes(contents.get(name, whole.getvalue()[: len(whole.getvalue()) // 2]))
    return path


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("text.png", "not an image"),
        ("empty.png", "empty"),
        ("drawing.svg", "SVG"),
        ("cut.png", "damaged"),
    ],
)
def test_files_that_cannot_be_read(name: str, word: str, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=word):
        read_digit(damaged(name, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("side", [9_500, 20_000])
def test_a_bomb_is_refused_before_it_is_decoded(side: int, tmp_path: Path) -> None:
    Image.new("1", (side, side)).save(tmp_path / "bomb.png")
    with warnings.catch_warnings(), pytest.raises(ImageError, match="too large"):
        warnings.simplefilter("error")
        read_grey(tmp_path / "bomb.png")


def test_too_small_a_picture_says_so(tmp_path: Path) -> None:
    Image.new("L", (3, 40)).save(tmp_path / "d.png")
    with pytest.raises(ImageError, match="at least 5 pixels a side, got 3x40"):
        read_digit(tmp_path / "d.png")


def test_too_narrow_a_picture_is_named_by_its_own_size(tmp_path: Path) -> None:
    Image.new("L", (4000, 16)).save(tmp_path / "d.png")
    with pytest.raises(ImageError, match="too narrow: at least 5 .*, got 4000x16; crop"):
        read_digit(tmp_path / "d.png")


def test_only_mnists_own_form_passes() -> None:
    digit = DIGITS[0].astype(np.float32)
    assert is_mnist_form(digit)
    assert not is_mnist_form(255 - digit) and not is_mnist_form(np.roll(digit, 3, 0))
    assert not is_mnist_form(np.pad(digit, 1)) and not is_mnist_form(digit * 0)
