"""What training and deploy share: models by name, FLOPs, files of tensors, pages and plots, and where figures come from."""
