"""Image files of every format, bit depth and layout of channels, and their pixels."""

import io
import struct
import zlib

import imagecodecs
import numpy as np
import pillow_heif
import tifffile
from PIL import Image, ImageCms

HEIGHT, WIDTH = 16, 24
DEEP, RGB = np.uint16, {"photometric": "rgb"}
PLANES = {"planarconfig": "separate"}
ALPHA, PREMULTIPLIED, BAND = ({"extrasamples": [kind]} for kind in ("unassalpha", "assocalpha", "unspecified"))


def smooth(bands, dtype=np.uint8):
    """A picture (h w c) that lossy formats keep."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    waves = [0.5 + 0.45 * np.sin((rows * (band + 1) + columns * 2) / 20 + band) for band in range(bands)]
    scale = 1 if np.issubdtype(dtype, np.inexact) else np.iinfo(dtype).max
    return (np.stack(waves, axis=2) * scale).astype(dtype)


def through_pillow(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def by_pillow(format, bands, dtype=np.uint8, **options):
    pixels = smooth(bands, dtype)
    return through_pillow(Image.fromarray(pixels[..., 0] if bands == 1 else pixels), format, **options), pixels


def packed(pixels, bits):
    """Rows of bytes that hold so many bits of each sample."""
    of_samples = np.unpackbits(pixels.astype(">u2").view(np.uint8).reshape(HEIGHT, -1, 2), axis=2)
    return np.packbits(of_samples[..., 16 - bits :].reshape(HEIGHT, -1), axis=1)


def png(bits, color, pixels, transparent=None):
    """A PNG of samples of any size and meaning, and the pixels that it stands for."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    samples = packed(pixels, bits) if bits < 8 else pixels.reshape(HEIGHT, -1)
    rows = b"".join(b"\0" + row.astype(f">u{max(1, bits // 8)}").tobytes() for row in samples)
    key = b"" if transparent is None else chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, bits, color, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + key + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    read = pixels * np.uint8(255 // (2**bits - 1)) if bits < 8 else pixels
    if transparent is not None:
        opacity = np.where((pixels == transparent).all(axis=2, keepdims=True), 0, np.iinfo(read.dtype).max)
        read = np.concatenate([read, opacity.astype(read.dtype)], axis=2)
    return data, read


def png_levels(bits, **options):
    return png(bits, 0, smooth(1) >> (8 - bits), **options)


def run_lengths(width, height):
    """A BMP of two runs of 8 pixels."""
    header = struct.pack("<2sIIIIiiHHIIiiII", b"BM", 0, 0, 1078, 40, width, height, 1, 8, 1, 0, 0, 0, 0, 0)
    return header + bytes(1024) + bytes([8, 7, 0, 0, 8, 7, 0, 1])


def palette(format, transparent=False):
    colors = smooth(3)[::4, ::6].reshape(-1, 3)  # 16 colors
    index = np.random.default_rng(0).integers(0, 16, (HEIGHT, WIDTH), dtype=np.uint8)
    image = Image.fromarray(index).convert("L")
    image.putpalette(colors.tobytes())
    if not transparent:
        return through_pillow(image, format), colors[index]
    return through_pillow(image, format, transparency=0), np.dstack([colors[index], (index > 0) * np.uint8(255)])


def bilevel(format):
    pixels = smooth(1) > 99
    return through_pillow(Image.fromarray(pixels[..., 0]), format), pixels * np.uint8(255)


def cmyk(format, **options):
    inks = np.dstack([255 - smooth(3), np.zeros((HEIGHT, WIDTH), np.uint8)])
    return through_pillow(Image.frombytes("CMYK", (WIDTH, HEIGHT), inks.tobytes()), format, **options), smooth(3)


def lab():
    profiles = (ImageCms.createProfile(name) for name in ("sRGB", "LAB"))
    image = ImageCms.profileToProfile(Image.fromarray(smooth(3)), *profiles, outputMode="LAB")
    return through_pillow(image, "TIFF"), smooth(3)


def jpeg_2000(bands, dtype=np.uint8):
    return imagecodecs.jpeg2k_encode(smooth(bands, dtype).squeeze(), level=0, reversible=True), smooth(bands, dtype)


def heic(mode, bands, dtype=np.uint8):
    buffer = io.BytesIO()
    pillow_heif.from_bytes(mode, (WIDTH, HEIGHT), smooth(bands, dtype).tobytes()).save(buffer, quality=-1)
    return buffer.getvalue(), smooth(bands, dtype)


def tiff(bands, dtype=np.uint8, pixels=None, **options):
    """A TIFF and its bands."""
    pixels = smooth(bands, dtype) if pixels is None else pixels
    options = {"photometric": "minisblack", "planarconfig": "contig" if bands > 1 else None, **options}
    stored = pixels.transpose(2, 0, 1) if options["planarconfig"] == "separate" else pixels
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, stored[..., 0] if bands == 1 else stored, metadata=None, **options)
    return buffer.getvalue(), pixels


def inverted(dtype):
    pixels = smooth(1, dtype)
    data, _ = tiff(1, pixels=np.iinfo(dtype).max - pixels, photometric="miniswhite")
    return data, pixels


def premultiplied(bands, dtype=np.uint8, **options):
    """Bands whose colors hold their opacity already, and therefore are no larger."""
    pixels = np.sort(smooth(bands, dtype), axis=2)
    return tiff(bands, dtype, pixels, **PREMULTIPLIED, **options)


def retagged(file, tag, value, number=None):
    """A little-endian TIFF with another value of a tag, or with another number of the tag."""
    data, pixels = file
    with tifffile.TiffFile(io.BytesIO(data)) as opened:
        entry = opened.pages[0].tags[tag].offset
    changed = struct.pack("<HHII", tag if number is None else number, 3, 1, value)
    return data[:entry] + changed + data[entry + 12 :], pixels


def tiff_of_bits(bits):
    pixels = smooth(1, DEEP) >> (16 - bits)
    narrow = tiff(1, pixels=packed(pixels, bits)[..., None])
    return retagged(retagged(narrow, 256, WIDTH), 258, bits)[0], pixels


def stack(**options):
    """A TIFF whose slices, without tags of their own, follow the first."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, smooth(4).transpose(2, 0, 1), photometric="minisblack", **options)
    return buffer.getvalue(), None


def pages(*written, read):
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        for pixels, options in written:
            writer.write(np.ascontiguousarray(pixels), metadata=None, **options)
    return buffer.getvalue(), read


def npy(stored, pixels=None):
    buffer = io.BytesIO()
    np.save(buffer, stored)
    return buffer.getvalue(), stored[..., None] if pixels is None else pixels


FILES = {
    "JPEG, gray, 8": lambda: by_pillow("JPEG", 1, quality=98),
    "JPEG, RGB, 8": lambda: by_pillow("JPEG", 3, quality=98, subsampling=0),
    "JPEG, CMYK, 8": lambda: cmyk("JPEG", quality=98),
    "PNG, gray, 1": lambda: png_levels(1),
    "PNG, gray, 2": lambda: png_levels(2),
    "PNG, gray, 4": lambda: png_levels(4),
    "PNG, gray, 8": lambda: png(8, 0, smooth(1)),
    "PNG, gray, 16": lambda: png(16, 0, smooth(1, DEEP)),
    "PNG, gray and alpha, 8": lambda: png(8, 4, smooth(2)),
    "PNG, gray and alpha, 16": lambda: png(16, 4, smooth(2, DEEP)),
    "PNG, gray of which a level is transparent, 8": lambda: png(8, 0, smooth(1), transparent=smooth(1)[3, 3]),
    "PNG, gray of which a level is transparent, 2": lambda: png_levels(2, transparent=[1]),
    "PNG, gray of which a level is transparent, 16": lambda: png(16, 0, smooth(1, DEEP), smooth(1, DEEP)[3, 3]),
    "PNG, RGB, 8": lambda: png(8, 2, smooth(3)),
    "PNG, RGB, 16": lambda: png(16, 2, smooth(3, DEEP)),
    "PNG, RGBA, 8": lambda: png(8, 6, smooth(4)),
    "PNG, RGBA, 16": lambda: png(16, 6, smooth(4, DEEP)),
    "PNG, RGB of which a color is transparent, 8": lambda: png(8, 2, smooth(3), transparent=smooth(3)[3, 3]),
    "PNG, RGB of which a color is transparent, 16": lambda: png(16, 2, smooth(3, DEEP), smooth(3, DEEP)[3, 3]),
    "PNG, palette, 8": lambda: palette("PNG"),
    "PNG, palette with transparency, 8": lambda: palette("PNG", transparent=True),
    "WebP, RGB, lossless, 8": lambda: by_pillow("WEBP", 3, lossless=True),
    "WebP, RGBA, lossless, 8": lambda: by_pillow("WEBP", 4, lossless=True, exact=True),
    "WebP, RGB, lossy, 8": lambda: by_pillow("WEBP", 3, quality=100),
    "GIF, palette, 8": lambda: palette("GIF"),
    "GIF, palette with transparency, 8": lambda: palette("GIF", transparent=True),
    "BMP, gray, 8": lambda: by_pillow("BMP", 1),
    "BMP, RGB, 8": lambda: by_pillow("BMP", 3),
    "PPM, bilevel, 1": lambda: bilevel("PPM"),
    "PPM, gray, 8": lambda: by_pillow("PPM", 1),
    "PPM, gray, 16": lambda: (b"P5 24 16 65535\n" + smooth(1, ">u2").tobytes(), smooth(1, DEEP)),
    "PPM, RGB, 8": lambda: by_pillow("PPM", 3),
    "PPM, RGB, 16": lambda: (b"P6 24 16 65535\n" + smooth(3, ">u2").tobytes(), None),
    "JPEG 2000, gray, 8": lambda: jpeg_2000(1),
    "JPEG 2000, gray, 16": lambda: jpeg_2000(1, DEEP),
    "JPEG 2000, gray, signed 16": lambda: jpeg_2000(1, np.int16),
    "JPEG 2000, RGB, 8": lambda: jpeg_2000(3),
    "JPEG 2000, RGB, 16": lambda: jpeg_2000(3, DEEP),
    "JPEG 2000, RGBA, 8": lambda: by_pillow("JPEG2000", 4),
    "HEIC, gray, 8": lambda: heic("L", 1),
    "HEIC, RGB, 8": lambda: heic("RGB", 3),
    "HEIC, RGB, 10 (read as 16)": lambda: heic("RGB;16", 3, DEEP),
    "HEIC, RGBA, 8": lambda: heic("RGBA", 4),
    "AVIF, RGB, 8": lambda: by_pillow("AVIF", 3, quality=100, subsampling="4:4:4"),
    "AVIF, RGBA, 8": lambda: by_pillow("AVIF", 4, quality=100, subsampling="4:4:4"),
    "AVIF, RGB, 10": lambda: (imagecodecs.avif_encode(smooth(3, DEEP) >> 6, bitspersample=10, level=100), None),
    "TIFF, gray, 1": lambda: bilevel("TIFF"),
    "TIFF, gray, 4": lambda: (tiff_of_bits(4)[0], (smooth(1, DEEP) >> 12).astype(np.uint8) * 17),
    "TIFF, gray, 8": lambda: tiff(1),
    "TIFF, gray, 12": lambda: tiff_of_bits(12),
    "TIFF, gray, 16": lambda: tiff(1, DEEP),
    "TIFF, gray, big-endian, 16": lambda: tiff(1, DEEP, byteorder=">"),
    "TIFF, gray, BigTIFF, 16": lambda: tiff(1, DEEP, bigtiff=True),
    "TIFF, gray, big-endian BigTIFF, 16": lambda: tiff(1, DEEP, bigtiff=True, byteorder=">"),
    "TIFF, gray, tiles, LZW, 16": lambda: tiff(1, DEEP, tile=(16, 16), compression="lzw"),
    "TIFF, gray, JPEG 2000 inside, 16": lambda: tiff(1, DEEP, compression="jpeg2000", compressionargs={"level": 0}),
    "TIFF, RGB, WebP inside, 8": lambda: tiff(3, **RGB, compression="webp", compressionargs={"level": 101}),
    "TIFF, gray, Zstandard, 16": lambda: tiff(1, DEEP, compression="zstd"),
    "TIFF, gray, LZMA, 16": lambda: tiff(1, DEEP, compression="lzma"),
    "TIFF, gray, LERC, 16": lambda: tiff(1, DEEP, compression="lerc"),
    "TIFF, gray whose white is zero, 8": lambda: inverted(np.uint8),
    "TIFF, gray whose white is zero, 16": lambda: inverted(DEEP),
    "TIFF, gray, float 16": lambda: tiff(1, np.float16),
    "TIFF, gray, float 32": lambda: tiff(1, np.float32),
    "TIFF, gray, big-endian, Deflate, float 32": lambda: tiff(1, np.float32, byteorder=">", compression="zlib"),
    "TIFF, gray, float 64": lambda: tiff(1, np.float64),
    "TIFF, gray, signed 8": lambda: tiff(1, np.int8),
    "TIFF, gray, signed 16": lambda: tiff(1, np.int16),
    "TIFF, gray, 32": lambda: tiff(1, np.uint32),
    "TIFF, gray, complex 64": lambda: tiff(1, np.complex64),
    "TIFF, 5 gray pages, 16": lambda: pages(
        *((page, {"photometric": "minisblack"}) for page in smooth(5, DEEP).transpose(2, 0, 1)), read=smooth(5, DEEP)
    ),
    "TIFF, 4 gray slices of a volume, 8": lambda: stack(volumetric=True, tile=(4, 16, 16)),
    "TIFF, 4 gray slices of ImageJ, 8": lambda: tiff(1, description="ImageJ=1.54f\nimages=4\nslices=4\n"),
    "TIFF, 4 gray slices of tifffile with one page, 8": lambda: stack(truncate=True),
    "TIFF, 4 gray slices of MetaMorph, 8": lambda: tiff(1, extratags=[(33629, 5, 4, (1,) * 8, True)]),
    "TIFF, gray of tifffile with one page, 8": lambda: tiff(1, description='{"shape": [16, 24], "truncated": true}'),
    "TIFF, gray and a smaller copy of it, 8": lambda: pages(
        (smooth(1)[..., 0], {"photometric": "minisblack"}),
        (smooth(1)[::2, ::2, 0], {"photometric": "minisblack", "subfiletype": 1}),
        read=smooth(1),
    ),
    "TIFF, 2 RGB pages, 8": lambda: pages((smooth(3), RGB), (smooth(3), RGB), read=None),
    "TIFF, gray and alpha, 8": lambda: tiff(2, **ALPHA),
    "TIFF, gray and alpha in planes, 8": lambda: tiff(2, **ALPHA, **PLANES),
    "TIFF, gray and alpha, 16": lambda: tiff(2, DEEP, **ALPHA),
    "TIFF, gray and alpha, premultiplied, 8": lambda: premultiplied(2),
    "TIFF, 2 bands, 8": lambda: tiff(2, **BAND),
    "TIFF, 2 bands, 16": lambda: tiff(2, DEEP, **BAND),
    "TIFF, 2 bands, float 32": lambda: tiff(2, np.float32, **BAND),
    "TIFF, RGB, 8": lambda: tiff(3, **RGB),
    "TIFF, RGB in planes, 8": lambda: tiff(3, **RGB, **PLANES),
    "TIFF, RGB, 16": lambda: tiff(3, DEEP, **RGB),
    "TIFF, RGB, LZW with predictor, 16": lambda: tiff(3, DEEP, **RGB, compression="lzw", predictor=2),
    "TIFF, RGB in planes, 16": lambda: tiff(3, DEEP, **RGB, **PLANES),
    "TIFF, RGB, float 32": lambda: tiff(3, np.float32, **RGB),
    "TIFF, RGBA, 8": lambda: tiff(4, **RGB, **ALPHA),
    "TIFF, RGBA, 16": lambda: tiff(4, DEEP, **RGB, **ALPHA),
    "TIFF, RGBA in planes, 16": lambda: tiff(4, DEEP, **RGB, **ALPHA, **PLANES),
    "TIFF, RGBA, premultiplied, 8": lambda: premultiplied(4, **RGB),
    "TIFF, RGBA, premultiplied, 16": lambda: premultiplied(4, DEEP, **RGB),
    "TIFF, RGB and a band, 8": lambda: tiff(4, **RGB, **BAND),
    "TIFF, RGB and a band, 16": lambda: tiff(4, DEEP, **RGB, **BAND),
    "TIFF, RGB and a band without a tag, 8": lambda: retagged(tiff(4, **RGB, **BAND), 338, 0, number=65000),
    "TIFF, RGBA and a band, 8": lambda: tiff(5, **RGB, extrasamples=["unassalpha", "unspecified"]),
    "TIFF, 4 bands, 8": lambda: tiff(4, extrasamples=["unspecified"] * 3),
    "TIFF, 5 bands in planes, 16": lambda: tiff(5, DEEP, **PLANES),
    "TIFF, 13 bands, 16": lambda: tiff(13, DEEP),
    "TIFF, palette, 8": lambda: palette("TIFF"),
    "TIFF, palette, 16": lambda: tiff(1, DEEP, photometric="palette", colormap=np.zeros((3, 65536), DEEP)),
    "TIFF, palette of 8 bits, 8": lambda: tiff(
        1, photometric="palette", colormap=np.arange(768, dtype=DEEP).reshape(3, 256) % 256
    ),
    "TIFF, 4 inks, 8": lambda: tiff(4, photometric="separated", extratags=[(332, 3, 1, 2, True)]),
    "TIFF, CMYK, 8": lambda: cmyk("TIFF"),
    "TIFF, CMYK, 16": lambda: tiff(4, DEEP, photometric="separated"),
    "TIFF, YCbCr, JPEG, 8": lambda: by_pillow("TIFF", 3, compression="jpeg", quality=98),
    "TIFF, YCbCr, 8": lambda: retagged(tiff(3, **RGB), 262, 6),
    "TIFF, L\\*a\\*b\\*, 8": lab,
    "TIFF, a camera's mosaic, 16": lambda: retagged(tiff(1, DEEP), 262, 32803),
    ".npy, (h w), bool": lambda: npy(smooth(1)[..., 0] > 99, bilevel("PPM")[1]),
    ".npy, (h w), 8": lambda: npy(smooth(1)[..., 0]),
    ".npy, (h w), 16": lambda: npy(smooth(1, DEEP)[..., 0]),
    ".npy, (h w), float 16": lambda: npy(smooth(1, np.float16)[..., 0]),
    ".npy, (h w), float 64": lambda: npy(smooth(1, np.float64)[..., 0]),
    ".npy, (h w 3), 8": lambda: npy(smooth(3), smooth(3)),
    ".npy, (3 h w), 8": lambda: npy(smooth(3).transpose(2, 0, 1), smooth(3)),
    ".npy, (h w 2), 8": lambda: npy(smooth(2), smooth(2)),
    ".npy, (4 h w), 16": lambda: npy(smooth(4, DEEP).transpose(2, 0, 1), smooth(4, DEEP)),
    ".npy, (h w 5), float 32": lambda: npy(smooth(5, np.float32), smooth(5, np.float32)),
    ".npy, (h w 13), 16": lambda: npy(smooth(13, DEEP), smooth(13, DEEP)),
    ".npy, (h w), signed 64": lambda: npy(np.ones((4, 4), np.int64)),
    ".npy, (h w), float beyond [0, 1]": lambda: npy(np.full((4, 4), 1.5)),
    ".npy, (h w), float with NaN": lambda: npy(np.full((4, 4), np.nan)),
    ".npy, (h w), objects": lambda: npy(np.array([[{}]])),
}
