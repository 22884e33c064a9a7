"""The SLURM worker, with replacements of SLURM's commands that run each job at once."""

import re
import sys

import pytest

from nio_pydra.cli import bids_app

SBATCH = """#!/bin/sh
for word in "$@"; do case "$word" in --error=*) error="${word#--error=}";; esac; script="$word"; done
id=$$
error=$(echo "$error" | sed "s/%j/$id/")
sh "$script" 2> "$error"
echo $? > STATE/$id
echo "Submitted batch job $id"
"""
SACCT = """#!/bin/sh
while [ "$1" != -j ]; do shift; done
status=$(cat STATE/$2)
if [ "$status" = 0 ]; then echo "$2 COMPLETED 0:0"; else echo "$2 FAILED $status:0"; fi
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="shell scripts")
def test_slurm_jobs_do_what_processes_do_and_say_why_one_failed(dataset, tmp_path, monkeypatch, capsys):
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in (("sbatch", SBATCH), ("squeue", "#!/bin/sh\n"), ("sacct", SACCT)):
        (commands / name).write_text(text.replace("STATE", str(commands)))
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(commands), prepend=":")
    (dataset.root / "sub-02/anat/sub-02_T1w.nii.gz").write_bytes(b"")
    out = tmp_path / "out"
    assert bids_app.main(dataset.command(out, "--worker", "slurm")) == 1
    assert re.search(r"  sub-02: .*sub-02_T1w.nii.gz .*empty \(0 bytes\)", capsys.readouterr().out)
    assert len(list((out / "sub-01/anat").iterdir())) == 13
