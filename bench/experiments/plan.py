"""Every experiment: its groups of methods that are compared with each other, and the amounts."""

from __future__ import annotations

from dataclasses import dataclass

from .method_sets import METHOD_SETS


@dataclass(frozen=True)
class Amounts:
    """How much is done, the same for every method of every experiment."""

    trials: int = 10
    """Trials of a method's settings, at most; FROZEN_TRIALS times as many with a frozen backbone."""
    candidates: int = 3
    """A method's best trials on TUNING_SPLIT. They are fitted on the other splits too, and the best mean is chosen.
    With 1, the best trial is chosen without that."""
    splits: int = 3
    seeds: int = 5
    queries: int = 2000
    """Queries of a part, at most; they are drawn once. The gallery is always complete."""
    identities: int | None = None
    """Only the first identities of a set, for a quick trial. None: all."""
    steps: int | None = None
    """Steps of each training, for a quick trial. None: those of the group."""


#: The split of all trials.
TUNING_SPLIT = 0
#: A fit on a frozen backbone takes seconds, so there is time for more trials.
FROZEN_TRIALS = 2
QUICK = Amounts(trials=2, splits=1, seeds=1, queries=50, identities=60, steps=2)


@dataclass(frozen=True)
class Group:
    """Methods that are compared on the same images, backbone, parts and steps."""

    experiment: str
    methods: str
    """A key of METHOD_SETS."""
    data: str
    backbone: str
    size: int
    """Height of the images in pixels. They are square, but half as wide for people."""
    steps: int
    dim: int = 256
    """Width of the learned embeddings."""
    protocol: str = "unseen identities"
    """Test identities are always unseen. unseen camera: the queries are of cameras that no training image is of."""

    @property
    def frozen(self) -> bool:
        """Whether the methods get features of a frozen backbone instead of images."""
        return METHOD_SETS[self.methods].frozen

    @property
    def tuned(self) -> bool:
        """Whether settings are tuned and the test part is used. If not, methods are compared on validation parts."""
        return METHOD_SETS[self.methods].tuned

    @property
    def key(self) -> str:
        """The name of the group's file."""
        base = f"{self.data}-{file_name(self.backbone)}"
        return base if self.protocol == "unseen identities" else f"{base}-{self.protocol.replace(' ', '-')}"

    @property
    def title(self) -> str:
        return f"{self.data}, {self.size} pixels, {self.backbone}, {self.protocol}"


LITE, MOBILE = "efficientnet_lite0", "mobilenet_v2"


def file_name(backbone: str) -> str:
    """The name of a backbone as a part of a file's name."""
    return backbone.replace(":", "-").replace("/", "-")


def _frozen(experiment: str, data: str, backbone: str, methods: str = "frozen", **options: str) -> Group:
    return Group(experiment, methods, data, backbone, 64, steps=60, **options)


def _pretrained(experiment: str, methods: str, data: str, backbone: str, steps: int = 100) -> Group:
    size = 32 if data == "glyphs" else 64
    return Group(experiment, methods, data, backbone, size, steps, dim=512)


def _small(experiment: str, methods: str, **options: str) -> Group:
    return Group(experiment, methods, "glyphs", "small", 32, steps=150, **options)


def _demo(experiment: str) -> Group:
    """The images, backbone and steps of `dissim demo`."""
    return Group(experiment, experiment, "emoji", MOBILE, 64, steps=100, dim=512)


FEATURES = [(data, backbone) for data in ("emoji", "glyphs") for backbone in (LITE, MOBILE)]
#: name -> its groups, the most informative first: a run that is stopped has those.
EXPERIMENTS: dict[str, list[Group]] = {
    "frozen": [_frozen("frozen", data, backbone) for data, backbone in FEATURES],
    "cameras": [_frozen("cameras", data, backbone, "cameras") for data, backbone in FEATURES],
    "joint": [
        _small("joint", "joint, from scratch"),
        _pretrained("joint", "joint", "emoji7", MOBILE),
        _pretrained("joint", "joint", "glyphs", MOBILE),
        _pretrained("joint", "joint", "emoji7", LITE),
        _pretrained("joint", "joint", "emoji", MOBILE),
    ],
    "demo": [_demo("demo")],
    "factors": [
        _small("factors", "factors"),
        *(_pretrained("factors", "factors", data, MOBILE) for data in ("emoji7", "emoji")),
    ],
    "defaults": [
        _small("defaults", "defaults"),
        _pretrained("defaults", "defaults", "glyphs", MOBILE, steps=150),
        _demo("defaults"),
    ],
    "fit_head": [
        _frozen("fit_head", data, backbone, "fit_head" if data == "emoji" else "fit_head, batches")
        for data, backbone in FEATURES
    ],
    "protocols": [
        *(
            _frozen("protocols", data, backbone, "selected, frozen", protocol="unseen camera")
            for data in ("glyphs", "emoji7")
            for backbone in (LITE, MOBILE)
        ),
        _small("protocols", "selected, from scratch", protocol="unseen camera"),
    ],
}
#: Experiments whose methods can be compared on the sets of ON_DISK.
ON_DISK_EXPERIMENTS = ("frozen", "cameras", "joint", "factors")
#: Sets with an official split, which are on disk -> the height of their images in pixels.
ON_DISK = {
    **dict.fromkeys(("market1501", "dukemtmc", "msmt17"), 256),
    **dict.fromkeys(("veri776", "cub200", "cars196", "sop", "inshop"), 224),
}


def group_on_disk(experiment: str, data: str, backbone: str) -> Group:
    """A group of one of ON_DISK_EXPERIMENTS on a set of ON_DISK."""
    steps, dim = (60, 256) if METHOD_SETS[experiment].frozen else (2000, 512)
    return Group(experiment, experiment, data, backbone, ON_DISK[data], steps=steps, dim=dim)
