"""A server that speaks nnInteractive's protocol and segments by intensity: for tests, no network.

``python -m napari_jrss._tests.app.nninteractive`` prints its port. A prompt that shows what is
inside adds the connected voxels whose intensity is near that of the prompt's; one that shows what
is outside takes its connected voxels of the object away.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from scipy import ndimage

NEAR = 10.0  # in the scan's unit


class Model:
    """One person's place on the server."""

    def __init__(self) -> None:
        self.image = self.target = np.zeros((1, 1, 1))

    def set_image(self, image: np.ndarray) -> None:
        self.image = image[0].astype(np.float32)

    def reset(self) -> None:
        self.target = np.zeros(self.image.shape, np.uint8)

    def ask(self, seed: np.ndarray, inside: bool) -> list[list[int]]:
        if inside:
            around = ndimage.binary_dilation(seed)  # less noise than one voxel has
            near = np.abs(self.image - np.median(self.image[around])) < NEAR
            found = _touching(near | seed, seed)
            self.target[found] = 1
        else:
            found = _touching(self.target > 0, seed)
            self.target[found] = 0
        places = np.nonzero(found) if found.any() else np.nonzero(seed)
        return [[int(p.min()), int(p.max()) + 1] for p in places]


def _touching(mask: np.ndarray, seed: np.ndarray) -> np.ndarray:
    parts, _ = ndimage.label(mask)
    return np.isin(parts, np.unique(parts[seed & mask])) & mask


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    options: argparse.Namespace
    leases: dict[str, Model] = {}  # noqa: RUF012
    asked = 0

    def do_GET(self) -> None:
        if self.path == "/healthz":
            self._json({"ok": True})
        elif self._allowed():
            known = {"/capabilities": self._capabilities, "/lease_status": lambda: {}}
            self._json(known[self.path]())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not self._allowed():
            return
        if self.options.other:
            return self._json({"detail": "Not Found"}, 404)
        if self.path == "/claim":
            if len(self.leases) >= self.options.max_sessions:
                return self._json({"detail": "server is at capacity"}, 503)
            token = uuid.uuid4().hex
            self.leases[token] = Model()
            return self._json({"lease_token": token, "liveness_timeout_seconds": 60.0})
        token = self.headers.get("X-Lease-Token", "")
        if self.path == "/release":
            self.leases.pop(token, None)
            return self._json({"released": True})
        if token not in self.leases:
            return self._json({"detail": "lease expired or unknown"}, 410)
        self._answer(self.leases[token], token, body)
        return None

    def _answer(self, model: Model, token: str, body: bytes) -> None:
        from nnInteractive.inference.remote.serialization import unpack_array

        meta = json.loads(self.headers.get("X-Meta") or "{}")
        if self.path == "/set_image":
            model.set_image(unpack_array(body))
            return self._json({"original_image_shape": [1, *model.image.shape]})
        if self.path == "/set_target_buffer":
            if json.loads(body)["shape"] != list(model.image.shape):
                return self._json({"detail": "target buffer of another shape"}, 400)
            model.reset()
            return self._json({})
        if self.path == "/reset_interactions":
            model.reset()
            return self._json({})
        if self.path == "/add_initial_seg_interaction":
            model.target = unpack_array(body).astype(np.uint8)
            return self._region(model, None)
        if not self.path.startswith("/add_"):
            return self._json({})
        seed = np.zeros(model.image.shape, bool)
        if self.path == "/add_point_interaction":
            meta = json.loads(body)
            seed[tuple(meta["coordinates"])] = True
        elif self.path == "/add_bbox_interaction":
            meta = json.loads(body)
            seed[tuple(slice(*each) for each in meta["bbox_coords"])] = True
        else:
            box = tuple(slice(*each) for each in meta["interaction_bbox"])
            seed[box] = unpack_array(body).astype(bool)
        Handler.asked += 1
        time.sleep(self.options.slow)
        if Handler.asked == self.options.die_at:
            os._exit(1)
        box = model.ask(seed, meta["include_interaction"])
        if Handler.asked == self.options.forget_at:
            del self.leases[token]
        return self._region(model, box)

    def _region(self, model: Model, box: list[list[int]] | None) -> None:
        from nnInteractive.inference.remote.serialization import pack_array

        content = b""
        if box is not None:
            part = np.ascontiguousarray(model.target[tuple(slice(*each) for each in box)])
            content = pack_array(part, nthreads=1)
        if self.options.garbled and box is not None:
            content = b"NNIA\x07" + content[5:]
        self._send(
            200,
            content,
            {"X-Meta": json.dumps({"ran_prediction": box is not None, "bbox": box})},
        )

    def _capabilities(self) -> dict[str, Any]:
        kinds = {"points": True, "scribble": True, "lasso": True, "bbox2d": True, "bbox3d": False}
        return {
            "supported_interactions": kinds | dict.fromkeys(self.options.without, False),
            "channel_mapping": {"prev_seg": 0, "points": [3, 4]},
            "num_interaction_channels": 7,
            "supports_initial_label": True,
            "supports_zero_shot_label_refinement": True,
            "preferred_scribble_thickness": [2, 2, 2],
            "interaction_decay": 0.9,
            "inference_session_version": self.options.version,
            "license": "CC BY-NC-SA 4.0",
            "supports_undo": True,
        }

    def _allowed(self) -> bool:
        key = self.options.api_key
        allowed = not key or self.headers.get("Authorization") == f"Bearer {key}"
        if not allowed:
            self._json({"detail": "Invalid bearer token"}, 401)
        return allowed

    def _json(self, content: dict[str, Any], code: int = 200) -> None:
        self._send(code, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send(self, code: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:
        print(f"{self.path} {arguments[1]}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--api-key", default="")
    parser.add_argument("--max-sessions", type=int, default=1)
    parser.add_argument("--version", default="2.6.0")
    parser.add_argument("--without", nargs="*", default=[], help="kinds that aren't supported")
    parser.add_argument("--slow", type=float, default=0.0, help="seconds for each answer")
    parser.add_argument("--die-at", type=int, default=0, help="end in the middle of this prompt")
    parser.add_argument("--forget-at", type=int, default=0, help="forget the place after it")
    parser.add_argument("--garbled", action="store_true", help="answer in another wire format")
    parser.add_argument("--other", action="store_true", help="be another kind of server")
    Handler.options = parser.parse_args()
    sys.modules["torch"] = None  # type: ignore[assignment]  # the client's package would load it
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
