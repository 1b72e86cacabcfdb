"""What LiteLLM says that calls cost, for every model that talks, offline.

    litellm_prices.py

Needs the packages of litellm-requirements.txt. Prints one JSON object: the version of LiteLLM, the path of the map of prices
that it has inside, the shapes of usage, and for each model its provider, the entry that LiteLLM takes, and what each
shape costs: a number of dollars as Python prints it, or the name of an exception.
"""

import datetime
import importlib.metadata
import json
import logging
import os
import pathlib
import sys

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm
from litellm import _internal_context
from litellm.types.utils import CompletionTokensDetailsWrapper, PromptTokensDetailsWrapper, Usage

MODES = {"chat", "completion", "responses"}

# Some are cheaper at night and at weekends: this is a Wednesday's noon in Beijing.
WEEKDAY = datetime.datetime(2026, 5, 6, 2, 30, tzinfo=datetime.timezone.utc)

SHAPES = {
    "plain": {"input": 1_000, "output": 100},
    "cache_read": {"input": 10_000, "output": 500, "cache_read": 4_000},
    "cache_write": {"input": 10_000, "output": 500, "cache_write": 3_000},
    "long": {"input": 600_001, "output": 2_000, "cache_read": 100_000, "cache_write": 50_000},
    "reasoning": {"input": 1_000, "output": 800, "reasoning": 500},
    "no_output": {"input": 1_234, "output": 0},
    "at_200k": {"input": 200_000, "output": 1_000},
    "above_200k": {"input": 200_001, "output": 1_000},
    "all": {"input": 300_000, "output": 900, "cache_read": 150_000, "cache_write": 7, "reasoning": 301},
    "flex": {"input": 1_000, "output": 800, "cache_read": 300, "reasoning": 500, "tier": "flex"},
    "priority": {"input": 1_000, "output": 800, "cache_read": 300, "reasoning": 500, "tier": "priority"},
    "long_priority": {"input": 300_000, "output": 800, "cache_write": 300, "tier": "priority"},
    "ultrafast": {"input": 300_000, "output": 800, "cache_read": 300, "tier": "ultrafast"},
    "audio": {"input": 1_000, "output": 500, "input_audio": 950, "output_audio": 480, "cache_read": 20},
    "images": {"input": 1_000, "output": 1_500, "input_image": 700, "output_image": 1_290, "reasoning": 100},
    "priority_audio": {"input": 1_000, "output": 500, "input_audio": 950, "tier": "priority"},
    "balanced": {"input": 1_000, "output": 800, "cache_read": 300, "tier": "balanced"},
}


def usage(shape):
    return Usage(
        prompt_tokens=shape["input"],
        completion_tokens=shape["output"],
        total_tokens=shape["input"] + shape["output"],
        prompt_tokens_details=PromptTokensDetailsWrapper(
            cached_tokens=shape.get("cache_read", 0),
            cache_creation_tokens=shape.get("cache_write", 0),
            audio_tokens=shape.get("input_audio", 0),
            image_tokens=shape.get("input_image", 0),
        ),
        completion_tokens_details=CompletionTokensDetailsWrapper(
            reasoning_tokens=shape.get("reasoning", 0),
            audio_tokens=shape.get("output_audio", 0),
            image_tokens=shape.get("output_image", 0),
        ),
    )


def cost(model, provider, shape):
    try:
        parts = litellm.cost_per_token(
            model=model,
            custom_llm_provider=provider,
            usage_object=usage(shape),
            prompt_tokens=shape["input"],
            completion_tokens=shape["output"],
            service_tier=shape.get("tier"),
        )
    except Exception as error:
        return type(error).__name__
    return repr(sum(parts))


def main():
    logging.disable(logging.CRITICAL)
    # LiteLLM prints advice.
    out, sys.stdout = sys.stdout, sys.stderr
    _internal_context._billing_time.set(WEEKDAY)
    path = pathlib.Path(litellm.__file__).with_name("model_prices_and_context_window_backup.json")
    models = {}
    for model, entry in json.loads(path.read_bytes()).items():
        if entry.get("mode") not in MODES:
            continue
        provider = entry["litellm_provider"]
        # Vertex's publishers are one provider.
        provider = "vertex_ai" if provider.startswith("vertex_ai") else provider
        try:
            taken = litellm.get_model_info(model=model, custom_llm_provider=provider)["key"]
        except Exception as error:
            taken = type(error).__name__
        costs = {name: cost(model, provider, shape) for name, shape in SHAPES.items()}
        models[model] = {"provider": provider, "entry": taken, "costs": costs}
    version = importlib.metadata.version("litellm")
    json.dump({"litellm": version, "map": str(path), "shapes": SHAPES, "models": models}, out)


main()
