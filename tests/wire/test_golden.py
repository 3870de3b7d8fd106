"""Exact bytes of the main answers: what changes here, clients may notice."""

from retort.core.files import FileEntry
from retort.core.run import Answer, OutputFile, Status
from retort.errors import RunNotFound, SessionExists, TooManyFiles
from retort.wire.errors import problem
from retort.wire.files import TarParts, listing_answer
from retort.wire.runs import (
    complete_answer,
    execute_answer,
    stream_error,
    stream_messages,
    stream_stopping,
)
from retort.wire.sessions import (
    Match,
    ServicePort,
    Stats,
    create_answer,
    destroy_answer,
    matches_answer,
)
from retort.wire.versions import KNOWN


def url(name):
    return f"http://h:1/f/t0ken/{name}"


RUN = "5f2c9a7d0b3e4c61a8d92e7f10b4c35d"
UUID = "0b8f2f6e-6f8c-4d0e-9d7c-5a1f1f0f2b11"


def test_execute():
    answer = Answer(RUN, Status.BUILD_FINISHED, 0, (("stdout", "gcc main.c -o main\n"),))
    assert execute_answer(answer, file_url=url).decode() == (
        '{"result":{"runId":"5f2c9a7d0b3e4c61a8d92e7f10b4c35d","status":"build-finished",'
        '"exitCode":0,"console":[["stdout","gcc main.c -o main\\n"]],"options":null,"files":[]}}'
    )


def test_execute_waiting_for_input():
    console = (("stdout", "name? "), ("stderr", "\x1b[1mß€"))
    answer = Answer("r1", Status.WAITING_INPUT, None, console)
    assert execute_answer(answer, file_url=url).decode() == (
        '{"result":{"runId":"r1","status":"waiting-input","exitCode":null,'
        '"console":[["stdout","name? "],["stderr","\\u001b[1mß€"]],'
        '"options":{"is_password":false},"files":[]}}'
    )


def test_execute_finished_with_files():
    answer = Answer("r1", Status.FINISHED, 139, (), (OutputFile("plot.png"),))
    assert execute_answer(answer, file_url=url).decode() == (
        '{"result":{"runId":"r1","status":"finished","exitCode":139,"console":[],"options":null,'
        '"files":[{"name":"plot.png","url":"http://h:1/f/t0ken/plot.png"}]}}'
    )


def test_execute_while_the_session_is_destroyed():
    answer = Answer("r1", Status.FINISHED, 130, is_cancelled=True)
    assert execute_answer(answer, file_url=url).decode() == (
        '{"result":{"runId":"r1","status":"finished","exitCode":130,"console":[],"options":{},'
        '"files":[]}}'
    )


def test_complete():
    assert complete_answer(["print", "private"]) == b'{"result":["print","private"]}'


def test_stream():
    answer = Answer("r1", Status.CONTINUED, None, (("stdout", "größe 😀"),))
    [message] = stream_messages(answer, file_url=url)
    assert message.decode() == (
        '{"status":"continued","exitCode":null,"console":[["stdout","größe 😀"]],"options":null,'
        '"files":[]}'
    )
    assert stream_error("bad") == b'{"status":"error","msg":"bad","console":[]}'
    assert stream_stopping("bye") == b'{"status":"server-restarting","msg":"bye","console":[]}'


def test_create():
    ports = [ServicePort("8080", "preopen", (8080,))]
    assert create_answer(UUID, "demo-1", service_ports=ports).decode() == (
        '{"sessionId":"0b8f2f6e-6f8c-4d0e-9d7c-5a1f1f0f2b11","sessionName":"demo-1",'
        '"sessId":"demo-1","kernelId":"demo-1","status":"RUNNING",'
        '"servicePorts":[{"name":"8080","protocol":"preopen","ports":[8080]}],"created":true}'
    )
    again = create_answer(UUID, "demo-1", status="PENDING", is_new=False)
    assert again.endswith(b'"status":"PENDING","servicePorts":[],"created":false}')


def test_destroy():
    stats = Stats(cpu_used=1234, mem_max_bytes=1048576, mem_cur_bytes=524288, io_read_bytes=4096)
    flat = (
        '"cpu_used":1234,"mem_max_bytes":1048576,"mem_cur_bytes":524288,"net_rx_bytes":0,'
        '"net_tx_bytes":0,"io_read_bytes":4096,"io_write_bytes":0,"io_max_scratch_size":0,'
        '"io_cur_scratch_size":0}}'
    )
    new = destroy_answer(stats, KNOWN[7]).decode()
    assert new == '{"stats":{"version":1,"status":"terminated",' + flat
    assert destroy_answer(stats, KNOWN[2]).decode() == '{"stats":{' + flat


def test_listing():
    entries = [FileEntry(b"main.c", 0o100644, 74, 1709600523.4, 1709600523.4, 1709600523.4)]
    assert listing_answer(entries, "/home/work").decode() == (
        r'{"files":"[{\"mode\":\"-rw-r--r--\",\"size\":74,\"ctime\":1709600523.4,'
        r'\"mtime\":1709600523.4,\"atime\":1709600523.4,\"filename\":\"main.c\"}]",'
        r'"errors":"","folder_path":"/home/work","abspath":"/home/work"}'
    )


def test_download():
    parts = TarParts("b0")
    assert parts.head(3) + b"tar" + parts.TAIL + parts.closing == (
        b"--b0\r\nContent-Encoding: identity\r\nContent-Type: application/x-tar\r\n"
        b"Content-Length: 3\r\n\r\ntar\r\n--b0--\r\n"
    )


def test_problems():
    assert problem(TooManyFiles()).body == (
        b'{"type":"https://api.backend.ai/probs/invalid-api-params",'
        b'"title":"Missing or invalid API parameters.","msg":"Too many files"}'
    )
    assert problem(RunNotFound("gone")).body == (
        b'{"type":"https://api.backend.ai/probs/object-not-found","title":"No such run.",'
        b'"msg":"gone"}'
    )
    assert problem(SessionExists(UUID)).body == (
        b'{"type":"https://api.backend.ai/probs/session-already-exists",'
        b'"title":"The session already exists but you requested not to reuse existing one.",'
        b'"msg":"The session already exists but you requested not to reuse existing one.",'
        b'"data":{"existingSessionId":"0b8f2f6e-6f8c-4d0e-9d7c-5a1f1f0f2b11"}}'
    )


def test_matches_are_named_with_id_and_status():
    assert matches_answer([Match("i", "n", "RUNNING")]) == (
        b'{"matches":[{"id":"i","name":"n","status":"RUNNING"}]}'
    )
