"""ComfyUI-Helios: minute-long video with Helios, chunk by chunk."""

from .nodes import comfy_entrypoint

WEB_DIRECTORY = "./web"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
