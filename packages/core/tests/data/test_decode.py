import io

import fuzz_images
import numpy as np
import pillow_heif
import pytest
import tifffile
import torch
import torch.nn.functional as F
from image_files import retagged, run_lengths, tiff
from PIL import Image, PngImagePlugin

from ssl_core.data import BrokenImageError, decode, decode_image
from ssl_core.jpeg import faster_decoder


def channels_first(pixels):
    return torch.from_numpy(pixels).permute(2, 0, 1)


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def test_lossless_color_comes_back_exactly(make):
    pixels = make.noise(5, 7, 3)
    for format in ("PNG", "BMP", "TIFF", "PPM"):
        assert torch.equal(decode_image(make.encoded(pixels, format)), channels_first(pixels))


def test_jpeg_is_close_to_what_was_encoded(make):
    smooth = np.broadcast_to(np.arange(0, 240, 4, dtype=np.uint8)[:, None, None], (60, 40, 3))
    image = decode_image(make.encoded(np.ascontiguousarray(smooth), "JPEG", quality=95))
    assert (image.int() - channels_first(np.ascontiguousarray(smooth)).int()).abs().max() <= 3


def test_gray_is_one_channel_or_repeated(make):
    pixels = make.noise(4, 6)
    data = make.encoded(pixels)
    assert torch.equal(decode_image(data), torch.from_numpy(pixels)[None])
    assert torch.equal(decode_image(data, 3), torch.from_numpy(pixels).expand(3, 4, 6))
    assert decode_image(data, 7).shape == (7, 4, 6)


def test_color_becomes_gray_by_its_luma(make):
    red = np.zeros((1, 1, 3), dtype=np.uint8)
    red[..., 0] = 200
    # 0.299 * 200 = 59.8
    assert decode_image(make.encoded(red), 1).item() == 60
    assert decode_image(make.png_16bit(red.astype(np.uint16)), 1).item() == 60
    floating = np.broadcast_to(red / 255, (5, 5, 3))
    assert decode_image(npy(floating), 1).unique().item() == pytest.approx(0.299 * 200 / 255)


def test_a_palette_gives_its_colors(make):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    assert decode_image(make.encoded(image)).squeeze(1).T.tolist() == [[10, 20, 30], [40, 50, 60]]


def test_a_transparent_palette_entry_becomes_white(make):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    colors = decode_image(make.encoded(image, transparency=0)).squeeze(1).T.tolist()
    assert colors == [[255, 255, 255], [40, 50, 60]]


def test_transparency_is_composited_over_white_or_kept_as_a_channel(make):
    pixels = np.array([[[100, 0, 0, 255], [100, 0, 0, 0]]], dtype=np.uint8)
    data = make.encoded(pixels)
    assert decode_image(data).squeeze(1).T.tolist() == [[100, 0, 0], [255, 255, 255]]
    assert torch.equal(decode_image(data, 4), channels_first(pixels))


def test_gray_with_alpha_stays_one_channel(make):
    pixels = np.array([[[100, 255], [100, 0]]], dtype=np.uint8)
    assert decode_image(make.encoded(Image.fromarray(pixels, "LA"))).tolist() == [[[100, 255]]]


def test_cmyk_becomes_rgb_or_gray(make):
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    data = make.encoded(image, "TIFF")
    assert decode_image(data)[:, 0, 0].tolist() == [255, 0, 0]
    assert decode_image(data, 1)[:, 0, 0].tolist() == [76]


def test_bilevel_becomes_black_and_white(make):
    image = Image.fromarray(np.array([[True, False]]))
    assert decode_image(make.encoded(image)).tolist() == [[[255, 0]]]


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bit_gray_keeps_its_bits(make, format):
    pixels = make.noise(5, 7, dtype=np.uint16)
    image = decode_image(make.encoded(pixels, format))
    assert image.dtype == torch.uint16
    assert np.array_equal(image[0].numpy(), pixels)


@pytest.mark.parametrize("format", ["png", "tiff"])
def test_sixteen_bit_color_keeps_its_bits(make, format):
    pixels = make.noise(5, 7, 3, dtype=np.uint16)
    data = {"png": make.png_16bit, "tiff": make.tiff_16bit}[format](pixels)
    assert np.array_equal(decode_image(data).numpy(), pixels.transpose(2, 0, 1))
    assert decode_image(data, 1).dtype == torch.uint16


def test_sixteen_bit_transparency_is_composited_over_white_or_kept(make):
    pixels = np.array([[[1000, 2000, 3000, 65535], [1000, 2000, 3000, 0]]], dtype=np.uint16)
    data = make.png_16bit(pixels)
    assert decode_image(data).squeeze(1).T.tolist() == [[1000, 2000, 3000], [65535] * 3]
    assert np.array_equal(decode_image(data, 4).numpy(), pixels.transpose(2, 0, 1))


def test_sixteen_bit_gray_with_alpha_is_refused_rather_than_degraded(make):
    with pytest.raises(BrokenImageError, match="LA;16B; save it without alpha"):
        decode_image(make.png_16bit(make.noise(5, 7, 2, dtype=np.uint16)))


def test_float_tiff_is_float(make):
    pixels = np.array([[0.25, 1.0]], dtype=np.float32)
    image = decode_image(make.encoded(pixels, "TIFF"))
    assert image.dtype == torch.float32
    assert image.tolist() == [[[0.25, 1.0]]]


def test_gray_pages_of_a_tiff_are_channels(make):
    pages = [make.noise(4, 6, seed=seed, dtype=np.uint16) for seed in range(5)]
    rest = [Image.fromarray(page) for page in pages[1:]]
    image = decode_image(make.encoded(pages[0], "TIFF", save_all=True, append_images=rest))
    assert np.array_equal(image.numpy(), np.stack(pages))


def test_color_pages_of_a_tiff_are_refused(make):
    pages = [Image.fromarray(make.noise(4, 6, 3)) for _ in range(2)]
    with pytest.raises(BrokenImageError, match="2 pages"):
        decode_image(make.encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:]))


def test_exif_orientation_is_applied(make):
    pixels = make.noise(4, 6, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise to view
    image = decode_image(make.encoded(pixels, exif=exif))
    assert torch.equal(image, channels_first(np.rot90(pixels, -1).copy()))


def test_npy_layout_follows_the_channel_rule(make):
    first, last = make.noise(5, 20, 30), make.noise(20, 30, 5)
    assert np.array_equal(decode_image(npy(first)).numpy(), first)
    assert np.array_equal(decode_image(npy(last)).numpy(), last.transpose(2, 0, 1))
    # Twelve channels only because they were asked for: the other axis is shorter.
    assert decode_image(npy(make.noise(12, 20, 5)), 12).shape == (12, 20, 5)
    assert decode_image(npy(make.noise(5, 20, 12)), 12).shape == (12, 5, 20)
    assert decode_image(npy(make.noise(20, 30))).shape == (1, 20, 30)


@pytest.mark.parametrize(
    ("stored", "read"),
    [
        (np.bool_, torch.uint8),
        (np.uint8, torch.uint8),
        (">u2", torch.uint16),
        (np.float16, torch.float32),
        (np.float64, torch.float32),
    ],
    ids=str,
)
def test_npy_types(stored, read):
    image = decode_image(npy(np.ones((2, 3), dtype=stored)))
    assert image.dtype == read
    assert image.unique().item() == (255 if stored == np.bool_ else 1)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((2, 2), dtype=np.int64), "int64"),
        (np.full((2, 2), 1.5), r"scale them to \[0, 1\]"),
        (np.full((2, 2), np.nan), "NaN or infinite"),
        (np.array([[0.5, -np.inf]]), "NaN or infinite"),
        (np.ones((2, 2, 2, 2), dtype=np.uint8), "shape"),
        (np.ones((0, 3), dtype=np.uint8), "shape"),
        (np.array([{}]), "pickle"),
    ],
    ids=["int64", "too large", "nan", "infinite", "4 axes", "empty", "objects"],
)
def test_npy_that_is_no_image_is_broken(array, message):
    with pytest.raises(BrokenImageError, match=message):
        decode_image(npy(array))


def test_channels_that_cannot_be_made_are_named(make):
    with pytest.raises(BrokenImageError, match=r"a\.npy: an image of 5 channels cannot become one of 3"):
        decode_image(npy(make.noise(5, 9, 9)), 3, identifier="a.npy")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "zero bytes"),
        (b"<html>404 Not Found</html>", "not an image in a known format; it begins with b'<html>404"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "pointer of Git LFS.*git lfs pull"),
        (b"8BPS\0\1", "it begins with b'8BPS"),
        (b"RIFF\0\0\0\0AVI LIST", "it begins with b'RIFF"),
        (b"\0\0\0\x18ftypmp42", r"it begins with b'\\x00\\x00\\x00\\x18ftypmp42"),
        (b"\xff\xd8\xff\xe0", "damaged JPEG"),
        (b"\0\0\0\x18ftypheic", "damaged HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif", "(damaged AVIF|an AVIF image, which this Pillow cannot read)"),
        (b"II*\0\x08\0\0\0", "damaged TIFF"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "damaged JPEG 2000"),
    ],
    ids=lambda value: value[:16] if isinstance(value, bytes) else "",
)
def test_what_is_no_image_is_named(data, message):
    with pytest.raises(BrokenImageError, match=rf"(?s)^x\.png: .*{message}"):
        decode_image(data, identifier="x.png")


def test_any_exception_of_a_decoder_is_a_broken_image_in_one_line(make, monkeypatch):
    def fails(image, **options):
        raise ZeroDivisionError("division\n  by zero")

    monkeypatch.setattr("PIL.ImageOps.exif_transpose", fails)
    with pytest.raises(BrokenImageError, match=r"^a\.png: damaged PNG: division by zero$"):
        decode_image(make.encoded(make.noise(2, 2)), identifier="a.png")


@pytest.mark.parametrize("extra", ["text", "many texts", "color profile"])
def test_a_png_with_much_beside_its_pixels_is_read(make, extra):
    pixels, texts = make.noise(4, 6, 3), PngImagePlugin.PngInfo()
    exif = Image.Exif()
    exif[0x0112] = 6
    for number in range({"text": 1, "many texts": 70}.get(extra, 0)):
        texts.add_text(str(number), "x" * (2_000_000 if extra == "text" else 1_000_000), zip=True)
    profile = bytes(2_000_000) if extra == "color profile" else None
    data = make.encoded(pixels, pnginfo=texts, icc_profile=profile, exif=exif)
    assert torch.equal(decode_image(data), channels_first(np.rot90(pixels, -1).copy()))


def test_the_orientation_in_a_text_of_a_png_is_applied(make):
    pixels, texts = make.noise(4, 6, 3), PngImagePlugin.PngInfo()
    texts.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    assert torch.equal(decode_image(make.encoded(pixels, pnginfo=texts)), channels_first(np.rot90(pixels, -1).copy()))


@pytest.mark.parametrize("format", ["PNG", "TIFF", "TIFF of 5 bands", "HEIC"])
def test_an_image_larger_than_the_limit_is_refused_before_it_is_decoded(make, format, monkeypatch):
    buffer = io.BytesIO()
    if format == "TIFF of 5 bands":
        tifffile.imwrite(buffer, make.noise(16, 24, 5), photometric="minisblack", planarconfig="contig")
    elif format == "HEIC":
        pillow_heif.from_pillow(Image.new("RGB", (24, 16))).save(buffer)
    else:
        buffer.write(make.encoded(make.noise(16, 24, 3), format))
    monkeypatch.setattr("ssl_core.data.pixels.MAX_BYTES", 16 * 24 * 4 - 1)
    with pytest.raises(BrokenImageError, match=r"a\.x: 24 x 16 pixels take .* cut it into tiles or scale it down"):
        decode_image(buffer.getvalue(), identifier="a.x")


def test_pillows_own_limits_play_no_part(make, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert decode_image(make.encoded(make.noise(16, 24, 3))).shape == (3, 16, 24)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("layout", ["pages", "bands"])
def test_the_orientation_of_a_tiff_is_applied_by_both_readers(make, orientation, layout):
    pixels, buffer = make.noise(4, 6, 2), io.BytesIO()
    tag = [(274, 3, 1, orientation, True)]
    with tifffile.TiffWriter(buffer) as writer:
        for page in pixels.transpose(2, 0, 1) if layout == "pages" else [pixels]:
            options = {} if layout == "pages" else {"planarconfig": "contig"}
            writer.write(page.copy(), photometric="minisblack", extratags=tag, metadata=None, **options)
    exif = Image.Exif()
    exif[0x0112] = orientation
    shown = [decode_image(make.encoded(page, exif=exif)) for page in pixels.transpose(2, 0, 1).copy()]
    assert torch.equal(decode_image(buffer.getvalue()), torch.cat(shown))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP", "NPY", "PNG16"])
def test_a_truncated_image_is_broken_wherever_it_ends(make, format):
    pixels = make.noise(40, 40, 3)
    if format == "NPY":
        data = npy(pixels)
    elif format == "PNG16":
        data = make.png_16bit(make.noise(40, 40, 3, dtype=np.uint16))
    else:
        data = make.encoded(pixels, format)
    for fraction in (0.01, 0.1, 0.5, 0.9):
        with pytest.raises(BrokenImageError):
            decode_image(data[: int(len(data) * fraction)])


@pytest.mark.parametrize(("compression", "bands"), [(None, 3), (None, 5), ("jpegxr", 3)], ids=str)
def test_a_truncated_tiff_is_broken_whoever_reads_it(compression, bands):
    data, _ = tiff(bands, compression=compression, photometric="rgb" if bands == 3 else "minisblack")
    assert decode_image(data).shape[0] == bands
    for cut in (50, 300):
        with pytest.raises(BrokenImageError):
            decode_image(data[:-cut])


@pytest.mark.parametrize("bands", [3, 5], ids=["Pillow", "tifffile"])
@pytest.mark.parametrize("layout", [{"rowsperstrip": 16}, {"tile": (16, 16)}, {"planarconfig": "separate"}], ids=str)
def test_a_tiff_that_lacks_strips_or_tiles_is_broken(bands, layout):
    file = tiff(bands, photometric="rgb" if bands == 3 else "minisblack", **{"rowsperstrip": 16, **layout})
    assert decode_image(file[0]).shape == (bands, 16, 24)
    higher, _ = retagged(file, 257, 40)
    with pytest.raises(BrokenImageError, match=r"damaged TIFF: \d+ of \d+ strips or tiles"):
        decode_image(higher)


@pytest.mark.parametrize("fill", [b"\0", b"\xff"], ids=["zeros", "ones"])
def test_a_jpeg_whose_rest_was_never_written_is_broken(make, fill):
    data = make.encoded(make.noise(40, 40, 3), "JPEG")
    assert torch.equal(decode_image(data + fill * 5000), decode_image(data))
    with pytest.raises(BrokenImageError, match="damaged JPEG: image file is truncated"):
        decode_image(data[: len(data) // 2] + fill * 2**20)


def test_the_pages_of_a_tiff_are_no_larger_together_than_an_image_may_be(make, monkeypatch):
    pages = [Image.fromarray(make.noise(4, 6, seed=seed)) for seed in range(5)]
    data = make.encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    monkeypatch.setattr("ssl_core.data.pixels.MAX_BYTES", 4 * 6 * 5 - 1)
    with pytest.raises(BrokenImageError, match="6 x 20 pixels take"):
        decode_image(data)


def test_a_number_of_tags_that_cannot_be_is_not_counted_to():
    with pytest.raises(BrokenImageError, match="damaged TIFF: 1099511627776 tags"):
        decode_image(b"II+\0\x08\0\0\0" + (16).to_bytes(8, "little") + (2**40).to_bytes(8, "little") + bytes(100))


def test_a_number_of_bands_that_cannot_be_asks_for_no_memory():
    data, _ = tiff(3, photometric="rgb")
    samples = b"\x15\x01\x03\0\1\0\0\0\3\0\0\0"
    assert samples in data
    with pytest.raises(BrokenImageError, match="damaged TIFF: 4294967295 bands"):
        decode_image(data.replace(samples, b"\x15\x01\x04\0\1\0\0\0\xff\xff\xff\xff"))


def test_run_lengths_that_are_decoded_for_minutes_are_refused():
    assert decode_image(run_lengths(8, 2))[0].tolist() == [[0] * 8] * 2
    with pytest.raises(BrokenImageError, match="a BMP of 8192 x 8192 pixels in run lengths; save it as PNG"):
        decode_image(run_lengths(8192, 8192))


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of what is damaged
def test_damaged_files_are_read_or_refused_in_one_line(tmp_path):
    fuzz_images.write_listed(tmp_path)
    files = fuzz_images.undamaged_files()
    for number in range(600):
        format, name, data, channels = fuzz_images.damaged_file(files, 0, number)
        outcome, problem = fuzz_images.verdict(format, data, channels, tmp_path)
        assert not problem, f"{number} ({name}) is {outcome}: {problem}"


def test_an_image_of_3000_pixels_a_side_is_read(make):
    image = Image.new("RGB", (3000, 3000), (1, 2, 3))
    assert decode_image(make.encoded(image, "JPEG")).shape == (3, 3000, 3000)


def smooth(height, width):
    """A picture that survives JPEG at any size."""
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([255 * rows / height, 255 * columns / width, 128 + 0 * rows], axis=2).astype(np.uint8)


@pytest.mark.parametrize(
    ("at_least", "shape"),
    [(None, (400, 640)), (201, (400, 640)), (200, (200, 320)), (101, (200, 320)), (50, (50, 80)), (1, (50, 80))],
)
def test_a_jpeg_is_decoded_at_the_smallest_size_that_leaves_enough(make, at_least, shape):
    data = make.encoded(smooth(400, 640), "JPEG", quality=95)
    image = decode_image(data, at_least=at_least)
    assert image.shape == (3, *shape)
    expected = F.interpolate(decode_image(data)[None].float(), size=shape, mode="area")[0]
    assert (image.float() - expected).abs().max() < 4


def test_sides_that_scales_do_not_divide_are_rounded_up(make):
    assert decode_image(make.encoded(smooth(401, 643), "JPEG"), at_least=100).shape == (3, 101, 161)


def test_a_smaller_jpeg_keeps_its_orientation_and_channels(make):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise to view
    data = make.encoded(smooth(400, 640), "JPEG", exif=exif)
    assert decode_image(data, at_least=200).shape == (3, 320, 200)
    assert decode_image(data, 1, at_least=200).shape == (1, 320, 200)
    gray = make.encoded(smooth(400, 640)[..., 0], "JPEG")
    assert decode_image(gray, 3, at_least=200).shape == (3, 200, 320)


@pytest.mark.parametrize("format", ["PNG", "WEBP", "JPEG2000", "TIFF"])
def test_other_formats_are_decoded_whole(make, format):
    assert decode_image(make.encoded(smooth(40, 64), format), at_least=10).shape == (3, 40, 64)


@pytest.mark.parametrize("value", [1.0000001, -1e-9])
def test_floating_point_just_beyond_its_range_is_refused_with_all_its_digits(value):
    data, _ = tiff(1, pixels=np.full((4, 4, 1), value, np.float32))
    with pytest.raises(BrokenImageError, match=r"span (1\.0000001\d* to 1\.0000001|-[\d.]+e-\d+ to -)"):
        decode_image(data)


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
# A tag of a type that there is not: Pillow leaves it out, and TorchCodec would turn the image.
ODD = b"Exif\0\0MM\0*\0\0\0\x08\0\x01" + b"\1\x12\0\x63\0\0\0\1\0\3\0\0" + bytes(4)


@pytest.fixture
def by_both(monkeypatch):
    """What a JPEG becomes as it is and by Pillow alone, and whether the first was TorchCodec's; errors as text."""
    fast, by_fast = faster_decoder(), []

    def noted(data):
        pixels = fast(data)
        by_fast.append(True)
        return pixels

    def outcome(decoder, data, *arguments, **options):
        monkeypatch.setattr(decode, "faster_decoder", lambda: decoder)
        try:
            return decode_image(data, *arguments, **options)
        except BrokenImageError as error:
            return str(error)

    def both(*arguments, **options):
        by_fast.clear()
        first, second = (outcome(decoder, *arguments, **options) for decoder in (noted, None))
        return first, second, any(by_fast)

    return both


def same(first, second):
    if isinstance(first, str) or isinstance(second, str):
        return first == second
    return first.dtype == second.dtype and torch.equal(first, second)


PLAIN = {
    **{f"RGB {sampling}": {"subsampling": sampling} for sampling in ("4:4:4", "4:2:2", "4:2:0")},
    "progressive": {"progressive": True},
    "not YCbCr": {"keep_rgb": True},
    "restarts": {"restart_marker_blocks": 2},
    "upright": {"exif": exif(1)},
    "with an orientation of no type": {"exif": ODD},
    "with a profile and a comment": {"icc_profile": b"profile", "comment": b"comment"},
}


@pytest.mark.parametrize("options", PLAIN.values(), ids=PLAIN)
def test_torchcodec_reads_plain_jpegs_with_the_pixels_of_pillow(make, by_both, options):
    first, second, is_fast = by_both(make.encoded(make.noise(37, 43, 3), "JPEG", **options))
    assert is_fast
    assert same(first, second)


OTHERS = {
    "turned": ("RGB", {"exif": exif(6)}, {}, False),
    "turned by XMP": ("RGB", {"xmp": XMP}, {}, False),
    "CMYK": ("CMYK", {}, {}, False),
    "RGB as gray": ("RGB", {}, {"channels": 1}, False),
    "RGB with too many channels": ("RGB", {}, {"channels": 4}, True),
    "gray as RGB": ("L", {}, {"channels": 3}, True),
    "smaller": ("RGB", {}, {"at_least": 18}, False),
    "too small for less": ("RGB", {}, {"at_least": 19}, True),
}


@pytest.mark.parametrize(("mode", "options", "asked", "expected"), OTHERS.values(), ids=OTHERS)
def test_pillow_reads_what_is_not_plain(make, by_both, mode, options, asked, expected):
    data = make.encoded(Image.fromarray(make.noise(37, 43, 3)).convert(mode), "JPEG", **options)
    first, second, is_fast = by_both(data, **asked)
    assert is_fast == expected
    assert same(first, second)


def test_a_damaged_jpeg_becomes_what_it_does_by_pillow(by_both):
    files = {"JPEG": fuzz_images.undamaged_files()["JPEG"]}
    for number in range(400):
        *_, data, channels = fuzz_images.damaged_file(files, 0, number)
        first, second, _ = by_both(data, channels)
        assert same(first, second), f"{number} becomes {first} and by Pillow {second}"
