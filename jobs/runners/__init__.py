"""What the longer commands do once they are called; these modules import torch and Ray."""
