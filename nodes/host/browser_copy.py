"""A small h264 copy in the temporary folder, of a video that browsers do not play."""

from pathlib import Path

import folder_paths
import torch
from comfy_api.latest import io, ui

from ...helios_core.media.audio import Sound
from ...helios_core.media.writer import VideoWriter

SIZE = 512  # pixels, of the longer side


class BrowserCopy:
    """Written beside the video: `write` its frames, with `writer` open. `result` is the file for the node's answer."""

    def __init__(self, stem: str, width: int, height: int, frame_rate: float, sound: Sound | None) -> None:
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
            f"Helios/{stem}", folder_paths.get_temp_directory(), width, height
        )
        shrink = min(1, SIZE / max(width, height))
        self.width, self.height = (max(2, round(size * shrink / 2) * 2) for size in (width, height))
        path = Path(folder) / f"{name}_{counter:05}_.mp4"
        self.result = ui.SavedResult(path.name, subfolder, io.FolderType.temp)
        self.writer = VideoWriter(
            path, width=self.width, height=self.height, frame_rate=frame_rate, crf=23, sound=sound
        )

    def write(self, frames: torch.Tensor) -> None:
        """Append frames (T, H, W, 3) of the full size."""
        for frame in frames:  # one by one: with all at once the copies would take as much memory as the chunk
            small = torch.nn.functional.interpolate(
                frame.float().movedim(-1, 0)[None], (self.height, self.width), mode="bilinear", antialias=True
            )
            self.writer.write(small.movedim(1, -1))
