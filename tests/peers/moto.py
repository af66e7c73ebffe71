"""The tests of another EC2 that people know, moto (github.com/getmoto/moto), held against ours by boto3.

Its source distribution has no tests, so what they are about is stated anew here, under their names: those of
tests/test_ec2/test_instances.py, test_tags.py, test_iam_integration.py, test_availability_zones_and_regions.py and of
tests/test_sts that concern what a control API of a host has. Where moto behaves unlike EC2 and its test expects that, the
test stands here as moto has it and is named in DIFFERENT with the reason, and must fail; what is not stated at all is named in
NOT_HERE.

The environment names the endpoint, the keys, and the account, which has no instance yet.
"""

import base64
import os
import sys
import time
import traceback

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

CONFIG = Config(retries={"total_max_attempts": 1}, read_timeout=20, connect_timeout=5)
ACCOUNT = os.environ["ACCOUNT"]

ec2 = boto3.client("ec2", config=CONFIG)
resource = boto3.resource("ec2", config=CONFIG)
sts = boto3.client("sts", config=CONFIG)
IMAGE = ec2.describe_images()["Images"][0]["ImageId"]

# Tests that must fail here, as moto has them: why, and with what.
RUNNING = "it changes an instance that runs, which EC2 refuses", "IncorrectInstanceState"
NO_IAM = "a host has no IAM: the name of every profile will do", "is not refused"
DIFFERENT = {
    "test_instance_attribute_instance_type": RUNNING,
    "test_instance_attribute_user_data": RUNNING,
    "test_invalid_associate_of_a_profile_that_nobody_made": NO_IAM,
    "test_invalid_replace_by_a_profile_that_nobody_made": NO_IAM,
    "test_describe_regions_of_all_of_aws": ("a host is in one region", "AssertionError"),
}
# Tests of its list that are about something that is not here.
NOT_HERE = {
    "test_metadata_options_hop_limit_none": "looks into a class of moto's",
    "test_instance_launch_and_terminate": "asserts a root volume; volumes are not modelled",
    "test_run_instances_default_response": "asserts every field of a reply of moto's, kernel id included",
    "test_availability_zones": "compares with a list of all of AWS's zones",
    "test_assume_role": "roles' credentials come from a source of their own (docs), not from this API",
    "test_get_caller_identity_with_assumed_role_credentials": "needs AssumeRole",
}


def refused(code, message, call, **parameters):
    try:
        call(**parameters)
    except ClientError as error:
        said = error.response["Error"]
        assert said["Code"] == code, said
        if message is not None:
            assert said["Message"] == message, said
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        assert 400 <= status < 500, status
        assert error.response["ResponseMetadata"]["RequestId"], error.response
        return status
    raise AssertionError(f"{call} is not refused: {parameters}")


def rehearsed(call, **parameters):
    message = "Request would have succeeded, but DryRun flag is set."
    assert refused("DryRunOperation", message, call, DryRun=True, **parameters) == 412


def run(count=1, **more):
    parameters = {"ImageId": IMAGE, "MinCount": count, "MaxCount": count} | more
    return ec2.run_instances(**parameters)["Instances"]


def ids_of(instances):
    return [instance["InstanceId"] for instance in instances]


def one(**more):
    (instance_id,) = ids_of(run(**more))
    return instance_id


def describe(**parameters):
    reservations = ec2.describe_instances(**parameters)["Reservations"]
    return [instance for reservation in reservations for instance in reservation["Instances"]]


def found(mine, name, *values):
    """Which of these instances a filter finds."""
    shown = describe(Filters=[{"Name": name, "Values": list(values)}])
    return sorted(set(ids_of(shown)) & set(mine))


def until(instance_id, state):
    deadline = time.monotonic() + 10
    while describe(InstanceIds=[instance_id])[0]["State"]["Name"] != state:
        assert time.monotonic() < deadline, f"{instance_id} is not {state}"
        time.sleep(0.01)


def tagged(**tags):
    tags = [{"Key": key, "Value": value} for key, value in tags.items()]
    return one(TagSpecifications=[{"ResourceType": "instance", "Tags": tags}])


def tags_of(instance_id):
    (instance,) = describe(InstanceIds=[instance_id])
    return {tag["Key"]: tag["Value"] for tag in instance.get("Tags", [])}


# Instances


def test_describe_instance_status_no_instances():
    assert ec2.describe_instance_status()["InstanceStatuses"] == []
    assert ec2.describe_instance_status(IncludeAllInstances=True)["InstanceStatuses"] == []


def test_describe_instance_status_with_instances():
    made = one()
    until(made, "running")
    (status,) = ec2.describe_instance_status(InstanceIds=[made])["InstanceStatuses"]
    assert status["InstanceId"] == made
    assert status["InstanceStatus"]["Status"] == "ok" and status["SystemStatus"]["Status"] == "ok", status
    assert status["InstanceState"] == {"Code": 16, "Name": "running"}, status


def test_describe_instance_status_with_non_running_instances():
    made = ids_of(run(3))
    for instance_id in made:
        until(instance_id, "running")
    ec2.stop_instances(InstanceIds=[made[0]])
    ec2.terminate_instances(InstanceIds=[made[1]])
    until(made[0], "stopped")
    until(made[1], "terminated")

    def states(**parameters):
        shown = ec2.describe_instance_status(**parameters)["InstanceStatuses"]
        return {s["InstanceId"]: s["InstanceState"]["Name"] for s in shown if s["InstanceId"] in made}

    assert states() == {made[2]: "running"}
    everything = {made[0]: "stopped", made[1]: "terminated", made[2]: "running"}
    assert states(IncludeAllInstances=True) == everything
    stopped = [{"Name": "instance-state-name", "Values": ["stopped"]}]
    assert states(IncludeAllInstances=True, Filters=stopped) == {made[0]: "stopped"}
    running = [{"Name": "instance-state-code", "Values": ["16"]}]
    assert states(IncludeAllInstances=True, Filters=running) == {made[2]: "running"}


def test_describe_instance_status_with_partial_instance_ids():
    made = ids_of(run(2))
    for instance_id in made:
        until(instance_id, "running")
    (status,) = ec2.describe_instance_status(InstanceIds=made[:1])["InstanceStatuses"]
    assert status["InstanceId"] == made[0], status


def test_describe_instance_status_of_unknown_instances():
    refused("InvalidInstanceID.NotFound", "The instance ID 'i-1234abcd' does not exist",
            ec2.describe_instance_status, InstanceIds=["i-1234abcd"])


def test_modify_instance_metadata_options():
    made = one()
    until(made, "running")
    (instance,) = describe(InstanceIds=[made])
    fresh = {
        "State": "applied", "HttpTokens": "optional", "HttpPutResponseHopLimit": 1, "HttpEndpoint": "enabled",
        "HttpProtocolIpv6": "disabled", "InstanceMetadataTags": "disabled",
    }
    assert instance["MetadataOptions"] == fresh, instance["MetadataOptions"]
    said = ec2.modify_instance_metadata_options(
        InstanceId=made, HttpTokens="required", HttpPutResponseHopLimit=2, HttpEndpoint="enabled",
        HttpProtocolIpv6="enabled", InstanceMetadataTags="enabled",
    )
    options = {
        "HttpTokens": "required", "HttpPutResponseHopLimit": 2, "HttpEndpoint": "enabled", "HttpProtocolIpv6": "enabled",
        "InstanceMetadataTags": "enabled",
    }
    assert said["InstanceId"] == made and said["InstanceMetadataOptions"].items() >= options.items(), said
    deadline = time.monotonic() + 10
    while (shown := describe(InstanceIds=[made])[0]["MetadataOptions"]) != options | {"State": "applied"}:
        assert time.monotonic() < deadline, shown


def test_add_servers():
    made = one()
    (instance,) = describe(InstanceIds=[made])
    assert instance["ImageId"] == IMAGE and instance["InstanceId"] == made, instance


def test_run_multiple_instances_in_same_command():
    made = run(4)
    assert [instance["AmiLaunchIndex"] for instance in made] == [0, 1, 2, 3], made
    (reservation,) = ec2.describe_instances(InstanceIds=ids_of(made))["Reservations"]
    assert sorted(instance["AmiLaunchIndex"] for instance in reservation["Instances"]) == [0, 1, 2, 3], reservation


def test_get_instances_by_id():
    made = ids_of(run(2))
    assert ids_of(describe(InstanceIds=made[:1])) == made[:1]
    assert sorted(ids_of(describe(InstanceIds=made))) == sorted(made)
    refused("InvalidInstanceID.NotFound", "The instance ID 'i-1234abcd' does not exist",
            ec2.describe_instances, InstanceIds=[made[0], "i-1234abcd"])


def test_get_paginated_instances():
    made = {one() for _ in range(12)}
    shown, n_pages, token = [], 0, {}
    while True:
        page = ec2.describe_instances(MaxResults=5, **token)
        here = [instance for reservation in page["Reservations"] for instance in reservation["Instances"]]
        assert len(here) <= 5, here
        shown += ids_of(here)
        n_pages += 1
        if "NextToken" not in page:
            break
        token = {"NextToken": page["NextToken"]}
    assert made <= set(shown) and len(shown) == len(set(shown)) and n_pages > 2, shown
    assert "NextToken" not in ec2.describe_instances(MaxResults=1000)
    assert "NextToken" not in ec2.describe_instances()


def test_describe_instances_pagination_error():
    refused("InvalidParameterCombination", "The parameter instancesSet cannot be used with the parameter maxResults",
            ec2.describe_instances, InstanceIds=[one()], MaxResults=50)


def test_create_with_tags():
    tag = lambda number: {"Key": f"MY_TAG{number}", "Value": f"MY_VALUE{number}"}
    (instance,) = run(TagSpecifications=[
        {"ResourceType": "instance", "Tags": [tag(1), tag(2)]},
        {"ResourceType": "instance", "Tags": [tag(3)]},
    ])
    assert sorted(instance["Tags"], key=lambda tag: tag["Key"]) == [tag(1), tag(2), tag(3)], instance
    assert tags_of(instance["InstanceId"]) == {f"MY_TAG{n}": f"MY_VALUE{n}" for n in (1, 2, 3)}


def test_get_instances_filtering_by_state():
    made = ids_of(run(3))
    for instance_id in made:
        until(instance_id, "running")
    ec2.terminate_instances(InstanceIds=made[:1])
    until(made[0], "terminated")
    assert found(made, "instance-state-name", "running") == sorted(made[1:])
    assert found(made, "instance-state-name", "terminated") == made[:1]
    assert found(made, "instance-state-code", "48") == made[:1]
    # Ids and filters together, and everything where nothing is said.
    both = describe(InstanceIds=made[:2], Filters=[{"Name": "instance-state-name", "Values": ["running"]}])
    assert ids_of(both) == [made[1]], both
    assert set(made) <= set(ids_of(describe()))
    refused("InvalidParameterValue", "The filter 'not-implemented-filter' is invalid", ec2.describe_instances,
            Filters=[{"Name": "not-implemented-filter", "Values": ["foobar"]}])


def test_get_instances_filtering_by_instance_id():
    made = ids_of(run(3))
    assert found(made, "instance-id", made[0]) == made[:1]
    assert found(made, "instance-id", *made[:2]) == sorted(made[:2])
    assert describe(Filters=[{"Name": "instance-id", "Values": ["non-existing-id"]}]) == []


def test_get_instances_filtering_by_instance_type():
    small = [one(InstanceType="m1.small"), one()]
    micro = one(InstanceType="t1.micro")
    made = [*small, micro]
    assert found(made, "instance-type", "m1.small") == sorted(small)
    assert found(made, "instance-type", "t1.micro") == [micro]
    assert found(made, "instance-type", "t1.micro", "m1.small") == sorted(made)
    assert describe(Filters=[{"Name": "instance-type", "Values": ["bogus"]}]) == []


def test_get_instances_filtering_by_availability_zone():
    made = ids_of(run(2, Placement={"AvailabilityZone": "us-east-1a"}))
    assert found(made, "availability-zone", "us-east-1a") == sorted(made)
    assert found(made, "availability-zone", "us-east-1a", "us-east-1b") == sorted(made)
    assert found(made, "availability-zone", "us-east-1b") == []


def test_get_instances_filtering_by_image_id():
    made = [one()]
    assert found(made, "image-id", IMAGE) == made
    assert found(made, "image-id", "ami-1234abcd") == []


def test_get_instances_filtering_by_account_id():
    made = [one()]
    assert found(made, "owner-id", ACCOUNT) == made
    assert found(made, "owner-id", "999999999999") == []


def test_get_instances_filtering_by_tag():
    first, second, third = tagged(tag1="value1", tag2="value2"), tagged(tag1="value1", tag2="wrong"), tagged(tag2="value2")
    made = [first, second, third]
    assert found(made, "tag:tag0", "value0") == []
    assert found(made, "tag:tag1", "value1") == sorted([first, second])
    both = [{"Name": "tag:tag1", "Values": ["value1"]}, {"Name": "tag:tag2", "Values": ["value2"]}]
    assert sorted(set(ids_of(describe(Filters=both))) & set(made)) == [first]
    assert found(made, "tag:tag2", "value2", "wrong") == sorted(made)


def test_get_instances_filtering_by_tag_value():
    first, second, third = tagged(a="Value1", b="Value2"), tagged(a="Value1"), tagged(c="Value2")
    made = [first, second, third]
    assert found(made, "tag-value", "Value0") == []
    assert found(made, "tag-value", "Value1") == sorted([first, second])
    assert found(made, "tag-value", "Value2", "Value1") == sorted(made)


def test_get_instances_filtering_by_tag_name():
    first, second = tagged(Name1="x"), tagged(Name2="y")
    made = [first, second]
    assert found(made, "tag-key", "Name0") == []
    assert found(made, "tag-key", "Name1") == [first]
    assert found(made, "tag-key", "Name1", "Name2") == sorted(made)


def test_filter_wildcard_in_specified_tag_only():
    first, second, third = tagged(Name="some value"), tagged(Name="other value"), tagged(Nickname="some value")
    made = [first, second, third]
    assert found(made, "tag:Name", "*value*") == sorted([first, second])
    assert found(made, "tag:Name", "some*") == [first]
    assert found(made, "tag:Nickname", "some*") == [third]


def test_instance_start_and_stop():
    made = ids_of(run(2))
    for instance_id in made:
        until(instance_id, "running")
    rehearsed(ec2.stop_instances, InstanceIds=made)
    stopping = ec2.stop_instances(InstanceIds=made)["StoppingInstances"]
    assert [s["PreviousState"] for s in stopping] == [{"Code": 16, "Name": "running"}] * 2, stopping
    assert [s["CurrentState"] for s in stopping] == [{"Code": 64, "Name": "stopping"}] * 2, stopping
    until(made[0], "stopped")
    rehearsed(ec2.start_instances, InstanceIds=made[:1])
    (starting,) = ec2.start_instances(InstanceIds=made[:1])["StartingInstances"]
    assert starting["PreviousState"] == {"Code": 80, "Name": "stopped"}, starting
    assert starting["CurrentState"] == {"Code": 0, "Name": "pending"}, starting
    until(made[0], "running")


def test_instance_reboot():
    made = one()
    until(made, "running")
    rehearsed(ec2.reboot_instances, InstanceIds=[made])
    ec2.reboot_instances(InstanceIds=[made])
    assert describe(InstanceIds=[made])[0]["State"]["Name"] in ("pending", "running")


def test_instance_attribute_instance_type():
    instance = resource.Instance(one(InstanceType="m1.small"))
    until(instance.id, "running")
    rehearsed(instance.modify_attribute, InstanceType={"Value": "m1.medium"})
    instance.modify_attribute(InstanceType={"Value": "m1.medium"})
    instance.reload()
    assert instance.instance_type == "m1.medium"


def test_instance_attribute_instance_type_of_a_stopped_one():
    made = one(InstanceType="m1.small")
    until(made, "running")
    refused("IncorrectInstanceState", None, ec2.modify_instance_attribute, InstanceId=made,
            InstanceType={"Value": "m1.medium"})
    ec2.stop_instances(InstanceIds=[made])
    until(made, "stopped")
    rehearsed(ec2.modify_instance_attribute, InstanceId=made, InstanceType={"Value": "m1.medium"})
    ec2.modify_instance_attribute(InstanceId=made, InstanceType={"Value": "m1.medium"})
    assert describe(InstanceIds=[made])[0]["InstanceType"] == "m1.medium"


def user_data_of(instance_id):
    said = ec2.describe_instance_attribute(InstanceId=instance_id, Attribute="userData")
    return base64.b64decode(said["UserData"]["Value"])


def test_instance_attribute_user_data():
    instance = resource.Instance(one())
    until(instance.id, "running")
    rehearsed(instance.modify_attribute, UserData={"Value": b"this is my user data"})
    instance.modify_attribute(UserData={"Value": b"this is my user data"})
    assert user_data_of(instance.id) == b"this is my user data"


def test_instance_attribute_user_data_of_a_stopped_one():
    made = one()
    until(made, "running")
    ec2.stop_instances(InstanceIds=[made])
    until(made, "stopped")
    rehearsed(ec2.modify_instance_attribute, InstanceId=made, UserData={"Value": b"this is my user data"})
    ec2.modify_instance_attribute(InstanceId=made, UserData={"Value": b"this is my user data"})
    assert user_data_of(made) == b"this is my user data"


def test_user_data_with_run_instance():
    assert user_data_of(one(UserData="some user data \u00e4")) == "some user data \u00e4".encode()


def test_describe_instance_attribute():
    made = one(SecurityGroups=["default"])
    names = {
        "instanceType": "InstanceType", "kernel": "KernelId", "ramdisk": "RamdiskId", "userData": "UserData",
        "disableApiTermination": "DisableApiTermination",
        "instanceInitiatedShutdownBehavior": "InstanceInitiatedShutdownBehavior", "rootDeviceName": "RootDeviceName",
        "blockDeviceMapping": "BlockDeviceMappings", "productCodes": "ProductCodes", "sourceDestCheck": "SourceDestCheck",
        "groupSet": "Groups", "ebsOptimized": "EbsOptimized", "sriovNetSupport": "SriovNetSupport",
        "disableApiStop": "DisableApiStop",
    }
    for attribute, name in names.items():
        said = ec2.describe_instance_attribute(InstanceId=made, Attribute=attribute)
        assert said["InstanceId"] == made and name in said, (attribute, said)
    for attribute in ("abc", "Kernel", "RamDisk", "userdata", "iNsTaNcEtYpE"):
        refused("InvalidParameterValue", f"Value ({attribute}) for parameter attribute is invalid. Unknown attribute.",
                ec2.describe_instance_attribute, InstanceId=made, Attribute=attribute)


def test_instance_termination_protection():
    made = ids_of(run(2))
    for instance_id in made:
        until(instance_id, "running")
    ec2.modify_instance_attribute(InstanceId=made[0], DisableApiTermination={"Value": True})
    message = (f"The instance '{made[0]}' may not be terminated. Modify its 'disableApiTermination' instance attribute and "
               "try again.")
    refused("OperationNotPermitted", message, ec2.terminate_instances, InstanceIds=made[:1])
    assert describe(InstanceIds=made[:1])[0]["State"]["Name"] == "running"
    ec2.modify_instance_attribute(InstanceId=made[0], DisableApiTermination={"Value": False})
    ec2.terminate_instances(InstanceIds=made)
    until(made[0], "terminated")


def test_instance_stop_protection():
    made = one(DisableApiStop=True)
    until(made, "running")
    attribute = ec2.describe_instance_attribute(InstanceId=made, Attribute="disableApiStop")
    assert attribute["DisableApiStop"] == {"Value": True}, attribute
    message = f"The instance '{made}' may not be stopped. Modify its 'disableApiStop' instance attribute and try again."
    refused("OperationNotPermitted", message, ec2.stop_instances, InstanceIds=[made])
    ec2.modify_instance_attribute(InstanceId=made, DisableApiStop={"Value": False})
    ec2.stop_instances(InstanceIds=[made])
    until(made, "stopped")


def test_terminate_empty_instances():
    refused("InvalidParameterCombination", "No instances specified", ec2.terminate_instances, InstanceIds=[])


def test_terminate_unknown_instances():
    made = one()
    refused("InvalidInstanceID.NotFound", "The instance ID 'i-12345678' does not exist",
            ec2.terminate_instances, InstanceIds=["i-12345678", made])
    refused("InvalidInstanceID.NotFound", "The instance IDs 'i-12345678, i-12345668' do not exist",
            ec2.terminate_instances, InstanceIds=["i-12345678", "i-12345668"])
    assert describe(InstanceIds=[made])[0]["State"]["Name"] in ("pending", "running")


def test_error_on_invalid_ami():
    refused("InvalidAMIID.NotFound", "The image id '[ami-03cf127d]' does not exist", run, ImageId="ami-03cf127d")


def test_error_on_invalid_ami_format():
    refused("InvalidAMIID.Malformed", None, run, ImageId="invalid-ami")


def test_describe_instances_dryrun():
    rehearsed(ec2.describe_instances)


def test_describe_instance_without_enhanced_monitoring():
    assert describe(InstanceIds=[one()])[0]["Monitoring"] == {"State": "disabled"}


def test_instance_iam_instance_profile():
    made = one(IamInstanceProfile={"Name": "fake"})
    (instance,) = describe(InstanceIds=[made])
    arn = f"arn:aws:iam::{ACCOUNT}:instance-profile/fake"
    assert instance["IamInstanceProfile"]["Arn"] == arn and instance["IamInstanceProfile"]["Id"], instance
    by_arn = one(IamInstanceProfile={"Arn": arn})
    assert describe(InstanceIds=[by_arn])[0]["IamInstanceProfile"] == instance["IamInstanceProfile"]
    assert found([made, by_arn], "iam-instance-profile.arn", arn) == sorted([made, by_arn])


# Tags


def test_instance_create_tags():
    instance = resource.Instance(one())
    tags = [{"Key": "a key", "Value": "some value"}]
    rehearsed(instance.create_tags, Tags=tags)
    assert tags_of(instance.id) == {}
    instance.create_tags(Tags=tags)
    mine = [{"Name": "resource-id", "Values": [instance.id]}]
    assert ec2.describe_tags(Filters=mine)["Tags"] == [
        {"Key": "a key", "Value": "some value", "ResourceId": instance.id, "ResourceType": "instance"}
    ]


def test_instance_delete_tags():
    instance = resource.Instance(one())
    tags = [{"Key": "a key", "Value": "some value"}]
    instance.create_tags(Tags=tags)
    rehearsed(instance.delete_tags, Tags=tags)
    assert tags_of(instance.id) == {"a key": "some value"}
    instance.delete_tags(Tags=[{"Key": "a key", "Value": "another value"}])
    assert tags_of(instance.id) == {"a key": "some value"}
    instance.delete_tags(Tags=tags)
    assert tags_of(instance.id) == {}


def test_create_tags():
    made = ids_of(run(2))
    tags = {"a key": "some value", "another key": "some other value", "blank key": ""}
    listed = [{"Key": key, "Value": value} for key, value in tags.items()]
    rehearsed(ec2.create_tags, Resources=made, Tags=listed)
    ec2.create_tags(Resources=made, Tags=listed)
    assert tags_of(made[0]) == tags and tags_of(made[1]) == tags


def test_tag_limit_exceeded():
    made = one()
    many = [{"Key": f"{number:02}", "Value": ""} for number in range(51)]
    refused("TagLimitExceeded", None, ec2.create_tags, Resources=[made], Tags=many)
    ec2.create_tags(Resources=[made], Tags=[{"Key": "a key", "Value": "a value"}])
    refused("TagLimitExceeded", None, ec2.create_tags, Resources=[made], Tags=many[:50])
    assert tags_of(made) == {"a key": "a value"}
    ec2.create_tags(Resources=[made], Tags=many[:49])
    assert len(tags_of(made)) == 50


def test_invalid_id():
    tags = [{"Key": "key", "Value": ""}]
    refused("InvalidID", "The ID 'ami-blah' is not valid", ec2.create_tags, Resources=["ami-blah"], Tags=tags)
    refused("InvalidID", "The ID 'blah-blah' is not valid", ec2.create_tags, Resources=["blah-blah"], Tags=tags)


def described_tags(mine, **filters):
    """Tags that DescribeTags finds of these instances, as (instance, key, value)."""
    filters = [{"Name": name.replace("_", "-"), "Values": values} for name, values in filters.items()]
    shown = ec2.describe_tags(Filters=filters)["Tags"]
    return sorted((tag["ResourceId"], tag["Key"], tag["Value"]) for tag in shown if tag["ResourceId"] in mine)


def test_get_all_tags_resource_filter():
    made, other = tagged(key="value"), tagged(key="value")
    mine = [made, other]
    assert described_tags(mine, resource_id=[made]) == [(made, "key", "value")]
    assert len(described_tags(mine, resource_type=["instance"])) == 2
    assert described_tags(mine, resource_type=["image"]) == []


def test_get_all_tags_key_filter():
    made = tagged(first="value", second="value")
    assert described_tags([made], key=["first"]) == [(made, "first", "value")]
    assert described_tags([made], key=["f*", "s?cond"]) == [(made, "first", "value"), (made, "second", "value")]


def test_get_all_tags_value_filter():
    first, second = tagged(k="some value"), tagged(k="some*value")
    third, fourth = tagged(k="*some*value"), tagged(k="*some*value*")
    mine = [first, second, third, fourth]

    def check(value, *expected):
        shown = [resource_id for resource_id, _, _ in described_tags(mine, value=[value])]
        assert shown == sorted(expected), (value, shown)

    check("some value", first)
    check("some*value", first, second)
    check("*some*value", *mine[:3])
    check("*some*value*", *mine)
    check(r"*some\*value", second, third)
    check(r"\*some\*value\*", fourth)
    check("some?value", first, second)
    check("Some value")


def test_get_all_tags_with_special_characters():
    made = one()
    ec2.create_tags(Resources=[made], Tags=[{"Key": "test & <key>", "Value": "some<>\"' value \u2713"}])
    assert tags_of(made) == {"test & <key>": "some<>\"' value \u2713"}
    assert described_tags([made], value=["some<>\"' value \u2713"]) == [(made, "test & <key>", "some<>\"' value \u2713")]


def test_retrieved_instances_must_contain_their_tags():
    made = one()
    assert "Tags" not in describe(InstanceIds=[made])[0]
    ec2.create_tags(Resources=[made], Tags=[{"Key": "Tag name", "Value": "Tag value"}])
    assert describe(InstanceIds=[made])[0]["Tags"] == [{"Key": "Tag name", "Value": "Tag value"}]
    assert [(tag["Key"], tag["Value"]) for tag in resource.Instance(made).tags] == [("Tag name", "Tag value")]


def test_filter_instances_by_wildcard_tags():
    first, second = tagged(Key1="Value1"), tagged(Key1="Value2")
    made = [first, second]
    assert found(made, "tag:Key1", "Value*") == sorted(made)
    assert found(made, "tag-key", "Key*") == sorted(made)
    assert found(made, "tag-value", "Value*") == sorted(made)
    assert found(made, "tag:Key1", "?alue2") == [second]
    # The key of a filter is no pattern.
    assert found(made, "tag:Key*", "Value1") == []


def test_create_tag_empty_resource():
    refused("MissingParameter", "The request must contain the parameter resourceIdSet",
            ec2.create_tags, Resources=[], Tags=[{"Key": "Value"}])


def test_delete_tag_empty_resource():
    refused("MissingParameter", "The request must contain the parameter resourceIdSet",
            ec2.delete_tags, Resources=[], Tags=[{"Key": "Value"}])


# Instance profiles


def associate(instance_id, name):
    said = ec2.associate_iam_instance_profile(InstanceId=instance_id, IamInstanceProfile={"Name": name})
    return said["IamInstanceProfileAssociation"]


def arn_of(name):
    return f"arn:aws:iam::{ACCOUNT}:instance-profile/{name}"


def test_associate():
    made = one()
    association = associate(made, "first")
    assert association["InstanceId"] == made and association["IamInstanceProfile"]["Arn"] == arn_of("first"), association
    assert association["State"] == "associating", association


def test_invalid_associate():
    made = one()
    associate(made, "first")
    profile = {"Name": "second"}
    refused("IncorrectState", f"There is an existing association for instance {made}",
            ec2.associate_iam_instance_profile, InstanceId=made, IamInstanceProfile=profile)
    refused("InvalidInstanceID.NotFound", "The instance ID 'i-1234abcd' does not exist",
            ec2.associate_iam_instance_profile, InstanceId="i-1234abcd", IamInstanceProfile=profile)


def test_invalid_associate_of_a_profile_that_nobody_made():
    refused("NoSuchEntity", None, ec2.associate_iam_instance_profile, InstanceId=one(),
            IamInstanceProfile={"Name": "nobodys"})


def associations(**parameters):
    return ec2.describe_iam_instance_profile_associations(**parameters)["IamInstanceProfileAssociations"]


def test_describe():
    first, second = ids_of(run(2))
    one_association, other = associate(first, "first"), associate(second, "second")
    shown = {a["AssociationId"]: a for a in associations()}
    assert shown[one_association["AssociationId"]]["InstanceId"] == first, shown
    assert shown[one_association["AssociationId"]]["State"] == "associated", shown
    assert shown[other["AssociationId"]]["IamInstanceProfile"]["Arn"] == arn_of("second"), shown
    (by_id,) = associations(AssociationIds=[other["AssociationId"]])
    assert by_id["InstanceId"] == second, by_id
    (by_instance,) = associations(Filters=[{"Name": "instance-id", "Values": [first]},
                                           {"Name": "state", "Values": ["associated"]}])
    assert by_instance["AssociationId"] == one_association["AssociationId"], by_instance


def test_replace():
    made = one()
    association = associate(made, "first")
    said = ec2.replace_iam_instance_profile_association(
        AssociationId=association["AssociationId"], IamInstanceProfile={"Name": "second"})
    assert said["IamInstanceProfileAssociation"]["IamInstanceProfile"]["Arn"] == arn_of("second"), said
    (now,) = associations(Filters=[{"Name": "instance-id", "Values": [made]}])
    assert now["IamInstanceProfile"]["Arn"] == arn_of("second"), now
    assert describe(InstanceIds=[made])[0]["IamInstanceProfile"]["Arn"] == arn_of("second")


def test_invalid_replace():
    associate(one(), "first")
    refused("InvalidAssociationID.NotFound", "An invalid association-id of 'iip-assoc-fake' was given",
            ec2.replace_iam_instance_profile_association, AssociationId="iip-assoc-fake",
            IamInstanceProfile={"Name": "second"})


def test_invalid_replace_by_a_profile_that_nobody_made():
    refused("NoSuchEntity", None, ec2.replace_iam_instance_profile_association,
            AssociationId=associate(one(), "first")["AssociationId"], IamInstanceProfile={"Name": "nobodys"})


def test_disassociate():
    made = one()
    association = associate(made, "first")
    said = ec2.disassociate_iam_instance_profile(AssociationId=association["AssociationId"])
    assert said["IamInstanceProfileAssociation"]["State"] == "disassociating", said
    assert associations(Filters=[{"Name": "instance-id", "Values": [made]}]) == []
    assert "IamInstanceProfile" not in describe(InstanceIds=[made])[0]


def test_invalid_disassociate():
    refused("InvalidAssociationID.NotFound", "An invalid association-id of 'iip-assoc-fake' was given",
            ec2.disassociate_iam_instance_profile, AssociationId="iip-assoc-fake")


# Places, and who calls


def test_describe_regions():
    (region,) = ec2.describe_regions()["Regions"]
    assert region["RegionName"] == "us-east-1" and "us-east-1" in region["Endpoint"], region
    assert ec2.describe_regions(RegionNames=["us-east-1"])["Regions"] == [region]


def test_describe_regions_of_all_of_aws():
    assert len(ec2.describe_regions()["Regions"]) > 10


def test_availability_zones_of_the_region():
    zones = ec2.describe_availability_zones()["AvailabilityZones"]
    assert zones and {zone["RegionName"] for zone in zones} == {"us-east-1"}, zones
    name = zones[0]["ZoneName"]
    assert [z["ZoneName"] for z in ec2.describe_availability_zones(ZoneNames=[name])["AvailabilityZones"]] == [name]
    identity = zones[0]["ZoneId"]
    assert [z["ZoneId"] for z in ec2.describe_availability_zones(ZoneIds=[identity])["AvailabilityZones"]] == [identity]
    available = [{"Name": "state", "Values": ["available"]}]
    assert ec2.describe_availability_zones(Filters=available)["AvailabilityZones"] == zones


def test_get_caller_identity_with_default_credentials():
    said = sts.get_caller_identity()
    assert said["Account"] == ACCOUNT and said["UserId"], said
    assert said["Arn"].startswith(f"arn:aws:iam::{ACCOUNT}:"), said


tests = {name: test for name, test in list(globals().items()) if name.startswith("test_")}
unknown = set(DIFFERENT) - set(tests) | set(NOT_HERE) & set(tests)
wrong = [f"{name} is in the wrong list" for name in sorted(unknown)]
for name, test in tests.items():
    try:
        test()
    except Exception as error:
        reason, how = DIFFERENT.get(name, (None, None))
        if reason and how in repr(error):
            print(f"differs: {name}: {reason}")
            continue
        traceback.print_exc()
        wrong.append(f"{name}: {error!r}")
    else:
        print(f"passes: {name}")
        if name in DIFFERENT:
            wrong.append(f"{name} passes, though {DIFFERENT[name][0]}")
for name, reason in NOT_HERE.items():
    print(f"not here: {name}: {reason}")
for line in wrong:
    print("FAILED", line)
n_passed = len(tests) - len(DIFFERENT) - len(wrong)
print(f"{len(tests)} tests: {n_passed} pass, {len(DIFFERENT)} differ with a reason, {len(wrong)} are wrong;"
      f" {len(NOT_HERE)} more are about what is not here")
sys.exit(bool(wrong))
