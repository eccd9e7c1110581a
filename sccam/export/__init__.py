"""Exported graphs: a trained network as ONNX or TensorRT, with its numbers compared to the original."""
