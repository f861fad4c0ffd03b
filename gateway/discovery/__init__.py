"""Which pods are there, and what do they serve?"""
