"""cluster.yaml with Ray's bootstrap and moto's EC2, and all files against what they install and run."""

from __future__ import annotations

import copy
import fnmatch
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import boto3
import pytest
import yaml
from click.testing import CliRunner
from moto import mock_aws
from ray.scripts import scripts

from tests.conftest import ROOT
from tune_mnist.cli.flags import parse_settings
from tune_mnist.cluster.resources import UNCOUNTED_SLOTS, count_slots
from tune_mnist.run.settings import Settings

AWS, ON_PREMISES = ROOT / "cluster.yaml", ROOT / "cluster-onprem.yaml"
KUBERAY, DOCKERFILE = ROOT / "cluster-kuberay.yaml", ROOT / "Dockerfile"
REGION, ZONES = "eu-central-1", ["eu-central-1a", "eu-central-1c"]
WORKER_TYPES = ["gpu_spot", "gpu_on_demand", "cpu"]
Config = dict[str, Any]


class Launcher:
    """The steps of `ray up` that need no node; Ray's private parts are used only here and in its fixture."""

    def bootstrap(self, config: Config) -> Config:
        from ray.autoscaler._private import commands

        bootstrapped: Config = commands._bootstrap_config(copy.deepcopy(config), no_config_cache=True)
        return bootstrapped

    def provider(self, config: Config) -> Any:
        from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

        return AWSNodeProvider(config["provider"], config["cluster_name"])  # type: ignore[no-untyped-call]

    def start(self, provider: Any, config: Config, node_type: str, count: int = 1) -> None:
        from ray.autoscaler import tags

        kind = tags.NODE_KIND_HEAD if node_type == config["head_node_type"] else tags.NODE_KIND_WORKER
        provider.create_node(
            config["available_node_types"][node_type]["node_config"],
            {tags.TAG_RAY_NODE_KIND: kind, tags.TAG_RAY_USER_NODE_TYPE: node_type},
            count,
        )

    def rsync_filters(self, config: Config) -> list[str]:
        from ray.autoscaler._private.command_runner import SSHCommandRunner

        runner = mock.Mock(spec=SSHCommandRunner)
        create: Callable[..., list[str]] = SSHCommandRunner._create_rsync_filter_args
        return create(runner, config)

    def kuberay_node_types(self, cluster: Config) -> Config:
        from ray.autoscaler._private.kuberay import autoscaling_config

        resource = {"metadata": {"name": "tune-mnist", "namespace": "default"}, "spec": cluster}
        config = autoscaling_config._derive_autoscaling_config_from_ray_cr(resource)
        node_types: Config = config["available_node_types"]
        return node_types

    def clear_caches(self) -> None:
        from ray.autoscaler._private import providers
        from ray.autoscaler._private.aws import config, utils

        utils.resource_cache.cache_clear()
        utils.client_cache.cache_clear()
        config._get_subnets_or_die.cache_clear()
        providers._clear_provider_cache()  # type: ignore[no-untyped-call]


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """A launcher whose AWS is moto's, and whose ~ is empty."""
    from ray.autoscaler._private.aws import node_provider

    launcher = Launcher()
    with pytest.MonkeyPatch.context() as monkeypatch, mock_aws():
        monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "testing")
        for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_REGION"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
        # Moto takes at least 4 s to list the types of a region.
        types = cache(node_provider.list_ec2_instances)
        monkeypatch.setattr(node_provider, "list_ec2_instances", lambda region, *_: types(region))
        launcher.clear_caches()
        iam = boto3.client("iam")
        for name in ("tune-mnist-head", "tune-mnist-worker"):
            iam.create_instance_profile(InstanceProfileName=name)
        yield launcher
    launcher.clear_caches()


def changed(path: Path, changes: dict[str, str]) -> Config:
    """Return a file as a user would change it: inside the marked block at the top, and nowhere else."""
    text = path.read_text()
    (block,) = re.findall(r"^# ---- What to change.*?^ *# ---- The end of what to change", text, re.S | re.M)
    new = block
    for old, value in changes.items():
        assert old in new, f"{old} is not at the top of {path.name}"
        new = new.replace(old, value)
    config: Config = yaml.safe_load(text.replace(block, new))
    return config


@pytest.fixture(scope="module")
def aws_changes(launcher: Launcher) -> dict[str, str]:
    image = boto3.client("ec2").describe_images()["Images"][0]["ImageId"]
    return {
        "region: us-west-2": f"region: {REGION}",
        "us-west-2a,us-west-2b,us-west-2c": ",".join(ZONES),
        "ami-CHANGE-ME": image,
    }


@pytest.fixture(scope="module")
def aws_config(aws_changes: dict[str, str]) -> Config:
    return changed(AWS, aws_changes)


@pytest.fixture(scope="module")
def bootstrapped(launcher: Launcher, aws_config: Config) -> Config:
    return launcher.bootstrap(aws_config)


@pytest.fixture(params=[AWS, ON_PREMISES], ids=lambda path: path.name)
def launched(request: pytest.FixtureRequest) -> Config:
    """Each file that Ray's cluster launcher reads."""
    config: Config = yaml.safe_load(request.param.read_text())
    return config


def commands_of(config: Config) -> str:
    keys = [key for key in config if key.endswith("commands")]
    return "\n".join(command for key in keys for command in config[key])


def pins() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


# ---- cluster.yaml on AWS


def test_the_values_at_the_top_are_all_that_a_user_changes(bootstrapped: Config) -> None:
    left = json.dumps(bootstrapped)
    assert "us-west-2" not in left and "CHANGE-ME" not in left
    image = bootstrapped["provider"]["image"]
    types = bootstrapped["available_node_types"]
    assert {node_type["node_config"]["ImageId"] for node_type in types.values()} == {image}


def test_a_node_type_has_what_its_instance_type_has(bootstrapped: Config) -> None:
    types = bootstrapped["available_node_types"]
    assert types["head"]["resources"]["CPU"] == 0
    assert "GPU" not in types["head"]["resources"]
    for name in ("gpu_spot", "gpu_on_demand"):
        assert (types[name]["resources"]["CPU"], types[name]["resources"]["GPU"]) == (4, 1)
    assert types["cpu"]["resources"]["CPU"] == 8
    assert "GPU" not in types["cpu"]["resources"]
    assert [types[name].get("min_workers", 0) for name in WORKER_TYPES] == [0, 0, 0]
    assert [types[name]["max_workers"] for name in WORKER_TYPES] == [bootstrapped["max_workers"]] * 3
    assert types["gpu_spot"]["priority"] > types["gpu_on_demand"].get("priority", 0)


def test_only_ssh_is_open_to_the_outside(bootstrapped: Config) -> None:
    types = bootstrapped["available_node_types"]
    groups = {group for node_type in types.values() for group in node_type["node_config"]["SecurityGroupIds"]}
    assert len(groups) == 1
    (group,) = boto3.client("ec2").describe_security_groups(GroupIds=list(groups))["SecurityGroups"]
    outside = [rule for rule in group["IpPermissions"] if rule["IpRanges"] or rule["Ipv6Ranges"]]
    assert [(rule["IpProtocol"], rule["FromPort"], rule["ToPort"]) for rule in outside] == [("tcp", 22, 22)]
    inside = [rule["UserIdGroupPairs"] for rule in group["IpPermissions"] if rule not in outside]
    assert [[pair["GroupId"] for pair in pairs] for pairs in inside] == [[*groups]]


def test_every_type_may_start_in_every_zone(bootstrapped: Config) -> None:
    types = bootstrapped["available_node_types"]
    for node_type in types.values():
        ids = node_type["node_config"]["SubnetIds"]
        subnets = boto3.client("ec2").describe_subnets(SubnetIds=ids)["Subnets"]
        assert {subnet["AvailabilityZone"] for subnet in subnets} == set(ZONES)
    assert len(yaml.safe_load(AWS.read_text())["provider"]["availability_zone"].split(",")) >= 2


def test_the_key_is_for_its_owner_alone(bootstrapped: Config) -> None:
    key = Path(bootstrapped["auth"]["ssh_private_key"])
    assert key.parent == Path.home() / ".ssh"
    assert key.stat().st_mode & 0o777 == 0o600


def test_what_ec2_is_asked_for(launcher: Launcher, bootstrapped: Config) -> None:
    provider = launcher.provider(bootstrapped)
    calls = {}
    for name in bootstrapped["available_node_types"]:
        with mock.patch.object(provider, "ec2_fail_fast") as ec2:
            ec2.create_instances.return_value = []
            launcher.start(provider, bootstrapped, name, count=2)
        calls[name] = ec2.create_instances.call_args.kwargs
    disk = {"VolumeSize": 100, "VolumeType": "gp3", "DeleteOnTermination": True}
    common = {
        "ImageId": bootstrapped["provider"]["image"],
        "KeyName": f"ray-autoscaler_{REGION}",
        "MinCount": 1,
        "MaxCount": 2,
        "BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": disk}],
    }
    worker = common | {"IamInstanceProfile": {"Name": "tune-mnist-worker"}}
    spot = {"InstanceMarketOptions": {"MarketType": "spot"}}
    expected = {
        "head": {**common, "InstanceType": "m5.large", "IamInstanceProfile": {"Name": "tune-mnist-head"}},
        "gpu_spot": {**worker, **spot, "InstanceType": "g4dn.xlarge"},
        "gpu_on_demand": {**worker, "InstanceType": "g4dn.xlarge"},
        "cpu": {**worker, **spot, "InstanceType": "c7i.2xlarge"},
    }
    varying = {"SubnetId", "SecurityGroupIds", "TagSpecifications"}
    for name, call in calls.items():
        assert varying <= set(call)
        assert {key: value for key, value in call.items() if key not in varying} == expected.pop(name)
    assert not expected


def test_the_instances_start_with_the_projects_tags_and_end(launcher: Launcher, bootstrapped: Config) -> None:
    provider = launcher.provider(bootstrapped)
    for name in bootstrapped["available_node_types"]:
        launcher.start(provider, bootstrapped, name)
    tags = [{tag["Key"]: tag["Value"] for tag in instance["Tags"]} for instance in instances()]
    assert sorted(tag["ray-user-node-type"] for tag in tags) == sorted(bootstrapped["available_node_types"])
    assert {(tag["project"], tag["ray-cluster-name"]) for tag in tags} == {("tune-mnist", "tune-mnist")}
    provider.terminate_nodes(provider.non_terminated_nodes({}))
    assert {instance["State"]["Name"] for instance in instances()} == {"terminated"}


def instances() -> list[Any]:
    reservations = boto3.client("ec2").describe_instances()["Reservations"]
    return [instance for reservation in reservations for instance in reservation["Instances"]]


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("max_workers: 4", "max_wrokers: 4", "max_wrokers"),
        ("priority: 1", "priorty: 1", "priorty"),
        ("head_node_type: head", "head_node_type: haed", "must be one of `available_node_types`"),
        ("    - DeviceName", "    -DeviceName", "mapping"),
        ("InstanceType: c7i.2xlarge", "InstanceType: c7i.2xlrage", "'resources' is a required property"),
        ("us-west-2a,us-west-2b,us-west-2c", "us-west-9a", "No usable subnets matching availability zone"),
    ],
)
def test_a_broken_copy_is_refused(
    launcher: Launcher, aws_changes: dict[str, str], old: str, new: str, complaint: str, tmp_path: Path
) -> None:
    text = AWS.read_text()
    assert text.count(old) == 1
    broken = tmp_path / "cluster.yaml"
    broken.write_text(text.replace(old, new))
    changes = {value: change for value, change in aws_changes.items() if value != old}
    with pytest.raises((Exception, SystemExit)) as raised:
        launcher.bootstrap(changed(broken, changes))
    assert complaint in repr(raised.value) + str(raised.value)


# ---- cluster-onprem.yaml


def test_machines_of_ones_own(launcher: Launcher) -> None:
    changes = {
        "192.0.2.10": "10.0.0.1",
        "[192.0.2.11, 192.0.2.12]": "[10.0.0.2, 10.0.0.3, 10.0.0.4]",
        "ssh_user: ubuntu": "ssh_user: ada",
        "~/.ssh/id_ed25519": "~/.ssh/other",
    }
    config = launcher.bootstrap(changed(ON_PREMISES, changes))
    assert config["provider"]["head_ip"] == "10.0.0.1"
    assert config["auth"] == {"ssh_user": "ada", "ssh_private_key": "~/.ssh/other"}
    (node_type,) = config["available_node_types"].values()
    assert (node_type["min_workers"], node_type["max_workers"]) == (3, 3)
    left = json.dumps(config)
    assert "192.0.2" not in left and "ubuntu" not in left and "id_ed25519" not in left


# ---- cluster-kuberay.yaml and the Dockerfile


def pods(job: Config) -> list[Config]:
    """Return the specs of a RayJob's pods: the head's, the workers', and the submitter's."""
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    templates = [*(group["template"] for group in groups), job["spec"]["submitterPodTemplate"]]
    return [template["spec"] for template in templates]


def search_of(job: Config) -> Settings:
    command = job["spec"]["entrypoint"].split()
    assert command[0] == "python" and (ROOT / command[1]).is_file()
    settings = parse_settings(command[2:], description="")
    assert isinstance(settings, Settings)
    return settings


def test_kuberay_is_given_a_rayjob_with_the_search() -> None:
    job = yaml.safe_load(KUBERAY.read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster, settings = job["spec"]["rayClusterSpec"], search_of(job)
    assert (settings.num_samples, settings.gpus_per_trial) == (64, 0.5)
    assert settings.storage_path == "s3://BUCKET/runs"
    assert cluster["enableInTreeAutoscaling"] and cluster["authOptions"] == {"mode": "token"}
    assert job["spec"]["backoffLimit"] == 0, "a retry would start another search"
    assert job["spec"]["shutdownAfterJobFinishes"]
    for pod in pods(job):
        (container,) = pod["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert "env" not in container, "keys come from the service account or the Secret"


def test_kuberay_needs_no_change_but_of_the_values_at_the_top() -> None:
    changes = {
        "name: tune-mnist\n": "name: second\n",
        "REGISTRY/tune-mnist:0.2.0": "example.com/team/search:2",
        "&service_account tune-mnist": "&service_account bucket-user",
        "tune-mnist-s3": "bucket-keys",
        '&gpu_worker_gpus "1"': '&gpu_worker_gpus "4"',
        '&gpu_worker_cpus "2"': '&gpu_worker_cpus "16"',
        "&gpu_worker_memory 8Gi": "&gpu_worker_memory 60Gi",
        '&cpu_worker_cpus "4"': '&cpu_worker_cpus "30"',
        "&cpu_worker_memory 8Gi": "&cpu_worker_memory 100Gi",
        "s3://BUCKET/runs\n": "s3://bucket/runs --max-concurrent-trials 16\n",
        "&max_workers 4": "&max_workers 2",
    }
    job = changed(KUBERAY, changes)
    assert not re.search("REGISTRY|BUCKET|tune-mnist", json.dumps(job))
    assert {container["image"] for pod in pods(job) for container in pod["containers"]} == {
        "example.com/team/search:2"
    }
    for pod in pods(job)[:-1]:
        assert pod["serviceAccountName"] == "bucket-user"
        assert pod["containers"][0]["envFrom"] == [{"secretRef": {"name": "bucket-keys", "optional": True}}]
    workers = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert [(group["minReplicas"], group["maxReplicas"]) for group in workers] == [(0, 2), (0, 2)]
    assert [group["template"]["spec"]["containers"][0]["resources"]["limits"] for group in workers] == [
        {"cpu": "16", "memory": "60Gi", "nvidia.com/gpu": "4"},
        {"cpu": "30", "memory": "100Gi"},
    ]
    assert search_of(job).max_concurrent_trials == 16


def test_kuberay_workers_hold_the_trials_and_the_head_holds_none(launcher: Launcher) -> None:
    job = yaml.safe_load(KUBERAY.read_text())
    settings = search_of(job)
    assert settings.gpus_per_trial
    node_types = launcher.kuberay_node_types(job["spec"]["rayClusterSpec"])
    sizes = {
        name: (kind["resources"]["CPU"], kind["resources"].get("GPU", 0)) for name, kind in node_types.items()
    }
    assert sizes == {"headgroup": (0, 0), "gpu": (2, 1), "cpu": (4, 0)}
    slots = count_slots(*sizes["gpu"], settings.cpus_per_trial, settings.gpus_per_trial)
    assert slots == 2 and node_types["gpu"]["max_workers"] * slots == UNCOUNTED_SLOTS
    assert count_slots(*sizes["cpu"], settings.cpus_per_trial, 0) == 4


def test_kuberays_image_has_the_versions_of_the_project() -> None:
    project, dockerfile = (ROOT / "pyproject.toml").read_text(), DOCKERFILE.read_text()
    job = yaml.safe_load(KUBERAY.read_text())
    tag = job["metadata"]["annotations"]["image"].rpartition(":")[2]
    assert f'\nversion = "{tag}"\n' in project
    for text in (dockerfile, (ROOT / "docs" / "cluster.md").read_text()):
        assert f"docker build --tag REGISTRY/tune-mnist:{tag} ." in text
    assert f"ray=={job['spec']['rayClusterSpec']['rayVersion']}" in pins()
    (python,) = re.findall(r"^FROM python:([\d.]+)-slim$", dockerfile, re.MULTILINE)
    assert set(re.findall(r"python(3\.\d+)", AWS.read_text())) == {python}, "another one than on AWS"
    installs = re.findall(r"pip install (.*?)(?: &&.*)?$", dockerfile, re.MULTILINE)
    assert installs and all("--constraint constraints.txt" in install for install in installs)
    assert installs[-1].endswith("--editable '.[cluster]'")
    copied = re.findall(r"^COPY (.+) \S+$", dockerfile, re.MULTILINE)
    assert all((ROOT / name).exists() for names in copied for name in names.split())
    assert {"tune_mnist", "scripts"} <= set(copied)


# ---- Both files for Ray's cluster launcher


def test_the_nodes_get_the_versions_of_constraints_txt(launched: Config) -> None:
    commands = commands_of(launched)
    installs = [line for line in commands.splitlines() if "pip install" in line]
    assert installs
    assert all(
        line.startswith("cd ~/tune-mnist && ~/venv/bin/pip install -qq --constraint constraints.txt ")
        for line in installs
    )
    assert "--editable '.[cluster]'" in installs[-1]
    assert not re.search(r"[=<>]=|\.whl|://", commands), "a version beside those of constraints.txt"
    for name in ("ray", "torch", "torchvision", "boto3"):
        assert len([pin for pin in pins() if re.match(rf"{name}==[\d.]+$", pin)]) == 1, name


def test_the_nodes_python_is_one_that_the_project_supports(launched: Config) -> None:
    (minor,) = set(re.findall(r"python3\.(\d+)", commands_of(launched)))
    requires = re.search(r'requires-python = ">=3\.(\d+),<3\.(\d+)"', (ROOT / "pyproject.toml").read_text())
    assert requires
    assert int(requires[1]) <= int(minor) < int(requires[2])


def test_the_two_files_install_the_same() -> None:
    aws, on_premises = (yaml.safe_load(path.read_text()) for path in (AWS, ON_PREMISES))
    assert aws["file_mounts"] == on_premises["file_mounts"]
    assert aws["rsync_exclude"] == on_premises["rsync_exclude"]
    assert aws["setup_commands"][1:] == on_premises["setup_commands"][1:]
    assert not aws["head_setup_commands"]


def test_the_mounts_hold_the_package_and_no_more(
    launched: Config, launcher: Launcher, tmp_path: Path
) -> None:
    mounts = {
        remote.removeprefix("~/tune-mnist/"): ROOT / local
        for remote, local in launched["file_mounts"].items()
        if remote.startswith("~/tune-mnist/")
    }
    excluded = ["__pycache__", ".git", ".venv", "data", "runs"]
    filters = launcher.rsync_filters(launched)
    assert filters == [part for pattern in excluded for part in ("--exclude", pattern)]
    for local in mounts.values():
        assert not any(fnmatch.fnmatch(local.name, pattern) for pattern in excluded)
        assert local != ROOT
    project = tmp_path / "tune-mnist"
    project.mkdir()
    for remote, local in mounts.items():
        if local.is_dir():
            shutil.copytree(local, project / remote, ignore=shutil.ignore_patterns(*excluded))
        else:
            shutil.copy(local, project / remote)
    code = "from setuptools import build_meta; build_meta.prepare_metadata_for_build_editable('.')"
    subprocess.run([sys.executable, "-c", code], cwd=project, check=True, capture_output=True, timeout=60)
    (metadata,) = project.glob("*.dist-info/METADATA")
    assert "Provides-Extra: cluster" in metadata.read_text()
    modules = {module.name for module in (ROOT / "tune_mnist").glob("*.py")}
    assert {module.name for module in (project / "tune_mnist").glob("*.py")} == modules
    assert (project / "scripts" / "tune.py").is_file()


def test_ray_asks_for_a_token_everywhere(launched: Config) -> None:
    assert launched["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    starts = [line for line in commands_of(launched).splitlines() if "ray start" in line]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token ray start" in line for line in starts)
    assert not any("dashboard-host" in line for line in starts), "the dashboard belongs on loopback"


def test_a_login_finds_the_environment_and_sets_up_once(launched: Config, tmp_path: Path) -> None:
    (profile,) = [command for command in launched["setup_commands"] if ".bashrc" in command]
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    for _ in range(2):
        subprocess.run(["bash", "-c", profile], env=environment, check=True)
    show = "source ~/.bashrc; echo $PATH; echo $RAY_AUTH_MODE"
    shown = subprocess.run(["bash", "-c", show], env=environment, check=True, capture_output=True, text=True)
    assert shown.stdout.splitlines() == [f"{tmp_path}/venv/bin:/usr/bin:/bin", "token"]


def test_ray_submit_hands_every_flag_on(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = "--num-samples 64 --gpus-per-trial 0.5 --storage-path s3://BUCKET/runs --name first --seed 1"
    with mock.patch.object(scripts, "rsync"), mock.patch.object(scripts, "exec_cluster") as exec_cluster:
        outcome = CliRunner().invoke(scripts.cli, ["submit", str(AWS), "scripts/tune.py", *flags.split()])
    assert outcome.exit_code == 0, outcome.output
    assert exec_cluster.call_args.kwargs["cmd"] == f"python ~/tune.py {flags}"
