"""The formats that videos are written in, by name, and frames turned into what their encoders take.

A container, an encoder, its pixel formats, what its quality number means, and how sound is stored in it. Pixel formats
have FFmpeg's names: yuv420p has one colour sample for 2x2 pixels, yuv422p for 2x1 and yuv444p for each, gbrp and bgr0
are RGB; 10le and 16le are 10 and 16 bits a sample, the others have 8.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import av
import numpy as np
import torch

# Numbers of ISO/IEC 23091-2 as FFmpeg keeps them; names for all of them came to PyAV only after 14.2.
BT709 = 1
RGB_MATRIX = 0
LIMITED_RANGE = 1
FULL_RANGE = 2


class MissingEncoderError(RuntimeError):
    """FFmpeg was built without an encoder, or without a pixel format in it. The message says what to do."""


@dataclass(frozen=True)
class VideoFormat:
    """How a video is stored.

    `container` and `encoder` are FFmpeg's names; the first of `pixel_formats` is taken for "auto". Quality is `crf`
    from 0 (best) to `max_crf`, None where an encoder has no such number. In `browser_pixel_formats` browsers play it.
    `opens_workflow` is whether ComfyUI's frontend looks for a graph in such a file.
    """

    name: str
    container: str
    suffix: str
    encoder: str
    pixel_formats: tuple[str, ...]
    audio_codec: str
    max_crf: int | None = None
    browser_pixel_formats: tuple[str, ...] = ()
    opens_workflow: bool = True
    encoder_options: Mapping[str, str] = field(default_factory=dict)
    container_options: Mapping[str, str] = field(default_factory=dict)
    codec_tag: str = ""
    least_width: int = 1  # pixels

    def choose_pixel_format(self, name: str, width: int, height: int) -> str:
        """`name`, or for "auto" the format's own, once it is known that this size can be written in it.

        Raises ValueError for a pixel format that the format does not have or whose colour samples do not divide the
        size, and MissingEncoderError when FFmpeg was built without the encoder or without this pixel format in it.
        """
        name = self.pixel_formats[0] if name == "auto" else name
        if name not in self.pixel_formats:
            raise ValueError(f"{self.name} has no pix_fmt {name!r}; allowed: auto, {', '.join(self.pixel_formats)}")
        _check_size(name, width, height)
        if self.encoder not in av.codecs_available:
            raise MissingEncoderError(f"PyAV has no {self.encoder} encoder; install the official wheel: pip install av")
        built_in = [known.name for known in av.Codec(self.encoder, "w").video_formats or ()]
        if name not in built_in:
            possible = ", ".join(known for known in self.pixel_formats if known in built_in)
            raise MissingEncoderError(
                f"the {self.encoder} encoder of this PyAV was built without {name}; it has {possible}. For 10 bits "
                f"in a webm take the format {WEBM_AV1.name}"
            )
        return name

    def check_width(self, width: int) -> None:
        """Raise ValueError for frames that are too narrow for the encoder."""
        if width < self.least_width:
            raise ValueError(
                f"{self.name} takes frames of at least {self.least_width} pixels in width, and these have {width}. "
                f"Choose {MP4_H264.name}, or make the video larger"
            )

    def check_crf(self, crf: float) -> None:
        """Raise ValueError unless `crf` is in the encoder's range. Where quality has no number anything goes."""
        if self.max_crf is not None and not 0 <= crf <= self.max_crf:
            raise ValueError(
                f"crf {crf} is out of range; allowed: 0 (best) to {self.max_crf} in {self.name}, for example 18"
            )


def _reproducible_x264() -> dict[str, str]:
    """Options with which equal frames give equal bytes, on every machine and every time.

    x264's result depends on the number of threads, and in places on the CPU. Its AVX-512 routines moreover gave other
    bytes for the same frames now and then (measured: in 13 of 29 runs, when the process had decoded a video before),
    its AVX2 ones never did. A CPU may only be told to use what it has.
    """
    canonical = "cpu-independent=1"
    if torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        canonical += ":asm=avx2"
    return {"threads": "4", "x264-params": canonical}


_MP4_OPTIONS = {"movflags": "faststart+use_metadata_tags"}

MP4_H264 = VideoFormat(
    name="mp4 (h264)",
    container="mp4",
    suffix=".mp4",
    encoder="libx264",
    pixel_formats=("yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv422p10le", "yuv444p10le"),
    audio_codec="aac",
    max_crf=51,
    browser_pixel_formats=("yuv420p",),
    encoder_options=_reproducible_x264(),
    # faststart moves the index to the front, where browsers can start and ComfyUI finds the workflow.
    container_options=_MP4_OPTIONS,
)
WEBM_VP9 = VideoFormat(
    name="webm (vp9)",
    container="webm",
    suffix=".webm",
    encoder="libvpx-vp9",
    pixel_formats=("yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv422p10le", "yuv444p10le"),
    audio_codec="libopus",
    max_crf=63,
    browser_pixel_formats=("yuv420p", "yuv420p10le"),
    # A bit rate of 0 makes crf a quality rather than a lower limit; cpu-used 4 is ten times as fast as the default.
    encoder_options={"b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "1", "threads": "4"},
)
WEBM_AV1 = VideoFormat(
    name="webm (av1)",
    container="webm",
    suffix=".webm",
    encoder="libsvtav1",
    pixel_formats=("yuv420p10le", "yuv420p"),
    audio_codec="libopus",
    max_crf=63,
    browser_pixel_formats=("yuv420p", "yuv420p10le"),
    encoder_options={"b": "0", "preset": "8"},
)
MOV_PRORES = VideoFormat(
    name="mov (ProRes 422 HQ)",
    container="mov",
    suffix=".mov",
    encoder="prores_ks",
    pixel_formats=("yuv422p10le",),
    audio_codec="pcm_s24le",
    # Some editors refuse files that do not name Apple's encoder.
    encoder_options={"profile": "hq", "vendor": "apl0", "threads": "4"},
    container_options=_MP4_OPTIONS,
)
MKV_FFV1 = VideoFormat(
    name="mkv (ffv1)",
    container="matroska",
    suffix=".mkv",
    encoder="ffv1",
    pixel_formats=("bgr0", "gbrp10le", "gbrp16le", "yuv444p10le", "yuv422p10le", "yuv420p"),
    audio_codec="pcm_s24le",
    opens_workflow=False,
    encoder_options={"level": "3", "slicecrc": "1", "g": "1", "threads": "4"},
)
MP4_HEVC = VideoFormat(
    name="mp4 (hevc)",
    container="mp4",
    suffix=".mp4",
    encoder="libx265",
    pixel_formats=("yuv420p10le", "yuv420p", "yuv422p", "yuv444p", "yuv422p10le", "yuv444p10le"),
    audio_codec="aac",
    max_crf=51,
    # The number of threads is fixed because the result depends on how many frames are encoded at once.
    encoder_options={"x265-params": "log-level=error:frame-threads=2:pools=4"},
    container_options=_MP4_OPTIONS,
    codec_tag="hvc1",  # Apple's players refuse the default, hev1
    # x265 writes beyond the rows of narrower pictures (48), and takes the process down.
    least_width=64,
)

FORMATS = {known.name: known for known in (MP4_H264, WEBM_VP9, WEBM_AV1, MOV_PRORES, MKV_FFV1, MP4_HEVC)}
PIXEL_FORMATS = tuple(dict.fromkeys(name for known in FORMATS.values() for name in known.pixel_formats))


def find_format(name: str) -> VideoFormat:
    """The format of that name. Raises ValueError with the names that exist."""
    if name not in FORMATS:
        raise ValueError(f"there is no format {name!r}; allowed: {', '.join(FORMATS)}")
    return FORMATS[name]


def colour_matrix(pixel_format: str) -> int:
    """The number of the matrix between RGB and what is stored, for the file's tags."""
    return RGB_MATRIX if _is_rgb(pixel_format) else BT709


def colour_range(pixel_format: str) -> int:
    """The number of the range of what is stored, for the file's tags: RGB is full, YUV limited."""
    return FULL_RANGE if _is_rgb(pixel_format) else LIMITED_RANGE


def to_video_frame(frame: torch.Tensor, pixel_format: str) -> av.VideoFrame:
    """A frame (H, W, 3), floats clamped to [0, 1], on any device, as `pixel_format` stores it.

    Formats of 8 bits get the nearest 8-bit RGB; more bits are taken from the floats, never from 8 bits.
    """
    pixels = av.VideoFormat(pixel_format, 2, 2)
    bits = pixels.components[0].bits
    if pixels.is_rgb and bits == 8:
        rgb = av.VideoFrame.from_ndarray(eight_bits(frame).cpu().contiguous().numpy(), format="rgb24")
        return rgb.reformat(format=pixel_format)
    if pixels.is_rgb:
        return av.VideoFrame.from_ndarray(_levels(frame.float().clamp(0, 1) * (2**bits - 1)), format=pixel_format)
    stored = av.VideoFrame(frame.shape[1], frame.shape[0], pixel_format)
    stored.colorspace, stored.color_range = BT709, LIMITED_RANGE  # ProRes takes its tags from the frames
    if hasattr(stored, "color_primaries"):  # older PyAV has none
        stored.color_primaries = stored.color_trc = BT709
    across, down = 2 // pixels.chroma_width(), 2 // pixels.chroma_height()
    for plane, samples in zip(stored.planes, _bt709(_planar(frame, bits), across, down), strict=True):
        lines = np.frombuffer(plane, np.uint8 if bits == 8 else np.uint16).reshape(plane.height, -1)
        _store(samples, bits, lines[:, : plane.width])  # the rest of a line is padding
    return stored


def _planar(frame: torch.Tensor, bits: int) -> torch.Tensor:
    """A frame (H, W, 3) of floats to a copy (3, H, W), float32 in [0, 1]; for 8 bits the nearest of 256 values."""
    rgb = torch.empty(3, *frame.shape[:2], device=frame.device).copy_(frame.movedim(-1, 0)).clamp_(0, 1)
    return rgb.mul_(255).add_(0.5).floor_().div_(255) if bits == 8 else rgb


def _store(samples: torch.Tensor, bits: int, lines: np.ndarray) -> None:
    """Write samples in 8-bit units, rounded to whole numbers of `bits`, into a plane's lines. Overwrites them."""
    if bits == 8:
        torch.from_numpy(lines).copy_(samples.add_(0.5))  # cut off at the point
    else:
        lines[:] = _levels(samples * 2 ** (bits - 8))


def _bt709(rgb: torch.Tensor, across: int, down: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """RGB (3, H, W) in [0, 1] to luma (H, W) and blue and red difference (H / down, W / across), in 8-bit units; it is
    written over.

    ITU-R BT.709-6, items 3.2 to 3.4, limited range. Done here because FFmpeg's converter, as PyAV calls it, puts colour
    samples between two pixels where decoders look for them on the left one: half a pixel of shift with every copy.
    """
    red, green, blue = rgb
    luma = (0.2126 * red).add_(0.7152 * green).add_(0.0722 * blue)
    differences = blue.sub_(luma).div_(1.8556), red.sub_(luma).div_(1.5748)
    chroma = [_subsample(difference, across, down).mul_(224).add_(128) for difference in differences]
    return luma.mul_(219).add_(16), *chroma


def _subsample(plane: torch.Tensor, across: int, down: int) -> torch.Tensor:
    """One sample for `across` x `down` pixels: on the left one of two pixels, half way between two lines."""
    if across == 2:
        edge, left, right = plane[:, :1], plane[:, 1:-1:2], plane[:, 1::2]
        plane = 2 * plane[:, ::2]
        plane[:, :1] += edge
        plane[:, 1:] += left
        plane = plane.add_(right).div_(4)
    return (plane[::2] + plane[1::2]).div_(2) if down == 2 else plane


def eight_bits(frames: torch.Tensor) -> torch.Tensor:
    """[0, 1] floats to the nearest of 0..255, halves upwards, uint8."""
    return (frames.float().clamp(0, 1) * 255 + 0.5).to(torch.uint8)


def _levels(samples: torch.Tensor) -> np.ndarray:
    """Samples to the nearest whole number, halves upwards, uint16."""
    return (samples + 0.5).to(torch.int32).cpu().contiguous().numpy().astype(np.uint16)


def _is_rgb(pixel_format: str) -> bool:
    return av.VideoFormat(pixel_format, 2, 2).is_rgb


def storable_size(pixel_format: str, width: int, height: int) -> tuple[int, int]:
    """The size, or the next larger one where `pixel_format` has one colour sample for several pixels."""
    pixels = av.VideoFormat(pixel_format, 2, 2)
    across, down = 2 // pixels.chroma_width(), 2 // pixels.chroma_height()
    return -(-width // across) * across, -(-height // down) * down


def _check_size(pixel_format: str, width: int, height: int) -> None:
    pixels = av.VideoFormat(pixel_format, 2, 2)
    across, down = 2 // pixels.chroma_width(), 2 // pixels.chroma_height()
    for name, value, step in (("width", width, across), ("height", height, down)):
        if value < 1:
            raise ValueError(f"{name} {value} cannot be written; allowed: at least {step}")
        if value % step:
            raise ValueError(
                f"{name} {value} cannot be written: the video's colour has one sample for {across}x{down} pixels, "
                f"so sizes are even numbers; nearest: {max(2, value - 1)} or {value + 1}"
            )
