"""The same questions where the dictionary V and the coefficients H are unknown: real activations."""
