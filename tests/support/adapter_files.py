"""Files of a small adapter, for tests in which no engine reads them."""

import torch
from safetensors.torch import save

ATTENDED = "base_model.model.model.layers.0.self_attn.q_proj"
A, B = f"{ATTENDED}.lora_A.weight", f"{ATTENDED}.lora_B.weight"


def adapter_weights(a: float = 1.0, b: float = 1.0) -> bytes:
    """Of an adapter of rank 1 on one module: norms 2 |a| and 3 |b|."""
    return save({A: torch.full((1, 4), a), B: torch.full((9, 1), b)})
