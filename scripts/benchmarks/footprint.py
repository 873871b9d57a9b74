"""What it costs to be there: memory, import, start and stop; each in a fresh process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile

from stage import Row, Stage, in_turn, new_run, progress

_NODE_TURNS = 3  # in each round: two threads and two connections more or less vary by a fifth

_RSS = """
def rss():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024
"""
_CLOCK = "import time, sys, json\nstart = time.perf_counter()\n"
_DONE = "\nprint(json.dumps({}))"

_MEMORY = _RSS + "import json\nfrom taskbus import Router\nrouter = Router(URL, run_id=RUN).start()\n"
_MEMORY += "for n in range(10): router.on(f'event-{n}', print)\nfound = rss()\nrouter.stop()" + _DONE.format("found")
_RAW_MEMORY = _RSS + "import json, redis\nclient = redis.Redis.from_url(URL)\nclient.ping()" + _DONE.format("rss()")

_IMPORT = _CLOCK + "import taskbus" + _DONE.format("(time.perf_counter() - start) * 1e3")
_RAW_IMPORT = _CLOCK + "import redis" + _DONE.format("(time.perf_counter() - start) * 1e3")

_TASK = "from taskbus import Task\nTask().start().stop()\n" + _CLOCK + "Task().start().stop()"
_TASK += _DONE.format("(time.perf_counter() - start) * 1e6")

_MEDIAN = """
import json, statistics, time
def took():
    start = time.perf_counter()
    once()
    return (time.perf_counter() - start) * 1e3
print(json.dumps(statistics.median(took() for _ in range(21))))
"""
_NODE = "from taskbus import Router\ndef once(): Router(URL, run_id=RUN).start().stop()" + _MEDIAN
_TRIPS = "import redis\ndef once():\n    with redis.Redis.from_url(URL) as client:\n"
_TRIPS += "        for _ in range(3): client.ping()" + _MEDIAN
# As many connections, threads and replies waited for as a node has (to the claim, to what it tells as it comes and
# goes, and to the farewell), and nothing that is done with them.
_LEAST = (
    """
import threading, redis
from redis.connection import parse_url
def once():
    are_open, gate = threading.Event(), threading.Event()
    connections = [redis.Connection(driver_info=None, protocol=2, **parse_url(URL)) for _ in range(2)]
    def open_both():
        for connection in connections: connection.connect()
        are_open.set()
        gate.wait()
    threads = [threading.Thread(target=open_both), threading.Thread(target=gate.wait)]
    threads[0].start()
    are_open.wait()
    threads[1].start()
    for _ in range(4):
        connections[0].send_command("PING")
        connections[0].read_response()
    gate.set()
    for thread in threads: thread.join()
    for connection in connections: connection.disconnect()
"""
    + _MEDIAN
)


def _run(text: str, url: str, compiled: str) -> float:
    text = f"URL = {url!r}\nRUN = {new_run()!r}\n{text}"
    # Compiled modules for both sides, as an installed package has them, also from a checkout that keeps none.
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": compiled}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    said = subprocess.run([sys.executable, "-c", text], stdout=subprocess.PIPE, check=True, timeout=60, env=environment)
    return float(json.loads(said.stdout))


def run(stage: Stage) -> list[Row]:
    memory = Row("memory of an idle node", "MiB", reach=1.4)
    imports = Row("import", "ms", reach=1.3)
    task = Row("start and stop of a standalone task", "us")
    node = Row("start and stop of a node, and three round trips", "ms", reach=1.3)
    with stage.server() as url, tempfile.TemporaryDirectory() as compiled:
        for text in (_MEMORY, _RAW_MEMORY):
            _run(text, url, compiled)
        for turn in range(stage.rounds):
            progress(f"footprint, round {turn + 1}")
            for sides in (
                in_turn(turn, (memory.ours, _MEMORY), (memory.raw, _RAW_MEMORY)),
                in_turn(turn, (imports.ours, _IMPORT), (imports.raw, _RAW_IMPORT)),
                in_turn(turn, (task.ours, _TASK)),
                *(
                    in_turn(part, (node.ours, _NODE), (node.raw, _TRIPS), (node.least, _LEAST))
                    for part in range(_NODE_TURNS * turn, _NODE_TURNS * (turn + 1))
                ),
            ):
                for side, text in sides:
                    side.append(_run(text, url, compiled))
    return [memory, imports, task, node]
