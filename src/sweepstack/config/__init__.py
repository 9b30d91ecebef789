"""From what a person typed to a typed, checked config."""
