"""A store that is mixed of others: each folder has its share of it.

shares.py   which contexts of each part are taken, and how often: plain arithmetic
parts.py    from a request to its parts, each with a store of its own
making.py   the mixed store, from the parts' stores
"""
