defmodule Snakepit.Isolation.DoctorTest do
  use ExUnit.Case, async: true

  import Snakepit.ShmCase, only: [temporary_directory: 1]

  alias Snakepit.Isolation.{Doctor, Warden}

  test "the executable that is there can be started" do
    assert [{:ok, "worker", text}] = Doctor.checks()
    assert text =~ Warden.executable()
  end

  test "one that is missing, a directory, or another program" do
    directory = temporary_directory("doctor")
    assert {:error, _, text} = Doctor.executable(Path.join(directory, "none"))
    assert text =~ "mix compile"
    assert {:error, _, text} = Doctor.executable(directory)
    assert text =~ "directory"
    assert {:error, _, text} = Doctor.executable("/bin/false")
    assert text =~ "ended with 1"
    plain = Path.join(directory, "plain")
    File.write!(plain, "no program")
    assert {:error, _, text} = Doctor.executable(plain)
    assert text =~ "cannot be started"
  end
end
