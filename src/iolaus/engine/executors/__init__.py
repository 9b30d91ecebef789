"""How a block of steps runs: one contract, chosen once per stack."""
