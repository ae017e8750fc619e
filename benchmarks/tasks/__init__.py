"""The benchmark's tasks: real multimodal data from packages, each with its run settings (docs/benchmark-tasks.md)."""
