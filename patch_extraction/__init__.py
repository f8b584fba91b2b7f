"""Image patches that excite a feature map most, and collages of them."""
