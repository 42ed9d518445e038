"""The parts of priming: episodes, what the inner loop touches, the outer gradients, and the loop itself."""
