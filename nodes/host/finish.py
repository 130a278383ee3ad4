"""What finishing takes from ComfyUI's wires: a VIDEO as a stream, an UPSCALE_MODEL and an INTERP_MODEL as functions.

Frames come out as from ComfyUI's own nodes, Upscale Image (using Model) and Run Frame Interpolation Model: same tiles,
same order of operations.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import comfy.model_management
import comfy.utils
import torch
from comfy_api.latest import InputImpl

from ...helios_core.fingerprint import file_fingerprint, fingerprint, tensor_samples
from ...helios_core.finish.source import Source, file_source, frames_source
from .video_wire import rgb, sound_of_audio, trim_window

TILE, SMALLEST_TILE, OVERLAP = 512, 128, 32


def video_source(video) -> Source:
    """A VIDEO as a stream; of a file no more than a frame at a time is read. Raises ValueError for HDR."""
    if isinstance(video, InputImpl.VideoFromFile):
        start, duration = trim_window(video)
        return file_source(video.get_stream_source(), start=start, duration=duration)
    components = video.get_components()
    sound = components.audio and sound_of_audio(components.audio)
    return frames_source(rgb(components.images, "video"), Fraction(components.frame_rate), sound)


def video_identity(video) -> str:
    """Identifies this video, by its content."""
    if not isinstance(video, InputImpl.VideoFromFile):
        return fingerprint(tensor_samples(video.get_components().images))
    file = video.get_stream_source()
    content = file_fingerprint(Path(file)) if isinstance(file, str) else fingerprint(file.getvalue())
    return fingerprint(content, *trim_window(video))


class ModelUpscaler:
    """An UPSCALE_MODEL, one frame at a time.

    Raises ValueError for anything else. `say` is called when the device's memory runs out and tiles get smaller.
    """

    def __init__(self, model, say: Callable[[str], None]) -> None:
        channels = [getattr(model, f"{end}_channels", 3) for end in ("input", "output")]
        if not (callable(model) and hasattr(model, "model") and hasattr(model, "scale")):
            raise ValueError(
                f"upscale_model is a {type(model).__name__}; expected a model that makes one image larger, from Load "
                "Upscale Model"
            )
        if channels != [3, 3]:
            raise ValueError(
                f"upscale_model takes {channels[0]} channels and gives {channels[1]}; expected 3 and 3: one for "
                "colour images"
            )
        self.descriptor, self.say = model, say
        self.scale = model.scale
        self.fingerprint = fingerprint("upscaler", type(model.model).__name__, _weights(model.model))
        self._tile = TILE

    @property
    def device(self) -> torch.device:
        patcher = getattr(self.descriptor, "patcher", None)
        return comfy.model_management.get_torch_device() if patcher is None else patcher.load_device

    def memory_required(self) -> float:
        """Bytes for computing, as ComfyUI's own node estimates them."""
        return 512 * 512 * 3 * 4 * max(self.scale, 1.0) * 384.0

    def __call__(self, frame: torch.Tensor) -> torch.Tensor:
        pixels = frame[None].movedim(-1, -3).to(self.device)
        while True:
            try:
                upscaled = comfy.utils.tiled_scale(
                    pixels,
                    self._upscale_tile,
                    tile_x=self._tile,
                    tile_y=self._tile,
                    overlap=OVERLAP,
                    upscale_amount=self.scale,
                )
            except RuntimeError as error:
                if not _out_of_memory(error) or self._tile <= SMALLEST_TILE:
                    raise
                self._tile //= 2
                self.say(f"GPU memory ran out in upscaling; continuing with tiles of {self._tile} pixels")
                comfy.model_management.soft_empty_cache()
                continue
            return upscaled[0].movedim(-3, -1).clamp(0, 1)

    def _upscale_tile(self, tile: torch.Tensor) -> torch.Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        return self.descriptor(tile.float())


class ModelInterpolator:
    """An INTERP_MODEL (FILM, RIFE): frames between two, in order.

    Raises ValueError for anything else. `say` is called when the device's memory runs out and batches get smaller.
    """

    def __init__(self, patcher, say: Callable[[str], None]) -> None:
        network = getattr(patcher, "model", None)
        if not (hasattr(network, "extract_features") and hasattr(patcher, "model_dtype")):
            raise ValueError(
                f"interp_model is a {type(network or patcher).__name__}; expected FILM or RIFE, from Load Frame "
                "Interpolation Model (ComfyUI 0.33 and later has it)"
            )
        self.patcher, self.network, self.say = patcher, network, say
        self.fingerprint = fingerprint("interpolator", type(network).__name__, _weights(network))
        self._at_once = hasattr(network, "forward_multi_timestep")
        self._batch: int | None = None
        self._last: tuple[torch.Tensor, torch.Tensor, object] | None = None  # a frame, prepared, its features

    def memory_required(self, width: int, height: int) -> float:
        """Bytes for computing, as the model estimates them."""
        return self.network.memory_used_forward((1, height, width, 3), self.patcher.model_dtype())

    def __call__(self, before: torch.Tensor, after: torch.Tensor, positions: Sequence[float]) -> torch.Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        height, width = before.shape[:2]
        if self._last is not None and self._last[0] is before:
            _, start, features = self._last
        else:
            start = self._prepared(before)
            features = self.network.extract_features(start)
        end = self._prepared(after)
        cache = {"img0": features, "img1": self.network.extract_features(end)}
        self._last = (after, end, cache["img1"])
        frames = self._all_at_once(start, end, positions, cache)
        if frames is None:
            frames = self._in_batches(start, end, positions, cache)
        return frames[:, :, :height, :width].float().cpu().movedim(1, -1).clamp(0, 1)

    def _prepared(self, frame: torch.Tensor) -> torch.Tensor:
        pixels = frame[None].movedim(-1, 1).to(dtype=self.patcher.model_dtype(), device=self.patcher.load_device)
        multiple = getattr(self.network, "pad_align", 1)
        if multiple > 1:
            from comfy.ldm.common_dit import pad_to_patch_size

            pixels = pad_to_patch_size(pixels, (multiple, multiple), padding_mode="reflect")
        return pixels

    def _all_at_once(self, start, end, positions: Sequence[float], cache: dict) -> torch.Tensor | None:
        """FILM finds the motion once for all positions; None when the model cannot, or has no memory for it."""
        if not self._at_once:
            return None
        try:
            return self.network.forward_multi_timestep(start, end, list(positions), cache=cache)
        except RuntimeError as error:
            if not _out_of_memory(error) or len(positions) == 1:
                raise
        self._at_once, self._batch = False, 1
        self.say("GPU memory ran out in interpolating; continuing with one frame at a time")
        comfy.model_management.soft_empty_cache()
        return None

    def _in_batches(self, start, end, positions: Sequence[float], cache: dict) -> torch.Tensor:
        times = torch.tensor(positions, device=start.device, dtype=start.dtype).reshape(-1, 1, 1, 1)
        times = times.expand(-1, 1, *start.shape[2:])
        done = []
        while sum(map(len, done)) < len(positions):
            first = sum(map(len, done))
            step = times[first : first + (self._batch or len(positions))]
            pair = (frame.expand(len(step), -1, -1, -1) for frame in (start, end))
            try:
                done.append(self.network(*pair, timestep=step, cache=cache))
            except RuntimeError as error:
                if not _out_of_memory(error) or len(step) == 1:
                    raise
                self._batch = len(step) // 2
                self.say(f"GPU memory ran out in interpolating; continuing with {self._batch} frames at a time")
                comfy.model_management.soft_empty_cache()
        return torch.cat(done)


@contextmanager
def loaded(
    upscaler: ModelUpscaler | None, interpolator: ModelInterpolator | None, width: int, height: int
) -> Iterator[None]:
    """Keep the models where they compute, for frames of that size, while the block runs."""
    needs = [upscaler.memory_required()] if upscaler else []
    needs += [interpolator.memory_required(width, height)] if interpolator else []
    patchers = [] if interpolator is None else [interpolator.patcher]
    patcher = getattr(upscaler.descriptor, "patcher", None) if upscaler else None
    if patcher is not None:
        patchers.append(patcher)
    if patchers:
        comfy.model_management.load_models_gpu(patchers, memory_required=max(needs), force_full_load=True)
    if upscaler is None or patcher is not None:
        yield
        return
    # Versions before 0.33 move such a model by hand.
    size = comfy.model_management.module_size(upscaler.descriptor.model)
    comfy.model_management.free_memory(size + max(needs), upscaler.device)
    upscaler.descriptor.to(upscaler.device)
    try:
        yield
    finally:
        upscaler.descriptor.to("cpu")


def _weights(model: torch.nn.Module) -> dict:
    return {name: tensor_samples(tensor.detach()) for name, tensor in model.state_dict().items()}


def _out_of_memory(error: RuntimeError) -> bool:
    if hasattr(comfy.model_management, "is_oom"):
        return comfy.model_management.is_oom(error)
    return isinstance(error, comfy.model_management.OOM_EXCEPTION)
