"""Many agents at once: the demo, the link emulator and the simulation."""
