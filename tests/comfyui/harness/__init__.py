"""Drives a real ComfyUI checkout: in this process, as a server, and in a browser."""
