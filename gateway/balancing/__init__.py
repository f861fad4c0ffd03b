"""Which pod, and when?"""
