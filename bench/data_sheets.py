"""Peak rates from vendors' data sheets. The GPU benchmark reports measured rates as fractions of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DataSheet:
    """float32_tflops: float32 without matrix units, a fused multiply-add counted as two operations.

    terabytes: memory traffic per second.
    """

    name: str
    float32_tflops: float
    terabytes: float

    @property
    def peaks(self) -> dict[str, float]:
        """Elements per second, and bytes per second for "memory".

        A score takes two float32 instructions per element (subtract, multiply-add of |x|), its gradients three more.
        Matrix units, which half precision may use, can exceed this.
        """
        instructions = self.float32_tflops * 1e12 / 2
        return {"score": instructions / 2, "backward": instructions / 3, "memory": self.terabytes * 1e12}


#: The first one applies whose name is part of torch's name of the device, for example "NVIDIA H100 80GB HBM3".
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
    """The data sheet for torch's name of a device, or None."""
    return next((sheet for sheet in DATA_SHEETS if sheet.name in device), None)
