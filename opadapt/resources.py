"""The working version of ONNX: what every model is brought to inside opadapt, and what ``lower`` emits."""

from __future__ import annotations

# Opset 20 is the newest whose operators all convert both ways here: 9..19 come up through onnx's own adapters, 21..25
# come down by relabelling (their changes are new types, not new meanings), and it is the first with Gelu.
WORKING_OPSET = 20
WORKING_IR_VERSION = 9
