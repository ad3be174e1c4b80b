"""The project's own checks.

Each module has one `check(root) -> list[str]` (the problems, one line each, empty when all is
well) and runs alone: `python -m tools.import_order`. `make test` runs them all by `tools.check`;
tests/test_tools.py shows each one failing.
"""
