"""The arithmetic of training: what lies between float32 weights and float32 gradients.

float32 is the reference. tf32: a GPU rounds the factors of products to ten bits of mantissa. bf16:
products and convolutions are of bfloat16 numbers (torch.autocast), as fast as twice as many
float32's where the processor has instructions for them, and slower where it has none.
"""

import torch
from torch import nn

ARITHMETICS = ("float32", "tf32", "bf16")
_AMPERE = (8, 0)  # NVIDIA's first generation with TF32 and bfloat16


def lack(precision: str, device: str) -> str:
    """Why `device` ("cpu" or "cuda") of this machine has no such arithmetic, "" if it has."""
    if precision == "float32":
        return ""
    if device == "cuda":
        name = torch.cuda.get_device_name()
        new = torch.cuda.get_device_capability() >= _AMPERE
        return "" if new else f"{name} has no units for it (Ampere and newer have)"
    if precision == "tf32":
        return "TF32 is of NVIDIA's GPUs, and the device is a CPU"
    has = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "" if has else "this CPU has neither AVX512-BF16 nor AMX, without which bf16 is slower"


def allow_tf32(precision: str) -> None:
    """Whether a GPU may round the factors of float32 products is a setting of the process."""
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


def outputs_of(module: nn.Module, inputs: torch.Tensor, precision: str) -> torch.Tensor:
    """The model's outputs in this arithmetic, of which bf16's are float32 again.

    Images of bf16 are laid out with their channels last, as convolutions of that type want them:
    cnn6 of width 32 takes 1.8 instead of 1.5 times less than in float32.
    """
    if precision != "bf16":
        return module(inputs)
    if inputs.dim() == 4 and inputs.is_floating_point():
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    with torch.autocast(inputs.device.type, torch.bfloat16):
        return module(inputs).float()
