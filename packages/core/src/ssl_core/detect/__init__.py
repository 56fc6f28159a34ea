"""Detection and segmentation on encoders: readers of boxes, batches, models and scores."""
