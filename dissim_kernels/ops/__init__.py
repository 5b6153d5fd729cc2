"""The `torch.library` operators and the public functions over them, one file for each operation."""
