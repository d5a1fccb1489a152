"""Training: the loop, fine-tuning of the U-Net, pre-training of the small models."""
