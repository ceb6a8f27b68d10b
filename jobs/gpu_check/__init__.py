"""`python -m jobs gpu-check`: what a GPU computes, repeats and makes per second, in seven minutes and one table.

It needs torch, torchvision, timm, scipy and this source tree; neither Ray nor anything else of a run. On a CPU it goes
through the same steps in small.
"""
