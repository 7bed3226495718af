"""A small server that answers as vLLM and SGLang do, and misbehaves when told to.

It loads the directories that it is told to load, and continues prompts by our own decoder.
"""

import http.server
import json
import threading
import time
from pathlib import Path

from alanything_jax import hub
from alanything_jax.generation.decode import generate_tokens
from alanything_jax.generation.sampler import Sampling

START = "default"


class FakeEngine:
    """Attributes:

    plan: path -> what is sent there in place of the right answer, one after another:
      (status, bytes), None (the right one), "drop" (the connection breaks), "stall" or
      "drip" (a byte now and then); the last one stays.
    edit: applied to a completion before it is sent.
    deaf: weights are "loaded" without a change, as are their names.
    """

    def __init__(self, bundle, ids="ids", key=""):
        self.bundle, self.ids, self.key = bundle, ids, key
        self.version, self.root = START, "/models/base"
        self.plan, self.seen, self.deaf = {}, [], False
        self.edit = lambda answer: answer
        self.free, self.lock = threading.Event(), threading.Lock()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.serve(self, None)

            def do_POST(self):
                size = int(self.headers["Content-Length"])
                outer.serve(self, json.loads(self.rfile.read(size)))

            def log_message(self, *args):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,))
        self.thread.start()

    def close(self):
        self.free.set()
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()

    def bodies(self, path):
        return [body for seen, body in self.seen if seen == path]

    def serve(self, handler, body):
        path = handler.path
        with self.lock:
            self.seen.append((path, body))
            steps = self.plan.get(path, [])
            step = steps[0] if len(steps) == 1 else steps.pop(0) if steps else None
        if step == "drop":
            return
        if step == "stall":
            self.free.wait(60)
            return
        if self.key and handler.headers["Authorization"] != f"Bearer {self.key}":
            step = (401, f"bad key {handler.headers['Authorization']}".encode())
        if step == "drip":
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n")
            while not self.free.wait(0.1):
                handler.wfile.write(b" ")
            return
        status, raw = step or (200, json.dumps(self.answer(path, body)).encode())
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(raw)))
        handler.end_headers()
        handler.wfile.write(raw)

    def answer(self, path, body):
        with self.lock:
            return getattr(self, "at" + path.replace("/", "_"))(body)

    def load(self, path):
        if not self.deaf:
            self.bundle, self.root = hub.load(path), path

    def at_collective_rpc(self, body):
        assert body["method"] == "reload_weights"
        self.load(body["kwargs"]["weights_path"])
        return {"results": [None]}

    def at_reset_prefix_cache(self, body):
        return {}

    def at_update_weight_version(self, body):
        self.version = self.version if self.deaf else body["new_version"]
        return {"success": True}

    def at_weight_info(self, body):
        return {"weight_version": self.version}

    def at_v1_models(self, body):
        return {"data": [{"id": "policy", "root": self.root}]}

    def at_get_model_info(self, body):
        return {"model_path": self.root, "weight_version": self.version}

    def at_update_weights_from_disk(self, body):
        self.load(body["model_path"])
        self.version = self.version if self.deaf else body["weight_version"]
        return {"success": True, "message": "loaded"}

    def decoded(self, prompt, count, limit, stops, params):
        sampling = Sampling(
            params["temperature"], params["top_p"], max(0, params["top_k"])
        )
        return generate_tokens(
            self.bundle.params,
            self.bundle.model.config,
            [prompt] * count,
            max_new_tokens=limit,
            sampling=sampling,
            eos_ids=stops,
            seed=params.get("seed", params.get("sampling_seed")),
        )

    def at_v1_completions(self, body):
        rows = self.decoded(
            body["prompt"], body["n"], body["max_tokens"], body["stop_token_ids"], body
        )
        choices = []
        for index, row in enumerate(rows):
            ids = row.tokens.tolist()
            logprobs = {
                "tokens": [f"token_id:{token}" for token in ids],
                "token_logprobs": row.logps.tolist(),
            }
            choices.append({"index": index, "text": "", "logprobs": logprobs})
            if self.ids == "ids":
                choices[-1] |= {"token_ids": ids, "prompt_token_ids": body["prompt"]}
        # Their order is no promise: `index` is.
        return self.edit({"model": body["model"], "choices": choices[::-1]})

    def at_generate(self, body):
        params = body["sampling_params"]
        assert params["n"] == 1
        (row,) = self.decoded(
            body["input_ids"],
            1,
            params["max_new_tokens"],
            params["stop_token_ids"],
            params,
        )
        pairs = zip(row.logps.tolist(), row.tokens.tolist(), strict=True)
        said = {"output_token_logprobs": [[p, token, None] for p, token in pairs]}
        return self.edit({"text": "", "meta_info": said | self.at_weight_info(None)})


def restart_on(engine, folder: Path, delay_seconds: float):
    """What runs an engine that cannot load: starts it anew on a directory, soon."""

    def later():
        while not (folder / "alanything_manifest.json").exists():
            time.sleep(0.02)
        time.sleep(delay_seconds)
        with engine.lock:
            engine.load(str(folder))
            engine.plan = {}

    threading.Thread(target=later, daemon=True).start()
