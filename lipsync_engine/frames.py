"""One decoded picture as the planes that the decoder gave, and the way from a region to RGB and back.

The pipeline never converts a whole frame: only the face region becomes RGB, and only pixels whose weight is
above zero are written back, so everything else reaches the encoder bit for bit.
Pure: no I/O. It knows neither files nor faces.
"""
