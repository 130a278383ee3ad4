"""What the user sees while chunks are made: one bar, where the run is in words, and a picture of all nine frames.

The bar and the picture are the events that ComfyUI's own samplers send, and all that a plain websocket client gets.
"""

from collections import deque
from collections.abc import Sequence

import comfy.latent_formats
import comfy.utils
import latent_preview
import torch
from comfy_api import feature_flags
from comfy_execution.utils import get_executing_context
from einops import rearrange
from PIL import Image
from server import PromptServer

from ...helios_core.report.eta import JobClock
from ...helios_core.run.pace import in_words
from ...helios_core.sampling.hooks import StepDone

UNITS_PER_CHUNK = 1000  # of the bar
COLUMNS = 3  # of the picture: nine frames are 3 x 3


class Progress:
    """The sampler's progress hook for one node: chunks from `first_chunk` of the video on, with the cost of each of
    their steps in order. `advice` are sentences that stand below the words as long as those do."""

    def __init__(
        self,
        node_id: str | None,
        step_costs: Sequence[Sequence[int]],
        first_chunk: int,
        device: torch.device,
        advice: Sequence[str] = (),
    ) -> None:
        self.node_id = node_id
        self.advice = advice
        self.num_chunks = len(step_costs)
        self.first_chunk = first_chunk
        self.clock = JobClock(step_costs, first_chunk)
        self.bar = comfy.utils.ProgressBar(self.num_chunks * UNITS_PER_CHUNK)
        previewer = latent_preview.get_previewer(device, comfy.latent_formats.Wan21())
        self.preview = None if previewer is None else Preview(previewer)

    def __call__(self, step: StepDone) -> None:
        self.clock.step_done(step.chunk_index)
        picture = None
        if self.preview is not None:
            picture = ("JPEG", self.preview.draw(step), latent_preview.MAX_PREVIEW_RESOLUTION)
        total = self.bar.total
        self.bar.update_absolute(round(total * self.clock.fraction), total, picture)
        # ComfyUI's page takes this for markup: nothing that a user wrote may be in it.
        show_on_node("\n".join([self._words(step), *self.advice]), self.node_id)

    def _words(self, step: StepDone) -> str:
        chunk = step.chunk_index - self.first_chunk + 1
        words = (
            f"chunk {chunk} of {self.num_chunks}, stage {step.stage + 1} of {step.num_stages}, "
            f"step {step.step + 1} of {step.num_steps}"
        )
        left = self.clock.seconds_left
        return words if left is None else f"{words}; about {in_words(left)} left"


def show_on_node(words: str, node_id: str | None = None) -> None:
    """Show words on a node, by default the one that is being executed. Only ComfyUI's own frontend is sent them: it
    says what it can show when it connects, and other clients may take any binary message for a picture."""
    server = PromptServer.instance
    if node_id is None:
        context = get_executing_context()
        node_id = None if context is None else context.node_id
    if node_id is None or server is None:
        return
    if feature_flags.supports_feature(server.sockets_metadata, server.client_id, "supports_preview_metadata"):
        server.send_progress_text(words, node_id, server.client_id)


class Preview:
    """Pictures of the chunk in the making, by one of ComfyUI's latent previewers.

    The nine latent frames stand in three rows, to be read like a page. Above them, once there are any, stand the
    middle frames of the last three finished chunks.
    """

    def __init__(self, previewer: latent_preview.LatentPreviewer) -> None:
        self.previewer = previewer
        self.finished: deque[Image.Image] = deque(maxlen=COLUMNS)

    def draw(self, step: StepDone) -> Image.Image:
        page = self._page(step.denoised)
        width, height = page.width // COLUMNS, page.height // COLUMNS
        if (step.stage + 1, step.step + 1) == (step.num_stages, step.num_steps):
            self.finished.append(page.crop((width, height, 2 * width, 2 * height)))
        if not self.finished:
            return page
        picture = Image.new(page.mode, (page.width, page.height + height))
        for column, frame in enumerate(self.finished):
            picture.paste(frame.resize((width, height)), (column * width, 0))
        picture.paste(page, (0, height))
        return picture

    def _page(self, latents: torch.Tensor) -> Image.Image:
        """Latents (B, C, 9, h, w) -> the frames of the first video, side by side. ComfyUI's previewers show latent
        frame 0 only, so the frames are laid out as one large frame."""
        page = rearrange(latents[:1], "b c (row column) h w -> b c 1 (row h) (column w)", column=COLUMNS)
        return self.previewer.decode_latent_to_preview(page)
