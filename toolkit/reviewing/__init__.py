"""A page on which a person corrects captions.

In: a file of captions, or a split of a cache. Out: a server of the page, which keeps each action in the `.review` beside the
captions (data/reviews.py). Start with `listing.py`: what is shown, and in which order.
"""
