"""How much of a dense task vector is rounding: the noise floor that storage leaves.

A stored value w is off by an error that is nearly uniform in ±ulp(w)/2, with mean square ulp²/12, where
ulp(w) = eps·2^⌊log₂|w|⌋ and eps is the spacing at 1 (2⁻⁷ for bf16, 2⁻¹⁰ for fp16, 2⁻²³ for fp32). A delta ft − base
carries the errors of both ends, so

    floor² = mean over elements of (ulp(base)² + ulp(ft)²) / 12 .

The ends are independent once |ft − base| exceeds an ulp. Below that they cancel in most elements, which are then
exactly zero, and the rest jump by a whole ulp: the error √(|δ|·ulp − δ²) is of the same size, so the floor still tells
how small a delta can be seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

# Smallest exponent e such that ulp = eps·2^e: below it numbers are subnormal and ulp no longer shrinks.
_MIN_EXPONENT = {torch.bfloat16: -126, torch.float16: -14, torch.float32: -126, torch.float64: -1022}

VISIBLE = 3.0  # a vector whose size is below this many floors is reported as mostly rounding


@dataclass(frozen=True)
class NoiseFloor:
    """Rounding in a dense delta; sums over elements, so that floors of tensors add.

    Args:
        numel: elements counted.
        zeros: elements where the stored difference is exactly 0.
        energy: Σ (ft − base)².
        floor_energy: Σ (ulp(base)² + ulp(ft)²)/12.
    """

    numel: int = 0
    zeros: int = 0
    energy: float = 0.0
    floor_energy: float = 0.0

    def __add__(self, other: NoiseFloor) -> NoiseFloor:
        return NoiseFloor(
            self.numel + other.numel,
            self.zeros + other.zeros,
            self.energy + other.energy,
            self.floor_energy + other.floor_energy,
        )

    @property
    def zero_fraction(self) -> float:
        """Share of elements that did not move at all."""
        return self.zeros / self.numel if self.numel else 0.0

    @property
    def rms(self) -> float:
        """Root mean square of the stored difference."""
        return math.sqrt(self.energy / self.numel) if self.numel else 0.0

    @property
    def floor(self) -> float:
        """Root mean square of the rounding error expected in it."""
        return math.sqrt(self.floor_energy / self.numel) if self.numel else 0.0

    @property
    def ratio(self) -> float:
        """rms / floor; infinite when nothing was rounded."""
        return self.rms / self.floor if self.floor > 0 else math.inf

    @property
    def warning(self) -> str | None:
        """What to tell the user, when the delta is too small for its storage."""
        if self.numel == 0 or self.energy == 0 or self.ratio >= VISIBLE:
            return None
        return (
            f"mostly rounding noise: the difference is {self.ratio:.1f} times its rounding floor "
            f"({self.zero_fraction:.0%} of its elements are exactly zero); "
            "extract it from checkpoints stored in fp32 if they exist"
        )

    def as_dict(self) -> dict[str, float]:
        """For JSON: `zero_fraction`, `rms`, `floor`, `ratio` (an infinite ratio is written as 1e308)."""
        return {
            "zero_fraction": self.zero_fraction,
            "rms": self.rms,
            "floor": self.floor,
            "ratio": min(self.ratio, 1e308),
        }


def total(parts: Iterable[NoiseFloor]) -> NoiseFloor:
    """The floor of a whole vector from those of its tensors."""
    out = NoiseFloor()
    for part in parts:
        out = out + part
    return out


def ulp(w: Tensor) -> Tensor:
    """Spacing of the floating-point numbers at w in w's own dtype, as fp64: eps·2^⌊log₂|w|⌋."""
    _, exponent = torch.frexp(w.double())  # |w| = mantissa·2^exponent with mantissa in [0.5, 1)
    exponent = torch.where(w == 0, _MIN_EXPONENT[w.dtype], exponent - 1).clamp_min(_MIN_EXPONENT[w.dtype])
    return torch.ldexp(torch.full_like(w, torch.finfo(w.dtype).eps, dtype=torch.float64), exponent)


def measure(base: Tensor, finetuned: Tensor, block: int = 1 << 18) -> NoiseFloor:
    """The noise floor of finetuned − base, both as stored, of one shape; in blocks, so that memory stays small."""
    b, f = base.reshape(-1), finetuned.reshape(-1)
    parts = []
    for i in range(0, b.numel(), block):
        x, y = b[i : i + block], f[i : i + block]
        difference = y.double() - x.double()
        parts.append(
            NoiseFloor(
                numel=x.numel(),
                zeros=int((difference == 0).sum()),
                energy=float(difference.square().sum()),
                floor_energy=float((ulp(x).square() + ulp(y).square()).sum()) / 12,
            )
        )
    return total(parts)
