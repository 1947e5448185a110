"""From a checkpoint to files that run without PyTorch: ONNX graphs, TensorRT engines, and the card to go with them."""
