"""`perdure launch`: the configurations that come with perdure are read by accelerate as they are meant."""

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from perdure.cli import main
from perdure.cli.launch import configurations

MEANT = {
    "ddp": ("MULTI_GPU", {}),
    "fsdp": ("FSDP", {"fsdp_reshard_after_forward": True, "fsdp_offload_params": False}),
    "fsdp_keep": ("FSDP", {"fsdp_reshard_after_forward": False, "fsdp_offload_params": False}),
    "fsdp_offload": ("FSDP", {"fsdp_reshard_after_forward": True, "fsdp_offload_params": True}),
    "zero2": ("DEEPSPEED", {"zero_stage": 2}),
    "zero3": ("DEEPSPEED", {"zero_stage": 3}),
}


def test_every_configuration_is_one_of_accelerates():
    for name, file in configurations().items():
        kind, settings = MEANT[name]
        read = load_config_from_file(str(file)).to_dict()
        found = read.get("fsdp_config") or read.get("deepspeed_config") or {}
        assert read["distributed_type"] == kind and settings.items() <= found.items(), name
        assert found.get("fsdp_version", 2) == 2


def test_it_prints_a_path_or_the_list(capsys):
    for arguments in (["launch"], ["launch", "fsdp"]):
        with pytest.raises(SystemExit) as leaving:
            main(arguments)
        assert leaving.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == sorted(MEANT)
    assert lines[-1] == str(configurations()["fsdp"])


def test_unknown_configuration_is_refused(capsys):
    with pytest.raises(SystemExit) as leaving:
        main(["launch", "zero1"])
    assert leaving.value.code == 2 and "expected one of ddp, fsdp" in capsys.readouterr().err.lower()
