"""The main job, end to end, on a chain of its own. `make demo` runs `python -m scripts.demo`."""
