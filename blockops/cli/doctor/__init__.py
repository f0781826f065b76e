"""Look at a backend, and say what it does and which settings fit: `python -m blockops.doctor`."""
