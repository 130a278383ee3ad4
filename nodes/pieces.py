"""Helios Cut Video and Helios Join Video: any graph of images on a video of any length, piece by piece."""

from comfy_api.latest import InputImpl, io, ui
from comfy_execution.graph_utils import ExecutionBlocker

from ..helios_core.finish.cutting import Joining, cut_video, piece_frames, piece_sound
from ..helios_core.finish.pieces import PieceFolder, join_pieces
from ..helios_core.media.formats import FORMATS, MP4_H264, PIXEL_FORMATS, find_format
from ..helios_core.run.run_folder import RunFolder
from .host.finish import video_identity, video_source
from .host.folders import next_path, run_path
from .host.graph_metadata import graph_metadata
from .host.video_wire import sound_of_audio
from .video_inputs import check_video_inputs
from .wires import CATEGORY

HeliosPieceType = io.Custom("HELIOS_PIECE")


class HeliosCutVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HeliosCutVideo",
            display_name="Helios Cut Video",
            category=CATEGORY,
            description="Takes one piece of a video as images, for steps that only take images. Queue the graph once "
            "for each piece: the number counts up by itself. Helios Join Video puts the pieces together.",
            inputs=[
                io.Video.Input("video", tooltip="A video of any length; only this piece of a file is kept in RAM."),
                io.Int.Input(
                    "number",
                    default=0,
                    min=0,
                    max=1000000,
                    control_after_generate=True,
                    tooltip="Which piece, from 0. Set the control to increment and queue as often as there are pieces.",
                ),
                io.Int.Input(
                    "length", default=81, min=1, max=100000, tooltip="Frames of a piece; the last one may be shorter."
                ),
                io.Int.Input(
                    "overlap",
                    default=0,
                    min=0,
                    max=1000,
                    tooltip="Frames of each neighbour that come with a piece, for steps that look at frames around. "
                    "Helios Join Video takes them off again.",
                ),
                io.Int.Input("start", default=0, min=0, max=100000000, tooltip="The frame at which piece 0 begins."),
            ],
            outputs=[
                io.Image.Output("images", display_name="images", tooltip="The piece's frames, with the overlap."),
                HeliosPieceType.Output("piece", display_name="piece", tooltip="Which piece it is: for Join Video."),
                io.Audio.Output("audio", display_name="audio", tooltip="The sound under the images, if there is any."),
                io.Float.Output("frame_rate", display_name="frame_rate", tooltip="Frames per second."),
                io.Int.Output("num_pieces", display_name="num_pieces", tooltip="How many pieces the video has."),
            ],
        )

    @classmethod
    def execute(cls, video, number, length, overlap, start) -> io.NodeOutput:
        source = video_source(video)
        cut = cut_video(source, video_identity(video), number, length, overlap, start)
        audio = ExecutionBlocker("the video has no sound: connect nothing to audio of Helios Cut Video")
        if source.sound is not None:
            audio = {"waveform": piece_sound(source.sound, cut)[None], "sample_rate": source.sound.sample_rate}
        return io.NodeOutput(piece_frames(source, cut), cut, audio, float(cut.frame_rate), cut.num_pieces)


class HeliosJoinVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HeliosJoinVideo",
            display_name="Helios Join Video",
            category=CATEGORY,
            description="Keeps each piece of Helios Cut Video on disk after the steps between and writes one file when "
            "all are there, with the frame rate and the sound of the video that was cut. Pieces may come in any order "
            "and be made again.",
            inputs=[
                io.Image.Input(
                    "images", tooltip="The piece after the steps between: as many frames, of any size, alike in all."
                ),
                HeliosPieceType.Input("piece", tooltip="From Helios Cut Video."),
                io.String.Input(
                    "run_name",
                    default="my_pieces",
                    tooltip="Folder below output/helios_runs that keeps the pieces. Take a new name when the steps "
                    "between change.",
                ),
                io.Combo.Input(
                    "format",
                    options=list(FORMATS),
                    default=MP4_H264.name,
                    tooltip="How the video is stored. ffv1 is lossless, for further steps.",
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
                    tooltip="Quality: lower is better and larger; 18 is visually lossless.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="Helios/joined",
                    tooltip="Where the file goes below the output folder, and how its name begins.",
                ),
                io.Video.Input(
                    "video", optional=True, tooltip="The video that was cut: its sound goes into the joined file."
                ),
                io.Audio.Input("audio", optional=True, tooltip="Sound for the joined video, in place of video's."),
            ],
            outputs=[
                io.Video.Output(
                    "joined", display_name="joined", tooltip="The whole video, or this piece while others are missing."
                ),
                io.String.Output("report", display_name="report", tooltip="Which pieces are there."),
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
        return check_video_inputs(crf, format, pix_fmt, filename_prefix, run_name)

    @classmethod
    def execute(
        cls, images, piece, run_name, format, pix_fmt, crf, filename_prefix, video=None, audio=None
    ) -> io.NodeOutput:
        height, width = images.shape[1:3]
        joining = Joining(piece, width, height, find_format(format), pix_fmt, crf)
        folder = PieceFolder(RunFolder(run_path(run_name, cls.hidden)))
        sound = None if audio is None else sound_of_audio(audio)
        if sound is None and video is not None and (sound := video_source(video).sound) is not None:
            sound = sound.starting_at(sound.start + float(piece.first / piece.frame_rate))
        with folder.locked():
            path = joining.save(images, folder)
            missing = joining.missing(folder)
            if not missing:
                parts = [folder.path / joining.name(number) for number in range(piece.num_pieces)]
                path, _ = next_path(filename_prefix, joining.format.suffix, width, height, cls.hidden)
                num_frames = join_pieces(
                    parts,
                    path,
                    format=joining.format,
                    frame_rate=piece.frame_rate,
                    sound=sound,
                    metadata=graph_metadata(cls.hidden),
                )
                folder.note_film(parts, path)
        report = f"piece {piece.number} of {piece.num_pieces} is kept; still missing: {', '.join(map(str, missing))}"
        if not missing:
            report = f"all {piece.num_pieces} pieces are joined: {num_frames} frames in {path.name}"
        return io.NodeOutput(InputImpl.VideoFromFile(str(path)), report, ui=ui.PreviewText(report))
