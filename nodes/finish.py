"""Helios Finish Video: any video larger, smoother and in another format, piece by piece on disk, resumable."""

import logging

import comfy.model_management
import comfy.utils
from comfy_api.latest import InputImpl, io, ui

from ..helios_core.finish.film import Film, Finisher, finish_video
from ..helios_core.finish.pictures import FITS
from ..helios_core.finish.pieces import PieceFolder
from ..helios_core.finish.recipe import Recipe
from ..helios_core.media.formats import FORMATS, MP4_H264, PIXEL_FORMATS, find_format
from ..helios_core.media.reader import stream_video
from ..helios_core.run.run_folder import RunFolder
from .host.browser_copy import BrowserCopy
from .host.finish import ModelInterpolator, ModelUpscaler, loaded, video_source
from .host.folders import next_path, run_path
from .host.graph_metadata import graph_metadata
from .host.video_wire import sound_of_audio
from .video_inputs import check_video_inputs
from .wires import CATEGORY

logger = logging.getLogger(__name__)

InterpolationModelType = io.Custom("INTERP_MODEL")


class HeliosFinishVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HeliosFinishVideo",
            display_name="Helios Finish Video",
            category=CATEGORY,
            description="Makes a video of any length larger and smoother, and writes it in the format to deliver, in "
            "constant RAM. Every finished piece goes to disk at once: a run that was cancelled or crashed resumes "
            "where it stopped when the graph is queued again, and a longer version of the same video makes only what "
            "is new.",
            inputs=[
                io.Video.Input("video", tooltip="Any video, of Helios or not. Files are read frame by frame."),
                io.String.Input(
                    "run_name",
                    default="my_film",
                    tooltip="Folder below output/helios_runs that keeps the finished pieces. Queue again with the same "
                    "name to resume.",
                ),
                io.Int.Input(
                    "width",
                    default=0,
                    min=0,
                    max=16384,
                    tooltip="Width of the result in pixels. 0: follows the height; with both 0, scale decides.",
                ),
                io.Int.Input(
                    "height",
                    default=0,
                    min=0,
                    max=16384,
                    tooltip="Height of the result in pixels. 0: follows the width; with both 0, scale decides.",
                ),
                io.Float.Input(
                    "scale",
                    default=0.0,
                    min=0.0,
                    max=16.0,
                    step=0.05,
                    tooltip="Size of the result as a multiple of the source's. 0: width and height decide, and without "
                    "them the upscaler.",
                ),
                io.Combo.Input(
                    "fit",
                    options=list(FITS),
                    default="crop",
                    tooltip="When the shape changes: crop cuts off both sides, pad adds black bars, stretch distorts. "
                    "The report says how much.",
                ),
                io.Int.Input(
                    "factor",
                    default=1,
                    min=1,
                    max=16,
                    tooltip="So many times the frames per second; needs interp_model. The duration stays.",
                ),
                io.Float.Input(
                    "frame_rate",
                    default=0.0,
                    min=0.0,
                    max=240.0,
                    step=0.01,
                    tooltip="Frames per second of the result, in place of factor; needs interp_model. 0: as factor "
                    "says.",
                ),
                io.Combo.Input(
                    "format",
                    options=list(FORMATS),
                    default=MP4_H264.name,
                    tooltip="h264, vp9 and av1 play in browsers, hevc in most players. ProRes and ffv1 are masters for "
                    "editing; ffv1 is lossless.",
                ),
                io.Combo.Input(
                    "pix_fmt",
                    options=["auto", *PIXEL_FORMATS],
                    default="auto",
                    tooltip="How pixels are stored; auto is each format's most usual. 10le is 10 bits.",
                ),
                io.Int.Input(
                    "crf",
                    default=18,
                    min=0,
                    max=63,
                    tooltip="Quality: lower is better and larger; 18 is visually lossless. Up to 51 for h264 and hevc, "
                    "63 for vp9 and av1; without meaning for ProRes and ffv1.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="Helios/film",
                    tooltip="Where the file goes below the output folder, and how its name begins.",
                ),
                io.UpscaleModel.Input(
                    "upscale_model",
                    optional=True,
                    tooltip="From Load Upscale Model. Every frame goes through it, then a Lanczos filter makes the "
                    "exact size. Without it the filter does all.",
                ),
                InterpolationModelType.Input(
                    "interp_model",
                    optional=True,
                    tooltip="From Load Frame Interpolation Model, FILM or RIFE (ComfyUI 0.33 and later). Used where "
                    "factor or frame_rate ask for more frames.",
                ),
                io.Audio.Input(
                    "audio",
                    optional=True,
                    tooltip="Sound in place of the video's own; cut or followed by silence so that it is as long.",
                ),
                io.Float.Input(
                    "audio_start",
                    optional=True,
                    default=0.0,
                    min=-3600.0,
                    max=36000.0,
                    step=0.01,
                    tooltip="The second of audio at which the video begins; below 0: so much silence first.",
                ),
                io.Float.Input(
                    "cut_threshold",
                    optional=True,
                    default=0.06,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How much a frame must differ from the one before to begin a new scene, across which no "
                    "frames are made. Lower finds more cuts; 0: the video has none.",
                ),
                io.Float.Input(
                    "sharpness",
                    optional=True,
                    default=0.0,
                    min=0.0,
                    max=5.0,
                    step=0.05,
                    tooltip="Unsharp mask of one pixel at the final size. 0: off; 0.5 is mild.",
                ),
                io.Float.Input(
                    "grain",
                    optional=True,
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.005,
                    tooltip="Film grain at the final size, as a part of the range of values. 0: off; 0.02 is mild.",
                ),
                io.Int.Input(
                    "grain_seed", optional=True, default=0, min=0, max=0xFFFFFFFF, tooltip="Another seed, other grain."
                ),
            ],
            outputs=[
                io.Video.Output("film", display_name="film", tooltip="The finished file."),
                io.String.Output("report", display_name="report", tooltip="What was done, in sentences."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(
        cls,
        run_name: str | None = None,
        filename_prefix: str | None = None,
        crf: int = 0,
        format: str = MP4_H264.name,
        pix_fmt: str = "auto",
    ) -> bool | str:
        """Refuse before anything runs what would be refused after it. What other nodes give is looked at later."""
        return check_video_inputs(crf, format, pix_fmt, filename_prefix, run_name)

    @classmethod
    def execute(
        cls,
        video,
        run_name,
        width,
        height,
        scale,
        fit,
        factor,
        frame_rate,
        format,
        pix_fmt,
        crf,
        filename_prefix,
        upscale_model=None,
        interp_model=None,
        audio=None,
        audio_start=0.0,
        cut_threshold=0.06,
        sharpness=0.0,
        grain=0.0,
        grain_seed=0,
    ) -> io.NodeOutput:
        report = Report()
        upscaler = None if upscale_model is None else ModelUpscaler(upscale_model, report)
        wanted = interp_model is not None and (factor > 1 or frame_rate)
        interpolator = ModelInterpolator(interp_model, report) if wanted else None
        recipe = Recipe(
            upscaler=upscaler,
            interpolator=interpolator,
            width=width,
            height=height,
            scale=scale,
            fit=fit,
            factor=factor,
            frame_rate=frame_rate,
            cut_threshold=cut_threshold,
            sharpness=sharpness,
            grain=grain,
            grain_seed=grain_seed,
            format=find_format(format),
            pixel_format=pix_fmt,
            crf=crf,
        )
        sound = None if audio is None else sound_of_audio(audio).starting_at(audio_start)
        finisher = Finisher(video_source(video), recipe, say=report, progress=Bar())
        path, subfolder = next_path(filename_prefix, recipe.format.suffix, *finisher.size(), cls.hidden)
        with loaded(upscaler, interpolator, *finisher.kitchen.source):
            film = finish_video(
                finisher, PieceFolder(RunFolder(run_path(run_name, cls.hidden))), path, sound=sound,
                metadata=graph_metadata(cls.hidden),
            )  # fmt: skip
        shown = ui.SavedResult(path.name, subfolder, io.FolderType.output)
        if recipe.format.choose_pixel_format(pix_fmt, *finisher.size()) not in recipe.format.browser_pixel_formats:
            shown = small_copy(film)
        return io.NodeOutput(InputImpl.VideoFromFile(str(path)), report.text(), ui=ui.PreviewVideo([shown]))


class Report:
    """Sentences for the user: each goes to the log when it is said, once, and all to the node's output."""

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def __call__(self, sentence: str) -> None:
        if sentence not in self.sentences:
            self.sentences.append(sentence)
            logger.info("%s", sentence)

    def text(self) -> str:
        return "\n".join(self.sentences)


class Bar:
    """ComfyUI's progress bar, by frames; Cancel acts when it moves."""

    def __init__(self) -> None:
        self.bar = comfy.utils.ProgressBar(1)

    def __call__(self, done: int, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.bar.update_absolute(done, total)


def small_copy(film: Film) -> ui.SavedResult:
    """A small h264 copy in the temporary folder, of a film that browsers do not play, without its sound."""
    preview = BrowserCopy(film.path.stem, film.width, film.height, float(film.frame_rate), None)
    with preview.writer:
        for frame in stream_video(film.path):
            preview.write(frame[None].float() / 255)
    return preview.result
