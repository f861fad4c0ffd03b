"""May this caller spend?"""
