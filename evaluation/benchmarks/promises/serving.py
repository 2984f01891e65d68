"""A served model under load: ``tox -e serving``.

A tenth of the requests is malformed. Exits with 1 unless every good one is answered right, every
bad one with a 4xx or a row with an error, the server is alive, and the memory that it takes at the
end is at most 20% more than after the first quarter of the requests.
"""

import argparse
import base64
import http.client
import json
import math
import random
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from isomax_adapters import mlflow as isomax_mlflow
from isomax_adapters.runtime.scorer import Scorer
from tests.adapters.mlflow.images import good_images
from tests.adapters.mlflow.servers import Server, scoring_server

LARGE = 30_000_000  # bytes


@dataclass
class Outcome:
    """What came of the requests."""

    problems: list[str] = field(default_factory=list)
    bad: dict[str, int] = field(default_factory=dict)  #: answers to malformed requests
    memory: list[float] = field(default_factory=list)  #: of the server, in MB, on the way


def load(server: Server, model: Path, count: int, clients: int) -> Outcome:
    """Send so many requests from so many clients at once."""
    outcome, images = Outcome(), good_images(50)
    expected = [
        {"label": r.label, "class_name": r.class_name, "confidence": r.confidence,
         "score": r.score, "p_value": r.p_value, "is_ood": r.is_ood, "error": ""}
        for r in Scorer(model).score(images, batch_size=1)
    ]  # fmt: skip
    process = psutil.Process(server.process.pid)

    def ask(item: tuple[int, tuple[bytes, int | None]]) -> None:
        index, (body, number) = item
        status, answer = post(server.port, body)
        if number is None:
            reason = status if status != 200 else answer["predictions"][0]["error"]
            outcome.bad[str(reason)] = outcome.bad.get(str(reason), 0) + 1
            if not reason or not (status == 200 or 400 <= status < 500):
                outcome.problems.append(f"malformed request {index} got {status}: {answer}"[:300])
        elif (status, answer.get("predictions")) != (200, [expected[number]]):
            outcome.problems.append(f"request {index} got {status}: {answer}"[:300])
        if index % max(1, count // 10) == 0:
            family = [process, *process.children(recursive=True)]
            outcome.memory.append(sum(p.memory_info().rss for p in family) / 1e6)

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(ask, enumerate(requests(images, count))))
    return outcome


def requests(images: list[bytes], count: int) -> Iterator[tuple[bytes, int | None]]:
    """Body of each request, and the number of its image if it is a good one."""
    chooser = random.Random(0)
    malformed = [
        as_json(b"not an image"),
        as_json(images[1][:150]),
        as_json(chooser.randbytes(LARGE)),
        as_json(images[0], column="picture"),
    ]
    for index in range(count):
        if index % 10 == 9:
            yield malformed[index // 10 % len(malformed)], None
        else:
            number = chooser.randrange(len(images))
            yield as_json(images[number]), number


def as_json(image: bytes, column: str = "image") -> bytes:
    text = base64.b64encode(image).decode()
    return json.dumps({"dataframe_split": {"columns": [column], "data": [[text]]}}).encode()


def post(port: int, body: bytes) -> tuple[int, dict]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request("POST", "/invocations", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="an exported model")
    # after a thousand, the server's threads have come to the memory that they keep
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--clients", type=int, default=8)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "model"
        isomax_mlflow.save_model(given.model, saved)
        server = scoring_server(Path(folder), str(saved))
        try:
            server.start()
            outcome = load(server, given.model, given.requests, given.clients)
            alive = server.process.poll() is None
        finally:
            server.kill()
    print("malformed requests:", json.dumps(outcome.bad, indent=1))
    memory = outcome.memory
    growth = memory[-1] / memory[math.ceil(len(memory) / 4)] - 1
    print("memory of the server, MB:", [round(m) for m in memory], f"grew by {growth:.0%}")
    print(f"{len(outcome.problems)} problems; the server is {'alive' if alive else 'dead'}")
    print(*outcome.problems[:10], sep="\n")
    return int(bool(outcome.problems) or not alive or growth > 0.2)


if __name__ == "__main__":
    sys.exit(main())
