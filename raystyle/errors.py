"""The errors raystyle raises on purpose.

    RaystyleError
    ├── ConfigError (ValueError)     a flag, a config file, or two settings that contradict each other
    ├── DataError (ValueError)       input that cannot be read, prepared data that does not verify
    ├── StorageError (OSError)       a place that cannot be listed, read or written
    ├── ModelError (ValueError)      a tokenizer, base model or adapter that cannot be used as asked
    ├── RunError (ValueError)        an output directory that belongs to something else
    └── TrainingError (RuntimeError) workers that failed; the only one that is not the user's to fix first

Each doubles as a builtin, so that callers may catch either, and carries one message, so that it pickles across Ray.
A message says what is wrong, the value, and after a `hint:` the way out. The command line prints it without a
traceback and exits with `exit_code`; any other exception is a bug and keeps its traceback.
"""


class RaystyleError(Exception):
    exit_code = 2


class ConfigError(RaystyleError, ValueError):
    pass


class DataError(RaystyleError, ValueError):
    pass


class StorageError(RaystyleError, OSError):
    pass


class ModelError(RaystyleError, ValueError):
    pass


class RunError(RaystyleError, ValueError):
    pass


class TrainingError(RaystyleError, RuntimeError):
    exit_code = 1
