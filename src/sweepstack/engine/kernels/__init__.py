"""Fast paths with a slow twin, each tested on this machine before it is used."""
