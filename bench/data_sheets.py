"""What vendors promise of a GPU. The benchmark reports measured rates as fractions of these, and labels them so."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DataSheet:
    """float32_tflops: of float32 without matrix units, a fused multiply-add counting as two; terabytes: of memory,
    a second."""

    name: str
    float32_tflops: float
    terabytes: float

    @property
    def peaks(self) -> dict[str, float]:
        """Elements a second at two float32 instructions for a score (subtract, multiply-add of |x|) and three more
        for its gradients; bytes a second. Matrix units, which half precision may use, can exceed the first."""
        instructions = self.float32_tflops * 1e12 / 2
        return {"score": instructions / 2, "backward": instructions / 3, "memory": self.terabytes * 1e12}


#: The first whose name is in torch's name of the device, as "NVIDIA H100 80GB HBM3".
DATA_SHEETS = (
    DataSheet("A100-SXM4-40GB", 19.5, 1.555),
    DataSheet("A100-SXM4-80GB", 19.5, 2.039),
    DataSheet("A100 80GB PCIe", 19.5, 1.935),
    DataSheet("H100 PCIe", 51.0, 2.0),
    DataSheet("H100 80GB HBM3", 67.0, 3.35),
    DataSheet("NVIDIA H200", 67.0, 4.8),
    DataSheet("NVIDIA B200", 75.0, 7.7),
)


def data_sheet(device: str) -> DataSheet | None:
    """The row for torch's name of a device, or None."""
    return next((sheet for sheet in DATA_SHEETS if sheet.name in device), None)
