"""The service's life: GenRM servers start, answer, die, or are told to stop. They are small HTTP servers here."""

import asyncio
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from reward_server.client import RewardClient
from reward_server.config import RewardSettings
from reward_server.main import listen, main, serve
from reward_server.scale import carry_out
from reward_server.startup import GenrmProcess
from tests.reward_server.toy_hub import MODEL, ToyHub, serving
from wire.errors import ConfigError, ServiceError
from wire.process import free_port

SERVER = """
import http.server, sys, time
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *args): pass
time.sleep(float(sys.argv[2]))
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def settings(tmp_path):
    return RewardSettings(log_dir=str(tmp_path), startup_timeout_s=60.0)


def genrm(tmp_path, code=SERVER, delay_s=0.0, name="judge-0"):
    port = free_port("127.0.0.1")
    command = [sys.executable, "-c", code, str(port), str(delay_s)]
    url = f"http://127.0.0.1:{port}"
    return GenrmProcess(name, command, dict(os.environ), tmp_path / f"{name}.log", url, "lower judge_max_num_seqs")


async def printed_url(capsys, serving):
    text = ""
    while "reward service" not in text:
        if serving.done():
            serving.result()  # raises what ended it
            pytest.fail("the service ended before it printed its URL")
        await asyncio.sleep(0.02)
        text += capsys.readouterr().out
    return text.split()[-1]


def health(url):
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as reply:
            return reply.status
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


async def wait_for_api(url):
    while True:
        try:
            return await asyncio.to_thread(health, url)
        except OSError:
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
async def test_the_url_is_printed_when_the_genrm_answers_and_a_signal_ends_both(settings, tmp_path, capsys, sign):
    process = genrm(tmp_path)
    with listen(settings) as listener:
        serving = asyncio.create_task(serve(settings, "secret", listener, lambda *_: process))
        url = await printed_url(capsys, serving)
        assert await asyncio.to_thread(health, url) == 200
        os.kill(os.getpid(), sign)
        await asyncio.wait_for(serving, 10)
    assert not process.is_alive()


async def test_the_api_is_open_and_unhealthy_while_the_genrm_loads_and_stops_when_told_to(settings, tmp_path):
    process = genrm(tmp_path, delay_s=60)
    with listen(settings) as listener:
        serving = asyncio.create_task(serve(settings, "secret", listener, lambda *_: process))
        assert await wait_for_api(f"http://127.0.0.1:{listener.getsockname()[1]}") == 503
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(serving, 10)
    assert not process.is_alive()


async def test_a_genrm_that_dies_is_started_again_and_the_service_goes_on(settings, tmp_path, capsys):
    process = genrm(tmp_path)
    with listen(settings) as listener:
        serving = asyncio.create_task(serve(settings, "secret", listener, lambda *_: process))
        url = await printed_url(capsys, serving)
        first = process.pid
        os.killpg(first, signal.SIGKILL)
        while process.pid == first or not process.is_alive():
            assert not serving.done()
            await asyncio.sleep(0.05)
        while await wait_for_api(url) != 200:
            await asyncio.sleep(0.05)
        assert "judge-0 ended with exit code -9" in capsys.readouterr().err
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(serving, 10)


async def test_a_second_server_that_cannot_start_leaves_the_service_to_the_first(settings, tmp_path, capsys):
    settings.judge_servers = 2
    processes = [genrm(tmp_path), genrm(tmp_path, code="raise SystemExit('no such device')", name="judge-1")]
    with listen(settings) as listener:
        serving = asyncio.create_task(serve(settings, "secret", listener, lambda _, index: processes[index]))
        url = await printed_url(capsys, serving)
        async with RewardClient(url, "secret", timeout_s=10) as client:
            while len((await carry_out(client, ["status"]))["servers"]) > 1:
                assert not serving.done()
                await asyncio.sleep(0.05)
            assert (await carry_out(client, ["status"]))["count"] == 1
        assert await asyncio.to_thread(health, url) == 200 and not processes[1].is_alive()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(serving, 10)


async def test_servers_are_added_and_taken_away_by_count_while_it_serves(settings, tmp_path, capsys):
    processes = [genrm(tmp_path, name=f"judge-{index}") for index in range(3)]
    with listen(settings) as listener:
        serving = asyncio.create_task(serve(settings, "secret", listener, lambda _, index: processes[index]))
        url = await printed_url(capsys, serving)
        async with RewardClient(url, "secret", timeout_s=10) as client:
            await carry_out(client, ["+2"])
            while sum(s["state"] == "ready" for s in (await carry_out(client, ["status"]))["servers"]) < 3:
                await asyncio.sleep(0.05)
            await carry_out(client, ["1"])
            while len((await carry_out(client, ["status"]))["servers"]) > 1:
                await asyncio.sleep(0.05)
            while any(process.is_alive() for process in processes[1:]):
                await asyncio.sleep(0.05)
            assert processes[0].is_alive()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(serving, 10)
    assert not processes[0].is_alive()


async def test_a_genrm_without_memory_says_what_to_lower(settings, tmp_path):
    process = genrm(tmp_path, code="raise SystemExit('torch.OutOfMemoryError: CUDA out of memory')")
    with listen(settings) as listener, pytest.raises(ServiceError, match=r"exit code 1.*lower judge_max_num_seqs"):
        await serve(settings, "secret", listener, lambda *_: process)


async def test_a_genrm_that_never_answers_is_given_up_and_stopped(settings, tmp_path):
    settings.startup_timeout_s = 0.3
    process = genrm(tmp_path, delay_s=60)
    with listen(settings) as listener, pytest.raises(ServiceError, match=r"no GenRM server answered .*judge-0\.log"):
        await serve(settings, "secret", listener, lambda *_: process)
    assert not process.is_alive()


def test_a_taken_port_is_a_mistake_of_the_settings(settings):
    with listen(settings) as listener:
        settings.reward_port = listener.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"reward_port {settings.reward_port} .*in use"):
            listen(settings)


def test_a_mistake_is_found_before_a_token_is_made_or_a_server_started(tmp_path):
    token = tmp_path / "token"
    with pytest.raises(ConfigError, match="judge_model_name_or_path"):
        main(["--judge_model_name_or_path", "./nowhere", "--token_file", str(token), "--log_dir", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_the_program_ends_with_code_2_and_one_line_on_a_mistake():
    command = [sys.executable, "-m", "reward_server.main", "--judge_model_name_or_path", "./nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2 and "error: judge_model_name_or_path" in done.stderr.splitlines()[-1]


def test_a_judge_that_cannot_be_fetched_ends_the_program_with_code_2_and_its_reason(tmp_path):
    (tmp_path / "repository").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "repository" / name).write_text("{}")
    with serving(ToyHub(tmp_path / "repository", refusal=(403, "GatedRepo"))) as hub:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
        flags = ["--judge_model_name_or_path", MODEL, "--device", "cpu", "--judge_tensor_parallel_size", "1"]
        flags += ["--token_file", str(tmp_path / "token"), "--log_dir", str(tmp_path)]
        command = [sys.executable, "-m", "reward_server.main", *flags]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=90, env=environment)
    assert done.returncode == 2, done.stderr
    assert "error: judge-0: judge_model_name_or_path 'toys/judge' is gated" in done.stderr.splitlines()[-1]
