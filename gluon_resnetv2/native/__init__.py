"""Training on a current oneDNN: the network up to its features as one operator of our own.

Needs the extra `native` and a C++ compiler. What is exported is the portable network all the same.
"""
