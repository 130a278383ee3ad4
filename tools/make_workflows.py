"""Write the sample workflows from the descriptions below.

A workflow file stores widget values by position and repeats each node's slots, so it is tedious to keep right by
hand. Here a workflow is a few lines that name only what differs from a node's defaults; the rest comes from the node
definitions of a running ComfyUI that has this pack:

    python tools/make_workflows.py --server http://127.0.0.1:8188
"""

import argparse
import json
import urllib.request
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

WORKFLOWS = Path(__file__).resolve().parents[1] / "workflows"

HELIOS = "helios_distilled_bf16.safetensors"
TEXT_ENCODER = "umt5_xxl_fp8_e4m3fn_scaled.safetensors"
VAE = "wan_2.1_vae.safetensors"

MODEL_NOTE = f"""## Model files
| file | folder |
|---|---|
| `{HELIOS}` | `models/diffusion_models/` |
| `{TEXT_ENCODER}` | `models/text_encoders/` |
| `{VAE}` | `models/vae/` |

The first is the Helios transformer: a single file of a ComfyUI repackaged release, or the `transformer` folder of
`BestWishYsh/Helios-Distilled` on Hugging Face put into `models/diffusion_models/` as it is. The other two are those
of Wan 2.1 (`Comfy-Org/Wan_2.1_ComfyUI_repackaged` on Hugging Face). Pick your file in each loader if its name differs.

## Sizes
Helios was trained at 640 x 384. Width and height are multiples of 64. A chunk is 33 frames: 1.4 seconds at 24
frames a second.
"""

DEMO_NOTE = """## No model files
These graphs run on a tiny Helios that comes with the pack, on any machine. It knows one toy world at 64 x 64 pixels:

*a **red** **circle** moving **right** on a **black** background*

- colours: red, green, blue, yellow, purple
- shapes: circle, square, triangle
- directions: right, left, up, down
- backgrounds: black, grey, white

To make real video put Helios Loader, Load CLIP and Load VAE in the place of Helios Demo Models, as in the other
templates, and set the size to 640 x 384.
"""

DEMO_SCHEDULE = """\
# When a prompt starts, and what is seen. The toy world knows no colour between two others, so nothing is blended.
0s: a red circle moving right on a black background
2.75s step: a green square moving up on a white background
5.5s step: a yellow triangle moving left on a grey background
end 8.25s
"""

TIMELINE = """\
# When a prompt starts, how many chunks it blends in over, and what is seen.
0s: A red fox walks through a snowy forest at dawn, the camera follows close behind.
4.125s blend 3: The fox stops and looks up at the sky, its breath visible in the cold air.
9.625s blend 4: Heavy snow begins to fall around the fox, the light turns soft and blue.
end 15.125s
"""

MINUTE = """\
# One scene for ten seconds or so; a longer blend where the light or the weather changes.
0s: A small harbour town before sunrise, blue light, mist over still water. The camera drifts slowly past the boats.
11s blend 4: The sun rises over the harbour town, golden light on the boats, gulls take off. The camera drifts on.
22s blend 3: A red fishing boat leaves the harbour at morning, its wake glitters. The camera follows close behind.
33s blend 4: The red fishing boat on the open sea at noon, long waves, spray over the bow. The camera follows.
44s blend 6 spherical: Dark clouds gather over the red fishing boat, rain on the grey sea, wind. The camera follows.
53.625s blend 3: The rain stops, the sun breaks through low clouds behind the red fishing boat, the sea turns gold.
end 60s
"""

DEMO_SIZE = {"width": 64, "height": 64}

TITLE_HEIGHT = 30
SLOT_HEIGHT = 20
WIDGET_HEIGHT = 24
GAP = 30
# Nodes that show more than slots and widgets: (width, height).
SIZES = {
    "MarkdownNote": (460, 560),
    "CLIPTextEncode": (400, 180),
    "LoadImage": (320, 340),
    "HeliosVideoCombine": (480, 560),
    "HeliosLongVideo": (420, 860),
    "HeliosPromptSchedule": (600, 660),
    "HeliosDriftReport": (420, 420),
    "HeliosMemoryInspector": (420, 420),
    "PreviewImage": (560, 420),
}
WIDTH = 320


def t2v(flow: "Flow") -> None:
    """Text to video: three chunks from one prompt."""
    flow.note("Text to video", "Write a prompt and run. `chunks` sets the length: 3 chunks are 99 frames.")
    model, clip, vae = models(flow)
    with flow.column("2. What to show"):
        positive = prompt(
            flow,
            clip,
            "A small red fishing boat rocks in a quiet harbour at dusk. Lanterns along the pier light up one by one "
            "and their reflections tremble on the dark water. The camera glides slowly forward.",
        )
        memory = flow.node("HeliosContext", title="Helios Context (from text)")
    with flow.column("3. Chunk after chunk"):
        chunks = sampler(flow, model, positive, memory, chunks=3)
    video(flow, chunks, vae, "helios/t2v")


def i2v(flow: "Flow") -> None:
    """Image to video: three chunks that start from a picture."""
    flow.note(
        "Image to video",
        "Choose a picture in Load Image: the video starts from it. It is cropped to the size set in Helios Context.",
    )
    model, clip, vae = models(flow)
    with flow.column("2. What to show"):
        image = flow.node("LoadImage", image="example.png")
        memory = flow.node(
            "HeliosContext", title="Helios Context (from an image)", image=image["IMAGE"], vae=vae["VAE"]
        )
        positive = prompt(
            flow,
            clip,
            "The scene comes to life: a gentle breeze, light that shifts slowly, small natural movements. The camera "
            "moves in a little, smooth and steady.",
        )
    with flow.column("3. Chunk after chunk"):
        chunks = sampler(flow, model, positive, memory, chunks=3)
    video(flow, chunks, vae, "helios/i2v")


def v2v(flow: "Flow") -> None:
    """Video to video: a clip, and its continuation."""
    flow.note(
        "Video to video",
        "Helios continues a clip of at least 33 frames. To run without any clip at hand, this graph makes its own "
        "(step 2).\n\n**Your own clip:** add a *Load Video* node, connect it to `video` of Helios Context, and "
        "delete the group *A clip to continue*. Only the continuation is saved in step 4.",
    )
    model, clip, vae = models(flow)
    with flow.column("2. A clip to continue"):
        before = prompt(flow, clip, "A calm sea under a pale morning sky, waves rolling in towards a sandy beach.")
        start = flow.node("HeliosContext", title="Helios Context (from text)")
        source = sampler(flow, model, before, start, chunks=1)
    with flow.same_group_column():
        source_clip = combine(flow, source, vae, "helios/v2v_source")
    with flow.column("3. Its continuation"):
        memory = flow.node(
            "HeliosContext", title="Helios Context (from a video)", video=source_clip["VIDEO"], vae=vae["VAE"]
        )
        after = prompt(
            flow,
            clip,
            "A calm sea under a pale morning sky, waves rolling in towards a sandy beach. A white sailing boat "
            "comes into view and crosses the picture from left to right.",
        )
        chunks = sampler(flow, model, after, memory, chunks=2)
    video(flow, chunks, vae, "helios/v2v")


def i2v_then_prompts(flow: "Flow") -> None:
    """A picture, then three prompts one after another."""
    flow.note(
        "A picture, then three prompts",
        "Each sampler hands its memory to the next, so the video continues without a cut while the prompt changes. "
        "Change the last prompt and run again: only the last sampler works, the others are cached.\n\n"
        "Take the memory of any sampler to a second chain to branch the story.",
    )
    model, clip, vae = models(flow)
    with flow.column("2. The picture"):
        image = flow.node("LoadImage", image="example.png")
        memory = flow.node(
            "HeliosContext", title="Helios Context (from an image)", image=image["IMAGE"], vae=vae["VAE"]
        )
    scenes = [
        "The scene comes to life: a gentle breeze and small natural movements. The camera is still.",
        "Dusk falls. The light turns warm and golden, shadows grow long. The camera drifts slowly to the right.",
        "Night has come. Soft lights glow in the dark and fireflies drift through the air.",
    ]
    latents = None
    for number, text in enumerate(scenes, start=1):
        with flow.column(f"{number + 2}. Prompt {number}"):
            positive = prompt(flow, clip, text)
            chunks = sampler(flow, model, positive, memory, chunks=2, seed=number)
            memory = chunks
            if latents is None:
                latents = chunks
            else:
                latents = flow.node("LatentBatch", samples1=latents["LATENT"], samples2=chunks["LATENT"])
    video(flow, latents, vae, "helios/i2v_then_prompts", step=6)


def prompt_timeline(flow: "Flow") -> None:
    """Prompts over time, directed on a timeline."""
    flow.note(
        "Prompts over time",
        "Drag, split and resize the blocks of the timeline, or write the text above it: both are the same schedule, "
        "and blocks snap to chunks. Where two prompts blend, the colour of the first fades out in the second.\n\n"
        "The schedule also gives the sampler the number of chunks.",
    )
    model, clip, vae = models(flow)
    with flow.column("2. What to show, and when"):
        schedule = flow.node("HeliosPromptSchedule", clip=clip["CLIP"], text=TIMELINE)
        memory = flow.node("HeliosContext", title="Helios Context (from text)")
    with flow.column("3. Chunk after chunk"):
        chunks = flow.node(
            "HeliosChunkSampler",
            model=model["MODEL"],
            positive=schedule["HELIOS_SCHEDULE"],
            memory=memory["HELIOS_MEMORY"],
            chunks=schedule["INT"],
        )
    video(flow, chunks, vae, "helios/prompt_timeline")


def long_t2v(flow: "Flow") -> None:
    """One minute of video, every chunk on disk."""
    flow.note(
        "A minute of video",
        "Every finished chunk goes to `output/helios_runs/<run_name>` at once. Cancel, or lose power, and queue the "
        "graph again: it resumes where it stopped and ends in the same file.\n\n"
        "Change the prompt, or give one chunk another seed with `reroll` (as in `12:77`): only what comes after is "
        "made again. RAM and GPU memory stay the same however long the video.\n\n"
        "To make it larger and smoother, connect the video to *Helios Finish Video*: see the template *finish*.",
    )
    model, clip, vae = models(flow)
    with flow.column("2. What to show"):
        positive = prompt(
            flow,
            clip,
            "A river winds through a green valley in the morning. The camera flies slowly along it, low over the "
            "water, past willows, a stone bridge and a mill.",
        )
        memory = flow.node("HeliosContext", title="Helios Context (from text)")
    with flow.column("3. One minute, chunk by chunk on disk"):
        long_video(flow, model, positive, memory, vae, run_name="minute", seconds=60.0, prefix="helios/minute")


def directed_minute(flow: "Flow") -> None:
    """A minute of six scenes, and what became of it."""
    flow.note(
        "A directed minute",
        "Six scenes, each blending into the next, go into one video of 44 chunks. The schedule sets its "
        "length. Every finished chunk is on disk: cancel and queue again to resume, or change a scene and only what "
        "comes after its start is made again.\n\n"
        "**Drift** compares the beginning of the finished video with its end; scenes differ, so look for a slow fall "
        "of sharpness or motion rather than for zero. It reads the whole video: 4.3 GB of RAM at 640 x 384. "
        "**Memory** shows the past that a next chunk would continue from.",
    )
    model, clip, vae = models(flow)
    with flow.column("2. Six scenes"):
        schedule = flow.node("HeliosPromptSchedule", clip=clip["CLIP"], text=MINUTE)
        memory = flow.node("HeliosContext", title="Helios Context (from text)")
    with flow.column("3. One minute, chunk by chunk on disk"):
        video = flow.node(
            "HeliosLongVideo",
            model=model["MODEL"],
            positive=schedule["HELIOS_SCHEDULE"],
            memory=memory["HELIOS_MEMORY"],
            vae=vae["VAE"],
            chunks=schedule["INT"],
            run_name="directed_minute",
            filename_prefix="helios/directed_minute",
        )
    with flow.column("4. Did it drift? What does it remember?"):
        drift = flow.node("HeliosDriftReport", video=video["VIDEO"])
        inspector = flow.node(
            "HeliosMemoryInspector", memory=video["HELIOS_MEMORY"], vae=vae["VAE"], model=model["MODEL"]
        )
    with flow.same_group_column():
        flow.node("PreviewImage", title="Drift", images=drift["IMAGE"])
        flow.node("PreviewImage", title="Memory", images=inspector["IMAGE"])


def extend_video(flow: "Flow") -> None:
    """A clip is continued, and its end is saved to continue another day."""
    flow.note(
        "Extend a video",
        "Helios continues where a clip ends. To run without any clip at hand, this graph makes its own (step 2).\n\n"
        "**Your own clip:** add a *Load Video* node, connect it to `video` of Helios Context, and delete the group "
        "*A clip to extend*.\n\n"
        "Save Memory keeps the end of the new video. Load it with *Helios Load Memory* in place of Helios Context to "
        "continue from there exactly, without decoding and encoding again.",
    )
    model, clip, vae = models(flow)
    with flow.column("2. A clip to extend"):
        before = prompt(flow, clip, "A hot-air balloon rises slowly over misty hills at sunrise.")
        start = flow.node("HeliosContext", title="Helios Context (from text)")
        source = sampler(flow, model, before, start, chunks=1)
    with flow.same_group_column():
        source_clip = combine(flow, source, vae, "helios/extend_source")
    with flow.column("3. Its continuation"):
        memory = flow.node(
            "HeliosContext", title="Helios Context (from a video)", video=source_clip["VIDEO"], vae=vae["VAE"]
        )
        after = prompt(flow, clip, "A hot-air balloon drifts over misty hills at sunrise. A second balloon comes up.")
    with flow.column("4. Video, and its end to continue from"):
        extended = long_video(flow, model, after, memory, vae, run_name="extend", chunks=4, prefix="helios/extended")
        flow.node("HeliosSaveMemory", memory=extended["HELIOS_MEMORY"], filename_prefix="helios/extended")


def branching(flow: "Flow") -> None:
    """One beginning, two endings."""
    flow.note(
        "One beginning, two endings",
        "The memory after the beginning goes to two Helios Long Video nodes, each with a prompt of its own. All three "
        "share a run folder.\n\n"
        "*Helios Rewind Memory* with the same `run_name` takes you back to any chunk of the beginning, to branch "
        "earlier.",
    )
    model, clip, vae = models(flow)
    with flow.column("2. The beginning"):
        positive = prompt(flow, clip, "A lighthouse on a cliff in the evening, the sea below, gulls in the wind.")
        memory = flow.node("HeliosContext", title="Helios Context (from text)")
    with flow.same_group_column():
        first = long_video(flow, model, positive, memory, vae, run_name="story", chunks=2, prefix="helios/beginning")
    endings = {
        "calm": "A lighthouse on a cliff at night under a clear sky full of stars, its light sweeping over a calm sea.",
        "storm": "A lighthouse on a cliff in a violent storm, huge waves break against the rocks, lightning.",
    }
    for number, (name, text) in enumerate(endings.items(), start=1):
        with flow.column(f"{number + 2}. Ending {number}"):
            ending = prompt(flow, clip, text)
            long_video(flow, model, ending, first, vae, run_name="story", chunks=2, prefix=f"helios/ending_{name}")


def long_video(
    flow: "Flow", model: "Node", positive: "Node", memory: "Node", vae: "Node", *, prefix: str, **values
) -> "Node":
    return flow.node(
        "HeliosLongVideo",
        model=model["MODEL"],
        positive=positive["CONDITIONING"],
        memory=memory["HELIOS_MEMORY"],
        vae=vae["VAE"],
        filename_prefix=prefix,
        **values,
    )


def demo_t2v(flow: "Flow") -> None:
    """Text to video in the demo's toy world: runs anywhere."""
    flow.note("Text to video, no download", "Change a word of the prompt and run again.", DEMO_NOTE)
    model, clip, vae = demo_models(flow)
    with flow.column("2. What to show"):
        positive = prompt(flow, clip, "a red circle moving right on a black background")
        negative = prompt(flow, clip, "", title="Negative prompt")
        memory = flow.node("HeliosContext", title="Helios Context (from text)", **DEMO_SIZE)
    with flow.column("3. Chunk after chunk"):
        chunks = sampler(flow, model, positive, memory, chunks=3, negative=negative["CONDITIONING"])
    video(flow, chunks, vae, "helios/demo_t2v")


def demo_i2v(flow: "Flow") -> None:
    """Image to video in the demo's toy world, from a picture drawn in the graph."""
    flow.note(
        "Image to video, no download",
        "The picture is drawn by ComfyUI's own nodes: a square of one colour on a grey image. Move it by `x` and "
        "`y`, or give both images other colours.",
        DEMO_NOTE,
    )
    model, clip, vae = demo_models(flow)
    with flow.column("2. A picture"):
        paper = flow.node("EmptyImage", title="Background", color=0x737373, **DEMO_SIZE)
        square = flow.node("EmptyImage", title="Square", width=23, height=23, color=0x264DF2)
        picture = flow.node(
            "ImageCompositeMasked", destination=paper["IMAGE"], source=square["IMAGE"], x=8, y=20, title="Picture"
        )
    with flow.column("3. What to show"):
        memory = flow.node(
            "HeliosContext",
            title="Helios Context (from an image)",
            image=picture["IMAGE"],
            vae=vae["VAE"],
            **DEMO_SIZE,
        )
        positive = prompt(flow, clip, "a blue square moving right on a grey background")
        negative = prompt(flow, clip, "", title="Negative prompt")
    with flow.column("4. Chunk after chunk"):
        chunks = sampler(flow, model, positive, memory, chunks=3, negative=negative["CONDITIONING"])
    video(flow, chunks, vae, "helios/demo_i2v", step=5)


def demo_v2v(flow: "Flow") -> None:
    """Video to video in the demo's toy world: a clip, and its continuation."""
    flow.note(
        "Video to video, no download",
        "Step 2 makes a clip, step 3 continues where it ends. Only the continuation is saved in step 4.",
        DEMO_NOTE,
    )
    model, clip, vae = demo_models(flow)
    with flow.column("2. A clip to continue"):
        positive = prompt(flow, clip, "a purple triangle moving down on a white background")
        negative = prompt(flow, clip, "", title="Negative prompt")
        start = flow.node("HeliosContext", title="Helios Context (from text)", **DEMO_SIZE)
        source = sampler(flow, model, positive, start, chunks=2, negative=negative["CONDITIONING"])
    with flow.same_group_column():
        source_clip = combine(flow, source, vae, "helios/demo_v2v_source")
    with flow.column("3. Its continuation"):
        memory = flow.node(
            "HeliosContext",
            title="Helios Context (from a video)",
            video=source_clip["VIDEO"],
            vae=vae["VAE"],
            **DEMO_SIZE,
        )
        chunks = sampler(flow, model, positive, memory, chunks=2, seed=1, negative=negative["CONDITIONING"])
    video(flow, chunks, vae, "helios/demo_v2v")


def demo_prompts(flow: "Flow") -> None:
    """Prompts over time in the demo's toy world, every chunk on disk."""
    flow.note(
        "Prompts over time, no download",
        "Drag the blocks of the timeline or write the text. Every chunk is kept on disk: change the last prompt and "
        "run again, and only its chunks are made anew.",
        DEMO_NOTE,
    )
    model, clip, vae = demo_models(flow)
    with flow.column("2. What to show, and when"):
        schedule = flow.node("HeliosPromptSchedule", clip=clip["CLIP"], text=DEMO_SCHEDULE)
        negative = prompt(flow, clip, "", title="Negative prompt")
        memory = flow.node("HeliosContext", title="Helios Context (from text)", **DEMO_SIZE)
    with flow.column("3. The video"):
        flow.node(
            "HeliosLongVideo",
            model=model["MODEL"],
            vae=vae["VAE"],
            positive=schedule["HELIOS_SCHEDULE"],
            memory=memory["HELIOS_MEMORY"],
            negative=negative["CONDITIONING"],
            chunks=schedule["INT"],
            seconds=0.0,
            run_name="demo_prompts",
            filename_prefix="helios/demo_prompts",
        )


def finish(flow: "Flow") -> None:
    """A clip of the demo, four times as large, in a file to deliver."""
    flow.note(
        "Finish a video",
        "Helios Finish Video makes any video larger and smoother, piece by piece on disk: cancel and queue again to "
        "resume. The clip here is the demo's, so that the graph runs anywhere; connect *Load Video* or *Helios Long "
        "Video* in its place.\n\n"
        "**A real upscaler:** put a model into `models/upscale_models`, add *Load Upscale Model* and connect it to "
        "`upscale_model`. Set `scale` to 0 for the model's own size, or give the width and height to deliver, such as "
        "1920 x 1152: a Lanczos filter makes the exact size. Without a model the filter does all, as here.\n\n"
        "**More frames per second:** ComfyUI 0.33 and later has *Load Frame Interpolation Model* (FILM, RIFE). Connect "
        "it to `interp_model` and set `factor` to 2, or `frame_rate` to 60. Nothing is made across a cut.",
        DEMO_NOTE,
    )
    model, clip, vae = demo_models(flow)
    with flow.column("2. A clip to finish"):
        positive = prompt(flow, clip, "a green square moving right on a black background")
        negative = prompt(flow, clip, "", title="Negative prompt")
        memory = flow.node("HeliosContext", title="Helios Context (from text)", **DEMO_SIZE)
    with flow.same_group_column():
        chunks = sampler(flow, model, positive, memory, chunks=2, negative=negative["CONDITIONING"])
        source = combine(flow, chunks, vae, "helios/finish_source")
    with flow.column("3. The film"):
        flow.node(
            "HeliosFinishVideo",
            video=source["VIDEO"],
            run_name="finish",
            scale=4.0,
            filename_prefix="helios/finished",
        )


def demo_models(flow: "Flow") -> tuple["Node", "Node", "Node"]:
    with flow.column("1. Model"):
        models = flow.node("HeliosDemoModels")
    return models, models, models


def models(flow: "Flow") -> tuple["Node", "Node", "Node"]:
    with flow.column("1. Models"):
        return (
            flow.node("HeliosLoader", model_name=HELIOS),
            flow.node("CLIPLoader", clip_name=TEXT_ENCODER, type="wan"),
            flow.node("VAELoader", vae_name=VAE),
        )


def prompt(flow: "Flow", clip: "Node", text: str, title: str = "Prompt") -> "Node":
    return flow.node("CLIPTextEncode", title=title, clip=clip["CLIP"], text=text)


def sampler(flow: "Flow", model: "Node", positive: "Node", memory: "Node", **values) -> "Node":
    links = {"model": model["MODEL"], "positive": positive["CONDITIONING"], "memory": memory["HELIOS_MEMORY"]}
    return flow.node("HeliosChunkSampler", **links, **values)


def combine(flow: "Flow", latents: "Node", vae: "Node", prefix: str) -> "Node":
    return flow.node("HeliosVideoCombine", latents=latents["LATENT"], vae=vae["VAE"], filename_prefix=prefix)


def video(flow: "Flow", latents: "Node", vae: "Node", prefix: str, step: int = 4) -> None:
    with flow.column(f"{step}. Video"):
        combine(flow, latents, vae, prefix)


DESCRIPTIONS = {
    "t2v": t2v,
    "i2v": i2v,
    "v2v": v2v,
    "i2v_then_prompts": i2v_then_prompts,
    "prompt_timeline": prompt_timeline,
    "long_t2v": long_t2v,
    "directed_minute": directed_minute,
    "extend_video": extend_video,
    "branching": branching,
    "demo_t2v": demo_t2v,
    "demo_i2v": demo_i2v,
    "demo_v2v": demo_v2v,
    "demo_prompts": demo_prompts,
    "finish": finish,
}


@dataclass
class Node:
    """A node placed in the graph; `node["MODEL"]` is its output of that type."""

    json: dict

    def __getitem__(self, kind: str) -> tuple["Node", int]:
        kinds = [output["type"] for output in self.json["outputs"]]
        return self, kinds.index(kind)


class Flow:
    """A graph laid out in columns from left to right, each with a group drawn around it."""

    def __init__(self, object_info: dict[str, dict]):
        self._object_info = object_info
        self._nodes: list[dict] = []
        self._links: list[list] = []
        self._groups: list[dict] = []
        self._x = self._y = 0

    @contextmanager
    def column(self, title: str):
        """Nodes made within are stacked below each other; the next column starts to their right."""
        self._groups.append({"id": len(self._groups) + 1, "title": title, "bounding": None, "color": "#3f789e"})
        with self.same_group_column():
            yield

    @contextmanager
    def same_group_column(self):
        """Another column in the group of the one before."""
        first = len(self._nodes)
        self._y = 0
        yield
        width = max(node["size"][0] for node in self._nodes[first:])
        for node in self._nodes[first:]:
            node["size"][0] = width
        top = -TITLE_HEIGHT - 50
        bottom = self._y - TITLE_HEIGHT - GAP + 15
        group = self._groups[-1]
        if group["bounding"] is None:
            group["bounding"] = [self._x - 15, top, width + 30, bottom - top]
        else:
            left, _, _, height = group["bounding"]
            group["bounding"] = [left, top, self._x + width + 15 - left, max(height, bottom - top)]
        self._x += width + 3 * GAP

    def note(self, title: str, text: str, about_models: str = MODEL_NOTE) -> None:
        with self.column("Read me"):
            size = list(SIZES["MarkdownNote"])
            body = f"# {title}\n{text}\n\n{about_models}"
            self._add("MarkdownNote", "Read me", size, inputs=[], outputs=[], values=[body])

    def node(self, kind: str, title: str | None = None, **settings) -> Node:
        """Add a node. A setting is a widget's value or another node's output; the rest keep their defaults."""
        if kind not in self._object_info:
            raise ValueError(f"ComfyUI has no node {kind}; is the pack installed and loaded there?")
        info = self._object_info[kind]
        specs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
        unknown = set(settings) - set(specs)
        if unknown:
            raise ValueError(f"{kind} has no input {sorted(unknown)}; it has {sorted(specs)}")
        named = zip(info["output_name"], info["output"], strict=True)
        outputs = [{"name": name, "type": output, "links": []} for name, output in named]
        inputs, values = _slots_and_values(kind, specs, settings)
        sockets = [slot for slot in inputs if "widget" not in slot]
        height = SLOT_HEIGHT * max(len(sockets), len(outputs)) + WIDGET_HEIGHT * len(values) + 20
        size = list(SIZES.get(kind, (WIDTH, height)))
        node = self._add(kind, title, [size[0], max(size[1], height)], inputs, outputs, values)
        for slot, entry in enumerate(inputs):
            if isinstance(settings.get(entry["name"]), tuple):
                self._link(*settings[entry["name"]], node, slot)
        return Node(node)

    def _add(self, kind, title, size, inputs, outputs, values) -> dict:
        node = {
            "id": len(self._nodes) + 1,
            "type": kind,
            "pos": [self._x, self._y],
            "size": size,
            "flags": {},
            "order": len(self._nodes),
            "mode": 0,
            "inputs": inputs,
            "outputs": outputs,
            "properties": {"Node name for S&R": kind},
            "widgets_values": values,
        }
        if title is not None:
            node["title"] = title
        self._nodes.append(node)
        self._y += size[1] + TITLE_HEIGHT + GAP
        return node

    def _link(self, source: Node, output: int, target: dict, slot: int) -> None:
        link = len(self._links) + 1
        kind = source.json["outputs"][output]["type"]
        self._links.append([link, source.json["id"], output, target["id"], slot, kind])
        source.json["outputs"][output]["links"].append(link)
        target["inputs"][slot]["link"] = link

    def to_json(self, name: str) -> dict:
        return {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"ComfyUI-Helios/workflows/{name}")),
            "revision": 0,
            "last_node_id": len(self._nodes),
            "last_link_id": len(self._links),
            "nodes": self._nodes,
            "links": self._links,
            "groups": self._groups,
            "config": {},
            "extra": {"ds": {"scale": 0.6, "offset": [60, 160]}},
            "version": 0.4,
        }


def _slots_and_values(kind: str, specs: dict, settings: dict) -> tuple[list[dict], list]:
    """The input slots and the stored widget values of a node, as ComfyUI's frontend saves them."""
    inputs, values, uploads = [], [], []
    for name, spec in specs.items():
        input_type, options = spec[0], spec[1] if len(spec) > 1 else {}
        if isinstance(input_type, list):
            options, input_type = {"options": input_type, **options}, "COMBO"
        slot = {"name": name, "type": input_type, "link": None}
        inputs.append(slot)
        if input_type not in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"):
            continue
        slot["widget"] = {"name": name}
        value = settings.get(name)
        if isinstance(value, tuple):  # linked; the widget keeps a value all the same
            value = None
        values.append(_default(kind, name, input_type, options) if value is None else value)
        if options.get("control_after_generate"):
            values.append("fixed")
        if options.get("image_upload"):
            uploads.append("image")
    return inputs, values + uploads


def _default(kind: str, name: str, input_type: str, options: dict):
    if "default" in options:
        return options["default"]
    if input_type == "COMBO" and options.get("options"):
        return options["options"][0]
    raise ValueError(f"{kind}.{name} has no default: give it a value")


def build(object_info: dict[str, dict]) -> dict[str, str]:
    """File name -> text of every sample workflow, from the node definitions as /object_info gives them."""
    files = {}
    for name, describe in DESCRIPTIONS.items():
        flow = Flow(object_info)
        describe(flow)
        files[f"{name}.json"] = json.dumps(flow.to_json(name), indent=1, ensure_ascii=False) + "\n"
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", default="http://127.0.0.1:8188", help="a running ComfyUI that has this pack")
    with urllib.request.urlopen(parser.parse_args().server + "/object_info", timeout=60) as response:
        files = build(json.load(response))
    for name, text in files.items():
        (WORKFLOWS / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
