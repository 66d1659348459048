"""Server processes on a Ray cluster.

autoscaling  how many workers there should be (pure)
ray          the pool of worker actors
"""
