"""Image files of every kind that users have are decoded to the picture that a viewer shows."""

import errno
import io
import struct
import warnings

import numpy as np
import pytest
from dissim_retrieval.data import decode as decode_module
from dissim_retrieval.data.decode import ENDINGS, FORMATS, DamagedImageError, decode, decode_opened, printable
from dissim_retrieval.thumbnail import thumbnail
from PIL import Image, ImageOps

GRADIENT = np.stack(np.broadcast_arrays(np.arange(0, 256, 8)[:, None], np.arange(0, 256, 8)[None], 90), -1).astype(
    np.uint8
)


def saved(tmp_path, image, name, **options):
    image.save(tmp_path / name, **options)
    return str(tmp_path / name)


@pytest.mark.parametrize("ending", sorted(ENDINGS - {".avif", ".jp2"}))
def test_every_ending_decodes(tmp_path, ending):
    path = saved(tmp_path, Image.fromarray(GRADIENT), f"picture{ending}")
    expected = GRADIENT if ending not in (".pgm", ".pbm") else np.asarray(Image.open(path).convert("RGB"))
    assert np.abs(decode(path, (32, 32)).astype(int) - expected).mean() < 12  # GIF has 256 colors, JPEG is lossy


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["photo.jpg", "scan.tif", "picture.png"])
def test_upright_by_exif(tmp_path, name, orientation):
    """The picture is not square, so that a height and width that are not exchanged would show."""
    stored = Image.fromarray(GRADIENT[:, :16])
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, stored, name, exif=exif)
    with Image.open(path) as image:
        expected = ImageOps.exif_transpose(image).convert("RGB")
    height, width = expected.height, expected.width
    assert np.array_equal(decode(path, (height, width)), np.asarray(expected))


@pytest.mark.parametrize("orientation", [0, 9, 90])
def test_an_orientation_that_does_not_exist_means_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, Image.fromarray(GRADIENT[:, :16]), "picture.png", exif=exif)
    assert np.array_equal(decode(path, (32, 16)), GRADIENT[:, :16])


def test_a_photo_with_a_preview_shows_the_photo(tmp_path):
    """Phones write MPO, a JPEG followed by others, with the ending .jpg."""
    photo, preview = Image.fromarray(GRADIENT), Image.new("RGB", (8, 8), "red")
    path = saved(tmp_path, photo, "photo.jpg", format="MPO", save_all=True, append_images=[preview], quality=95)
    assert np.abs(decode(path, (32, 32)).astype(int) - GRADIENT).mean() < 3


def test_a_photo_with_damaged_exif_is_taken_as_it_is_stored(tmp_path):
    path = saved(tmp_path, Image.fromarray(GRADIENT), "photo.jpg", exif=b"Exif\0\0XX\0\0not a TIFF header")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert np.abs(decode(path, (32, 32)).astype(int) - GRADIENT).mean() < 3


@pytest.mark.parametrize("name", ["gray.png", "gray.tif", "gray.pgm"])
def test_16_bits_become_the_upper_8(tmp_path, name):
    ramp = np.tile(np.linspace(0, 65535, 32).astype(np.uint16), (32, 1))
    decoded = decode(saved(tmp_path, Image.fromarray(ramp), name), (32, 32))
    assert np.abs(decoded.astype(int) - (ramp >> 8)[..., None]).max() <= 1


def tiff(values, bits, photometric):
    """A gray TIFF of one row, which PIL does not write: uncompressed, little-endian, `bits` a value."""
    if bits == 12:
        pairs = np.array(values).reshape(-1, 2)
        strip = b"".join(((a << 12) | b).to_bytes(3, "big") for a, b in pairs.tolist())
    else:
        strip = np.array(values, "<u2").tobytes()
    tags = [(256, len(values)), (257, 1), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, 1)]
    tags.append((279, len(strip)))
    offset = 8 + len(strip)
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return struct.pack("<2sHI", b"II", 42, offset) + strip + struct.pack("<H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize(("bits", "photometric"), [(12, 1), (16, 1), (16, 0)])
def test_a_tiff_says_how_many_bits_it_has_and_whether_white_is_0(tmp_path, bits, photometric):
    top = 2**bits - 1
    (tmp_path / "gray.tif").write_bytes(tiff([0, top, top // 2, 0], bits, photometric))
    expected = [0, 255, 127, 0] if photometric else [255, 0, 128, 255]
    assert decode(str(tmp_path / "gray.tif"), (1, 4))[0, :, 0].tolist() == expected


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), MemoryError()], ids=repr)
def test_a_failure_of_the_machine_is_no_damaged_image(tmp_path, error):
    class Broken(io.BytesIO):
        def read(self, *size):
            raise error

    with pytest.raises(type(error), match="photo.png" if error.args else None):
        decode_opened(Broken(b"x"), 4, "photo.png")


def test_an_offset_that_no_file_has_is_damage(tmp_path):
    path = tmp_path / "big.tif"
    path.write_bytes(b"II\x2b\0\x08\0\0\0" + struct.pack("<Q", 2**63 - 1) + bytes(50))
    with pytest.raises(DamagedImageError, match=r"big\.tif: expected an image that can be .*Invalid arg"):
        decode(str(path), 4)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bits_have_no_known_range(tmp_path, mode):
    path = saved(tmp_path, Image.new(mode, (4, 4)), "depth.tif")
    with pytest.raises(ValueError, match=r"depth\.tif: expected .* 32 bits per pixel"):
        decode(path, (4, 4))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB"])
def test_transparent_areas_are_white(tmp_path, mode):
    """A black square on a transparent ground with hidden colors; P, L and RGB name a transparent color."""
    pixels = np.zeros((32, 32, 4), np.uint8)
    pixels[..., :3] = 77
    pixels[8:24, 8:24] = (0, 0, 0, 255)
    image, options = Image.fromarray(pixels), {}
    if mode in ("P", "L", "RGB"):
        image = image.convert("RGB").quantize(2) if mode == "P" else image.convert("RGB").convert(mode)
        options["transparency"] = image.getpixel((0, 0))
    decoded = decode(saved(tmp_path, image.convert(mode), "logo.png", **options), (32, 32))
    assert (decoded[:8] == 255).all() and (decoded[8:24, 8:24] == 0).all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_other_color_modes(tmp_path, mode):
    image = Image.fromarray(GRADIENT).convert(mode)
    name = "picture.png" if mode in ("1", "L", "P") else "picture.jpg"
    decoded = decode(saved(tmp_path, image, name), (32, 32))
    assert np.abs(decoded.astype(int) - np.asarray(image.convert("RGB"))).mean() < 8


def test_an_animation_shows_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    path = saved(tmp_path, frames[0], "moving.gif", save_all=True, append_images=frames[1:])
    assert decode(path, (8, 8)).tolist() == np.asarray(frames[0]).tolist()


def test_the_content_decides_not_the_ending(tmp_path):
    saved(tmp_path, Image.fromarray(GRADIENT), "picture.png")
    (tmp_path / "picture.png").rename(tmp_path / "picture.JPG")
    assert np.array_equal(decode(str(tmp_path / "picture.JPG"), (32, 32)), GRADIENT)


def test_a_reduced_jpeg_looks_like_one_decoded_whole(tmp_path):
    photo = Image.fromarray(GRADIENT).resize((512, 384), Image.Resampling.BICUBIC)
    path = saved(tmp_path, photo, "photo.jpg", quality=95)
    with Image.open(path) as image:
        expected = np.asarray(image.resize((48, 48), Image.Resampling.BICUBIC))
    assert np.abs(decode(path, (48, 48)).astype(int) - expected).mean() < 2


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.95])
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.gif", "a.bmp", "a.tif", "a.webp", "a.ppm"])
def test_truncated_files_are_named(tmp_path, name, keep):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / saved(tmp_path, Image.fromarray(noise), name)
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(ValueError, match=rf"{name}: expected an image that can be decoded, got \w+") as caught:
        decode(str(path), (16, 16))
    assert "\n" not in str(caught.value)


def test_damaged_bytes_raise_a_value_error_or_nothing(tmp_path):
    """Whatever a decoder raises on random damage arrives as ValueError."""
    draw = np.random.default_rng(0)
    for name in ("a.jpg", "a.png", "a.gif", "a.tif", "a.webp", "a.bmp"):
        path = tmp_path / saved(tmp_path, Image.fromarray(GRADIENT), name)
        content = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(60):
            damaged = content.copy()
            damaged[draw.integers(0, len(content), 4)] = draw.integers(0, 256, 4)
            path.write_bytes(damaged.tobytes())
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    assert decode(str(path), (8, 8)).shape == (8, 8, 3)
                except ValueError as error:
                    assert name in str(error)


def test_huge_images_are_named(tmp_path, monkeypatch):
    path = saved(tmp_path, Image.new("1", (20_000, 20_000)), "huge.png")
    with pytest.raises(ValueError, match=r"huge\.png: .*(pixels|limit)"):
        decode(path, (8, 8))
    monkeypatch.setattr(decode_module, "MAX_PIXELS", 1000)
    path = saved(tmp_path, Image.fromarray(GRADIENT), "large.png")
    with pytest.raises(ValueError, match=r"large\.png: .* 32 x 32 pixels, more than"):
        decode(path, (8, 8))
    path = saved(tmp_path, Image.fromarray(GRADIENT), "large.jpg")
    assert decode(path, (8, 8)).shape == (8, 8, 3), "a JPEG is reduced while it is decoded"


def test_no_decoder_starts_programs(tmp_path):
    assert not {"EPS", "WMF"} & set(FORMATS)
    path = saved(tmp_path, Image.fromarray(GRADIENT), "script.eps")
    with pytest.raises(ValueError, match=r"script\.eps: .* none of the formats"):
        decode(path, (8, 8))


def test_names_that_are_not_utf8_are_printable():
    assert printable("caf\udce9/é.png") == "caf\\xe9/é.png"


@pytest.mark.parametrize(("orientation", "upright"), [(1, (200, 100)), (6, (100, 200)), (9, (200, 100))])
@pytest.mark.parametrize("name", ["photo.jpg", "scan.tif"])
def test_a_thumbnail_is_turned_as_the_image_is(tmp_path, name, orientation, upright):
    exif = Image.Exif()
    exif[0x0112] = orientation
    small = thumbnail(saved(tmp_path, Image.new("RGB", (400, 200), "teal"), name, exif=exif))
    assert Image.open(io.BytesIO(small)).size == upright


def test_a_thumbnail_with_an_orientation_as_text(tmp_path):
    exif = b"Exif\0\0" + struct.pack("<2sHIHHHI4sI", b"II", 42, 8, 1, 0x0112, 2, 2, b"6", 0)
    small = thumbnail(saved(tmp_path, Image.new("RGB", (400, 200)), "photo.jpg", exif=exif))
    assert Image.open(io.BytesIO(small)).size == (100, 200)


def test_a_thumbnail_of_another_format_is_none(tmp_path):
    assert thumbnail(saved(tmp_path, Image.new("RGB", (8, 8)), "picture.ico")) is None
