"""The toy world: a tiny policy, a tiny generative judge and a small preference dataset, made on the spot.

`python -m deploy.toy.make` writes them; `world.py` holds the truth that the maker planted.
"""
