"""KAEM and its parts: likelihoods, energies with priors, and learning of priors."""
