"""`dissim bench`."""

from __future__ import annotations

from ..speed import compare_speed, environment_summary
from .arguments import Device, pick_device
from .output import Output


def bench(queries: int = 256, gallery: int = 1024, dim: int = 256, device: Device = "cpu") -> Output:
    """Compare the speed of methods that score all pairs on this machine: plain torch, torch.cdist and every backend.

    Gelem/s: billions of terms abs(q_d - r_d) per second, queries x gallery x dim terms per call.

    Args:
        queries: Query rows.
        gallery: Gallery rows.
        dim: Numbers in a row.
    """
    for name, value in {"queries": queries, "gallery": gallery, "dim": dim}.items():
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}.")
    machine = environment_summary()
    results = compare_speed(queries=queries, gallery=gallery, dim=dim, device=str(pick_device(device)))
    lines = [f"{machine}; float32, {queries} x {gallery} pairs of {dim} numbers"]
    for method in results:
        speed = f"{method.rate:8.2f} Gelem/s   largest error {method.error:.1e}"
        lines.append(f"{method.name:<20}" + (method.reason or speed))
    record = {"machine": machine, "queries": queries, "gallery": gallery, "dim": dim}
    return Output("\n".join(lines), record | {"methods": [method._asdict() for method in results]})
