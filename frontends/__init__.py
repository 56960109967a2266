"""From checkpoints to graphs: file formats, and one file a model family under models/."""
