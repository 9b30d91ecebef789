"""The commands: arguments, progress, what is printed."""
