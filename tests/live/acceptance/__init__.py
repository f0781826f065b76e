"""The acceptance matrix: every client with every backend, with blockops in between."""
