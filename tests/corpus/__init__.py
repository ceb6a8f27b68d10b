"""Odd inputs that people really have: each is made from nothing, given to the program, and its outcome compared.

The modules beside this one register cases; `python -m tests.corpus [TEXT]` runs them and prints the table.
"""
