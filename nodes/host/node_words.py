"""Words on a node while it runs."""

from __future__ import annotations

from comfy_api import feature_flags
from server import PromptServer


def show_on_node(words: str, node_id: str | None) -> None:
    """Show words on the node. ComfyUI's page takes them for markup: nothing that a user wrote may be in them.

    Only ComfyUI's own frontend is sent them: it says what it can show when it connects, and other clients may take any
    binary message for a picture.
    """
    server = PromptServer.instance
    is_frontend = feature_flags.supports_feature(server.sockets_metadata, server.client_id, "supports_preview_metadata")
    if node_id is not None and is_frontend:
        server.send_progress_text(words, node_id, server.client_id)
