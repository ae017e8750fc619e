"""The client side: private data, tokenizers and the loss. Loads no torch."""
