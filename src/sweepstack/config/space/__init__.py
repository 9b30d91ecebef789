"""What a sweep tries: grammar, parameters, cases, conditions."""
