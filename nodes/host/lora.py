"""LoRAs of every naming, through ComfyUI's own loaders.

ComfyUI asks a model for the names of its weights, `model.state_dict().keys()`, and makes of each "diffusion_model.x"
the names under which it looks for LoRA tensors (`model_lora_keys_unet` in comfy/lora.py). What it found it hands to the
patcher by the key that it was asked under. There is no other place to say how LoRAs spell a model's layers, except for
the classes of ComfyUI's own models.

So HeliosModel names its weights in every spelling when it is asked for names, and the patcher turns those that come
back into weights. Whoever reads values (iteration, items, [], len, in) sees the weights only.
"""

import logging
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, KeysView, Mapping
from functools import lru_cache
from typing import Any

import comfy.utils
import comfy.weight_adapter
import torch

from ...helios_core.checkpoint.lora_names import LoraReport, spellings, stranger_spellings
from .progress import show_on_node

logger = logging.getLogger(__name__)

_MODEL = "diffusion_model."
_WEIGHT = ".weight"
_MAX_STRENGTH = 1000.0  # ComfyUI's own widgets end at 100
# Width of the tokens -> the Wan of that width.
_WIDTHS = {1536: "Wan 1.3B", 3072: "Wan 2.2 5B", 5120: "a Wan or Helios of 14B"}


class LoraName(str):
    """How a LoRA may spell one of the model's weights; `weight` is the weight's own name, "" where Helios has none.

    To ComfyUI's question whether it is a name of the model it answers yes, and its path leads to the weight.
    """

    weight: str
    absent: str | None  # what the layer is for in the model that has it
    stranger: str | None  # the model that the name is of

    def __new__(cls, text: str, weight: str = "", absent: str | None = None, stranger: str | None = None):
        name = super().__new__(cls, text)
        name.weight, name.absent, name.stranger = weight, absent, stranger
        return name

    def startswith(self, prefix, *bounds) -> bool:
        return (prefix == _MODEL and not bounds) or super().startswith(prefix, *bounds)

    def split(self, *arguments, **options) -> list[str]:
        return (self.weight or str(self)).split(*arguments, **options)

    def __getitem__(self, index):
        text = super().__getitem__(index)
        if index == slice(None, -len(_WEIGHT)):
            return LoraName(text, self.weight.removesuffix(_WEIGHT), self.absent, self.stranger)
        return text


class WeightsByName(dict):
    """A state dict whose `keys()` are also the spellings that LoRAs use. All else is of the weights alone."""

    names: Mapping[str, LoraName]

    def keys(self) -> KeysView[str]:
        return dict.fromkeys([*self, *self.names]).keys()

    def __missing__(self, key: str) -> torch.Tensor:
        return self[self.names[key].weight]


def with_lora_names(state: Mapping[str, torch.Tensor], num_layers: int) -> WeightsByName:
    """The state dict of a HeliosModel, naming its weights in every spelling when asked for names."""
    named = WeightsByName(state)
    named.names = lora_names(num_layers)
    return named


@lru_cache(maxsize=4)
def lora_names(num_layers: int) -> dict[LoraName, LoraName]:
    """Every spelling of every layer with a weight, but those that are the weights' own names."""
    names = [
        LoraName(spelling + _WEIGHT, "" if absent else f"{_MODEL}{layer}{_WEIGHT}", absent)
        for spelling, layer, absent in spellings(num_layers)
        if absent or spelling != _MODEL + layer
    ]
    names += [LoraName(spelling + _WEIGHT, stranger=model) for spelling, model in stranger_spellings()]
    return {name: name for name in names}


class LoraPatches:
    """What a ModelPatcher of Helios does with LoRAs. Comes before ComfyUI's patcher among the bases."""

    def add_patches(self, patches: dict[Any, Any], strength_patch: float = 1.0, strength_model: float = 1.0) -> list:
        """Called by ComfyUI's LoRA loaders with what they recognised, by the names they were given.

        Raises ValueError for a LoRA that is for another model or of another width, that holds NaN or has alpha 0
        throughout, and for a strength beyond reason: nothing is patched then. Returns the keys that were used or
        reported as left out: of the others ComfyUI warns, one by one.
        """
        batches, used = self._checked(patches, strength_patch)
        for weights in batches:
            plain = {key: patch for key, (_, patch) in weights.items()}
            given = super().add_patches(plain, strength_patch, strength_model)
            used += [weights[key][0] for key in given]
        return used

    def add_hook_patches(self, hook, patches, strength_patch: float = 1.0, strength_model: float = 1.0) -> list:
        """As `add_patches`, for LoRAs that hooks put on for some steps."""
        batches, used = self._checked(patches, strength_patch)
        for weights in batches:
            plain = {key: patch for key, (_, patch) in weights.items()}
            given = super().add_hook_patches(hook, plain, strength_patch, strength_model)
            used += [weights[key][0] for key in given]
        return used

    def inject_model(self) -> None:
        """Put what other nodes inject into the model's place, for one of them ComfyUI's LoRA loader without patches,
        which shows its LoRA to nobody before. Raises ValueError as `add_patches` does."""
        super().inject_model()
        bypassed = [(f"{name}{_WEIGHT}", adapter) for name, adapter in _bypassed(self.model)]
        try:
            for key, adapter in bypassed:
                self._check_shape(key, adapter)
            _check_numbers((key, key, adapter) for key, adapter in bypassed)
        except ValueError:
            self.eject_model()
            raise

    def model_state_dict(self, filter_prefix: str | None = None) -> dict[str, torch.Tensor]:
        """The weights by their own names."""
        with self.use_ejected():
            state = self.model.state_dict().items()
            return {key: value for key, value in state if filter_prefix is None or key.startswith(filter_prefix)}

    def _checked(self, patches: Mapping[Any, Any], strength: float) -> tuple[list[dict[Any, tuple[Any, Any]]], list]:
        """Patches as {weight's key: (key as given, patch)}, several of these where a weight is spelled in two ways; and
        the keys that Helios has no place for."""
        if patches and not any(_is_lora(patch) for patch in patches.values()):
            return [{key: (key, patch) for key, patch in patches.items()}], []  # of a merge, by the weights' own names
        layers, left_out = self._by_weight(patches)
        _check_strength(strength)
        for key, _, patch in layers:
            self._check_shape(key, patch)
        _check_numbers(layers)
        _say(f"LoRA: {LoraReport(len(layers), Counter(left_out.values())).sentence()}")
        return list(_without_collisions(layers)), list(left_out)

    def _by_weight(self, patches: Mapping[Any, Any]) -> tuple[list[tuple[Any, Any, Any]], dict[Any, str]]:
        """(weight's key, key as given, patch) of all that has a place; and what the keys that have none are for."""
        names, weights = lora_names(len(self.model.diffusion_model.blocks)), self.model.state_dict()
        found, left_out, strangers = [], {}, []
        for key, patch in patches.items():
            text = key if isinstance(key, str) else key[0]
            name = names.get(text) or names.get(text.removesuffix(".bias") + _WEIGHT)
            if name is None:
                if text in weights:
                    found.append((key, key, patch))
            elif name.stranger:
                strangers.append(name.stranger)
            elif name.absent:
                left_out[key] = name.absent
            else:
                weight = name.weight if text in names else name.weight.removesuffix(_WEIGHT) + ".bias"
                found.append((weight if isinstance(key, str) else (weight, *key[1:]), key, patch))
        if not found and (not patches or strangers or left_out):
            raise ValueError(_nothing_fits(strangers, set(left_out.values())))
        return found, left_out

    def _check_shape(self, key: Any, patch: Any) -> None:
        key = key if isinstance(key, str) else key[0]
        layer = comfy.utils.get_attr(self.model, key.rpartition(".")[0])
        if not hasattr(layer, "in_features"):
            return
        expected = (layer.out_features, layer.in_features) if key.endswith(_WEIGHT) else (layer.out_features,)
        sizes = _sizes(patch)
        if sizes is not None and sizes != expected:
            raise ValueError(
                f"this LoRA is for another model: for {key} it has {_in_words(sizes)}; the layer of this Helios has "
                f"{' and '.join(map(str, expected))}.{_of_width(sizes)} Nothing was changed"
            )


def _bypassed(model: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """Name and LoRA of each layer that ComfyUI computes a LoRA beside."""
    hook = getattr(comfy.weight_adapter, "BypassForwardHook", None)
    for name, layer in model.named_modules():
        owner = getattr(vars(layer).get("forward"), "__self__", None)
        if hook is not None and isinstance(owner, hook):
            yield name, owner.adapter


def _is_lora(patch: Any) -> bool:
    return isinstance(patch, comfy.weight_adapter.WeightAdapterBase) or (
        isinstance(patch, tuple) and len(patch) == 2 and patch[0] in ("diff", "set")
    )


def _sizes(patch: Any) -> tuple[int, ...] | None:
    """(outputs, inputs) of what a patch adds to a weight, or (outputs,) to a bias; None if it is not known."""
    weights = patch.weights if isinstance(patch, comfy.weight_adapter.WeightAdapterBase) else patch[1]
    if isinstance(patch, tuple):
        return tuple(weights[0].shape)
    if isinstance(patch, comfy.weight_adapter.LoRAAdapter):
        up, down = weights[:2]
        return up.shape[0], down[0].numel()
    if isinstance(patch, comfy.weight_adapter.LoHaAdapter) and weights[5] is None:
        return weights[0].shape[0], weights[1].shape[1]
    if isinstance(patch, comfy.weight_adapter.LoKrAdapter) and weights[7] is None:
        first = _pair_sizes(weights[0], weights[3], weights[4])
        second = _pair_sizes(weights[1], weights[5], weights[6])
        return first[0] * second[0], first[1] * second[1]
    return None


def _pair_sizes(whole, left, right) -> tuple[int, int]:
    return (whole.shape[0], whole[0].numel()) if whole is not None else (left.shape[0], right.shape[1])


def _in_words(sizes: tuple[int, ...]) -> str:
    return f"{sizes[0]} outputs" + (f" and {sizes[1]} inputs" if len(sizes) > 1 else "")


def _of_width(sizes: tuple[int, ...]) -> str:
    model = next((_WIDTHS[size] for size in sizes if size in _WIDTHS), None)
    return f" It seems to be for {model}." if model else ""


def _check_strength(strength: float) -> None:
    if not math.isfinite(strength) or abs(strength) > _MAX_STRENGTH:
        raise ValueError(
            f"the LoRA's strength is {strength:g}; sensible are -2 to 2, allowed -{_MAX_STRENGTH:g} to "
            f"{_MAX_STRENGTH:g}. Nothing was changed"
        )


def _check_numbers(layers: Iterable[tuple[Any, Any, Any]]) -> None:
    """Raises ValueError for a LoRA that would change nothing, or everything to NaN."""
    alphas = []
    for key, _, patch in layers:
        for tensor in _tensors(patch):
            values = tensor.bfloat16() if tensor.dtype.itemsize == 1 else tensor
            if values.is_floating_point() and not bool(values.isfinite().all()):
                raise ValueError(
                    f"the LoRA holds NaN or infinity, for {key}: every video would be black. Nothing was changed. "
                    "Download it again, or ask whoever made it"
                )
        if isinstance(patch, comfy.weight_adapter.LoRAAdapter | comfy.weight_adapter.LoHaAdapter):
            alphas.append(patch.weights[2])
    if alphas and all(alpha == 0 for alpha in alphas):
        raise ValueError(
            "the LoRA's alpha is 0 for every layer, so it would change nothing: its file was written wrongly. "
            "Use one that was exported with an alpha, or without any"
        )


def _tensors(patch: Any) -> Iterator[torch.Tensor]:
    weights = patch.weights if isinstance(patch, comfy.weight_adapter.WeightAdapterBase) else patch[1]
    return (value for value in weights if isinstance(value, torch.Tensor))


def _nothing_fits(strangers: list[str], left_out: Collection[str]) -> str:
    if strangers:
        return f"nothing in this LoRA fits Helios: it seems to be for {strangers[0]}. Use one for Helios or Wan 2.1 14B"
    if left_out:
        return f"nothing in this LoRA fits Helios: it is for {', '.join(left_out)} only, which Helios has not"
    return (
        "nothing in this LoRA fits Helios: it is for another model, or its names are not understood. Known are the "
        "names of diffusers, PEFT, Wan 2.1, kohya and musubi; the log lists those in the file"
    )


def _without_collisions(layers: Iterable[tuple[Any, Any, Any]]) -> Iterator[dict[Any, tuple[Any, Any]]]:
    """The patches in as few dicts as it takes for every weight to be in each at most once."""
    batches: list[dict[Any, tuple[Any, Any]]] = []
    for weight, key, patch in layers:
        batch = next((batch for batch in batches if weight not in batch), None)
        if batch is None:
            batch = {}
            batches.append(batch)
        batch[weight] = key, patch
    yield from batches


def _say(words: str) -> None:
    logger.info(words)
    show_on_node(words)
