"""What `perdure serve` takes: requests a second and the 99th percentile of their time, alone, in batches, and while the
version changes. The server is one process, the clients another: ``python benchmarks/serve.py [--out FILE]``.

Makes a run of RAPF on the embedded world with two versions (the second is a copy, so that answers can be compared), or
takes one (``--run``). Requests are forms with one PNG of 64 x 64 pixels; connections are kept. All on this machine.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HOST, BOUNDARY = "127.0.0.1", "edge"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, help="a run with one update")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--out", type=Path, help="JSON file")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = asked.run or make_run(Path(folder))
        rows = []
        for batch in (1, 16):
            with_server = Server(run, batch)
            try:
                for clients in asked.clients:
                    rows.append(measure(with_server, clients, asked.seconds, batch=batch))
                    show(rows[-1])
                rows.append(measure(with_server, max(asked.clients), asked.seconds, batch=batch, promote=run))
                show(rows[-1])
            finally:
                with_server.stop()
        if asked.out:
            about = {"cores": os.cpu_count(), "threads": os.environ.get("OMP_NUM_THREADS", "")}
            asked.out.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


def make_run(folder: Path) -> Path:
    """Forty classes in four tasks, and a copy of the run as the version after it."""
    from perdure import api, recipe
    from perdure.run_folder import versions

    settings = ("stream.step=10", "stream.train_per_class=10", "stream.test_per_class=2", "method.epochs=2")
    asked = recipe.load("rapf/microworld", [*settings, "run.seeds=[0]", f"run.out={folder}"])
    run = api.execute(asked, quiet=True)[0].folder
    second = versions.version_folder(run, versions.own_number(run) + 1)
    second.mkdir(parents=True)
    for name in ("recipe.yaml", "tasks.json", "calibration.json"):
        if (run / name).is_file():
            shutil.copy(run / name, second / name)
    shutil.copytree(run / "checkpoint", second / "checkpoint")
    return run


class Server:
    """`perdure serve` as a process of its own."""

    def __init__(self, run: Path, batch: int, port: int = 8199) -> None:
        self.port = port
        command = [sys.executable, "-m", "perdure", "serve", str(run), "--port", str(port), "--max-batch", str(batch)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 120
        while self.get("/health") is None:
            assert self.process.poll() is None and time.monotonic() < until, "the server did not start"
            time.sleep(0.2)

    def get(self, path: str) -> Any:
        try:
            connection = http.client.HTTPConnection(HOST, self.port, timeout=10)
            connection.request("GET", path)
            return json.loads(connection.getresponse().read())
        except OSError:
            return None

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


def picture(seed: int) -> bytes:
    stored = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(stored, "PNG")
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'.encode()
    return head + stored.getvalue() + f"\r\n--{BOUNDARY}--".encode()


def measure(server: Server, clients: int, seconds: float, *, batch: int, promote: Path | None = None) -> dict[str, Any]:
    """Closed loops: each client asks again when it is answered. With `promote` the pointer moves every 3 seconds."""
    bodies = [picture(i) for i in range(16)]
    kind = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    times: list[list[float]] = [[] for _ in range(clients)]
    failed, versions_seen, first = [0] * clients, set(), {}
    stop = threading.Event()

    def client(number: int) -> None:
        connection = http.client.HTTPConnection(HOST, server.port, timeout=60)
        at = number
        while not stop.is_set():
            began = time.perf_counter()
            connection.request("POST", "/predict", bodies[at % 16], kind)
            response = connection.getresponse()
            content = response.read()
            times[number].append(time.perf_counter() - began)
            if response.status != 200:
                failed[number] += 1
                continue
            body = json.loads(content)
            versions_seen.add(body["version"])
            best = body["predictions"][0]["answers"][0]["class"]
            failed[number] += first.setdefault(at % 16, best) != best
            at += 1

    threads = [threading.Thread(target=client, args=(i,)) for i in range(clients)]
    for thread in threads:
        thread.start()
    changes = 0
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(min(3.0, max(until - time.monotonic(), 0)))
        if promote is not None and time.monotonic() < until:
            changes += 1
            move_pointer(promote)
    stop.set()
    for thread in threads:
        thread.join()
    flat = sorted(value for one in times for value in one)
    return {
        "max_batch": batch,
        "clients": clients,
        "pointer_moves": changes,
        "versions": sorted(versions_seen),
        "requests": len(flat),
        "failed": sum(failed),
        "per_second": round(len(flat) / seconds, 1),
        "median_ms": round(1000 * flat[len(flat) // 2], 1),
        "p99_ms": round(1000 * flat[int(0.99 * len(flat))], 1),
        "longest_ms": round(1000 * flat[-1], 1),
    }


def move_pointer(run: Path) -> None:
    from perdure.run_folder import versions

    own = versions.own_number(run)
    versions.point(run, own if versions.current(run) > own else own + 1, by="benchmark")


def show(row: dict[str, Any]) -> None:
    print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)


if __name__ == "__main__":
    main()
