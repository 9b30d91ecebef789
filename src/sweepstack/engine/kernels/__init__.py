"""Fast paths, each tested on this machine against the public way before it is used."""
