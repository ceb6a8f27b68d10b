"""Files of weights, and models whose function a file of weights does not settle."""
