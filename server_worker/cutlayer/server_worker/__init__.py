"""The server side: the encoder, its windows, its optimizer and its checkpoints."""
