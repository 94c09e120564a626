"""The words of `fastsam3d export onnx`; what it writes is tested with the engines."""

from pathlib import Path

from fastsam3d.cli.main import EXIT_ERROR, EXIT_OK, main


def test_help_is_found_in_the_command_table(capsys) -> None:
    assert main(["export", "onnx", "--help"]) == EXIT_OK
    assert "decoder.onnx" in capsys.readouterr().out


def test_an_earlier_export_is_not_replaced_unasked(tmp_path: Path, capsys) -> None:
    facts = tmp_path / "model.json"
    facts.write_text("{}")
    assert main(["export", "onnx", "--output", str(tmp_path)]) == EXIT_ERROR
    assert "--force" in capsys.readouterr().err
    assert facts.read_text() == "{}"
