"""What a study says: findings, plots, comparisons of studies."""
