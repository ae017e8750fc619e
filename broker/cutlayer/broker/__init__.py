"""What is said, on which topic, and how it travels."""
