"""opadapt makes a trained ONNX model faster on one particular board. Start reading in adapt.py."""

__version__ = "0.1.0"
