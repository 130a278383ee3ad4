"""Nodes of a test's own: a function on the MODEL wire, where a node of another pack would stand, and exact pictures."""

import itertools
from collections.abc import Callable

import torch

from .latents_graph import SAMPLER

_functions: dict[str, Callable] = {}
_pictures: dict[str, torch.Tensor] = {}
_numbers = itertools.count()


class ChangeModel:
    """A node whose output is `function(model)`."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "change"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "function": ("STRING", {})}}

    def change(self, model, function):
        return (_functions[function](model),)


def change_model(graph: dict[str, dict], function: Callable) -> None:
    """Let the sampler of a `latents_graph` have `function(model)` of what it would have had."""
    import nodes

    nodes.NODE_CLASS_MAPPINGS.setdefault("ChangeModel", ChangeModel)
    name = f"function {next(_numbers)}"
    _functions[name] = function
    inputs = graph[SAMPLER]["inputs"]
    graph[name] = {"class_type": "ChangeModel", "inputs": {"model": inputs["model"], "function": name}}
    inputs["model"] = [name, 0]


class GivePictures:
    """A node whose output is pictures that a test made, bit for bit: a host's decoders may round them."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "give"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"name": ("STRING", {})}}

    def give(self, name):
        return (_pictures[name],)


def give_pictures(pictures: torch.Tensor) -> dict:
    """A node for an API graph that puts `pictures` (T, H, W, 3) in [0, 1] on its output."""
    import nodes

    nodes.NODE_CLASS_MAPPINGS.setdefault("GivePictures", GivePictures)
    name = f"pictures {next(_numbers)}"
    _pictures[name] = pictures
    return {"class_type": "GivePictures", "inputs": {"name": name}}
