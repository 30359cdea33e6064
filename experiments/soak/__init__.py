"""A deployment that works for hours while its devices die and return: does anything grow?"""
