#!/usr/bin/env python3
"""Measures the real `nixl` wheel on kvrail's workloads: two processes on one host, DRAM to DRAM.

Three processes take part. The supervisor (this program) starts a target and an initiator and reads what
the initiator says. The initiator announces each stage before it enters it, with the seconds it may take;
a stage that overruns, a worker that dies and a worker that raises all end the run with one JSON object
`{"error": ...}` on stdout and exit code 2. Nothing waits without a deadline, not even inside NIXL's C code.

With --role each side is a program of its own, on a host or emulated node of its own; they meet at --meet, where the
target listens.

Results are JSON lines on stdout in the field names of `kvrail bench --format json`. A figure is printed
only with the outcome of the check of every byte: the blocks moved, and the poison around them.
"""

import argparse
import contextlib
import gc
import json
import mmap
import multiprocessing
import multiprocessing.connection
import os
import socket
import sys
import time
import traceback

SCHEMA = "kvrail.nixl-peer.v1"
POISON = 0xA5A5_A5A5_A5A5_A5A5
GOLDEN = 0x9E37_79B9_7F4A_7C15
PROGRESS_CALLS_PER_LOOK = 64
IDLE_LOOK_S = 0.001
VERIFY_CHUNK_BYTES = 16 << 20


def size(text):
    """`32KiB`, `1GiB`, `419MB` or plain bytes."""
    units = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "kB": 10**3, "MB": 10**6, "GB": 10**9, "B": 1}
    for unit, factor in units.items():
        if text.endswith(unit):
            return int(float(text[: -len(unit)]) * factor)
    return int(text)


class Pool:
    """Private anonymous memory cut into slots of one block, with a pattern that names its position."""

    def __init__(self, pool_bytes, block_bytes):
        import numpy

        self.numpy = numpy
        self.block_bytes = block_bytes
        self.pool_bytes = pool_bytes
        self.map = mmap.mmap(-1, pool_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.words = numpy.frombuffer(self.map, dtype=numpy.uint64)
        self.address = self.words.ctypes.data

    def pattern(self, seed, slots):
        """What the given slots hold in a pool filled with `seed`: one row a slot, one word a column."""
        n = self.numpy
        words = self.block_bytes // 8
        index = slots.astype(n.uint64)[:, None] * n.uint64(words) + n.arange(words, dtype=n.uint64)[None, :]
        return (index + n.uint64(seed)) * n.uint64(GOLDEN)

    def chunks(self, count):
        step = max(1, VERIFY_CHUNK_BYTES // self.block_bytes)
        return ((at, min(at + step, count)) for at in range(0, count, step))

    def fill(self, seed):
        rows = self.words.reshape(-1, self.block_bytes // 8)
        for lo, hi in self.chunks(len(rows)):
            rows[lo:hi] = self.pattern(seed, self.numpy.arange(lo, hi))

    def poison(self):
        self.words[:] = POISON

    def mismatch(self, seed, own_slots, source_slots):
        """The first block that is not what was moved into it, or that was touched and should not be."""
        n = self.numpy
        rows = self.words.reshape(-1, self.block_bytes // 8)
        for lo, hi in self.chunks(len(own_slots)):
            same = (rows[own_slots[lo:hi]] == self.pattern(seed, source_slots[lo:hi])).all(axis=1)
            if not same.all():
                return f"block {lo + int(n.argmin(same))} differs from its source"
        outside = n.ones(len(rows), dtype=bool)
        outside[own_slots] = False
        outside = n.flatnonzero(outside)
        for lo, hi in self.chunks(len(outside)):
            same = (rows[outside[lo:hi]] == n.uint64(POISON)).all(axis=1)
            if not same.all():
                return f"slot {int(outside[lo + int(n.argmin(same))])} was written and is not in the transfer"
        return None


def slots_of(seed, pool_slots, batch, layout):
    import numpy

    if layout == "contiguous":
        return numpy.arange(batch)
    return numpy.random.default_rng(seed).permutation(pool_slots)[:batch]


def create_agent(name, args):
    """An agent with its backend, and what it cost."""
    from nixl._api import nixl_agent, nixl_agent_config

    params = dict(entry.split("=", 1) for entry in args.backend_param)
    began = time.perf_counter()
    agent = nixl_agent(name, nixl_agent_config(enable_prog_thread=args.progress_thread, backends=[]))
    agent.create_backend(args.backend, params)
    return agent, (time.perf_counter() - began) * 1e3


def register_many(agent, pool, count, region_bytes):
    """Registers `count` regions that do not touch, one call; the milliseconds it took."""
    regions = [(pool.address + at * 2 * region_bytes, region_bytes, 0, "") for at in range(count)]
    descriptors = agent.get_reg_descs(regions, "DRAM")
    began = time.perf_counter()
    agent.register_memory(descriptors)
    return (time.perf_counter() - began) * 1e3


class Target:
    """The passive process: owns a pool, makes progress while a run is on, verifies what reached it."""

    def __init__(self, args):
        self.agent, self.create_ms = create_agent("target", args)
        self.pool = None

    def answer(self, request, *given):
        return getattr(self, request)(*given)

    def hello(self):
        return self.create_ms

    def open_pool(self, pool_bytes, block_bytes):
        self.pool = Pool(pool_bytes, block_bytes)
        self.pool.poison()
        self.agent.register_memory([(self.pool.address, pool_bytes, 0, "")], "DRAM")
        return self.pool.address, self.agent.get_agent_metadata()

    def meet(self, metadata):
        self.agent.add_remote_agent(metadata)

    def fill(self, seed):
        self.pool.fill(seed)

    def poison(self):
        self.pool.poison()

    def check(self, seed, own_slots, source_slots):
        return self.pool.mismatch(seed, own_slots, source_slots)

    def register(self, count, region_bytes):
        self.pool = Pool(count * 2 * region_bytes, region_bytes)
        took_ms = register_many(self.agent, self.pool, count, region_bytes)
        return took_ms, self.agent.get_agent_metadata()


def run_target(args, conn):
    try:
        target = Target(args)
        while True:
            # Some backends shake hands inside the peer's calls: the target makes progress while it idles.
            while not conn.poll(IDLE_LOOK_S):
                target.agent.get_new_notifs()
            request = conn.recv()
            if request[0] == "spin":
                began = time.process_time()
                while not conn.poll(0):
                    for _ in range(PROGRESS_CALLS_PER_LOOK):
                        target.agent.get_new_notifs()
                conn.recv()
                conn.send(("ok", time.process_time() - began))
            elif request[0] == "quit":
                break
            else:
                conn.send(("ok", target.answer(*request)))
    except EOFError:
        pass
    except BaseException:
        conn.send(("failed", traceback.format_exc(limit=3)))
    os._exit(0)


class Initiator:
    """The active process: drives the target, times its own requests, says which stage it is in."""

    def __init__(self, args, target, supervisor):
        self.args, self.target, self.supervisor = args, target, supervisor

    def stage(self, what):
        self.supervisor.send(("stage", what))

    def ask(self, *request):
        self.stage(f"the target's answer to {request[0]}")
        self.target.send(request)
        return self.result()

    def result(self):
        verdict, value = self.target.recv()
        if verdict != "ok":
            raise RuntimeError(f"the target failed: {value}")
        return value

    def row(self, **fields):
        import importlib.metadata

        environment = {k: v for k, v in os.environ.items() if k.startswith(("UCX_", "FI_"))}
        self.supervisor.send(
            ("row", {"schema": SCHEMA, "engine": "nixl", "version": importlib.metadata.version("nixl"),
                     "backend": self.args.backend, "backend_param": self.args.backend_param,
                     "environment": environment, **fields}))

    def meet(self, metadata):
        name = self.agent.add_remote_agent(metadata)
        return name.decode() if isinstance(name, bytes) else name

    def run(self):
        self.stage("creating the agent")
        self.agent, self.create_ms = create_agent("initiator", self.args)
        self.target_create_ms = self.ask("hello")
        self.control() if self.args.kind == "control" else self.transfer()
        self.target.send(("quit",))
        self.supervisor.send(("done",))

    def control(self):
        register_ms, metadata = self.ask("register", self.args.regions, self.args.region_size)
        self.stage("importing the target's metadata")
        began = time.perf_counter()
        self.meet(metadata)
        import_ms = (time.perf_counter() - began) * 1e3
        self.row(kind="control", regions=self.args.regions,
                 control={"create_agent_ms": self.create_ms, "register_10000_ms": register_ms,
                          "metadata_bytes": len(metadata), "import_ms": import_ms})

    def transfer(self):
        import numpy

        args = self.args
        read = args.op == "read"
        pool_slots = max(args.pool // args.block, args.batch)
        pool_bytes = pool_slots * args.block
        self.stage("making the pool")
        pool = Pool(pool_bytes, args.block)
        pool.poison()
        self.agent.register_memory([(pool.address, pool_bytes, 0, "")], "DRAM")
        remote_address, metadata = self.ask("open_pool", pool_bytes, args.block)
        self.stage("importing the target's metadata")
        name = self.meet(metadata)
        self.ask("meet", self.agent.get_agent_metadata())
        self.stage("making the connection")
        self.agent.make_connection(name)

        own = slots_of(1, pool_slots, args.batch, args.layout)
        remote = slots_of(2, pool_slots, args.batch, args.layout)

        def descriptors(base, slots):
            lengths, device = numpy.full(args.batch, args.block), numpy.zeros(args.batch)
            table = numpy.column_stack([base + slots * args.block, lengths, device]).astype(numpy.uint64)
            return self.agent.get_xfer_descs(table, "DRAM")

        build = self.builder(name, descriptors(pool.address, own), descriptors(remote_address, remote))
        for seed in range(1, args.repetitions + 1):
            self.stage("preparing and the warm-up")
            with self.spinning_target():
                prepare_us, handle = self.timed_build(build)
                self.requests(handle, args.warmup)
            # After the warm-up: what it moved must not pass for what the timed requests move.
            self.stage("filling the pools")
            if read:
                self.ask("fill", seed)
                pool.poison()
            else:
                pool.fill(seed)
                self.ask("poison")
            self.stage(f"{args.iterations} requests of {args.batch} x {args.block} bytes")
            gc.disable()
            with self.spinning_target() as target_cpu:
                cpu = time.process_time()
                posts_us, totals_us = self.requests(handle, args.iterations)
                cpu = time.process_time() - cpu
            gc.enable()
            handle.release()
            self.stage("verifying every byte")
            if read:
                wrong = pool.mismatch(seed, own, remote)
            else:
                wrong = self.ask("check", seed, remote, own)
            if wrong:
                raise RuntimeError(f"verification: {wrong}")
            self.row(kind="transfer", op=args.op, memory="private", layout=args.layout, block_bytes=args.block,
                     batch=args.batch, pool_bytes=pool_bytes, iterations=args.iterations, api=args.api,
                     progress_thread=args.progress_thread,
                     bandwidth_gbps=args.block * args.batch * args.iterations / sum(totals_us) / 1e3,
                     latency_us=spread(totals_us), prepare_us=spread(prepare_us), post_us=spread(posts_us),
                     cpu_s={"initiator": cpu, "target": target_cpu[0]}, verified=True)

    @contextlib.contextmanager
    def spinning_target(self):
        """While it is open the target does nothing but make progress; afterwards its CPU seconds are inside."""
        cpu_s = []
        self.target.send(("spin",))
        yield cpu_s
        self.target.send(("stop",))
        cpu_s.append(self.result())

    def builder(self, name, local, remote):
        """Makes one ready request; with prepared lists only the selection of indices is in its price."""
        import numpy

        args, agent, op = self.args, self.agent, self.args.op.upper()
        if args.api == "initialize":
            return lambda: agent.initialize_xfer(op, local, remote, name)
        indices = numpy.arange(args.batch, dtype=numpy.int32)
        local_list = agent.prep_xfer_dlist("NIXL_INIT_AGENT", local)
        remote_list = agent.prep_xfer_dlist(name, remote)
        return lambda: agent.make_prepped_xfer(op, local_list, indices, remote_list, indices)

    def timed_build(self, build):
        took_us, handle = [], None
        for _ in range(self.args.builds):
            if handle:
                handle.release()
            began = time.perf_counter()
            handle = build()
            took_us.append((time.perf_counter() - began) * 1e6)
        return took_us, handle

    def requests(self, handle, count):
        """Posts `count` requests one after the other; microseconds of each post and of each whole request."""
        from nixl import _bindings

        done, pending = _bindings.NIXL_SUCCESS, _bindings.NIXL_IN_PROG
        post, state = self.agent.agent.postXferReq, self.agent.agent.getXferStatus
        clock, raw = time.perf_counter, handle._handle
        posts_us, totals_us = [], []
        for _ in range(count):
            began = clock()
            status = post(raw, b"")
            posted = clock()
            while status == pending:
                status = state(raw)
            ended = clock()
            if status != done:
                raise RuntimeError(f"NIXL reports {status} for a request")
            posts_us.append((posted - began) * 1e6)
            totals_us.append((ended - began) * 1e6)
        return posts_us, totals_us


def spread(samples):
    ordered = sorted(samples)
    last = len(ordered) - 1
    return {"p50": ordered[last // 2], "p99": ordered[min(last, int(last * 0.99 + 0.5))], "max": ordered[-1]}


def run_initiator(args, target, supervisor):
    try:
        if target is None:
            target = reach_target(args, supervisor)
        Initiator(args, target, supervisor).run()
    except BaseException as error:
        supervisor.send(("failed", f"{type(error).__name__}: {error}"))
    # Interpreter shutdown crashes in libraries that the wheel brings twice: leave without it.
    os._exit(0)


def meeting_place(args):
    host, _, port = args.meet.rpartition(":")
    return host, int(port)


def connection(stream):
    """What a pipe between the workers would be, over a socket."""
    stream.setblocking(True)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return multiprocessing.connection.Connection(stream.detach())


def reach_target(args, supervisor):
    """The connection to a target that is a program of its own and may start later."""
    supervisor.send(("stage", f"waiting for a target at {args.meet}"))
    until = time.monotonic() + args.deadline_s
    while True:
        try:
            return connection(socket.create_connection(meeting_place(args)))
        except ConnectionRefusedError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)


def await_initiator(args):
    """Waits for an initiator that is a program of its own, and is its target until it leaves."""
    with socket.create_server(meeting_place(args)) as listener:
        # A target that nobody comes to ends as well.
        listener.settimeout(args.deadline_s)
        try:
            stream, _ = listener.accept()
        except TimeoutError:
            print(f"nobody came to {args.meet} within {args.deadline_s} s", file=sys.stderr)
            return 2
    conn = connection(stream)
    run_target(args, conn)


def supervise(args):
    """Runs the workers and prints what the initiator says; the exit code."""
    # A fresh interpreter for each worker: none inherits another's threads or mappings.
    context = multiprocessing.get_context("spawn")
    supervisor_end, report_end = context.Pipe()
    initiator_end, target_end = (None, None) if args.role else context.Pipe()
    workers = [context.Process(target=run_initiator, args=(args, initiator_end, report_end), daemon=True)]
    if target_end:
        workers.append(context.Process(target=run_target, args=(args, target_end), daemon=True))
    for worker in workers:
        worker.start()
    for end in filter(None, (initiator_end, target_end, report_end)):
        end.close()
    doing, error = "the workers' start", None
    while error is None:
        if not supervisor_end.poll(args.deadline_s):
            error = f"no progress for {args.deadline_s} s in: {doing}"
            break
        try:
            kind, *given = supervisor_end.recv()
        except EOFError:
            error = f"the initiator ended in: {doing}"
            break
        if kind == "stage":
            doing = given[0]
        elif kind == "row":
            print(json.dumps(given[0]), flush=True)
        elif kind == "failed":
            error = f"{given[0]} (in: {doing})"
        else:
            break
    for worker in workers:
        worker.kill()
        worker.join()
    if error:
        failure = {"schema": SCHEMA, "engine": "nixl", "backend": args.backend, "error": error}
        print(json.dumps(failure), flush=True)
    return 2 if error else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["transfer", "control"])
    parser.add_argument("--backend", default="UCX")
    parser.add_argument("--backend-param", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--op", default="read", choices=["read", "write"])
    parser.add_argument("--block", type=size, default=size("32KiB"), help="a multiple of 8 bytes")
    parser.add_argument("--batch", type=int, default=12800)
    parser.add_argument("--pool", type=size, default=size("1GiB"), help="memory of each side that holds the slots")
    parser.add_argument("--layout", default="scattered", choices=["scattered", "contiguous"])
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--builds", type=int, default=10, help="how often a request is prepared, to time it")
    parser.add_argument("--repetitions", type=int, default=1)
    parser.add_argument("--api", default="initialize", choices=["initialize", "prepared"])
    parser.add_argument("--progress-thread", action="store_true")
    parser.add_argument("--regions", type=int, default=10000, help="control: how many regions are registered")
    parser.add_argument("--region-size", type=size, default=size("64KiB"))
    parser.add_argument("--deadline-s", type=float, default=60.0, help="the longest any one stage may take")
    parser.add_argument("--role", choices=["initiator", "target"], help="be this side only")
    parser.add_argument("--meet", metavar="HOST:PORT", help="where the two sides meet; the target listens there")
    args = parser.parse_args()
    if bool(args.role) != bool(args.meet):
        parser.error("--role and --meet go together")
    os.environ.setdefault("NIXL_LOG_LEVEL", "ERROR")
    sys.exit(await_initiator(args) if args.role == "target" else supervise(args))


if __name__ == "__main__":
    main()
