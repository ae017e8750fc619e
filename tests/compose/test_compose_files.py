"""What docker-compose.yml, its overrides and the Dockerfiles promise, read by the current Compose binary."""

from __future__ import annotations

import re
import subprocess
import tomllib
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from support.compose import FILES, UP, compose_environment, configuration, tool
from support.podman import PACKAGES, PROJECT
from support.waiting import LIMIT_S

OVERRIDES = FILES[1:]
TOGETHER = [(FILES[0], *chosen) for count in range(4) for chosen in combinations(OVERRIDES, count)]
DOCKERFILES = ("edge_agent/Dockerfile", "server_worker/Dockerfile", "tests/compose/stand_ins/Dockerfile")
OWN_IMAGES = {"edge_agent": "edge_agent", "server_worker": "server_worker", "lighthouse": "server_worker"}
"""Services whose image is built here, and the folder of its Dockerfile."""


def services(*files: str) -> dict[str, Any]:
    return dict(configuration(*files)["services"])


def lint(*command: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        input=text,
        cwd=PROJECT,
        env=compose_environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


@pytest.mark.parametrize("files", TOGETHER, ids=lambda files: "+".join(file.split(".")[1] for file in files))
def test_compose_reads_every_combination_of_files(files: tuple[str, ...]) -> None:
    assert set(services(*files)) >= {"broker", "server_worker", "prometheus", "grafana", "edge_agent"}


@pytest.mark.parametrize("file", FILES)
def test_the_files_follow_the_compose_specification(file: str, tmp_path: Path) -> None:
    # `!override` is Compose's own tag, which the specification's schema does not know.
    text = (PROJECT / file).read_text().replace("!override ", "")
    checked = tmp_path / "docker-compose.yml"
    checked.write_text(text)
    command = (tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(checked))
    assert lint(*command).returncode == 0, lint(*command).stdout
    checked.write_text(text.replace("services:", "services:\n  planted:\n    dependson: [broker]\n"))
    assert "dependson" in lint(*command).stdout


@pytest.mark.parametrize("file", DOCKERFILES)
def test_hadolint_finds_nothing_in_the_dockerfiles(file: str) -> None:
    text = (PROJECT / file).read_text()
    assert lint(tool("hadolint"), "-", text=text).stdout == ""
    assert "DL3008" in lint(tool("hadolint"), "-", text=f"{text}\nRUN apt-get install -y curl\n").stdout


def test_the_three_services_of_the_readme_bring_prometheus_and_nothing_else() -> None:
    needed, found = list(UP), set[str]()
    while needed:
        name = needed.pop()
        found.add(name)
        needed += [other for other in services()[name].get("depends_on", {}) if other not in found]
    assert found == {"broker", "server_worker", "prometheus", "grafana"}
    started = [name for name, service in services().items() if not service.get("profiles")]
    assert sorted(started) == sorted(found)


def test_every_image_has_a_pinned_tag_behind_a_variable() -> None:
    for name, service in configuration(FILES[0], interpolate=False)["services"].items():
        assert re.search(r":\$\{[A-Z]+_TAG:-v?\d+\.\d+[^}]*\}$", service["image"]), name
    for folder in set(OWN_IMAGES.values()):
        base = services()[folder]["build"]["args"]["BASE"]
        assert re.fullmatch(r"python:3\.\d+-slim", base)
        assert f"ARG BASE={base}\n" in (PROJECT / folder / "Dockerfile").read_text()


def test_our_images_carry_the_projects_version_and_are_built_here() -> None:
    version = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["version"]
    for name, folder in OWN_IMAGES.items():
        service = services(*FILES[:2])[name]
        assert service["image"] == f"cutlayer/{folder.replace('_', '-')}:{version}"
        assert service["pull_policy"] == "never"  # what a registry has under these names is not ours


@pytest.mark.parametrize("files", [FILES[:1], FILES])
def test_ports_are_published_on_this_machine_only(files: tuple[str, ...]) -> None:
    published = {
        (name, port["published"]): port["host_ip"]
        for name, service in services(*files).items()
        for port in service.get("ports", [])
    }
    mqtt = "8883" if "docker-compose.tls.yml" in files else "1883"
    assert published == dict.fromkeys([("broker", mqtt), ("prometheus", "9090"), ("grafana", "3000")], "127.0.0.1")


@pytest.mark.parametrize("name", ["broker", "server_worker", "prometheus", "grafana", "edge_agent", "lighthouse"])
def test_a_container_may_do_no_more_than_it_must(name: str) -> None:
    service = services(*FILES)[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["init"] is True
    assert int(service["mem_limit"]) > 0
    assert 0 < service["pids_limit"] <= 512
    assert service["restart"] in ("unless-stopped", "on-failure")
    assert service["logging"]["options"]["max-file"] == "3"
    assert not {"privileged", "container_name", "network_mode", "pid", "ipc", "devices", "cap_add"} & set(service)
    if name in OWN_IMAGES:
        users = re.findall(r"(?m)^USER (\S+)$", (PROJECT / OWN_IMAGES[name] / "Dockerfile").read_text())
        assert users == ["10001:10001"]
    else:
        assert int(service["user"].split(":")[0]) > 0


@pytest.mark.parametrize("name", ["broker", "server_worker", "prometheus", "grafana", "lighthouse"])
def test_a_service_that_others_wait_for_has_a_health_check(name: str) -> None:
    check = services(*FILES)[name]["healthcheck"]
    assert check["test"][0] in ("CMD", "CMD-SHELL")
    assert check["interval"] == "5s"


def test_configurations_are_mounted_for_reading_and_are_in_the_repository() -> None:
    tracked = lint("git", "ls-files").stdout.splitlines()
    for name, service in services(*FILES[:3]).items():
        for mount in service.get("volumes", []):
            if mount["type"] == "bind":
                path = Path(mount["source"]).relative_to(PROJECT).as_posix()
                assert mount["read_only"] is True, name
                assert any(file == path or file.startswith(f"{path}/") for file in tracked), path


def test_what_is_worth_keeping_is_in_named_volumes() -> None:
    kept = {
        (name, mount["source"], mount["target"])
        for name, service in services(*FILES).items()
        for mount in service.get("volumes", [])
        if mount["type"] == "volume"
    }
    assert kept == {
        ("server_worker", "runs", "/cutlayer/runs"),
        ("prometheus", "prometheus_data", "/prometheus"),
        ("grafana", "grafana_data", "/var/lib/grafana"),
        ("edge_agent", "shards", "/run/shards"),
    }


def test_grafana_shows_the_overview_to_anybody_and_lets_nobody_log_in() -> None:
    settings = services()["grafana"]["environment"]
    assert settings["GF_AUTH_ANONYMOUS_ENABLED"] == "true"
    assert settings["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert settings["GF_AUTH_DISABLE_LOGIN_FORM"] == "true"
    assert settings["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    home = Path(settings["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    mounts = {mount["target"]: mount["source"] for mount in services()["grafana"]["volumes"]}
    assert (Path(mounts[str(home.parent)]) / home.name).is_file()


def test_passwords_and_keys_come_as_files_that_git_ignores() -> None:
    secrets = configuration(*FILES)["secrets"]
    assert len(secrets) == 8
    for secret in secrets.values():
        assert Path(secret["file"]).parent == PROJECT / "secrets"
    assert lint("git", "check-ignore", "secrets/broker.key").returncode == 0
    for service in services(*FILES).values():
        for key, value in service.get("environment", {}).items():
            assert "PASSWORD" not in key or str(value).startswith("/run/secrets/")


def test_the_build_context_holds_what_is_listed_only() -> None:
    lines = (PROJECT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    listed = [rule.removeprefix("!") for rule in rules[1:] if rule.startswith("!")]
    assert all((PROJECT / path).exists() for path in listed)
    assert not {"secrets", "runs", ".git", ".venv", "tests"} & {path.split("/")[0] for path in listed}
    for file in DOCKERFILES[:2]:
        for source in re.findall(r"(?m)^COPY (?!--from)(?:--\S+ )?(.+) \S+$", (PROJECT / file).read_text()):
            for path in source.split():
                assert any(f"{name}/".startswith(f"{path.rstrip('/')}/") for name in listed), path


def test_the_broker_with_tls_has_the_settings_of_the_one_without() -> None:
    plain, with_tls = ((PROJECT / "broker" / name).read_text() for name in ("mosquitto.conf", "mosquitto.tls.conf"))
    assert with_tls.split("# --- Measured")[1] == plain.split("# --- Measured")[1]


def test_the_script_installs_what_the_test_of_the_containers_needs() -> None:
    assert f'podman) echo "{PACKAGES}" ;;\n' in (PROJECT / "scripts" / "install_test_programs.sh").read_text()
