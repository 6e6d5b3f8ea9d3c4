"""Ask a model a benchmark's questions with and without the picture, and count what it got right."""
