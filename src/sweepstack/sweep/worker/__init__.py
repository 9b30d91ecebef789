"""Who runs trials: launching, the loop, our own trainer, other applications."""
