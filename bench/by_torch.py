"""The same model in torch, in a process of its own, one text at a time: what one has who batches nothing.

torch and its tokenizers are in an environment of their own (`--torch-python`); the weights are those of our model.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from bench.harness import Sample, Stopwatch
from numpy.typing import NDArray

_PROGRAM = Path(__file__).resolve().parent / "peer_torch.py"
_NEEDS = "numpy, tokenizers, torch"

Timed: TypeAlias = Callable[[Sequence[str], int], tuple[Sample, NDArray[np.float32]]]


def weights_of(graph: Path) -> dict[str, NDArray[np.float32]]:
    """Return the weights of a BERT in ONNX under torch's names, as what the graph computes with.

    In the graph most are small integers with a scale, and those of linear layers, which lie the other way round, are
    known by the bias that is added afterwards alone.
    """
    import onnx
    from onnx.numpy_helper import to_array

    model = onnx.load(graph).graph
    stored = {one.name: one for one in model.initializer}
    made_by = {output: node for node in model.node for output in node.output}

    def value(name: str) -> Any:
        if name in stored:
            return to_array(stored[name])
        node = made_by[name]
        if node.op_type == "Cast":
            return value(node.input[0]).astype(np.float32)
        assert node.op_type == "Mul", f"{name} is no weight"
        return value(node.input[0]) * value(node.input[1])

    named = {name for node in model.node for name in (*node.input, *node.output) if name.startswith("inner.")}
    found = {name.removeprefix("inner."): value(name) for name in named if name.endswith((".weight", ".bias"))}
    for node in model.node:
        product = next((made_by[name] for name in node.input if name in made_by), None)
        bias = next((name for name in node.input if name.endswith(".bias")), None)
        if node.op_type == "Add" and bias is not None and product is not None and product.op_type == "MatMul":
            weight = bias.removeprefix("inner.").removesuffix("bias") + "weight"
            found[weight] = np.ascontiguousarray(value(product.input[1]).T)
    return found


@contextlib.contextmanager
def torch_beside(python: Path, model: Path, folder: Path) -> Iterator[Timed]:
    """Start torch with the model's weights; give what embeds texts one by one and says how long that took.

    Exits with a message where that interpreter can't.
    """
    _check(python)
    weights, vectors = folder / "weights.npz", folder / "vectors.npy"
    np.savez(weights, **weights_of(model / "model.onnx"))  # type: ignore[arg-type]  # a switch of its own comes by name too
    command = [str(python), str(_PROGRAM), str(weights), str(model / "tokenizer.json"), str(vectors)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def timed(texts: Sequence[str], threads: int) -> tuple[Sample, NDArray[np.float32]]:
        assert process.stdin is not None
        assert process.stdout is not None
        with Stopwatch() as watch:
            print(json.dumps([threads, texts]), file=process.stdin, flush=True)
            line = process.stdout.readline()
        if not line:
            raise RuntimeError("the process with torch ended; its error stands above")
        answer = json.loads(line)
        others = watch.sample(len(texts), ours_elsewhere_s=answer["cpu_s"]).others
        return Sample(n=len(texts), others=others, **answer), np.load(vectors)

    with process:
        try:
            yield timed
        finally:
            process.kill()


def _check(python: Path) -> None:
    try:
        done = subprocess.run([python, "-c", f"import {_NEEDS}"], capture_output=True, text=True, check=False)
    except OSError as exc:
        sys.exit(f"--torch-python {python} can't be run: {exc}")
    if done.returncode:
        sys.exit(f"--torch-python {python} lacks {_NEEDS}: {done.stderr.strip().splitlines()[-1]}")
