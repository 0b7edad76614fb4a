"""Repositories by name: the fetched files, the log, and the errors if one is not available. The hub is a server on this
machine. The client runs in separate processes, since it reads its settings only once.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import weights
import zoo
from tests.ranks import command, in_process
from tests.weights.checkpoints import read, write
from tests.weights.hub import COMMIT, Hub, etag, serve
from weights.sources import locate, locate_tokenizer, repository
from zoo.errors import NotAvailable, UsageError, ZooError

Saved = Callable[[str], Path]
DENSE = "qwen3-0.6b"
PAGE = "http://127.0.0.1"
UNREAD = {"README.md": b"r", "pytorch_model.bin": b"p", "original/model.safetensors": b"o", "onnx/config.json": b"c"}


@pytest.fixture(scope="module")
def hub(saved: Saved, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    def files(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.iterdir()} | UNREAD

    config, tensors = read(saved(DENSE))
    shards = write(tmp_path_factory.mktemp("hub") / "shards", config, tensors, shards=3)
    single = files(saved(DENSE))
    outside = json.dumps({"weight_map": {"x": "../../../outside.safetensors"}}).encode()
    repositories = {
        "tiny/single": single | {"tokenizer.json": b"{}", "chat_template.jinja": b"t"},
        "tiny/text": {"tokenizer.json": b"{}", "chat_template.jinja": b"t", "config.json": b"{}", **UNREAD},
        "tiny/shards": files(shards) | {"consolidated.safetensors": b"everything again"},
        "tiny/pickle": {"config.json": b"{}", "pytorch_model.bin": b"p"},
        "tiny/large": {"config.json": b"{}", "model.safetensors": os.urandom(25 * 10**6)},
        "tiny/awq": {"config.json": b'{"quantization_config": {"quant_method": "awq"}}', "model.safetensors": b"w"},
        "tiny/hostile": {"config.json": b"{}", "model.safetensors.index.json": outside},
        **dict.fromkeys(("tiny/gated", "tiny/ill"), single),
    }
    with serve(Hub(repositories, refuse={"tiny/gated": (403, "GatedRepo"), "tiny/ill": (500, "")})) as hub:
        yield hub


@pytest.fixture
def ask(hub: Hub, tmp_path: Path) -> Callable[..., list[tuple[str, str]]]:
    """The results of calls of `locate`, in one process with its own, empty cache in tmp_path/home."""

    def ask(*calls: list[Any], **environment: str) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = in_process(located, calls, environment=settings(hub, tmp_path) | environment)
        return found

    return ask


def located(calls: list[list[Any]]) -> list[tuple[str, str]]:
    """Returns the result of each of these calls: a path, or an error."""
    found = []
    for call in calls:
        try:
            found.append(("path", str(locate(*call))))
        except ZooError as error:
            found.append((type(error).__name__, str(error)))
    return found


def settings(hub: Hub, tmp_path: Path) -> dict[str, str]:
    there = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    return there | {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}


def test_no_weights_are_fetched_in_a_scheme_that_is_not_read(hub: Hub, ask: Callable[..., Any]) -> None:
    """Weights that would be refused are not downloaded."""
    [(kind, said)] = ask(["tiny/awq"])
    assert kind == "MalformedError"
    assert "quantised with a scheme that is not supported, AWQ" in said
    assert hub.fetched("tiny/awq") == {"config.json"}


def cache(tmp_path: Path, repo: str) -> Path:
    return tmp_path / "home/hub" / f"models--{repo.replace('/', '--')}"


def snapshot(tmp_path: Path, repo: str) -> Path:
    return cache(tmp_path, repo) / "snapshots" / COMMIT


def test_of_a_tokenizers_source_the_weights_are_not_fetched(hub: Hub, tmp_path: Path) -> None:
    found = in_process(tokenizers_at, ["tiny/text", "tiny/text@main"], environment=settings(hub, tmp_path))
    assert found == [str(snapshot(tmp_path, "tiny/text"))] * 2
    assert hub.fetched("tiny/text") == {"config.json", "tokenizer.json", "chat_template.jinja"}


def tokenizers_at(sources: list[str]) -> list[str]:
    return [str(locate_tokenizer(source)) for source in sources]


def test_only_the_files_that_are_read_are_fetched(hub: Hub, ask: Callable, tmp_path: Path) -> None:
    calls = [["tiny/single"], ["tiny/shards@main"], ["tiny/shards", COMMIT]]
    answers = ask(*calls, HF_TOKEN="hf_a_token")
    assert answers == [("path", str(snapshot(tmp_path, call[0].partition("@")[0]))) for call in calls]
    assert {path.name for path in snapshot(tmp_path, "tiny/single").iterdir()} == {
        *("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja")
    }
    assert hub.fetched("tiny/shards") == {
        *("config.json", "model.safetensors.index.json"),
        *(f"model-{i:05}-of-00003.safetensors" for i in (1, 2, 3)),
    }
    assert hub.fetched("tiny/single").isdisjoint(UNREAD)
    asked = [headers.get("authorization") for _, path, headers in hub.requests if "/tiny/single/" in path]
    assert set(asked) == {"Bearer hf_a_token"}


def test_repositories_that_are_not_available(ask: Callable) -> None:
    answers = ask(
        ["tiny/single@nope"], ["tiny/none"], ["tiny/gated"], ["tiny/ill"], ["tiny/pickle"], ["tiny/none", None, True]
    )
    assert {kind for kind, _ in answers} == {"NotAvailable"}
    expected = [
        ["tiny/single@nope: there is no such revision; see the branches, tags and commits at ", "/tiny/single/commits"],
        ["tiny/none: there is no such repository, or it is private; see ", "/tiny/none, or log in with `hf"],
        ["tiny/gated: access is gated; ask for it at ", "/tiny/gated, then log in with `hf auth login` or HF"],
        ["tiny/ill: not in the download cache, and the hub cannot be reached: HfHubHTTPError: Server error '500"],
        [f"tiny/pickle at commit {COMMIT}: model.safetensors not in the repository; see which files it has"],
        ["tiny/none: not in the download cache, and --offline (offline=) forbids downloads; download once without it"],
    ]
    for (_, told), phrases in zip(answers, expected, strict=True):
        assert all(phrase in told for phrase in phrases), told
        assert "\n" not in told


def test_an_index_that_leaves_the_folder_fetches_nothing(hub: Hub, ask: Callable) -> None:
    ((kind, told),) = ask(["tiny/hostile"])
    assert kind == "MalformedError"
    assert "not the plain name of a .safetensors file: '../../../outside.safetensors'" in told
    assert hub.fetched("tiny/hostile") == {"config.json", "model.safetensors.index.json"}


def test_without_a_network(ask: Callable, tmp_path: Path) -> None:
    """The cache is used where it has the files, and a missing file is named."""
    found, other, gone = (
        str(snapshot(tmp_path, "tiny/single")),
        snapshot(tmp_path, "tiny/shards"),
        "model-00002-of-00003",
    )
    call, offline, without = ["tiny/single"], ["tiny/single", None, True], ["tiny/shards"]
    assert ask(call, without) == [("path", found), ("path", str(other))]
    (other / f"{gone}.safetensors").unlink()
    nowhere = {"HF_ENDPOINT": f"{PAGE}:9"}
    *answers, (kind, told) = ask(call, offline, ["tiny/single", COMMIT, True], [*without, None, True], **nowhere)
    assert answers == [("path", found)] * 3
    assert kind == "NotAvailable"
    assert f"{gone}.safetensors not in the download cache, and --offline (offline=) forbids downloads; download" in told
    answer, (_, told) = ask(call, without, HF_HUB_OFFLINE="1")
    assert answer == ("path", found)
    assert f"{gone}.safetensors not in the download cache, and HF_HUB_OFFLINE forbids downloads" in told


@pytest.mark.slow  # the hub's client tries again five times, at growing intervals
def test_a_missing_file_without_a_network(ask: Callable, tmp_path: Path) -> None:
    assert ask(["tiny/shards"]) == [("path", str(snapshot(tmp_path, "tiny/shards")))]
    (snapshot(tmp_path, "tiny/shards") / "model-00002-of-00003.safetensors").unlink()
    ((kind, told),) = ask(["tiny/shards"], HF_ENDPOINT=f"{PAGE}:9")
    assert kind == "NotAvailable"
    assert "tiny/shards" in told
    assert "the hub cannot be reached: ConnectError: " in told


def test_a_cache_that_another_tool_has_filled(saved: Saved, ask: Callable, tmp_path: Path) -> None:
    """The cache has links into blobs/, a branch in refs/, and no list of the repository's other files."""
    home = cache(tmp_path, "tiny/other")
    for folder in ("blobs", "refs", f"snapshots/{COMMIT}"):
        (home / folder).mkdir(parents=True)
    (home / "refs/main").write_text(COMMIT)
    for path in saved(DENSE).iterdir():
        content = path.read_bytes()
        (home / "blobs" / etag(content)).write_bytes(content)
        (home / "snapshots" / COMMIT / path.name).symlink_to(f"../../blobs/{etag(content)}")
    answers = ask(["tiny/other", None, True], ["tiny/other@other", None, True])
    assert answers[0] == ("path", str(home / "snapshots" / COMMIT))
    assert "tiny/other@other: not in the download cache" in answers[1][1]
    assert weights.load(answers[0][1]).spec == weights.load(saved(DENSE)).spec
    (home / "snapshots" / COMMIT / "model.safetensors").unlink()
    ((kind, told),) = ask(["tiny/other", None, True])
    assert kind == "NotAvailable"
    assert "model.safetensors not in the download cache, and --offline (offline=) forbids downloads" in told


def test_a_download_goes_on_where_it_stopped(hub: Hub, ask: Callable, tmp_path: Path) -> None:
    """If the connection breaks, it continues in the middle of the file; the next call fetches only the missing
    files."""
    content = hub.repositories["tiny/large"]["model.safetensors"]
    path, folder = f"/tiny/large/resolve/{COMMIT}/model.safetensors", snapshot(tmp_path, "tiny/large")
    hub.breaks.add(path)
    assert ask(["tiny/large"]) == [("path", str(folder))]
    ranges = [headers.get("range") for method, at, headers in hub.requests if (method, at) == ("GET", path)]
    assert len(ranges) == 2
    assert 0 < int(ranges[1].removeprefix("bytes=").removesuffix("-")) <= len(content) // 2
    assert (folder / "model.safetensors").read_bytes() == content
    (folder / "config.json").unlink()
    before = len(hub.requests)
    ask(["tiny/large"])
    assert {at.rpartition("/")[2] for _, at, _ in hub.requests[before:] if "/resolve/" in at} == {"config.json"}


def test_from_the_command_line(hub: Hub, saved: Saved, tmp_path: Path) -> None:
    """Data on stdout; the repository and its commit on stderr, without a bar, since it is not a terminal."""
    args, there = ["weights.generate", "--tokens", "5,6,7", "--max-new-tokens", "4"], settings(hub, tmp_path)
    code, out, err = in_process(command, *args, "tiny/shards", environment=there)
    assert (code, out) == (0, command(*args, str(saved(DENSE)))[1]), err
    assert out.count(",") == 3
    assert err.splitlines()[0] == f"tiny/shards at commit {COMMIT}"
    assert len(err.splitlines()) == 3, err
    shutil.rmtree(tmp_path / "home")
    code, out, err = in_process(command, *args, "tiny/shards", "--offline", environment=there)
    assert (code, out) == (3, "")
    assert err.startswith("error: tiny/shards: not in the download cache, and --offline")


def test_names() -> None:
    assert repository("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"
    assert repository("qwen3-0.6b") == repository("qwen3") == "Qwen/Qwen3-0.6B"
    for name in ("nothing", "./a/b", "a/b/c", "../b", "a b/c", "models/x.gguf", "", "a/"):
        with pytest.raises(NotAvailable, match=r"there is no folder and no \.gguf file .* nor a preset"):
            repository(name)


def test_paths(saved: Saved, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "weights"):
        assert locate(str(saved(DENSE))) == saved(DENSE)
    assert not caplog.text
    with pytest.raises(UsageError, match="has no revisions"):
        locate(saved(DENSE), "main")
    with pytest.raises(UsageError, match="asks for revision 'a', and the call for 'b'"):
        locate("org/name@a", "b")


SMALLEST = {
    family.__name__.rpartition(".")[2]: min(family.SIZES, key=lambda name: family.SIZES[name].params)
    for family in zoo.architectures.families().values()
}


@pytest.mark.network
@pytest.mark.parametrize("family", SMALLEST)
def test_released_models(family: str) -> None:
    """HF_HUB_OFFLINE=0 pytest -m network. The smallest of each family: that of DeepSeek is 700 GB, Mistral's 48."""
    name = SMALLEST[family]
    model = weights.load(name)
    assert model.spec == zoo.spec(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == zoo.catalog.sizes()[name].params
