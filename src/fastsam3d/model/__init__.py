"""Networks: tensors in, tensors out. Knows no files, volumes or prompt objects."""
