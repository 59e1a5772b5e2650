"""Reading files that anybody may have written: in bounded time and memory, or one named error.

`json_objects` reads JSON, `arrays` reads NumPy's files, `zstd` bounds what packed files hold.
Nothing in a file decides how much is allocated: declared sizes are compared with the bytes that are
there first. Every function is given the error class and the remedy of its caller, so that a bad
file is one line that names it.
"""
