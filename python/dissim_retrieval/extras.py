"""How to install packages that only some functions need: the optional dependencies of pyproject.toml."""


def install_extra(extra: str) -> str:
    """The last sentence of an error about a missing package."""
    return f"In a clone of dissim-kernels, run `pip install -e '.[{extra}]'`."
