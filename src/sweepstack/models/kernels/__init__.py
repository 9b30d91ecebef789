"""Triton kernels for a stack of pictures, used where they are faster and agree with torch.

implicit_gemm   convolutions and their gradients, and the sizes of blocks
gemm            the kernels that those launch
max_pool        max pools of windows that do not overlap
batch_norm      batch norms in training

All sums are in float32, in an order that depends on the shapes of one trial alone, so that a trial
is itself at any width. `autotune.Chooser` compares what they compute with torch's numbers before
they are used. What several of them need is here.

Notation: S slots, B samples, C and O channels in and out, x (S, B, C, H, W), y and its gradient
gy (S, B, O, h, w), all contiguous; `of_...` is the inverse of a divisor in float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

PLACES = {"cuda"}
"""Devices that have kernels; Triton's interpreter adds the CPU in tests."""
TYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_PIXELS = 2**22
"""Of the pictures of a batch; up to here `over` is exact."""
ELEMENTS = 1024
"""Numbers of a program of a pool, a sum or a batch norm at once."""


@triton.jit
def over(number, inverse):  # type: ignore[no-untyped-def]
    """number // divisor for numbers of 0 to 2²², given the divisor's inverse in float32."""
    return ((number.to(tl.float32) + 0.5) * inverse).to(tl.int32)


def power(number: int, least: int, most: int) -> int:
    """The power of 2 that has room for so many, within bounds."""
    return max(least, min(most, 1 << (number - 1).bit_length()))
