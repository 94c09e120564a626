"""Real cases for training and measuring: packed storage, objects in label maps, supervoxels."""
