defmodule Snakepit.Isolation.LoadFailureTest do
  use Snakepit.IsolationCase, async: false

  for {fixture, options, words} <- [
        {:missing, [], ~r/there is no file .*missing\.so/},
        {:not_a_library, [], ~r/not a shared library/},
        {:truncated, [], ~r/could not be opened|not a shared library/},
        {:wrong_architecture, [], ~r/another processor/},
        {:no_init, [], ~r/no function nif_init/},
        {:undefined_symbol, [], ~r/enif_/},
        {:load_fails, [load_info: 17], ~r/load callback returned 17/},
        {:load_fails, [load_info: :crash], ~r/while the library was being loaded/},
        {:load_fails, [load_info: :exit], ~r/while the library was being loaded/},
        {:load_fails, [load_info: :hang, load_timeout: 300], ~r/within 300 ms/},
        {:constructor_crash, [], ~r/SIG[A-Z]+ while the library was being loaded/},
        {:constructor_exit, [], ~r/exit\(\d+\) while the library was being loaded/},
        {:constructor_hang, [load_timeout: 300], ~r/within 300 ms/}
      ] do
    test "#{fixture} #{inspect(options)}" do
      {fixture, options, words} = unquote(Macro.escape({fixture, options, words}))
      assert %Error{reason: :not_loaded} = error = refused(fixture, options)
      assert Exception.message(error) =~ words
      assert Isolation.list() == []
      eventually(fn -> children(Warden.os_pid()) == [] end)
      assert_no_messages()
    end
  end

  test "a path with .so, as one would write it by habit" do
    assert {:error, %Error{reason: :not_loaded} = error} =
             Isolation.load(NativeFixture.path(:adder) <> ".so", sandbox: :none)

    assert Exception.message(error) =~ "Leave out the ending .so"
  end

  test "one whose functions have more new names than it may make atoms" do
    for limit <- [0, 1] do
      assert %Error{reason: :not_loaded} = error = refused(:new_names, max_atoms: limit)
      assert Exception.message(error) =~ "new atoms, of which it may make #{limit}"
      assert Exception.message(error) =~ "max_atoms:"
    end

    library = load!(:new_names, max_atoms: 2)
    assert {:ok, :ok} = Isolation.call(library, :fine, [])
  end

  test "a library that can be loaded after all" do
    assert refused(:load_fails, load_info: 1)
    library = load!(:load_fails, load_info: 0)
    assert {:ok, _} = Isolation.call(library, :fine, [])
  end

  test "one that hangs while it is loaded does not keep others from being loaded" do
    path = NativeFixture.path(:constructor_hang)
    task = Task.async(fn -> Isolation.load(path, sandbox: :none, load_timeout: 2_000) end)
    eventually(fn -> children(Warden.os_pid()) != [] end)
    library = load!(:adder)
    assert {:ok, 3} = Isolation.call(library, :add, [1, 2])
    refute Task.yield(task, 0)
    assert {:error, %Error{reason: :not_loaded}} = Task.await(task, 30_000)
  end

  test "a file that goes while the library is in service" do
    directory = temporary_directory("library")
    path = Path.join(directory, "adder")
    File.cp!(NativeFixture.path(:adder) <> ".so", path <> ".so")
    {:ok, library} = Isolation.load(path, sandbox: :none, max_restarts: 2)
    File.rm!(path <> ".so")
    signal(os_pid(library))
    assert {:error, %Error{reason: :not_loaded} = error} = Isolation.call(library, :add, [1, 2], timeout: 30_000)
    assert Exception.message(error) =~ "given up"
  end
end
