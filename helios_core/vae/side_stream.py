"""Decoding on a GPU beside the sampling of the next chunk: a CUDA stream of its own for the VAE.

    sampling stream   | chunk 0 | chunk 1 ........ | chunk 2 ........ |
    side stream                 | decode 0 |       | decode 1 |
    background thread           | ... waits | encode 0 | ... waits | encode 1 |

The thread is that of `long_video`. Whatever the sampling leaves idle of the GPU the decoder takes. The memory of both
is in use at once, and neither stream can use what the other has let go.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class SideStream:
    """A stream beside the one that is current when this is made; what that one was given so far is waited for.

    So weights must be on the device before. `cuda` is torch.cuda, or stands for it.
    """

    def __init__(self, device: torch.device | str, cuda: Any = torch.cuda) -> None:
        self._cuda = cuda
        self._stream = cuda.Stream(device)
        self._ready = cuda.Event()
        self._ready.record(cuda.current_stream(device))

    def decode(self, decode: Callable[[torch.Tensor], torch.Tensor], latents: torch.Tensor) -> torch.Tensor:
        """`decode(latents)`, run on this stream, as a tensor on the CPU. Blocks the calling thread until it is there.

        `latents` are on the CPU: whoever copied them there has waited for them, which this stream could not know of a
        tensor on the device. Raises ValueError for others.
        """
        if latents.device.type != "cpu":
            raise ValueError(f"latents for a stream of its own are on {latents.device}; hand them in on the CPU")
        with self._cuda.stream(self._stream):
            self._stream.wait_event(self._ready)
            frames = decode(latents)
            # Pinned, or the copy would hold the host, and with it the launches of the sampling thread.
            copy = torch.empty(frames.shape, dtype=frames.dtype, pin_memory=frames.is_cuda)
            copy.copy_(frames, non_blocking=True)
            done = self._cuda.Event()
            done.record(self._stream)
        done.synchronize()
        return copy

    def around(self, decode: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
        """`decode`, on this stream."""
        return lambda latents: self.decode(decode, latents)
