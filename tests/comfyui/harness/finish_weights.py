"""Small upscalers and frame interpolators with random weights, in the files that ComfyUI's own loaders read."""

from pathlib import Path

import torch
from safetensors.torch import save_file

UPSCALERS = ("esrgan_x2.safetensors", "compact_x4.safetensors", "span_x2.safetensors")
INTERPOLATORS = ("rife.safetensors", "film.safetensors")


def write_upscalers(folder: Path) -> None:
    """Three architectures that spandrel tells by their tensors' names."""
    from spandrel.architectures.Compact.__arch.SRVGG import SRVGGNetCompact
    from spandrel.architectures.ESRGAN.__arch.RRDB import RRDBNet
    from spandrel.architectures.SPAN.__arch.span import SPAN

    torch.manual_seed(1)
    networks = (
        RRDBNet(in_nc=3, out_nc=3, num_filters=16, num_blocks=1, scale=2),
        SRVGGNetCompact(num_in_ch=3, num_out_ch=3, num_feat=16, num_conv=3, upscale=4, act_type="prelu"),
        SPAN(num_in_ch=3, num_out_ch=3, feature_channels=16, upscale=2),
    )
    folder.mkdir(parents=True, exist_ok=True)
    for name, network in zip(UPSCALERS, networks, strict=True):
        _spread_values(network)
        save_file({key: value.contiguous() for key, value in network.state_dict().items()}, folder / name)


@torch.no_grad()
def _spread_values(network: torch.nn.Module) -> None:
    """Scale the last layer so that pictures come out in [0, 1] and with contrast, not all black."""
    last = [layer for layer in network.modules() if isinstance(layer, torch.nn.Conv2d)][-1]
    last.bias.zero_()
    picture = torch.nn.functional.interpolate(torch.rand(1, 3, 8, 8), scale_factor=4, mode="bicubic")
    made = network.eval()(picture)
    last.weight *= 0.15 / made.std()
    last.bias += 0.5 - network(picture).mean()


def write_interpolators(folder: Path) -> None:
    """RIFE with few channels; FILM has only one size. ComfyUI before 0.33 has neither."""
    from comfy_extras.frame_interpolation_models.film_net import FILMNet
    from comfy_extras.frame_interpolation_models.ifnet import IFNet

    torch.manual_seed(2)
    folder.mkdir(parents=True, exist_ok=True)
    for name, network in zip(INTERPOLATORS, (IFNet(channels=(16, 16, 16, 16, 16)), FILMNet()), strict=True):
        for parameter in network.parameters():  # ComfyUI's layers leave theirs as the memory was
            torch.nn.init.normal_(parameter, std=0.05)
        save_file(network.state_dict(), folder / name)
