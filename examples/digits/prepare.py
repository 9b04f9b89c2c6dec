#!/usr/bin/env python3
"""Makes what the digit reader of this folder is trained on and begins with.

    python prepare.py MODELS OUT [--copies 10] [--seed 1]

MODELS holds the 10,000 MNIST digits that `scripts/fetch_models.py data-mnist-10k --cache MODELS` lays out:

    MODELS/data-mnist-10k/<digit>.json     {"data": [784 * n floats 0..1]}

Writes to OUT pictures and classes in IDX files, and begin.onnx, the reader with random weights. examples/train/digit-reader.toml
trains that. Needs torch, numpy, pillow and onnx. One seed gives the same files on one machine and one torch version.

People draw digits in a paint program with other pens, sizes and places than those of the scanned forms MNIST was made from, so
training sees three sources: MNIST, digits drawn here from pen strokes (`draw_digit`), and a few printed ones. Each is there in
several copies that are shifted, scaled, turned, sheared, bent, thickened, thinned, blurred and soiled (`distort`).
"""
import argparse
import json
import math
import os
import struct

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont

SIDE = 28
HELD_OUT = 1500  # MNIST digits that training never sees
DRAWN = 12000
PRINTED = 1500

# --- data -----------------------------------------------------------------------------------------------------------


def load_mnist(folder):
    """MNIST digits: images [n,28,28] in 0..1 and labels [n], class after class."""
    images, labels = [], []
    for digit in range(10):
        with open(os.path.join(folder, "data-mnist-10k", f"{digit}.json")) as f:
            images.append(np.array(json.load(f)["data"], np.float32).reshape(-1, SIDE, SIDE))
        labels.append(np.full(len(images[-1]), digit))
    images, labels = np.concatenate(images), np.concatenate(labels)
    # No digit may stand both in training and in the held-out part.
    _, first = np.unique(images.reshape(len(images), -1), axis=0, return_index=True)
    return images[np.sort(first)], labels[np.sort(first)]


def arc(cx, cy, rx, ry, start, end, count=12):
    """Points on an ellipse, angles in degrees, 0 to the right, growing clockwise (y points down)."""
    angles = np.radians(np.linspace(start, end, count))
    return [(cx + rx * math.cos(a), cy + ry * math.sin(a)) for a in angles]


def strokes(digit, rng):
    """One way of writing a digit: a list of strokes, each a list of points in the unit square (y points down)."""
    u = rng.uniform
    if digit == 0:
        start = u(-130, -40)
        return [arc(0.5, 0.5, u(0.2, 0.4), 0.5, start, start + u(340, 385), 20)]
    if digit == 1:
        lean, kind = u(-0.08, 0.15), rng.integers(4)
        stem = [(0.5 + lean, 0), (0.5 + lean / 2, 0.5), (0.5, 1)]
        flag = [(0.5 + lean - u(0.12, 0.3), u(0.12, 0.32)), (0.5 + lean, 0)]
        base = [(u(0.2, 0.35), 1), (u(0.65, 0.8), 1)]
        return [[stem], [flag + stem[1:]], [flag + stem[1:]], [flag + stem[1:], base]][kind]
    if digit == 2:
        top = arc(0.5, 0.28, u(0.28, 0.38), 0.28, u(-195, -160), u(15, 45), 10)
        kind, foot = rng.integers(3), u(0.12, 0.2)
        if kind == 0:  # a loop at the foot
            return [top + [(0.4, 0.75), (foot, 0.98), (0.14, 0.86), (0.3, 0.84), (0.55, 0.97), (0.85, u(0.9, 1))]]
        corner = [(0.35, 0.78), (foot, 1.0)]
        return [top + corner, [(foot, 1.0), (u(0.5, 0.6), u(0.96, 1.02)), (u(0.8, 0.9), u(0.94, 1.02))]]
    if digit == 3:
        low = arc(0.42, 0.73, u(0.32, 0.42), 0.27, -75, u(130, 160), 10)
        if rng.integers(4) == 0:  # flat top
            return [[(0.18, 0.0), (0.78, 0.0)], [(0.78, 0.0), (0.42, 0.42)] + low]
        return [arc(0.42, 0.24, u(0.26, 0.36), 0.24, u(-160, -130), 78, 10) + low]
    if digit == 4:
        bar, right = u(0.58, 0.72), u(0.62, 0.75)
        if rng.integers(2):  # closed at the top
            return [[(right, 1), (right, 0)], [(right, 0), (0.1, bar)], [(0.1, bar), (u(0.88, 0.98), bar)]]
        left = u(0.12, 0.25)
        return [[(u(0.2, 0.35), u(0, 0.1)), (left, bar)], [(left, bar), (0.95, bar)], [(right, u(0, 0.3)), (right - u(0, 0.08), 1)]]
    if digit == 5:
        left, belly = u(0.2, 0.3), arc(0.44, 0.69, u(0.34, 0.44), 0.31, -100, u(120, 155), 12)
        neck = [(left, 0.02), (left - 0.03, u(0.38, 0.46))]
        return [[(u(0.75, 0.9), u(-0.02, 0.05)), (left, 0.02)], neck, [neck[1]] + belly]
    if digit == 6:
        width, size = u(0.28, 0.38), u(0.24, 0.3)
        back = [(u(0.6, 0.8), u(0, 0.06)), (0.38, 0.22), (0.5 - width, 0.62)]
        return [back + arc(0.5, 1 - size, width, size, 190, -185 + u(-10, 25), 16)]
    if digit == 7:
        kind, foot, top = rng.integers(4), u(0.3, 0.45), u(-0.02, 0.06)
        lines = [[(0.12, top), (0.86, 0.02)], [(0.86, 0.02), (u(0.5, 0.65), 0.5), (foot, 1)]]
        if kind == 0:
            lines.append([(0.3, u(0.45, 0.55)), (u(0.72, 0.82), u(0.42, 0.52))])
        if kind == 1:
            lines.append([(0.12, top), (0.12 + u(-0.03, 0.03), u(0.1, 0.2))])
        return lines
    if digit == 8:
        upper, lower, waist = u(0.22, 0.32), u(0.28, 0.38), u(0.42, 0.5)
        if rng.integers(3) == 0:  # two rings
            return [arc(0.5, waist / 2, upper, waist / 2, -90, 280, 16), arc(0.5, (1 + waist) / 2, lower, (1 - waist) / 2, -90, 280, 16)]
        left = arc(0.5, waist / 2, upper, waist / 2, -50, -270, 10)
        right = arc(0.5, (1 + waist) / 2, lower, (1 - waist) / 2, -90, 270, 16)
        return [left + right[1:] + arc(0.5, waist / 2, upper, waist / 2, 90, -40, 8)[1:]]
    size, width = u(0.22, 0.3), u(0.26, 0.36)
    ring = arc(0.5, size, width, size, u(-60, 0), -330, 16)
    edge = 0.5 + width
    tail = [[(edge, size), (edge - u(0, 0.08), 1)], [(edge, size), (edge - 0.04, 0.7), (u(0.4, 0.6), 1), (u(0.2, 0.3), 0.92)]]
    return [ring, tail[rng.integers(2)]]


def smooth(points, steps=6):
    """A Catmull-Rom curve through the points."""
    p = np.array([points[0], *points, points[-1]], np.float64)
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    parts = []
    for a, b, c, d in zip(p, p[1:], p[2:], p[3:]):
        parts.append(0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3))
    return np.concatenate(parts + [p[-1:]])


def draw_digit(digit, rng, canvas=140, pen=None, fill=None):
    """A digit drawn with one pen on a square canvas, as a grey image, white ink on black.

    pen: the pen's width as a share of the canvas; fill: the digit's height as a share of the canvas."""
    fill = fill if fill is not None else rng.uniform(0.45, 0.9)
    # A thin pen is as likely as a thick one, and a thick one stays in proportion to the digit.
    pen = pen if pen is not None else math.exp(rng.uniform(math.log(0.008), math.log(min(0.16, 0.24 * fill))))
    height = fill * canvas * (1 - pen)
    width = height * rng.uniform(0.65, 1.25)
    turn, lean = math.radians(rng.uniform(-10, 10)), rng.uniform(-0.2, 0.25)
    lines = []
    for line in strokes(digit, rng):
        p = np.array(line) + rng.normal(0, 0.014, (len(line), 2))
        p = (smooth(p) if len(p) > 2 else p) - 0.5
        p = p * (width, height)
        p[:, 0] -= lean * p[:, 1]
        lines.append(p @ np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]]))
    everything = np.concatenate(lines)
    low, high = everything.min(0), everything.max(0)
    room = np.maximum(canvas * (1 - pen) - (high - low), 0) * 0.92
    corner = (canvas - (high - low) - room) / 2 + room * np.clip(rng.normal(0.5, 0.2, 2), 0, 1)
    image = Image.new("L", (canvas, canvas))
    ink, radius = ImageDraw.Draw(image), max(pen * canvas / 2, 0.5)
    for p in lines:
        p = [tuple(q) for q in p - low + corner]
        ink.line(p, 255, max(1, round(2 * radius)), "curve")
        for x, y in p if radius > 1 else []:
            ink.ellipse((x - radius, y - radius, x + radius, y + radius), 255)
    return image


def print_digit(digit, rng, canvas=140):
    """A printed digit in the font that Pillow ships."""
    image = Image.new("L", (canvas, canvas))
    font = ImageFont.load_default(rng.uniform(0.6, 1.2) * canvas)
    left, top, right, bottom = font.getbbox(str(digit))
    at = (canvas - right - left) / 2 + rng.normal(0, 3), (canvas - bottom - top) / 2 + rng.normal(0, 3)
    ImageDraw.Draw(image).text(at, str(digit), 255, font, stroke_width=int(rng.integers(4)))
    return image


def shrink(image):
    """To 28x28; even the thinnest line keeps a full-strength point, as the graph's own contrast stretch would give it."""
    small = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX), np.float32)
    return small / max(small.max(), 1)


def synthetic(rng):
    """Drawn and printed digits with their labels."""
    labels = np.arange(DRAWN + PRINTED) % 10
    images = [shrink((draw_digit if i < DRAWN else print_digit)(d, rng)) for i, d in enumerate(labels)]
    return np.stack(images), labels


# --- distortion -----------------------------------------------------------------------------------------------------


def distort(x, rng):
    """Batch of white-on-black digits [n,1,28,28] -> the same digits as somebody else might have made them, of either polarity."""
    n = len(x)

    def uniform(low, high, *shape):
        return torch.empty(n, *(shape or (1, 1, 1))).uniform_(low, high, generator=rng)

    def some(share, changed, kept):
        return torch.where(uniform(0, 1) < share, changed, kept)

    strength = uniform(-0.4, 1, 1)[:, 0].clamp(min=0)  # of the change in shape: none for two in seven
    turn, lean = uniform(-15, 15, 1)[:, 0] * (math.pi / 180) * strength, uniform(-0.25, 0.25, 1)[:, 0] * strength
    scale = torch.lerp(torch.ones(n), uniform(0.5, 1.2, 1)[:, 0], strength)
    wide, high = (scale * (1 + strength * uniform(-0.15, 0.15, 1)[:, 0]) for _ in range(2))
    reach = (1 - 0.75 * scale).clamp(min=0.08)  # an MNIST digit fills about 3/4 of its frame
    shift = torch.stack([reach, reach], 1) * uniform(-1, 1, 2) * strength[:, None]
    cos, sin = torch.cos(turn), torch.sin(turn)
    rows = [torch.stack([cos / wide, (sin + lean * cos) / wide], 1), torch.stack([-sin / high, (cos - lean * sin) / high], 1)]
    matrix = torch.stack(rows, 1)
    theta = torch.cat([matrix, -(matrix @ shift[:, :, None])], 2)
    bend = F.interpolate(uniform(-0.12, 0.12, 2, 5, 5), (SIDE, SIDE), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    grid = F.affine_grid(theta, (n, 1, SIDE, SIDE), align_corners=False) + bend * (strength * uniform(0, 1, 1)[:, 0])[:, None, None, None]
    x = F.grid_sample(x, grid, align_corners=False)

    thick, thin = F.max_pool2d(x, 3, 1, 1), -F.max_pool2d(-x, 3, 1, 1)
    x = some(0.3, torch.lerp(x, thick, uniform(0, 1)), some(0.2, torch.lerp(x, thin, uniform(0, 0.7)), x))
    x = some(0.3, torch.lerp(x, F.avg_pool2d(x, 3, 1, 1, count_include_pad=False), uniform(0, 1)), x)
    x = x / x.amax((1, 2, 3), keepdim=True).clamp(min=0.05)
    x = some(0.3, x.clamp(0, 1) ** uniform(0.4, 2.0), x)
    x = some(0.25, (x * uniform(1, 4)).clamp(max=1), x)  # hard edges, as without anti-aliasing
    noise = torch.randn(x.shape, generator=rng) * uniform(0, 0.12)
    x = some(0.4, x + noise, x)
    low = uniform(0, 0.3)
    x = low + (uniform(0.6, 1) - low) * x
    return some(0.3, 1 - x, x).clamp(0, 1)


# --- files ----------------------------------------------------------------------------------------------------------


def write_idx(folder, name, images, labels):
    """Pictures 0..1 and their classes as two IDX files."""
    images = np.rint(np.clip(images, 0, 1).reshape(-1, SIDE, SIDE) * 255).astype(np.uint8)
    with open(os.path.join(folder, f"{name}-images.idx3-ubyte"), "wb") as f:
        f.write(struct.pack(">4i", 0x803, *images.shape) + images.tobytes())
    with open(os.path.join(folder, f"{name}-labels.idx1-ubyte"), "wb") as f:
        f.write(struct.pack(">2i", 0x801, len(labels)) + np.asarray(labels, np.uint8).tobytes())


# Four 3x3 convolutions in three sizes, then two fully connected layers: 103,000 parameters.
WIDTHS = ((1, 16), (16, 32), (32, 48), (48, 64))
POOLED = (True, False, True, True)


def write_onnx(path, draw):
    """The whole reader as one graph of plain ONNX operators, the batch size left free, with random weights."""
    import onnx
    from onnx import TensorProto as T, helper as h, numpy_helper as nh

    nodes, weights = [], []

    def const(name, value, dtype=np.float32):
        weights.append(nh.from_array(np.ascontiguousarray(value, dtype), name))
        return name

    def node(op, inputs, output, **attributes):
        nodes.append(h.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def layer(name, shape):
        # By He et al. (2015), for layers that relu follows.
        deviation = math.sqrt(2 / np.prod(shape[1:]))
        return [const(f"{name}.weight", draw.normal(0, deviation, shape)), const(f"{name}.bias", np.zeros(shape[0]))]

    # Stretch to 0..1, then make the paper black and the ink white.
    border = np.ones((1, 1, SIDE, SIDE))
    border[:, :, 1:-1, 1:-1] = 0
    # Names of constants that are trained begin with those of layers; a node makes these, so that they are none.
    fixed = lambda name, value: node("Constant", [], name, value=nh.from_array(np.asarray(value, np.float32)))
    axes, one = const("axes", [1, 2, 3], np.int64), fixed("one", 1)
    low = node("ReduceMin", ["image", axes], "darkest", keepdims=1)
    high = node("ReduceMax", ["image", axes], "brightest", keepdims=1)
    span = node("Max", [node("Sub", [high, low], "contrast"), fixed("least_contrast", 1e-3)], "span")
    x = node("Div", [node("Sub", ["image", low], "from_black"), span], "stretched")
    rim = node("ReduceSum", [node("Mul", [x, fixed("border", border / border.sum())], "rim"), axes], "paper", keepdims=1)
    bright = node("Greater", [rim, fixed("half", 0.5)], "paper_is_bright")
    x = node("Where", [bright, node("Sub", [one, x], "negative"), x], "ink")
    for k, (inputs, outputs) in enumerate(WIDTHS, 1):
        x = node("Conv", [x, *layer(f"conv{k}", (outputs, inputs, 3, 3))], f"conv{k}", kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        x = node("Relu", [x], f"relu{k}")
        if POOLED[k - 1]:
            x = node("MaxPool", [x], f"pool{k}", kernel_shape=[2, 2], strides=[2, 2])
    x = node("Flatten", [x], "features", axis=1)
    x = node("Relu", [node("Gemm", [x, *layer("hidden", (96, 64 * 9))], "hidden", transB=1)], "hidden_relu")
    x = node("Gemm", [x, *layer("scores", (10, 96))], "scores", transB=1)
    node("Softmax", [x], "probabilities", axis=1)
    node("ArgMax", ["probabilities"], "digit", axis=1, keepdims=0)
    node("ReduceMax", ["probabilities", const("class_axis", [1], np.int64)], "probability", keepdims=0)

    image = h.make_tensor_value_info("image", T.FLOAT, ["batch", 1, SIDE, SIDE])
    image.doc_string = "grey image, 0 black to 1 white; dark ink on bright paper or the reverse"
    outputs = [("digit", T.INT64, ["batch"]), ("probability", T.FLOAT, ["batch"]), ("probabilities", T.FLOAT, ["batch", 10])]
    graph = h.make_graph(nodes, "digits", [image], [h.make_tensor_value_info(*o) for o in outputs], weights)
    file = h.make_model(graph, opset_imports=[h.make_opsetid("", 20)], ir_version=10, producer_name="examples/digits/prepare.py")
    onnx.checker.check_model(file, full_check=True)
    onnx.save(file, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models")
    parser.add_argument("out")
    parser.add_argument("--copies", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    rng, draw = torch.Generator().manual_seed(args.seed), np.random.default_rng(args.seed)
    os.makedirs(args.out, exist_ok=True)

    images, labels = load_mnist(args.models)
    order = draw.permutation(len(images))
    test, rest = order[:HELD_OUT], order[HELD_OUT:]
    extra, extra_labels = synthetic(draw)
    held = draw.permutation(len(extra))[:1000]
    kept = np.setdiff1d(np.arange(len(extra)), held)
    print(f"{len(images)} distinct MNIST digits, {HELD_OUT} held out; {len(kept)} synthetic", flush=True)
    x = torch.from_numpy(np.concatenate([images[rest], extra[kept]]).astype(np.float32))[:, None]
    y = np.concatenate([labels[rest], extra_labels[kept]])
    copies = [np.concatenate([distort(part, rng).numpy() for part in x.split(1000)]) for _ in range(args.copies)]
    write_idx(args.out, "train", np.concatenate(copies), np.tile(y, args.copies))
    probe, truth = images[test], labels[test]
    write_idx(args.out, "mnist", probe, truth)
    write_idx(args.out, "negative", 1 - probe, truth)
    write_idx(args.out, "distorted", distort(torch.from_numpy(probe)[:, None], rng).numpy(), truth)
    write_idx(args.out, "drawn", extra[held], extra_labels[held])
    write_onnx(os.path.join(args.out, "begin.onnx"), draw)


if __name__ == "__main__":
    main()
