"""Where random numbers come from.

The default derives every draw from the seed and the draw's own key (which chunk, which stage), so that a resumed,
branched or re-rolled run equals an unbroken one, on any device. The other two draw from one generator in the order
of a reference implementation, to reproduce its numbers.
"""

from __future__ import annotations

import hashlib
from typing import Protocol

import torch

NOISE_SOURCES = ("seeded", "diffusers", "authors")

# A key names a draw: ("chunk", k) for the start noise of chunk k, ("renoise", k, stage) between stages, ...
Key = tuple[str | int, ...]


class NoiseSource(Protocol):
    """Gives fp32 noise on a device of its own choice."""

    @property
    def seed(self) -> int | None:
        """What the draws follow from, for the record; None when it is not known."""

    def normal(self, shape: tuple[int, ...], key: Key) -> torch.Tensor:
        """Standard normal noise of this shape."""

    def uniform(self, shape: tuple[int, ...], key: Key) -> torch.Tensor:
        """Noise uniform in [0, 1) of this shape."""


class SeededNoise:
    """Every draw is a function of (seed, key) alone, made on the CPU."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def _generator(self, key: Key) -> torch.Generator:
        digest = hashlib.blake2b(repr((self.seed, *key)).encode(), digest_size=8).digest()
        return torch.Generator("cpu").manual_seed(int.from_bytes(digest, "big"))

    def normal(self, shape: tuple[int, ...], key: Key) -> torch.Tensor:
        return torch.randn(shape, generator=self._generator(key))

    def uniform(self, shape: tuple[int, ...], key: Key) -> torch.Tensor:
        return torch.rand(shape, generator=self._generator(key))


class DiffusersNoise:
    """Draws one after another from one generator, on its device: diffusers' pipelines with `generator=`.

    A run continued from a memory does not repeat the unbroken run, since the generator's state is no part of it.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        self.seed = generator.initial_seed()

    def normal(self, shape: tuple[int, ...], key: Key) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator, device=self.generator.device)

    def uniform(self, shape: tuple[int, ...], key: Key) -> torch.Tensor:
        return torch.rand(shape, generator=self.generator, device=self.generator.device)


class AuthorsNoise(DiffusersNoise):
    """As the authors' own inference: like diffusers, but the noise between stages comes from a new generator with
    torch's default seed every time, so it is the same for every chunk, seed and run."""

    def normal(self, shape: tuple[int, ...], key: Key) -> torch.Tensor:
        if key[0] != "renoise":
            return super().normal(shape, key)
        device = self.generator.device
        return torch.randn(shape, generator=torch.Generator(device), device=device)


def noise_source(name: str, seed: int, device: torch.device | str) -> NoiseSource:
    """The source of that name, "seeded", "diffusers" or "authors"; the authors' own draws on `device`.

    Raises ValueError for an unknown name, and for a seed that is not one of torch's.
    """
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed is {seed}; it must be a whole number from 0 to {2**64 - 1}")
    match name:
        case "seeded":
            return SeededNoise(seed)
        case "diffusers":
            return DiffusersNoise(torch.Generator("cpu").manual_seed(seed))
        case "authors":
            return AuthorsNoise(torch.Generator(device).manual_seed(seed))
        case _:
            raise ValueError(f"noise is {name!r}; allowed: {', '.join(NOISE_SOURCES)}")


def stream_state(source: NoiseSource) -> torch.Tensor | None:
    """Where a source that draws one stream stands, as a uint8 tensor; None for one whose draws have no order."""
    return source.generator.get_state() if isinstance(source, DiffusersNoise) else None


def restore_stream(source: NoiseSource, state: torch.Tensor | None) -> None:
    """Put a source back to where `stream_state` found it."""
    if isinstance(source, DiffusersNoise) and state is not None:
        source.generator.set_state(state)
