"""Inputs that Helios Chunk Sampler and Helios Long Video share: each stands here once, and in each node at its place.

The order of a node's inputs is frozen, as old workflows store values by position.
"""

from comfy_api.latest import io


def model_input() -> io.Model.Input:
    return io.Model.Input("model", tooltip="A Helios model.")


def seed_input(tooltip: str) -> io.Int.Input:
    return io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True, tooltip=tooltip)


def steps_input() -> io.String.Input:
    return io.String.Input(
        "steps",
        default="",
        tooltip="Steps in each pyramid stage, e.g. 2,2,2. Empty: the variant's own (Distilled 2,2,2; Mid 20,20,20; "
        "Base 50).",
    )


def guidance_scale_input() -> io.Float.Input:
    return io.Float.Input(
        "guidance_scale",
        default=0.0,
        min=0.0,
        max=30.0,
        step=0.1,
        tooltip="How strongly the prompt is followed. 0: the variant's own (Base and Mid 5, Distilled 1). 1 means no "
        "guidance, needs no negative prompt and takes half the time.",
    )


def amplify_first_chunk_input() -> io.Boolean.Input:
    return io.Boolean.Input(
        "amplify_first_chunk",
        default=True,
        tooltip="Distilled only: twice the steps in the first chunk of a video, on which all others build.",
    )


def negative_input() -> io.Conditioning.Input:
    return io.Conditioning.Input(
        "negative",
        optional=True,
        tooltip="What to stay away from; may be an empty prompt. Needed with guidance.",
    )
