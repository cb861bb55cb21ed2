"""Runs a program on every node of a Ray cluster, and passes on what each said in lines that begin with `kvrail-fix`.

Arguments: the program, the seconds that one node has, the program's arguments.
"""

import json
import logging
import os
import sys
import time


def mend(program, arguments, seconds):
    """On a node: writes the program, runs it, and gives what it said. Its Python is that of the cluster."""
    import os
    import subprocess
    import sys
    import tempfile

    with tempfile.TemporaryDirectory(prefix="kvrail-fix-") as directory:
        path = os.path.join(directory, "kvrail")
        with open(path, "wb") as file:
            file.write(program)
        os.chmod(path, 0o700)
        if not any(word.startswith("--python") for word in arguments):
            arguments = [*arguments, "--python=" + sys.prefix]
        try:
            ran = subprocess.run(
                [path, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                timeout=seconds,
            )
        except subprocess.TimeoutExpired:
            return None, "no end within %d s" % seconds
        return ran.stdout.decode(errors="replace"), ran.stderr.decode(errors="replace")


def main():
    program_path, seconds, arguments = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    try:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
    except ImportError as error:
        sys.exit("%s has no Ray: %s" % (sys.executable, error))
    deadline = time.monotonic() + seconds
    try:
        ray.init(address=os.environ.get("RAY_ADDRESS", "auto"), log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:
        sys.exit("no Ray cluster: %s" % str(error).splitlines()[0])
    with open(program_path, "rb") as file:
        program = ray.put(file.read())
    task = ray.remote(num_cpus=0, max_retries=0)(mend)
    waiting = {}
    for node in ray.nodes():
        if node["Alive"]:
            strategy = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
            left = max(1, int(deadline - time.monotonic()))
            waiting[task.options(scheduling_strategy=strategy).remote(program, arguments, left)] = node

    def name(node):
        # Several nodes of one host have one name; the identity tells them apart.
        host = node.get("NodeManagerHostname") or node["NodeManagerAddress"]
        return "%s/%s" % (host.replace(" ", "-"), node["NodeID"][:8])

    def fail(node, why):
        said = json.dumps({"exit": 2, "said": {"error": why}})
        print("kvrail-fix", name(node), 0, 1, said.encode().hex(), flush=True)

    while waiting:
        left = max(0.0, deadline + 5 - time.monotonic())
        ready, _ = ray.wait(list(waiting), num_returns=1, timeout=left)
        if not ready:
            break
        node = waiting.pop(ready[0])
        try:
            out, talk = ray.get(ready[0])
        except Exception as error:
            fail(node, "%s: %s" % (type(error).__name__, str(error).splitlines()[0]))
            continue
        lines = [line.split() for line in (out or "").splitlines() if line.startswith("kvrail-fix ")]
        for words in lines:
            print(words[0], name(node), *words[2:], flush=True)
        if not lines:
            fail(node, talk.strip().splitlines()[-1] if talk.strip() else "it said nothing")
    for node in waiting.values():
        fail(node, "no answer within %d s" % seconds)
    # Ray's own end may wait for nodes that are gone.
    os._exit(0)


main()
