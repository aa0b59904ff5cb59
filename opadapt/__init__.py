"""opadapt makes a trained ONNX model faster on one particular board. Start reading in adapt.py."""

import os

# from 1.29 on onnxruntime tells Microsoft about models, and leaves files in ~/.cache (its Privacy.md)
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
