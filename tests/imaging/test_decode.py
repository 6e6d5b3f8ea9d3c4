"""Pictures as they come: what they become, and the reason they are refused for."""

from __future__ import annotations

import io
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llavamed.errors import InputError
from llavamed.imaging.decode import ImageError, decode, glance, read

RED, WHITE = (255, 0, 0), (255, 255, 255)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def noise(width: int = 64, height: int = 48) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_formats_give_the_very_pixels(kind: str) -> None:
    image = decode(encoded(noise(), kind, **({"lossless": True} if kind == "WEBP" else {})))
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), np.asarray(noise()))


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 90, (90, 90, 90)),
        ("1", 1, WHITE),
        ("P", 0, (0, 0, 0)),
        ("LA", (90, 0), WHITE),
        ("RGBA", (255, 0, 0, 255), RED),
    ],
)
def test_modes_become_rgb(mode: str, colour: object, expected: tuple[int, int, int]) -> None:
    image = decode(encoded(Image.new(mode, (4, 3), colour), "PNG"))
    assert image.mode == "RGB"
    assert image.getpixel((1, 1)) == expected


def test_half_transparent_pixels_are_mixed_with_white_paper() -> None:
    image = decode(encoded(Image.new("RGBA", (2, 2), (0, 0, 0, 128)), "PNG"))
    assert image.getpixel((0, 0)) == (127, 127, 127)


def test_palette_with_a_transparent_colour_shows_white_there() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.putpixel((1, 0), 1)
    image = decode(encoded(palette, "PNG", transparency=0))
    assert [image.getpixel((x, 0)) for x in (0, 1)] == [WHITE, RED]


def test_cmyk_jpeg_is_read_as_rgb() -> None:
    image = decode(encoded(Image.new("CMYK", (16, 16), (0, 0, 0, 0)), "JPEG"))
    assert image.mode == "RGB"
    assert min(image.getpixel((8, 8))) > 250


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (np.array([[1000, 3000], [2000, 1000]], np.uint16), "PNG"),
        (np.array([[1000, 3000], [2000, 1000]], np.int32), "TIFF"),
        (np.array([[-0.5, 1.5], [0.5, -0.5]], np.float32), "TIFF"),
    ],
)
def test_deep_images_are_windowed_from_smallest_to_largest_value(values: np.ndarray, kind: str) -> None:
    image = np.asarray(decode(encoded(Image.fromarray(values), kind)))
    np.testing.assert_array_equal(image[..., 0], [[0, 255], [128, 0]])


def test_not_a_number_is_black() -> None:
    values = np.array([[np.nan, 1.0], [2.0, np.inf]], np.float32)
    image = np.asarray(decode(encoded(Image.fromarray(values), "TIFF")))
    np.testing.assert_array_equal(image[..., 0], [[0, 0], [255, 0]])


def test_a_picture_that_exif_calls_turned_is_turned_back() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = decode(encoded(Image.new("RGB", (30, 10)), "JPEG", exif=exif))
    assert image.size == (10, 30)


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (4, 4), RED), Image.new("RGB", (4, 4), (0, 0, 255))]
    image = decode(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert image.getpixel((0, 0)) == RED


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP", "WEBP"])
@pytest.mark.parametrize("kept", [0.9, 0.5])
def test_cut_files_are_refused_with_a_reason(kind: str, kept: float) -> None:
    data = encoded(noise(), kind)
    with pytest.raises(ImageError, match="fig1") as caught:
        decode(data[: int(len(data) * kept)], "fig1")
    assert caught.value.reason in {"truncated", "damaged"}
    if kind in {"JPEG", "PNG"}:
        assert caught.value.reason == "truncated"


@pytest.mark.parametrize(
    "data", [b"<html>404</html>", b"%PDF-1.4 ...", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]
)
def test_what_is_no_raster_image_is_refused(data: bytes) -> None:
    with pytest.raises(ImageError) as caught:
        decode(data)
    assert caught.value.reason == "not_an_image"


def test_an_empty_file_is_refused() -> None:
    with pytest.raises(ImageError) as caught:
        decode(b"")
    assert caught.value.reason == "empty"


def test_size_is_checked_before_pixels_are_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.new("1", (3000, 2000)), "PNG")
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", lambda self: pytest.fail("pixels were unpacked"))
    with pytest.raises(ImageError, match="3000 x 2000") as caught:
        decode(data, max_pixels=1_000_000)
    assert caught.value.reason == "too_many_pixels"


def test_a_header_that_promises_terapixels_is_refused() -> None:
    data = bytearray(encoded(Image.new("1", (8, 8)), "BMP"))
    data[18:26] = (2**20).to_bytes(4, "little") * 2
    with pytest.raises(ImageError) as caught:
        decode(bytes(data))
    assert caught.value.reason == "too_many_pixels"


def test_damage_at_any_byte_is_an_image_or_an_image_error() -> None:
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"):
        data = encoded(noise(16, 16), kind)
        random = np.random.default_rng(1)
        for _ in range(60):
            broken = bytearray(data)
            broken[random.integers(len(broken))] = random.integers(256)
            try:
                assert decode(bytes(broken), max_pixels=1_000_000).mode == "RGB"
            except ImageError as error:
                assert error.reason  # noqa: PT017


# --- a glance --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK", "P", "RGBA", "I;16"])
def test_a_glance_says_what_the_whole_picture_says(kind: str, mode: str) -> None:
    smooth = np.add.outer(np.linspace(0, 127, 300), np.linspace(0, 128, 400)).astype(np.uint8)
    image = Image.fromarray(smooth.astype(np.uint16) * 200) if mode == "I;16" else Image.fromarray(smooth).convert(mode)
    try:
        data = encoded(image, kind)
    except (OSError, ValueError):
        pytest.skip(f"{kind} has no {mode}")
    seen, full = glance(data), decode(data)
    assert (seen.width, seen.height) == full.size == (400, 300)
    assert seen.grey.mode == "L"
    assert min(seen.grey.size) >= 64
    assert (seen.full is None) == (kind == "JPEG")
    expected = np.asarray(full.convert("L").resize(seen.grey.size, Image.Resampling.BOX), np.float64)
    assert np.abs(np.asarray(seen.grey, np.float64) - expected).mean() < (6 if kind == "GIF" else 3)  # a GIF's palette


@pytest.mark.parametrize("turned", range(1, 9))
def test_a_glance_at_a_turned_photograph_is_upright(turned: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turned
    slope = np.add.outer(np.linspace(0, 200, 290), np.linspace(0, 50, 300)).astype(np.uint8)
    data = encoded(Image.fromarray(slope), "JPEG", exif=exif)
    seen, full = glance(data), decode(data)
    assert (seen.width, seen.height) == full.size
    small = full.convert("L").resize(seen.grey.size, Image.Resampling.BOX)
    assert np.corrcoef(np.asarray(small).ravel(), np.asarray(seen.grey).ravel())[0, 1] > 0.99


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_a_glance_refuses_what_decoding_refuses(kind: str, kept: float) -> None:
    data = encoded(noise(500, 400), kind)
    cut = data[: int(len(data) * kept)]
    with pytest.raises(ImageError) as thorough:
        decode(cut)
    with pytest.raises(ImageError) as quick:
        glance(cut)
    assert quick.value.reason == thorough.value.reason


def test_only_the_first_page_of_a_tiff_is_read() -> None:
    pages = [Image.new("RGB", (9, 7), RED), Image.new("RGB", (20, 20), WHITE)]
    data = encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    assert decode(data).size == (9, 7)
    assert (glance(data).width, glance(data).height) == (9, 7)


def test_a_jpeg_of_hundreds_of_scans_is_refused() -> None:
    data = encoded(noise(), "JPEG")
    with pytest.raises(ImageError) as caught:
        decode(data[:-2] + b"\xff\xda\x00" * 1000 + data[-2:])
    assert caught.value.reason == "too_many_scans"


def test_a_deep_picture_takes_a_few_times_its_size() -> None:
    image = Image.fromarray(np.arange(4_000_000, dtype=np.int32).reshape(2000, 2000))
    data = encoded(image, "TIFF")
    tracemalloc.start()
    shown = decode(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 45_000_000  # numpy's part: the values, as they come from Pillow, and a strip; in 64 bits it was 130
    assert shown.getpixel((0, 0)) == (0, 0, 0)
    assert shown.getpixel((1999, 1999)) == WHITE


def test_read_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="scan\\.png"):
        read(tmp_path / "scan.png")


def test_real_medical_pictures_are_read(shared_data: Path) -> None:
    files = sorted((shared_data / "modality").glob("*.png"))
    assert files
    for file in files:
        with Image.open(file) as original:
            assert read(file).size == original.size


def test_a_jpeg_may_come_smaller_and_never_smaller_than_asked_for() -> None:
    image = Image.radial_gradient("L").resize((1000, 700)).convert("RGB")
    for mode in ("RGB", "L", "CMYK"):
        out = io.BytesIO()
        image.convert(mode).save(out, "JPEG", quality=95)
        small = decode(out.getvalue(), side=320)
        assert (small.mode, small.size) == ("RGB", (500, 350))
        assert decode(out.getvalue(), side=700).size == decode(out.getvalue()).size == (1000, 700)
        whole = np.asarray(decode(out.getvalue()).resize((500, 350)), np.int16)
        assert np.abs(np.asarray(small, np.int16) - whole).mean() < 2
