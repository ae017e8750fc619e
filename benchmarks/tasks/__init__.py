"""The benchmark's tasks: real multimodal data from installed packages, each with its run settings (docs/benchmark-tasks.md)."""
