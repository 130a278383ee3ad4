"""Puts a test's own function on the MODEL wire, where a node of another pack would stand."""

import itertools
from collections.abc import Callable

from .latents_graph import SAMPLER

_functions: dict[str, Callable] = {}
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
