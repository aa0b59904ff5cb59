"""Train the quickstart's model: a small residual network on Fashion-MNIST, and write it as ONNX.

    python scripts/train_quickstart.py --data fashion_mnist.npz --out configs/quickstart/fashion_cnn.onnx

The data file holds train_x, test_x (uint8 N,28,28) and train_y, test_y. The last ``--held-out`` training
images are never trained on: scripts/pack_quickstart_data.py draws validation and test images from them and the
test images. The same seed, thread count and torch version give the same file.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor, nn

MEAN, STD = 0.2860, 0.3530  # of the training pixels over 255
HELD_OUT = 2000  # training images never trained on


class Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al. 2015, arXiv 1512.03385, figure 2)."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class FashionNet(nn.Module):
    """Images N,1,28,28 -> logits N,10: a 3x3 stem and three residual stages of 32, 64 and 128 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 32, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(32)
        self.stage1 = Residual(32, 32, 1)
        self.stage2 = Residual(32, 64, 2)
        self.stage3 = Residual(64, 128, 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = self.stage3(self.stage2(self.stage1(x)))
        return self.classifier(torch.flatten(self.pool(x), 1))


def standardise(images: np.ndarray) -> np.ndarray:
    """uint8 N,28,28 -> float32 N,1,28,28: divided by 255, minus the mean, over the standard deviation."""
    return ((images.astype(np.float32) / 255 - MEAN) / STD)[:, None].astype(np.float32)


def augment(batch: Tensor, generator: torch.Generator) -> Tensor:
    """A random crop after padding by 2 background pixels, and a horizontal flip of half the images."""
    count, size = batch.shape[0], batch.shape[-1]
    padded = nn.functional.pad(batch, (2, 2, 2, 2), value=-MEAN / STD)
    top, left = torch.randint(0, 5, (2, count, 1), generator=generator)
    columns = left + torch.arange(size)
    flip = torch.rand((count, 1), generator=generator) < 0.5
    columns = torch.where(flip, columns.flip(1), columns)
    rows = top + torch.arange(size)
    index = torch.arange(count)[:, None, None]
    return padded[index, 0, rows[:, :, None], columns[:, None, :]][:, None]


def train(images: Tensor, labels: Tensor, epochs: int, batch: int, peak_lr: float, seed: int) -> FashionNet:
    """SGD with Nesterov momentum, one warm-up epoch and a cosine learning rate. float32, channels last."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = FashionNet().to(memory_format=torch.channels_last)
    steps_per_epoch = len(images) // batch
    optimizer = torch.optim.SGD(model.parameters(), peak_lr, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, peak_lr, total_steps=epochs * steps_per_epoch, pct_start=min(0.3, 1.5 / epochs)
    )
    for epoch in range(epochs):
        model.train()
        started, total = time.perf_counter(), 0.0
        order = torch.randperm(len(images), generator=generator)
        for step in range(steps_per_epoch):
            chosen = order[step * batch : (step + 1) * batch]
            x = augment(images[chosen], generator).contiguous(memory_format=torch.channels_last)
            loss = nn.functional.cross_entropy(model(x), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        seconds = time.perf_counter() - started
        print(f"epoch {epoch + 1}/{epochs}  loss {total / steps_per_epoch:.4f}  {seconds:.0f} s", flush=True)
    return model.eval()


def write_onnx(model: FashionNet, path: Path) -> None:
    """Opset 17, input ``input`` N,1,28,28, output ``logits`` N,10, batch norm folded by the exporter."""
    for parameter in model.parameters():  # denormal weights slow some CPUs ten-fold
        parameter.data[parameter.data.abs() < 1e-30] = 0
    torch.onnx.export(
        model.to(memory_format=torch.contiguous_format),
        (torch.zeros(1, 1, 28, 28),),
        str(path),
        input_names=["input"],
        output_names=["logits"],
        dynamic_axes={"input": {0: "N"}, "logits": {0: "N"}},
        opset_version=17,
        dynamo=False,
    )


def accuracy(path: Path, images: np.ndarray, labels: np.ndarray) -> float:
    """Top-1 accuracy of the written file, by ONNX Runtime."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    hits = 0
    for start in range(0, len(images), 500):
        (logits,) = session.run(None, {"input": standardise(images[start : start + 500])})
        hits += int((np.asarray(logits).argmax(1) == labels[start : start + 500]).sum())
    return hits / len(images)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("configs/quickstart/fashion_cnn.onnx"))
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--peak-lr", type=float, default=0.15)
    parser.add_argument("--held-out", type=int, default=HELD_OUT)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    with np.load(arguments.data, allow_pickle=False) as archive:
        data = {name: archive[name] for name in ("train_x", "train_y", "test_x", "test_y")}
    kept = len(data["train_x"]) - arguments.held_out
    images = torch.from_numpy(standardise(data["train_x"][:kept]))
    labels = torch.from_numpy(data["train_y"][:kept].astype(np.int64))
    model = train(images, labels, arguments.epochs, arguments.batch, arguments.peak_lr, arguments.seed)
    write_onnx(model, arguments.out)
    held_out = accuracy(arguments.out, data["train_x"][kept:], data["train_y"][kept:])
    test = accuracy(arguments.out, data["test_x"], data["test_y"])
    print(f"held-out training images {held_out:.4f}  test {test:.4f}  {arguments.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
