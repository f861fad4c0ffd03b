"""The pages are tried: what a reader may type is typed, what he may copy is judged."""
