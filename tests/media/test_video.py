"""Video files written and read: colours, counts, rotation, metadata, and what is left after a failure."""

import json
import struct
import weakref
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from skimage.data import astronaut

from helios_core.media.formats import to_video_frame
from helios_core.media.frames import contact_sheet, from_pixels, read_image, resize_frames, to_pixels
from helios_core.media.reader import read_video
from helios_core.media.writer import VideoWriter

torch.set_num_threads(1)


def numbered_frames(num_frames, height=32, width=48, start=0):
    """Frames (T, H, W, 3) whose grey level tells their number: 20 + 3 * number, of 255."""
    levels = (20 + 3 * torch.arange(start, start + num_frames)) / 255
    return levels.view(-1, 1, 1, 1).expand(num_frames, height, width, 3)


def numbers_in(frames):
    return [round((level - 20) / 3) for level in frames.float().mean(dim=(1, 2, 3)).tolist()]


def write(path, frames, **options):
    with VideoWriter(path, width=frames.shape[2], height=frames.shape[1], **options) as writer:
        writer.write(frames)
    return path


def write_raw(path, frames, codec, pix_fmt, colorspace=None, options=None):
    """Write uint8 frames with PyAV alone, by any codec, untouched when `pix_fmt` is an RGB layout."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pix_fmt
        if colorspace:
            stream.codec_context.colorspace = colorspace
        for array in frames:
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            container.mux(stream.encode(frame.reformat(format=pix_fmt, dst_colorspace=colorspace)))
        container.mux(stream.encode(None))
    return path


def colour_patches():
    """8x8 flat patches of 16x16 pixels: the corners of the colour cube and random colours."""
    corners = [[r, g, b] for r in (0, 255) for g in (0, 255) for b in (0, 255)]
    colours = np.array(corners + np.random.default_rng(0).integers(0, 256, (56, 3)).tolist(), dtype=np.uint8)
    return colours, colours.reshape(8, 8, 3).repeat(16, axis=0).repeat(16, axis=1)


def patch_centres(frame):
    return frame[8::16, 8::16].reshape(-1, 3)


# Writing


def test_flat_colours_come_back_within_two_of_255(tmp_path):
    colours, picture = colour_patches()
    path = write(tmp_path / "a.mp4", torch.from_numpy(picture)[None].float() / 255, crf=1)
    difference = patch_centres(read_video(path).frames[0].numpy()).astype(int) - colours
    assert np.abs(difference).max() <= 2


def test_the_file_holds_the_values_that_bt709_prescribes(tmp_path):
    colours, picture = colour_patches()
    path = write(tmp_path / "a.mp4", torch.from_numpy(picture)[None].float() / 255, crf=1)
    with av.open(str(path)) as container:
        planes = next(container.decode(video=0)).to_ndarray()  # the stored values, luma above chroma
    luma, blue, red = planes[:128], planes[128:160].reshape(64, 64), planes[160:].reshape(64, 64)
    stored = np.stack([luma[8::16, 8::16], blue[4::8, 4::8], red[4::8, 4::8]], axis=-1).reshape(-1, 3)
    y = colours / 255 @ [0.2126, 0.7152, 0.0722]  # ITU-R BT.709-6, items 3.2 to 3.4
    b, r = (colours[:, 2] / 255 - y) / 1.8556, (colours[:, 0] / 255 - y) / 1.5748
    expected = np.stack([16 + 219 * y, 128 + 224 * b, 128 + 224 * r], axis=-1)
    assert np.abs(stored - expected).max() < 1.5  # half a step of rounding and one of compression


def test_the_file_says_h264_yuv420p_bt709_limited_range(tmp_path):
    path = write(tmp_path / "a.mp4", numbered_frames(2))
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        assert (context.color_primaries, context.color_trc, context.colorspace) == (1, 1, 1)
        assert context.color_range == 1


def test_values_round_to_the_nearest_eight_bit_level_and_clamp(tmp_path):
    # Steps of 0.4 of a level around mid grey, then values outside of [0, 1]. Lossless, so levels show.
    levels = torch.tensor([99.6, 100.0, 100.4, 100.5, -900.0, 900.0])
    frames = (levels / 255).view(-1, 1, 1, 1).expand(-1, 16, 16, 3)
    rounded = torch.tensor([100.0, 100.0, 100.0, 101.0, 0.0, 255.0]) / 255
    rounded = rounded.view(-1, 1, 1, 1).expand(-1, 16, 16, 3)
    written = read_video(write(tmp_path / "a.mp4", frames, crf=0)).frames
    assert torch.equal(written, read_video(write(tmp_path / "b.mp4", rounded, crf=0)).frames)
    assert written[-2].max() == 0
    assert written[-1].min() == 255


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_type_is_written(tmp_path, dtype):
    path = write(tmp_path / "a.mp4", numbered_frames(3).to(dtype))
    assert numbers_in(read_video(path).frames) == [0, 1, 2]


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_frame_is_converted_as_bt709_says_and_stays_as_it_was(pixel_format, dtype):
    frame = (torch.rand(6, 8, 3, generator=torch.Generator().manual_seed(2)) * 1.2 - 0.1).to(dtype)
    kept, stored = frame.clone(), to_video_frame(frame, pixel_format)
    assert torch.equal(frame, kept)
    bits, planes = (10, np.uint16) if "10" in pixel_format else (8, np.uint8)
    red, green, blue = (
        np.round(channel * 255) / 255 if bits == 8 else channel
        for channel in np.moveaxis(frame.double().clamp(0, 1).numpy(), -1, 0)
    )
    luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    expected = [16 + 219 * luma, 128 + 224 * (blue - luma) / 1.8556, 128 + 224 * (red - luma) / 1.5748]
    if "444" not in pixel_format:  # on the left one of two pixels; the edge counts twice
        padded = [np.pad(plane, ((0, 0), (1, 0)), mode="edge") for plane in expected[1:]]
        expected[1:] = [(p[:, :-1:2] + 2 * p[:, 1::2] + p[:, 2::2]) / 4 for p in padded]
    if "420" in pixel_format:  # half way between two lines
        expected[1:] = [(p[::2] + p[1::2]) / 2 for p in expected[1:]]
    for plane, values in zip(stored.planes, expected, strict=True):
        lines = np.frombuffer(plane, planes).reshape(plane.height, -1)[:, : plane.width]
        assert np.abs(lines - values * 2 ** (bits - 8)).max() < 0.51


@pytest.mark.parametrize("rate", [24, 8, 29.97, Fraction(24000, 1001), 24000 / 1001])
@pytest.mark.parametrize("num_frames", [1, 2, 33])
def test_every_frame_is_kept_in_order_at_its_rate(tmp_path, rate, num_frames):
    clip = read_video(write(tmp_path / "a.mp4", numbered_frames(num_frames), frame_rate=rate))
    assert clip.num_frames == len(clip.frames) == num_frames
    assert numbers_in(clip.frames) == list(range(num_frames))
    assert clip.frame_rate == pytest.approx(float(rate), rel=1e-6)
    assert not isinstance(rate, Fraction) or clip.frame_rate == rate


def test_chunks_written_one_after_another_make_the_same_video_as_at_once(tmp_path):
    with VideoWriter(tmp_path / "chunks.mp4", width=48, height=32) as writer:
        for chunk in numbered_frames(12).split(5):
            writer.write(chunk)
        assert writer.num_frames == 12
    at_once = read_video(write(tmp_path / "once.mp4", numbered_frames(12)))
    assert torch.equal(read_video(tmp_path / "chunks.mp4").frames, at_once.frames)


def test_metadata_is_stored_in_the_container_in_front_of_the_pictures(tmp_path):
    graph = json.dumps({"1": {"class_type": "HeliosLongVideo", "inputs": {"text": "a «cat»\n猫"}}})
    path = write(tmp_path / "a.mp4", numbered_frames(3), metadata={"prompt": graph, "workflow": "{}"})
    with av.open(str(path)) as container:
        assert json.loads(container.metadata["prompt"]) == json.loads(graph)
        assert container.metadata["workflow"] == "{}"
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"HeliosLongVideo") < data.index(b"mdat")


def test_frames_are_let_go_and_the_file_grows_while_writing(tmp_path):
    noise = torch.Generator().manual_seed(0)
    sizes = []
    with VideoWriter(tmp_path / "a.mp4", width=64, height=64, crf=1) as writer:
        for _ in range(20):
            chunk = torch.rand(10, 64, 64, 3, generator=noise)
            alive = weakref.ref(chunk)
            writer.write(chunk)
            del chunk
            assert alive() is None
            sizes.append(writer.temporary_path.stat().st_size if writer.temporary_path.exists() else 0)
        assert not writer.path.exists()
    # What is not on disk yet is x264's look-ahead and one write buffer, however long the video.
    final = writer.path.stat().st_size
    assert sizes[9] > 0.2 * final
    assert sizes[19] > 0.6 * final


def test_an_exception_leaves_what_was_written_playable_and_is_raised_again(tmp_path):
    def cancelled_after_seven_frames():
        with VideoWriter(tmp_path / "a.mp4", width=48, height=32) as writer:
            writer.write(numbered_frames(7))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cancelled_after_seven_frames()
    assert numbers_in(read_video(tmp_path / "a.mp4").frames) == list(range(7))
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]


def test_an_exception_before_the_first_frame_leaves_an_older_file_alone(tmp_path):
    write(tmp_path / "a.mp4", numbered_frames(2))
    before = (tmp_path / "a.mp4").read_bytes()
    with pytest.raises(KeyError), VideoWriter(tmp_path / "a.mp4", width=48, height=32):
        raise KeyError("no model")
    assert (tmp_path / "a.mp4").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]


def test_a_file_that_cannot_be_finished_does_not_hide_the_first_exception(tmp_path):
    writer = VideoWriter(tmp_path / "a.mp4", width=48, height=32)

    def failing_twice():
        with writer:
            writer.write(numbered_frames(2))
            writer.path.mkdir()  # now nothing can be moved there
            raise KeyError("no model")

    with pytest.raises(KeyError) as caught:
        failing_twice()
    assert "could not be finished" in caught.value.__notes__[0]
    (kept,) = [file for file in tmp_path.iterdir() if file.is_file()]
    assert kept.name in caught.value.__notes__[0]
    assert read_video(kept).num_frames == 2


def test_frames_before_one_with_nan_are_kept(tmp_path):
    frames = numbered_frames(5).clone()
    frames[3, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="frame 3 contains NaN"):
        write(tmp_path / "a.mp4", frames)
    assert numbers_in(read_video(tmp_path / "a.mp4").frames) == [0, 1, 2]


def test_a_new_video_takes_the_place_of_an_older_one_only_when_finished(tmp_path):
    write(tmp_path / "a.mp4", numbered_frames(2))
    with VideoWriter(tmp_path / "a.mp4", width=48, height=32) as writer:
        writer.write(numbered_frames(4))
        assert read_video(tmp_path / "a.mp4").num_frames == 2
    assert read_video(tmp_path / "a.mp4").num_frames == 4


def test_a_video_without_frames_is_an_error_and_no_file(tmp_path):
    writer = VideoWriter(tmp_path / "a.mp4", width=48, height=32)
    with pytest.raises(ValueError, match="no frames were written"), writer:
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"width": 47}, ValueError, "width 47 .* nearest: 46 or 48"),
        ({"height": 0}, ValueError, "height 0"),
        ({"frame_rate": 0}, ValueError, "frame_rate 0"),
        ({"frame_rate": float("nan")}, ValueError, "frame_rate nan"),
        ({"crf": 52}, ValueError, "crf 52 .* allowed: 0"),
        ({"metadata": {"prompt": {"a": 1}}}, TypeError, "metadata 'prompt' is dict"),
        ({"path": "a.avi"}, ValueError, "must end in .mp4"),
        ({"path": "nowhere/a.mp4"}, FileNotFoundError, "folder does not exist"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is(tmp_path, options, error, message):
    options = {"path": "a.mp4", "width": 48, "height": 32, **options}
    with pytest.raises(error, match=message):
        VideoWriter(tmp_path / options.pop("path"), **options)
    assert not list(tmp_path.iterdir())


def test_wrong_frames_are_refused_with_the_shape_that_is_right(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", width=48, height=32) as writer:
        writer.write(numbered_frames(1))
        with pytest.raises(ValueError, match=r"\(1, 32, 40, 3\); expected \(T, 32, 48, 3\)"):
            writer.write(numbered_frames(1, width=40))
        with pytest.raises(TypeError, match="uint8"):
            writer.write(torch.zeros(1, 32, 48, 3, dtype=torch.uint8))
    with pytest.raises(RuntimeError, match="with block"):
        writer.write(numbered_frames(1))


# Reading


@pytest.mark.parametrize(
    ("asked", "expected"), [(5, range(15, 20)), (20, range(20)), (99, range(20)), (1, [19])]
)
def test_the_last_frames_come_with_the_first_and_the_count_of_the_whole(tmp_path, asked, expected):
    path = write(tmp_path / "a.mp4", numbered_frames(20))
    clip = read_video(path, last_frames=asked)
    assert numbers_in(clip.frames) == list(expected)
    assert numbers_in(clip.first_frame[None]) == [0]
    assert clip.num_frames == 20
    assert clip.frames.dtype == clip.first_frame.dtype == torch.uint8


def turned_copy(path, matrix):
    """A copy of an mp4 whose track header says it is to be shown through the matrix (a, b, c, d)."""
    data = bytearray(path.read_bytes())
    position = data.index(b"tkhd") + 4 + 40  # ISO/IEC 14496-12: version 0 header fields before the matrix
    assert struct.unpack_from(">9i", data, position) == (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    a, b, c, d = (value << 16 for value in matrix)
    struct.pack_into(">9i", data, position, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    turned = path.with_name("turned.mp4")
    turned.write_bytes(data)
    return turned


@pytest.mark.parametrize(
    ("matrix", "turn"),
    [
        ((0, 1, -1, 0), lambda frame: np.rot90(frame, -1)),  # a phone held upright: a quarter clockwise
        ((-1, 0, 0, -1), lambda frame: np.rot90(frame, 2)),
        ((0, -1, 1, 0), lambda frame: np.rot90(frame, 1)),
        ((-1, 0, 0, 1), np.fliplr),
        ((1, 0, 0, -1), np.flipud),
        ((0, 1, 1, 0), lambda frame: frame.swapaxes(0, 1)),
    ],
    ids=["clockwise", "half", "counterclockwise", "mirrored", "upside down", "transposed"],
)
def test_a_video_is_read_as_its_rotation_says(tmp_path, matrix, turn):
    picture = torch.from_numpy(astronaut()[:64, 180:276].copy()) / 255
    path = write(tmp_path / "a.mp4", picture[None].expand(2, -1, -1, -1))
    plain, turned = read_video(path), read_video(turned_copy(path, matrix))
    assert np.array_equal(turned.frames[1].numpy(), turn(plain.frames[1].numpy()))
    assert np.array_equal(turned.first_frame.numpy(), turn(plain.first_frame.numpy()))


@pytest.mark.parametrize("colorspace", [5, 1], ids=["bt601", "bt709"])
def test_colours_are_read_by_the_matrix_the_file_names(tmp_path, colorspace):
    colours, picture = colour_patches()
    path = write_raw(tmp_path / "a.mkv", picture[None], "libx264", "yuv420p", colorspace, {"crf": "1"})
    difference = patch_centres(read_video(path).frames[0].numpy()).astype(int) - colours
    assert np.abs(difference).max() <= 3  # PyAV's default conversion wrote it, less exactly than ours


@pytest.mark.parametrize(("name", "codec", "pix_fmt"), [("a.mov", "png", "rgb24"), ("a.mkv", "ffv1", "bgra")])
def test_lossless_rgb_is_read_exactly(tmp_path, name, codec, pix_fmt):
    frames = np.random.default_rng(1).integers(0, 256, (3, 30, 34, 3), dtype=np.uint8)
    path = write_raw(tmp_path / name, frames, codec, pix_fmt)
    assert np.array_equal(read_video(path).frames.numpy(), frames)


def test_an_odd_sized_video_is_read_whole(tmp_path):
    frames = np.full((2, 31, 45, 3), 90, dtype=np.uint8)
    clip = read_video(write_raw(tmp_path / "a.mkv", frames, "ffv1", "yuv420p"))
    assert clip.frames.shape == (2, 31, 45, 3)


def test_a_missing_video_is_named_in_the_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.mp4"):
        read_video(tmp_path / "gone.mp4")


@pytest.mark.parametrize("content", [b"", b"just words, no video", b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom"])
def test_a_file_that_is_no_video_is_named_in_the_error(tmp_path, content):
    (tmp_path / "notes.mp4").write_bytes(content)
    with pytest.raises(ValueError, match=r"notes\.mp4"):
        read_video(tmp_path / "notes.mp4")


def test_a_sound_file_is_said_to_have_no_pictures(tmp_path):
    with av.open(str(tmp_path / "a.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        stream.layout = "mono"
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    with pytest.raises(ValueError, match=r"a\.wav is not a video: it has no picture stream"):
        read_video(tmp_path / "a.wav")


def test_a_video_whose_pictures_were_cut_off_has_no_frames(tmp_path):
    path = write(tmp_path / "a.mp4", numbered_frames(3))
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"mdat") + 4])
    with pytest.raises(ValueError, match=r"a\.mp4 (has no frames|cannot be read)"):
        read_video(path)


def test_asking_for_no_frames_is_refused(tmp_path):
    path = write(tmp_path / "a.mp4", numbered_frames(1))
    with pytest.raises(ValueError, match="last_frames is 0; allowed: at least 1"):
        read_video(path, last_frames=0)


# Pictures


def test_a_picture_is_read_exactly(tmp_path):
    Image.fromarray(astronaut()).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png").numpy(), astronaut())


def test_a_photo_is_turned_as_its_exif_orientation_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to show
    Image.fromarray(astronaut()[:64]).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "a.png").numpy(), np.rot90(astronaut()[:64], -1))


@pytest.mark.parametrize("mode", ["RGBA", "P", "L", "LA", "1", "CMYK"])
def test_every_kind_of_picture_becomes_rgb(tmp_path, mode):
    image = Image.fromarray(astronaut()[:32, :32]).convert(mode)
    image.save(tmp_path / "a.tif")
    expected = np.array(image.convert("RGB"))
    assert np.array_equal(read_image(tmp_path / "a.tif").numpy(), expected)


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    levels = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
    Image.fromarray(levels).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png")[0, :, 1].tolist() == [0, 100, 255]


def test_a_missing_or_unreadable_picture_is_named_in_the_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        read_image(tmp_path / "gone.png")
    (tmp_path / "words.png").write_text("not a picture")
    with pytest.raises(ValueError, match=r"words\.png is not a picture"):
        read_image(tmp_path / "words.png")
    Image.fromarray(astronaut()).save(tmp_path / "cut.png")
    data = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"cut\.png cannot be read"):
        read_image(tmp_path / "cut.png")


# Sizes and ranges


@pytest.mark.parametrize("size", [(128, 64), (64, 128), (100, 100), (700, 300)])
def test_stretching_is_pillows_lanczos_to_the_bit(size):
    frames = torch.from_numpy(np.stack([astronaut()[:300], astronaut()[200:500]]))
    expected = [np.array(Image.fromarray(f).resize(size, Image.Resampling.LANCZOS)) for f in frames.numpy()]
    assert np.array_equal(resize_frames(frames, *size, mode="stretch").numpy(), np.stack(expected))


def test_stretching_and_ranging_equal_diffusers_video_processor():
    processor = pytest.importorskip("diffusers.video_processor").VideoProcessor(vae_scale_factor=8)
    images = [Image.fromarray(astronaut()[:300]), Image.fromarray(astronaut()[200:500])]
    expected = processor.preprocess_video(images, height=64, width=128)
    frames = torch.from_numpy(np.stack([np.array(image) for image in images]))
    assert torch.equal(to_pixels(resize_frames(frames, 128, 64, mode="stretch")), expected)


def test_cropping_keeps_the_middle_and_its_shape():
    frames = torch.from_numpy(astronaut())[None]
    cropped = resize_frames(frames, 256, 128, mode="crop")[0]
    middle = Image.fromarray(astronaut()[128:384]).resize((256, 128), Image.Resampling.LANCZOS)
    # Away from the cut, where the filter sees only what both have.
    assert np.array_equal(cropped.numpy()[4:-4], np.array(middle)[4:-4])


def test_padding_shows_everything_between_black_bars():
    frames = torch.from_numpy(astronaut())[None]
    padded = resize_frames(frames, 256, 128, mode="pad")[0].numpy()
    whole = Image.fromarray(astronaut()).resize((128, 128), Image.Resampling.LANCZOS)
    assert np.array_equal(padded[:, 64:192], np.array(whole))
    assert padded[:, :64].max() == padded[:, 192:].max() == 0


@pytest.mark.parametrize("mode", ["crop", "stretch", "pad"])
def test_frames_of_the_right_size_are_not_changed(mode):
    frames = torch.from_numpy(astronaut())[None]
    assert torch.equal(resize_frames(frames, 512, 512, mode=mode), frames)


def test_a_wrong_resize_is_refused_with_what_is_allowed():
    frames = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    with pytest.raises(ValueError, match="mode is 'fill'; allowed: crop, stretch, pad"):
        resize_frames(frames, 8, 8, mode="fill")
    with pytest.raises(ValueError, match="0x8"):
        resize_frames(frames, 0, 8)
    with pytest.raises(TypeError, match="float32; expected uint8"):
        resize_frames(frames.float(), 4, 4)


def test_pixels_span_minus_one_to_one_and_come_back_as_frames():
    frames = torch.from_numpy(astronaut()[:16, :24])[None].repeat(3, 1, 1, 1)
    frames[0, 0, 0], frames[0, 0, 1] = 0, 255
    pixels = to_pixels(frames)
    assert pixels.shape == (1, 3, 3, 16, 24)
    assert (pixels.min(), pixels.max()) == (-1, 1)
    assert torch.equal((from_pixels(pixels) * 255).round().to(torch.uint8), frames)
    assert from_pixels(pixels * 5).aminmax() == (0, 1)


def test_a_contact_sheet_shows_first_to_last_frame_evenly():
    frames = (numbered_frames(13, height=16, width=24) * 255).round().to(torch.uint8)
    sheet = np.array(contact_sheet(frames, columns=2, rows=2, gap=4))
    assert sheet.shape == (2 * 16 + 4, 2 * 24 + 4, 3)
    corners = torch.from_numpy(np.stack([sheet[y : y + 16, x : x + 24] for y in (0, 20) for x in (0, 28)]))
    assert numbers_in(corners) == [0, 4, 8, 12]
    assert sheet[16:20].max() == 0


def test_a_contact_sheet_of_few_frames_has_no_empty_tiles():
    assert contact_sheet(numbered_frames(3), columns=8, rows=2, tile_width=24, gap=0).size == (72, 16)
    with pytest.raises(ValueError, match="T at least 1"):
        contact_sheet(numbered_frames(0))


def test_padding_and_cropping_agree_with_pillows_own_helpers():
    image = Image.fromarray(astronaut()[:300])
    frames = torch.from_numpy(np.array(image))[None]
    for mode, helper in (("crop", ImageOps.fit), ("pad", ImageOps.pad)):
        expected = helper(image, (96, 160), Image.Resampling.LANCZOS)
        assert np.array_equal(resize_frames(frames, 96, 160, mode=mode)[0].numpy(), np.array(expected))
