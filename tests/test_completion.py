"""Shell completion: installed by the command, then used in real shells on a pseudo-terminal."""

from __future__ import annotations

import os
import pty
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from command import Outcome, read_terminal, run_main, run_process
from conftest import require

pytest.importorskip("shtab")

Capsys = pytest.CaptureFixture[str]

BASH_COMPLETION = Path("/usr/share/bash-completion/bash_completion")
PROMPT, RECORDED = "READY> ", "<recorded>"
SHELLS = {  # a startup file: a prompt to wait for, and what a user of completion has there; and the file installed
    "bash": (
        ".bashrc", f"PS1='{PROMPT}'\n. {BASH_COMPLETION}\n", ".local/share/bash-completion/completions/dicom-echo"),
    "zsh": (
        ".zshrc", f"PROMPT='{PROMPT}'\nfpath=(~/.zfunc $fpath)\nautoload -U compinit\ncompinit -u\n",
        ".zfunc/_dicom-echo"),
    "fish": (
        ".config/fish/config.fish", f"function fish_prompt\n    echo -n '{PROMPT}'\nend\n",
        ".config/fish/completions/dicom-echo.fish"),
    "tcsh": (".tcshrc", f"set prompt='{PROMPT}'", ".tcshrc"),  # without an end of line
}  # fmt: skip


def write_program(home: Path, name: str, script: str) -> None:
    """Write a script of the shell into a folder of PATH."""
    file = home / "bin" / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with startup files for all shells, and on PATH a `dicom-echo` that writes down its arguments."""
    for folder in (".zfunc", ".ssh", ".config/fish", "folder", "bin"):
        (tmp_path / folder).mkdir(parents=True)
    for file, text, _ in SHELLS.values():
        (tmp_path / file).write_text(text)
    (tmp_path / "fleet.txt").touch()
    (tmp_path / ".ssh" / "known_hosts").write_text("pacs.example ssh-ed25519 AAAA\n")
    (tmp_path / "hosts").write_text("192.0.2.7 pacs.example\n")
    monkeypatch.setenv("HOSTFILE", str(tmp_path / "hosts"))  # which is bash's
    write_program(tmp_path, "dicom-echo", f"printf '%s\\n' \"$@\" >~/arguments\necho '{RECORDED}'")
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "BASH_COMPLETION_USER_DIR", "ZDOTDIR", "FPATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("TERM", "xterm")
    return tmp_path


def complaint(capsys: Capsys, *arguments: str) -> str:
    """What the command says when it refuses."""
    code, out, err = run_main(capsys, *arguments)
    assert (code, out) == (2, "")
    return err


def contents(folder: Path) -> dict[str, bytes]:
    """All files, less what the shells keep for themselves."""
    own = (".zcompdump", ".local/share/fish", ".config/fish/fish_variables", ".cache")
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if not name.startswith(own)}


def typed(shell: str, home: Path, lines: Iterable[str]) -> list[list[str]]:
    """What the command is given when these lines are typed into a shell on a terminal, where <TAB> is the key."""
    process, keyboard = pty.fork()
    if process == 0:
        os.chdir(home)
        os.execvp(shell, [shell])
    given = list[list[str]]()
    try:
        read_terminal(keyboard, PROMPT)
        for line in lines:
            os.write(keyboard, line.replace("<TAB>", "\t").encode() + b"\r")
            read_terminal(keyboard, f"{RECORDED}.*{PROMPT}")
            # zsh removes the slash behind a folder
            given.append([argument.rstrip("/") for argument in (home / "arguments").read_text().splitlines()])
    finally:
        os.close(keyboard)  # the shell is hung up on
        os.waitpid(process, 0)
    return given


COMPLETED = {
    "dicom-echo --form<TAB>": ["--format"],
    "dicom-echo pacs:104 --form<TAB>": ["pacs:104", "--format"],
    "dicom-echo -aec PACS --insec<TAB>": ["-aec", "PACS", "--insecure"],
    "dicom-echo --format pro<TAB>": ["--format", "prometheus"],
    "dicom-echo --install-completion fi<TAB>": ["--install-completion", "fish"],
    "dicom-echo --targets fle<TAB>": ["--targets", "fleet.txt"],
    "dicom-echo -T fle<TAB>": ["-T", "fleet.txt"],
    "dicom-echo -v --cacert fold<TAB>": ["-v", "--cacert", "folder"],
    "dicom-echo fle<TAB>": ["fle"],
}
HOST_NAME = {"dicom-echo pacs.ex<TAB>": ["pacs.example"]}


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_completes_once_installed(
    shell: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capsys
) -> None:
    """Installing writes one file and says which. Completed are options, choices, files where one is due, hosts."""
    monkeypatch.setenv("SHELL", require(shell, shell))
    if shell == "bash" and not BASH_COMPLETION.exists():
        require("bash_completion", "bash-completion")
    *_, installed = SHELLS[shell]
    before = contents(home)
    outcome = run_main(capsys, "--install-completion")
    assert (outcome.code, outcome.err) == (0, "")
    assert str(home / installed) in outcome.out
    after = contents(home)
    assert (run_main(capsys, "--install-completion"), contents(home)) == (outcome, after)
    assert after.pop(installed).startswith(before.pop(installed, b""))
    assert after == before
    lines = COMPLETED if shell == "tcsh" else {**COMPLETED, **HOST_NAME}
    assert dict(zip(lines, typed(shell, home, lines))) == lines


def test_install_for_powershell_adds_to_its_profile(home: Path, capsys: Capsys) -> None:
    """A stand-in tells where the profile is, so that the rest is tested where there is no PowerShell."""
    profile = home / "Documents" / "profile.ps1"
    write_program(home, "pwsh", f"echo '{profile}'")
    profile.parent.mkdir()
    profile.write_bytes(b"\xef\xbb\xbfSet-Alias ll ls\r\n")
    for _ in range(2):
        outcome = run_main(capsys, "--install-completion", "powershell")
        assert (outcome.code, outcome.err) == (0, "")
        assert str(profile) in outcome.out
    text = profile.read_bytes()
    assert text.startswith(b"\xef\xbb\xbfSet-Alias ll ls\r\n")
    assert text.count(b"Register-ArgumentCompleter -Native -CommandName dicom-echo") == 1


def test_install_leaves_a_profile_in_utf_16_alone(home: Path, capsys: Capsys) -> None:
    (home / ".tcshrc").write_text("set prompt='> '", encoding="utf-16")
    before = contents(home)
    assert "cannot install" in complaint(capsys, "--install-completion", "tcsh")
    assert contents(home) == before


def test_powershell_completes(tmp_path: Path, capsys: Capsys) -> None:
    pwsh = shutil.which("pwsh") or pytest.skip("PowerShell is not installed (and no Debian package)")
    script = tmp_path / "dicom-echo.ps1"
    script.write_text(run_main(capsys, "--show-completion", "powershell").out)
    for line, completed in ("dicom-echo --form", "--format"), ("dicom-echo --format pro", "prometheus"):
        ask = f". '{script}'; (TabExpansion2 '{line}' {len(line)}).CompletionMatches.CompletionText"
        assert run_process([pwsh, "-NoProfile", "-Command", ask]) == Outcome(0, f"{completed}\n", "")


def test_zsh_without_a_folder_of_the_user_is_told(home: Path, capsys: Capsys) -> None:
    write_program(home, "zsh", "echo /nowhere")
    assert "add one in .zshrc" in complaint(capsys, "--install-completion", "zsh")


def test_the_login_shell_is_the_default(monkeypatch: pytest.MonkeyPatch, capsys: Capsys) -> None:
    shown = {shell: run_main(capsys, "--show-completion", shell) for shell in ("bash", "zsh", "fish", "tcsh")}
    assert len({outcome.out for outcome in shown.values()}) == len(shown)
    for path, shell in ("/bin/bash", "bash"), ("/opt/bin/fish", "fish"), ("/usr/bin/zsh", "zsh"), ("/bin/csh", "tcsh"):
        monkeypatch.setenv("SHELL", path)
        assert run_main(capsys, "--show-completion") == shown[shell]


def test_an_unknown_shell_is_told(monkeypatch: pytest.MonkeyPatch, capsys: Capsys) -> None:
    monkeypatch.setenv("SHELL", "/bin/dash")
    assert "SHELL='/bin/dash'" in complaint(capsys, "--show-completion")
    assert "invalid choice: 'dash'" in complaint(capsys, "--show-completion", "dash")


def test_without_shtab_its_name_is_told(monkeypatch: pytest.MonkeyPatch, capsys: Capsys) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert "pip install 'dicom-echo[completion]'" in complaint(capsys, "--show-completion", "bash")


def test_every_option_that_takes_a_file_completes_files(capsys: Capsys) -> None:
    """In PowerShell's script, which lists them plainly."""
    script = run_main(capsys, "--show-completion", "powershell").out
    for option in ("targets", "cacert", "cert", "key", "output"):
        assert f"'_shtab_dicom_echo___{option}' = '_shtab_powershell_compgen_files'" in script
    assert script.isascii()
