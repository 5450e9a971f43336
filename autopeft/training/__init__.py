"""The inner loop: images, views, frozen features, probes and the training of one rung."""
