"""The inputs that all nodes which write a video share: what they refuse before anything runs."""

from ..helios_core.media.formats import MP4_H264, MissingEncoderError, find_format
from .host.folders import check_prefix, run_path


def check_video_inputs(
    crf: int | None,
    format: str | None,
    pix_fmt: str | None,
    filename_prefix: str | None,
    run_name: str | None = None,
) -> bool | str:
    """For `validate_inputs`: True, or what the encoder or the folders would refuse after all the work. None comes from
    another node and is known only when that has run; so is the size."""
    try:
        if run_name is not None:
            run_path(run_name)
        if filename_prefix is not None:
            check_prefix(filename_prefix)
        chosen = find_format(format or MP4_H264.name)
        chosen.choose_pixel_format(pix_fmt or "auto", 2, 2)
        chosen.check_crf(crf or 0)
    except (ValueError, MissingEncoderError) as error:
        return str(error)
    return True
