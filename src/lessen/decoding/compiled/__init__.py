"""Passes through packed Llama-type models as one compiled program: no Python and no operator between its steps.

weights as panels (`stored.kernels`)  +  norms, rotation, attention, gates (here)  -->  a list of steps, run by threads
"""
