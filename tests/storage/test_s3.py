"""Checkpoints on S3: a server in a process of its own, on this machine, that checks who asks."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from conftest import small_config

RAYFL = str(Path(sys.executable).parent / "rayfl")
# Nothing of this machine's own: no files in the home directory, no role of a cloud's.
NOBODY = {
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/none",
    "AWS_SHARED_CREDENTIALS_FILE": "/none",
    "AWS_DEFAULT_REGION": "us-east-1",
}

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    """A server with a bucket `lab`: environment variables with its address and the keys of its user."""
    pytest.importorskip("moto.server", reason="needs moto: pip install 'moto[server]'")
    import boto3

    port = 32000 + os.getpid() % 8000
    address = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        cwd=tmp_path_factory.mktemp("moto"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{address}/moto-api/data.json", timeout=5)
                break
            except OSError:
                assert process.poll() is None
                time.sleep(0.2)
        root = boto3.Session("root", "root", region_name="us-east-1")
        root.client("s3", endpoint_url=address).create_bucket(Bucket="lab")
        iam = root.client("iam", endpoint_url=address)
        iam.create_user(UserName="researcher")
        allowed = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [allowed]})
        iam.put_user_policy(UserName="researcher", PolicyName="s3", PolicyDocument=policy)
        key = iam.create_access_key(UserName="researcher")["AccessKey"]
        check = f"{address}/moto-api/reset-auth"  # who asks, from now on
        plain = {"Content-Type": "text/plain"}
        urllib.request.urlopen(urllib.request.Request(check, data=b"0", headers=plain))
        yield {
            "AWS_ENDPOINT_URL": address,
            "AWS_ACCESS_KEY_ID": key["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"],
        }
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture
def rayfl(tmp_path):
    """Starts `rayfl run` on a config of 400 rounds in a directory that has nothing else."""
    config = small_config()
    config["federation"] |= {"rounds": 400, "eval_every": 40}
    config["algorithm"] = {"name": "scaffold"}
    config["resources"] = {"num_actors": 1}
    (tmp_path / "config.yaml").write_text(json.dumps(config))

    def start(environment, *options):
        clean = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
        return subprocess.Popen(
            [RAYFL, "run", "config.yaml", "--json", *options],
            cwd=tmp_path,
            env=clean | NOBODY | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def test_killed_and_resumed_from_s3(s3, rayfl):
    import boto3

    options = "checkpoint.dir=s3://lab/runs", "checkpoint.every=5"
    process = rayfl(s3, *options)
    session = boto3.Session(s3["AWS_ACCESS_KEY_ID"], s3["AWS_SECRET_ACCESS_KEY"])
    bucket = session.resource("s3", endpoint_url=s3["AWS_ENDPOINT_URL"]).Bucket("lab")

    def manifests():
        return [o.key for o in bucket.objects.filter(Prefix="runs/") if "/checkpoint-" in o.key]

    while not manifests():
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.kill()
    process.communicate()

    # The same place, named as for a machine that does not know of the server.
    keys = {key: value for key, value in s3.items() if key != "AWS_ENDPOINT_URL"}
    address = s3["AWS_ENDPOINT_URL"].removeprefix("http://")
    place = f"checkpoint.dir=s3://lab/runs?endpoint_override={address}&scheme=http"
    resumed = rayfl(keys, place, "checkpoint.every=100", "--resume", "latest")
    out, err = resumed.communicate()
    assert resumed.returncode == 0, err
    assert "going on after round" in err
    assert sorted(key.rpartition("-")[2] for key in manifests()) == [
        "00000300.json",
        "00000400.json",
    ]
    folder = manifests()[0].rpartition("/")[0]
    again = rayfl(s3, *options, "--resume", f"s3://lab/{folder}/checkpoint-00000300.json")
    out_again, err = again.communicate()
    assert again.returncode == 0, err
    assert "going on after round 300" in err

    undisturbed = rayfl({})
    expected = json.loads(undisturbed.communicate()[0])["model_sha256"]
    assert json.loads(out)["model_sha256"] == expected
    assert json.loads(out_again)["model_sha256"] == expected


@pytest.mark.parametrize(
    ("changed", "bucket", "resume"),
    [
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "lab", []),
        ({"AWS_ACCESS_KEY_ID": "AKIAWRONG"}, "lab", ["--resume", "latest"]),
        ({}, "nosuchbucket", []),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "lab", ["--resume", "latest"]),
    ],
    ids=["no credentials", "wrong credentials", "no such bucket", "no server"],
)
def test_what_keeps_from_s3_is_one_error_before_any_actor(changed, bucket, resume, s3, rayfl):
    environment = {key: value for key, value in (s3 | changed).items() if value}
    place = f"checkpoint.dir=s3://{bucket}/runs"
    process = rayfl(environment, place, "checkpoint.every=5", *resume)
    out, err = process.communicate()
    assert process.returncode == 2, err
    (line,) = (line for line in err.splitlines() if line.startswith("error: "))
    assert "checkpoint.dir" in line
    assert "Traceback" not in err
    assert "client actors" not in err
    assert not out
