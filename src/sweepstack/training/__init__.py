"""What one trial's training is made of."""
